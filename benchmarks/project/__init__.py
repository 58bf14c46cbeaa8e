"""The Celery project under test: one ``tasks.py``, and two apps that differ in one line."""

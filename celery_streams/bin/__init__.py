"""The command line: ``celery-streams``, ``celery -A proj streams``, ``manage.py celery_streams``.

``base`` has the root group and the entry points; each command stands in a file of its own.
"""

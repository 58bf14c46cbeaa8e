"""The command line: ``celery-streams COMMAND``, ``celery -A proj streams COMMAND``, ``manage.py celery_streams COMMAND``.

``base`` has the root group and the entry points; each command stands in a file of its own.
"""

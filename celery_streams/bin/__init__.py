"""The command line: ``celery-streams``, ``celery -A proj streams``, ``manage.py celery_streams``.

``root`` has the groups and the entry point, ``base`` and ``terminal`` what commands share; each command is one file.
"""

"""celery-streams in a Django project: one line in INSTALLED_APPS, and nothing else to write.

::

    INSTALLED_APPS += ["django_integration"]
    CELERY_STREAMS_ENABLED = True

``project`` finds the project's Celery app and puts it on streams, ``transactions`` holds what is published until it
is committed, ``checks`` looks at the settings, ``urls`` and ``views`` show the status, ``task_events`` tells the state
of a task for as long as somebody listens, and the management command ``celery_streams`` is the command line of the same
name.
"""

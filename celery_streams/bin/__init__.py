"""The command line: ``celery-streams``, ``celery -A proj streams``, ``manage.py celery_streams``.

``root`` has the groups and the entry point, ``base`` and ``terminal`` what commands share; each command is one file.

===================  =======================================================
module               owns
===================  =======================================================
``root``             the groups and the entry point
``commands``         our commands as a plugin of Celery's program
``app_name``         the app that ``-A`` names, or why there is none
``base``             what the root group and the commands share
``terminal``         exit codes, errors as one line
``tables``           tables and progress, with rich
``worker``           Celery's command with our consumer and pool
``queue_names``      the words of ``-Q``
``daemon_options``   options that Celery answers with a stack trace
``supervisor``       several worker programs (``--processes``, ``--reload``)
``relaunch``         the command line of this process, once more
``django_projects``  Django projects whose Django nobody sets up
``status``           the command of that name
``dead``             likewise
``dead_filters``     which dead letters ``dead`` is about
``alerts``           the command of that name
``doctor``           the command of that name
``migrate``          likewise
``purge``            likewise
``forget``           likewise
``adopt``            likewise
``pause``            likewise, and ``resume``
``limits``           likewise
``health``           likewise
``report``           likewise, Celery's with our part
``call``             Celery's, without stack traces
``probe``            what ``health`` needs before it imports much
``demo``             likewise
===================  =======================================================
"""

"""Celery's own tests as a judge of celery-streams: ``make celery-suite``; see README.md.

Nothing of Celery's tests is stored here, and the ordinary test run collects nothing of this package. Its modules run in
two environments: ``__main__``, ``preparation``, ``chunks`` and ``summary`` in the development environment, the rest in
the suite's own, with this directory's parent on the path (hence the relative imports).
"""

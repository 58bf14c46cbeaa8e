"""A sample Celery project, as its users write it; the same modules run on lists and on streams.

``-A tests.proj``. What a test changes comes from the environment, see :mod:`tests.proj.settings`.
"""

"""Benchmarks: a stock Celery worker, a stream worker and a bare Redis loop side by side, on one machine, in one run.

The way of a figure, and the module that owns each step::

    what is compared            systems      how each of the three publishes, works and is told what to do
    the tasks                   project      one tasks.py, loaded by two apps: stock, and on streams
    one process that publishes  publisher    and measures its own side
    processes, CPU, memory      processes    read from /proc, never from inside
    what is measured            measures     one function for each measure
    in which order              rounds       A B C, B C A, C A B ..., each round on an empty Redis
    how it is shown             report       tables, JSON, Markdown
"""

"""Benchmarks: a stock Celery worker, a stream worker and bare Redis loops side by side, on one machine, in one run.

The way of a figure, and the module that owns each step::

    what is compared            systems      how each of them publishes, works and is told what to do
    the tasks                   project      one tasks.py, loaded by two apps: stock, and on streams
    the same for others         peers        other queues, each in an environment of its own
    what tasks leave behind     marks        bytes in a file
    one process that publishes  publisher    and measures its own side
    processes, CPU, memory      processes    read from /proc, never from inside
    what is measured            measures     one function for each measure
    the other pools             pools        the same for solo, threads, gevent and asyncio; a program of its own
    in which order              rounds       A B C, B C A, C A B ..., each round on an empty Redis
    how it is shown             report       tables, JSON, Markdown

    as a system grows           scale        what a task costs with many waiting, queues, children ...
    and as a picture            curves       SVG
"""

"""What operators see of the queues: figures, alerts, and their export; it changes nothing in Redis.

``status`` collects, ``alerts`` judges, ``prometheus`` exports. The command line and Django only render what
:func:`~celery_streams.monitoring.status.collect` returns.
"""

"""What operators see of the queues: figures, alerts, and their export; it changes nothing in Redis.

``status`` collects, ``alerts`` judges, ``prometheus`` exports; ``doctor`` collects what ``checks`` judges. The command
line and Django only render what these return.

==============  ================================================
module          owns
==============  ================================================
``status``      all queues at one moment, with totals and alerts
``alerts``      what the state of a queue means (pure)
``growth``      what became more within some minutes
``course``      how a queue fared within an hour or a day
``prometheus``  the status as Prometheus gauges
``publishers``  what a process that only publishes counts for Prometheus
``doctor``      looks for what will hurt
``checks``      what a look means (pure)
``worlds``      what both sides of a queue mean together (pure)
``nodes``       the same of each node of a Redis Cluster
``health``      is one worker's heart beating, and does it read?
``lists``       the other side of each queue, Celery's own list
``names``       chosen queues that nothing else knows
``workers``     which queues workers consume, and on which side
==============  ================================================
"""

"""What operators see of the queues: figures, alerts, and their export; it changes nothing in Redis.

``status`` collects, ``alerts`` judges, ``prometheus`` exports; ``doctor`` collects what ``checks`` judges. The command
line and Django only render what these return.
"""

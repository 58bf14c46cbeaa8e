"""The parts of a running worker, one file each.

=============  =====================================================================================================
``program``    Celery's worker program with our banner lines and start-up checks
``consumer``   Celery's Consumer in the parent, with the Tasks step replaced
``control``    remote control: what Celery's commands need to know of the children, and what children must be told
``slots``      what each child is doing, in memory that the parent can read even after a SIGKILL
``reader``     asks the streams for work, and waits for it
``child``      the loop of a child: read, execute, settle
``executor``   runs one message through Celery's tracer
``plan``       a task's options, read once
``local``      what Celery's strategies and Requests expect around them, for one process
``outcome``    decides what shall be done with the message (pure)
``settle``     does it (the one place)
``aftermath``  what the parent does for a child that died: limits, lost tasks
``services``   the threads of the parent: heartbeat, claimer, delayed
=============  =====================================================================================================
"""

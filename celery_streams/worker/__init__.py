"""The parts of a running worker, one file each.

==================  =================================================================================================
``program``         Celery's worker program with our banner lines and start-up checks
``consumer``        Celery's Consumer in the parent, with the Tasks step replaced
``control``         remote control: what Celery's commands need to know of the children, and what children must be told
``revoked_stamps``  the stamps whose tasks are revoked
``slots``           what each child is doing, in memory that the parent can read even after a SIGKILL
``reader``          asks the streams for work, and waits for it
``child``           the loop of a child: read, execute, settle
``executor``        runs one message through Celery's tracer
``slow_path``       runs one through Celery's strategy and Request: events, revokes, all that is out of the ordinary
``task_options``    a task's options, read once
``inline_request``  what Celery's strategies and Requests expect around them, for one process
``chords``          how long the body of a chord may be claimed by a process that is dead
``task_errors``     what an exception of a task means
``outcome``         decides what shall be done with the message (pure)
``settle``          does it (the one place)
``dead_children``   what the parent does for a child that died: limits, lost tasks
``presence``        says in Redis that this worker lives, what it reads, and whether it does
``services``        the threads of the parent: heartbeat, presence, claimer, delayed
==================  =================================================================================================
"""

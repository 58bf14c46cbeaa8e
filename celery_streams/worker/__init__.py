"""The parts of a running worker, one file each, with the process that each runs in.

Pools without children (solo, threads, gevent, eventlet, asyncio) have everything in one process.

===================  =======  ===================================================================
module               process  owns
===================  =======  ===================================================================
``program``          parent   Celery's worker program with our banner lines and start-up checks
``consumer``         parent   Celery's Consumer, with the Tasks step replaced
``broker_bounds``    parent   time-outs for the connections to Celery's own broker
``control``          parent   remote control: what Celery asks, and what children are told
``patterns``         parent   shell patterns among the queues of ``-Q``
``autoscale``        parent   Celery's autoscaler, with the demand read from the streams
``parent``           parent   the main process: its parts, and the one way to stop
``crew``             parent   whoever runs the tasks, as the parent sees them (a protocol)
``mailbox``          parent   work for the main thread
``active_requests``  parent   what the children run, where Celery's code looks for it
``dead_children``    parent   what a child held that died
``lost_tasks``       parent   settles what was lost with its process, and tells whom Celery tells
``services``         parent   the threads of the five that follow
``heartbeat``        parent   keeps what is held from being claimed
``presence``         parent   says in Redis that this worker lives, and what it reads
``claimer``          parent   puts back what dead workers held
``holders``          parent   how long a holder of entries may be silent
``delayed``          parent   moves delayed messages to their streams when they are due
``time_limits``      parent   tells of limits that are over
``hand_back``        parent   what waits behind a long task goes back
``slots``            both     what each child does, in memory that outlives a SIGKILL
``pieces``           both     what children are told, in pieces that a pipe takes at once
``child``            child    the loop of a child: read, execute, settle
``reader``           child    asks the streams for work, and waits for it
``events``           both     sends task and worker events, in a thread nobody waits for
``runner``           both     the same for pools without children, in their own process
``executor``         child    the steps of one message: decode, wait?, run, decide, settle
``execution``        child    the values that go through these steps
``rate_limits``      child    may it run now?
``fast_path``        child    runs a plain message straight through the task's tracer
``slow_path``        child    runs all others through Celery's strategy and Request
``inline_request``   child    what strategies and Requests expect around them
``kept_messages``    child    what a strategy of its own keeps, to run it later
``own_process``      child    keeps our code out of what a task forks
``outcome``          both     decides what shall be done with a message (pure)
``settle``           both     does it: the one way out
``task_options``     both     a task's options, read once
``option_values``    both     time limits and counts, numbers or text
``task_errors``      both     what an exception of a task means
``chords``           both     how long the body of a chord may be claimed by the dead
``requests``         both     Celery's Requests, made of what Redis still holds
``revoked_stamps``   both     the stamps whose tasks are revoked
===================  =======  ===================================================================
"""

"""The parts of a running worker, one file each, with the process that each runs in.

Pools without children (solo, threads, gevent, eventlet, asyncio) have everything in one process.

===================  =======  ===================================================================
module               process  owns
===================  =======  ===================================================================
``program``          parent   Celery's worker program with our banner lines and start-up checks
``consumer``         parent   Celery's Consumer, with the Tasks step replaced
``broker_bounds``    parent   time-outs for the connections to Celery's own broker
``broker_wait``      parent   waits for Celery's broker beside the main thread
``replies``          parent   sends the answers to remote control, in a thread nobody waits for
``neighbours``       parent   whether a worker that starts waits for the answers of others
``control``          parent   remote control: answers, and passes changes on to children
``patterns``         parent   shell patterns among the queues of ``-Q``
``partitions``       parent   which partitions of its queues there are
``autoscale``        parent   Celery's autoscaler, with the demand read from the streams
``parent``           parent   the main process: its parts, and the one way to stop
``crew``             parent   whoever runs the tasks, as the parent sees them (a protocol)
``mailbox``          parent   work for the main thread
``active_requests``  parent   what the children run, where Celery's code looks for it
``dead_children``    parent   what a child held that died
``lost_tasks``       parent   settles tasks whose process is gone, and reports them as lost
``untold``           parent   reports failures that a child could not report itself
``gates``            both     what threads hold while they send something, so that no child is forked meanwhile
``later``            parent   does one thing after the other, in a thread nobody waits for
``services``         parent   the threads of those that follow, down to ``tallying``
``heartbeat``        parent   keeps what is held from being claimed
``presence``         parent   says in Redis that this worker lives, and what it reads
``access``           parent   notices that Redis forbids or permits a queue
``pauses``           parent   notices that queues were paused or resumed
``handed_over``      parent   what other workers handed over to this one
``claimer``          parent   puts back what dead workers held
``holders``          parent   how long a holder of entries may be silent
``silent_workers``   parent   which workers have not beaten for too long, as this one has heard it
``held_messages``    parent   releases what was held back, and gives back places that nobody holds
``delayed``          parent   moves delayed messages to their streams when they are due
``shards``           parent   a claimer and a promoter for each slot of a Redis Cluster
``time_limits``      parent   notices tasks that are over their limits
``hand_back``        parent   puts back what waits behind a long task
``tallying``         parent   adds what was counted to the history, once a minute
``counts``           both     what is counted, in memory that outlives a child
``counting``         both     where a worker counts that is told to
``counted``          parent   all that its processes counted, as one
``metrics``          parent   what it says to Prometheus, made of that
``metrics_server``   parent   the port on which it says it
``slots``            both     what each child does, in memory that outlives a SIGKILL
``pieces``           both     messages to children, cut so that a pipe takes each at once
``child``            child    the loop of a child: read, execute, settle
``reader``           child    asks the streams for work, and waits for it
``reading_order``    child    which streams a read names, in which order; what is left out for a while
``pace``             child    how many entries are fetched at once
``events``           both     sends task and worker events, in a thread nobody waits for
``runner``           both     the same for pools without children, in their own process
``executor``         child    the steps of one message: decode, wait?, run, decide, settle
``preparation``      both     what executors know before a message comes, made once for all
``contexts``         both     what Celery keeps for each thread, for each context
``execution``        child    the values that go through these steps
``admission``        child    may it start now?
``fast_path``        child    runs a plain message straight through the task's tracer
``slow_path``        child    runs all others through Celery's strategy and Request
``inline_request``   child    what strategies and Requests expect around them
``kept_messages``    child    messages that a task's own strategy keeps, to run them later
``own_process``      child    keeps our code out of what a task forks
``fitness``          child    notices that a task has left the process unable to work
``outcome``          both     decides what happens to a message (pure)
``noting``           both     which state a tracked task gets by that (pure)
``tracking``         both     what a consumer has noted of tracked tasks
``settle``           both     does it: the one way out
``collected``        both     acknowledgements that wait to be sent together
``attempted``        both     what is said of a delivery that ended among the attempts of its message
``burial``           both     what a dead letter says, and who is told
``insistence``       both     repeats what must be carried out while Redis is away
``set_aside``        both     outcomes that Redis refuses for one queue, until it permits them
``task_options``     both     a task's options, read once
``option_values``    both     time limits and counts, numbers or text
``task_errors``      both     what an exception of a task means
``chords``           both     how long a dead process may hold the claim to a chord's body
``requests``         both     Celery's Requests, made of what Redis still holds
``revoked_stamps``   both     the stamps whose tasks are revoked
===================  =======  ===================================================================
"""

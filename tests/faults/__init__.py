"""The fault harness: a producer, an independent ledger, workers as real processes, faults, and a verdict.

``python -m tests.faults`` runs it (``make faults``); the scenarios of single faults are the tests in this folder. The
numbers F1 to F34 name the same faults here, in the tests and in the reports:

===  ===========================================================================================================
F1   kill -9 a worker's parent, or the whole worker
F2   a child dies: kill -9, a segmentation fault, ``os._exit``
F3   killed between the read and the start of a task
F4   killed after the task's body, before its acknowledgement
F5   killed between deciding a retry and storing it
F6   killed inside the promotion of delayed messages
F7   killed right after a claim
F8   SIGSTOP for longer than the visibility timeout, then SIGCONT
F9   SIGTERM, SIGINT, SIGQUIT, a second SIGTERM
F10  kill -9 Redis, and restart
F11  Redis comes back empty; keys deleted, of another type, without a group
F12  Sentinel failover, LOADING, READONLY, MISCONF, BUSY, CLIENT KILL, CLIENT PAUSE, maxclients
F13  half-open TCP connections, resets, latency
F14  the reply to a publish is lost
F15  Redis is full (maxmemory, noeviction)
F16  poison: tasks that kill their process each time
F17  entries that are no messages
F18  a task that only newer workers know
F19  results that cannot be serialised; the result backend is away
F20  large payloads, and very many tiny ones
F21  pending entries trimmed or deleted by someone else
F22  two workers with the same node name
F24  a long task beside many short ones; a task that holds the GIL
F28  chain, group and chord while processes are killed
F29  streams switched on and off under load
F31  publishing from forks, threads and greenlets
F34  a replay of dead letters that is killed half-way
===  ===========================================================================================================

The invariants of a verdict: **L** nothing lost, **D** second executions are few and each belongs to a fault,
**E** nothing before its eta, **P** streams, pending and delayed are empty, **Q** the dead letters are the expected
ones, **M** the figures that are shown equal the ledger, **R** recovery within its bound, **H** no process hangs.
"""

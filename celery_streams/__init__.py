"""Redis Streams for Celery: the same ``tasks.py``, nothing lost.

The way of a message, and the module that owns each step::

    task.delay()                     Celery
    chosen queue?                    celery_streams.amqp       the publish seam, put in place by .installation
    bytes                            celery_streams.message    Celery protocol <-> stream entry
    XADD, now or later               celery_streams.broker     lua/*.lua, one verb a file
    later becomes now                celery_streams.worker.delayed
    read, execute, decide, settle    celery_streams.worker     child, executor, outcome
    keep alive, claim                celery_streams.worker     heartbeat, claimer
    who lives?                       celery_streams.presence   said by the workers, read by monitors
    look                             celery_streams.inspect    -> monitoring, bin, django_integration

All modules of this package, and who loads them: web processes and others that publish, workers, the tools of operators:

=====================  ===========  =================================================
module                 process      owns
=====================  ===========  =================================================
``installation``       web, worker  puts an app on streams
``app``                web, worker  what an app knows of streams
``amqp``               web, worker  the publish seam
``header_marks``       web, worker  what headers say besides: keys, locks, that states are kept
``plans``              web, worker  a plain publish, without asking Celery anew
``blocks``             web, worker  messages that are held and stored together
``after_commit``       web, worker  sends what committed transactions held
``holding``            web, worker  ``bulk``, and groups in bulk
``bindings``           web, worker  to which queues a message goes
``tasks``              web, worker  ``shared_task``
``async_tasks``        web, worker  runs an ``async def`` from code that is not asynchronous
``awaited_tasks``      web, worker  which tasks are ``async def``, and has Celery call them as functions
``endable``            worker       a coroutine that limits can end
``running_task``       worker       what the code of a task may reach of its delivery
``conf``               all          the ``streams_*`` settings
``setting_values``     all          what a setting may say
``queue_choice``       all          which queues are on streams
``partitions``         all          the names under which one queue lies in several slots, and which key belongs where
``placing``            web, worker  by which key a message belongs to a partition of its queue
``spelling``           all          the known name that somebody may have meant
``message``            all          Celery's protocol <-> a stream entry
``compact``            all          what goes without saying in a message
``broker``             all          the hot path in Redis: publish, delay, promote, read, settle
``published``          web, worker  says what is published, for whoever counts
``reads``              worker       the commands of reads, and what their replies mean
``extension``          worker       the heartbeat of entries that somebody holds
``block_store``        web, worker  stores held messages in pipelines, and never twice
``turns``              worker       which workers watch the delayed messages of a queue
``notes``              all          what is noted of tracked tasks
``late_notes``         all          the same for a node of a Redis Cluster that is away: until it is back
``states``             web, tools   in which state a tracked task is
``entries``            all          what the broker takes and gives: an entry, a delivery
``pages``              all          reads in steps that do not hold up Redis
``recovery``           worker       what dead consumers held goes back
``unblocking``         worker       ends a blocking read early
``unblock_stream``     worker       a stream that does so, where Redis has no command for it
``untouched``          worker       hears when anything comes to empty streams
``transfers``          all          a message goes to another queue, where a Redis Cluster keeps them apart
``handovers``          worker       entries that a worker cannot run go to one that can
``consumers``          worker       the names in the consumer group
``revocations``        all          the ids and stamps of revoked tasks
``scripts``            all          the Lua scripts
``keys``               all          every Redis key, and the data model
``connection``         all          bytes to Redis and back
``redis_errors``       all          what an error of Redis means
``cluster``            all          the same for a Redis Cluster: which command goes where, and what if it moved
``cluster_reads``      worker       reads that block over several slots of a Redis Cluster
``cluster_listener``   all          hears what is published anywhere in a Redis Cluster; waits for a list's entries
``cluster_nodes``      all          the connections to each node, and which of them serves a slot
``cluster_results``    web, worker  Celery's result backend on a Redis Cluster
``cluster_transport``  all          kombu's way to a Redis Cluster: remote control and events
``cluster_map``        all          which slot a key lies in, and which node serves it
``redis_url``          all          what a Redis URL means
``renewal``            all          when a connection makes place for a new one
``master_watch``       all          hears from Sentinels that the master changes
``clock``              all          tells time where clocks disagree and are set
``chance``             all          random numbers that no seed touches
``poll``               all          waits for descriptors
``exceptions``         all          the tree of errors
``celery_private``     all          Celery's insides, in one place
``signals``            all          our signals
``presence``           all          which workers live
``inspect``            tools, web   looks at queues; purge
``attempts``           all          how the starts of a message ended
``running_messages``   tools        looks at a message that a worker holds
``delayed_messages``   tools        looks at delayed messages; run now, cancel
``dead_letters``       tools        reads, replays and deletes dead letters
``dead_search``        tools        looks for dead letters, the newest first
``obstacles``          tools, web   why no worker would run a message
``hints``              all          commands in logs and findings, as to be typed
``printable``          all          text from messages, harmless to a terminal
``said``               all          sentences that can be said again in another language
``probes``             tools        raw looks at Redis for the doctor
``removal``            tools        deletes a queue
``pauses``             all          which queues nobody reads for a while
``limits``             web, worker  how often and how many at once: what tasks and settings say
``lanes``            worker       keeps what may not start yet, and releases it
``unique``             web, worker  which messages of a unique task are the same: what tasks and settings say
``locks``              all          which message holds the lock of a unique task
``revoked_holders``    web, worker  frees the locks of what waits and was revoked
``aliases``            web, worker  the result of a duplicate that was held answers for the first
``duplicates``         web, worker  what the caller of a publish gets that was a duplicate
``pausing``            web, worker  pauses and resumes queues, and tells workers
``news``             all          has workers look at what changed
``migration``          tools        lists <-> streams for what is queued
``kombu_lists``        tools, web   kombu's lists: keys and envelope
``database_transfer``  tools        between two databases, for migration
``history``            all          what queues held, once a minute
``tallies``            all          what workers counted, by the minute; when their version changed
``told_alerts``        worker       of which alerts the project was told
``foreign_streams``    tools        takes over what home-made streams hold
``embedded``           tools        a private server for demo and tests
``demo_app``           tools        the app of the demo
=====================  ===========  =================================================

Public names: :func:`install`, :func:`bulk`, :func:`shared_task`, :func:`still_owned`, :func:`pause`,
:func:`resume`, :func:`state`, :class:`Streams` through :func:`streams_of`, and the errors of
:mod:`celery_streams.exceptions`. Signals stand in
:mod:`celery_streams.signals`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import Streams, streams_of
    from .blocks import BulkError, NotPublished
    from .exceptions import (
        BrokerError,
        BrokerFull,
        BrokerUnavailable,
        CeleryStreamsError,
        ConfigurationError,
        DuplicateTask,
        LimitKeyError,
        MessageError,
        QueueFull,
    )
    from .holding import bulk
    from .installation import install, is_installed
    from .limits import RateLimited
    from .pausing import pause, resume
    from .running_task import still_owned
    from .states import TaskState, state
    from .tasks import shared_task

__version__ = "0.1.0"

__all__ = (
    "BrokerError",
    "BrokerFull",
    "BrokerUnavailable",
    "BulkError",
    "CeleryStreamsError",
    "ConfigurationError",
    "DuplicateTask",
    "LimitKeyError",
    "MessageError",
    "NotPublished",
    "QueueFull",
    "RateLimited",
    "Streams",
    "TaskState",
    "__version__",
    "bulk",
    "install",
    "is_installed",
    "pause",
    "resume",
    "shared_task",
    "state",
    "still_owned",
    "streams_of",
)

#: Where the public names live. They are imported at first use: gevent and eventlet must patch the standard library
#: before anything else of this package is imported (see ``__main__``).
_HOMES = {
    "RateLimited": "limits",
    "BulkError": "blocks",
    "NotPublished": "blocks",
    "bulk": "holding",
    "Streams": "app",
    "install": "installation",
    "is_installed": "installation",
    "pause": "pausing",
    "resume": "pausing",
    "state": "states",
    "TaskState": "states",
    "streams_of": "app",
    "still_owned": "running_task",
    "shared_task": "tasks",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'exceptions')}", __name__), name)

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
``bindings``           web, worker  to which queues a message goes
``tasks``              web, worker  ``shared_task``
``async_tasks``        worker       ``async def`` tasks in every pool
``running_task``       worker       what the code of a task may reach of its delivery
``conf``               all          the ``streams_*`` settings
``message``            all          Celery's protocol <-> a stream entry
``broker``             all          the hot path in Redis
``scripts``            all          the Lua scripts
``keys``               all          every Redis key, and the data model
``connection``         all          bytes to Redis and back; its errors
``redis_url``          all          what a Redis URL means
``master_watch``       all          hears from Sentinels that the master changes
``clock``              all          tells time where clocks disagree and are set
``poll``               all          waits for descriptors
``exceptions``         all          the tree of errors
``celery_private``     all          Celery's insides, in one place
``signals``            worker       our signals
``presence``           all          which workers live
``inspect``            tools, web   looks at queues; replay and purge
``obstacles``          tools, web   why no worker would run a message
``hints``              all          commands in logs and findings, as to be typed
``printable``          all          text from messages, harmless to a terminal
``probes``             tools        raw looks at Redis for the doctor
``removal``            tools        deletes a queue
``migration``          tools        lists <-> streams for what is queued
``kombu_lists``        tools, web   kombu's lists: keys and envelope
``database_transfer``  tools        between two databases, for migration
``embedded``           tools        a private server for demo and tests
``demo_app``           tools        the app of the demo
=====================  ===========  =================================================

Public names: :func:`install`, :func:`shared_task`, :func:`still_owned`, :class:`Streams` through :func:`streams_of`,
and the errors of :mod:`celery_streams.exceptions`. Signals stand in :mod:`celery_streams.signals`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import Streams, streams_of
    from .exceptions import (
        BrokerError,
        BrokerFull,
        BrokerUnavailable,
        CeleryStreamsError,
        ConfigurationError,
        MessageError,
        QueueFull,
    )
    from .installation import install, is_installed
    from .running_task import still_owned
    from .tasks import shared_task

__version__ = "0.1.0"

__all__ = (
    "BrokerError",
    "BrokerFull",
    "BrokerUnavailable",
    "CeleryStreamsError",
    "ConfigurationError",
    "MessageError",
    "QueueFull",
    "Streams",
    "__version__",
    "install",
    "is_installed",
    "shared_task",
    "still_owned",
    "streams_of",
)

#: Where the public names live. They are imported at first use: gevent and eventlet must patch the standard library
#: before anything else of this package is imported (see ``__main__``).
_HOMES = {
    "Streams": "app",
    "install": "installation",
    "is_installed": "installation",
    "streams_of": "app",
    "still_owned": "running_task",
    "shared_task": "tasks",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'exceptions')}", __name__), name)

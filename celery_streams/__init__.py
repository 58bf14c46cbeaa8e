"""Redis Streams for Celery: the same ``tasks.py``, nothing lost.

The way of a message, and the module that owns each step::

    task.delay()                     Celery
    chosen queue?                    celery_streams.amqp       install(), the publish seam
    bytes                            celery_streams.message    Celery protocol <-> stream entry
    XADD, now or later               celery_streams.broker     lua/*.lua, one verb a file
    later becomes now                celery_streams.worker.delayed
    read, execute, decide, settle    celery_streams.worker     child, executor, outcome
    keep alive, claim                celery_streams.worker     heartbeat, claimer
    look                             celery_streams.inspect    -> monitoring, bin, django_integration

Public names: :func:`install`, :func:`shared_task`, :func:`still_owned`, :class:`Streams` through :func:`streams_of`,
and the errors of :mod:`celery_streams.exceptions`. Signals stand in :mod:`celery_streams.signals`.
"""

from __future__ import annotations

from .amqp import Streams, install, is_installed, streams_of
from .context import still_owned
from .exceptions import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    CeleryStreamsError,
    ConfigurationError,
    MessageError,
    QueueFull,
)
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

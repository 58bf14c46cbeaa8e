"""Redis Streams for Celery: the same ``tasks.py``, nothing lost.

The way of a message, and the module that owns each step::

    task.delay()                     Celery
    chosen queue?                    celery_streams.amqp       the publish seam, put in place by .installation
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

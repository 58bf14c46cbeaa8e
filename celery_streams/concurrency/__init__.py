"""The pools: what is special to prefork, solo and threads; the way of a message is the same in all of them.

Each is a Celery pool class, found in the place of Celery's of the same name (:func:`pool_for`). Their module names
matter: Celery's Django fixup looks for "prefork" in them.

============  =======  ===================================================
module        process  owns
============  =======  ===================================================
``base``      parent   what all pools share as Celery's pools
``prefork``   parent   starts, watches and replaces children
``process``   parent   a child, as its parent knows it
``solo``      all      the main thread reads, runs and settles
``thread``    all      one thread reads for many that run
``backlog``   all      what waits for a thread, and when there shall be more
``ending``    all      what pools share that can end a task
``green``     all      what gevent and eventlet share
``gevent``    all      greenlets
``eventlet``  all      green threads
``aio``       all      ``async def`` tasks on one event loop
``loops``     all      a running event loop for each green thread
============  =======  ===================================================
"""

from __future__ import annotations

from typing import Any

from celery.concurrency import ALIASES
from kombu.utils.imports import symbol_by_name

from ..exceptions import ConfigurationError

__all__ = ("OWN_POOLS", "POOLS", "pool_for")

#: Celery's pool class -> ours.
POOLS = {
    "celery.concurrency.prefork:TaskPool": "celery_streams.concurrency.prefork:TaskPool",
    "celery.concurrency.solo:TaskPool": "celery_streams.concurrency.solo:TaskPool",
    "celery.concurrency.thread:TaskPool": "celery_streams.concurrency.thread:TaskPool",
    "celery.concurrency.gevent:TaskPool": "celery_streams.concurrency.gevent:TaskPool",
    "celery.concurrency.eventlet:TaskPool": "celery_streams.concurrency.eventlet:TaskPool",
}

#: Pools that Celery does not have: name for ``-P`` -> class.
OWN_POOLS = {"asyncio": "celery_streams.concurrency.aio:TaskPool"}


def pool_for(pool: Any) -> Any:
    """Return our pool class for one of Celery's; our own classes, and subclasses of them, are returned as they are.

    Raises:
        ConfigurationError: there is no such pool for streams, or what it needs is not installed.
    """
    name = f"{pool.__module__}:{pool.__qualname__}"
    if name in POOLS:
        try:
            return symbol_by_name(POOLS[name])
        except ModuleNotFoundError as exc:
            raise ConfigurationError(f"This pool needs the package {exc.name!r}, which is not installed") from exc
    if any(cls.__module__.startswith(__name__) for cls in pool.__mro__):
        return pool
    names = sorted({alias for alias, path in ALIASES.items() if path in POOLS} - {"processes"} | OWN_POOLS.keys())
    raise ConfigurationError(
        f"Pool {name} cannot run streams; use one of: {', '.join(names)}, or derive it from one of {__name__}"
    )

"""Pausing: ``celery_streams.pause`` and ``resume`` for an app, and ``app.control.pause_queue`` and ``resume_queue``.

``pauses`` keeps the pause in Redis; here workers are told of it at once, through Celery's remote control. Those that
cannot be told look by themselves every few seconds.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from celery.app.control import Control
from kombu.exceptions import KombuError, OperationalError
from kombu.utils.imports import symbol_by_name

from . import pauses, presence
from .app import streams_of
from .exceptions import BrokerError
from .pauses import Pause

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("LOOK", "OUR_CONTROL", "STOCK_CONTROL", "adopt_control", "create_control", "pause", "resume")

logger = logging.getLogger(__name__)

#: Celery's own class, as ``app.control_cls`` names it.
STOCK_CONTROL = "celery.app.control:Control"

#: What ``app.control_cls`` is set to: a name, so that apps survive pickling and spawned children.
OUR_CONTROL = "celery_streams.pausing:create_control"

#: The remote control command that has a worker look.
LOOK = "look_at_pauses"


def pause(app: Celery, queue: str, *, reason: str = "") -> Pause:
    """Have nobody read ``queue`` until :func:`resume`, whatever is restarted meanwhile.

    What runs goes on, and so do publishes; what becomes due waits with the rest. A worker that waits for work hears of
    it within milliseconds; one that may not use the key of ``news`` and that remote control does not reach, within a
    fifth of its visibility timeout. Until then it may start a message that is published in this very moment. ``reason``
    is shown with the pause.

    Raises:
        TypeError: ``queue`` is not a name.
        BrokerError: Redis is away, or refuses.
    """
    _check_name(queue)
    done = pauses.pause_queue(streams_of(app).broker, queue, reason=reason)
    _tell_workers(app, queue)
    return done


def resume(app: Celery, queue: str) -> bool:
    """Have ``queue`` read again; returns whether it was paused.

    Raises:
        TypeError: ``queue`` is not a name.
        BrokerError: Redis is away, or refuses.
    """
    _check_name(queue)
    was_paused = pauses.resume_queue(streams_of(app).broker, queue)
    _tell_workers(app, queue)
    return was_paused


def _check_name(queue: object) -> None:
    if not (isinstance(queue, str) and queue):
        raise TypeError(f"a queue is paused and resumed by its name, got {queue!r}")


def _tell_workers(app: Celery, queue: str) -> None:
    try:
        # Those alone that know the command: others would log an error for each.
        nodes = [one.node for one in presence.workers(streams_of(app).broker) if queue in one.queues and one.pauses]
        if nodes:
            app.control.broadcast(LOOK, destination=sorted(set(nodes)))
    except (BrokerError, OperationalError, KombuError, OSError) as exc:
        logger.debug("Cannot notify the workers that read queue %s; they notice it within seconds: %s", queue, exc)


class StreamsControlMixin:
    """Goes in front of the app's Control class, Celery's or the user's own."""

    app: Any

    def pause_queue(self, queue: str, *, reason: str = "") -> Pause:
        """Have nobody read ``queue`` until it is resumed; see :func:`celery_streams.pause`."""
        return pause(self.app, queue, reason=reason)

    def resume_queue(self, queue: str) -> bool:
        """Have ``queue`` read again; returns whether it was paused."""
        return resume(self.app, queue)


def _control_class(base: type) -> type:
    if issubclass(base, StreamsControlMixin):
        return base
    return type(f"Streams{base.__name__}", (StreamsControlMixin, base), {"__module__": __name__})


def create_control(app: Celery, **kwargs: Any) -> Control:
    """Build ``app.control`` for an installed app (what ``app.control_cls`` names, also in spawned children)."""
    base = symbol_by_name(app.conf.get("streams_control_cls") or STOCK_CONTROL)
    return cast("Control", _control_class(base)(app, **kwargs))


def adopt_control(control: Any) -> None:
    """Change the class of an ``app.control`` that others may already refer to; its mailbox stays."""
    control.__class__ = _control_class(type(control))

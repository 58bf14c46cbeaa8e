"""control: remote control. Celery's commands stay Celery's; before each, the parent's state is made to say what the
children do, and after those that change something, the children are told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import control as celery_control
from celery.worker import pidbox
from celery.worker import state as worker_state
from kombu.utils.functional import maybe_list

from ..app import streams_of
from ..delayed_messages import DelayedMessage, delayed_messages
from ..entries import Delivery, Entry
from ..exceptions import BrokerError
from ..pausing import LOOK
from ..revocations import revoke, revoke_stamps
from . import revoked_stamps
from .replies import Replies
from .requests import build_request

__all__ = ("Pidbox",)

logger = logging.getLogger(__name__)

#: Commands of Celery that ask what the children are doing.
_ASKING = {
    "active",
    "dump_active",
    "reserved",
    "dump_reserved",
    "query_task",
    "revoke",
    "terminate",
    "revoke_by_stamped_headers",
    "stats",
}


class Pidbox(pidbox.Pidbox):  # type: ignore[misc]
    """Celery's mailbox of the worker."""

    def __init__(self, c: Any) -> None:
        super().__init__(c)
        # Called for commands that are addressed to this worker only, and before the answer is sent.
        self._celery_handle = self.node.handle
        self.node.handle = self._handle
        self._replies = Replies(c.app)
        self.node.reply = self._replies.send

    def shutdown(self, c: Any) -> None:
        """Hear no more commands; the last answers are sent."""
        self._replies.close()
        super().shutdown(c)

    def _handle(self, method: str, arguments: dict[str, Any] | None = None) -> Any:
        """Carry out one command."""
        if _asks(method):
            self.c.pool.sync_state()
        forward = _FORWARDED.get(method)
        try:
            return self._celery_handle(method, arguments)
        finally:
            # Whatever comes of the answer: Celery fails to write one about ids that are no text, when it has revoked.
            if forward is not None:
                forward(self.c, arguments or {})


def _asks(method: str) -> bool:
    """Return whether a command asks what the children are doing; the project's own commands may."""
    command = celery_control.Panel.data.get(method)
    own = command is not None and command.__module__ not in (celery_control.__name__, __name__)
    return own or method in _ASKING


def _forward_revoke(consumer: Any, arguments: dict[str, Any]) -> None:
    task_ids = [str(task_id) for task_id in maybe_list(arguments.get("task_id")) or []]
    consumer.pool.forward_revoked(task_ids)
    try:
        revoke(streams_of(consumer.app).broker, task_ids, seconds=worker_state.REVOKE_EXPIRES)
    except BrokerError as exc:
        logger.warning(
            "Cannot store that %s is revoked; workers that start later may run it: %s", ", ".join(task_ids), exc
        )


def _forward_stamps(consumer: Any, arguments: dict[str, Any]) -> None:
    pairs = revoked_stamps.pairs_of(arguments["headers"])
    consumer.pool.forward_stamps(pairs)
    try:
        revoke_stamps(streams_of(consumer.app).broker, pairs, seconds=worker_state.REVOKE_EXPIRES)
    except BrokerError as exc:
        logger.warning(
            "Cannot store that tasks stamped %s are revoked; workers that start later may run them: %s", pairs, exc
        )


def _forward_task_options(consumer: Any, arguments: dict[str, Any]) -> None:
    # What Celery's command made of the arguments, not the arguments: it may have refused them.
    task = consumer.app.tasks.get(arguments.get("task_name"))
    if task is not None:
        options = {name: getattr(task, name) for name in ("rate_limit", "time_limit", "soft_time_limit")}
        consumer.pool.forward("task_option", task.name, options)
        consumer.pool.parent.limits_changed()


def _forward_events(consumer: Any, arguments: dict[str, Any]) -> None:
    consumer.tell_events()


@celery_control.control_command(name=LOOK)  # type: ignore[untyped-decorator]
def look_at_pauses(state: Any, **kwargs: Any) -> dict[str, Any]:
    """Look at once which queues are paused; returns them."""
    try:
        return {"ok": state.consumer.pool.parent.look_at_pauses()}
    except BrokerError as exc:
        return {"error": str(exc)}


_FORWARDED: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "revoke": _forward_revoke,
    "terminate": _forward_revoke,
    "revoke_by_stamped_headers": _forward_stamps,
    "time_limit": _forward_task_options,
    "rate_limit": _forward_task_options,
    "enable_events": _forward_events,
    "disable_events": _forward_events,
}

_celery_scheduled = celery_control.Panel.data["scheduled"]


@celery_control.inspect_command(alias="dump_schedule")  # type: ignore[untyped-decorator]
def scheduled(state: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """List of currently scheduled ETA/countdown tasks."""
    found: list[dict[str, Any]] = _celery_scheduled(state, **kwargs)
    pool = state.consumer.pool
    for queue in getattr(pool, "queues", ()):
        for delayed in delayed_messages(streams_of(state.app).broker, queue):
            try:
                request = _request_of(state, queue, delayed)
                if request is not None:
                    eta = request.eta.isoformat() if request.eta else None
                    found.append({"eta": eta, "priority": 6, "request": request.info()})
            except Exception as exc:  # noqa: BLE001
                # Decoding runs serializers and users' codecs, which raise anything; one must not hide the others.
                logger.warning("Delayed message %r of queue %s cannot be shown: %r", delayed.member, queue, exc)
    return found


def _request_of(state: Any, queue: str, delayed: DelayedMessage) -> Any:
    if delayed.message is None:
        return None
    ref = next(iter(streams_of(state.app).broker.streams([queue])))
    return build_request(
        state.app,
        Delivery(Entry(ref, delayed.member.encode()), delayed.message),
        hostname=state.hostname,
        eventer=None,
        on_ack=lambda *_: None,
        on_reject=lambda *_: None,
    )

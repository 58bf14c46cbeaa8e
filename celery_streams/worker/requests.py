"""requests: Celery Requests for tasks that run in another process, made from what Redis or the slot still holds.

Remote control (``inspect active``, ``revoke(terminate=True)``), time limits and lost processes need Celery's
``Request`` in the parent, where no message ever passes. It is built when it is asked for, never on the hot path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.worker.request import Request
from celery.worker.strategy import proto1_to_proto2
from kombu.message import Message as KombuMessage
from kombu.serialization import prepare_accept_content
from kombu.utils.imports import symbol_by_name

from ..entries import Delivery, Entry
from ..partitions import queue_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("build_request", "is_for", "received_message")


def received_message(
    delivery: Delivery, headers: dict[str, Any], properties: dict[str, Any], history: dict[str, Any], *, accept: Any
) -> Any:
    """Return what kombu would have received: its Message, as Celery's strategies and Requests take it."""
    assert delivery.message is not None
    message: Any = KombuMessage(
        body=delivery.message.body,
        delivery_tag=delivery.entry_id.decode(),
        content_type=properties.get("content_type"),
        content_encoding=properties.get("content_encoding"),
        delivery_info={
            "exchange": "",
            "routing_key": queue_of(delivery.stream.queue),
            "redelivered": bool(history.get("redelivered")),
        },
        properties=properties,
        headers=headers,
        accept=accept,
    )
    message.streams_entry = delivery.entry
    return message


def is_for(request: Any, entry: Entry) -> bool:
    """Return whether a Request is for ``entry``: two messages may have one task id, or one entry id."""
    return getattr(getattr(request, "_message", None), "streams_entry", None) == entry


def build_request(
    app: Celery,
    delivery: Delivery,
    *,
    hostname: str,
    eventer: Any,
    on_ack: Callable[..., None],
    on_reject: Callable[..., None],
) -> Any:
    """Return Celery's Request for ``delivery``, or None when its task is not known here.

    Raises:
        Exception: whatever decoding the message raises; it ran, so it could be decoded by its child.
    """
    message = delivery.message
    if message is None:
        return None
    headers, properties = message.decode_headers(), message.decode_properties()
    history = message.decode_history()
    kombu_message = received_message(
        delivery, headers, properties, history, accept=prepare_accept_content(app.conf.accept_content)
    )
    body, decoded, utc = None, False, True
    if "task" not in headers:
        body, headers, decoded, utc = proto1_to_proto2(kombu_message, kombu_message.payload)
    task = app.tasks.get(headers["task"])
    if task is None:
        return None
    cls = symbol_by_name(task.Request) if isinstance(task.Request, str) else (task.Request or Request)
    return cls(
        kombu_message,
        on_ack=on_ack,
        on_reject=on_reject,
        app=app,
        hostname=hostname,
        eventer=eventer,
        task=task,
        connection_errors=(),
        body=body,
        headers=headers,
        decoded=decoded,
        utc=utc,
    )

"""bridge: carries what tests expect of a worker in their own process from the real one, through the same Redis.

* In the worker: a task_received signal is pushed with its message, and the worker waits up to a second until the test
  process has run its handlers; ids of tasks that succeeded go into a set; records of the ``celery`` logger are pushed.
* In the test process: a thread sends the signal again with a real Request, and handles the log records;
  ``celery.worker.state.successful_requests`` looks into the set.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import threading
import time
from typing import Any

import redis

__all__ = ("SuccessfulRequests", "install_test_side", "install_worker_side")

_INBOX = "celery-suite:inbox"
_SUCCESSFUL = "celery-suite:successful"

#: A database that no test uses.
_DATABASE = 15

#: Seconds that a received message is kept back: test_replaced_task_nesting_level_0 and its like publish first, and set
#: what their handler shall change after that.
_PAUSE = 0.02

_count = itertools.count()
_connections: dict[int, redis.Redis] = {}


def _connect() -> redis.Redis:
    return redis.Redis(
        host=os.environ["REDIS_HOST"], port=int(os.environ["REDIS_PORT"]), db=_DATABASE, socket_timeout=None
    )


def _connection() -> redis.Redis:
    pid = os.getpid()  # a forked child must not use its parent's socket
    if pid not in _connections:
        _connections.clear()
        _connections[pid] = _connect()
    return _connections[pid]


# -- in the worker


def install_worker_side() -> None:
    """Tell the test process what happens in this worker."""
    from celery import signals
    from celery.worker import state as worker_state
    from celery.worker.control import control_command

    @control_command(name="suite_clear_revoked_stamps", visible=False)
    def clear_revoked_stamps(state: Any, **kwargs: Any) -> dict[str, Any]:
        worker_state.revoked_stamps.clear()
        pool = state.consumer.pool
        if not hasattr(pool, "forward_stamps"):
            return {"ok": "cleared", "ending": []}
        # Our children hold what they were told, as a stock worker's main process does; new ones know nothing.
        ending = pool.info["processes"]
        pool.restart()
        return {"ok": "cleared", "ending": ending}

    signals.task_received.connect(_forward_received, weak=False)
    signals.task_postrun.connect(_note_success, weak=False)
    logging.getLogger("celery").addHandler(_Forwarder())


def _forward_received(sender: Any = None, request: Any = None, **_: Any) -> None:
    message = request.message
    body = message.body.encode() if isinstance(message.body, str) else message.body
    reply = f"celery-suite:heard:{os.getpid()}:{next(_count)}"
    simple = (str, int, bool, type(None))
    payload = {
        "kind": "received",
        "reply": reply,
        "headers": dict(message.headers or {}),
        "properties": dict(message.properties or {}),
        "delivery_info": {key: one for key, one in (message.delivery_info or {}).items() if isinstance(one, simple)},
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "body": base64.b64encode(body).decode(),
    }
    connection = _connection()
    connection.rpush(_INBOX, json.dumps(payload, default=repr))
    connection.blpop([reply], timeout=1)


def _note_success(sender: Any = None, task_id: str = "", state: str = "", **_: Any) -> None:
    if state == "SUCCESS":
        connection = _connection()
        connection.sadd(_SUCCESSFUL, task_id)
        connection.expire(_SUCCESSFUL, 600)


class _Forwarder(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("kombu", "amqp")):
            return
        payload = {
            "kind": "log",
            "name": record.name,
            "levelno": record.levelno,
            "msg": record.msg if isinstance(record.msg, str) else repr(record.msg),
            "args": record.args if isinstance(record.args, dict) else None,
            "text": record.getMessage(),
            "data": getattr(record, "data", None),
        }
        try:
            _connection().rpush(_INBOX, json.dumps(payload, default=repr))
        except redis.RedisError:
            self.handleError(record)


# -- in the test process


class SuccessfulRequests:
    """In the place of ``celery.worker.state.successful_requests``."""

    def __contains__(self, task_id: str) -> bool:
        return bool(_connection().sismember(_SUCCESSFUL, task_id))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None  # add(), clear() and the like mean the worker's own set


def install_test_side() -> None:
    """Send here again what the worker sends."""
    _connection().delete(_INBOX, _SUCCESSFUL)
    threading.Thread(target=_pump, daemon=True, name="celery-suite-bridge").start()


def _pump() -> None:
    connection = _connect()
    while True:
        try:
            item = connection.blpop([_INBOX], timeout=2)
        except redis.RedisError:
            return
        if item is None:
            continue
        payload = json.loads(item[1])
        try:
            (_resend if payload["kind"] == "received" else _handle_record)(payload)
        except Exception:
            logging.getLogger("celery_suite").exception("A handler of the test failed")
        finally:
            if payload.get("reply"):
                connection.rpush(payload["reply"], "1")
                connection.expire(payload["reply"], 10)


def _resend(payload: dict[str, Any]) -> None:
    from celery import current_app, signals

    if not signals.task_received.receivers:
        return
    from celery.worker.request import Request
    from kombu.message import Message

    time.sleep(_PAUSE)  # see above
    app = current_app._get_current_object()
    message = Message(
        body=base64.b64decode(payload["body"]),
        headers=payload["headers"],
        properties=payload["properties"],
        delivery_info=payload["delivery_info"],
        content_type=payload["content_type"],
        content_encoding=payload["content_encoding"],
        accept={"application/json", "application/x-python-serialize", "json"},
        channel=None,
    )
    request = Request(message, app=app, hostname="worker@celery-suite")
    signals.task_received.send(sender="celery-suite", request=request)


def _handle_record(payload: dict[str, Any]) -> None:
    text, args = (payload["text"], ()) if payload["args"] is None else (payload["msg"], (payload["args"],))
    record = logging.LogRecord(payload["name"], payload["levelno"], __file__, 0, text, args, None)
    if payload["data"] is not None:
        record.data = payload["data"]
    logging.getLogger(payload["name"]).handle(record)

"""Points at which a worker's process kills itself once: import into a worker with ``-I tests.faults.points``.

``FAULTS_POINT`` names the point, ``FAULTS_POINT_FILE`` a file that does not exist yet; whoever creates it is the one
that dies. Nothing in the package knows of this: the methods around which a process can die are wrapped here.

===================  ==============================================================================================
point                the process dies
===================  ==============================================================================================
``read``             F3: after a reply with entries came, before anything was noted of them (child)
``begin``            F3: after a batch was noted, before its first task starts (child)
``body``             F4: after the body of a task, before its acknowledgement was collected (child)
``ack``              F4: with acknowledgements collected and not sent (child)
``acked``            F4: after acknowledgements were sent (child)
``retry``            F5: after a retry was decided, before it is stored (child)
``retried``          F5: after a retry was stored, before the process knows (child)
``apart``            F5: before a retry is stored on another node of a Redis Cluster (child)
``stored_apart``     F5: after it was stored there, before its entry is acknowledged (child)
``acked_apart``      F5: after that, before the process knows (child)
``replayed_apart``   F34: after a replay was stored on another node, before its dead letter is deleted (command)
``promote``          F6: before due messages are promoted (parent)
``promoted``         F6: after due messages were promoted, before the process knows (parent)
``recovered``        F7: after entries of a dead worker were put back (parent)
``counted``          F28: after a result was stored, before it is counted for its chord (child)
``claimed``          F28: after the dispatch of a chord's body was claimed, before the body is published (child)
``exhausted``        F7: after a message over the limit was claimed, before it is dead-lettered (parent)
``admit``            before a message of a limited task asks whether it may start (child)
``admitted``         after it got its places, before its task starts (child)
``kept_place``       after it was acknowledged early, with its places kept, before its task starts (child)
``given_back``       after such a task has ended, before its places are given back (child)
``released``         after held messages were released, before the process knows (parent)
===================  ==============================================================================================
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from celery.app.amqp import AMQP
from celery.backends.redis import RedisBackend

from celery_streams import transfers
from celery_streams.broker import StreamBroker
from celery_streams.worker import claimer, held_messages, settle
from celery_streams.worker.collected import Collected
from celery_streams.worker.reader import Reader
from celery_streams.worker.settle import Settler
from celery_streams.worker.slots import Slot

POINT = "FAULTS_POINT"
FILE = "FAULTS_POINT_FILE"


def die_once() -> None:
    """Kill this process, unless another did so before."""
    try:
        os.close(os.open(os.environ[FILE], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: Any, name: str, *, when: Callable[..., bool] = lambda *_: True) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            die_once()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, *, when: Callable[[Any], bool] = lambda result: True) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if when(result):
            die_once()
        return result

    setattr(owner, name, wrapped)


POINTS: dict[str, Callable[[], None]] = {
    "read": lambda: _after(Reader, "next", when=bool),
    "begin": lambda: _before(Slot, "begin"),
    "body": lambda: _before(Collected, "add"),
    "ack": lambda: _after(Collected, "add"),
    "acked": lambda: _before(Settler, "_confirm"),
    "retry": lambda: _before(StreamBroker, "retry"),
    "retried": lambda: _after(StreamBroker, "retry"),
    "apart": lambda: _before(settle, "store_retry"),
    "stored_apart": lambda: _after(settle, "store_retry"),
    "acked_apart": lambda: _after(Settler, "_retry"),
    "replayed_apart": lambda: _after(transfers, "_store"),
    "promote": lambda: _before(StreamBroker, "promote"),
    "promoted": lambda: _after(StreamBroker, "promote", when=lambda result: result.moved > 0),
    "recovered": lambda: _after(claimer, "recover", when=lambda result: result.moved > 0),
    "counted": lambda: _before(RedisBackend, "on_chord_part_return"),
    "claimed": lambda: _before(AMQP, "_retry_publish"),
    "exhausted": lambda: _after(claimer, "recover", when=lambda result: bool(result.exhausted)),
    "admit": lambda: _before(Settler, "admit"),
    "admitted": lambda: _after(Settler, "admit", when=lambda result: result.placed),
    "kept_place": lambda: _after(Settler, "ack_now"),
    "given_back": lambda: _before(settle, "give_back"),
    "released": lambda: _after(held_messages, "release", when=lambda result: result.count > 0),
}

if os.environ.get(POINT):
    POINTS[os.environ[POINT]]()

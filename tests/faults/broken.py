"""Builds that must FAIL: import this module into a worker (``-I tests.faults.broken``) and name one in FAULTS_BROKEN.

``ack-first``      a message is acknowledged before its task runs: a kill loses it
``no-ownership``   settling no longer asks who holds the entry: a worker that stood still settles what another runs
``no-limits``      a message of a limited task starts without asking for a place: more run at once than may
``lost-places``    nobody compares places with what is pending: that of a process that was killed stays taken

They exist to prove that the harness can fail; nothing else imports them.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from celery_streams import scripts
from celery_streams.lanes import Admission
from celery_streams.worker import held_messages
from celery_streams.worker.executor import Executor
from celery_streams.worker.settle import Settler

#: The environment variable that names the build.
BROKEN = "FAULTS_BROKEN"

#: What settling scripts do first, themselves or in ``taken``: leave when the entry is not pending for the consumer.
_OWNERSHIP = re.compile(r"^ *if not owned\(.*\) then return (?:0|false|nil) end$", re.MULTILINE)


def forget_ownership() -> None:
    """Store retries and put entries back whoever holds them."""
    for name in ("RETRY", "REQUEUE"):
        script = getattr(scripts, name)
        text, count = _OWNERSHIP.subn("", script.text)
        assert count == 1, f"{script.name}.lua has no ownership check to remove"
        setattr(scripts, name, scripts.Script(script.name, text, hashlib.sha1(text.encode()).hexdigest()))


def acknowledge_first() -> None:
    """Acknowledge each message before its task runs; all else goes on as it should, so that only kills do harm."""
    forget_ownership()
    execute, settle = Executor.execute, Settler.settle

    def broken_execute(self: Any, delivery: Any) -> None:
        settler = self.around.settler
        settler.broker.ack(settler.consumer, [delivery.entry])
        execute(self, delivery)

    def broken_settle(self: Any, delivery: Any, outcome: Any, **options: Any) -> bool:
        return settle(self, delivery, outcome, **{**options, "acked_early": True})

    Executor.execute = broken_execute  # type: ignore[method-assign]
    Settler.settle = broken_settle  # type: ignore[method-assign]


def let_all_start() -> None:
    """Admit every message, and give it no place."""
    Settler.admit = lambda self, *args, **options: Admission(True)  # type: ignore[method-assign]


def lose_places() -> None:
    """Leave the places of what is gone taken."""
    held_messages.reconcile = lambda *args, **options: 0  # type: ignore[attr-defined]


BUILDS = {
    "ack-first": acknowledge_first,
    "no-ownership": forget_ownership,
    "no-limits": let_all_start,
    "lost-places": lose_places,
}

if os.environ.get(BROKEN):
    BUILDS[os.environ[BROKEN]]()

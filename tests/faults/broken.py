"""Builds that must FAIL: import this module into a worker (``-I tests.faults.broken``) and name one in FAULTS_BROKEN.

``ack-first``      a message is acknowledged before its task runs: a kill loses it
``no-ownership``   settling no longer asks who holds the entry: a worker that stood still settles what another runs
``no-limits``      a message of a limited task starts without asking for a place: more run at once than may
``lost-places``    nobody compares places with what runs: those of a killed worker that acknowledges early stay taken
``no-locks``       publishing a unique task finds no lock: a second message of a key is stored
``stale-locks``    no lock is freed, and all are believed: after the first message of a key none is stored

They exist to prove that the harness can fail; nothing else imports them.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from celery_streams import locks, scripts
from celery_streams.lanes import Admission
from celery_streams.worker import held_messages, settle
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


def _change(script: scripts.Script, line: str, instead: str) -> scripts.Script:
    assert script.text.count(line) == 1, f"{script.name}.lua has no {line!r}"
    text = script.text.replace(line, instead)
    return scripts.Script(script.name, text, hashlib.sha1(text.encode()).hexdigest())


def find_no_locks() -> None:
    """Publish whatever is there."""
    locks.PUBLISH_UNIQUE = _change(locks.PUBLISH_UNIQUE, "for _ = 1, 10 do", "for _ = 1, 0 do")


def keep_locks() -> None:
    """Free no lock when its message ends, and believe them all."""
    end = "\n        end\n        base, id = known.base"
    for name in ("PUBLISH_UNIQUE", "UNLOCK"):
        script = _change(
            getattr(locks, name), f"return nil{end}", f"return known, base, fields or {{'headers', ''}}{end}"
        )
        setattr(locks, name, script)
    settle.unlocking = lambda broker, entry, message: broker  # type: ignore[attr-defined]


BUILDS = {
    "ack-first": acknowledge_first,
    "no-ownership": forget_ownership,
    "no-limits": let_all_start,
    "lost-places": lose_places,
    "no-locks": find_no_locks,
    "stale-locks": keep_locks,
}

if os.environ.get(BROKEN):
    BUILDS[os.environ[BROKEN]]()

"""master_watch: hears from the Sentinels that the master is about to change, or has changed; it sends no command there.

A Sentinel tells an old master of a planned failover some ten seconds after it promoted the replica: until then the old
one takes writes that nobody will ever see. Sentinels announce each step to whoever listens, before it is done:

1. From ``+try-failover`` on commands wait, until the master has changed or the failover was given up.
2. What was announced before anybody listened is asked for, and the first command waits a moment for the answer.
3. From ``+switch-master`` on connections of before are not used any more, and the Sentinel that knows is asked first.

One thread listens to each Sentinel; it ends with the client that it listens for. Without Sentinels that answer nothing
is known, and everything goes on as if nothing had been announced.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import Any

import redis

__all__ = ("MasterWatch",)

logger = logging.getLogger(__name__)

#: Seconds: longest time for which a failover that was announced holds up commands.
_LONGEST = 10.0

#: Seconds: longest time for which the first command waits until all Sentinels are listened to.
_AT_FIRST = 1.0

#: Seconds between two looks whether anybody still wants to know, and before a Sentinel that is away is asked again.
_LOOK = 1.0

_CHANNELS = ("+try-failover", "+switch-master", "+failover-end", "-failover-abort-*", "+failover-end-for-timeout")


class MasterWatch:
    """Listens to all Sentinels of ``manager`` (redis-py's Sentinel) for the master ``name``."""

    def __init__(self, manager: Any, name: str) -> None:
        #: Grows whenever the master has changed.
        self.generation = 0
        self._manager = manager
        self._name = name
        self._settled = threading.Event()
        self._settled.set()
        self._until = 0.0
        #: Set once each Sentinel has answered, or cannot.
        self._asked = threading.Event()
        self._unasked = set(map(id, manager.sentinels))
        own = weakref.ref(self)
        for sentinel in list(manager.sentinels):
            threading.Thread(target=_listen, args=(own, sentinel), name="celery-streams-sentinel", daemon=True).start()

    def wait(self, *, timeout: float) -> bool:
        """Wait while a failover is under way; returns whether there is none."""
        if not self._asked.is_set():
            self._asked.wait(min(_AT_FIRST, timeout))
            self._asked.set()
        if self._settled.is_set():
            return True
        left = self._until - time.monotonic()
        if not self._settled.wait(min(max(left, 0.0), timeout)) and left > timeout:
            return False
        self._settled.set()
        return True

    def listen(self, sentinel: Any, pubsub: Any) -> None:
        """Subscribe at one Sentinel, and take note of a failover that it announced before.

        Raises:
            redis.RedisError: it does not answer.
        """
        try:
            pubsub.psubscribe(*_CHANNELS)
            state = sentinel.sentinel_masters().get(self._name) or {}
            if "failover_in_progress" in str(state.get("flags", "")):
                self._begin()
        finally:
            # Only the one that leads the failover knows of it: the others' answers are not enough.
            self._unasked.discard(id(sentinel))
            if not self._unasked:
                self._asked.set()

    def _begin(self) -> None:
        self._until = time.monotonic() + _LONGEST
        self._settled.clear()

    def hear(self, sentinel: Any, event: str, text: str) -> None:
        """Take note of one announcement."""
        words = text.split()
        if event == "+switch-master":
            if words[:1] == [self._name]:
                self._ask_first(sentinel)
                self.generation += 1
                self._settled.set()
                logger.warning("Sentinel: master %s is now %s.", self._name, ":".join(words[3:5]))
        elif words[:2] == ["master", self._name]:
            if event == "+try-failover":
                self._begin()
            elif event.startswith("-failover-abort"):
                self._settled.set()

    def _ask_first(self, sentinel: Any) -> None:
        # The others learn it seconds later.
        others = [one for one in self._manager.sentinels if one is not sentinel]
        self._manager.sentinels[:] = [sentinel, *others]


def _listen(own: weakref.ref[MasterWatch], sentinel: Any) -> None:
    while own() is not None:
        pubsub = sentinel.pubsub(ignore_subscribe_messages=True)
        try:
            if (watch := own()) is not None:
                watch.listen(sentinel, pubsub)
            while (watch := own()) is not None:
                del watch
                message = pubsub.get_message(timeout=_LOOK)
                watch = own()
                if message is not None and watch is not None:
                    watch.hear(sentinel, _text(message["channel"]), _text(message["data"]))
                del watch
        except (redis.RedisError, OSError) as exc:
            logger.debug("Cannot listen to a Sentinel: %s", exc)
            time.sleep(_LOOK)  # a thread of its own, with nothing else to wait for
        except Exception:
            # The boundary of the thread: without it a failover would not be heard of.
            logger.exception("Cannot understand an announcement of a Sentinel; subscribing to it again.")
            time.sleep(_LOOK)
        finally:
            pubsub.close()


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

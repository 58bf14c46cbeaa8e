"""LateNotes: states of tracked tasks that a node of a Redis Cluster did not take, until it is back.

The state of a task lies apart from its queue there, and is noted in a step behind a verb (``notes``). The verb has done
its part by then, and nobody waits: what a node that is away does not take is kept here, for a while, and written by a
thread that lives as long as anything is kept. What comes for the same task, or the same node, goes behind: in order,
and without a time-out for each. A note that is late says for how long, and gives way to what was noted since
(``lua/note``). What this process keeps ends with it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .cluster_map import Address, slot_of
from .cluster_nodes import ClusterNodes, NodeClient
from .exceptions import BrokerError, BrokerUnavailable
from .scripts import Command

__all__ = ("KEPT", "MOST", "LateNotes")

logger = logging.getLogger(__name__)

#: Seconds for which a note is kept.
KEPT = 300.0

#: Notes that a process keeps for one client; the states of some milliseconds of a busy publisher are some hundred.
MOST = 10_000

#: Seconds between two looks whether a node is back: the first, and at most.
_SOON, _PAUSE = 0.1, 1.0

#: Tasks whose notes are written in one step.
_STEP = 100


@dataclass(frozen=True, slots=True, eq=False)
class _Late:
    """One note, and when it was to be noted (monotonic seconds)."""

    command: Command
    since: float

    def told(self) -> Command:
        """Return the command that notes it now."""
        script, names, (on, kept_ms, must, *rest) = self.command
        return script, names, [on, kept_ms, f"~{int((time.monotonic() - self.since) * 1000)} {must}", *rest]


class LateNotes:
    """What could not be noted; safe for threads and forks.

    Args:
        write: sends commands, each to the node of its key; what failed is a reply.
        most: notes that are kept at most; the oldest go first.
        seconds: for which each is kept.
    """

    def __init__(
        self,
        nodes: ClusterNodes,
        write: Callable[[Sequence[Command]], Sequence[Any]],
        *,
        most: int = MOST,
        seconds: float = KEPT,
    ) -> None:
        self._nodes = nodes
        self._write = write
        self._most = most
        self._seconds = seconds
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        #: By the key of the state, in their order.
        self._kept: dict[str, list[_Late]] = {}
        self._count = self._dropped = 0
        #: Nodes that did not take a note, and have not answered since.
        self._away: set[Address] = set()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return self._count

    def takes(self, key: str) -> bool:
        """Return whether a note goes behind others: of the same task, or at a node that is away."""
        if not self._kept:
            return False
        if self._pid != os.getpid():
            self._begin()  # what the parent keeps, it writes
            return False
        if key in self._kept:
            return True
        try:
            return self._nodes.of(slot_of(key)).address in self._away
        except BrokerUnavailable:
            return True

    def keep(self, commands: Sequence[Command], *, since: float, away: bool = False) -> None:
        """Keep notes of that time (monotonic seconds); with ``away`` because their nodes did not take them."""
        if self._pid != os.getpid():
            self._begin()
        nodes = {node.address for _, names, _ in commands for node in self._node_of(names[0])} if away else ()
        with self._lock:
            self._away.update(nodes)
            for command in commands:
                self._kept.setdefault(command[1][0], []).append(_Late(command, since))
                self._count += 1
            while self._count > self._most:
                self._drop(next(iter(self._kept)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="celery-streams-late-notes", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause = _SOON
        while True:
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE)
            try:
                self.run_once()
            except Exception:
                # The boundary of the thread: what is kept would never be written.
                logger.exception("Writing late states of tracked tasks failed; trying again.")
            with self._lock:
                if not self._kept:
                    self._thread = None
                    return

    def run_once(self) -> None:
        """Write what is kept for nodes that are back, and forget what is too old."""
        oldest = time.monotonic() - self._seconds
        with self._lock:
            for key in [key for key, kept in self._kept.items() if kept[-1].since < oldest]:
                self._drop(key)
            dropped, self._dropped = self._dropped, 0
            keys = list(self._kept)
            if not keys:
                self._away.clear()
        if dropped:
            logger.warning(
                "%d states of tracked tasks were not noted: their node of the cluster was away for too long. Such a "
                "task shows an earlier state until it moves on.",
                dropped,
            )
        # Not while the lock is held: who asks for a node may wait for another one.
        by_node: dict[NodeClient, list[str]] = {}
        for key in keys:
            for node in self._node_of(key):
                by_node.setdefault(node, []).append(key)
        for node, its_keys in by_node.items():
            if self._is_back(node):
                self._write_all(its_keys)

    def _is_back(self, node: NodeClient) -> bool:
        """Return whether a node answers: one that hangs carries out all that it got when it goes on, in any order."""
        try:
            node.call("PING")
        except BrokerUnavailable:
            self._nodes.doubt(node)
            return False
        except BrokerError as exc:
            logger.debug("A node answers, and refuses PING: %s", exc)
        self._away.discard(node.address)
        return True

    def _write_all(self, keys: Sequence[str]) -> None:
        left = iter(keys)
        while some := list(islice(left, _STEP)):
            with self._lock:
                notes = [(key, one) for key in some for one in self._kept.get(key, ())]
            replies = self._write([one.told() for _, one in notes])
            failed = 0
            with self._lock:
                for (key, one), reply in zip(notes, replies, strict=True):
                    if isinstance(reply, BrokerUnavailable):
                        failed += 1
                        continue
                    if isinstance(reply, BrokerError):
                        logger.debug("Cannot note the state of a tracked task: %s", reply)
                    self._forget(key, one)
            if failed:
                return

    def _forget(self, key: str, one: _Late) -> None:
        kept = self._kept.get(key, [])
        if one in kept:
            kept.remove(one)
            self._count -= 1
        if not kept:
            self._kept.pop(key, None)

    def _drop(self, key: str) -> None:
        dropped = len(self._kept.pop(key))
        self._count -= dropped
        self._dropped += dropped

    def _node_of(self, key: str) -> Sequence[NodeClient]:
        """Return the node of a key; none while nobody serves it."""
        try:
            return (self._nodes.of(slot_of(key)),)
        except BrokerUnavailable:
            return ()

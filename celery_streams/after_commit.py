"""After the commit: sends what a database transaction held; what could not be sent is kept for a while and tried again.

The transaction is committed, so that nobody can be told by an exception: a failure is logged with the ids, sent as the
signal ``publish_failed``, and mended by a thread of this process where that is possible. Which transactions there are
is the matter of ``django_integration``.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import blocks, signals
from .app import Streams
from .blocks import Block, BulkError, Held

__all__ = ("KEEP_FOR", "MOST_KEPT", "send_after_commit", "still_kept")

logger = logging.getLogger(__name__)

#: Seconds for which messages that could not be sent are tried again; less than Redis remembers a block.
KEEP_FOR = 300.0

#: Messages that are kept in all; beyond them those that fail are given up at once.
MOST_KEPT = 10_000

#: Seconds between two attempts: the first pause, and the longest.
_PAUSES = (0.5, 15.0)


def send_after_commit(streams: Streams, held: Sequence[Held | Callable[[], Any]]) -> None:
    """Send messages in pipelines, and make calls that publish some, in this order.

    An open ``bulk`` block takes them along. What cannot be sent is logged, signalled and kept, and not raised.

    Raises:
        Exception: what a call raised that is none of the broker's refusals to store a stream message.
    """
    outer = blocks.find(streams)
    if outer is not None:
        _pass_on(held, outer)
        with suppress(BulkError):
            outer.call_ended()  # it says so again when it ends
        return
    block = streams.new_block()
    block.using = False
    token = blocks.opened.set(((streams, block), *blocks.opened.get()))
    try:
        try:
            _pass_on(held, block)
        finally:
            _flush(streams, block)
    finally:
        block.closed = True
        blocks.opened.reset(token)


def _pass_on(held: Sequence[Held | Callable[[], Any]], block: Block) -> None:
    for one in held:
        if isinstance(one, Held):
            block.hold(one)
        else:
            with suppress(BulkError):  # a pipeline was full: told when the block ends
                one()


def _flush(streams: Streams, block: Block) -> None:
    with suppress(BulkError):
        block.flush()
    if not block.is_complete:
        _keeper().keep(streams, block)


# -- what could not be sent -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Kept:
    streams: Streams
    block: Block
    count: int
    until: float


class _Keeper:
    """What could not be sent, and the thread that tries again while there is any."""

    def __init__(self) -> None:
        self._kept: deque[_Kept] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    @property
    def count(self) -> int:
        """Messages that are kept."""
        return sum(one.count for one in list(self._kept))

    def keep(self, streams: Streams, block: Block) -> None:
        """Keep what ``block`` could not send, and say so."""
        error = block.account()
        count = len(error.failed) + len(error.uncertain)
        if self.count + count > MOST_KEPT or self._ending.is_set():
            _tell(streams, error, final=True)
            return
        _tell(streams, error, final=False)
        with self._lock:
            self._kept.append(_Kept(streams, block, count, time.monotonic() + KEEP_FOR))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="celery-streams-resend", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause, longest = _PAUSES
        while not self._ending.wait(pause):
            pause = min(pause * 2, longest)
            if self._try_all():
                with self._lock:
                    if not self._kept:
                        self._thread = None
                        return
                pause = _PAUSES[0]

    def _try_all(self) -> bool:
        """Try each once; returns whether all that was kept is settled."""
        for _ in range(len(self._kept)):
            one = self._kept[0]
            error = self._try(one)
            if error is None:
                logger.info("%d messages of a committed transaction are stored now.", one.count)
            elif time.monotonic() < one.until:
                one.count = len(error.failed) + len(error.uncertain)
                return False  # the others would fail like this one
            else:
                _tell(one.streams, error, final=True)
            with self._lock:
                self._kept.popleft()
        return not self._kept

    @staticmethod
    def _try(one: _Kept) -> BulkError | None:
        try:
            one.block.repeat()
        except BulkError as error:
            return error
        except Exception:
            # A receiver of ours, or of the user's: the thread goes on, and what is left is tried again.
            logger.exception("Messages of a committed transaction could not be sent.")
        return None if one.block.is_complete else one.block.account()

    def end(self) -> None:
        """Try for the last time, at the end of the process, and say what is lost."""
        self._ending.set()
        thread = self._thread
        if thread is not None:
            thread.join(5)
        while self._kept:
            one = self._kept.popleft()
            error = self._try(one)
            if error is not None:
                _tell(one.streams, error, final=True)


_current: list[_Keeper] = []


def _keeper() -> _Keeper:
    if not _current:
        _current.append(_Keeper())
        atexit.register(_end, os.getpid())
    return _current[0]


def _end(pid: int) -> None:
    if _current and pid == os.getpid():
        _current[0].end()


# A child has no such thread; and what its parent keeps, its parent sends.
os.register_at_fork(after_in_child=_current.clear)


def still_kept() -> int:
    """Return how many messages of this process wait to be sent again."""
    return _current[0].count if _current else 0


def _tell(streams: Streams, error: BulkError, *, final: bool) -> None:
    ids = [*error.failed, *error.uncertain]
    logger.error(
        "Tasks of a committed transaction %s: %s. %s",
        "are given up; publish them again" if final else f"were not published; trying again for {KEEP_FOR:.0f} s",
        ", ".join(ids),
        error,
        extra={"task_ids": ids},
    )
    signals.publish_failed.send(
        sender=streams.app, failed=dict(error.failed), uncertain=error.uncertain, error=error, final=final
    )

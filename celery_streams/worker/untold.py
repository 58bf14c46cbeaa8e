"""Untold: reports failures that a child could not report itself, in a thread that nobody waits for.

What keeps a child from it may be its own: a task left it without descriptors, with warnings that are errors, with
sockets that raise. Celery's pools report such a failure in the worker's main process, so that the state is FAILURE and
errbacks run. A result backend may be away for everybody, too, which holds up nobody here. The message is settled.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.utils.serialization import get_pickleable_exception

from ..entries import Delivery, Entry, StreamRef
from ..message import pack, unpack
from .later import Later
from .requests import build_request
from .task_errors import as_received, shown, unwrapped

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("UntoldFailures", "packed_failure")

logger = logging.getLogger(__name__)

#: Failures that wait to be reported, and the bytes of their messages; the oldest give way.
_MOST, _MOST_BYTES = 1000, 64 * 1024 * 1024

#: What a child says of a failure: stream, entry id, the packed message, the pickled exception, its traceback.
Untold = tuple[StreamRef, bytes, bytes, bytes, str]


def packed_failure(delivery: Delivery, einfo: ExceptionInfo) -> Untold | None:
    """Return ``delivery`` and the exception of its failure as they go through a pipe; None for no message."""
    if delivery.message is None:
        return None
    exc = unwrapped(einfo.exception)
    try:
        said = pickle.dumps(get_pickleable_exception(exc))
        pickle.loads(said)
    except BaseException:  # noqa: BLE001
        # It runs the exception's own code, which may raise what is no Exception.
        said = pickle.dumps(RuntimeError(shown(exc)))
    return delivery.stream, delivery.entry_id, pack(delivery.message), said, str(einfo.traceback)


class UntoldFailures:
    """The failures that the children of one worker could not report."""

    def __init__(self, app: Celery, hostname: str, *, eventer: Callable[[], Any]) -> None:
        self._app = app
        self._hostname = hostname
        self._eventer = eventer
        self._later = Later[Untold]("celery-streams-untold", self._report)

    def report(self, failure: Untold) -> None:
        """Report one soon."""
        self._later.put(failure)
        self._make_room()

    def _make_room(self) -> None:
        sizes = [len(packed) for _, _, packed, *_ in tuple(self._later.waiting)]
        while len(sizes) > 1 and (len(sizes) > _MOST or sum(sizes) > _MOST_BYTES):
            del sizes[0]
            with contextlib.suppress(IndexError):  # the thread took it meanwhile
                _, entry_id, *_ = self._later.waiting.popleft()
                logger.error("The failure of the task of entry %s is reported by nobody.", entry_id.decode())

    def close(self) -> None:
        """Report what is left, if that can be done within a second."""
        self._later.close()

    def _report(self, failure: Untold) -> None:
        stream, entry_id, packed, said, traceback = failure
        try:
            request = build_request(
                self._app,
                Delivery(Entry(stream, entry_id), unpack(packed)),
                hostname=self._hostname,
                eventer=self._eventer(),
                on_ack=_ignore,
                on_reject=_ignore,
            )
            if request is not None:
                request.on_failure(_einfo(pickle.loads(said), traceback))
        except BaseException:
            # Errbacks, signals and result backends raise anything.
            logger.exception("The failure of the task of entry %s is reported by nobody.", entry_id.decode())


def _einfo(exc: BaseException, traceback: str) -> ExceptionInfo:
    try:
        raise exc
    except BaseException:  # noqa: BLE001
        einfo = as_received(ExceptionInfo())
    einfo.traceback = traceback
    return einfo


def _ignore(*args: Any, **kwargs: Any) -> None:
    """The message is settled."""

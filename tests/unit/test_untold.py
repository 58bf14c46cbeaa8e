"""What a child says of a failure that it could not report: it reaches the parent, whatever was raised."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery

from celery_streams.entries import Delivery, Entry, StreamRef
from celery_streams.message import Message, unpack
from celery_streams.worker.task_errors import einfo_of
from celery_streams.worker.untold import UntoldFailures, packed_failure
from tests.proj.actions import BASE_ERRORS, ODD, PLACES, hostile

MESSAGE = Message(b"{}", b"{}", b"[]")
ENTRY = Entry(StreamRef("q", 0, "celery-streams:{q}"), b"1-0")


def _raised(exc: BaseException) -> ExceptionInfo:
    try:
        raise exc
    except BaseException as raised:
        return einfo_of(raised)


def _said(exc: BaseException) -> BaseException:
    failure = packed_failure(Delivery(ENTRY, MESSAGE), _raised(exc))
    assert failure is not None
    stream, entry_id, packed, said, traceback = pickle.loads(pickle.dumps(failure))
    assert (stream, entry_id, unpack(packed)) == (ENTRY.stream, ENTRY.id, MESSAGE)
    assert isinstance(traceback, str)
    found = pickle.loads(said)
    assert issubclass(type(found), BaseException)
    return found


def test_exception_arrives_as_it_was_raised() -> None:
    found = _said(ValueError("no", 7))

    assert (type(found), found.args) == (ValueError, ("no", 7))


@pytest.mark.parametrize("kind", sorted(ODD))
def test_odd_exception_arrives_as_something_that_can_be_raised(kind: str) -> None:
    assert issubclass(type(_said(ODD[kind]("odd"))), BaseException)


@pytest.mark.parametrize("kind", sorted(BASE_ERRORS.keys() - {"exit"}))
@pytest.mark.parametrize("place", PLACES)
def test_exception_that_raises_when_it_is_looked_at_arrives_as_something_that_can_be_raised(
    place: str, kind: str
) -> None:
    assert issubclass(type(_said(hostile(place, kind))), BaseException)


def test_entry_without_a_message_is_nobodys_failure() -> None:
    assert packed_failure(Delivery(ENTRY, None), _raised(ValueError())) is None


def test_failures_that_nobody_takes_are_bounded_and_the_newest_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reported: list[bytes] = []
    go_on = threading.Event()

    class Slow(UntoldFailures):
        def _report(self, failure: Any) -> None:
            go_on.wait(30)
            reported.append(failure[1])

    untold = Slow(Celery("untold", set_as_current=False), "w@h", eventer=lambda: None)
    megabytes = b"x" * 4_000_000

    for number in range(100):
        untold.report((ENTRY.stream, b"%d-0" % number, megabytes, b"", ""))
    go_on.set()
    untold.close()

    assert reported[-1] == b"99-0"
    assert 10 < len(reported) < 20
    assert len(reported) + caplog.text.count("is reported by nobody") == 100

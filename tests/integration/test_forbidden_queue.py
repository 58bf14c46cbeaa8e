"""A queue that is forbidden while its task runs: what the task came to waits for it, and nothing else does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.conf import StreamsConf
from celery_streams.connection import RedisClient
from celery_streams.exceptions import NotPermitted
from celery_streams.limits import Limits, lane_of
from celery_streams.running_task import HeldRetry
from celery_streams.worker.outcome import Action, Outcome, Reason
from celery_streams.worker.set_aside import MOST, SetAside
from celery_streams.worker.settle import Settler
from tests.support.eventually import eventually
from tests.support.publisher import worker_and_publisher
from tests.support.redis_state import StreamState, delivered, message, number_of, redis_state

PREFIX = "celery-streams:"
OPEN = [
    f"~{PREFIX}{{open}}*",
    *(f"~{PREFIX}{name}" for name in ("queues", "workers", "revoked*", "limits", "history*")),
]

#: How the task goes on once its queue is forbidden: options, how often it runs in all, whether it is a dead letter.
ENDS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "ok": ({"then": "ok"}, 1, False),
    "retry": ({"then": "retry", "countdown": 0}, 2, False),
    "countdown": ({"then": "retry", "countdown": 0.2}, 2, False),
    "requeue": ({"then": "reject_requeue"}, 2, False),
    "dead letter": ({"then": "error"}, 1, True),
}


@pytest.fixture
def user(client: RedisClient, redis_url: str) -> Iterator[str]:
    client.call("ACL", "SETUSER", "chat", "reset", "on", ">pw", *OPEN, f"~{PREFIX}{{closed}}*", "+@all")
    yield redis_url.replace("://", "://chat:pw@")
    client.call("ACL", "DELUSER", "chat")


def forbid(client: RedisClient) -> None:
    client.call("ACL", "SETUSER", "chat", "resetkeys", *OPEN)


def permit(client: RedisClient) -> None:
    client.call("ACL", "SETUSER", "chat", f"~{PREFIX}{{closed}}*")


def left(client: RedisClient) -> dict[str, Any]:
    """Return what of the forbidden queue is still to be settled."""
    state = redis_state(client)
    found = {
        key: value.entries
        for key, value in state.items()
        if isinstance(value, StreamState)
        and "{closed}" in key
        and not key.endswith((":wake", ":dead", ":history", ":history:versions"))
    }
    return {key: entries for key, entries in found.items() if entries}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_outcome_of_a_forbidden_queue_waits_for_it_and_holds_up_no_other(
    client: RedisClient, user: str, redis_url: str, tmp_path: Path, pool: str
) -> None:
    words = ("-Q", "closed,open", "-c", "1", "-P", pool, "-l", "INFO")
    with worker_and_publisher(redis_url, tmp_path, *words, worker_url=user, queue="open") as pair:
        for how, (options, runs, dies) in ENDS.items():
            gate, letters = tmp_path / how, client.call("XLEN", f"{PREFIX}{{closed}}:dead")
            result = pair.act.apply_async(("after_gate", how), {"gate": str(gate), **options}, queue="closed")
            eventually(lambda result=result: len(pair.ledger.runs(result.id)) == 1, timeout=30)
            forbid(client)
            gate.touch()

            assert pair.act.apply_async(("ok", 1), queue="open").get(timeout=20) == 1, how
            assert pair.act.apply_async(("ok", 2), queue="open").get(timeout=20) == 2, how
            assert left(client), f"{how}: it is still to be settled"
            permit(client)

            eventually(lambda: not left(client), timeout=20, message=f"{how}: settled when it is permitted")
            if not dies:
                assert result.get(timeout=20) == how
            eventually(lambda: not left(client), timeout=20)
            assert client.call("XLEN", f"{PREFIX}{{closed}}:dead") == letters + dies
            assert len(pair.ledger.runs(result.id)) == runs, how
        log = pair.worker.log
        said = [line for line in log.splitlines() if "set aside, and tried" in line or "Cannot ackn" in line]
        assert len(said) <= len(ENDS), "one line for each, and not one for each try"
        assert "runs nothing else until" not in log


@pytest.fixture
def settling(user: str) -> Iterator[tuple[Settler, SetAside]]:
    """A settler whose pauses end the test: it must not insist."""
    made = RedisClient(user)
    aside = SetAside()

    def sleep(seconds: float) -> None:
        raise AssertionError("it insists")

    yield Settler(StreamBroker(made), "me", conf=StreamsConf(), hostname="me@here", sleep=sleep, aside=aside), aside
    made.close()


OUTCOMES: dict[str, tuple[Outcome, HeldRetry | None]] = {
    "retry": (Outcome(Action.RETRY), HeldRetry("closed", message(2), 0, "m")),
    "retry later": (Outcome(Action.RETRY), HeldRetry("closed", message(2), 2**45, "m")),
    "requeue": (Outcome(Action.REQUEUE), None),
    "requeue later": (Outcome(Action.REQUEUE, delay=60.0), None),
    "dead letter": (Outcome(Action.DEAD, reason=Reason.FAILED), None),
}


@pytest.mark.parametrize("how", OUTCOMES)
def test_outcome_is_set_aside_under_its_heartbeat_and_stored_once_when_permitted(
    broker: StreamBroker,
    client: RedisClient,
    settling: tuple[Settler, SetAside],
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    settler, aside = settling
    outcome, retry = OUTCOMES[how]
    found = delivered(broker, "closed", "me", message(1), message(3))
    before = redis_state(client)
    forbid(client)

    for one in found:
        settler.settle(one, outcome, held=retry)
    aside.try_again(at_once=True)

    assert set(aside.entries) == {one.entry for one in found}
    assert redis_state(client) == before
    assert len([record for record in caplog.records if "set aside, and tried" in record.getMessage()]) == 1
    permit(client)
    aside.try_again(at_once=True)
    assert aside.entries == ()
    assert settler.lost == 0
    assert broker.held_by("me", broker.streams(["closed"])) == []
    aside.try_again(at_once=True)
    state = redis_state(client)
    copies = sum(
        len(value.entries) for key, value in state.items() if "{closed}" in key and isinstance(value, StreamState)
    )
    copies -= len(state[f"{PREFIX}{{closed}}:wake"].entries) if f"{PREFIX}{{closed}}:wake" in state else 0
    assert copies + len(state.get(f"{PREFIX}{{closed}}:delayed", ())) == 2


def test_what_was_not_started_goes_back_where_it_is_permitted(
    broker: StreamBroker, client: RedisClient, settling: tuple[Settler, SetAside]
) -> None:
    settler, aside = settling
    (closed,) = delivered(broker, "closed", "me", message(1))
    (other,) = delivered(broker, "open", "me", message(2))
    forbid(client)

    with pytest.raises(NotPermitted):
        settler.put_all_back(broker.streams(["closed", "open"]))
    assert broker.held_by("me", broker.streams(["open"])) == []
    (again,) = broker.read(broker.streams(["open"]), "me", count=1)
    assert settler.put_back([closed.entry, again.entry]) == 1
    with pytest.raises(NotPermitted):
        settler.put_back([closed.entry, other.entry], insist=False)

    assert broker.held_by("me", broker.streams(["open"])) == []
    assert aside.entries == (closed.entry,)
    permit(client)
    aside.try_again(at_once=True)
    assert broker.held_by("me", broker.streams(["closed"])) == []


@pytest.mark.parametrize("limits", [Limits(concurrency=1), Limits(rate=0.01)], ids=["concurrency", "rate"])
def test_what_cannot_be_admitted_waits_without_being_read_again_until_it_can(
    broker: StreamBroker, settling: tuple[Settler, SetAside], caplog: pytest.LogCaptureFixture, limits: Limits
) -> None:
    settler, aside = settling
    lane = lane_of("t", limits, (None, None), node="")
    broker.ensure_groups(["open"])
    for number in (1, 2, 3):
        broker.publish("open", message(number))
    broker.client.call("SET", broker.queue_keys("open").shelf[1], "of somebody else")

    with caplog.at_level(logging.INFO, "celery_streams"):
        read = broker.read(broker.streams(["open"]), "me", count=9)
        for one in read:
            assert settler.admit(one, lane, "t", limits, ahead=False) is None
        for _ in range(4):
            aside.try_again(at_once=True)
            assert {one.entry for one in read} == set(aside.entries)
            assert not broker.read(broker.streams(["open"]), "me", count=9)

        broker.client.call("DEL", broker.queue_keys("open").shelf[1])
        aside.try_again(at_once=True)

    assert not aside.entries
    (first,) = broker.read(broker.streams(["open"]), "me", count=9)
    assert number_of(first) == 1
    admission = settler.admit(first, lane, "t", limits, ahead=True, published=read[0].entry_id.decode())
    assert admission is not None
    assert admission.admitted == (limits.concurrency is not None), "a token is taken for each start, and once in vain"
    assert broker.client.call("HLEN", broker.queue_keys("open").shelf[0]) == 3 - admission.admitted
    assert [one.levelname for one in caplog.records if "set aside" in one.getMessage()] == ["ERROR"]


def test_no_more_is_set_aside_than_a_process_may_hold(
    broker: StreamBroker, client: RedisClient, settling: tuple[Settler, SetAside]
) -> None:
    settler, aside = settling
    found = delivered(broker, "closed", "me", message(1), message(2))
    forbid(client)
    settler.settle(found[0], Outcome(Action.REQUEUE))
    for _ in range(MOST - 1):
        aside.add("requeue", [found[0].entry], NotPermitted("no"), lambda: None)

    with pytest.raises(AssertionError, match="it insists"):
        settler.settle(found[1], Outcome(Action.REQUEUE))

    with contextlib.suppress(NotPermitted):
        settler.broker.ack("me", [found[1].entry])

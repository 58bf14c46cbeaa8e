"""Users whom Redis forbids something: the message names it, and nothing is taken for something else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_streams import keys
from celery_streams.broker import StreamBroker
from celery_streams.conf import StreamsConf
from celery_streams.connection import RedisClient
from celery_streams.consumers import touch_consumers
from celery_streams.exceptions import BrokerError, KeyOfOtherType, LoginRefused, NotPermitted
from celery_streams.recovery import busy_queues
from celery_streams.running_task import HeldRetry
from celery_streams.worker.outcome import Action, Outcome
from celery_streams.worker.settle import Settler
from tests.support.eventually import eventually
from tests.support.redis_state import delivered, message, redis_state

Restricted = Callable[..., StreamBroker]


@pytest.fixture
def restricted(client: RedisClient, redis_url: str) -> Iterator[Restricted]:
    """Return the broker of a user with these ACL rules."""
    made: list[RedisClient] = []

    def make(*rules: str) -> StreamBroker:
        client.call("ACL", "SETUSER", "chat", "reset", "on", ">pw", *rules)
        made.append(RedisClient(redis_url.replace("://", "://chat:pw@")))
        return StreamBroker(made[-1])

    yield make
    for one in made:
        one.close()
    with contextlib.suppress(BrokerError):
        client.call("ACL", "DELUSER", "chat")


#: The denied command, and a call that needs it inside a script.
DENIED: dict[str, tuple[str, Callable[[StreamBroker, Any], Any]]] = {
    "delay": ("ZADD", lambda broker, one: broker.delay("q", message(2), due_ms=2**45, member="m")),
    "delay's hash": ("HSET", lambda broker, one: broker.delay("q", message(2), due_ms=2**45, member="m")),
    "bounded publish": ("XLEN", lambda broker, one: broker.publish("q", message(2), max_length=5)),
    "ack": ("XPENDING", lambda broker, one: broker.ack("me", [one.entry])),
    "ack, the second step": ("XDEL", lambda broker, one: broker.ack("me", [one.entry])),
    "extend": ("XPENDING", lambda broker, one: broker.extend([("me", one.entry)])),
    "extend, the second step": ("XCLAIM", lambda broker, one: broker.extend([("me", one.entry)])),
    "read": ("XREADGROUP", lambda broker, one: broker.read(broker.streams(["q"]), "me", count=1)),
    "busy": ("XPENDING", lambda broker, one: busy_queues(broker, ["q"])),
    "retry": ("XADD", lambda broker, one: broker.retry("me", one.entry, message(2), queue="q")),
    "retry later": (
        "ZADD",
        lambda broker, one: broker.retry("me", one.entry, message(2), queue="q", due_ms=2**45, member="m"),
    ),
    "requeue later": ("HSET", lambda broker, one: broker.requeue("me", one.entry, history={}, delay_ms=60_000)),
    "put_back": ("XADD", lambda broker, one: broker.put_back("me", [one.entry])),
    "touch": ("XGROUP", lambda broker, one: touch_consumers(broker, ["q"], ["other"])),
    "reject": (
        "XADD",
        lambda broker, one: broker.reject("me", one.entry, death=b"{}", max_length=None, ttl=None),
    ),
}


@pytest.mark.parametrize("verb", DENIED)
def test_command_that_is_denied_inside_a_script_is_named(
    broker: StreamBroker, restricted: Restricted, verb: str
) -> None:
    command, act = DENIED[verb]
    (held,) = delivered(broker, "q", "me", message(1))
    user = restricted("~*", "+@all", f"-{command.lower()}")

    with pytest.raises(NotPermitted, match=rf"does not permit ([A-Z ]+ or )?{command}\b") as caught:
        act(user, held)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["XPENDING", "XACK", "XDEL"])
def test_entry_is_not_taken_for_lost_when_redis_forbids_to_look(
    broker: StreamBroker, restricted: Restricted, command: str
) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    user = restricted("~*", "+@all", f"-{command.lower()}")

    with pytest.raises(NotPermitted):
        user.ack("me", [held.entry])

    broker.client.call("ACL", "SETUSER", "chat", "+@all")
    assert user.ack("me", [held.entry]) == []
    state = redis_state(broker.client)["celery-streams:{q}"]
    assert (state.pending[keys.GROUP], state.entries) == ({}, {})


def test_heartbeat_goes_on_for_streams_that_are_permitted(broker: StreamBroker) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    (odd,) = delivered(broker, "odd", "me", message(2))
    broker.client.call("DEL", "celery-streams:{odd}")
    broker.client.call("SET", "celery-streams:{odd}", "of another type")

    assert broker.extend([("me", odd.entry), ("me", held.entry)]) == [0]


def test_promotion_that_is_denied_names_the_command(broker: StreamBroker, restricted: Restricted) -> None:
    broker.delay("q", message(1), due_ms=1, member="m")

    for command in ("ZRANGEBYSCORE", "HGET", "XADD"):
        refusal = restricted("~*", "+@all", f"-{command.lower()}").promote(["q"]).refusal

        assert command in refusal


def test_errors_that_last_have_classes_of_their_own(broker: StreamBroker, restricted: Restricted) -> None:
    broker.client.call("SET", "celery-streams:{q}", "of another type")
    with pytest.raises(KeyOfOtherType):
        broker.publish("q", message(1))

    user = restricted("~*", "+@all")
    broker.client.call("ACL", "SETUSER", "chat", "resetpass", ">another")
    with pytest.raises(LoginRefused):
        user.publish("q", message(1))


@pytest.mark.parametrize("rules", [("+@all",), ("-@all", "+ping")])
def test_first_contact_needs_no_permission(restricted: Restricted, rules: tuple[str, ...]) -> None:
    restricted("~*", *rules).client.greet()


# -- a lasting refusal when a task that ran is to be settled


def a_later_retry() -> tuple[Outcome, HeldRetry]:
    return Outcome(Action.RETRY), HeldRetry("q", message(2), 2**45, "m")


@pytest.mark.parametrize("what", ["ZADD", "HSET", "XPENDING", "a key of another type", "another password"])
def test_settler_insists_while_redis_refuses_and_a_person_mends_it(
    broker: StreamBroker, restricted: Restricted, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    user = restricted("~*", "+@all")
    refusals: list[float] = []
    broken: tuple[Any, ...] = ("ACL", "SETUSER", "chat", f"-{what.lower()}")
    mended: tuple[Any, ...] = ("ACL", "SETUSER", "chat", "+@all")
    if what == "a key of another type":
        broken, mended = ("SET", "celery-streams:{q}:delayed", "x"), ("DEL", "celery-streams:{q}:delayed")
    elif what == "another password":
        broken, mended = ("ACL", "SETUSER", "chat", "resetpass", ">new"), ("ACL", "SETUSER", "chat", ">pw")

    def sleep(seconds: float) -> None:
        refusals.append(seconds)
        if len(refusals) == 5:
            broker.client.call(*mended)

    settler = Settler(user, "me", conf=StreamsConf(), hostname="me@here", sleep=sleep)
    outcome, retry = a_later_retry()
    broker.client.call(*broken)

    kept = settler.settle(held, outcome, held=retry)

    assert kept
    assert len(refusals) == 5
    state = redis_state(broker.client)
    assert state["celery-streams:{q}"].pending[keys.GROUP] == {}
    assert broker.client.call("ZCARD", "celery-streams:{q}:delayed") == 1
    said = [record for record in caplog.records if "Cannot retry" in record.getMessage()]
    assert len(said) == 1, "one line for one refusal"
    if what.isupper():
        assert what in said[0].getMessage()


def test_settler_that_is_told_to_end_leaves_the_entry_to_others_when_redis_refuses(
    broker: StreamBroker, restricted: Restricted
) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    user = restricted("~*", "+@all", "-zadd")
    settler = Settler(
        user, "me", conf=StreamsConf(), hostname="me@here", give_up=lambda: True, sleep=lambda seconds: None
    )
    outcome, retry = a_later_retry()

    settler.settle(held, outcome, held=retry)

    assert settler.gave_up
    assert redis_state(broker.client)["celery-streams:{q}"].pending[keys.GROUP] == {held.entry_id.decode(): ("me", 1)}


def test_heartbeat_and_acknowledgements_of_other_queues_go_on_when_one_is_forbidden(
    broker: StreamBroker, restricted: Restricted, caplog: pytest.LogCaptureFixture
) -> None:
    (mine,) = delivered(broker, "open", "me", message(1))
    (theirs,) = delivered(broker, "closed", "me", message(2))
    (gone,) = delivered(broker, "open", "other", message(3))
    user = restricted("~celery-streams:{open}*", "+@all")

    assert user.extend([("me", theirs.entry), ("me", mine.entry), ("me", gone.entry)]) == [2]

    settler = Settler(user, "me", conf=StreamsConf(), hostname="me@here")
    confirmed: list[int] = []
    settler.on_confirmed = lambda: confirmed.append(1)
    for one in (theirs, mine):
        settler.settle(one, Outcome(Action.ACK))
    for _ in range(2):
        commands = settler.commands()
        if commands:
            settler.take_replies(user.client.pipeline(commands), assisted=False)

    assert settler.waiting == 0
    assert confirmed == [], "one of them is not known to have reached Redis"
    assert redis_state(broker.client)["celery-streams:{open}"].pending[keys.GROUP].keys() == {gone.entry_id.decode()}
    assert len([record for record in caplog.records if "Cannot acknowledge" in record.getMessage()]) == 1
    broker.client.call("ACL", "SETUSER", "chat", "allkeys")
    eventually(lambda: settler.commands())
    settler.take_replies(user.client.pipeline(settler.commands()), assisted=False)
    assert confirmed == [1]
    assert redis_state(broker.client)["celery-streams:{closed}"].pending[keys.GROUP] == {}


def test_settler_does_not_wait_for_the_acknowledgement_of_a_queue_that_is_forbidden(
    broker: StreamBroker, restricted: Restricted
) -> None:
    (theirs,) = delivered(broker, "closed", "me", message(1))
    user = restricted("~celery-streams:{open}*", "+@all")
    pauses: list[float] = []
    settler = Settler(
        user, "me", conf=StreamsConf(), hostname="me@here", sleep=pauses.append, give_up=lambda: len(pauses) > 3
    )
    settler.settle(theirs, Outcome(Action.ACK))

    settler.flush()

    assert (pauses, settler.gave_up, settler.waiting) == ([], False, 0)
    broker.client.call("ACL", "SETUSER", "chat", "allkeys")
    eventually(lambda: settler.commands())
    settler.flush()
    assert redis_state(broker.client)["celery-streams:{closed}"].pending[keys.GROUP] == {}


def test_what_does_not_pass_for_long_is_said_once_and_not_at_each_try(
    broker: StreamBroker, caplog: pytest.LogCaptureFixture
) -> None:
    (held,) = delivered(broker, "q", "me", message(1))
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            broker.client.call("REPLICAOF", "NO", "ONE")

    settler = Settler(broker, "me", conf=StreamsConf(), hostname="me@here", sleep=sleep)
    broker.client.call("REPLICAOF", "127.0.0.1", "1")

    assert settler.settle(held, Outcome(Action.REQUEUE))

    assert len(pauses) == 20
    assert len([record for record in caplog.records if "Cannot requeue" in record.getMessage()]) == 1
    assert broker.client.call("XLEN", "celery-streams:{q}") == 1

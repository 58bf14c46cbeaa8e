"""Dead letters that no worker would run: replaying them must not destroy them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams.bin.dead import dead
from celery_streams.broker import StreamBroker
from celery_streams.dead_letters import DeadLetter, dead_letter, dead_letters, replay
from celery_streams.exceptions import CannotRun
from celery_streams.message import Message, encode, encode_json
from celery_streams.revocations import revoke, revoke_stamps
from tests.support.redis_state import delivered, redis_now_ms, redis_state

MakeApp = Callable[..., Celery]

PLAIN = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 0, "correlation_id": "task-1"}


def run(app: Celery, *words: str) -> Result:
    return CliRunner().invoke(dead, list(words), obj=CLIContext(app=app, no_color=True, workdir=None))


def v2(task_id: str = "task-1", *, root_id: str | None = None, **headers: Any) -> Message:
    """Return a message of protocol 2."""
    root = {"root_id": root_id or task_id}
    return encode({"id": task_id, "task": "chat.send", "retries": 0, **root, **headers}, PLAIN, b"[[],{},{}]")


def v1(task_id: str = "task-1", **fields: Any) -> Message:
    """Return a message of protocol 1, which says everything in its body."""
    body = {"id": task_id, "task": "chat.send", "args": [], "kwargs": {}, **fields}
    return encode({}, PLAIN, encode_json(body))


def bury(broker: StreamBroker, message: Message, *, queue: str = "q") -> DeadLetter:
    """Let a message die as the worker does."""
    [held] = delivered(broker, queue, "w", message)
    death = json.dumps({"reason": "failed", "task_id": "task-1", "entry_id": held.entry_id.decode()}).encode()
    entry_id = broker.reject("w", held.entry, death=death, max_length=None, ttl=None)
    assert entry_id is not None
    letter = dead_letter(broker, queue, entry_id.decode())
    assert letter is not None
    return letter


def ago(**since: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(**since)).isoformat()


def on_stream(broker: StreamBroker, queue: str = "q") -> list[Message]:
    key = broker.queue_keys(queue).streams[0]
    return [Message.from_fields(fields) for _, fields in broker.client.call("XRANGE", key, "-", "+")]


EXPIRED = [
    pytest.param(lambda: v2(expires=ago(seconds=1)), id="a second ago"),
    pytest.param(lambda: v2(expires=ago(days=400)), id="long ago"),
    pytest.param(lambda: v2(expires=ago(hours=1).replace("+00:00", "Z")), id="written with Z"),
    pytest.param(lambda: v2(expires=ago(hours=1).replace("+00:00", "")), id="without a time zone, which is UTC"),
    pytest.param(lambda: v2(expires="2020-01-01T12:00:00+09:00"), id="of another time zone"),
    pytest.param(lambda: v2(expires=datetime(2020, 1, 1, tzinfo=timezone.utc)), id="a date in kombu's JSON"),
    pytest.param(lambda: v1(expires=ago(hours=1)), id="protocol 1"),
]


@pytest.mark.parametrize("make", EXPIRED)
def test_replaying_an_expired_dead_letter_leaves_it_where_it_is(
    broker: StreamBroker, make: Callable[[], Message]
) -> None:
    letter = bury(broker, make())
    before = redis_state(broker.client)

    with pytest.raises(
        CannotRun, match=rf"Dead letter {letter.entry_id} of queue 'q' was not replayed: it expired at 20"
    ):
        replay(broker, letter)

    assert redis_state(broker.client) == before


@pytest.mark.parametrize("make", EXPIRED)
def test_replaying_an_expired_dead_letter_with_ignore_expires_takes_the_expiry_away(
    broker: StreamBroker, make: Callable[[], Message]
) -> None:
    letter = bury(broker, make())

    assert replay(broker, letter, ignore_expires=True)

    [message] = on_stream(broker)
    told = message.decode_headers() or json.loads(message.body)
    assert (told["id"], told["task"], told["expires"]) == ("task-1", "chat.send", None)
    assert message.decode_properties() == PLAIN
    assert list(dead_letters(broker, "q")) == []


@pytest.mark.parametrize(
    "message", [v2(), v2(expires=None), v2(expires="soon"), v2(expires=datetime.now(timezone.utc) + timedelta(days=1))]
)
def test_dead_letter_that_would_run_is_replayed_byte_for_byte(broker: StreamBroker, message: Message) -> None:
    letter = bury(broker, message)

    replay(broker, letter)

    assert on_stream(broker) == [message]


@pytest.mark.parametrize("make", [v1, v2])
def test_replaying_a_dead_letter_whose_id_was_revoked_leaves_it_where_it_is(
    broker: StreamBroker, make: Callable[[], Message]
) -> None:
    letter = bury(broker, make())
    revoke(broker, ["task-1", "other"], seconds=60)
    before = redis_state(broker.client)

    with pytest.raises(CannotRun, match="its task id task-1 was revoked"):
        replay(broker, letter)
    with pytest.raises(CannotRun, match="its task id task-1 was revoked"):
        replay(broker, letter, ignore_expires=True)

    assert redis_state(broker.client) == before


def test_replaying_what_a_revoked_stamp_names_leaves_it_where_it_is(broker: StreamBroker) -> None:
    letter = bury(broker, v2(stamped_headers=["tenant"], stamps={"tenant": ["7", "8"]}))
    revoke_stamps(broker, [("tenant", "8")], seconds=60)

    with pytest.raises(CannotRun, match=r"tenant.*8"):
        replay(broker, letter)


def test_revocation_that_workers_have_forgotten_keeps_nobody_back(broker: StreamBroker) -> None:
    letter = bury(broker, v2())
    broker.client.call("ZADD", "celery-streams:revoked", time.time() - 5, "task-1")

    assert replay(broker, letter)


@pytest.mark.parametrize("make", [v1, v2])
def test_replaying_a_revoked_dead_letter_with_ignore_revoked_gives_it_a_new_id(
    broker: StreamBroker, make: Callable[[], Message]
) -> None:
    letter = bury(broker, make())
    revoke(broker, ["task-1"], seconds=60)

    assert replay(broker, letter, ignore_revoked=True)

    [message] = on_stream(broker)
    told = message.decode_headers() or json.loads(message.body)
    assert told["id"] not in ("task-1", None)
    assert told.get("root_id", told["id"]) == told["id"]
    assert message.decode_properties()["correlation_id"] == told["id"]


def test_what_is_expired_and_revoked_needs_both_words(broker: StreamBroker) -> None:
    letter = bury(broker, v2(expires=ago(hours=1), root_id="root"))
    revoke(broker, ["task-1"], seconds=60)

    halves: tuple[dict[str, Any], ...] = ({"ignore_expires": True}, {"ignore_revoked": True})
    for one in halves:
        with pytest.raises(CannotRun):
            replay(broker, letter, **one)

    assert replay(broker, letter, ignore_expires=True, ignore_revoked=True)
    [message] = on_stream(broker)
    assert message.decode_headers()["expires"] is None
    assert message.decode_headers()["root_id"] == "root"


@pytest.mark.parametrize("words", [("--all",), ("-Q", "q"), ("--task", "chat.*"), ("--reason", "failed")])
def test_replay_command_says_what_stays_and_why(app: MakeApp, broker: StreamBroker, words: tuple[str, ...]) -> None:
    expired = bury(broker, v2("task-1", expires=ago(hours=1)))
    revoked = bury(broker, v2("task-2"))
    bury(broker, v2("task-3"))
    revoke(broker, ["task-2"], seconds=60)

    dry = run(app(), "replay", *words, "--dry-run")
    dry_json = json.loads(run(app(), "replay", *words, "--dry-run", "--json").stdout)
    done = run(app(), "replay", *words)

    assert dry.exit_code == 0
    assert dry.stdout.splitlines()[0] == "Would replay 1 of 3 dead letters."
    assert f"{expired.entry_id} would stay: it expired at" in dry.stdout
    assert f"{revoked.entry_id} would stay: its task id task-2 was revoked" in dry.stdout
    assert [one["entry_id"] for one in dry_json["stay"]] == [expired.entry_id, revoked.entry_id]
    assert dry_json["groups"] == [{"queue": "q", "reason": "failed", "count": 1}]
    assert done.exit_code == 1
    assert done.stdout == "Replayed 1 of 3 dead letters.\n"
    assert f"Dead letter {expired.entry_id} of queue 'q' was not replayed: it expired at" in done.stderr
    assert "its task id task-2 was revoked" in done.stderr
    assert [letter.entry_id for letter in dead_letters(broker, "q")] == [expired.entry_id, revoked.entry_id]


def test_replay_command_replays_what_it_is_told_to_ignore(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, v2("task-1", expires=ago(hours=1)))
    bury(broker, v2("task-2"))
    revoke(broker, ["task-2"], seconds=60)

    dry = run(app(), "replay", "--all", "--ignore-expires", "--dry-run")
    first = run(app(), "replay", "--all", "--ignore-expires", "--json")
    second = run(app(), "replay", "--all", "--ignore-revoked")

    assert dry.stdout.splitlines()[0] == "Would replay 1 of 2 dead letters."
    assert first.exit_code == 1
    found = json.loads(first.stdout)
    assert ([one["task_id"] for one in found["replayed"]], len(found["stay"])) == (["task-1"], 1)
    assert second.exit_code == 0
    assert second.stdout == "Replayed 1 of 1 dead letter.\n"
    assert len(on_stream(broker)) == 2


def test_age_of_a_dead_letter_is_told_by_redis_clock_whatever_this_host_believes(
    app: MakeApp, broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(broker, v2())
    old = redis_now_ms(broker.client) - 3_600_000
    broker.client.call("XADD", broker.queue_keys("p").dead, f"{old}-0", *v2().as_fields(), "death", "{}")
    broker.client.call("SADD", "celery-streams:queues", "p")
    real = time.time

    for ahead in (7_200.0, -7_200.0):
        monkeypatch.setattr(time, "time", lambda ahead=ahead: real() + ahead)
        listed = json.loads(run(app(), "list", "--older-than", "30m", "--json").stdout)
        newer = json.loads(run(app(), "list", "--newer-than", "30m", "--json").stdout)
        assert [one["queue"] for one in listed["dead_letters"]] == ["p"]
        assert [one["queue"] for one in newer["dead_letters"]] == ["q"]

    monkeypatch.setattr(time, "time", lambda: real() + 7_200.0)
    purged = run(app(), "purge", "--older-than", "30m", "--yes")

    assert purged.stdout == "Deleted 1 of 1 dead letter.\n"
    assert len(list(dead_letters(broker, "q"))) == 1


def test_age_beyond_the_epoch_is_no_error(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, v2())

    assert run(app(), "list", "--newer-than", "9999w").exit_code == 0
    assert run(app(), "purge", "--older-than", "9999w", "--yes").stdout.startswith("Deleted 0 of 0")

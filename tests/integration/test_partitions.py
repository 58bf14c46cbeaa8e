"""Queues with partitions: where each way of publishing puts a message, what is refused, and what operators see."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from celery import Celery, signals
from celery.bin.base import CLIContext
from celery.exceptions import ImproperlyConfigured
from click import Command
from click.testing import CliRunner, Result

import celery_streams
from celery_streams import (
    ConfigurationError,
    LimitKeyError,
    QueueFull,
    delayed_messages,
    history,
    inspect,
    pauses,
    streams_of,
)
from celery_streams.bin.dead import dead
from celery_streams.bin.forget import forget
from celery_streams.bin.limits import limits
from celery_streams.bin.status import status
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import dead_letters
from celery_streams.dead_search import Cursor, Wanted, search
from celery_streams.lanes import HeldLane, held_lanes
from celery_streams.migration import Migration
from celery_streams.monitoring.doctor import diagnose
from celery_streams.monitoring.prometheus import StreamsCollector
from celery_streams.monitoring.status import collect
from celery_streams.partitions import choose, partition, partitions
from celery_streams.worker.partitions import PartitionWatch
from celery_streams.worker.program import StreamsWork
from tests.integration.test_dead_letters_cli import bury
from tests.support.redis_state import delivered, make_idle, message

MakeApp = Callable[..., Celery]

COUNT = 8
SPREAD = {"streams_partitions": {"q": COUNT}}


def with_task(app: Celery, **options: Any) -> Any:
    @app.task(name="t", shared=False, **options)
    def t(chat: Any = None, text: str = "", **kwargs: Any) -> None:
        pass

    app.finalize()
    return app.tasks["t"]


def places(broker: StreamBroker, queue: str = "q") -> dict[str, int]:
    """Return in which partition each message lies, waiting or delayed, by its task id."""
    found: dict[str, int] = {}
    for number, name in enumerate(partitions(queue, 256)):
        names = broker.queue_keys(name)
        for stream in names.streams:
            for _, fields in broker.client.call("XRANGE", stream, "-", "+"):
                found[json.loads(fields[1])["id"]] = number
        for member in broker.client.call("ZRANGE", names.delayed, 0, -1):
            found[member.decode().partition(":")[0]] = number
    return found


def run(command: Command, app: Celery, *words: str) -> Result:
    return CliRunner().invoke(command, list(words), obj=CLIContext(app=app, no_color=True, workdir=None))


# -- where messages go


def test_every_way_of_publishing_puts_a_message_where_its_id_belongs(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(**SPREAD))

    def plainly() -> list[str]:
        return [t.apply_async((n,), queue="q").id for n in range(30)]  # the first goes Celery's way, then by a plan

    def in_bulk() -> list[str]:
        with celery_streams.bulk(t.app):
            return plainly()

    def celerys_way() -> list[str]:
        def receive(**kwargs: Any) -> None:
            pass

        signals.before_task_publish.connect(receive)
        try:
            return plainly()
        finally:
            signals.before_task_publish.disconnect(receive)

    def later() -> list[str]:
        return [t.apply_async((n,), queue="q", countdown=60).id for n in range(30)]

    def by_name() -> list[str]:
        return [t.app.send_task("of.another.project", (n,), queue="q").id for n in range(30)]

    def with_priority() -> list[str]:
        return [t.apply_async((n,), queue="q", priority=9).id for n in range(30)]

    ids = [one for way in (plainly, in_bulk, celerys_way, later, by_name, with_priority) for one in way()]

    found = places(broker)
    assert found == {one: choose(one, COUNT) for one in ids}
    assert set(found.values()) == set(range(COUNT))
    assert inspect.known_queues(broker) == ["q"]
    assert broker.partitions("q") == partitions("q", COUNT)


@pytest.mark.parametrize(
    "options",
    [
        {"streams_partition_key": "chat"},
        {"streams_partition_key": lambda task, args, kwargs: str(kwargs.get("chat", args[0] if args else None))},
        {"streams_concurrency_key": "chat", "streams_concurrency_per_key": 1},
        {"rate_limit": "10/s", "streams_rate_limit_key": "chat"},
        {"streams_partition_key": "chat", "streams_concurrency_key": "chat", "streams_concurrency_per_key": 2},
        {"streams_unique": True, "streams_unique_key": "chat"},
        {"streams_concurrency_key": "chat", "streams_concurrency_per_key": 1, "streams_unique": True},
    ],
    ids=lambda options: ",".join(options),
)
def test_messages_of_a_key_lie_in_one_partition_however_they_are_published(
    app: MakeApp, broker: StreamBroker, options: dict[str, Any]
) -> None:
    t = with_task(app(**SPREAD), **options)
    ids: dict[int, list[str]] = {chat: [] for chat in range(20)}

    for chat, mine in ids.items():
        mine.append(t.apply_async((chat, "a"), queue="q").id)
        mine.append(t.apply_async((), {"chat": chat, "text": "b"}, queue="q").id)
        mine.append(t.apply_async((chat, "c"), queue="q", countdown=60).id)
        with celery_streams.bulk(t.app):
            mine.append(t.apply_async((chat, "d"), queue="q").id)

    found = places(broker)
    for chat, mine in ids.items():
        unique = "streams_unique_key" in options
        expected = {choose(str(chat), COUNT)}
        assert {found[one] for one in mine if one in found} == expected
        assert len({one for one in mine if one in found}) == (1 if unique else 4)


def test_duplicate_of_a_unique_task_is_found_by_all_its_arguments(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(**SPREAD), streams_unique=True)

    first = [t.apply_async((n,), queue="q").id for n in range(20)]
    again = [t.apply_async((), {"chat": n}, queue="q").id for n in range(20)]

    assert again == first
    assert len(set(places(broker).values())) > 3
    assert inspect.queue_status(broker, "q").locks == 20


def test_only_the_queue_of_the_setting_is_spread(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(**SPREAD))

    ids = [t.apply_async((n,), queue="other").id for n in range(20)]

    assert places(broker, "other") == dict.fromkeys(ids, 0)
    assert broker.partitions("other") == ["other"]


def test_key_that_cannot_be_told_fails_the_publish_and_nothing_is_stored(app: MakeApp, broker: StreamBroker) -> None:
    def fails(task: Any, args: Any, kwargs: Any) -> str:
        raise ZeroDivisionError

    t = with_task(app(**SPREAD), streams_partition_key=fails)

    for _ in range(3):
        with pytest.raises(LimitKeyError, match="Task t: the function for its key"):
            t.apply_async((1,), queue="q")

    assert places(broker) == {}


def test_queue_that_is_full_is_full_by_the_share_of_a_partition(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(streams_max_length=16, **SPREAD), streams_partition_key="chat")
    for _ in range(2):
        t.apply_async((5,), queue="q")

    with pytest.raises(QueueFull, match=r"^A partition of queue 'q' holds 2 messages .its share of streams_max_length"):
        t.apply_async((5,), queue="q")
    with pytest.raises(celery_streams.BulkError) as caught, celery_streams.bulk(t.app):
        t.apply_async((5,), queue="q")
    other = next(chat for chat in range(20) if choose(str(chat), COUNT) != choose("5", COUNT))
    t.apply_async((other,), queue="q")

    assert isinstance(caught.value.__cause__, QueueFull)
    assert inspect.queue_status(broker, "q").waiting == 3


# -- what is refused

REFUSED = [
    ({"rate_limit": "10/s"}, "Task t: no rate over all messages can be kept on queue 'q', which has 8 partitions"),
    ({"streams_concurrency": 5}, "Task t: no concurrency over all messages can be kept on queue 'q', which has 8"),
    (
        {"streams_concurrency_key": "chat", "streams_concurrency_per_key": 1, "streams_partition_key": "text"},
        "one key decides .* streams_partition_key and streams_concurrency_key must be the same",
    ),
    (
        {"streams_concurrency_key": "chat", "streams_concurrency_per_key": 1, "streams_unique": True,
         "streams_unique_key": "text"},
        "streams_concurrency_key and streams_unique_key must be the same",
    ),
    ({"streams_partition_key": "nope"}, "Task t has no argument 'nope' to choose a partition by"),
    ({"streams_partition_key": 5}, "Task t: streams_partition_key must be an argument's name, or a callable, got 5"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error"), REFUSED)
def test_task_that_cannot_be_spread_is_refused_when_the_app_is_finalized_and_when_it_is_published(
    app: MakeApp, broker: StreamBroker, caplog: pytest.LogCaptureFixture, options: dict[str, Any], error: str
) -> None:
    made = app(task_routes={"t": {"queue": "q"}}, **SPREAD)

    t = with_task(made, **options)

    [record] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert record.getMessage().endswith("Publishing this task fails until it is fixed.")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=error) as caught:
            t.delay(1)
        assert str(caught.value).rstrip(".?") in record.getMessage()
    assert "\n" not in record.getMessage()
    assert places(broker) == {}


@pytest.mark.parametrize(("options", "error"), REFUSED[:4])
def test_task_with_such_limits_goes_to_other_queues_as_ever(
    app: MakeApp, caplog: pytest.LogCaptureFixture, options: dict[str, Any], error: str
) -> None:
    t = with_task(app(**SPREAD), **options)

    t.delay(1)

    assert [one for one in caplog.records if one.levelno == logging.ERROR] == []


def test_limit_over_all_messages_cannot_be_set_at_run_time_either(app: MakeApp, broker: StreamBroker) -> None:
    made = app(task_routes={"t": {"queue": "q"}}, **SPREAD)
    with_task(made, streams_concurrency_key="chat", streams_concurrency_per_key=1)

    refused = run(limits, made, "set", "t", "concurrency=5")
    taken = run(limits, made, "set", "t", "concurrency_per_key=3")

    assert refused.exit_code == 2
    assert "no concurrency over all messages can be kept on queue 'q'" in refused.stderr
    assert taken.exit_code == 0, taken.output


def test_name_of_a_partition_is_nobodys_queue(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app())
    name = partition("q", 3)

    with pytest.raises(ConfigurationError, match=f"^'{name}' is the name of a partition of queue 'q'"):
        t.apply_async((1,), queue=name)
    with pytest.raises(ImproperlyConfigured, match="a worker reads all partitions of its queues"):
        StreamsWork.setup_queues(object.__new__(StreamsWork), [name])

    assert broker.client.call("KEYS", "*q*") == []


# -- what operators see


def filled(broker: StreamBroker, *, running: bool = True) -> list[str]:
    """Put a waiting message, a delayed one, a running one and a dead one into each partition; returns their names."""
    names = partitions("q", COUNT)
    for number, name in enumerate(names):
        if running:
            bury(broker, number, queue=name)
            broker.ensure_groups([name])
            broker.publish(name, message(100 + number))
            assert broker.read(broker.streams([name]), f"w@h/{number}", count=1)
        broker.publish(name, message(200 + number))
        broker.delay(name, message(300 + number), due_ms=2**44 - number, member=f"{300 + number}:")
    return names


def test_status_is_that_of_one_queue(app: MakeApp, broker: StreamBroker) -> None:
    names = filled(broker)
    broker.publish("other", message(1))
    made = app(**SPREAD)

    found = collect(streams_of(made))

    assert [one.state.queue for one in found.queues] == ["celery", "other", "q"]
    whole = found.queues[2].state
    assert (whole.waiting, whole.pending, whole.delayed, whole.dead) == (COUNT, COUNT, COUNT, COUNT)
    assert whole.partitions == COUNT
    assert found.queues[1].state.partitions == 1
    each = [inspect.queue_status(broker, name, names=[name]) for name in names]
    assert whole.oldest_waiting == pytest.approx(max(one.oldest_waiting or 0 for one in each), abs=2.0)
    assert whole.due_in_seconds == pytest.approx(min(one.due_in_seconds or 0 for one in each), abs=2.0)
    assert len(inspect.consumers(broker, "q")) == COUNT + 1  # and who held what is dead now
    shown = run(status, made, "q", "--json")
    assert json.loads(shown.stdout)["queues"][0]["partitions"] == COUNT
    assert "::partition" not in shown.stdout + run(status, made).stdout


def test_metrics_are_those_of_one_queue(app: MakeApp, broker: StreamBroker) -> None:
    filled(broker)

    found = {
        (sample.name, sample.labels.get("queue"), sample.labels.get("part")): sample.value
        for family in StreamsCollector(streams_of(app(**SPREAD))).collect()
        for sample in family.samples
    }

    assert {queue for _, queue, _ in found} <= {None, "q", "celery"}
    assert found["celery_streams_queue_waiting", "q", None] == COUNT
    assert found["celery_streams_queue_bytes", "q", "dead"] > COUNT * 50
    single = sum(inspect.queue_bytes(broker, name)["dead"] for name in partitions("q", COUNT)[1:])
    assert found["celery_streams_queue_bytes", "q", "dead"] > single


def test_dead_letters_are_listed_shown_replayed_and_deleted_as_those_of_one_queue(
    app: MakeApp, broker: StreamBroker
) -> None:
    # Given dead letters in all partitions, some of which have the same id
    names = partitions("q", COUNT)
    for number, name in enumerate(names):
        broker.client.call("XADD", broker.queue_keys(name).dead, "17-0", *_letter(number))
        broker.client.call("XADD", broker.queue_keys(name).dead, f"{30 - number}-0", *_letter(50 + number))
        broker.client.call("SADD", "celery-streams:queues", name)
    made = app(**SPREAD)

    # Then they are one list, the oldest first, each with an id of its own
    letters = list(dead_letters(broker, "q"))
    assert {one.queue for one in letters} == {"q"}
    assert [one.died for one in letters] == sorted(one.died for one in letters)
    assert len({one.entry_id for one in letters}) == 2 * COUNT
    listed = json.loads(run(dead, made, "list", "-Q", "q", "--json").stdout)
    assert [one["entry_id"] for one in listed["dead_letters"]] == [one.entry_id for one in letters]
    for number in (0, 3, 7):
        shown = json.loads(run(dead, made, "show", "q", f"17-0/{number}" if number else "17-0", "--json").stdout)
        assert shown["task_id"] == f"task-{number}"
    assert run(dead, made, "show", "q", "17-0/9").exit_code == 1
    assert run(dead, made, "show", "q", "17-0/300").exit_code == 1

    # And each is replayed to the partition that it died on, and deleted where it is
    replayed = run(dead, made, "replay", "--id", "17-0/3", "--id", "17-0", "--json")
    assert [one["entry_id"] for one in json.loads(replayed.stdout)["replayed"]] == ["17-0", "17-0/3"]
    assert places(broker) == {"task-0": 0, "task-3": 3}
    new_id = json.loads(replayed.stdout)["replayed"][1]["new_entry_id"]
    assert new_id.endswith("/3")
    purged = run(dead, made, "purge", "--id", "17-0/5", "--id", "task-56", "--yes", "--json")
    assert purged.exit_code == 0, purged.output
    left = {one.task_id for one in dead_letters(broker, "q")}
    assert left == {f"task-{n}" for n in (*range(8), *range(50, 58))} - {"task-0", "task-3", "task-5", "task-56"}


def _letter(number: int) -> Sequence[Any]:
    one = json.dumps({"id": f"task-{number}", "task": "t"})
    death = json.dumps({"reason": "failed", "task": "t", "task_id": f"task-{number}"})
    kind = '{"content_type":"application/json","content_encoding":"utf-8"}'
    return ("headers", one, "properties", kind, "body", "[[],{},{}]", "death", death)


@pytest.mark.parametrize("oldest_first", [False, True])
def test_pages_of_dead_letters_go_on_where_the_last_one_stopped_while_letters_come_and_go(
    broker: StreamBroker, oldest_first: bool
) -> None:
    names = partitions("q", COUNT)
    for number in range(40):
        name = broker.queue_keys(names[number % COUNT]).dead
        broker.client.call("XADD", name, f"{1000 + number // 4}-0", *_letter(number))
    broker.client.call("SADD", "celery-streams:queues", *names)

    seen: list[str | None] = []
    cursor: Cursor | None = None
    while True:
        page = search(broker, ["q"], Wanted(), accept=None, before=cursor, limit=7, oldest_first=oldest_first)
        seen += [letter.task_id for letter in page.letters]
        assert {letter.queue for letter in page.letters} <= {"q"}
        if page.next is None:
            break
        cursor = Cursor.parse(str(page.next))
        assert cursor == page.next
        # The letter that the page ended with goes meanwhile, and a newer one comes
        broker.client.call("XDEL", broker.queue_keys(cursor.queue).dead, f"{cursor.milliseconds}-{cursor.number}")
        broker.client.call("XADD", broker.queue_keys(names[5]).dead, "*", *_letter(999))

    found = [one for one in seen if one != "task-999"]
    assert len(found) == len(set(found)) == 40
    assert sorted(found, key=str) == sorted((f"task-{n}" for n in range(40)), key=str)


def test_delayed_messages_are_one_list_and_run_now_and_cancelled_wherever_they_lie(broker: StreamBroker) -> None:
    names = partitions("q", 3)
    for number in range(30):
        due_ms = 2**44 + number
        broker.delay(names[number % 3], message(number), due_ms=due_ms, member=f"m{number}")

    listed = delayed_messages.delayed_messages(broker, "q")
    pages = [
        one.member
        for skip in range(0, 30, 7)
        for one in delayed_messages.delayed_messages(broker, "q", limit=7, offset=skip)
    ]

    assert [one.member for one in listed] == pages == [f"m{number}" for number in range(30)]
    assert {one.queue for one in listed} == {"q"}
    assert delayed_messages.run_now(broker, "q", ["m1", "m2", "m3", "gone"]) == 3
    assert len(delayed_messages.cancel(broker, "q", ["m4", "m5", "m6"])) == 3
    assert inspect.queue_status(broker, "q").waiting == 3
    assert inspect.queue_status(broker, "q").delayed == 24


def test_purge_discards_what_waits_in_all_partitions_and_nothing_that_runs(app: MakeApp, broker: StreamBroker) -> None:
    filled(broker)

    assert inspect.purge(broker, "q") == 2 * COUNT

    left = inspect.queue_status(broker, "q")
    assert (left.waiting, left.delayed, left.pending, left.dead) == (0, 0, COUNT, COUNT)


def test_pause_and_resumption_reach_all_partitions_also_those_that_come_meanwhile(broker: StreamBroker) -> None:
    few = partitions("q", 3)
    broker.ensure_groups(few)

    pauses.pause_queue(broker, "q", reason="why")
    assert set(pauses.paused_queues(broker, few)) == set(few)
    many = partitions("q", 6)
    broker.ensure_groups(many)
    pauses.follow(broker, {"q": many})

    found = pauses.paused_queues(broker, many)
    assert {one.reason for one in found.values()} == {"why"}
    assert set(found) == set(many)
    assert pauses.resume_queue(broker, "q")
    assert pauses.paused_queues(broker, many) == {}
    # What was paused by a worker in the moment of the resumption does not stay so
    pauses.pause_queue(broker, many[4])
    pauses.follow(broker, {"q": many})
    assert pauses.paused_queues(broker, many) == {}


def test_worker_that_looks_finds_what_others_made_and_pauses_it_first(broker: StreamBroker) -> None:
    told: list[dict[str, pauses.Pause]] = []
    watch = PartitionWatch(
        broker, {"q": 2}, on_new=lambda: told.append(pauses.paused_queues(broker, watch.expand(["q"])))
    )
    assert watch.expand(["q", "other"]) == [*partitions("q", 2), "other"]
    pauses.pause_queue(broker, "q")
    watch.run_once()
    assert told == []

    broker.ensure_groups(partitions("q", 4))
    watch.run_once()
    watch.run_once()

    assert [set(one) for one in told] == [set(partitions("q", 4))]
    assert watch.expand(["other", "q"]) == ["other", *partitions("q", 4)]


def test_workers_are_told_of_a_partition_that_is_new_and_of_no_other(app: MakeApp, broker: StreamBroker) -> None:
    def news() -> int:
        return int(broker.client.call("XLEN", "celery-streams:news"))

    broker.publish("q", message(1))
    broker.publish("other", message(1))
    assert news() == 0

    broker.publish(partition("q", 1), message(1))
    assert news() == 1
    broker.client.call("DEL", "celery-streams:news")
    StreamBroker(broker.client).publish(partition("q", 1), message(1))
    assert news() == 0
    t = with_task(app(streams_partitions={"q": 200}))
    with celery_streams.bulk(t.app):
        t.apply_async((1,), queue="q")
    assert news() == 1


def test_forgotten_queue_leaves_no_key_of_any_partition(app: MakeApp, broker: StreamBroker) -> None:
    filled(broker, running=False)
    made = app(**SPREAD)

    kept = run(forget, made, "q")
    assert "q" in inspect.known_queues(broker)
    gone = run(forget, made, "q", "--with-messages")

    assert kept.exit_code != 0
    assert gone.exit_code == 0, gone.output
    assert [key for key in broker.client.call("KEYS", "*") if b"{q" in key] == []
    assert inspect.known_queues(broker) == []


def test_migration_to_lists_takes_all_partitions_along_and_back_loses_nothing(
    app: MakeApp, broker: StreamBroker
) -> None:
    t = with_task(app(**SPREAD))
    ids = {t.apply_async((n,), queue="q").id for n in range(40)}
    ids |= {t.apply_async((n,), queue="q", countdown=600).id for n in range(8)}
    migration = Migration(broker, broker.client, options={}, visibility_timeout=15.0)

    assert migration.plan("q", "lists").total == 48
    moves = migration.to_lists("q")

    assert (moves.moved, moves.delayed) == (40, 8)
    assert broker.client.call("LLEN", "q") == 48
    assert places(broker) == {}
    migration.to_streams("q")
    assert set(places(broker)) == ids
    assert inspect.queue_status(broker, "q").waiting == 40


def test_history_of_a_queue_is_the_sum_of_its_partitions_at_each_time(broker: StreamBroker) -> None:
    names = partitions("q", 3)
    broker.ensure_groups(names)
    now = time.time()
    for ago, number, waiting, added in [
        (600, 0, 5, 5), (599, 1, 7, 7), (540, 1, 2, 8), (480, 0, 1, 9), (479, 2, 4, 4), (478, 1, 0, 8),
    ]:  # fmt: skip
        entry = f"{int((now - ago) * 1000)}-0"
        key = broker.queue_keys(names[number]).history
        broker.client.call("XADD", key, entry, "w", waiting, "p", 0, "d", 0, "x", 1, "a", added)

    found = history.samples(broker, ["q", "none"], seconds=3600.0)

    assert [(one.waiting, one.dead, one.added) for one in found["q"]] == [(12, 2, 12), (7, 2, 13), (5, 3, 21)]
    assert [round(now - one.at) for one in found["q"]] == [600, 540, 480]
    assert found["none"] == []
    assert history.record(broker, names) == 3


def test_held_lanes_of_all_partitions_are_those_of_one_queue(broker: StreamBroker) -> None:
    names = partitions("q", 3)
    broker.ensure_groups(names)
    for number, name in enumerate(names):
        lanes = broker.queue_keys(name).shelf[1]
        said = json.dumps({"task": "t", "first": 1, "last": 1 + number})
        broker.client.call("HSET", lanes, "t | everywhere", said, f"t | {number}", said)

    found = held_lanes(broker, "q")

    assert found[0] == HeldLane("q", "t | everywhere", "t", 6)
    assert {(one.name, one.held) for one in found[1:]} == {("t | 0", 1), ("t | 1", 2), ("t | 2", 3)}
    assert {one.queue for one in found} == {"q"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("send_mesage", [("warning", "'send_mesage', which is no queue on streams yet; did you mean 'send_message'?")]),
        ("else", [("info", "'else', which is no queue on streams yet")]),
        ("send_message", []),
    ],
)
def test_doctor_finds_a_queue_of_the_setting_that_nobody_knows(
    app: MakeApp, broker: StreamBroker, name: str, expected: list[tuple[str, str]]
) -> None:
    broker.publish("send_message", message(1))
    made = app(streams_partitions={name: 8})

    found = [one for one in diagnose(streams_of(made), ask_workers=False).findings if "streams_partitions" in one.what]

    assert [(one.level, one.what.removeprefix("streams_partitions names ")) for one in found] == expected


def test_doctor_looks_into_all_partitions_for_what_no_worker_looks_after(app: MakeApp, broker: StreamBroker) -> None:
    names = partitions("q", 4)
    broker.ensure_groups(names)
    broker.client.call("XGROUP", "DESTROY", broker.queue_keys(names[2]).streams[0], "celery-streams")
    broker.publish(names[2], message(1))
    [held] = delivered(broker, names[3], "w@dead/1", message(2))
    make_idle(broker, held.stream, "w@dead/1", held.entry_id, idle_ms=60_000)

    found = {(one.check, one.queue): one.what for one in diagnose(streams_of(app()), ask_workers=False).findings}

    assert "holds 1 message and has no consumer group" in found["groups", "q"]
    assert "w@dead/1 holds 1 message" in found["consumers", "q"]
    assert not any("::partition" in str(queue) for _, queue in found)


def test_worker_that_may_not_look_for_partitions_reads_those_of_its_settings(
    broker: StreamBroker, redis_url: str
) -> None:
    broker.client.call("ACL", "SETUSER", "poor", "on", ">secret", "~*", "+@all", "-smembers")
    poor = RedisClient(redis_url.replace("redis://", "redis://poor:secret@"))
    told: list[None] = []
    watch = PartitionWatch(StreamBroker(poor), {"q": 2}, on_new=lambda: told.append(None))
    try:
        assert watch.expand(["q"]) == partitions("q", 2)
        broker.ensure_groups(partitions("q", 4))
        watch.run_once()
    finally:
        poor.close()
        broker.client.call("ACL", "DELUSER", "poor")

    assert told == []
    assert watch.expand(["q"]) == partitions("q", 2)

"""History: one sample a minute of every queue, whatever the number of workers; and the alerts about what grew."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams import keys
from celery_streams.bin.alerts import alerts
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.exceptions import BrokerError
from celery_streams.history import Sample, record, samples
from celery_streams.removal import forget_queue
from tests.support.redis_state import delivered, message


def run(project: Celery, *words: str) -> Result:
    return CliRunner().invoke(alerts, list(words), obj=CLIContext(app=project, no_color=True, workdir=None))


def later(broker: StreamBroker, *, minutes: int = 1, queues: Sequence[str] = ("q",)) -> None:
    """Have what was written until now be so much older, and nobody's turn."""
    broker.client.call("DEL", keys.history_turn(broker.prefix, queues))
    for queue in queues:
        history = broker.queue_keys(queue).history
        written = broker.client.call("XRANGE", history, "-", "+")
        broker.client.call("DEL", history)
        for entry_id, fields in written:
            broker.client.call("XADD", history, f"{int(entry_id.partition(b'-')[0]) - minutes * 60_000}-0", *fields)


def sample(broker: StreamBroker, *, ago: float, queue: str = "q", **held: int) -> None:
    """Write a sample as a worker did some seconds ago."""
    at = broker.clock_ms() - int(ago * 1000)
    values = [part for name in "wpdx" for part in (name, held.get(name, 0))]
    broker.client.call("XADD", broker.queue_keys(queue).history, f"{at}-0", *values)


def test_sample_says_what_a_queue_held(broker: StreamBroker) -> None:
    for number in range(3):
        broker.publish("q", message(number))
    delivered(broker, "q", "w", message(9, step=2))
    broker.delay("q", message(4), due_ms=2**42, member="4")
    broker.client.call("XADD", broker.queue_keys("q").dead, "*", "death", "{}")

    count = record(broker, ["q", "never used"])

    found = samples(broker, ["q", "never used", "nobody's"])
    (one,) = found["q"]
    assert count == 2
    assert (one.waiting, one.pending, one.delayed, one.dead) == (3, 1, 1, 1)
    assert one.added in (4, None)
    assert abs(one.at - broker.clock_ms() / 1000) < 5
    assert [(one.waiting, one.dead) for one in found["never used"]] == [(0, 0)]
    assert found["nobody's"] == []


def test_sixty_workers_write_one_sample_a_minute(broker: StreamBroker) -> None:
    for _ in range(60):
        record(broker, ["q"])
    later(broker)
    broker.publish("q", message(1))
    record(broker, ["q"])

    assert [one.waiting for one in samples(broker, ["q"])["q"]] == [0, 1]


def test_workers_of_other_queues_write_theirs_and_nothing_twice(broker: StreamBroker) -> None:
    assert record(broker, ["q"]) == 1
    assert record(broker, ["r", "q"]) == 1
    assert record(broker, ["q", "r"]) is None

    assert {queue: len(found) for queue, found in samples(broker, ["q", "r"]).items()} == {"q": 1, "r": 1}


def test_what_stays_the_same_is_written_every_five_minutes_and_its_end_is_known(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    for _ in range(9):
        record(broker, ["q"])
        later(broker)
    assert len(samples(broker, ["q"])["q"]) == 2
    broker.publish("q", message(1))

    record(broker, ["q"])

    found = samples(broker, ["q"])["q"]
    assert [one.waiting for one in found] == [0, 0, 0, 1]
    assert 50 < found[3].at - found[2].at < 70
    assert [one.waiting for one in samples(broker, ["q"], seconds=30)["q"]] == [0, 1]


def test_gap_in_which_nobody_wrote_stays_one(broker: StreamBroker) -> None:
    record(broker, ["q"])
    later(broker, minutes=20)
    broker.publish("q", message(1))

    record(broker, ["q"])

    first, second = samples(broker, ["q"])["q"]
    assert second.at - first.at > 1_000
    assert [one.waiting for one in samples(broker, ["q"], seconds=30)["q"]] == [1]


def test_key_of_another_type_keeps_no_other_queue_from_its_history(broker: StreamBroker) -> None:
    broker.client.call("SET", broker.queue_keys("q").delayed, "of another type")

    with pytest.raises(BrokerError, match="history of a queue cannot be written"):
        record(broker, ["q", "r"])

    assert [len(found) for found in samples(broker, ["q", "r"]).values()] == [0, 1]


def test_history_is_bounded_and_expires(broker: StreamBroker) -> None:
    for number in range(3_000):
        broker.client.call("XADD", broker.queue_keys("q").history, f"{1000 + number}-0", "w", 1)

    record(broker, ["q"])

    assert broker.client.call("XLEN", broker.queue_keys("q").history) < 1_700
    assert 86_400_000 < broker.client.call("PTTL", broker.queue_keys("q").history) <= 90_000_000


def test_many_queues_are_recorded_in_few_round_trips(broker: StreamBroker, client: RedisClient) -> None:
    queues = [f"q{number}" for number in range(120)]
    for queue in queues:
        broker.publish(queue, message(1))

    assert record(broker, queues) == 120

    assert {len(found) for found in samples(broker, queues).values()} == {1}


def test_what_others_wrote_there_is_zero(broker: StreamBroker) -> None:
    broker.client.call("XADD", broker.queue_keys("q").history, "*", "w", "many", "later", "1")

    (one,) = samples(broker, ["q"])["q"]

    assert one == Sample(one.at, 0, 0, 0, 0, None)


def test_history_goes_with_its_queue(broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    record(broker, ["q"])

    forget_queue(broker, "q")

    assert broker.client.call("EXISTS", broker.queue_keys("q").history) == 0


def test_user_who_may_use_the_keys_of_one_queue_only_leaves_it_to_others(
    broker: StreamBroker, client: RedisClient, redis_url: str
) -> None:
    client.call("ACL", "SETUSER", "poor", "reset", "on", ">pw", "~celery-streams:{q}*", "+@all")
    poor = StreamBroker(RedisClient(redis_url.replace("://", "://poor:pw@")))
    try:
        assert record(poor, ["q"]) is None
    finally:
        poor.client.close()
        client.call("ACL", "DELUSER", "poor")

    assert samples(broker, ["q"])["q"] == []


# -- alerts ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(app: Callable[..., Celery]) -> Celery:
    return app(streams_alerts={"dead_warning": None, "dead_critical": None, "no_consumer_critical": None})


def bury(broker: StreamBroker, count: int) -> None:
    broker.ensure_groups(["q"])
    for _ in range(count):
        broker.client.call("XADD", broker.queue_keys("q").dead, "*", "death", "{}")


def test_nothing_is_printed_when_all_is_well(project: Celery, broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])

    result = run(project)

    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize(("count", "code", "level"), [(3, 1, "warning"), (60, 2, "critical")])
def test_dead_letters_that_came_within_the_time_are_told(
    project: Celery, broker: StreamBroker, count: int, code: int, level: str
) -> None:
    sample(broker, ago=500, x=2)
    bury(broker, 2 + count)

    result = run(project, "--since", "10m")

    assert result.exit_code == code, result.output
    assert result.output.startswith(f"{level} q: {count} more dead letters than before ({level} from ")


def test_what_grew_before_is_not_told(project: Celery, broker: StreamBroker) -> None:
    sample(broker, ago=500, x=0)
    sample(broker, ago=310, x=5)
    sample(broker, ago=200, x=5)
    bury(broker, 5)

    assert run(project, "--since", "300").exit_code == 0
    assert run(project, "--since", "10m").exit_code == 1


def test_backlog_that_grew_is_told_when_it_is_one(app: Callable[..., Celery], broker: StreamBroker) -> None:
    project = app(streams_alerts={"backlog_warning": 5, "backlog_growing_warning": 3, "no_consumer_critical": None})
    sample(broker, ago=100, w=1)
    for number in range(4):
        broker.publish("q", message(number))
    assert "growing" not in run(project, "--json").output
    broker.publish("q", message(4))

    found = json.loads(run(project, "--json").output)

    assert [one["name"] for one in found["alerts"]] == ["backlog", "backlog_growing"]
    assert found["alerts"][1]["message"] == "4 more waiting than before (warning from 3)"


def test_redis_that_is_away_is_critical_and_one_line(app: Callable[..., Celery]) -> None:
    project = app(broker_url="redis://:secret@127.0.0.1:1/0")

    result = run(project)
    as_json = json.loads(run(project, "--json").output)

    assert result.exit_code == 2
    assert result.output.startswith("critical ")
    assert len(result.output.splitlines()) == 1
    assert "secret" not in result.output
    assert (as_json["level"], as_json["alerts"][0]["name"]) == ("critical", "redis")


@pytest.mark.parametrize("words", [("--since", "soon"), ("--since", "-5m")])
def test_age_that_is_none_is_one_line(project: Celery, words: Any) -> None:
    result = run(project, *words)

    assert result.exit_code == 2
    assert "Traceback" not in result.output

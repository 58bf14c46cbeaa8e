"""``celery-streams doctor`` on real servers: each thing that is wrong is found, and the look changes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams import BrokerUnavailable, keys, streams_of
from celery_streams.bin.doctor import doctor
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.monitoring.doctor import diagnose, find_workers
from celery_streams.probes import clock_skew, denied_commands, server_info
from tests.support.eventually import eventually
from tests.support.processes import Worker, project_environment
from tests.support.redis_state import delivered, make_idle, message, redis_now_ms, redis_state

#: A port on which nothing listens.
AWAY = "redis://127.0.0.1:1/0"

MakeApp = Callable[..., Celery]


def run(app: Celery, *words: str) -> Result:
    """Run the command as the root group would."""
    return CliRunner().invoke(doctor, list(words), obj=CLIContext(app=app, no_color=True, workdir=None))


def findings(app: Celery, *queues: str) -> dict[str, dict[str, Any]]:
    """Run the command without asking workers; return the findings by check."""
    result = run(app, "--no-workers", "--json", *queues)
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert result.exit_code == {"ok": 0, "info": 0, "warning": 1, "critical": 2}[found["level"]]
    return {one["check"]: one for one in found["findings"]}


@pytest.fixture
def restricted(client: RedisClient, redis_url: str) -> Iterator[Callable[[str], str]]:
    """Make a user with these ACL rules; returns the URL to log in with."""

    def make(rules: str) -> str:
        client.call("ACL", "SETUSER", "chat", "reset", "on", ">pw", *rules.split())
        return redis_url.replace("redis://", "redis://chat:pw@")

    yield make
    client.call("ACL", "DELUSER", "chat")


@pytest.fixture
def setting(client: RedisClient) -> Iterator[Callable[[str, str], None]]:
    """Change settings of the server for one test."""
    before: dict[str, bytes] = {}

    def change(name: str, value: str) -> None:
        before.setdefault(name, client.call("CONFIG", "GET", name)[1])
        client.call("CONFIG", "SET", name, value)

    yield change
    for name, value in before.items():
        client.call("CONFIG", "SET", name, value)


# -- the server -------------------------------------------------------------------------------------------------------


def test_server_that_keeps_nothing_is_critical(app: MakeApp) -> None:
    found = findings(app())

    assert found["version"]["level"] == found["role"]["level"] == found["clock"]["level"] == "ok"
    assert found["permissions"]["level"] == found["eviction"]["level"] == "ok"
    assert found["persistence"]["level"] == "critical"
    assert found["memory"]["level"] == "info"


def test_healthy_server_is_ok_with_exit_code_zero(app: MakeApp, setting: Callable[[str, str], None]) -> None:
    setting("appendonly", "yes")
    setting("appendfsync", "everysec")
    setting("maxmemory", "1gb")

    result = run(app(), "--no-workers")

    assert result.exit_code == 0
    assert "critical" not in result.stdout
    assert "warning" not in result.stdout
    assert "everysec" in result.stdout


def test_policy_that_evicts_streams_is_critical(app: MakeApp, setting: Callable[[str, str], None]) -> None:
    setting("maxmemory", "1gb")
    setting("maxmemory-policy", "allkeys-lru")

    found = findings(app())["eviction"]

    assert found["level"] == "critical"
    assert "allkeys-lru" in found["what"]
    assert "deletes whole streams" in found["why"]
    assert "noeviction" in found["todo"]


def test_memory_that_is_nearly_used_up_is_found(
    app: MakeApp, client: RedisClient, setting: Callable[[str, str], None]
) -> None:
    setting("maxmemory", str(int(server_info(client).used_memory * 1.02)))

    assert findings(app())["memory"]["level"] == "critical"


def test_server_info_is_read_from_the_server(client: RedisClient, setting: Callable[[str, str], None]) -> None:
    setting("maxmemory", "100mb")
    setting("save", "60 1")

    found = server_info(client)

    assert (found.cluster, found.role, found.maxmemory) == (False, "master", 100 * 1024 * 1024)
    assert (found.policy, found.snapshots, found.append_only) == ("noeviction", "60 1", False)
    assert found.version >= (6, 2)
    assert found.used_memory > 100_000


def test_clock_that_is_ahead_is_measured(client: RedisClient) -> None:
    import time

    skew = clock_skew(client, clock=lambda: time.time() + 30.0)

    assert skew.ahead == pytest.approx(30.0, abs=0.5)
    assert 0.0 <= skew.uncertainty < 0.5


# -- permissions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ("~* +@all -xclaim -hset", ["XCLAIM", "HSET"]),
        ("~* +@all -xinfo|groups", ["XINFO GROUPS"]),
        ("~* +@all -@scripting", ["EVAL", "EVALSHA"]),
        ("~* +@all -ping", ["PING"]),
        ("~* +@all -@dangerous +info +client|unblock", []),
    ],
)
def test_commands_that_are_not_permitted_are_named(
    app: MakeApp, restricted: Callable[[str], str], rules: str, named: list[str], client: RedisClient
) -> None:
    # F33
    if "|" in rules and server_info(client).version < (7,):
        pytest.skip("subcommands in ACL rules came with Redis 7")
    url = restricted(rules)

    found = findings(app(streams_url=url))["permissions"]

    assert found["level"] == ("critical" if named else "ok")
    for command in named:
        assert command in found["what"]


@pytest.mark.parametrize("rules", ["~* +@all -@dangerous +info", "~* +@all -client -memory"])
def test_commands_that_have_a_substitute_are_no_matter_when_they_are_not_permitted(
    app: MakeApp, restricted: Callable[[str], str], rules: str
) -> None:
    found = findings(app(streams_url=restricted(rules)))["permissions"]

    assert (found["level"], found["todo"]) == ("info", "Nothing.")
    assert "CLIENT UNBLOCK" in found["what"]
    assert "through a stream" in found["why"]


def test_server_that_says_nothing_of_itself_hides_nothing_else(
    app: MakeApp, restricted: Callable[[str], str], broker: StreamBroker
) -> None:
    broker.publish("q", message(1))
    url = restricted("~* +@all -info -config")

    found = findings(app(streams_url=url))

    assert found["server"]["level"] == "warning"
    assert "does not permit INFO" in found["server"]["what"]
    assert found["clock"]["level"] == "ok"
    assert found["groups"]["level"] == "warning"


def test_keys_that_are_not_permitted_are_found(app: MakeApp, restricted: Callable[[str], str]) -> None:
    url = restricted("~other:* +@all")

    found = findings(app(streams_url=url), "q")

    assert found["permissions"]["level"] == "critical"
    assert "~PREFIX:*" in found["permissions"]["todo"]


def test_looking_at_permissions_executes_nothing(broker: StreamBroker) -> None:
    delivered(broker, "q", "w", message(1))
    before = redis_state(broker.client)

    assert denied_commands(broker, "q") == []
    assert redis_state(broker.client) == before


# -- queues -----------------------------------------------------------------------------------------------------------


def test_stream_without_a_group_is_found(app: MakeApp, broker: StreamBroker) -> None:
    broker.publish("q", message(1))

    found = findings(app())["groups"]

    assert (found["level"], found["queue"]) == ("warning", "q")
    assert "celery-streams:{q} holds 1 message" in found["what"]


def test_consumer_that_holds_entries_and_is_silent_is_found(app: MakeApp, broker: StreamBroker) -> None:
    one, two, living = delivered(broker, "q", "w@h/1.ab", message(1), message(2), message(3))
    for held in (one, two):
        make_idle(broker, held.stream, "w@h/1.ab", held.entry_id, idle_ms=100_000)

    found = findings(app())["consumers"]

    assert found["level"] == "critical"
    assert "w@h/1.ab holds 2 messages and was silent for 100 s" in found["what"]
    assert living.entry_id


def test_living_consumer_is_nothing_to_find(app: MakeApp, broker: StreamBroker) -> None:
    delivered(broker, "q", "w", message(1))

    found = findings(app())

    assert "consumers" not in found
    assert found["queue"]["level"] == "ok"


@pytest.mark.parametrize(("step", "front"), [(0, False), (2, False), (0, True), (3, True)])
@pytest.mark.parametrize("held", [False, True])
def test_messages_that_somebody_took_from_their_consumer_by_hand_are_found(
    app: MakeApp, broker: StreamBroker, step: int, front: bool, held: bool
) -> None:
    one, *_ = delivered(broker, "celery", "gone", message(1, step=step))
    broker.publish("celery", message(2, step=step))
    if front:
        broker.put_back("gone", [one.entry])
        (one,) = broker.read(broker.streams(["celery"]), "gone", count=1)
    if held:
        broker.read(broker.streams(["celery"]), "other", count=1)
    assert "in no consumer's list" not in str(findings(app()).values())

    broker.client.call("XGROUP", "DELCONSUMER", one.stream.key, keys.GROUP, "gone")

    found = findings(app())["consumers"]
    assert (found["level"], found["queue"]) == ("warning", "celery")
    assert found["what"].startswith(one.stream.key + " begins with")


def test_delayed_messages_that_nobody_promotes_are_found(app: MakeApp, broker: StreamBroker) -> None:
    broker.delay("q", message(1), due_ms=redis_now_ms(broker.client) - 60_000, member="m")

    assert findings(app())["delayed"]["level"] == "critical"


def test_list_of_a_stream_queue_that_holds_messages_is_found(app: MakeApp, client: RedisClient) -> None:
    client.call("LPUSH", "q", "{}")
    client.call("LPUSH", "q\x06\x169", "{}", "{}")

    on = findings(app(), "q")["both worlds"]
    off = findings(app(streams_enabled=False), "q")

    assert on["level"] == "warning"
    assert "3 messages are on Celery's list" in on["what"]
    assert "migrate q --to streams" in on["todo"]
    assert "both worlds" not in off


def test_stream_that_holds_messages_while_streams_are_off_is_found(app: MakeApp, broker: StreamBroker) -> None:
    broker.publish("q", message(1))

    found = findings(app(streams_enabled=False))["both worlds"]

    assert found["level"] == "critical"
    assert "migrate q --to lists" in found["todo"]


def test_message_on_its_way_counts_once_however_the_database_is_written(
    app: MakeApp, client: RedisClient, redis_url: str
) -> None:
    client.call("LPUSH", keys.migration_keys("celery-streams", "q").outgoing, "tag{}")

    found = findings(app(streams_url=redis_url.removesuffix("/0")), "q")["migration"]

    assert found["what"].startswith("1 message ")


def test_migration_that_was_killed_is_found(app: MakeApp, client: RedisClient, redis_url: str) -> None:
    keep = keys.migration_keys("celery-streams", "q")
    client.call("LPUSH", keep.outgoing, "tag{}")

    found = findings(app(streams_url=redis_url.rpartition("/")[0] + "/5"), "q")["migration"]

    assert found["level"] == "critical"
    assert "1 message is on its way" in found["what"]


def test_results_in_the_database_of_the_streams_are_mentioned(app: MakeApp, redis_url: str) -> None:
    assert findings(app(result_backend=redis_url))["database"]["level"] == "info"
    assert findings(app())["database"]["level"] == "ok"


def test_look_at_everything_changes_nothing(app: MakeApp, broker: StreamBroker) -> None:
    held = delivered(broker, "q", "w", message(1), message(2))
    make_idle(broker, held[0].stream, "w", held[0].entry_id, idle_ms=100_000)
    broker.publish("other", message(3))
    broker.client.call("LPUSH", "q", "{}")
    before = redis_state(broker.client)

    diagnose(streams_of(app()), ask_workers=False)

    assert redis_state(broker.client) == before


def test_app_that_was_never_installed_is_a_warning(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    broker.publish("q", message(1))
    never = app(installed=False)
    never.conf.update(streams_enabled=True, streams_url=redis_url)

    found = findings(never)

    assert found["install"]["level"] == "warning"
    assert found["both worlds"]["level"] == "critical"
    assert findings(app())["install"]["level"] == "ok"


def test_broker_that_is_no_redis_hides_nothing_else(app: MakeApp, redis_url: str, broker: StreamBroker) -> None:
    broker.publish("q", message(1))

    found = findings(app(broker_url="amqp://guest@localhost//", streams_url=redis_url))

    assert found["lists"]["level"] == "info"
    assert found["groups"]["level"] == "warning"


# -- node names -------------------------------------------------------------------------------------------------------


@pytest.fixture
def living(redis_url: str) -> Iterator[Callable[..., None]]:
    """Let consumers of a queue be heard of all the time."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def be_heard(queue: str, names: tuple[str, ...]) -> None:
        client = RedisClient(redis_url)
        key = StreamBroker(client).queue_keys(queue).streams[0]
        while not stop.wait(0.05):
            for name in names:
                # A read of what it holds counts in every version of Redis.
                client.call("XREADGROUP", "GROUP", keys.GROUP, name, "COUNT", 1, "STREAMS", key, "0")
        client.close()

    def start(queue: str, *names: str) -> None:
        threads.append(threading.Thread(target=be_heard, args=(queue, names)))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def test_two_living_workers_of_one_node_name_are_found(
    app: MakeApp, broker: StreamBroker, living: Callable[..., None]
) -> None:
    # F22; the children of one node name may consume different queues
    delivered(broker, "q", "twin@h/1.aaaaaaaa", message(1))
    delivered(broker, "r", "twin@h/1.bbbbbbbb", message(2))
    living("q", "twin@h/1.aaaaaaaa", "other@h/1.cccccccc")
    living("r", "twin@h/1.bbbbbbbb")

    found = findings(app())["node names"]

    assert (found["level"], found["queue"]) == ("warning", None)
    assert found["what"] == "2 live workers have the node name twin@h"
    assert "remote control" in found["why"]
    assert "-n NAME@%h" in found["todo"]


def test_worker_that_was_killed_and_started_again_a_moment_ago_is_no_second_one(
    app: MakeApp, broker: StreamBroker, living: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_streams.monitoring.doctor.HEARD_WITHIN", 1.0)
    delivered(broker, "q", "w@h/1.aaaaaaaa", message(1))
    delivered(broker, "q", "w@h/1.bbbbbbbb", message(2))
    living("q", "w@h/1.bbbbbbbb")

    assert "node names" not in findings(app(streams_visibility_timeout=2.0))


# -- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stock_worker_on_a_stream_queue_is_seen(
    app: MakeApp, redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path
) -> None:
    environment = project_environment(
        broker=redis_url, results=redis_server.database_url(1), ledger=redis_server.database_url(3), queue="q"
    )
    ours = Worker("streams", name="new", queues="q", directory=tmp_path, environment=environment, concurrency=1)
    stock = Worker("lists", name="old", queues="q", directory=tmp_path, environment=environment, concurrency=1)
    streams = streams_of(app())
    try:
        ours.start()
        stock.start()
        ours.wait_ready()
        stock.wait_ready()

        found = eventually(
            lambda: [one for one in diagnose(streams, ["q"], timeout=2.0).findings if one.check == "both worlds"],
            timeout=20,
        )
        workers = find_workers(streams, timeout=2.0)
    finally:
        ours.stop()
        stock.stop()

    assert [(one.level, one.queue) for one in found] == [("warning", "q")]
    assert "old@test consumes Celery's list, which gets no new message" in found[0].what
    assert (workers.stock["q"], workers.ours["q"]) == (("old@test",), ("new@test",))


def test_broker_that_is_away_is_critical_and_hides_nothing_else(
    app: MakeApp, redis_url: str, broker: StreamBroker
) -> None:
    broker.publish("q", message(1))

    found = findings(app(broker_url=AWAY, streams_url=redis_url))

    assert found["lists"]["level"] == "critical"
    assert found["groups"]["level"] == "warning"


# -- the command ------------------------------------------------------------------------------------------------------


def test_table_says_what_why_and_what_to_do(app: MakeApp) -> None:
    text = run(app(), "--no-workers").stdout

    assert "Nothing is written to disk" in text
    assert "A restart of Redis loses every task." in text
    assert "-> CONFIG SET appendonly yes" in text
    assert text.rstrip().splitlines()[-1].startswith("1 critical, ")


def test_redis_away_is_one_line_and_an_exit_code(app: MakeApp) -> None:
    result = run(app(streams_url=AWAY))

    assert result.exit_code == 69
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: Redis at redis://127.0.0.1:1/0 cannot be reached: ")
    with pytest.raises(BrokerUnavailable):
        diagnose(streams_of(app(streams_url=AWAY)))


def test_wrong_password_is_one_line(app: MakeApp, redis_url: str) -> None:
    result = run(app(streams_url=redis_url.replace("redis://", "redis://chat:wrong@")))

    assert result.exit_code == 69
    [line] = result.stderr.splitlines()
    assert "refused the login" in line


def test_help_lists_exit_codes_and_ends_with_examples(app: MakeApp) -> None:
    text = run(app(), "--help").stdout

    assert text.index("Exit codes:") < text.index("Examples:")
    assert text.rstrip().splitlines()[-1].strip().startswith("celery-streams -A proj doctor")

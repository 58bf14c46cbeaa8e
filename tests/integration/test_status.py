"""The status of the queues: collected from Redis, printed by the command line, exported to Prometheus."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams import BrokerUnavailable, ConfigurationError, streams_of
from celery_streams.bin.status import status
from celery_streams.bin.terminal import EXIT_CONFIG, EXIT_CRITICAL, EXIT_OK, EXIT_UNAVAILABLE, EXIT_WARNING, age
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.monitoring.prometheus import StreamsCollector, exposition
from celery_streams.monitoring.status import collect
from tests.support.eventually import eventually
from tests.support.redis_state import message, redis_now_ms, redis_state

ROOT = Path(__file__).resolve().parents[2]

#: A port on which nothing listens.
AWAY = "redis://127.0.0.1:1/0"

MakeApp = Callable[..., Celery]


def run(app: Celery, *words: str) -> Result:
    """Run the command as the root group would."""
    return CliRunner().invoke(status, list(words), obj=CLIContext(app=app, no_color=True, workdir=None))


def one_line(result: Result) -> str:
    """Return the only line of the error, after checking that there is nothing else."""
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return line


def seed(broker: StreamBroker) -> None:
    """Queue ``send_message``: 2 wait, 1 is pending, 1 delayed, 1 dead; one consumer."""
    broker.ensure_groups(["send_message"])
    for number in range(4):
        broker.publish("send_message", message(number))
    _, dying = broker.read(broker.streams(["send_message"]), "w1", count=2)
    broker.reject("w1", dying.entry, death=b'{"reason": "failed"}', max_length=None, ttl=None)
    due_ms = redis_now_ms(broker.client) + 60_000
    broker.delay("send_message", message(9), due_ms=due_ms, member="later")


# -- collect ----------------------------------------------------------------------------------------------------------


def test_status_counts_what_is_in_redis(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)

    [report] = collect(streams_of(app(task_default_queue="send_message"))).queues

    state = report.state
    assert state.queue == "send_message"
    assert (state.waiting, state.pending, state.length, state.lag) == (2, 1, 3, 2)
    assert (state.delayed, state.dead, state.consumers, state.overdue) == (1, 1, 1, 0.0)
    assert state.oldest_waiting is not None
    assert 0.0 <= state.oldest_waiting < 30.0
    assert report.chosen
    assert [alert.name for alert in report.alerts] == ["dead"]


def test_status_changes_nothing_in_redis(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)
    before = redis_state(broker.client)

    collect(streams_of(app()), ["send_message", "never_used"])

    assert redis_state(broker.client) == before


def test_totals_are_the_sums_over_the_queues(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)
    broker.publish("mark_as_read", message(1))

    totals = collect(streams_of(app())).totals

    assert (totals.waiting, totals.pending, totals.delayed, totals.dead, totals.consumers) == (3, 1, 1, 1, 1)


def test_queue_chosen_by_its_exact_name_is_reported_before_its_first_message(app: MakeApp, redis_url: str) -> None:
    streams = streams_of(app(streams_queues=["send_message", "chat.*"]))

    [report] = collect(streams).queues

    assert report.state.queue == "send_message"
    assert report.state.length == 0
    assert report.alerts == ()


def test_queue_that_was_used_and_is_no_longer_chosen_is_still_reported(app: MakeApp, broker: StreamBroker) -> None:
    broker.publish("old", message(1))

    [new, old] = collect(streams_of(app(streams_queues=["new"]))).queues

    assert (new.state.queue, new.chosen) == ("new", True)
    assert (old.state.queue, old.state.waiting, old.chosen) == ("old", 1, False)


def test_queue_asked_for_by_a_wrong_name_is_a_warning(app: MakeApp, broker: StreamBroker) -> None:
    broker.publish("send_message", message(1))

    found = collect(streams_of(app()), ["send_mesage"])

    assert [(alert.queue, alert.name) for alert in found.alerts] == [("send_mesage", "never_used")]


def test_configured_thresholds_decide_about_alerts(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)

    found = collect(streams_of(app(streams_alerts={"backlog_critical": 2, "dead_warning": None})))

    assert found.level == "critical"
    assert [alert.name for alert in found.alerts] == ["backlog"]


def test_delayed_message_that_nobody_promotes_is_an_alert(app: MakeApp, broker: StreamBroker) -> None:
    broker.delay("send_message", message(1), due_ms=redis_now_ms(broker.client) - 20_000, member="late")

    [alert] = collect(streams_of(app())).alerts

    assert (alert.name, alert.level) == ("overdue", "warning")
    assert 20.0 <= alert.value < 50.0


def test_status_works_while_streams_are_switched_off(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)

    found = collect(streams_of(app(streams_enabled=False)))

    assert not found.enabled
    assert found.totals.waiting == 2


def test_status_of_an_app_that_is_not_installed_says_that_streams_are_off(app: MakeApp) -> None:
    project = app(installed=False)
    project.conf.streams_enabled = True

    assert not collect(streams_of(project)).enabled
    streams_of(project).reload()


def test_status_hides_the_password(app: MakeApp, client: RedisClient, redis_url: str) -> None:
    client.call("ACL", "SETUSER", "chat", "on", ">secret", "~*", "+@all")
    try:
        found = collect(streams_of(app(streams_url=redis_url.replace("redis://", "redis://chat:secret@"))))
    finally:
        client.call("ACL", "DELUSER", "chat")

    assert "secret" not in json.dumps(found.as_dict())
    assert redis_url.removeprefix("redis://") in found.server


def test_status_as_a_dictionary_is_json(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)

    found = json.loads(
        json.dumps(collect(streams_of(app(task_default_queue="send_message")), now=1_700_000_000.5).as_dict())
    )

    assert found["time"] == "2023-11-14T22:13:20.500+00:00"
    assert (found["enabled"], found["level"]) == (True, "warning")
    assert found["queues"][0]["queue"] == "send_message"
    assert (found["queues"][0]["length"], found["queues"][0]["lag"]) == (3, 2)
    assert found["totals"]["waiting"] == 2
    assert found["alerts"] == found["queues"][0]["alerts"]
    assert found["alerts"][0]["message"] == "1 dead letter (warning from 1)"


def test_status_of_a_redis_that_is_away_says_so(app: MakeApp) -> None:
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        collect(streams_of(app(streams_url=AWAY)))


# -- the command ------------------------------------------------------------------------------------------------------


def test_command_prints_a_line_for_each_queue_and_totals(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)
    broker.ensure_groups(["mark_as_read"])

    lines = run(app()).stdout.splitlines()

    cells = {line.split()[0]: line.split()[1:6] for line in lines if line}
    assert cells["queue"] == ["waiting", "pending", "delayed", "dead", "consumers"]
    assert cells["send_message"] == ["2", "1", "1", "1", "1"]
    assert cells["mark_as_read"] == ["0", "0", "0", "0", "0"]
    assert cells["total"] == ["2", "1", "1", "1", "1"]
    assert lines[-1] == "warning  send_message: 1 dead letter (warning from 1)"


def test_command_shows_the_named_queues_only(app: MakeApp, broker: StreamBroker) -> None:
    broker.ensure_groups(["send_message", "mark_as_read"])

    result = run(app(), "mark_as_read")

    assert "mark_as_read" in result.stdout
    assert "send_message" not in result.stdout


def test_command_prints_json(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)

    found = json.loads(run(app(task_default_queue="send_message"), "--json").stdout)

    assert [(queue["queue"], queue["waiting"]) for queue in found["queues"]] == [("send_message", 2)]


def test_exit_code_is_the_worst_alert(app: MakeApp, broker: StreamBroker) -> None:
    broker.ensure_groups(["fine"])
    seed(broker)
    broker.publish("unattended", message(1))

    assert run(app(), "fine").exit_code == EXIT_OK
    assert run(app(), "fine", "send_message").exit_code == EXIT_WARNING
    assert run(app(), "fine", "send_message", "unattended").exit_code == EXIT_CRITICAL


def test_redis_away_is_one_line_and_an_exit_code(app: MakeApp) -> None:
    result = run(app(streams_url=AWAY))

    assert result.exit_code == EXIT_UNAVAILABLE
    assert one_line(result).startswith("Error: Redis at redis://127.0.0.1:1/0 cannot be reached: ")


def test_wrong_password_is_one_line_and_an_exit_code(app: MakeApp, redis_url: str) -> None:
    result = run(app(streams_url=redis_url.replace("redis://", "redis://chat:wrong@")))

    assert result.exit_code == EXIT_UNAVAILABLE
    assert "refused the login" in one_line(result)
    assert "wrong@" not in one_line(result)


def test_broker_that_is_no_redis_is_one_line_and_an_exit_code(app: MakeApp) -> None:
    result = run(app(broker_url="amqp://guest:guest@localhost//"))

    assert result.exit_code == EXIT_CONFIG
    assert "streams_url" in one_line(result)


def test_unknown_setting_is_one_line_and_an_exit_code(app: MakeApp) -> None:
    result = run(app(streams_queus=["a"]))

    assert result.exit_code == EXIT_CONFIG
    assert one_line(result) == "Error: Unknown setting 'streams_queus'; did you mean 'streams_queues'?"


def test_help_lists_exit_codes_and_ends_with_examples(app: MakeApp) -> None:
    text = run(app(), "--help").stdout

    assert "Exit codes:\n    0   no alert\n    1   at least one warning\n" in text
    assert text.index("Exit codes:") < text.index("Examples:")
    assert text.rstrip().splitlines()[-1].strip().startswith("celery-streams -A proj status")


def test_watch_prints_a_line_of_json_for_each_look_until_ctrl_c(redis_url: str, broker: StreamBroker) -> None:
    script = (
        "import sys\n"
        "from celery import Celery\n"
        "from celery.bin.base import CLIContext\n"
        "from celery_streams.bin.status import status\n"
        "app = Celery('watched', broker=sys.argv[1])\n"
        "status.main(['--watch', '--json', '--interval', '0.1'], obj=CLIContext(app, True, None))\n"
    )
    command = [sys.executable, "-u", "-c", script, redis_url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            broker.publish("send_message", message(1))
            eventually(lambda: json.loads(process.stdout.readline())["totals"]["waiting"] == 1)  # type: ignore[union-attr]

            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=10)
        finally:
            process.kill()

    assert first["totals"]["waiting"] == 0
    assert process.returncode == 0
    assert errors == ""


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(None, "-"), (0.04, "0.0s"), (9.94, "9.9s"), (42.9, "42s"), (61, "1m 1s"), (7_260, "2h 1m"), (180_000, "2d 2h")],
)
def test_age_is_written_in_its_two_greatest_units(seconds: float | None, written: str) -> None:
    assert age(seconds) == written


# -- Prometheus -------------------------------------------------------------------------------------------------------


PARTS = ("stream", "delayed", "dead", "held")


def samples(app: Celery) -> dict[tuple[str, ...], float]:
    """Return all samples: (name, label values ...) -> value."""
    found: dict[tuple[str, ...], float] = {}
    for family in StreamsCollector(streams_of(app)).collect():
        for sample in family.samples:
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def test_metrics_are_the_figures_of_the_status(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)

    found = samples(app(task_default_queue="send_message"))

    age_s = found.pop(("celery_streams_queue_oldest_waiting_seconds", "send_message"))
    assert 0 <= age_s < 30
    assert 50 < found.pop(("celery_streams_queue_due_in_seconds", "send_message")) <= 60
    assert 0 < found.pop(("celery_streams_collect_seconds",)) < 30
    sizes = {part: found.pop(("celery_streams_queue_bytes", "send_message", part)) for part in PARTS}
    assert all(sizes[part] > 100 for part in ("stream", "delayed", "dead")), sizes
    assert sizes["held"] == 0
    added = found.pop(("celery_streams_queue_entries_added_total", "send_message"), None)
    said = broker.client.call("XINFO", "STREAM", broker.queue_keys("send_message").streams[0])
    assert added == (4 if b"entries-added" in said else None)  # from Redis 7 on
    assert found == {
        ("celery_streams_up",): 1,
        ("celery_streams_enabled",): 1,
        ("celery_streams_queue_waiting", "send_message"): 2,
        ("celery_streams_queue_pending", "send_message"): 1,
        ("celery_streams_queue_delayed", "send_message"): 1,
        ("celery_streams_queue_dead", "send_message"): 1,
        ("celery_streams_queue_held", "send_message", "rate"): 0,
        ("celery_streams_queue_held", "send_message", "concurrency"): 0,
        ("celery_streams_queue_held", "send_message", "mixed"): 0,
        ("celery_streams_queue_locks", "send_message"): 0,
        ("celery_streams_queue_consumers", "send_message"): 1,
        ("celery_streams_queue_workers", "send_message"): 0,
        ("celery_streams_queue_dead_workers", "send_message"): 0,
        ("celery_streams_queue_overdue_seconds", "send_message"): 0,
        ("celery_streams_queue_paused_seconds", "send_message"): 0,
        ("celery_streams_queue_paused", "send_message"): 0,
        ("celery_streams_queue_due_soon", "send_message"): 1,
        ("celery_streams_queue_backlog", "send_message"): 4,
        ("celery_streams_queue_share", "send_message"): 1.0,
        ("celery_streams_queue_listed", "send_message"): 0,
        ("celery_streams_queue_alerts", "send_message", "warning"): 1,
        ("celery_streams_queue_alerts", "send_message", "critical"): 0,
    }


def test_memory_of_queues_is_asked_for_once_a_minute_and_missing_where_that_is_forbidden(
    app: MakeApp, broker: StreamBroker, redis_url: str
) -> None:
    seed(broker)
    made = app(task_default_queue="send_message")
    samples(made)
    asked = broker.client.call("INFO", "commandstats")

    samples(made)

    def calls(said: bytes) -> list[bytes]:
        return [line.split(b",")[0] for line in said.splitlines() if line.startswith(b"cmdstat_memory")]

    assert calls(asked)
    assert calls(broker.client.call("INFO", "commandstats")) == calls(asked)
    broker.client.call("ACL", "SETUSER", "poor", "reset", "on", ">pw", "~*", "&*", "+@all", "-memory")
    try:
        found = samples(app(task_default_queue="send_message", streams_url=redis_url.replace("://", "://poor:pw@")))
    finally:
        broker.client.call("ACL", "DELUSER", "poor")
    assert found["celery_streams_up",] == 1
    assert not [labels for labels in found if labels[0] == "celery_streams_queue_bytes"]


def test_length_of_a_queue_is_also_named_as_celery_exporter_does_where_that_is_wanted(
    app: MakeApp, broker: StreamBroker
) -> None:
    seed(broker)
    broker.client.call("LPUSH", "send_message", "{}", "{}", "{}")
    name = ("celery_queue_length", "send_message")

    assert name not in samples(app(task_default_queue="send_message"))
    assert samples(app(task_default_queue="send_message", streams_celery_queue_length=True))[name] == 2 + 3


def test_metrics_of_a_redis_that_is_away_say_that_it_is_down(app: MakeApp) -> None:
    assert samples(app(streams_url=AWAY)) == {("celery_streams_up",): 0}


def test_metrics_have_the_text_format_of_prometheus(app: MakeApp, broker: StreamBroker) -> None:
    seed(broker)

    text = exposition(streams_of(app(task_default_queue="send_message"))).decode()

    assert '# TYPE celery_streams_queue_waiting gauge\ncelery_streams_queue_waiting{queue="send_message"} 2.0\n' in text


def test_missing_prometheus_client_is_a_clear_error() -> None:
    script = (
        "import sys\n"
        "sys.modules['prometheus_client'] = None\n"
        "try:\n"
        "    import celery_streams.monitoring.prometheus\n"
        "except ImportError as exc:\n"
        "    print(exc)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "pip install 'celery-streams[prometheus]'" in done.stdout


def test_wrong_setting_is_reported_by_collect(app: MakeApp, redis_url: str) -> None:
    bad: dict[str, Any] = {"backlog_warning": "many"}

    with pytest.raises(ConfigurationError, match="backlog_warning"):
        collect(streams_of(app(streams_alerts=bad)))

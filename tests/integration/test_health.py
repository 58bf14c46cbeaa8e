"""The probe, the report, the banner's words about settings, and one exit code for every usage error."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, _state
from celery.bin.base import CLIContext
from celery.utils.nodenames import gethostname
from click.testing import CliRunner, Result

from celery_streams import __version__, presence
from celery_streams.bin.health import health
from celery_streams.bin.report import report
from celery_streams.bin.root import celery_streams
from celery_streams.broker import StreamBroker
from celery_streams.conf import settings_in_force
from celery_streams.presence import ConsumerPresence, WorkerPresence
from tests.support.processes import ROOT, project_environment

MakeApp = Callable[..., Celery]

HOST = gethostname()


def run(command: Any, app: Celery, *words: str) -> Result:
    return CliRunner().invoke(command, list(words), obj=CLIContext(app=app, no_color=True, workdir=None))


def worker(
    node: str = f"celery@{HOST}",
    *,
    queues: tuple[str, ...] = ("jobs",),
    read: float | None = 1.0,
    serial: str = "a",
    visibility_timeout: float = 15.0,
) -> WorkerPresence:
    held = (ConsumerPresence(f"{node}/1.{serial}", None, read),)
    return WorkerPresence(f"{node}/0.{serial}", node, 1, "0.1.0", visibility_timeout, queues, held)


def silence(broker: StreamBroker, one: WorkerPresence, seconds: float) -> None:
    key = f"{broker.prefix}:workers"
    at, _, said = broker.client.call("HGET", key, one.worker).partition(b" ")
    broker.client.call("HSET", key, one.worker, b"%d %s" % (int(at) - int(seconds * 1000), said))


def test_worker_whose_heart_beats_and_that_reads_is_healthy(app: MakeApp, broker: StreamBroker) -> None:
    presence.beat(broker, worker(), forget=False)

    result = run(health, app())

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"celery@{HOST} reads jobs; last heartbeat 0.")


@pytest.mark.parametrize("seconds", [16.0, 3_000.0, -60.0])
def test_worker_whose_heart_stopped_is_not_healthy(app: MakeApp, broker: StreamBroker, seconds: float) -> None:
    one = worker()
    presence.beat(broker, one, forget=False)
    silence(broker, one, seconds)

    result = run(health, app())

    assert result.exit_code == 1
    assert "is dead" in result.stdout


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (worker(read=36.0), "does not read jobs"),
        (worker(queues=()), "reads no queue"),
    ],
)
def test_worker_that_beats_and_does_not_read_is_not_healthy(
    app: MakeApp, broker: StreamBroker, one: WorkerPresence, said: str
) -> None:
    presence.beat(broker, one, forget=False)

    result = run(health, app())

    assert result.exit_code == 1
    assert said in result.stdout


def test_worker_that_is_busy_is_healthy_however_long(app: MakeApp, broker: StreamBroker) -> None:
    presence.beat(broker, worker(read=None), forget=False)

    assert run(health, app()).exit_code == 0


def test_worker_that_was_never_there_or_stopped_is_not_healthy(app: MakeApp, broker: StreamBroker) -> None:
    presence.beat(broker, worker("celery@elsewhere"), forget=False)

    assert run(health, app()).exit_code == 1
    assert run(health, app(), "-n", "other@elsewhere").exit_code == 1


def test_node_name_is_written_as_the_worker_writes_it(app: MakeApp, broker: StreamBroker) -> None:
    presence.beat(broker, worker(f"one@{HOST}"), forget=False)
    presence.beat(broker, worker("two@elsewhere"), forget=False)

    for words in (("-n", "one@%h"), ("--hostname", f"one@{HOST}"), ("-n", "two@elsewhere"), ()):
        assert run(health, app(), *words).exit_code == 0, words


def test_worker_that_was_killed_and_started_again_is_healthy(app: MakeApp, broker: StreamBroker) -> None:
    dead = worker(serial="old")
    presence.beat(broker, dead, forget=False)
    silence(broker, dead, 60.0)
    presence.beat(broker, worker(serial="new"), forget=False)

    assert run(health, app()).exit_code == 0


def test_every_worker_of_the_host_must_be_healthy(app: MakeApp, broker: StreamBroker) -> None:
    presence.beat(broker, worker(f"one@{HOST}"), forget=False)
    two = worker(f"two@{HOST}")
    presence.beat(broker, two, forget=False)
    silence(broker, two, 60.0)

    found = run(health, app(), "--json")

    assert found.exit_code == 1
    assert {one["node"]: one["is_healthy"] for one in json.loads(found.stdout)} == {
        f"one@{HOST}": True,
        f"two@{HOST}": False,
    }


def test_redis_that_is_away_or_silent_is_an_exit_code_of_its_own_and_is_not_waited_for(app: MakeApp) -> None:
    # A listener that accepts nobody: the kernel takes the connection, and nothing is ever answered.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        began = time.monotonic()
        silent = run(health, app(streams_url=f"redis://127.0.0.1:{port}/0", broker_transport_options=SLOW))
        took = time.monotonic() - began
    away = run(health, app(streams_url=f"redis://127.0.0.1:{port}/0"))

    assert (away.exit_code, silent.exit_code) == (69, 69)
    assert [one.stderr.count("\n") for one in (away, silent)] == [1, 1]
    assert took < SLOW["socket_timeout"] / 2


#: What the project itself may have set: a probe has no time for it.
SLOW = {"socket_timeout": 60, "socket_connect_timeout": 60}


def test_probe_reads_one_key_and_broadcasts_nothing(app: MakeApp, broker: StreamBroker) -> None:
    for number in range(50):
        presence.beat(broker, worker(f"w{number}@{HOST}"), forget=False)
    broker.client.call("CONFIG", "RESETSTAT")

    assert run(health, app()).exit_code == 0

    told = broker.client.call("INFO", "commandstats").decode()
    sent = {line.partition(":")[0].removeprefix("cmdstat_") for line in told.splitlines() if "cmdstat_" in line}
    assert sent - {"config|resetstat", "info", "hello", "select", "auth", "client|setinfo"} <= {"time", "hgetall"}


PROBE = """
import sys
from celery_streams.__main__ import main
try:
    main()
finally:
    print("celery.bin.celery" in sys.modules)
"""


@pytest.mark.parametrize(
    ("words", "code", "whole"),
    [
        (("-A", "tests.proj", "health", "-n", "w@h"), 0, False),
        (("health", "-A", "tests.proj", "-n", "w@h"), 0, False),
        (("health", "--app=tests.proj", "-n", "w@h", "--json"), 0, False),
        (("-Atests.proj", "-q", "--no-color", "health", "--hostname=w@h"), 0, False),
        (("-A", "tests.proj", "health", "-n", "other@h"), 1, False),
        (("-A", "tests.proj", "health", "--no-such-option"), 2, False),
        # What is out of the ordinary.
        (("-A", "tests.proj", "--skip-checks", "health", "-n", "w@h"), 0, True),
        (("-A", "tests.nowhere", "health", "-n", "w@h"), 2, True),
        (("health", "-n", "w@h"), 2, True),
        (("-A", "tests.proj", "health", "--help"), 0, True),
    ],
)
def test_probe_does_not_load_the_whole_command_line(
    redis_url: str, broker: StreamBroker, words: tuple[str, ...], code: int, whole: bool
) -> None:
    # It has to live until the probe has started, which is seconds on a busy machine.
    presence.beat(broker, worker("w@h", visibility_timeout=600.0), forget=False)
    environment = project_environment(broker=redis_url, results=redis_url, ledger=redis_url, enabled=True)

    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == str(whole)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--no-such-option",),
        ("nonsense",),
        ("status", "--no-such-option"),
        ("status", "--interval", "soon"),
        ("health", "--timeout", "x"),
        ("dead", "nonsense"),
        ("dead", "list", "--older-than", "soon"),
        ("dead", "show", "q"),
        ("dead", "replay"),
        ("dead", "list", "-Q", "never_used"),
        ("migrate", "q"),
        ("migrate", "q", "--to", "moon"),
        ("migrate", "never_used", "--to", "lists"),
        ("doctor", "--accept", "nonsense"),
        ("worker", "--no-such-option"),
        ("inspect", "--no-such-option"),
    ],
)
@pytest.mark.parametrize("program", ["celery-streams", "celery"])
def test_every_usage_error_has_the_same_exit_code(
    app: MakeApp, broker: StreamBroker, words: tuple[str, ...], program: str
) -> None:
    from celery_streams.bin.commands import streams

    if program == "celery":
        if words[0] == "inspect":
            pytest.skip("a command of Celery's own program")
        result = run(streams, app(), *words)
    else:
        before = _state.default_app
        project = app()
        project.set_default()
        project.set_current()  # as manage.py does; the fixture puts the one before back
        try:
            result = CliRunner().invoke(celery_streams, list(words))
        finally:
            _state.default_app = before

    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output


def test_report_says_which_celery_streams_and_where_each_setting_comes_from(
    app: MakeApp, broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_STREAMS_ENABLED", "False")
    monkeypatch.setenv("CELERY_STREAMS_URL", "redis://chat:s3cret@127.0.0.1:1/2")

    result = run(report, app(streams_queues=["jobs"]))

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert any(line.startswith(f"celery-streams -> {__version__} in /") for line in lines)
    assert "streams_enabled -> 'False' (environment variable CELERY_STREAMS_ENABLED)" in lines
    assert "streams_queues -> ['jobs'] (app.conf or install())" in lines
    assert "streams_visibility_timeout -> 15.0 (default)" in lines
    assert "s3cret" not in result.stdout


def test_source_of_a_setting_has_the_name_that_was_written() -> None:
    project = Celery("namespaced", set_as_current=False)
    project.config_from_object({"CELERY_STREAMS_QUEUES": ["a"]}, namespace="CELERY")

    found = {one.name: (one.value, one.source) for one in settings_in_force(project.conf, {})}

    assert found["streams_queues"] == (["a"], "setting CELERY_STREAMS_QUEUES")
    assert found["streams_enabled"] == (False, "default")

"""What people mistype: one line that says what is wrong, the exit code of its kind, and nothing done."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import redis
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from kombu import Queue

from celery_streams import keys, streams_of
from celery_streams.bin.call import call
from celery_streams.bin.daemon_options import check_daemon_options
from celery_streams.bin.dead import dead
from celery_streams.bin.doctor import doctor
from celery_streams.bin.health import health
from celery_streams.bin.limits import limits
from celery_streams.bin.root import celery_streams
from celery_streams.bin.status import status
from celery_streams.bin.terminal import EXIT_CONFIG, EXIT_UNAVAILABLE, EXIT_USAGE
from celery_streams.bin.worker import worker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import CommandMissing, ServerIsReplica
from celery_streams.inspect import queue_status
from celery_streams.monitoring.doctor import diagnose
from celery_streams.monitoring.names import misspelt_queues
from celery_streams.redis_errors import translated
from celery_streams.worker.program import Worker

MakeApp = Callable[..., Celery]


def run(command: Any, app: Celery, *words: str) -> Result:
    return CliRunner().invoke(command, list(words), obj=CLIContext(app=app, no_color=True, workdir=None))


def last_line(result: Result) -> str:
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit), result.exception
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300", "-1"])
@pytest.mark.parametrize(
    ("command", "option"), [(health, "--timeout"), (doctor, "--timeout"), (status, "--interval")], ids=str
)
def test_time_that_nobody_can_wait_is_refused(app: MakeApp, command: click.Command, option: str, number: str) -> None:
    result = run(command, app(), option, number)

    assert result.exit_code == EXIT_USAGE
    assert last_line(result).startswith(f"Error: Invalid value for '{option}'")


@pytest.mark.parametrize("word", ["rate=", "concurrency=", "concurrency_per_key= "])
def test_limit_without_a_number_is_not_lifted(app: MakeApp, word: str) -> None:
    project = app()

    @project.task(name="t")
    def task() -> None: ...

    result = run(limits, project, "set", "t", word)

    assert result.exit_code == EXIT_USAGE
    assert "is a shell variable not set?" in last_line(result)
    assert "t" not in {one["task"] for one in json.loads(run(limits, project, "--json").stdout)["limits"]}


@pytest.mark.parametrize("words", [["replay"], ["replay", "--dry-run"], ["purge", "--yes"], ["purge", "--dry-run"]])
def test_dead_letter_that_is_named_and_not_there_is_said(app: MakeApp, words: list[str]) -> None:
    result = run(dead, app(), *words, "--id", "1718000000000-0", "--id", "other")

    assert result.exit_code == 1
    assert last_line(result) == "Error: No dead letter here has the id 1718000000000-0, other"


def test_doctor_says_that_it_was_asked_about_a_queue_nobody_knows(app: MakeApp) -> None:
    project: Any = app(streams_queues="*")
    project.send_task("t", queue="send_message")

    def names(*queues: str) -> list[str]:
        found = diagnose(streams_of(project), queues or None, ask_workers=False).findings
        return [one.what for one in found if one.check == "names" and one.level == "warning"]

    assert names("send_mesage") == ["no message, worker or setting knows this queue; did you mean 'send_message'?"]
    assert names("elsewhere") == ["no message, worker or setting knows this queue: is the name right?"]
    assert names("send_message") == names("celery") == names() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"executable": "/no/such/python"}, "--executable /no/such/python: that is no program"),
        ({"beat": True, "scheduler": "no_such_module"}, "--scheduler no_such_module: there is no such class"),
        ({"beat": True, "scheduler": "celery.beat:Shceduler"}, "--scheduler celery.beat:Shceduler: there is no"),
    ],
)
def test_what_would_end_a_detached_or_an_embedded_process_unseen_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        check_daemon_options(options)

    assert caught.value.message.startswith(said)


@pytest.mark.parametrize("scheduler", [None, "celery.beat:PersistentScheduler", "celery.beat.Scheduler"])
def test_scheduler_that_is_there_is_taken(scheduler: str | None) -> None:
    check_daemon_options({"beat": True, "scheduler": scheduler})


@pytest.mark.parametrize("option", ["--config", "--loader"])
def test_config_or_loader_that_is_not_there_is_one_line(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mistyped_project.py").write_text("from celery import Celery\napp = Celery(set_as_current=False)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for variable in ("CELERY_CONFIG_MODULE", "CELERY_LOADER"):
        monkeypatch.setenv(variable, "")  # which the command sets: put back after the test

    result = CliRunner().invoke(celery_streams, ["-A", "mistyped_project", option, "no_such_module", "status"])

    assert result.exit_code == EXIT_USAGE
    assert last_line(result) == f"Error: {option} no_such_module: there is no module 'no_such_module'"


# -- call and worker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--countdown", "--expires"])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300", "1e12"])
def test_call_refuses_a_time_that_no_clock_can_show(app: MakeApp, option: str, number: str) -> None:
    project: Any = app()

    result = run(call, project, "t", option, number)

    assert result.exit_code == EXIT_USAGE
    assert last_line(result).startswith(f"Error: Invalid value for '{option}': ")
    assert last_line(result).endswith("seconds from now is no time")
    assert streams_of(project).known_queues() == ["celery"]  # which the app has; nothing was used


@pytest.mark.parametrize(
    "words", [["--countdown", "60"], ["--expires", "60"], ["--expires", "2999-01-01T00:00:00"], []]
)
def test_call_takes_the_times_that_celery_takes(app: MakeApp, words: list[str]) -> None:
    project: Any = app()

    result = run(call, project, "t", *words)

    assert result.exit_code == 0, result.stderr
    status = queue_status(streams_of(project).broker, "celery")
    assert status.length + status.delayed == 1


def test_queue_of_a_worker_that_is_nearly_anothers_is_asked_about(app: MakeApp) -> None:
    project: Any = app(
        streams_queues="*",
        task_queues=[Queue("mail"), Queue("chat.eu")],
        task_default_queue="mail",
        task_routes={"send": "send_message"},
    )
    project.send_task("t", queue="tenant-1")
    streams = streams_of(project)

    def odd(*names: str) -> dict[str, str]:
        return misspelt_queues(streams, names)

    assert odd("send_mesage", "mail", "tenannt-1") == {"send_mesage": "send_message", "tenannt-1": "tenant-1"}
    assert odd("chat.ue", "reports") == {"chat.ue": "chat.eu"}
    # Numbers are what such names differ in; and a name that is right is, whatever else is there.
    assert odd("tenant-2", "tenant-11", "send_message", "tenant-1") == {}
    # A worker makes the name that it reads known, which makes it no better; a message does.
    streams.broker.client.call("SADD", keys.queues(streams.broker.prefix), "send_mesage")
    assert odd("send_mesage") == {"send_mesage": "send_message"}
    project.send_task("t", queue="send_mesage")
    assert odd("send_mesage") == {}


def test_name_that_only_streams_queues_has_is_what_was_meant(app: MakeApp) -> None:
    streams = streams_of(app(streams_queues=["send_message", "chat"]))

    assert misspelt_queues(streams, ["send_mesage", "chat"]) == {"send_mesage": "send_message"}
    assert misspelt_queues(streams, ["send_message", "chat"]) == {}


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_pool_whose_package_is_missing_is_a_wrong_option(tmp_path: Path, pool: str) -> None:
    (tmp_path / f"{pool}.py").write_text(f"raise ModuleNotFoundError('No module', name={pool!r})\n")

    done = subprocess.run(
        [sys.executable, "-m", "celery_streams", "-A", "no_such_project", "worker", "-P", pool],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (EXIT_USAGE, "")
    assert done.stderr == f"Error: -P {pool} needs the package {pool}, which is not installed\n"


def test_excluding_every_queue_says_so(app: MakeApp) -> None:
    made = Worker.__new__(Worker)  # no pool, no signal handlers
    made.app, made.hostname = app(streams_queues=["chat"]), "w@test"

    with pytest.raises(Exception, match="-X celery,chat leaves this worker no queue on streams"):
        made.setup_queues(None, ["celery", "chat"])


@pytest.mark.parametrize(("excluded", "said"), [("chat.*", "-X takes no patterns"), ("mail,tmp?", "-X tmp?: no queue")])
def test_pattern_that_would_exclude_no_queue_is_refused(app: MakeApp, excluded: str, said: str) -> None:
    result = run(worker, app(streams_queues="*"), "-Q", "chat.*,mail", "-X", excluded)

    assert result.exit_code == EXIT_USAGE
    assert said in last_line(result)


# -- the URL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["-5", "nan", "inf", "1e12", "soon"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("socket_timeout", "url"),
        ("socket_connect_timeout", "transport options"),
        ("broker_connection_timeout", "settings"),
    ],
)
def test_time_out_that_no_socket_can_wait_is_a_wrong_setting(
    app: MakeApp, redis_url: str, name: str, value: str, place: str
) -> None:
    if place == "url":
        project = app(streams_url=f"{redis_url}?{name}={value}")
    elif place == "settings":
        project = app(**{name: value})
    else:
        project = app(broker_transport_options={name: value})

    result = run(status, project)

    assert result.exit_code == EXIT_CONFIG
    assert f"{name} cannot be '{value}'" in last_line(result)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_tls_file_that_is_not_there_is_not_said_of_the_server(
    app: MakeApp, redis_server: EmbeddedRedis, option: str
) -> None:
    more = "&ssl_certfile=/no/such/file" if option == "ssl_keyfile" else ""
    result = run(status, app(streams_url=f"rediss://127.0.0.1:{redis_server.port}/0?{option}=/no/such/file{more}"))

    assert result.exit_code == EXIT_UNAVAILABLE
    assert "a file that its TLS options name is not there" in last_line(result)


@pytest.fixture
def other_server() -> Iterator[Callable[[bytes], int]]:
    """Start a server that answers whatever it is asked with these bytes, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(answer: bytes) -> int:
            def work() -> None:
                while True:
                    try:
                        connection, _ = listening.accept()
                    except OSError:
                        return
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(answer)

            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            threads.append(thread)
            return int(listening.getsockname()[1])

        threads: list[threading.Thread] = []
        yield serve
        listening.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "answer", "said"),
    [
        ("redis", b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is no Redis, or wants TLS: rediss://"),
        ("redis", b"<html>\r\n", "what listens there is no Redis, or wants TLS: rediss://"),
        ("rediss", b"-ERR Protocol error\r\n", "does it speak TLS? If not, use redis://"),
        ("redis", b"-NOAUTH Authentication required.\r\n", "it asks for a password"),
        (
            "redis",
            b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH\r\n",
            "it asks for a password",
        ),
    ],
)
def test_server_that_is_something_else_is_told_with_what_to_write(
    app: MakeApp, other_server: Callable[[bytes], int], scheme: str, answer: bytes, said: str
) -> None:
    result = run(status, app(streams_url=f"{scheme}://127.0.0.1:{other_server(answer)}/0"))

    assert result.exit_code == EXIT_UNAVAILABLE
    assert said in last_line(result)


def test_sentinels_that_do_not_answer_are_told_without_the_drivers_innards(app: MakeApp) -> None:
    result = run(status, app(streams_url="sentinel://127.0.0.1:1/0?master_name=mymaster"))

    assert result.exit_code == EXIT_UNAVAILABLE
    assert "No master found for 'mymaster'" in last_line(result)
    assert "<redis" not in last_line(result)


@pytest.mark.parametrize(("command", "is_told"), [("SMEMBERS", True), ("TIME", True), ("XAUTOCLAIM", False)])
def test_command_that_every_redis_has_and_a_sentinel_has_not_tells_one(command: str, is_told: bool) -> None:
    reply = redis.ResponseError(f"unknown command '{command}', with args beginning with: ")

    found = translated(reply, command, shown="redis://h", database=False, let_in=False)

    assert isinstance(found, CommandMissing)
    assert ("use sentinel://" in str(found)) is is_told


def test_redis_that_is_asked_as_a_sentinel_says_so(app: MakeApp, redis_server: EmbeddedRedis, redis_url: str) -> None:
    result = run(status, app(streams_url=f"sentinel://127.0.0.1:{redis_server.port}/0?master_name=mymaster"))

    assert result.exit_code == EXIT_UNAVAILABLE
    assert "that server is no Sentinel: use redis://" in last_line(result)


def test_worker_is_not_started_on_a_replica(client: RedisClient) -> None:
    client.call("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(ServerIsReplica, match="is a replica and takes no writes"):
            client.greet()
    finally:
        client.call("REPLICAOF", "NO", "ONE")
    client.greet()


def test_call_says_in_one_line_that_the_result_backend_is_away(app: MakeApp) -> None:
    policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "timeout": 0.1}
    project: Any = app(
        result_backend="redis://127.0.0.1:1/0", result_backend_transport_options={"retry_policy": policy}
    )

    result = run(call, project, "t")

    assert result.exit_code == EXIT_UNAVAILABLE
    assert last_line(result).startswith("Error: The result backend cannot be reached, and the task was not published: ")
    assert queue_status(streams_of(project).broker, "celery").length == 0

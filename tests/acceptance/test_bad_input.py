"""Bad input: one clear line that says what to do, an exit code, no traceback."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from tests.support.processes import ROOT


def run(environment, *words, program="celery_streams"):
    """Run ``celery-streams`` with these words and return what it did."""
    return subprocess.run(
        [sys.executable, "-m", program, *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def refusal(done):
    """Assert that the command refused in one clear line, and return that line."""
    said = done.stdout + done.stderr
    assert done.returncode not in (0, None), said
    assert done.returncode > 0, f"ended by signal {-done.returncode}"
    assert "Traceback" not in said, said
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1, said
    return lines[0]


@pytest.fixture
def free_port():
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def server_with_password():
    """A Redis that asks for a password."""
    with EmbeddedRedis() as server:
        client = RedisClient(server.url)
        client.call("CONFIG", "SET", "requirepass", "right")
        client.close()
        yield server


WORKER = ("worker", "-A", "tests.proj", "-l", "INFO", "-c", "1")


@pytest.mark.one_server("the server that is away is Celery's own broker")
def test_server_that_is_away_is_named(project, free_port):
    environment = project.environment(
        broker=f"redis://127.0.0.1:{free_port}/0", enabled=True, broker_connection_retry_on_startup=False
    )

    line = refusal(run(environment, *WORKER))

    assert f"127.0.0.1:{free_port}" in line


@pytest.mark.one_server("the wrong password stands in the broker's URL")
def test_wrong_password_is_told_and_not_shown(project, server_with_password):
    environment = project.environment(
        broker=f"redis://:verysecret@127.0.0.1:{server_with_password.port}/0",
        enabled=True,
        broker_connection_retry_on_startup=False,
    )

    done = run(environment, *WORKER)

    assert "password" in refusal(done).lower()
    assert "verysecret" not in done.stdout + done.stderr


@pytest.mark.one_server("the URL is that of the broker")
@pytest.mark.parametrize(
    "url", ["amqp://guest@localhost//", "ftp://localhost/0", "redis://localhost:notaport/0", "redis://localhost/notadb"]
)
def test_url_that_is_not_of_a_redis_is_told(project, url):
    environment = project.environment(broker=url, enabled=True, broker_connection_retry_on_startup=False)

    refusal(run(environment, *WORKER))


def test_unknown_setting_suggests_the_nearest(project):
    environment = project.environment(enabled=True, streams_visibilty_timeout=3)

    line = refusal(run(environment, *WORKER))

    assert "streams_visibilty_timeout" in line
    assert "streams_visibility_timeout" in line


def test_unknown_environment_variable_suggests_the_nearest(project):
    environment = {**project.environment(enabled=True), "CELERY_STREAMS_QUEUE": "a,b"}

    line = refusal(run(environment, *WORKER))

    assert "CELERY_STREAMS_QUEUES" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("streams_visibility_timeout", "soon"), ("streams_delivery_limit", 0), ("streams_queues", {"celery": 7})],
)
def test_wrong_value_names_its_setting(project, name, value):
    environment = project.environment(enabled=True, **{name: value})

    assert name in refusal(run(environment, *WORKER))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("task_time_limit", "soon", "task_time_limit"),
        ("task_soft_time_limit", -5, "task_soft_time_limit"),
        ("worker_max_tasks_per_child", "many", "worker_max_tasks_per_child"),
        ("worker_max_memory_per_child", "200MB", "worker_max_memory_per_child"),
        ("worker_concurrency", -3, "worker_concurrency"),
        ("worker_prefetch_multiplier", "lots", "worker_prefetch_multiplier"),
        ("worker_soft_shutdown_timeout", "later", "worker_soft_shutdown_timeout"),
        ("task_annotations", {"*": {"time_limit": "soon"}}, "time_limit of task"),
        ("task_annotations", {"tests.proj.actions.act": {"rate_limit": "often"}}, "tests.proj.actions.act"),
        ("broker_transport_options", {"priority_steps": "low,high"}, "priority_steps"),
        ("broker_transport_options", {"priority_steps": ["low"]}, "priority_steps"),
    ],
)
def test_limit_or_count_that_means_nothing_ends_the_worker_at_its_start(project, name, value, said):
    done = run(project.environment(enabled=True, **{name: value}), "worker", "-A", "tests.proj", "-l", "INFO")

    assert said in refusal(done)
    assert done.returncode == 78
    assert "ready." not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-Q", "send_message:0"), "send_message:0"),
        (("-Q", "celery,:x"), ":x"),
        (("-Q", ""), "-Q"),
        (("-Q", "celery,"), "-Q"),
        (("-Q", "send_message:2", "-c", "8"), "-c starts 8"),
        (("-Q", "a:2,b", "--autoscale", "4,2"), "--autoscale"),
        (("-Q", "a:2,b", "-X", "a"), "-X"),
        (("--autoscale", "1"), "--autoscale"),
        (("--autoscale", "0"), "--autoscale"),
        (("--autoscale", "-3,5"), "--autoscale"),
        (("--autoscale", "many,few"), "--autoscale"),
        (("--autoscale", "1,2,3"), "--autoscale"),
        (("--time-limit", "-5"), "--time-limit"),
        (("--soft-time-limit", "-0.5"), "--soft-time-limit"),
        (("--max-tasks-per-child", "-1"), "--max-tasks-per-child"),
        (("--max-tasks-per-child", "0"), "--max-tasks-per-child"),
        (("--max-memory-per-child", "-1"), "--max-memory-per-child"),
        (("--prefetch-multiplier", "-1"), "--prefetch-multiplier"),
        (("--heartbeat-interval", "-1"), "--heartbeat-interval"),
        (("-c", "-2"), "-c"),
        (("--pidfile", "/no/such/directory/w.pid"), "--pidfile"),
        (("--pidfile", "/tmp"), "--pidfile"),
        (("-f", "/no/such/directory/%n.log"), "--logfile"),
        (("-f", "/tmp"), "--logfile"),
        (("-S", "/no/such/directory/state"), "--statedb"),
        (("-B", "-s", "/no/such/directory/beat"), "--schedule"),
        (("--uid", "nobody-of-that-name"), "--uid"),
        (("--gid", "nobody-of-that-name"), "--gid"),
        (("--umask", "open"), "--umask"),
        (("--workdir", "/no/such/directory"), "--workdir"),
        (("-I", "no_such_module.tasks"), "-I"),
        (("-P", "custom"), "CELERY_CUSTOM_WORKER_POOL"),
    ],
)
def test_option_that_cannot_be_is_refused_in_one_line_that_names_it(project, options, said):
    words = ("worker", "-A", "tests.proj", "-l", "INFO", *options)
    done = run(project.environment(enabled=True), *words)

    assert said in refusal(done)
    assert done.returncode == 2
    assert "ready." not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.pools:TaskPool", "No module named 'nowhere'"),
        ("tests.proj.actions:NoSuchPool", "NoSuchPool"),
        ("celery.concurrency.base:BasePool", "use one of: asyncio, eventlet, gevent, prefork, solo, threads"),
    ],
)
def test_custom_pool_that_cannot_be_used_is_named_with_the_reason(project, path, said):
    environment = {**project.environment(enabled=True), "CELERY_CUSTOM_WORKER_POOL": path}

    line = refusal(run(environment, "worker", "-A", "tests.proj", "-P", "custom"))

    assert said in line
    assert "package" not in line
    assert path.partition(":")[0] in line


@pytest.mark.parametrize("command", [("worker",), ("purge", "-f")])
@pytest.mark.parametrize(
    ("settings", "code"),
    [({"streams_delivery_limit": 0}, 78), ({"streams_url": "redis://127.0.0.1:1/0"}, 69)],
)
def test_refusal_is_the_same_where_celerys_program_runs_the_command(project, command, settings, code):
    environment = project.environment(enabled=True, broker_connection_retry_on_startup=False, **settings)

    done = run(environment, "-A", "tests.proj", "streams", *command, program="celery")

    refusal(done)
    assert done.returncode == code


def test_missing_app_is_asked_for(project):
    line = refusal(run(project.environment(), "worker"))

    assert "-A" in line


def test_app_that_does_not_exist_is_named(project):
    line = refusal(run(project.environment(), "-A", "no_such_project", "worker"))

    assert "no_such_project" in line


def test_app_that_was_never_installed_is_told_how(project):
    line = refusal(run(project.environment(install=False), *WORKER))

    assert "celery_streams.install" in line


def test_unknown_command_and_option_are_refused(project):
    assert "wroker" in refusal(run(project.environment(), "-A", "tests.proj", "wroker"))
    assert "--no-such-option" in refusal(run(project.environment(), *WORKER, "--no-such-option"))


@pytest.mark.parametrize("queue", ["with space", "weird[x]*?", "grüße", "a{b}c", "with:colon", "-dash"])
def test_queue_name_with_odd_characters_works(project, queue):
    app = project.app()
    project.worker(queues=f"other,{queue}", concurrency=1)

    result = app.tasks["tests.proj.actions.act"].apply_async(("request",), queue=queue, countdown=0.1)

    assert result.get(timeout=10)["delivery_info"]["routing_key"] == queue

"""``manage.py celery_streams``: the command line of celery-streams, with the project's app."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest
from celery import Celery

from celery_streams.broker import StreamBroker
from celery_streams.inspect import queue_status
from tests.support.django_site import PROJECT, answer, environment, manage
from tests.support.eventually import eventually
from tests.support.processes import Program
from tests.support.redis_state import message

LATE = {"CHAT_IMPORTS_CELERY_LATER": "1"}


@pytest.mark.parametrize("layout", [{}, LATE], ids=["standard", "late"])
def test_command_uses_the_app_of_the_project(redis_url: str, broker: StreamBroker, layout: dict[str, str]) -> None:
    broker.publish("send_message", message(1))

    done = manage("celery_streams", "status", "--json", env=environment(redis_url, **layout))

    found = {queue["queue"]: queue["waiting"] for queue in json.loads(done.stdout)["queues"]}
    assert found == {"send_message": 1, "mark_as_read": 0}
    assert done.returncode == 2


def test_command_passes_help_on(redis_url: str) -> None:
    root = manage("celery_streams", "--help", env=environment(redis_url))
    status = manage("celery_streams", "status", "--help", env=environment(redis_url))
    asked = manage("help", "celery_streams", env=environment(redis_url))

    assert root.stdout.startswith("Usage: manage.py celery_streams [OPTIONS] ")
    assert status.stdout.startswith("Usage: manage.py celery_streams status [OPTIONS]")
    assert asked.stdout == root.stdout
    assert (root.returncode, status.returncode, asked.returncode) == (0, 0, 0)


#: Runs ``manage.py`` with each list of words in one process, and prints the list of what each has shown.
SHOWN = """
import contextlib, io, json, sys
from django.core.management import execute_from_command_line
shown = []
for words in json.loads({words!r}):
    sys.argv = ["manage.py", *words]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        execute_from_command_line(sys.argv)
    shown.append(output.getvalue())
print(json.dumps(shown))
"""


def test_examples_are_in_the_form_that_was_typed(redis_url: str) -> None:
    commands = [(), ("worker",), ("status",), ("dead",), ("dead", "replay"), ("purge",), ("forget",)]
    words = json.dumps([["celery_streams", *command, "--help"] for command in commands])

    shown = answer(SHOWN.format(words=words), env=environment(redis_url))

    for command, text in zip(commands, shown, strict=True):
        assert text.startswith(" ".join(("Usage: manage.py celery_streams", *command[:1]))), command
        assert "python manage.py celery_streams" in text, command
        assert "celery-streams -A proj" not in text, command


@pytest.mark.parametrize("words", [("--settings=chatsite.settings",), ("--settings", "chatsite.settings")])
def test_options_of_django_are_for_django(redis_url: str, words: tuple[str, ...]) -> None:
    env = environment(redis_url)
    del env["DJANGO_SETTINGS_MODULE"]

    done = manage("celery_streams", "status", *words, env=env)

    assert done.returncode == 0
    assert "mark_as_read" in done.stdout


def test_wrong_option_is_an_error_without_a_traceback(redis_url: str) -> None:
    done = manage("celery_streams", "status", "--no-such-option", env=environment(redis_url))

    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "Traceback" not in done.stderr


def test_redis_away_is_an_error_without_a_traceback(redis_url: str) -> None:
    done = manage("celery_streams", "status", env=environment("redis://127.0.0.1:1/0"))

    assert done.returncode == 69
    assert done.stderr.startswith("Error: Redis at redis://127.0.0.1:1/0 cannot be reached")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_pool_of_green_threads_is_refused_where_nothing_makes_threads_green(redis_url: str, pool: str) -> None:
    done = manage("celery_streams", "worker", "-P", pool, env=environment(redis_url))

    assert done.returncode == 78
    assert done.stderr.startswith(f"Error: {pool} has not patched the standard library")
    assert done.stderr.endswith(f"start the worker with celery-streams -A proj worker -P {pool}\n")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_call_command_runs_it(site: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    from django.core.management import call_command

    call_command("celery_streams", "status", "--json")

    assert json.loads(capsys.readouterr().out)["level"] == "ok"


def test_call_command_reports_another_exit_code(site: Celery, broker: StreamBroker) -> None:
    from django.core.management import CommandError, call_command

    broker.publish("send_message", message(1))

    with pytest.raises(CommandError, match="exit code 2") as raised:
        call_command("celery_streams", "status", "--json")

    assert raised.value.returncode == 2


def test_worker_runs_unchanged_tasks_with_the_database(redis_url: str, broker: StreamBroker, tmp_path: Path) -> None:
    database = tmp_path / "chat.sqlite3"
    env = environment(redis_url, CHAT_DATABASE=str(database))
    assert manage("migrate", "--run-syncdb", env=env).returncode == 0
    publish = (
        "import json, django; django.setup()\n"
        "from django.db import transaction\n"
        "from chat.models import Message\n"
        "from chat.tasks import send_message\n"
        "for number in range(20):\n"
        "    with transaction.atomic():\n"
        "        send_message.delay_on_commit(Message.objects.create(text=str(number)).pk)\n"
        "print(json.dumps(Message.objects.count()))"
    )
    assert answer(publish, env=env) == 20
    words = ["celery_streams", "worker", "-Q", "send_message,mark_as_read", "-c", "2", "-l", "INFO"]
    worker = Program([sys.executable, str(PROJECT / "manage.py"), *words], log=tmp_path / "worker.log", environment=env)

    def all_read() -> bool:
        assert worker.running, worker.log
        with sqlite3.connect(database, timeout=20) as connection:
            [count] = connection.execute("SELECT COUNT(*) FROM chat_message WHERE sent AND read").fetchone()
        connection.close()
        return bool(count == 20)

    worker.start()
    try:
        eventually(all_read, timeout=30, message="all messages are sent and read")
        eventually(lambda: all(queue_status(broker, name).length == 0 for name in ("send_message", "mark_as_read")))
        worker.process.terminate()  # type: ignore[union-attr]
        assert worker.wait(20) == 0, worker.log
    finally:
        worker.stop()
    assert "Traceback" not in worker.log

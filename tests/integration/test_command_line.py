"""What the command line is made of, without starting a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool as CeleryPrefork
from celery.exceptions import ImproperlyConfigured

from celery_streams.bin.daemon_options import check_daemon_options
from celery_streams.bin.worker import _share_children
from celery_streams.concurrency import POOLS, pool_for
from celery_streams.concurrency.prefork import TaskPool as Prefork
from celery_streams.exceptions import ConfigurationError
from celery_streams.worker.program import Worker, ineffective_settings


def python(code: str) -> str:
    """Run ``code`` in a process of its own and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_plugin_can_be_loaded_while_celerys_program_is_being_made() -> None:
    # Celery loads its plugins in the middle of the module that defines its program.
    found = python(
        "import sys, types; sys.modules['celery.bin.celery'] = types.ModuleType('celery.bin.celery');"
        "from celery_streams.bin.commands import streams;"
        "print(*[streams.get_command(None, name).name for name in streams.list_commands(None)])"
    )

    names = "adopt alerts dead demo doctor forget health limits migrate pause purge resume status worker"
    assert found.split() == names.split()


@pytest.mark.parametrize(
    ("program", "words", "imported"),
    [
        ("celery_streams", ["worker", "--help"], False),
        ("celery_streams", ["--version"], False),
        ("celery_streams", ["inspect", "--help"], False),
        ("celery", ["--version"], True),
    ],
)
def test_commands_of_other_packages_are_imported_for_celerys_program_alone(
    tmp_path: Path, program: str, words: list[str], imported: bool
) -> None:
    # Flower is such a package: half a second for each worker, and ours offers no command of it.
    (tmp_path / "other-1.0.dist-info").mkdir()
    (tmp_path / "other-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (tmp_path / "other-1.0.dist-info" / "entry_points.txt").write_text("[celery.commands]\nother = other:command\n")
    (tmp_path / "other.py").write_text(
        "import click\nfrom pathlib import Path\n\n"
        "Path(__file__).with_name('imported').touch()\ncommand = click.Command('other')\n"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))

    subprocess.run(
        [sys.executable, "-m", program, *words], env={**os.environ, "PYTHONPATH": path}, check=True, timeout=60
    )

    assert (tmp_path / "imported").exists() == imported


@pytest.mark.parametrize(
    ("program", "words", "drawn"),
    [
        ("celery_streams.bin.root", ["worker", "--help"], False),
        ("celery_streams.bin.root", ["amqp", "--help"], False),
        ("celery_streams.bin.root", ["status", "--help"], True),
        ("celery.bin.celery", ["-A", "tests.proj", "streams", "worker", "--help"], False),
        ("celery.bin.celery", ["-A", "tests.proj", "streams", "limits", "--help"], True),
    ],
)
def test_what_draws_tables_and_shells_is_imported_for_who_needs_it(program: str, words: list[str], drawn: bool) -> None:
    found = python(
        "import contextlib, io, sys; from celery_streams.celery_private import import_program_alone as alone\n"
        f"if {program != 'celery.bin.celery'}: alone()\n"
        f"from {program} import main; sys.argv[1:] = {words!r}\n"
        "with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit): main()\n"
        "print('Usage: ' in shown.getvalue(), 'rich' in sys.modules, 'prompt_toolkit' in sys.modules)"
    )

    assert found == f"True {drawn} {program == 'celery.bin.celery'}"


def test_shell_of_celerys_program_is_there_when_somebody_begins_it() -> None:
    # Celery's own shell ends with a TypeError where NO_COLOR is set.
    found = python(
        "import io, os, sys; os.environ.pop('NO_COLOR', None)\n"
        "from celery_streams.celery_private import import_program_alone as alone; alone()\n"
        "before = 'click_repl' in sys.modules; sys.stdin = io.StringIO('basic.ack --help\\n')\n"
        "from celery_streams.bin.root import celery_streams as root\n"
        "root.main(['-b', 'memory://', '-A', 'tests.proj', 'amqp', 'repl'], standalone_mode=False)\n"
        "print(before, 'click_repl' in sys.modules)"
    )

    assert "Usage: " in found
    assert found.splitlines()[-1] == "False True"


def test_tasks_of_the_demo_are_not_registered_in_other_apps() -> None:
    found = python(
        "import celery_streams.bin.root; from celery import Celery;"
        "app = Celery('mine'); app.finalize(); print(*[name for name in app.tasks if not name.startswith('celery.')])"
    )

    assert found == ""


def test_version_names_this_package_and_celery() -> None:
    found = python("from celery_streams.bin.root import main; main(['--version'])")

    assert found.startswith("celery-streams ")
    assert len(found.splitlines()) == 2


@pytest.mark.parametrize("words", [["worker", "--help"], ["dead", "-h"], ["dead", "list", "--help"]])
def test_help_of_a_command_needs_no_app(words: list[str]) -> None:
    found = python(f"from celery_streams.bin.root import main; main({words!r})")

    assert found.startswith(f"Usage: celery-streams {' '.join(words[:-1])} [OPTIONS]")


def test_help_behind_two_dashes_is_an_argument_and_no_question() -> None:
    found = python(
        "import sys; from celery_streams.bin.root import main; sys.exit = lambda code: print('exit', code);"
        "main(['dead', 'list', '--', '--help'])"
    )

    assert found == "exit 2"


def consumed(project: Celery, **options: Any) -> list[str]:
    """Return the queues that a worker with these options reads."""
    made = Worker.__new__(Worker)  # no pool, no signal handlers
    made.app, made.hostname = project, "w@test"
    made.setup_queues(options.get("include"), options.get("exclude"))
    return sorted(project.amqp.queues.consume_from)


def test_worker_without_names_reads_what_is_chosen_by_name_although_nobody_used_it(
    app: Callable[..., Celery],
) -> None:
    assert consumed(app(streams_queues=["send_message"])) == ["send_message"]
    assert consumed(app(streams_queues=["send_message", "celery"])) == ["celery", "send_message"]
    assert consumed(app(streams_queues=["send_message", "x"]), exclude=["x"]) == ["send_message"]
    assert consumed(app()) == ["celery"]


def test_worker_without_names_refuses_when_no_queue_is_on_streams(app: Callable[..., Celery]) -> None:
    with pytest.raises(ImproperlyConfigured, match="None of the queues celery is on streams"):
        consumed(app(streams_queues={"send_message": 0.0}))


@pytest.mark.parametrize("concurrency", ["auto", 0, None])
def test_children_per_queue_may_be_as_many_as_processors_where_c_says_so(
    monkeypatch: pytest.MonkeyPatch, concurrency: Any
) -> None:
    options = {"pool": Prefork, "queues": ["a", "b"], "concurrency": concurrency}

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    _share_children(options, {"a": 3}, given=True)

    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    with pytest.raises(click.UsageError, match="-Q asks for 4 children, but -c allows only 3"):
        _share_children(options, {"a": 3}, given=True)


def test_celerys_pool_is_exchanged_for_ours_and_ours_stays() -> None:
    assert pool_for(CeleryPrefork) is Prefork
    assert pool_for(Prefork) is Prefork


def test_pool_whose_package_is_not_installed_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Celerys:
        __module__ = "celery.concurrency.gevent"

    Celerys.__qualname__ = "TaskPool"
    monkeypatch.setitem(POOLS, "celery.concurrency.gevent:TaskPool", "a_package_that_nobody_has.pools:TaskPool")

    with pytest.raises(ConfigurationError, match="needs the package 'a_package_that_nobody_has'"):
        pool_for(Celerys)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, []),
        ({"worker_prefetch_multiplier": 1}, []),
        ({"worker_prefetch_multiplier": 8}, ["worker_prefetch_multiplier"]),
        ({"worker_direct": True, "task_acks_late": True}, ["worker_direct"]),
        ({"task_default_delivery_mode": 1}, ["task_default_delivery_mode"]),
        ({"worker_proc_alive_timeout": 30}, ["worker_proc_alive_timeout"]),
    ],
)
def test_settings_without_effect_are_named_when_they_are_set(
    app: Callable[..., Celery], settings: dict[str, Any], named: list[str]
) -> None:
    project = app(**settings)
    project.conf.get("timezone")  # the first look configures the app

    assert list(ineffective_settings(project.conf)) == named


@pytest.mark.parametrize(
    ("option", "number"),
    [("uid", "-1"), ("uid", "99999999999"), ("uid", "4294967294"), ("gid", "-1"), ("gid", "4294967295")],
)
def test_number_of_a_user_or_group_that_cannot_be_is_refused_in_one_line(option: str, number: str) -> None:
    with pytest.raises(click.UsageError, match=f"--{option} {number}: "):
        check_daemon_options({option: number})


@pytest.mark.parametrize("held", ["other words\n", "12 monkeys\n", None])
def test_pidfile_that_is_something_else_is_refused_and_left_alone(tmp_path: Path, held: str | None) -> None:
    """Celery takes it for a broken one and deletes it."""
    path = tmp_path / "kept"
    if held is None:
        os.mkfifo(path)
    else:
        path.write_text(held)

    with pytest.raises(click.UsageError, match="--pidfile"):
        check_daemon_options({"pidfile": os.fspath(path), "hostname": "w@h"})

    assert path.exists()


@pytest.mark.parametrize("held", ["", "4711\n", "47", "\0\0\0"])
def test_pidfile_that_was_left_behind_is_none_of_the_commands_concern(tmp_path: Path, held: str) -> None:
    path = tmp_path / "left"
    path.write_text(held)

    check_daemon_options({"pidfile": os.fspath(path), "hostname": "w@h"})

"""What a project may change about a worker's log: who sets it up, its formats, its files, and where print() goes."""

from __future__ import annotations

import re

import pytest

from tests.support.eventually import eventually


def ran(side, worker, text):
    """Have a worker run a task that logs and prints ``text``, and return its id."""
    result = side.act.apply_async(("log", text), queue=worker.queue)
    assert side.value(result) == text
    return result.id


def test_receiver_of_setup_logging_sets_the_log_up_alone(plain, another_worker, new_id):
    worker = another_worker(plain, "own-logging", imports=["tests.proj.logged"])

    task_id = ran(plain, worker, new_id)

    name = f"tests.proj.actions.act[{task_id}]"
    eventually(lambda: f"ours: INFO celery.app.trace: Task {name} succeeded in " in worker.log)
    assert f"ours: INFO celery.apps.worker: {worker.hostname} ready.\n" in worker.log
    assert f"ours: INFO celery.worker.strategy: Task {name} received\n" in worker.log
    assert f"ours: INFO tests.proj.actions: logged by the task: {new_id}\n" in worker.log
    assert f"\nprinted by the task: {new_id}\n" in worker.log
    assert not re.search(r": (INFO|WARNING)/", worker.log)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"worker_redirect_stdouts": True}, r"\[.*: WARNING/ForkPoolWorker-\d+\] printed by the task: "),
        ({"worker_redirect_stdouts_level": "ERROR"}, r"\[.*: ERROR/ForkPoolWorker-\d+\] printed by the task: "),
        ({"worker_redirect_stdouts": False}, "printed by the task: "),
    ],
    ids=["on", "level", "off"],
)
def test_what_a_task_prints_goes_where_the_settings_say(plain, another_worker, new_id, settings, expected):
    worker = another_worker(plain, "printing", **settings)

    ran(plain, worker, new_id)

    assert eventually(lambda: re.search(f"^{expected}{new_id}$", worker.log, re.MULTILINE))


def test_log_has_the_formats_of_the_settings(plain, another_worker, new_id):
    worker = another_worker(
        plain,
        "formats",
        worker_log_format="%(levelname)s|%(processName)s|%(message)s",
        worker_task_log_format="%(levelname)s|%(task_name)s|%(task_id)s|%(message)s",
    )

    task_id = ran(plain, worker, new_id)

    act = "tests.proj.actions.act"
    eventually(lambda: f"INFO|ForkPoolWorker-1|Task {act}[{task_id}] succeeded in " in worker.log)
    assert f"INFO|MainProcess|{worker.hostname} ready.\n" in worker.log
    assert f"INFO|{act}|{task_id}|logged by the task: {new_id}\n" in worker.log
    assert f"WARNING|ForkPoolWorker-1|printed by the task: {new_id}\n" in worker.log


@pytest.mark.parametrize(
    ("pattern", "of_the_parent", "of_the_child"),
    [
        ("%n-%i.log", "files-0.log", "files-1.log"),
        ("%n%I.log", "files.log", "files-1.log"),
        ("%p.log", "files@test.log", "files@test.log"),
    ],
)
def test_log_goes_to_the_files_that_the_command_line_names(
    plain, another_worker, new_id, tmp_path, pattern, of_the_parent, of_the_child
):
    parents, childs = tmp_path / "logs" / of_the_parent, tmp_path / "logs" / of_the_child
    parents.parent.mkdir()
    worker = another_worker(plain, "files", options=("-f", str(parents.parent / pattern)), wait=False)

    task_id = ran(plain, worker, new_id)

    done = f"Task tests.proj.actions.act[{task_id}] succeeded in "
    eventually(lambda: childs.exists() and done in childs.read_text())
    assert f"printed by the task: {new_id}\n" in childs.read_text()
    assert f"logged by the task: {new_id}\n" in childs.read_text()
    eventually(lambda: f"{worker.hostname} ready.\n" in parents.read_text())
    assert (done in parents.read_text()) is (parents == childs)
    assert {file.name for file in parents.parent.iterdir()} == {of_the_parent, of_the_child}
    assert done not in worker.log

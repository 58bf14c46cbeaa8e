"""beat, as a program of its own and inside the worker."""

from __future__ import annotations

import itertools
import json
import sys

import pytest

from tests.proj import settings
from tests.support.eventually import eventually
from tests.support.processes import Program, Worker


def scheduled(side, name):
    """Return this side's environment with a schedule that runs a task every 0.3 s, recognisable by ``name``."""
    values = json.loads(side.environment[settings.SETTINGS])
    values["beat_schedule"] = {
        "tick": {"task": "tests.proj.actions.act", "schedule": 0.3, "args": ["ok", name], "options": {"priority": 3}}
    }
    return {**side.environment, settings.SETTINGS: json.dumps(values)}


def ticks(side, name):
    """Wait for three executions of the scheduled task and return them."""

    def found():
        runs = [run for run in side.ledger.runs() if run.get("value") == name]
        return runs if len(runs) >= 3 else []

    return eventually(found, timeout=20)


@pytest.fixture
def beat(plain, new_id, tmp_path):
    """Celery's own beat program on this side's project."""
    program = Program(
        [
            *(sys.executable, "-m", "celery", "-A", "tests.proj", "beat", "-l", "INFO"),
            *("--pidfile=", "-s", str(tmp_path / "schedule")),
        ],
        log=tmp_path / "beat.log",
        environment=scheduled(plain, new_id),
    )
    program.start()
    yield program
    program.stop()


@pytest.fixture
def worker_with_beat(plain, new_id, tmp_path):
    """A worker of its own with an embedded beat."""
    queue = f"beat-{new_id}"
    worker = Worker(
        plain.program,
        name=f"beat-{plain.name}",
        queues=queue,
        directory=tmp_path,
        environment={**scheduled(plain, new_id), settings.QUEUE: queue},
        concurrency=1,
        options=("-B", "-s", str(tmp_path / "schedule")),
    )
    worker.start()
    worker.wait_ready()
    yield worker
    worker.stop()


def test_beat_publishes_on_its_schedule(plain, beat, new_id):
    runs = ticks(plain, new_id)

    gaps = [later["at"] - earlier["at"] for earlier, later in itertools.pairwise(runs)]
    assert len({run["id"] for run in runs}) == len(runs)
    assert sum(gaps) / len(gaps) >= 0.25


def test_worker_with_an_embedded_beat_runs_its_schedule(plain, worker_with_beat, new_id):
    runs = ticks(plain, new_id)

    assert {run["hostname"] for run in runs} == {worker_with_beat.hostname}

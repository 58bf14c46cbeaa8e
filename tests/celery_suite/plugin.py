"""plugin: Celery's integration tests against a worker process instead of a worker thread (``-p celery_suite.plugin``).

Only fixtures are replaced; the test files stay as they were released. It is loaded before Celery's
``t/integration/conftest.py``, which imports ``celery_session_worker`` from ``celery.contrib.pytest``: by then our own
fixture stands under that name.

``SUITE_MODE``
    ``streams``: ``celery-streams worker``, and every app that a fixture makes is installed. ``stock``: ``celery
    worker``. ``inprocess``: Celery's own harness, nothing replaced.
``SUITE_PART``
    I/N: only the Ith of N parts of what was collected.
``SUITE_RESULTS``, ``SUITE_LOGS``
    A file that gets a JSON line for each test, and the folder of the worker's logs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from . import bridge
from .installation import maybe_install
from .results import Results, short

MODE = os.environ.get("SUITE_MODE", "inprocess")

#: How the worker processes are started.
PROGRAMS = {"stock": ("celery",), "streams": ("celery_streams",)}

#: Tests that look into the worker's own process, which is another one here.
IN_PROCESS_ONLY = {
    "test_inspect.py::test_Inspect::test_stats": "asserts that the worker pid is the pid of the test process",
    "test_inspect.py::test_Inspect::test_hello_stamps_received_revoked_ids_locally": (
        "reads celery.worker.state.revoked of the test process"
    ),
}

#: Tests that mean nothing on an installed app.
STOCK_ONLY = {
    "test_backend_leak_in_fixture_teardown.py::test_fixture_teardown_releases_backend_connections": (
        "its app has the broker memory://, and streams need a Redis"
    ),
}

#: Tests that are not run in any mode.
NEVER = {"test_worker.py::test_run_worker": 'resolves the host name "foobar"'}

LEFT_OUT = {
    **NEVER,
    **(IN_PROCESS_ONLY if MODE in PROGRAMS else {}),
    **(STOCK_ONLY if MODE == "streams" else {}),
}

RESULTS = Results()


class ExternalWorker:
    """The worker process of a test session."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start the worker, and wait until it runs a task."""
        from celery.utils.nodenames import anon_nodename

        log = Path(os.environ["SUITE_LOGS"]) / f"worker-{os.getpid()}.log"
        path = (os.getcwd(), os.environ["PYTHONPATH"])
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", *PROGRAMS[MODE], "-A", "celery_suite.worker_app:app", "worker"),
                    # The name is the one that test_inspect computes; several tests fill the only child first.
                    *(
                        "-n",
                        anon_nodename(),
                        "-Q",
                        os.environ.get("SUITE_QUEUES", "celery"),
                        "-c",
                        "1",
                        "-P",
                        "prefork",
                    ),
                    *("-l", os.environ.get("WORKER_LOGLEVEL", "INFO")),
                ],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._wait_until_ready(log)

    def _wait_until_ready(self, log: Path, seconds: float = 30.0) -> None:
        from celery.contrib.testing.tasks import ping
        from celery.exceptions import TimeoutError
        from celery.result import allow_join_result

        assert self._process is not None
        deadline = time.monotonic() + seconds
        with allow_join_result():
            result = ping.delay()
            while True:
                if self._process.poll() is not None:
                    raise RuntimeError(f"The worker ended with exit code {self._process.returncode}: {log}")
                try:
                    assert result.get(timeout=1) == "pong"
                except TimeoutError:
                    if time.monotonic() > deadline:
                        raise
                else:
                    return

    def stop(self) -> None:
        """End the worker: politely, then coldly, then with SIGKILL."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, seconds in ((signal.SIGTERM, 8), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
            process.send_signal(number)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            return


WORKER = ExternalWorker()


class RevokedStamps(dict[str, Any]):
    """In the place of ``celery.worker.state.revoked_stamps``: a test that clears it wants the worker to forget them."""

    def clear(self) -> None:
        super().clear()
        if WORKER.running:
            from celery import current_app

            replies = current_app.control.broadcast("suite_clear_revoked_stamps", reply=True, timeout=2, limit=1)
            assert replies, "no reply to suite_clear_revoked_stamps"
            ((answer,),) = (reply.values() for reply in replies)
            self._wait_for_the_end_of(answer["ending"])

    @staticmethod
    def _wait_for_the_end_of(processes: list[int]) -> None:
        from celery import current_app

        deadline = time.monotonic() + 10.0
        while processes and time.monotonic() < deadline:
            stats = current_app.control.inspect(timeout=2, limit=1).stats() or {}
            if any(set(processes).isdisjoint(one["pool"]["processes"]) for one in stats.values()):
                return
            time.sleep(0.05)  # between two questions
        assert not processes, f"children that were told to stop still run: {processes}"


if MODE in PROGRAMS:
    import celery.contrib.pytest as celery_pytest

    @pytest.fixture(scope="session")
    def celery_session_worker(celery_session_app: Any, celery_includes: Any, celery_class_tasks: Any) -> Any:
        for module in celery_includes:
            celery_session_app.loader.import_task_module(module)
        for task in celery_class_tasks:
            celery_session_app.register_task(task)
        import celery.app.trace  # (a worker in this process would import it, and test_tasks looks at its texts)
        import celery.contrib.testing.tasks  # noqa: F401  (registers celery.ping)
        from celery.worker import state

        celery_session_app.finalize()
        celery_session_app.set_current()
        celery_session_app.set_default()
        celery_session_app.log.setup(loglevel=os.environ.get("WORKER_LOGLEVEL", "INFO"))
        state.successful_requests = bridge.SuccessfulRequests()
        state.revoked_stamps = RevokedStamps()
        bridge.install_test_side()
        try:
            WORKER.start()
            yield WORKER
        finally:
            WORKER.stop()

    celery_pytest.celery_session_worker = celery_session_worker

    @pytest.fixture(autouse=True)
    def join_will_not_block() -> None:
        """Undo what tests do that make a worker; Celery's own harness does so too."""
        from celery._state import _set_task_join_will_block

        _set_task_join_will_block(False)


if MODE == "streams":
    import celery.contrib.testing.app as testing_app

    _StockTestApp = testing_app.TestApp

    def _installed_test_app(*args: Any, **kwargs: Any) -> Any:
        return maybe_install(_StockTestApp(*args, **kwargs))

    testing_app.TestApp = _installed_test_app


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is named above, and keep the part that was asked for."""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        key = short(item.nodeid).partition("[")[0]
        if key in LEFT_OUT:
            RESULTS.leave_out(item.nodeid, LEFT_OUT[key])
            dropped.append(item)
            continue
        kept.append(item)
        # In one session an earlier test has started the worker; a chunk has no earlier test.
        names = getattr(item, "fixturenames", [])
        if "test_trace_log_arguments" in key and "celery_session_worker" not in names:
            names.insert(0, "celery_session_worker")
    index, _, parts = os.environ.get("SUITE_PART", "").partition("/")
    if parts:
        size = -(-len(kept) // int(parts))
        begin = int(index) * size
        dropped += [*kept[:begin], *kept[begin + size :]]
        kept = kept[begin : begin + size]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


pytest_runtest_logreport = RESULTS.pytest_runtest_logreport
pytest_sessionfinish = RESULTS.pytest_sessionfinish

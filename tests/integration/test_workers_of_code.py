"""Workers that code starts: Celery's start_worker and fixtures, app.Worker, app.worker_main()."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from celery import _state
from celery.contrib.testing.worker import start_worker
from celery.exceptions import ImproperlyConfigured

import celery_streams
from celery_streams import inspect as streams_inspect
from celery_streams.exceptions import ConfigurationError
from tests.support.eventually import eventually
from tests.support.processes import ROOT

# -- Celery's module for tests

#: A test suite of a user: Celery's own fixtures and start_worker, on an app that is on streams.
SUITE = """
    import logging

    import pytest
    from celery import Task, signals
    from celery.contrib.testing.worker import start_worker
    from celery.contrib.testing import tasks
    from celery.worker.consumer import Consumer

    import celery_streams
    from celery_streams import inspect as streams_inspect

    @pytest.fixture(scope="session")
    def celery_config():
        return {settings!r}

    @pytest.fixture(scope="session")
    def celery_worker_parameters():
        return {{"queues": ["celery", "other"]}}

    @pytest.fixture(scope="session", params=["solo", "threads", "prefork"])
    def celery_worker_pool(request):
        return request.param

    @pytest.fixture
    def celery_app(celery_app):
        return celery_streams.install(celery_app)

    @pytest.fixture(autouse=True)
    def add(celery_app):
        @celery_app.task(name="add")
        def add(x, y):
            return x + y
        return add

    def lengths(app):
        broker = celery_streams.streams_of(app).broker
        names = streams_inspect.known_queues(broker)
        return {{name: streams_inspect.queue_status(broker, name).length for name in names}}

    def test_fixture(celery_app, celery_worker, add):
        assert [add.apply_async((n, 1), queue=q).get(timeout=10) for n, q in enumerate(["celery", "other"])] == [1, 2]
        assert sorted(lengths(celery_app)) == {known!r}

    @pytest.mark.parametrize("pool", ["solo", "threads"])
    def test_start_worker(celery_app, add, pool):
        with start_worker(celery_app, pool=pool):
            assert add.delay(1, 2).get(timeout=10) == 3
        assert set(lengths(celery_app).values()) <= {{0}}

    @pytest.mark.parametrize("pool", ["solo", "threads"])
    def test_task_that_is_declared_while_the_worker_runs(celery_app, add, pool):
        with start_worker(celery_app, pool=pool, perform_ping_check=False) as worker:
            assert add.delay(1, 2).get(timeout=10) == 3

            @celery_app.task(name=f"late-{{pool}}")
            def late():
                return "ran"

            worker.consumer.update_strategies()
            assert late.delay().get(timeout=10) == "ran"

    @pytest.mark.parametrize("pool", ["solo", "threads"])
    def test_batch_whose_task_is_declared_while_the_worker_runs(celery_app, add, pool):
        seen = []

        class Pairs(Task):
            # As packages for batches do: whose pool it is, is noted when the strategy is made, for all tasks alike.
            def Strategy(self, task, app, consumer):
                self.kept, self.of = [], consumer
                return self.keep

            def keep(self, message, body, ack, reject, callbacks, **options):
                self.kept.append((message.headers["id"], ack))
                if len(self.kept) == 2:
                    self.of.pool.apply_async(
                        seen.append, ([one for one, _ in self.kept],), accept_callback=self.accepted, callback=bool
                    )

            def accepted(self, *_):
                for _, ack in self.kept:
                    ack(logging.getLogger("tests"), ())

        with start_worker(celery_app, pool=pool, concurrency=1, perform_ping_check=False) as worker:
            assert add.delay(1, 2).get(timeout=10) == 3

            @celery_app.task(base=Pairs, name=f"pair-{{pool}}")
            def pair():
                raise AssertionError("never called alone")

            worker.consumer.update_strategies()
            ids = [pair.delay().id for _ in range(2)]
            assert add.delay(1, 2).get(timeout=10) == 3
            assert seen == [ids]

    @pytest.mark.parametrize("pool", ["solo", "threads"])
    def test_receivers_tell_senders_apart_by_class(celery_app, add, pool):
        senders = []

        def receiver(sender, request, **fields):
            if request.name == "add":
                senders.append((isinstance(sender, Consumer), sender.hostname, request.name))

        signals.task_received.connect(receiver)
        with start_worker(celery_app, pool=pool, perform_ping_check=False) as worker:
            assert add.delay(1, 2).get(timeout=10) == 3
            assert senders == [(True, worker.hostname, "add")]

    def test_two_workers_one_after_the_other(celery_app, add):
        for n in range(2):
            with start_worker(celery_app, perform_ping_check=False):
                assert add.delay(n, 2).get(timeout=10) == n + 2
"""


@pytest.mark.parametrize("enabled", [True, False], ids=["streams", "lists"])
def test_suite_that_uses_celerys_fixtures_passes_on_streams_and_on_lists(redis_url, tmp_path, enabled):
    settings = {
        "broker_url": redis_url,
        "result_backend": redis_url.rpartition("/")[0] + "/1",
        "streams_enabled": enabled,
    }
    suite = SUITE.format(settings=settings, known=["celery", "other"] if enabled else [])
    (tmp_path / "test_suite.py").write_text(textwrap.dedent(suite))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "celery.contrib.pytest", "-p", "no:randomly", "test_suite.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed" in done.stdout


def environment():
    """Return the environment of a program that knows this repository and no setting."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "PYTEST_"))}
    return {**known, "C_FORCE_ROOT": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def embedded(app):
    """Make an app whose worker shall run inside the test; what Celery makes of the process is undone."""
    before = _state.default_app, _state._task_join_will_block
    yield app
    _state.default_app, _state._task_join_will_block = before


def test_embedded_worker_of_streams_and_lists_says_at_once_what_to_do(embedded):
    app = embedded(streams_queues=["chat"])

    with (
        pytest.raises(ImproperlyConfigured, match=r"on lists \(streams_queues\): celery\. Name its queues"),
        start_worker(app, queues=["chat", "celery"], loglevel="CRITICAL", perform_ping_check=False),
    ):
        pass


def test_embedded_worker_whose_time_limit_means_nothing_says_so_at_once(embedded):
    app = embedded(task_time_limit="soon")

    with (
        pytest.raises(
            ImproperlyConfigured, match=r"^task_time_limit \(--time-limit\): 'soon' is not a number of [a-z]+$"
        ),
        start_worker(app, loglevel="CRITICAL", perform_ping_check=False),
    ):
        pass


def test_embedded_worker_whose_broker_is_no_redis_says_so_at_once(embedded):
    app = embedded(broker_url="memory://")

    with (
        pytest.raises(ConfigurationError, match="streams need a Redis"),
        start_worker(app, loglevel="CRITICAL", perform_ping_check=False),
    ):
        pass


# -- programs

PROJECT = """
    import sys
    from celery import Celery
    import celery_streams

    app = Celery("own", broker={broker!r}, backend={results!r})
    celery_streams.install(app, queues={queues!r}, enabled=True)

    @app.task(name="whose")
    def whose():
        return whose.request.delivery_info["routing_key"]

    if __name__ == "__main__":
        {start}
"""


STARTS = {
    "worker_main": "app.worker_main(['worker', '-l', 'INFO', '-P', {pool!r}, '-c', '1', '-Q', {queue!r}])",
    "start": "app.start(['worker', '-l', 'INFO', '-P', {pool!r}, '-c', '1', '-Q', {queue!r}])",
    "Worker": "app.Worker(loglevel='INFO', pool={pool!r}, concurrency=1, queues=[{queue!r}]).start()",
    "subclass": "type('Mine', (app.Worker,), {{}})(loglevel='INFO', pool={pool!r}, queues={queue!r}).start()",
}


@pytest.fixture
def program(redis_url, tmp_path):
    """Run a project that starts its worker itself, and wait until it is ready."""
    running = []

    def run(start, *, queue="celery", pool="solo", queues="*"):
        urls = {"broker": redis_url, "results": redis_url.rpartition("/")[0] + "/1"}
        code = PROJECT.format(**urls, queues=queues, start=STARTS[start].format(pool=pool, queue=queue))
        path = tmp_path / "own.py"
        path.write_text(textwrap.dedent(code))
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(path)],
                env=environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.append(process)

        def ready():
            assert process.poll() is None, log.read_text()
            return " ready." in log.read_text()

        eventually(ready, timeout=30)
        return process, log

    yield run
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_worker_that_code_starts_reads_the_streams_of_its_queues(app, program, start, pool):
    process, log = program(start, pool=pool, queue="chat")
    publisher = app()

    result = publisher.send_task("whose", queue="chat")

    assert result.get(timeout=10) == "chat", log.read_text()
    process.terminate()
    assert process.wait(15) == 0
    assert streams_inspect.queue_status(celery_streams.streams_of(publisher).broker, "chat").consumers == 0
    assert "this worker reads Celery's list" not in log.read_text()


@pytest.mark.parametrize("start", ["worker_main", "Worker"])
def test_worker_that_code_starts_reads_the_lists_of_queues_that_are_on_lists(app, program, start):
    process, log = program(start, queue="mail", queues=["chat"])
    publisher = app(streams_queues=["chat"])

    assert publisher.send_task("whose", queue="mail").get(timeout=10) == "mail", log.read_text()

    process.terminate()
    assert process.wait(15) == 0

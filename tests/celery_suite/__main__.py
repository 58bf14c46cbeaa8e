"""``python -m tests.celery_suite``: run Celery's own tests with our worker in the place of Celery's; see README.md."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import click

from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from tests.celery_suite import chunks, summary
from tests.celery_suite.preparation import CELERY, ROOT, Prepared, copy_tests, prepare
from tests.support.cluster import cluster

HERE = Path(__file__).resolve().parent
BASELINE = HERE / "baseline.jsonl"

#: What of Celery's unit tests meets an installed app.
UNIT = (
    *("app", "tasks", "events", "bin/test_worker.py", "bin/test_control.py", "worker/test_request.py"),
    *("worker/test_strategy.py", "worker/test_consumer.py", "worker/test_control.py", "worker/test_revoke.py"),
    *("worker/test_state.py", "worker/test_bootsteps.py", "worker/test_components.py", "worker/test_heartbeat.py"),
    "worker/test_worker.py",
)

#: Celery's own acknowledgement: test_active and test_query_task expect that a running task is acknowledged.
STREAMS_ENVIRONMENT = {
    "CELERY_STREAMS_ENABLED": "1",
    "CELERY_STREAMS_ACKS_LATE": "0",
    "SUITE_INSTALL": "celery_streams:install",
}

_PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:pytest-celery", "-q")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("wanted", nargs=-1, metavar="[CHUNK]...")
@click.option("--quick", is_flag=True, help="About four minutes that touch everything.")
@click.option("--unit", is_flag=True, help="Celery's unit tests, on plain and on installed apps, instead.")
@click.option("--worker", type=click.Choice(["streams", "stock", "inprocess"]), default="streams", show_default=True,
              help="stock: Celery's worker, as a process; inprocess: Celery's own harness.")  # fmt: skip
@click.option("--on-cluster", is_flag=True, help="Broker and results on a Redis Cluster; for streams only.")
@click.option("--celery", default=CELERY, metavar="VERSION", show_default=True,
              help="Another release of Celery, with its own tests, in an environment of its own.")  # fmt: skip
@click.option("--beside-stock", is_flag=True,
              help="Run each chunk with Celery's worker first, and compare with that, test by test.")  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List the chunks of the whole suite and end.")
@click.option("--home", type=click.Path(path_type=Path), default=ROOT / ".celery-suite", envvar="CELERY_SUITE_HOME",
              help="Where the virtual environment and Celery's archive are.  [default: .celery-suite]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Results and logs.  [default: HOME/out-WORKER]")
def main(
    wanted: tuple[str, ...],
    quick: bool,
    unit: bool,
    worker: str,
    on_cluster: bool,
    celery: str,
    beside_stock: bool,
    listing: bool,
    home: Path,
    out: Path | None,
) -> None:
    """Run Celery's integration tests (35 minutes), or the given CHUNKs of them.

    A chunk is test_inspect.py, test_tasks.py::test_task_replacement, or with @I/N a part of one.
    """
    if beside_stock and (worker != "streams" or on_cluster or unit):
        raise click.UsageError("--beside-stock compares celery-streams worker on one Redis with Celery's worker.")
    prepared = prepare(home.resolve(), celery=celery, say=click.echo)
    if unit:
        sys.exit(run_unit(prepared, out=(out or prepared.home / "out-unit").resolve(), wanted=wanted))
    everything = chunks.all_chunks(prepared.source / "t" / "integration")
    if listing:
        click.echo("\n".join(map(str, everything)))
        return
    some = [chunks.parse(text) for text in (*wanted, *(chunks.QUICK if quick else ()))]
    place = out or prepared.home / f"out-{worker}{'-on-cluster' if on_cluster else ''}"
    run = Integration(prepared, worker=worker, out=place.resolve())
    beside = Integration(prepared, worker="stock", out=place.resolve() / "beside") if beside_stock else None
    if beside is not None:
        beside.run(some or everything)
    run.run(some or everything, on_cluster=on_cluster)
    if beside is not None:
        sys.exit(_report(run.results, beside.results, whole=True))
    recorded = worker == "streams" and celery == CELERY
    sys.exit(_report(run.results, BASELINE if recorded else None, whole=not some))


class Integration:
    """Celery's integration suite on a private Redis, a chunk at a time."""

    def __init__(self, prepared: Prepared, *, worker: str, out: Path) -> None:
        self.results = out / "results.jsonl"
        self._prepared = prepared
        self._worker = worker
        self._tree = out / "tree"
        self._logs = out / "logs"

    def run(self, parts: list[chunks.Chunk], *, on_cluster: bool = False) -> None:
        """Run the parts; a line for each says how it ended.

        Args:
            on_cluster: broker and results are on a Redis Cluster; what tests ask a Redis of their own, on one server.
        """
        copy_tests(self._prepared, self._tree)
        self._logs.mkdir(parents=True, exist_ok=True)
        self.results.unlink(missing_ok=True)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(EmbeddedRedis())
            client = stack.enter_context(contextlib.closing(RedisClient(server.url)))
            nodes = stack.enter_context(cluster()) if on_cluster else None
            for part in parts:
                client.call("FLUSHALL")
                if nodes is not None:
                    nodes.flush()
                self._run_one(part, server, server.url if nodes is None else nodes.url)
        click.echo(f"{time.monotonic() - began:.0f} s in all; logs in {self._logs}")

    def _run_one(self, part: chunks.Chunk, server: EmbeddedRedis, url: str) -> None:
        log = self._logs / part.log_name
        began = time.monotonic()
        with log.open("wb") as output:
            code = subprocess.run(
                [
                    str(self._prepared.python),
                    *_PYTEST,
                    "-p",
                    "celery_suite.plugin",
                    "-rA",
                    "--timeout=180",
                    f"t/integration/{part.what}",
                ],
                cwd=self._tree,
                env={**self._environment(server, url), "SUITE_PART": part.part},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        click.echo(f"{part!s:56} exit {code} {time.monotonic() - began:5.0f} s  {_last_line(log)}")

    def _environment(self, server: EmbeddedRedis, url: str) -> dict[str, str]:
        return _environment(
            self._prepared,
            SUITE_MODE=self._worker,
            SUITE_RESULTS=str(self.results),
            SUITE_LOGS=str(self._logs),
            TEST_BROKER=url,
            TEST_BACKEND=url,
            REDIS_HOST="127.0.0.1",
            REDIS_PORT=str(server.port),
            WORKER_LOGLEVEL=os.environ.get("WORKER_LOGLEVEL", "INFO"),
            **(STREAMS_ENVIRONMENT if self._worker == "streams" else {}),
        )


def run_unit(prepared: Prepared, *, out: Path, wanted: tuple[str, ...]) -> int:
    """Run Celery's unit tests twice, on apps as they are and on installed ones; no Redis is needed."""
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, install in (("plain", ""), ("installed", "celery_streams:install")):
        copy_tests(prepared, out / "tree")
        results[name] = out / f"{name}.jsonl"
        results[name].unlink(missing_ok=True)
        log = out / f"{name}.log"
        with log.open("wb") as output:
            subprocess.run(
                [
                    str(prepared.python),
                    *_PYTEST,
                    "-p",
                    "celery_suite.unit_plugin",
                    "--timeout=120",
                    *(f"t/unit/{path}" for path in wanted or UNIT),
                ],
                cwd=out / "tree",
                env=_environment(prepared, SUITE_INSTALL=install, SUITE_RESULTS=str(results[name])),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        click.echo(f"{name:10} {_last_line(log)}")
    return _report(results["installed"], results["plain"], whole=True)


def _environment(prepared: Prepared, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "SUITE_", "PROJ_"))}
    return {
        **kept,
        "PATH": f"{prepared.python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(ROOT))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "UTF-8",
        "C_FORCE_ROOT": "1",
        **more,
    }


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    return lines[-1] if lines else "nothing was printed"


def _report(results: Path, baseline: Path | None, *, whole: bool) -> int:
    rows = summary.load(results)
    for line in summary.describe(rows):
        click.echo(line)
    if not rows:
        click.echo("No test has run.")
        return 1
    if baseline is None:
        return 0
    before = summary.load(baseline)
    for line in summary.otherwise(rows, before):
        click.echo(f"  {line}")
    found = summary.worse(rows, before, whole=whole)
    click.echo(f"{len(found)} worse than {baseline}")
    for line in found:
        click.echo(f"  worse: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    main()

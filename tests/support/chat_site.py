"""The chat of ``examples/chat`` as it is started by ``make chat``, and people who use it over HTTP."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.eventually import eventually
from tests.support.processes import ROOT

START = ROOT / "examples" / "chat" / "start.py"

_ITEM = re.compile(
    r'<li id="m(\d+)" class="(in|out)"[^>]* data-task="([^"]*)" data-state="([^"]*)"><p class="text">(.*?)</p>'
)


class Chat:
    """The chat, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self._output = folder.parent / f"{folder.name}.out"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Chat:
        """Start it, and wait until it says its address."""
        environ = {
            **os.environ,
            "TMPDIR": str(self.folder),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            # A project's own settings in the environment must not reach it.
            "CELERY_STREAMS_ENABLED": "False",
            "DJANGO_SETTINGS_MODULE": "nowhere.settings",
        }
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(START), "--port", "0"], env=environ, stdout=output, stderr=subprocess.STDOUT
            )
        eventually(self._says_its_address, timeout=100, message=f"no address: {self.output}")
        return self

    def _says_its_address(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:  # no AssertionError, which would mean "not yet"
            raise RuntimeError(f"The chat ended:\n{self.output}")
        found = re.search(r"The chat: +(\S+)/\n(?s:.*)Ctrl-C ends it", self.output)
        self.address = found[1] if found else ""
        return bool(found)

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace")

    @property
    def logs(self) -> str:
        """What its processes have logged."""
        return "\n".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("*/*.log")))

    def children(self) -> list[int]:
        """Return the processes that it has started (Linux)."""
        assert self._process is not None
        pid = self._process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, as Ctrl-C does, and return the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def person(self, name: str = "ana") -> Person:
        """Return somebody who is logged in, in a browser of their own."""
        return Person(self.address, name)


@dataclass(frozen=True)
class Item:
    """A message as the page shows it."""

    number: int
    incoming: bool
    task_id: str
    state: str
    text: str


class Person:
    """Somebody who uses the chat over HTTP."""

    def __init__(self, address: str, name: str) -> None:
        self.address = address
        self._cookies = CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies))
        self.get("/")
        self.post("/people/", name=name)
        #: The conversation that is open, and the newest message of it then.
        self.here = int(self.get("/").url.rstrip("/").rpartition("/")[2])
        self.before = max([0, *(item.number for item in self.items(after=0))])

    def get(self, path: str, **headers: str) -> Answer:
        """Ask for a page."""
        return self._open(urllib.request.Request(self.address + path, headers=headers))

    def post(self, path: str, **fields: Any) -> Answer:
        """Press a button, as the page's script does."""
        token = next(cookie.value for cookie in self._cookies if cookie.name == "chat_csrf")
        headers = {"X-CSRFToken": token or "", "X-Requested-With": "fetch"}
        return self._open(urllib.request.Request(self.address + path, urlencode(fields).encode(), headers))

    def _open(self, request: urllib.request.Request) -> Answer:
        try:
            with self._opener.open(request, timeout=30) as response:
                return Answer(response.status, response.url, response.headers, response.read().decode())
        except urllib.error.HTTPError as exc:
            with exc:
                return Answer(exc.code, request.full_url, exc.headers, exc.read().decode())

    def switch(self, mode: str) -> None:
        """Change how the API behaves."""
        assert self.post("/api/", mode=mode).status == 200

    def send(self, text: str, *, times: int = 1) -> None:
        """Write a message."""
        assert self.post(f"/c/{self.here}/send/", text=text, times=times).status == 200

    def items(self, *, after: int | None = None) -> list[Item]:
        """Return the messages that came since this person is here."""
        found = self.get(f"/c/{self.here}/news/?after={self.before if after is None else after}").text
        return [
            Item(int(number), way == "in", task, state, html.unescape(re.sub(r"<span.*?</span>", "", text)))
            for number, way, task, state, text in _ITEM.findall(found)
        ]

    def sent(self) -> list[Item]:
        """Return those that this person wrote."""
        return [item for item in self.items() if not item.incoming]

    def state(self, item: Item) -> dict[str, Any]:
        """Ask the product what became of a message."""
        answer = self.get(f"/queues/tasks/{item.task_id}/")
        assert answer.status == 200, answer
        found: dict[str, Any] = json.loads(answer.text)
        return found


@dataclass(frozen=True)
class Answer:
    """What the server answered, redirects followed."""

    status: int
    url: str
    headers: Any
    text: str

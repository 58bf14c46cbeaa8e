"""Fixtures for tests in a real browser: the sample project as a server, and headless Chromium.

They need Playwright and a Chromium of the system (``make browser-tests``); without them they are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_streams.embedded import EmbeddedRedis
from django_integration.permissions import ACTIONS, LOOKS
from tests.support.django_site import PROJECT, answer, environment
from tests.support.eventually import eventually

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: axe-core, where ``make browser-tests`` put it.
AXE = Path(os.environ.get("AXE", Path(sys.prefix) / "axe.min.js"))

VIOLATIONS = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
    window.__violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""

_USERS = """
import json, sys, django
django.setup()
from django.core.management import call_command
call_command("migrate", run_syncdb=True, verbosity=0)
from django.contrib.auth.models import Permission, User
for name, permissions in json.loads(sys.stdin.read()).items():
    user = User.objects.create_user(name, password="pw", is_staff=True, is_superuser=permissions is None)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions or ()))
print("[]")
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make browser-tests")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the PATH")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def site_url(chromium: Any, redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the sample project, which serves; users root, viewer (may look), and one named as each action."""
    folder = tmp_path_factory.mktemp("site")
    env = environment(redis_server.url, CHAT_DATABASE=str(folder / "db.sqlite3"))
    users = json.dumps(
        {"root": None, "viewer": ["view_queues"], **{one: ["view_queues", one] for one in ACTIONS if one not in LOOKS}}
    )
    answer(f"import io, sys; sys.stdin = io.StringIO({users!r})\n{_USERS}", env=env)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [sys.executable, "manage.py", "runserver", "--noreload", "--insecure", f"127.0.0.1:{port}"]
    with log.open("wb") as output, subprocess.Popen(command, cwd=PROJECT, env=env, stdout=output, stderr=output) as run:
        try:
            eventually(lambda: listens(port), timeout=30, message="the server does not listen")
            yield f"http://127.0.0.1:{port}"
        finally:
            run.terminate()


class Visitor:
    """A person in a browser of their own."""

    def __init__(self, chromium: Any, url: str, name: str, **options: Any) -> None:
        self.url = url
        self.context = chromium.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.add_init_script(VIOLATIONS)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{url}/admin/login/")
        self.page.fill("#id_username", name)
        self.page.fill("#id_password", "pw")
        self.page.click("[type=submit]")

    def choose_dark(self) -> None:
        """Choose the admin's dark theme, whatever the system prefers."""
        self.page.evaluate("() => localStorage.setItem('theme', 'dark')")

    def visit(self, path: str) -> Any:
        """Go to a page of the site, and wait until its script is at work where scripts run."""
        self.page.goto(self.url + path)
        return self.page

    def violations(self) -> list[str]:
        """Return what the policy of the page forbade, and errors of its scripts."""
        return [*self.page.evaluate("() => window.__violations"), *self.errors]


@pytest.fixture
def visit(chromium: Any, site_url: str, redis_url: str) -> Iterator[Any]:
    """Makes visitors, by name."""
    visitors: list[Visitor] = []

    def make(name: str = "root", **options: Any) -> Visitor:
        visitors.append(Visitor(chromium, site_url, name, **options))
        return visitors[-1]

    yield make
    for visitor in visitors:
        visitor.context.close()

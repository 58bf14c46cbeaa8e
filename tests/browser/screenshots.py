"""``python -m tests.browser.screenshots``: draw the pictures of the docs anew, from the chat of ``make chat``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.browser.conftest import CHROMIUM
from tests.support.chat_site import Chat
from tests.support.eventually import eventually
from tests.support.processes import ROOT

DOCS = ROOT / "docs"


def main() -> None:
    """Start the chat, let something happen, and take the pictures."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        inner = Path(folder) / "chat"
        inner.mkdir()
        chat = Chat(inner).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            _draw(chat, browser)
        finally:
            browser.close()
            chat.stop()


def _draw(chat: Chat, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 1180, "height": 720})
    page = context.new_page()
    page.goto(chat.address)
    page.wait_for_selector("html[data-ready]")
    _write(page, "Good morning, Maria! Is the order ready?")
    page.wait_for_selector('.in[data-state="succeeded"]')
    _write(page, "Great, I will pick it up at five.")
    page.wait_for_selector('.out[data-state="succeeded"]:has-text("five")')
    page.click("#switch >> text=fails")
    _write(page, "Can you add two loaves of bread?")
    page.wait_for_selector("#alerts .alert", timeout=30_000)
    _write(page, "And a cake, please.")
    page.wait_for_selector('.out[data-state="retrying"]:has-text("cake")')
    page.click("#switch >> text=is slow")
    _write(page, "Thank you!")
    page.wait_for_selector('.out[data-state="running"]:has-text("Thank")')
    page.screenshot(path=DOCS / "chat.png")
    operator = context.new_page()
    operator.set_viewport_size({"width": 1180, "height": 510})
    operator.goto(page.eval_on_selector("text=Dashboard", "link => link.href"))

    def has_lines() -> bool:
        """Lines and rates take minutes in which something happens."""
        _write(page, "Hello?")
        operator.reload()
        return operator.locator("svg.cs-line").count() > 0 and "Per minute" in operator.inner_text("#cs-body")

    eventually(has_lines, timeout=400, interval=10, message="the dashboard has lines and rates")
    page.fill("#text", "Is anybody there?")
    page.click("text=× 20")
    eventually(lambda: page.locator('.out[data-state="queued"]').count() > 5, timeout=20)
    operator.reload()
    operator.wait_for_selector("#cs-body table")
    operator.screenshot(path=DOCS / "dashboard.png")
    operator.click("text=Dead letters")
    operator.click("#cs-body tbody a >> nth=0")
    operator.wait_for_selector("h2:has-text('Attempts')")
    operator.set_viewport_size({"width": 1180, "height": 560})
    operator.eval_on_selector("h2:has-text('Attempts')", "title => title.scrollIntoView()")
    operator.screenshot(path=DOCS / "message.png")


def _write(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector(f'.out:has-text("{text}")')


if __name__ == "__main__":
    main()

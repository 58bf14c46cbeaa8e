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
    page = browser.new_page(viewport={"width": 1180, "height": 720})
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
    page.fill("#text", "Is anybody there?")
    page.click("text=× 20")
    eventually(lambda: page.locator('.out[data-state="queued"]').count() > 5, timeout=20)
    page.click("text=Dashboard")
    page.wait_for_selector("#cs-body table")
    page.set_viewport_size({"width": 1180, "height": 510})
    page.screenshot(path=DOCS / "dashboard.png")


def _write(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector(f'.out:has-text("{text}")')


if __name__ == "__main__":
    main()

"""The chat in a real browser: what a person sees of each message, and that the page is for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import AXE, VIOLATIONS
from tests.support.chat_site import Chat

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def chat(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    running = Chat(tmp_path_factory.mktemp("chat")).start()
    yield running
    running.stop()


@pytest.fixture
def come(chat: Chat, chromium: Any) -> Iterator[Any]:
    """Makes pages of people who come to the chat, as they would by its address; the API works before and after."""
    contexts: list[Any] = []
    chat.person().switch("works")

    def make(**options: Any) -> Any:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.add_init_script(VIOLATIONS)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(chat.address)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]")
        return page

    yield make
    chat.person().switch("works")
    for context in contexts:
        context.close()


def violations(page: Any) -> list[str]:
    return [*page.evaluate("() => window.__violations"), *page.errors]


def write(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector(f'#messages > .out:has-text("{text}")')


def wait_for_state(page: Any, text: str, state: str) -> None:
    page.wait_for_selector(f'#messages > .out[data-state="{state}"]:has-text("{text}")')


def test_message_is_followed_until_it_is_sent_and_answered(come: Any) -> None:
    page = come()
    page.click("text=is slow")

    write(page, "A first message")
    wait_for_state(page, "A first message", "running")
    wait_for_state(page, "A first message", "succeeded")
    page.wait_for_selector('#messages > .in[data-state="succeeded"]')

    assert "sent" in page.inner_text(f'{"#messages > .out"}:has-text("A first message") .state')
    assert page.input_value("#text") == ""
    assert page.evaluate("() => document.activeElement.id") == "text"
    assert violations(page) == []


def test_failure_is_told_by_an_alert_and_sent_again_with_a_press(come: Any) -> None:
    page = come()
    page.click("#switch >> text=fails")
    write(page, "It will fail")

    wait_for_state(page, "It will fail", "retrying")
    page.wait_for_selector('#alerts[role="alert"] .alert:has-text("It will fail")', timeout=30_000)
    page.click("#switch >> text=works")
    page.click('#alerts .alert:has-text("It will fail") >> text=Send again')
    wait_for_state(page, "It will fail", "succeeded")

    assert page.locator('#alerts .alert:has-text("It will fail")').count() == 0
    assert violations(page) == []


def test_limit_of_the_provider_is_told(come: Any) -> None:
    page = come()
    page.click("text=answers 429")
    write(page, "Not so fast")

    wait_for_state(page, "Not so fast", "held")
    assert "held back, rate limit" in page.inner_text('#messages > .out:has-text("Not so fast") .state')
    page.click("#switch >> text=works")
    wait_for_state(page, "Not so fast", "succeeded")


@pytest.mark.parametrize(("button", "said"), [("a child", "Killed child"), ("the whole", "Killed worker")])
def test_killed_worker_is_a_button_and_the_message_is_sent(come: Any, button: str, said: str) -> None:
    page, text = come(), f"Kill {button}"
    page.click("text=is slow")
    write(page, text)
    wait_for_state(page, text, "running")

    page.click(f"#kill >> text={button}")
    page.wait_for_selector(f'#said:has-text("{said}")')
    page.click("#switch >> text=works")
    wait_for_state(page, text, "succeeded")

    assert violations(page) == []


def test_page_works_without_scripts(come: Any) -> None:
    page = come(java_script_enabled=False)
    page.fill("#text", "Without a script")
    page.click("#write .send")
    for _ in range(60):
        page.reload()
        if page.locator('.out[data-state="succeeded"]:has-text("Without a script")').count():
            break
        page.wait_for_timeout(100)
    assert "sent" in page.inner_text('.out:has-text("Without a script") .state')

    page.click("text=Mark as read")
    page.click("#switch >> text=fails")
    assert page.get_attribute("#switch >> text=fails", "aria-pressed") == "true"
    page.click("#switch >> text=works")
    page.click("text=fetch the picture again")
    assert "The picture is being fetched" in page.inner_text("main")


def test_dashboard_is_one_click_away_and_meets_the_policy(come: Any) -> None:
    page = come()

    page.click("text=Dashboard")
    page.wait_for_selector("text=send_message")

    assert page.locator("h1").inner_text() != ""
    assert violations(page) == []


def test_running_task_is_ended_on_the_dashboard(come: Any) -> None:
    page = come()
    page.click("text=is slow")
    chat = page.url

    def is_stopped(number: int) -> bool:
        """Stop one; on a busy machine it may be sent before the page is through."""
        page.goto(chat)
        page.wait_for_selector("html[data-ready]")
        write(page, f"Stop number {number}")
        wait_for_state(page, f"Stop number {number}", "running")
        page.click("text=Dashboard")
        page.click("text=Workers")
        page.click("text=Ask the workers")
        page.wait_for_url("**running=yes")
        if not page.locator('tr:has-text("send_message") >> text=Terminate').count():
            return False
        page.click('tr:has-text("send_message") >> text=Terminate')
        page.click("#cs-body .cs-actions button")
        page.wait_for_selector("text=The command was sent to all workers.")
        assert violations(page) == []
        page.goto(chat)
        over = f'#messages > .out:has-text("Stop number {number}"):is([data-state="revoked"], [data-state="succeeded"])'
        return bool(page.wait_for_selector(over).get_attribute("data-state") == "revoked")

    assert any(map(is_stopped, range(8)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_is_for_small_screens_and_for_who_reads_with_a_screen_reader(come: Any, scheme: str, width: int) -> None:
    page = come(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page.click("#switch >> text=fails")
    write(page, "W" * 200)
    page.wait_for_selector('#alerts .alert:has-text("WWWW")', timeout=30_000)

    wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    small = page.evaluate(
        "() => [...document.querySelectorAll('button, textarea')].filter((one) => one.offsetParent)"
        ".map((one) => [one.textContent, one.getBoundingClientRect()])"
        ".filter(([, box]) => box.height < 24 || box.right > innerWidth + 1).map(([text]) => text)"
    )
    page.click("#switch >> text=works")
    assert (wide, small) == (0, [])
    if not AXE.exists():
        pytest.skip("needs axe-core: make browser-tests")
    page.evaluate(AXE.read_text())
    found = page.evaluate(
        "() => axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})"
    )
    assert [(one["id"], node["html"]) for one in found["violations"] for node in one["nodes"]] == []
    assert violations(page) == []


def test_all_of_it_is_reached_by_keyboard(come: Any) -> None:
    page = come()
    page.evaluate("() => document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.textContent.trim()"))

    wanted = {"Dashboard", "log", "text", "Send", "works", "fails", "a child that is sending"}
    assert wanted <= set(reached)
    assert reached[0] == "To the message that you write"

"""The dashboard in a real browser: its script, its policy, keys, people without rights, and accessibility."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from celery_streams.broker import StreamBroker
from celery_streams.dead_letters import dead_letters
from celery_streams.message import encode
from celery_streams.tallies import Tally, mark
from tests.browser.conftest import AXE
from tests.support.eventually import eventually
from tests.support.redis_state import delivered, message

pytestmark = pytest.mark.slow

PLACES = ["/queues/", "/admin/celery_streams/dashboard/"]
#: By permission: where its button is, what stands on it, and what is said in the end.
ACTIONS = {
    "replay": ("dead/", "Replay all …", "1 dead letter replayed."),
    "purge": ("dead/", "Delete all …", "1 dead letter deleted."),
    "pause": ("", "Pause …", "The queue is paused."),
    "run_now": ("delayed/", "Run chosen now", "1 done."),
    "cancel": ("delayed/", "Cancel chosen", "1 done."),
    "revoke": ("workers/message/?queue=send_message&id=9", "Revoke", "The command was sent to all workers."),
    "terminate": ("workers/message/?queue=send_message&id=9", "Terminate", "The command was sent to all workers."),
}

HOSTILE = "<img src=x onerror=alert(1)>'\"\x1b[2J"


def bury(
    broker: StreamBroker, number: int, *, task: str = "chat.tasks.send_message", queue: str = "send_message"
) -> str:
    content = encode(
        {"task": task, "id": f"id-{number}"},
        {"content_type": "application/json", "content_encoding": "utf-8"},
        json.dumps([[number, HOSTILE], {}, {}]),
    )
    death = {"reason": "failed", "task": task, "task_id": f"id-{number}", "exception": f"ValueError({HOSTILE!r})"}
    broker.client.call("SADD", "celery-streams:queues", queue)
    fields = [*content.as_fields(), b"death", json.dumps(death).encode()]
    return str(broker.client.call("XADD", broker.queue_keys(queue).dead, "*", *fields).decode())


def hold(broker: StreamBroker) -> None:
    """Have a worker hold the message of task 9, which was lost with another one before."""
    lines = "1\t1700000000000\t1700000090000\tretried\tw@h/1.aa\tTimeout\n2\t\t1700000100000\tlost\tw@h/2.bb\t"
    retried = message(9).changed(history=json.dumps({"attempts": lines}).encode())
    delivered(broker, "send_message", "w@h/3.cc", retried)


def let_time_pass(broker: StreamBroker, queue: str) -> None:
    """Record and count a few minutes of a queue, in which a worker of another version began."""
    key, counted = broker.queue_keys(queue).history, broker.queue_keys(queue).tallies
    now = broker.clock_ms()
    for minutes in range(60, -1, -5):
        broker.client.call("XADD", key, f"{now - minutes * 60_000}-0", "w", minutes, "x", 1, "a", 7 * (60 - minutes))
    text = Tally(done=7, failed=2, waits={0.25: 9}, runs={1.0: 9}, wait_sum=1.8, run_sum=4.5)
    words = " ".join(f"{name}={number}" for name, number in text.names().items())
    for key, length in zip(counted, (60_000, 600_000), strict=True):
        for step in range(2, 5):
            broker.client.call("HSET", key, now // length - step, words)
    mark(broker, [queue], worker="w", version="0.2 <b>")


def left(broker: StreamBroker) -> list[str | None]:
    return [letter.task_id for letter in dead_letters(broker, "send_message")]


@pytest.mark.parametrize(
    ("place", "scheme"),
    [*((place, scheme) for place in PLACES for scheme in ("light", "dark")), (PLACES[1], "chosen")],
)
def test_no_page_meets_the_policy_nor_a_person_who_reads_with_a_screen_reader(
    visit: Any, broker: StreamBroker, place: str, scheme: str, tmp_path: Path
) -> None:
    one = bury(broker, 1)
    bury(broker, 2, task=HOSTILE, queue=HOSTILE)
    broker.delay("send_message", message(1), due_ms=2**42, member="1")
    hold(broker)
    let_time_pass(broker, "send_message")
    visitor = visit(color_scheme="light" if scheme == "chosen" else scheme)
    if scheme == "chosen":
        visitor.choose_dark()
    if not AXE.exists():
        pytest.skip("needs axe-core: make browser-tests")
    axe = AXE.read_text()

    for path in (
        "",
        "dead/",
        f"dead/message/?queue=send_message&id={one}",
        "delayed/",
        f"delayed/message/?key={b'send_message'.hex()}%20{b'1'.hex()}",
        "workers/message/?queue=send_message&id=9",
        "history/?queue=send_message",
        "history/?queue=send_message&span=day",
        "held/",
        "workers/",
        "alerts/?examine=yes",
    ):
        page = visitor.visit(place + path)
        assert (page.locator("svg.cs-chart polyline").count() > 1) is path.startswith("history/"), path
        if scheme == "chosen":
            assert page.get_attribute("html", "data-theme") == "dark"
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        page.evaluate(axe)
        found = page.evaluate(
            "() => axe.run('[data-cs]', {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})"
        )
        serious = [(one["id"], node["html"]) for one in found["violations"] for node in one["nodes"]]
        assert serious == [], (path, scheme)
        assert visitor.violations() == [], path


@pytest.mark.parametrize("place", PLACES)
def test_figures_follow_and_what_a_person_has_typed_and_chosen_stays(
    visit: Any, broker: StreamBroker, place: str
) -> None:
    bury(broker, 1)
    visitor = visit()
    page = visitor.visit(place + "dead/")
    page.check('input[name="key"]')
    page.fill("#f-exception", "typed")
    page.focus("#f-exception")

    bury(broker, 2)

    page.wait_for_function("() => document.querySelectorAll('#cs-body tbody tr').length === 2", timeout=20_000)
    assert page.input_value("#f-exception") == "typed"
    assert page.evaluate("() => document.activeElement.id") == "f-exception"
    chosen = page.eval_on_selector_all('input[name="key"]:checked', "boxes => boxes.map(box => box.value)")
    assert len(chosen) == 1
    assert visitor.violations() == []


def test_pause_stops_everything(visit: Any, broker: StreamBroker) -> None:
    visitor = visit()
    page = visitor.visit("/queues/dead/")
    asked: list[str] = []

    page.click("[data-cs-pause]")
    page.on("request", lambda request: asked.append(request.url))
    bury(broker, 1)
    page.wait_for_timeout(6_000)  # longer than the page waits between two looks

    assert [url for url in asked if "/static/" not in url] == []  # an icon comes when it comes
    assert "No dead letters." in page.inner_text("#cs-body")
    page.click("[data-cs-pause]")
    page.wait_for_function("() => !document.body.innerText.includes('No dead letters.')", timeout=10_000)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scripts", [True, False])
def test_all_that_match_are_replayed_with_and_without_scripts(
    visit: Any, broker: StreamBroker, place: str, scripts: bool
) -> None:
    for number in range(5):
        bury(broker, number, task="wanted" if number % 2 else "other")
    visitor = visit(java_script_enabled=scripts)
    page = visitor.visit(place + "dead/")

    page.fill("#f-task", "wanted")
    page.click(".cs-filter button")
    page.click("text=Replay all that match")
    assert "Replay 2 dead letters?" in page.inner_text("#cs-body")
    page.click(".cs-actions button")
    page.wait_for_selector("text=2 dead letters replayed.")

    assert left(broker) == ["id-0", "id-2", "id-4"]


def test_thousands_are_deleted_step_by_step_without_another_click(visit: Any, broker: StreamBroker) -> None:
    for number in range(12_000):
        bury(broker, number)
    page = visit().visit("/queues/dead/")

    page.click("text=Delete all")
    page.wait_for_selector("text=Delete 12000 dead letters for good?", timeout=30_000)
    page.click(".cs-actions button")
    page.wait_for_selector("text=12000 dead letters deleted.", timeout=60_000)

    assert left(broker) == []


def test_search_goes_on_by_itself_until_it_finds_something(visit: Any, broker: StreamBroker) -> None:
    for number in range(12_000):
        bury(broker, number, task="wanted" if number == 3 else "other")
    visitor = visit()
    page = visitor.visit("/queues/dead/")

    page.fill("#f-task", "wanted")
    page.click(".cs-filter button")
    page.wait_for_selector('#cs-body tbody >> text="wanted"', timeout=60_000)

    assert "Looked at 12000 of 12000." in page.inner_text("#cs-body")
    assert visitor.violations() == []
    page.go_back()
    assert page.url.endswith("/queues/dead/"), "nobody is sent on again by a step between"


@pytest.mark.parametrize("clipboard", [True, False])
def test_arguments_and_traceback_are_copied_with_and_without_https(
    visit: Any, broker: StreamBroker, clipboard: bool
) -> None:
    one = bury(broker, 2**63 + 1)
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    page = visitor.visit(f"/queues/dead/message/?queue=send_message&id={one}")
    page.evaluate("() => { window.read = navigator.clipboard.readText.bind(navigator.clipboard); }")
    if not clipboard:
        page.evaluate("() => Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    found = {}

    for name in ("arguments", "exception"):
        page.click(f"[data-cs-copy-of=cs-{name}]")
        page.wait_for_selector("text=Copied.")
        found[name] = page.evaluate("() => window.read()")
    page.click("[data-cs-copy]")
    found["id"] = page.evaluate("() => window.read()")

    assert f"[{2**63 + 1}, " in found["arguments"]
    assert "<img src=x onerror=alert(1)>" in found["arguments"]
    assert found["exception"].startswith("ValueError(")
    assert found["id"].strip() == f"id-{2**63 + 1}"
    assert visitor.violations() == []


def test_keys_move_choose_open_and_search(visit: Any, broker: StreamBroker) -> None:
    for number in range(3):
        bury(broker, number)
    page = visit().visit("/queues/dead/")
    page.wait_for_selector("[data-cs-help]:visible")

    for key in ("j", "j", "x"):
        page.keyboard.press(key)
    assert page.eval_on_selector_all('input[name="key"]', "boxes => boxes.map(box => box.checked)") == [
        False,
        True,
        False,
    ]
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.id") == "f-task"
    page.keyboard.type("jjj")
    assert page.input_value("#f-task") == "jjj"
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("?")
    assert page.is_visible("[data-cs-dialog]")


def test_buttons_are_for_those_who_may(visit: Any, broker: StreamBroker) -> None:
    bury(broker, 1)

    broker.delay("send_message", message(1), due_ms=2**42, member="1")
    hold(broker)

    for place in PLACES:
        visitor = visit("viewer")
        for path in ("", "dead/", "delayed/", ACTIONS["revoke"][0]):
            page = visitor.visit(place + path)
            assert page.locator("#cs-body form[method=post] button").count() == 0, path
        assert "hidden" in page.inner_text("#cs-body")


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_is_done_by_who_may_do_it_and_nothing_else(visit: Any, broker: StreamBroker, action: str) -> None:
    bury(broker, 1)
    broker.delay("send_message", message(1), due_ms=2**42, member="1")
    hold(broker)
    path, button, done = ACTIONS[action]
    visitor = visit(action)

    found: set[str] = set()
    for other in ("", "dead/", "delayed/", ACTIONS["revoke"][0]):
        page = visitor.visit("/admin/celery_streams/dashboard/" + other)
        found.update(page.locator("#cs-body form[method=post] button").all_inner_texts())
    assert found & {text for _, text, _ in ACTIONS.values()} == {button}

    page = visitor.visit("/admin/celery_streams/dashboard/" + path)
    if path == "delayed/":
        page.check('input[name="key"]')
    page.click(f"#cs-body >> text={button}")  # the name of who is logged in says the same
    page.click("#cs-body .cs-actions button")
    page.wait_for_selector(f"text={done}")
    assert visitor.violations() == []


def test_page_says_that_nobody_is_logged_in_any_more(visit: Any, broker: StreamBroker) -> None:
    visitor = visit()
    page = visitor.visit("/queues/")

    visitor.context.clear_cookies()

    page.wait_for_selector("text=You are logged out.", timeout=20_000)


@pytest.mark.parametrize("place", PLACES)
def test_pages_fit_on_a_phone(visit: Any, broker: StreamBroker, place: str) -> None:
    bury(broker, 1, task="a" * 120)
    hold(broker)
    visitor = visit(viewport={"width": 360, "height": 700})

    for path in ("", "dead/", "delayed/", "history/", "workers/", ACTIONS["revoke"][0]):
        page = visitor.visit(place + path)
        wide = page.evaluate(
            "() => document.querySelector('[data-cs]').scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, path


def test_ages_go_on_by_themselves(visit: Any, broker: StreamBroker) -> None:
    bury(broker, 1)
    page = visit().visit("/queues/dead/")
    page.wait_for_selector("[data-cs-pause]:visible")
    page.click("[data-cs-pause]")
    page.click("[data-cs-pause]")

    before = page.inner_text("time[data-cs-since]")

    assert eventually(lambda: page.inner_text("time[data-cs-since]") != before, timeout=20)


@pytest.mark.parametrize("place", PLACES)
def test_open_page_says_that_redis_is_away_and_its_buttons_go(visit: Any, broker: StreamBroker, place: str) -> None:
    bury(broker, 1)
    page = visit().visit(place + "dead/")
    page.wait_for_selector("text=Replay chosen")

    broker.client.call("CONFIG", "SET", "requirepass", "x")
    try:
        broker.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        page.wait_for_selector("text=Nothing can be done to them until Redis is back.", timeout=20_000)
        assert page.locator("text=Replay chosen").count() == 0
        assert page.locator("#cs-body tbody tr").count() == 1
    finally:
        broker.client.call("CONFIG", "SET", "requirepass", "")
    page.wait_for_selector("text=Replay chosen", timeout=20_000)


@pytest.mark.parametrize("place", PLACES)
def test_open_page_of_a_message_says_that_it_is_there_no_more(visit: Any, broker: StreamBroker, place: str) -> None:
    hold(broker)
    visitor = visit()
    page = visitor.visit(place + ACTIONS["revoke"][0])
    assert "lost" not in page.inner_text("#cs-body")
    assert "its worker disappeared" in page.inner_text("#cs-body")

    for entry in broker.held_by("w@h/3.cc", broker.streams(["send_message"])):
        broker.ack("w@h/3.cc", [entry])

    page.wait_for_selector("text=No worker holds the message of this task", timeout=20_000)
    assert visitor.violations() == []

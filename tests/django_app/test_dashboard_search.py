"""A search of dead letters that takes several steps, goes by family, or needs arguments that are hidden."""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest
from celery import Celery
from django.test import Client, override_settings

from celery_streams import dead_search
from celery_streams.broker import StreamBroker
from tests.django_app.test_dashboard import PLACES, bury, confirm, form_of, left, person, text_of


@pytest.fixture
def admin(site: Celery) -> Client:
    return person(superuser=True)


@pytest.fixture
def steps_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    search = dead_search.search
    monkeypatch.setattr("django_integration.dashboard.dead.search", lambda *a, **o: search(*a, **{"look_at": 10, **o}))


def forms_of(page: str) -> list[dict[str, list[str]]]:
    return [form_of(form) for form in re.findall(r"<form.*?</form>", page, re.DOTALL)]


def going_on(page: str) -> str:
    """Return the address of the form that a script sends by itself; empty without one."""
    form = re.search(r"<form method=\"get\"[^>]*data-cs-go-on.*?</form>", page, re.DOTALL)
    return "?" + urlencode(form_of(form[0]), doseq=True) if form else ""


@pytest.mark.usefixtures("steps_of_ten")
@pytest.mark.parametrize("place", PLACES)
def test_search_goes_on_until_something_is_found_and_says_how_far_it_is(
    admin: Client, broker: StreamBroker, place: str
) -> None:
    for number in range(35):
        bury(broker, number, task="wanted" if number == 8 else "other")
    address, said = "?task=wanted", []

    for _ in range(5):
        page = admin.get(place + "dead/" + address).content.decode()
        said.append(re.findall(r"Looked at \d+ of \d+", text_of(page))[0])
        address = going_on(page)
        if not address:
            break

    assert said == ["Looked at 10 of 35", "Looked at 20 of 35", "Looked at 30 of 35"]
    assert "id-8" in page
    older = unescape(re.findall(r'href="([^"]*)" rel="next"', page)[0])
    last = admin.get(older).content.decode()
    assert "Looked at 35 of 35" in last
    assert "Nothing matches." in last
    assert going_on(last) == ""


@pytest.mark.usefixtures("steps_of_ten")
def test_search_can_be_stopped_and_gone_on_with(admin: Client, broker: StreamBroker) -> None:
    for number in range(25):
        bury(broker, number)
    second = admin.get("/queues/dead/" + going_on(admin.get("/queues/dead/?task=no").content.decode()))

    stop = unescape(re.findall(r'href="([^"]*)">Stop here', second.content.decode())[0])
    stopped = admin.get(stop).content.decode()

    assert going_on(stopped) == ""
    assert "Looked at 20 of 25" in stopped
    assert "Continue searching" in stopped
    assert "Stop here" not in stopped


@pytest.mark.parametrize(
    "looked", ["-1", "x", "9" * 30, "٣"], ids=["less than none", "no number", "more than there are", "other digits"]
)
def test_count_that_was_not_made_here_does_no_harm(admin: Client, broker: StreamBroker, looked: str) -> None:
    bury(broker, 1)

    page = admin.get("/queues/dead/", {"looked": looked, "before": f"{2**63}-0 x"}).content.decode()

    assert "Looked at 1 of 1." in page


@pytest.mark.parametrize("wanted", ["the-root", "the-parent", "the-group", "id-2"])
def test_family_is_found_and_replayed_as_one(admin: Client, broker: StreamBroker, wanted: str) -> None:
    bury(broker, 1, args=["the-root", "the-parent", "the-group", "id-2"])
    one = bury(broker, 2, root_id="the-root", parent_id="the-parent", group="the-group")
    bury(broker, 3, root_id="the-root", parent_id="the-parent", group="the-group")
    bury(broker, 4, root_id=["the-root"], parent_id=7, group={"the-group": 1})
    broker.client.call("XADD", broker.queue_keys("send_message").dead, "*", "odd", "the-root")
    letter = admin.get("/queues/dead/message/", {"queue": "send_message", "id": one}).content.decode()
    links = [unescape(link) for link in re.findall(r'href="([^"]*family=[^"]*)"', letter)]
    assert [link.rpartition("=")[2] for link in links] == ["the-parent", "the-root", "the-group"]

    page = admin.get(f"/queues/dead/?family={wanted}").content.decode()
    assert page == page.replace("id-1", "") if wanted != "id-2" else "id-2" in page
    confirm(admin, "/queues/", "dead/act/", verb="purge", scope="matching", family=wanted)

    assert left(broker) == ["id-1", *(["id-3"] if wanted == "id-2" else []), "id-4", None]


@pytest.mark.parametrize("word", ["a b", "ü", 'say "so"'])
def test_family_of_any_name_is_found(admin: Client, broker: StreamBroker, word: str) -> None:
    bury(broker, 1, group=word)

    assert "id-1" in admin.get("/queues/dead/", {"family": word}).content.decode()


def test_what_is_hidden_until_asked_for_can_be_searched_then_and_replayed(admin: Client, broker: StreamBroker) -> None:
    for number, word in enumerate(("needle", "hay")):
        bury(broker, number, args=[word])

    with override_settings(CELERY_STREAMS_HIDE_ARGUMENTS=True):
        search, *others = forms_of(admin.get("/queues/dead/", {"arguments": "shown"}).content.decode())[1:]
        page = admin.get("/queues/dead/", {**search, "text": "needle"}).content.decode()
        *_, matching = forms_of(page)
        done: Any = confirm(admin, "/queues/", "dead/act/", **matching, verb="purge")
        shown = admin.get(done.headers["Location"]).content.decode()

    assert all(form["arguments"] == ["shown"] for form in others)
    assert "needle" in page
    assert left(broker) == ["id-1"]
    assert "1 dead letter deleted." in shown
    assert "Arguments are hidden" not in shown


def test_arguments_that_are_cut_say_so_where_they_are_shown_in_full(admin: Client, broker: StreamBroker) -> None:
    one = bury(broker, 1, args=["x" * 300_000])
    two = bury(broker, 2, args=["x" * 1_000])

    pages = [
        admin.get("/queues/dead/message/", {"queue": "send_message", "id": which}).content.decode()
        for which in (one, two)
    ]

    assert "(300004 characters in all)" in pages[0]
    assert "characters in all" not in pages[1]

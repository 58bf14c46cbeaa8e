"""The dashboard: each page in both places, each action by people with and without its permission, hostile content."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from django.test import Client, override_settings

from celery_streams import streams_of
from celery_streams.broker import StreamBroker
from celery_streams.dead_letters import dead_letters
from celery_streams.lanes import admit
from celery_streams.limits import Limits, lane_of
from celery_streams.locks import Lock, publish_unique
from celery_streams.message import encode
from celery_streams.pauses import paused_queues
from tests.support.redis_state import delivered, message

AWAY = "redis://:secret@127.0.0.1:1/0"

#: The two places where the pages live.
PLACES = ["/queues/", "/admin/celery_streams/dashboard/"]

PAGES = ["", "dead/", "delayed/", "held/", "history/", "workers/", "alerts/"]

#: The queue send_message in the forms.
SEND = b"send_message".hex()

HOSTILE = "<script>alert(1)</script>\x1b[2J'\"&\u202e"


def person(*permissions: str, superuser: bool = False, staff: bool = True) -> Client:
    from django.contrib.auth.models import Permission, User

    user = User.objects.create(username=f"p{User.objects.count()}", is_staff=staff, is_superuser=superuser)
    for name in permissions:
        user.user_permissions.add(Permission.objects.get(codename=name, content_type__app_label="celery_streams"))
    client = Client(enforce_csrf_checks=False)
    client.force_login(user)
    return client


@pytest.fixture
def admin(site: Celery) -> Client:
    return person(superuser=True)


def look_of(**about: Any) -> Any:
    """Return a look at the first page by a person."""
    from django.test import RequestFactory

    from django_integration.dashboard.look import Look
    from django_integration.dashboard.place import Place

    request = RequestFactory().get("/queues/")
    request.user = user_of(person(**about))
    return Look(request, Place("celery_streams:"), "queues")


def user_of(client: Client) -> Any:
    from django.contrib.auth.models import User

    return User.objects.get(pk=client.session["_auth_user_id"])


def bury(
    broker: StreamBroker,
    number: int,
    *,
    queue: str = "send_message",
    task: str = "chat.tasks.send_message",
    args: Any = None,
    exception: str = "ValueError('no')",
    reason: str = "failed",
    **headers: Any,
) -> str:
    content = encode(
        {"task": task, "id": f"id-{number}", "lang": "py", **headers},
        {"content_type": "application/json", "content_encoding": "utf-8", "correlation_id": f"id-{number}"},
        json.dumps([[number] if args is None else args, {}, {}]),
    )
    death = {"reason": reason, "task": task, "task_id": f"id-{number}", "exception": exception, "traceback": "Trace"}
    fields = [*content.as_fields(), b"death", json.dumps(death).encode()]
    broker.client.call("SADD", "celery-streams:queues", queue)
    return str(broker.client.call("XADD", broker.queue_keys(queue).dead, "*", *fields).decode())


def left(broker: StreamBroker, queue: str = "send_message") -> list[str | None]:
    return [letter.task_id for letter in dead_letters(broker, queue)]


def waiting(broker: StreamBroker, queue: str = "send_message") -> int:
    return int(broker.client.call("XLEN", broker.queue_keys(queue).streams[0]))


def confirm(client: Client, place: str, page: str, **fields: Any) -> Any:
    """Press a button, then the one of the question, as many steps as it takes; returns the last answer."""
    response = client.post(place + page, fields)
    for _ in range(50):
        if response.status_code != 200:
            return response
        form = form_of(response.content.decode())
        response = client.post(place + page, form)
    raise AssertionError("It does not come to an end.")


def form_of(page: str) -> dict[str, list[str]]:
    """Return the hidden fields of the last form of a page."""
    from html.parser import HTMLParser

    found: dict[str, list[str]] = {}

    class Fields(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            about = dict(attributes)
            if tag == "form":
                found.clear()
            if tag == "input" and about.get("type") == "hidden" and about["name"] != "csrfmiddlewaretoken":
                found.setdefault(str(about["name"]), []).append(about.get("value") or "")

    Fields().feed(page)
    return found


def text_of(page: str) -> str:
    """Return what a person reads; a form keeps a name as it is."""
    from html.parser import HTMLParser

    found: list[str] = []

    class Text(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    Text().feed(page)
    return "".join(found)


# -- who may see ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("page", PAGES)
def test_every_page_answers_in_both_places(admin: Client, broker: StreamBroker, place: str, page: str) -> None:
    bury(broker, 1)

    response = admin.get(place + page)

    assert response.status_code == 200, response.content
    assert b"<h1>" in response.content


@pytest.mark.parametrize("page", PAGES)
def test_nobody_logged_in_sees_nothing_and_redis_is_not_asked(site: Celery, page: str) -> None:
    with override_settings(CELERY_STREAMS_URL=AWAY):
        assert Client().get("/queues/" + page).status_code == 403
        assert Client().get("/admin/celery_streams/dashboard/" + page).status_code == 302


@pytest.mark.parametrize("page", PAGES)
def test_staff_without_the_permission_sees_nothing_in_the_admin(site: Celery, page: str) -> None:
    assert person().get("/admin/celery_streams/dashboard/" + page).status_code == 403
    assert person("view_queues").get("/admin/celery_streams/dashboard/" + page).status_code == 200


def test_staff_may_look_outside_the_admin_and_no_more(site: Celery, broker: StreamBroker) -> None:
    bury(broker, 1, args=["a secret"])
    client = person()

    page = client.get("/queues/dead/").content.decode()

    assert "chat.tasks.send_message" in page
    assert "a secret" not in page
    assert "Replay" not in page
    assert client.post("/queues/dead/act/", {"verb": "replay", "scope": "matching"}).status_code == 403
    assert person(staff=False).get("/queues/dead/").status_code == 403


def test_admin_index_shows_the_dashboard_to_those_who_may_see_it(site: Celery) -> None:
    shown = person("view_queues").get("/admin/").content.decode()
    hidden = person().get("/admin/").content.decode()

    assert "/admin/celery_streams/dashboard/" in shown
    assert "/admin/celery_streams/dashboard/" not in hidden


def test_project_decides_who_may_do_what(site: Celery, broker: StreamBroker) -> None:
    bury(broker, 1)

    with override_settings(CELERY_STREAMS_DASHBOARD_PERMISSION=lambda request, action: action != "purge"):
        client = Client()
        assert client.get("/queues/dead/").status_code == 200
        assert client.post("/queues/dead/act/", {"verb": "purge", "scope": "matching"}).status_code == 403
        assert client.post("/queues/dead/act/", {"verb": "replay", "scope": "matching"}).status_code == 200


@pytest.mark.parametrize(
    ("page", "fields", "action"),
    [
        ("dead/act/", {"verb": "replay", "scope": "matching"}, "replay"),
        ("dead/act/", {"verb": "purge", "scope": "matching"}, "purge"),
        ("act/", {"verb": "pause", "key": SEND}, "pause"),
        ("act/", {"verb": "resume", "key": SEND}, "pause"),
        ("delayed/act/", {"verb": "run_now", "key": f"{SEND} 61"}, "run_now"),
        ("delayed/act/", {"verb": "cancel", "key": f"{SEND} 61"}, "cancel"),
        ("workers/act/", {"verb": "revoke", "id": "x"}, "revoke"),
        ("workers/act/", {"verb": "terminate", "id": "x"}, "terminate"),
    ],
)
@pytest.mark.parametrize("confirmed", [{}, {"confirmed": "yes"}])
@pytest.mark.parametrize("place", PLACES)
def test_each_action_needs_its_own_permission(
    site: Celery, broker: StreamBroker, place: str, page: str, fields: Any, action: str, confirmed: Any
) -> None:
    from django_integration.permissions import ACTIONS

    bury(broker, 1)
    others = person(*(name for name in ACTIONS if name != action))

    assert others.post(place + page, {**fields, **confirmed}).status_code == 403
    assert left(broker) == ["id-1"]
    if not confirmed:
        assert person("view_queues", action).post(place + page, fields).status_code == 200


def test_read_only_mode_stops_a_superuser(admin: Client, broker: StreamBroker) -> None:
    bury(broker, 1)

    with override_settings(CELERY_STREAMS_DASHBOARD_READ_ONLY=True):
        page = admin.get("/queues/dead/").content.decode()
        refused = admin.post("/queues/dead/act/", {"verb": "purge", "scope": "matching", "confirmed": "yes"})

    assert "Read-only" in page
    assert "Delete" not in page
    assert refused.status_code == 403
    assert left(broker) == ["id-1"]


@pytest.mark.parametrize("page", ["act/", "dead/act/", "delayed/act/", "workers/act/"])
def test_actions_are_not_done_by_a_link_nor_without_a_token(site: Celery, page: str) -> None:
    from django.contrib.auth.models import User

    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))

    assert client.get("/queues/" + page).status_code == 405
    assert client.post("/queues/" + page, {"verb": "replay"}).status_code == 403


# -- queues -----------------------------------------------------------------------------------------------------------


def test_queue_table_shows_figures_and_alerts(admin: Client, broker: StreamBroker) -> None:
    for number in range(3):
        broker.publish("send_message", message(number))

    page = admin.get("/queues/").content.decode()

    assert "send_message" in page
    assert "3 waiting, and no worker consumes the queue" in page


def test_page_is_not_sent_again_while_nothing_changes(admin: Client, broker: StreamBroker) -> None:
    broker.publish("send_message", message(1))
    first = admin.get("/queues/")
    tag = first.headers["ETag"]

    same = admin.get("/queues/", headers={"If-None-Match": tag})
    broker.publish("send_message", message(2))
    other = admin.get("/queues/", headers={"If-None-Match": tag})
    portuguese = admin.get("/queues/", headers={"If-None-Match": tag, "Accept-Language": "pt-br"})

    assert (same.status_code, same.content) == (304, b"")
    assert other.status_code == 200
    assert portuguese.status_code == 200


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("", b"send_message"),
        ("alerts/", b"no worker consumes the queue"),
        ("alerts/?examine=yes", b"no worker consumes the queue"),
        ("history/?queue=send_message", b"Messages a minute"),
        ("workers/", b"No worker runs."),
        ("workers/?running=yes", b"No worker runs."),
        ("dead/", b"KeyError"),
        ("dead/?reason=failed&task=chat.*", b"KeyError"),
        ("delayed/", b"<code>7</code>"),
        ("delayed/?queue=send_message", b"<code>7</code>"),
        ("held/", b'<td class="cs-n">2</td>'),
        ("held/?queue=mark_as_read", b'<td class="cs-n">2</td>'),
    ],
)
def test_last_figures_are_shown_while_redis_is_away(
    admin: Client, site: Celery, broker: StreamBroker, path: str, shown: bytes
) -> None:
    broker.publish("send_message", message(1))
    bury(broker, 1, args=["the-secret"], exception="KeyError('x')")
    delay(broker, 7)
    hold(broker, "the-secret", 2, queue="mark_as_read")
    assert shown in admin.get("/queues/" + path).content

    with redis_away(site, broker):
        page = admin.get("/queues/" + path)
        file = admin.get("/queues/" + path, {"format": "csv"})

    assert page.status_code == 200
    assert b"These are the last figures, of" in page.content
    assert shown in page.content
    assert b"the-secret" not in page.content, "what was kept holds no arguments"
    assert file.status_code == 503
    assert b"These are the last figures" not in admin.get("/queues/" + path).content


@contextlib.contextmanager
def redis_away(site: Celery, broker: StreamBroker) -> Iterator[None]:
    """Have Redis refuse the site, while the test itself still reaches it."""
    client = streams_of(site).broker.client
    number = client.call("CLIENT", "ID")
    broker.client.call("CONFIG", "SET", "requirepass", "x")
    try:
        broker.client.call("CLIENT", "KILL", "ID", number)
        yield
    finally:
        broker.client.call("CONFIG", "SET", "requirepass", "")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("page", "fields", "buttons"),
    [
        ("dead/", {"verb": "replay", "scope": "matching"}, ["Replay", "Delete"]),
        ("dead/", {"verb": "purge", "scope": "matching"}, ["Replay", "Delete"]),
        ("delayed/", {"verb": "cancel", "key": f"{SEND} 37"}, ["Run chosen", "Cancel chosen"]),
        ("delayed/", {"verb": "run_now", "key": f"{SEND} 37"}, ["Run chosen", "Cancel chosen"]),
        ("", {"verb": "pause", "key": SEND}, []),
    ],
)
@pytest.mark.parametrize("confirmed", [{}, {"confirmed": "yes"}])
def test_actions_are_refused_while_redis_is_away_and_nobody_is_said_to_have_done_them(
    admin: Client, site: Celery, broker: StreamBroker, place: str, page: str, fields: Any, buttons: Any, confirmed: Any
) -> None:
    from django.contrib.admin.models import LogEntry

    bury(broker, 1)
    delay(broker, 7)
    for button in buttons:
        assert button in admin.get(place + page).content.decode()

    with redis_away(site, broker):
        stale = admin.get(place + page).content.decode()
        refused = admin.post(f"{place}{page}act/", {**fields, **confirmed})

    for button in buttons:
        assert button not in stale
    assert refused.status_code == 503
    assert "Nothing was done: " in refused.content.decode()
    assert not LogEntry.objects.exists()
    assert left(broker) == ["id-1"]
    assert broker.client.call("ZCARD", broker.queue_keys("send_message").delayed) == 1
    assert not paused_queues(broker, ["send_message"])


def test_list_that_nobody_has_seen_is_one_line_while_redis_is_away(
    admin: Client, site: Celery, broker: StreamBroker
) -> None:
    bury(broker, 1)
    admin.get("/queues/dead/")

    with redis_away(site, broker):
        response = admin.get("/queues/dead/", {"task": "nobody.asked.before"})

    assert response.status_code == 503
    assert "chat.tasks" not in response.content.decode()


def test_alerts_are_those_of_the_command_line_with_what_grew(admin: Client, broker: StreamBroker) -> None:
    broker.client.call("XADD", broker.queue_keys("send_message").history, f"{broker.clock_ms() - 60_000}-0", "x", 0)
    bury(broker, 1)

    assert "1 more dead letter than before" in admin.get("/queues/alerts/").content.decode()


def test_queue_is_paused_and_resumed(admin: Client, broker: StreamBroker) -> None:
    broker.publish("send_message", message(1))

    paused = confirm(admin, "/queues/", "act/", verb="pause", key=SEND)
    page = admin.get(paused.headers["Location"]).content.decode()
    assert "The queue is paused." in page
    assert "Resume …" in page
    assert list(paused_queues(broker, ["send_message", "mark_as_read"])) == ["send_message"]

    confirm(admin, "/queues/", "act/", verb="resume", key=SEND)

    assert paused_queues(broker, ["send_message"]) == {}


@pytest.mark.parametrize("page", PAGES)
def test_redis_that_was_never_there_is_one_line(admin: Client, page: str) -> None:
    with override_settings(CELERY_STREAMS_URL=AWAY):
        response = admin.get("/queues/" + page)

    assert response.status_code == 503
    assert b"secret" not in response.content
    assert b"127.0.0.1:1" in response.content


# -- dead letters -----------------------------------------------------------------------------------------------------


def test_filters_find_what_is_meant(admin: Client, broker: StreamBroker) -> None:
    bury(broker, 1)
    bury(broker, 2, task="chat.tasks.other", exception="KeyError('x')", args=["needle"], reason="crashed")

    for name, value in (
        ("task", "chat.tasks.oth*"), ("exception", "keyerror"), ("text", "needle"), ("reason", "crashed"),
        ("id", "id-2"),
    ):  # fmt: skip
        query = {name: value}
        page = admin.get("/queues/dead/", query).content.decode()
        assert "KeyError" in page, query
        assert "ValueError" not in page, query
        assert "Looked at 2 of 2" in page


@pytest.mark.parametrize("query", [{"since": "yesterday"}, {"until": "9999-99-99"}, {"since": "-1"}])
def test_date_that_is_none_is_said(admin: Client, query: dict[str, str]) -> None:
    response = admin.get("/queues/dead/", query)

    assert response.status_code == 200
    assert "is not a date and time" in response.content.decode()


def test_filter_by_time_is_in_the_time_zone_of_the_project(admin: Client, broker: StreamBroker) -> None:
    bury(broker, 1)

    assert "chat.tasks.send_message</a>" in admin.get("/queues/dead/", {"since": "2020-01-01"}).content.decode()
    assert "Nothing matches." in admin.get("/queues/dead/", {"until": "2020-01-01 10:30"}).content.decode()


@pytest.mark.parametrize("place", PLACES)
def test_all_that_match_are_counted_asked_for_and_replayed_in_their_old_order(
    admin: Client, broker: StreamBroker, place: str
) -> None:
    for number in range(6):
        bury(broker, number, task="chat.tasks.send_message" if number % 2 else "other")
    bury(broker, 9, expires="2020-01-01T00:00:00+00:00")
    fields = {"verb": "replay", "scope": "matching", "task": "chat.tasks.send_message"}

    asked = admin.post(place + "dead/act/", fields).content.decode()
    done = confirm(admin, place, "dead/act/", **fields)

    assert "Replay 3 dead letters?" in asked
    assert "1 stays where it is" in asked
    assert done.status_code == 302
    note = admin.get(done.headers["Location"]).content.decode()
    assert "3 dead letters replayed. 1 stays: no worker would run it." in note
    assert left(broker) == ["id-0", "id-2", "id-4", "id-9"]
    stream = broker.client.call("XRANGE", broker.queue_keys("send_message").streams[0], "-", "+")
    ids = [json.loads(dict(zip(flat[::2], flat[1::2], strict=True))[b"headers"])["id"] for _, flat in stream]
    assert ids == ["id-1", "id-3", "id-5"]


def test_what_dies_after_the_count_is_left_alone(admin: Client, broker: StreamBroker) -> None:
    bury(broker, 1)
    asked = admin.post("/queues/dead/act/", {"verb": "purge", "scope": "matching"})
    form = form_of(asked.content.decode())
    bury(broker, 2)

    admin.post("/queues/dead/act/", form)

    assert left(broker) == ["id-2"]


@pytest.mark.parametrize("step", [{"confirmed": "yes"}, {"cursor": "1-1 send_message"}])
def test_count_that_was_not_made_here_is_made_before_anybody_is_asked(
    admin: Client, broker: StreamBroker, step: dict[str, str]
) -> None:
    from django.contrib.admin.models import LogEntry

    for number in range(3):
        bury(broker, number)
    asked = admin.post("/queues/dead/act/", {"verb": "purge", "scope": "matching", "task": "none"})
    forged = {**form_of(asked.content.decode()), "matched": "1", **step}
    del forged["task"]

    answer = admin.post("/queues/dead/act/", forged)

    assert "Delete 3 dead letters for good?" in answer.content.decode()
    assert len(left(broker)) == 3
    assert not LogEntry.objects.exists()


def test_many_are_counted_and_taken_in_several_steps(
    admin: Client, broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django_integration.dashboard import actions

    monkeypatch.setattr(actions, "COUNT_STEP", 7)
    monkeypatch.setattr(actions, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(actions, "TAKE_STEP", 3)
    for number in range(20):
        bury(broker, number, queue="send_message" if number % 3 else "mark_as_read")

    first = admin.post("/queues/dead/act/", {"verb": "purge", "scope": "matching"}).content.decode()
    done = confirm(admin, "/queues/", "dead/act/", verb="purge", scope="matching")

    assert "7 match among the 7 of 20" in first
    assert done.status_code in (302, 200)
    assert (left(broker), left(broker, "mark_as_read")) == ([], [])


def test_only_those_that_were_chosen_are_taken(admin: Client, broker: StreamBroker) -> None:
    first, _, third = (bury(broker, number) for number in range(3))

    confirm(
        admin, "/queues/", "dead/act/", verb="purge", key=[f"{SEND} {first}", f"{SEND} {third}", "x", "71 1-1"]
    )  # fmt: skip

    assert left(broker) == ["id-1"]


def test_replay_twice_moves_a_letter_once(admin: Client, broker: StreamBroker) -> None:
    one = bury(broker, 1)
    fields = {"verb": "replay", "key": f"{SEND} {one}", "confirmed": "yes"}

    admin.post("/queues/dead/act/", fields)
    again = admin.post("/queues/dead/act/", fields)

    assert waiting(broker) == 1
    assert "1 had gone meanwhile" in admin.get(again.headers["Location"]).content.decode()


def test_nothing_chosen_is_one_line(admin: Client) -> None:
    response = admin.post("/queues/dead/act/", {"verb": "replay"})

    assert response.status_code == 400
    assert "Nothing was chosen." in response.content.decode()


def test_one_message_is_shown_in_full_with_exact_integers(admin: Client, broker: StreamBroker) -> None:
    one = bury(broker, 1, args=[2**63 + 1, {"a": "é"}], parent_id="the-parent", root_id="the-root")

    page = admin.get("/queues/dead/message/", {"queue": "send_message", "id": one}).content.decode()

    assert "9223372036854775809" in page
    assert "the-parent" in page
    assert "Trace" in page


@pytest.mark.parametrize("entry_id", ["", "x", "1-1", "9" * 40 + "-1"])
def test_message_that_is_not_there_is_404(admin: Client, entry_id: str) -> None:
    assert admin.get("/queues/dead/message/", {"queue": "q", "id": entry_id}).status_code == 404


def test_action_is_noted_once_with_its_count_and_without_arguments(
    admin: Client, broker: StreamBroker, caplog: pytest.LogCaptureFixture
) -> None:
    from django.contrib.admin.models import LogEntry

    from django_integration.signals import dashboard_action

    heard: list[Any] = []

    def hear(**said: Any) -> None:
        heard.append((said["action"], said["count"], said["user"].username))

    dashboard_action.connect(hear)
    for number in range(3):
        bury(broker, number, args=["the-secret"])

    with caplog.at_level("INFO", logger="celery_streams.dashboard"):
        confirm(admin, "/queues/", "dead/act/", verb="purge", scope="matching", text="the-secret", queue="send_message")

    dashboard_action.disconnect(hear)
    (entry,) = LogEntry.objects.all()
    assert entry.change_message == "Delete 3 dead letters that match queue=send_message, text=…"
    assert entry.is_deletion()
    assert [action for action, _, _ in heard] == ["purge"]
    assert heard[0][1] == 3
    assert "the-secret" not in caplog.text
    assert caplog.text.count("Delete 3") == 1


# -- arguments --------------------------------------------------------------------------------------------------------


def test_arguments_are_for_those_who_may_see_them(site: Celery, broker: StreamBroker) -> None:
    one = bury(broker, 1, args=["the-secret"], argsrepr="('the-secret',)")
    client = person("view_queues")

    for page in ("dead/", f"dead/message/?queue=send_message&id={one}", "dead/?format=csv", "dead/?format=json"):
        content = b"".join(client.get("/queues/" + page)).decode()
        assert "the-secret" not in content, page
    found = client.get("/queues/dead/", {"text": "the-secret"}).content.decode()
    assert "Arguments are hidden" in found
    assert "id-1" not in found


def test_arguments_can_be_hidden_until_asked_for(admin: Client, broker: StreamBroker) -> None:
    bury(broker, 1, args=["the-secret"])

    with override_settings(CELERY_STREAMS_HIDE_ARGUMENTS=True):
        hidden = admin.get("/queues/dead/").content.decode()
        shown = admin.get("/queues/dead/", {"arguments": "shown"}).content.decode()

    assert "the-secret" not in hidden
    assert "the-secret" in shown


def redact(task: str, args: Any, kwargs: Any) -> Any:
    if args == ["odd"]:
        raise KeyError("odd")
    return ["***" for _ in args], kwargs


def test_arguments_are_redacted_also_for_a_search(admin: Client, broker: StreamBroker) -> None:
    one = bury(broker, 1, args=["the-secret"], argsrepr="('the-secret',)")
    bury(broker, 2, args=["odd"])

    with override_settings(CELERY_STREAMS_REDACT_ARGUMENTS=redact):
        pages = [
            b"".join(admin.get("/queues/" + page)).decode()
            for page in ("dead/", f"dead/message/?queue=send_message&id={one}", "dead/?format=csv")
        ]
        found = admin.get("/queues/dead/", {"text": "the-secret"}).content.decode()

    assert all("the-secret" not in page for page in pages)
    assert "argsrepr" in pages[1]
    assert "***" in pages[0]
    assert "not redacted: KeyError" in pages[0]
    assert "Nothing matches" in found


def test_fields_of_what_is_no_message_are_as_secret_as_arguments(site: Celery, broker: StreamBroker) -> None:
    broker.client.call("SADD", "celery-streams:queues", "q")
    one = broker.client.call("XADD", broker.queue_keys("q").dead, "*", "odd", "the-secret").decode()

    def page(client: Client) -> str:
        return str(client.get("/queues/dead/message/", {"queue": "q", "id": one}).content.decode())

    assert "the-secret" in page(person(superuser=True))
    assert "the-secret" not in page(person("view_queues"))
    with override_settings(CELERY_STREAMS_REDACT_ARGUMENTS=redact):
        assert "the-secret" not in page(person(superuser=True))


@pytest.mark.parametrize(
    ("args", "kwargs", "shown"),
    [(["the-secret"], {}, '["***"] {}'), ("('the-secret',)", "{}", "hidden"), (None, None, "hidden")],
)
def test_arguments_of_what_runs_are_redacted(site: Celery, args: Any, kwargs: Any, shown: str) -> None:
    from django_integration.dashboard.arguments import show_called

    with override_settings(CELERY_STREAMS_REDACT_ARGUMENTS=redact):
        found = show_called(look_of(superuser=True), "chat.tasks.send_message", args, kwargs)

    assert (found.why_not or f"{found.args} {found.kwargs}") == shown


# -- exports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=1"])
def test_cells_cannot_become_formulas(admin: Client, broker: StreamBroker, formula: str) -> None:
    bury(broker, 1, task=formula, exception=formula)

    content = b"".join(admin.get("/queues/dead/", {"format": "csv"})).decode("utf-8-sig")

    (row,) = csv.DictReader(io.StringIO(content))
    assert row["task"] == "'" + formula
    assert row["exception"] == "'" + formula


@pytest.mark.parametrize("text", ["\ud800", "ü\udcff", "\ud83d\ude00", "\x00\u202e", '"\\ud800,\n'])
def test_arguments_that_are_no_utf8_end_no_file(admin: Client, broker: StreamBroker, text: str) -> None:
    bury(broker, 1, args=[text], task=text)
    bury(broker, 2)

    rows = json.loads(b"".join(admin.get("/queues/dead/", {"format": "json"})))
    content = b"".join(admin.get("/queues/dead/", {"format": "csv"})).decode("utf-8-sig")
    lines = list(csv.DictReader(io.StringIO(content)))

    assert [row["task_id"] for row in rows] == [line["task_id"] for line in lines] == ["id-2", "id-1"]
    assert json.loads(rows[1]["args"]) == json.loads(json.dumps([text]))
    assert json.loads(lines[1]["args"]) == json.loads(rows[1]["args"])


def test_filtered_list_can_be_taken_along_as_json(admin: Client, broker: StreamBroker) -> None:
    bury(broker, 1)
    bury(broker, 2, task="other", args=[2**70])

    rows = json.loads(b"".join(admin.get("/queues/dead/", {"format": "json", "task": "other"})))
    queues = json.loads(b"".join(admin.get("/queues/", {"format": "json"})))

    assert [row["task_id"] for row in rows] == ["id-2"]
    assert json.loads(rows[0]["args"]) == [2**70]
    assert [row["queue"] for row in queues] == ["mark_as_read", "send_message"]


@pytest.mark.parametrize("page", [*PAGES, "dead/message/?queue=q&id=1-1"])
def test_format_that_there_is_not_is_said(admin: Client, broker: StreamBroker, page: str) -> None:
    response = admin.get(f"/queues/{page}{'&' if '?' in page else '?'}format=x<ml")

    assert response.status_code == 400
    text = text_of(response.content.decode())
    assert "This page cannot be had as “x<ml”" in text
    assert ("there are: csv, json" in text) is ("message" not in page)


@pytest.mark.parametrize("page", ["delayed/", "workers/", "alerts/"])
@pytest.mark.parametrize("place", PLACES)
def test_every_list_offers_its_files(admin: Client, broker: StreamBroker, place: str, page: str) -> None:
    bury(broker, 1)
    broker.publish("send_message", message(1))
    called = message(7)._replace(properties=b'{"content_type":"application/json","content_encoding":"utf-8"}')
    broker.delay("send_message", called, due_ms=broker.clock_ms() + 600_000, member="7")

    source = admin.get(place + page).content.decode()
    rows = json.loads(b"".join(admin.get(place + page, {"format": "json"})))
    table = list(csv.DictReader(io.StringIO(b"".join(admin.get(place + page, {"format": "csv"})).decode("utf-8-sig"))))

    assert f"{page}?format=csv" in source
    assert len(rows) == len(table) == {"delayed/": 1, "workers/": 0, "alerts/": len(rows)}[page]
    if page == "delayed/":
        assert rows[0]["queue"] == "send_message"
        assert (rows[0]["args"], rows[0]["kwargs"]) == ("[7]", "{}")
    if page == "alerts/":
        assert ("critical", "no_consumer") in [(row["level"], row["name"]) for row in rows]


def test_files_are_of_now_or_not_at_all(admin: Client) -> None:
    with override_settings(CELERY_STREAMS_URL=AWAY):
        for page in PAGES:
            assert admin.get("/queues/" + page, {"format": "csv"}).status_code == 503


# -- delayed, workers -------------------------------------------------------------------------------------------------


def delay(broker: StreamBroker, number: int, *, seconds: float = 600.0) -> str:
    due = broker.clock_ms() + int(seconds * 1000)
    broker.delay("send_message", message(number), due_ms=due, member=str(number))
    return f"{SEND} {str(number).encode().hex()}"


def test_delayed_message_runs_now(admin: Client, broker: StreamBroker) -> None:
    one, _ = delay(broker, 1), delay(broker, 2)

    done = confirm(admin, "/queues/", "delayed/act/", verb="run_now", key=one)

    assert done.status_code == 302
    assert broker.client.call("ZRANGE", broker.queue_keys("send_message").delayed, 0, -1) == [b"2"]
    assert "1 done." in admin.get(done.headers["Location"]).content.decode()


def test_delayed_message_is_cancelled(admin: Client, broker: StreamBroker) -> None:
    one, _ = delay(broker, 1), delay(broker, 2)

    confirm(admin, "/queues/", "delayed/act/", verb="cancel", key=[one, f"{SEND} zz", "x"])

    names = broker.queue_keys("send_message")
    assert broker.client.call("ZRANGE", names.delayed, 0, -1) == [b"2"]
    assert broker.client.call("HKEYS", names.delayed_messages) == [b"2"]
    assert waiting(broker) == 0


def test_delayed_messages_are_paged(admin: Client, broker: StreamBroker) -> None:
    for number in range(60):
        delay(broker, number, seconds=600 + number)

    first = admin.get("/queues/delayed/", {"queue": "send_message"}).content.decode()
    second = admin.get("/queues/delayed/", {"queue": "send_message", "skip": "50"}).content.decode()

    assert first.count("data-cs-row") == 50
    assert second.count("data-cs-row") == 10


# -- held -------------------------------------------------------------------------------------------------------------


def hold(broker: StreamBroker, key: str, count: int, *, task: str = "t", queue: str = "send_message") -> None:
    """Let one message of a key start, and hold ``count`` others back."""
    lane = lane_of(task, Limits(concurrency_per_key=1), (None, key), node="")
    for one in delivered(broker, queue, "w", *(message(number) for number in range(count + 1))):
        admit(broker, "w", one.entry, lane)


def test_held_messages_are_shown_by_key_the_longest_line_first(admin: Client, broker: StreamBroker) -> None:
    assert "Held</th>" not in admin.get("/queues/").content.decode()
    hold(broker, "customer-7", 2)
    hold(broker, "customer-8", 3)

    queues = admin.get("/queues/").content.decode()
    lines = json.loads(b"".join(admin.get("/queues/held/", {"format": "json"}).streaming_content))

    assert 'held/?queue=send_message">5</a>' in queues
    assert [(line["task"], line["lane"], line["held"]) for line in lines] == [
        ("t", "customer-8", 3),
        ("t", "customer-7", 2),
    ]


def test_locks_of_unique_tasks_are_counted_where_there_are_any(admin: Client, broker: StreamBroker) -> None:
    broker.ensure_groups(["send_message"])
    assert "Locks</th>" not in admin.get("/queues/").content.decode()
    for number in range(3):
        lock = Lock(f"{number}")
        publish_unique(broker, "send_message", message(number), lock, task_id=str(number), token=str(number))

    page = admin.get("/queues/").content.decode()
    lines = json.loads(b"".join(admin.get("/queues/", {"format": "json"}).streaming_content))

    assert "Locks</th>" in page
    assert {line["queue"]: line["locks"] for line in lines}["send_message"] == 3


def test_key_of_held_messages_is_as_secret_as_arguments(site: Celery, broker: StreamBroker) -> None:
    hold(broker, "a secret", 2)

    for client, address in (
        (person("view_queues"), "/queues/held/"),
        (person("view_queues"), "/queues/held/?format=csv"),
    ):
        page = client.get(address).getvalue().decode()
        assert "send_message" in page
        assert "a secret" not in page


def test_page_looks_at_a_bounded_number_of_lines_and_says_so(
    admin: Client, broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(600):  # Redis shows all of a small hash at once, whatever it is asked for
        hold(broker, str(number), 1)

    all_of_them = admin.get("/queues/held/", {"queue": "send_message"}).content.decode()
    pages = []
    for most in range(97, 104):  # one of them ends where what is no line was met
        monkeypatch.setattr("django_integration.dashboard.held.MOST", most)
        pages.append(admin.get("/queues/held/", {"queue": "send_message"}).content.decode())

    assert (all_of_them.count("data-cs-row"), "there are more" in all_of_them) == (50, False)
    assert [page.count("data-cs-row") for page in pages] == [50] * 7
    assert all("there are more" in page for page in pages)


def test_lines_of_several_queues_that_fit_are_not_said_to_be_cut(
    admin: Client, broker: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for queue in ("send_message", "mark_as_read"):
        for number in range(3):
            hold(broker, str(number), 1, queue=queue)
    monkeypatch.setattr("django_integration.dashboard.held.MOST", 5)

    page = admin.get("/queues/held/").content.decode()

    assert (page.count("data-cs-row"), "there are more" in page) == (6, False)


# -- hostile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_hostile_names_are_text(admin: Client, broker: StreamBroker, place: str) -> None:
    one = bury(broker, 1, queue=HOSTILE, task=HOSTILE, exception=HOSTILE, args=[HOSTILE], reason=HOSTILE)
    broker.delay(HOSTILE, message(1), due_ms=2**45, member=HOSTILE)
    hold(broker, HOSTILE, 2, task=HOSTILE, queue=HOSTILE)
    broker.client.call("XADD", broker.queue_keys("q").dead, "*", "odd", b"\xff<script>")
    broker.client.call("SADD", "celery-streams:queues", "q")

    pages = [
        admin.get(place + page, query)
        for page, query in (
            *((page, {}) for page in PAGES),
            ("dead/message/", {"queue": HOSTILE, "id": one}),
            ("dead/", {"task": HOSTILE, "text": HOSTILE, "queue": HOSTILE, "before": HOSTILE}),
            ("dead/", {"verb": HOSTILE, "done": HOSTILE}),
            ("delayed/", {"queue": HOSTILE, "skip": "9" * 30}),
            ("held/", {"queue": HOSTILE, "skip": "-1"}),
            ("", {"name": HOSTILE}),
        )
    ]
    asked = admin.post(place + "dead/act/", {"verb": "purge", "key": f"{HOSTILE.encode().hex()} {one}"})

    for page in (*pages, asked):
        assert page.status_code == 200
        source = page.content.decode()
        assert "<script>alert" not in source
        assert "\x1b" not in text_of(source)
        assert "style=" not in source.partition('id="cs-body"')[2]


def test_policy_of_the_page_lets_nothing_foreign_in(admin: Client) -> None:
    for place in PLACES:
        policy = admin.get(place).headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")


def test_policy_of_the_project_wins(admin: Client) -> None:
    with override_settings(STATIC_URL="https://cdn.example.org/static/"):
        assert "script-src 'self' https://cdn.example.org;" in admin.get("/queues/").headers["Content-Security-Policy"]
    with override_settings(MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware",
                                       "django.contrib.auth.middleware.AuthenticationMiddleware"]):  # fmt: skip
        assert admin.get("/queues/").status_code == 200


def test_queue_table_has_a_line_of_the_last_hour(admin: Client, broker: StreamBroker) -> None:
    history = broker.queue_keys("send_message").history
    now = broker.clock_ms()
    for minutes, waiting in ((90, 999), (30, 5), (20, 40), (1, 10)):
        broker.client.call("XADD", history, f"{now - minutes * 60_000}-0", "w", waiting)

    page = admin.get("/queues/").content.decode()

    assert 'aria-label="Waiting in the last hour: 40 at most"' in page
    assert '<polyline points="31.0,13.2 41.0,1.0 60.0,11.5"' in page


def test_queue_table_says_how_fast_queues_fill_and_empty_and_each_row_has_all_cells(
    admin: Client, broker: StreamBroker
) -> None:
    now = broker.clock_ms()
    for queue, added in (("send_message", 60), ("mark_as_read", 0)):
        broker.publish(queue, message(1))
        for minutes, waiting, count in ((6, 0, 100), (1, 10, 100 + added)):
            key = broker.queue_keys(queue).history
            broker.client.call("XADD", key, f"{now - minutes * 60_000}-0", "w", waiting if added else 0, "a", count)

    page = admin.get("/queues/").content.decode()

    rows = [part.partition("</tr>")[0] for part in page.split("<tr")[1:]]
    cells = [row.count("<td") + row.count("<th ") for row in rows if "cs-n" in row]
    assert len(cells) == 4
    assert len(set(cells)) == 1
    assert '<td class="cs-n">+12 −10</td>' in page
    assert '<td class="cs-n">+0 −0</td>' in page


def test_vendored_script_is_the_one_that_was_published() -> None:
    from hashlib import sha256
    from pathlib import Path

    import django_integration

    static = Path(django_integration.__file__).parent / "static" / "celery_streams"
    script = (static / "idiomorph.esm.js").read_bytes()

    assert sha256(script).hexdigest() == "e1e2c7dbd606233d302bac48074fd1307c15609b77ea485c18f1b13d6be67c14"
    assert "Zero-Clause BSD" in (static / "idiomorph.LICENSE").read_text()

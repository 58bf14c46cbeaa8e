"""The dashboard: one message in full, wherever it is, and how each of its starts ended."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from django.test import Client, override_settings

from celery_streams.broker import StreamBroker
from celery_streams.message import Message, encode
from tests.django_app.test_dashboard import HOSTILE, PLACES, SEND, person, redact, text_of

ATTEMPTS = "\n".join(
    (
        "1\t1700000000000\t1700000000250\tretried\tcelery@host/2.0a1b\tConnectionError",
        "2\t\t1700000100000\tlost\tcelery@other/1.0a1b\t",
        "3\t1700000200000\t1700000290000\tcrashed\tcelery@host/1.0a1b\tsignal 9 (SIGKILL)",
    )
)


@pytest.fixture
def admin(site: Celery) -> Client:
    return person(superuser=True)


def content(*, attempts: Any = ATTEMPTS, args: Any = ("the-secret",), **headers: Any) -> Message:
    made = encode(
        {"task": "chat.tasks.send_message", "id": "id-1", "lang": "py", **headers},
        {"content_type": "application/json", "content_encoding": "utf-8", "correlation_id": "id-1"},
        json.dumps([args, {"n": 2**70}, {}]),
    )
    return made.changed(history=json.dumps({"first": "1-1", "attempts": attempts}).encode())


def delayed(broker: StreamBroker, message: Message) -> str:
    broker.delay("send_message", message, due_ms=2**41, member="m")
    broker.client.call("SADD", "celery-streams:queues", "send_message")
    return f"delayed/message/?key={SEND}%20{b'm'.hex()}"


def held(broker: StreamBroker, message: Message) -> str:
    broker.ensure_groups(["send_message"])
    for number in range(3):
        broker.publish("send_message", content(id=f"other-{number}", attempts=""))
    broker.publish("send_message", message)
    broker.read(broker.streams(["send_message"]), "celery@host/2.0a1b", count=10)
    return "workers/message/?queue=send_message&id=id-1"


def dead(broker: StreamBroker, message: Message) -> str:
    death = {
        "reason": "failed", "task": "chat.tasks.send_message", "task_id": "id-1", "exception": "ValueError('no')",
        "attempts": "4\t1700000300000\t1700000300500\tfailed\tcelery@host/3.0a1b\tValueError",
    }  # fmt: skip
    fields = [*message.as_fields(), b"death", json.dumps(death).encode()]
    broker.client.call("SADD", "celery-streams:queues", "send_message")
    one = broker.client.call("XADD", broker.queue_keys("send_message").dead, "*", *fields).decode()
    return f"dead/message/?queue=send_message&id={one}"


WHERE = {"delayed": delayed, "held": held, "dead": dead}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("place", PLACES)
def test_one_message_is_shown_in_full_with_each_of_its_attempts(
    admin: Client, broker: StreamBroker, place: str, where: str
) -> None:
    address = WHERE[where](broker, content(parent_id="id-0", retries=2))

    text = " ".join(text_of(admin.get(place + address).content.decode()).split())

    assert "chat.tasks.send_message" in text
    assert "the-secret" in text
    assert str(2**70) in text
    assert "id-0" in text
    assert text.count("Attempts") == 1
    assert "250 msretried: ConnectionErrorcelery@host/2.0a1b" in text
    assert "its worker disappearedcelery@other/1.0a1b" in text
    assert "90 sits process died: signal 9 (SIGKILL)celery@host/1.0a1b" in text
    assert ("500 msfailed: ValueErrorcelery@host/3.0a1b" in text) is (where == "dead")
    assert text.index("signal 9") < text.index("ConnectionError"), "the newest first"


@pytest.mark.parametrize("where", WHERE)
def test_message_that_never_failed_or_knows_nonsense_shows_no_attempts(
    admin: Client, broker: StreamBroker, where: str
) -> None:
    for attempts in ("", "nonsense", 7, ["1"]):
        address = WHERE[where](broker, content(attempts=attempts))
        response = admin.get("/queues/" + address)
        assert response.status_code == 200
        assert ("Attempts" in response.content.decode()) is (where == "dead")


@pytest.mark.parametrize("where", WHERE)
def test_hostile_attempts_are_text(admin: Client, broker: StreamBroker, where: str) -> None:
    columns = HOSTILE.replace("\t", " ")
    address = WHERE[where](broker, content(attempts=f"1\t9999999999999\t1\t{columns}\t{columns}\t{columns}"))

    page = admin.get("/queues/" + address).content.decode()

    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


@pytest.mark.parametrize("where", WHERE)
def test_arguments_of_one_message_are_for_those_who_may_see_them(
    site: Celery, broker: StreamBroker, where: str
) -> None:
    address = WHERE[where](broker, content(argsrepr="the-secret"))

    assert "the-secret" in person(superuser=True).get("/queues/" + address).content.decode()
    assert "the-secret" not in person("view_queues").get("/queues/" + address).content.decode()
    with override_settings(CELERY_STREAMS_REDACT_ARGUMENTS=redact):
        assert "the-secret" not in person(superuser=True).get("/queues/" + address).content.decode()
    assert person().get("/admin/celery_streams/dashboard/" + address).status_code == 403


@pytest.mark.parametrize(
    "address",
    [
        "delayed/message/",
        f"delayed/message/?key={SEND}",
        f"delayed/message/?key={SEND}%20{b'x'.hex()}",
        "delayed/message/?key=zz%20zz",
        "workers/message/",
        "workers/message/?queue=send_message&id=id-2",
        "workers/message/?queue=nobodys&id=id-1",
    ],
)
def test_message_that_is_not_there_is_not_found(admin: Client, broker: StreamBroker, address: str) -> None:
    delayed(broker, content())
    held(broker, content())

    assert admin.get("/queues/" + address).status_code == 404


def test_buttons_of_one_delayed_message_ask_and_do_it(admin: Client, broker: StreamBroker) -> None:
    from tests.django_app.test_dashboard import confirm

    page = admin.get("/queues/" + delayed(broker, content())).content.decode()
    assert "Run now …" in page
    assert "Cancel …" in page

    done = confirm(admin, "/queues/", "delayed/act/", verb="run_now", key=f"{SEND} {b'm'.hex()}")

    assert done.status_code == 302
    assert broker.client.call("XLEN", broker.queue_keys("send_message").streams[0]) == 1
    assert "Run now …" not in person("view_queues").get("/queues/" + delayed(broker, content())).content.decode()


def test_lists_lead_to_the_messages_in_full(admin: Client, broker: StreamBroker) -> None:
    address = delayed(broker, content())

    assert address.replace("%20", "+") in admin.get("/queues/delayed/").content.decode()

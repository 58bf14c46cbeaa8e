"""The state of a task as server-sent events, through Django's own ASGI handler: who gets them, how many, how long."""

from __future__ import annotations

import gc
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import django
import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from celery import Celery
from django.core.asgi import get_asgi_application
from django.test import Client, override_settings

from celery_streams import streams_of
from celery_streams.broker import StreamBroker
from django_integration.task_events import EventStream, Places, TaskLook, places
from tests.django_app.test_task_states import OWNS, tracked  # noqa: F401  (a fixture)
from tests.django_app.test_views import AWAY, staff  # noqa: F401  (a fixture)
from tests.support.eventually import eventually

#: Before 5.0 Django does not notice that a client goes away: whoever runs the application ends it, and Django leaves a
#: file open.
NOTICES = django.VERSION >= (5, 0)
pytestmark = [] if NOTICES else [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

#: Seconds that a test waits for what comes within one or two.
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def _all_places_are_given_back() -> Iterator[None]:
    yield
    gc.collect()
    assert eventually(lambda: places.taken == 0)


class Listener:
    """One request to the ASGI application, as a server makes it; by default the owner's of the task."""

    def __init__(self, task_id: str, *, me: str = "7", accept: str = "text/event-stream", **headers: str) -> None:
        sent = {"host": "testserver", "accept": accept, **headers}
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "path": f"/queues/tasks/{task_id}/",
            "query_string": f"me={me}".encode(),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()],
        }  # fmt: skip
        self._application = ApplicationCommunicator(get_asgi_application(), scope)
        self.status = 0
        self.headers: dict[str, str] = {}
        self._text = ""

    async def begin(self) -> Listener:
        """Send the request, and take status and headers of the answer."""
        await self._application.send_input({"type": "http.request", "body": b"", "more_body": False})
        started = await self._application.receive_output(PATIENCE)
        self.status = started["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in started["headers"]}
        return self

    async def _part(self) -> bool:
        """Take a part of the body; False at its end."""
        said = await self._application.receive_output(PATIENCE)
        self._text += said.get("body", b"").decode()
        return bool(said.get("more_body", False))

    async def event(self) -> dict[str, str]:
        """Wait for the next event, and return its fields."""
        while True:
            block, end, rest = self._text.partition("\n\n")
            if end:
                self._text = rest
                fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
                if "data" in fields:
                    return fields
            else:
                assert await self._part(), "the stream has ended"

    async def state(self) -> str:
        """Wait for the next event, and return the state that it tells."""
        return str(json.loads((await self.event())["data"])["state"])

    async def rest(self) -> str:
        """Take all that comes until the end."""
        while await self._part():
            pass
        await self._application.wait(PATIENCE)
        return self._text

    async def go_away(self) -> None:
        """Close the connection, and wait until the application has noticed."""
        await self._application.send_input({"type": "http.disconnect"})
        await self._application.wait(PATIENCE if NOTICES else 0.1)


def run(test: Callable[[], Awaitable[None]], *, most: int = 100, **settings: Any) -> None:
    """Run a test in an event loop, with so many places."""
    # Its users are not Django's: their database is one thread's.
    given = {"CELERY_STREAMS_TASK_PERMISSION": OWNS, **settings}
    with override_settings(CELERY_STREAMS_TASK_EVENTS=most, **given):
        async_to_sync(test)()


def pause(site: Celery) -> None:
    streams_of(site).broker.client.call("SET", "celery-streams:{send_message}:paused", "1700000000000 by hand")


def test_each_change_of_the_state_is_told(site: Celery, tracked: str) -> None:  # noqa: F811
    async def test() -> None:
        listener = await Listener(tracked).begin()
        assert (listener.status, listener.headers["content-type"]) == (200, "text/event-stream")
        assert listener.headers["cache-control"] == "no-store, no-transform"
        first = await listener.event()
        assert first["event"] == "state"
        assert json.loads(first["data"])["state"] == "queued"
        assert json.loads(first["data"])["task_id"] == tracked

        pause(site)
        assert await listener.state() == "held"
        streams_of(site).broker.client.call("DEL", "celery-streams:{send_message}:paused")
        assert await listener.state() == "queued"
        await listener.go_away()

    run(test)


def test_tag_of_an_event_is_that_of_the_state_and_is_not_told_twice(site: Celery, tracked: str) -> None:  # noqa: F811
    with override_settings(CELERY_STREAMS_TASK_PERMISSION=OWNS):
        tag = Client().get(f"/queues/tasks/{tracked}/?me=7").headers["ETag"].strip('"')

    async def test() -> None:
        first = await Listener(tracked).begin()
        assert (await first.event())["id"] == tag
        again = await Listener(tracked, last_event_id=tag).begin()
        pause(site)
        assert await again.state() == "held"
        await first.go_away()
        await again.go_away()

    run(test)


def test_stream_ends_with_a_last_state_and_is_not_asked_for_again(site: Celery, tracked: str) -> None:  # noqa: F811
    async def test() -> None:
        listener = await Listener(tracked).begin()
        assert await listener.state() == "queued"
        site.control.revoke(tracked)
        streams_of(site).broker.client.call("ZADD", "celery-streams:revoked", 2**40, tracked)
        last = await listener.event()
        assert json.loads(last["data"])["state"] == "revoked"
        assert await listener.rest() == ""

        again = await Listener(tracked, last_event_id=last["id"]).begin()
        assert (again.status, await again.rest()) == (204, "")

    run(test)


def test_stream_ends_when_nobody_knows_the_task_any_more(site: Celery, tracked: str) -> None:  # noqa: F811
    async def test() -> None:
        listener = await Listener(tracked).begin()
        assert await listener.state() == "queued"
        streams_of(site).broker.client.call("DEL", f"celery-streams:state:{tracked}")
        assert await listener.rest() == ""
        again = await Listener(tracked).begin()
        assert again.status == 404
        await again.rest()

    run(test)


def test_places_are_bounded_and_free_when_a_client_goes_away(tracked: str) -> None:  # noqa: F811
    async def test() -> None:
        open_ones = [await Listener(tracked).begin() for _ in range(2)]
        refused = await Listener(tracked).begin()
        assert refused.status == 503
        assert refused.headers["retry-after"] == "30"
        assert json.loads(await refused.rest())["error"] == "too_many"
        assert places.taken == 2

        await open_ones[0].go_away()
        assert places.taken == 1
        another = await Listener(tracked).begin()
        assert another.status == 200
        for one in (open_ones[1], another):
            await one.go_away()
        assert places.taken == 0

    run(test, most=2)


def test_place_is_free_when_nobody_took_a_part_of_the_answer() -> None:
    own = Places()
    for forget in (EventStream.close, lambda stream: None):
        assert own.take("alice", most=1)
        said = ("tag", {"state": "queued"})
        stream = EventStream(said, TaskLook("x"), give_back=lambda: own.give_back("alice"))
        assert not own.take("alice", most=1)

        forget(stream)
        del stream
        gc.collect()

        assert own.taken == 0


def test_one_user_gets_a_few_places_and_leaves_others_theirs() -> None:
    own = Places()

    taken = [own.take(1, most=100) for _ in range(9)]

    assert taken == [True] * 6 + [False] * 3
    assert own.take(2, most=100)
    assert [own.take(None, most=100) for _ in range(9)] == [True] * 9
    own.give_back(1)
    assert own.take(1, most=100)


def test_silent_stream_says_a_word_and_ends_with_its_time(site: Celery, tracked: str) -> None:  # noqa: F811
    said = ("tag", {"state": "queued"})
    ended: list[bool] = []

    async def test() -> None:
        stream = EventStream(
            said, TaskLook(tracked), known="tag", lifetime=0.2, comment=0.05, give_back=lambda: ended.append(True)
        )
        parts = [part async for part in stream]
        assert parts[0].startswith(b"retry: ")
        assert set(parts[1:]) == {b":\n\n"}

    run(test)
    assert ended == [True]


def test_redis_that_goes_away_ends_no_stream(broker: StreamBroker, tracked: str) -> None:  # noqa: F811
    async def test() -> None:
        listener = await Listener(tracked).begin()
        assert await listener.state() == "queued"
        broker.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        broker.client.call("SET", broker.queue_keys("send_message").paused, "1700000000000 by hand")
        assert await listener.state() == "held"
        await listener.go_away()

    run(test)


# -- who gets none ----------------------------------------------------------------------------------------------------


def test_foreign_and_unknown_tasks_answer_as_the_state_does(tracked: str) -> None:  # noqa: F811
    async def test() -> None:
        answers = []
        for task_id in (tracked, "nobody-knows-it"):
            one = await Listener(task_id, me="8").begin()
            answers.append((one.status, one.headers, await one.rest()))
        assert answers[0] == answers[1]
        assert answers[0][0] == 404

    run(test)


def test_project_says_who_may_listen(tracked: str) -> None:  # noqa: F811
    async def test() -> None:
        mine, theirs = await Listener(tracked).begin(), await Listener(tracked, me="8").begin()
        assert (mine.status, theirs.status) == (200, 404)
        await theirs.rest()
        assert await mine.state() == "queued"
        await mine.go_away()

    run(test)


@pytest.mark.parametrize(("most", "accept"), [(0, "text/event-stream"), (100, "application/json"), (100, "*/*")])
def test_state_is_told_once_where_there_are_no_streams_or_nobody_asks(
    tracked: str,  # noqa: F811
    most: int,
    accept: str,
) -> None:
    async def test() -> None:
        one = await Listener(tracked, accept=accept).begin()
        assert (one.status, one.headers["content-type"]) == (200, "application/json")
        assert json.loads(await one.rest())["state"] == "queued"

    run(test, most=most)


def test_wsgi_server_tells_the_state_once(staff: Client, tracked: str) -> None:  # noqa: F811
    with override_settings(CELERY_STREAMS_TASK_EVENTS=100):
        response = staff.get(f"/queues/tasks/{tracked}/", headers={"Accept": "text/event-stream"})

    assert (response.status_code, response.json()["state"]) == (200, "queued")


def test_redis_that_is_away_at_the_start_is_503_and_says_nothing(tracked: str) -> None:  # noqa: F811
    async def test() -> None:
        one = await Listener(tracked).begin()
        assert one.status == 503
        assert "127.0.0.1" not in await one.rest()

    run(test, CELERY_STREAMS_URL=AWAY)


@pytest.mark.parametrize("wrong", [-1, "many", None, True, 1.5])
def test_number_that_is_none_is_found_by_the_checks_and_lets_nobody_in(
    staff: Client,  # noqa: F811
    tracked: str,  # noqa: F811
    wrong: Any,
) -> None:
    from django_integration.checks import check_celery_streams

    with override_settings(CELERY_STREAMS_TASK_EVENTS=wrong):
        found = [one for one in check_celery_streams() if "TASK_EVENTS" in one.msg]
        assert [one.id for one in found] == ["celery_streams.E001"]
        assert staff.get(f"/queues/tasks/{tracked}/").status_code == 500

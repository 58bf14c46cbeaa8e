"""Active requests: what Celery's code in the parent finds of the tasks that children run, by entry and not by id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state as worker_state

from celery_streams import streams_of
from celery_streams.broker import StreamBroker
from celery_streams.entries import Entry
from celery_streams.message import Message
from celery_streams.partitions import partitions
from celery_streams.worker.active_requests import ActiveRequests
from celery_streams.worker.lost_tasks import LostTasks
from celery_streams.worker.requests import build_request
from celery_streams.worker.slots import Snapshot

QUEUES = ("a", "b", "c")
SHOT = Snapshot(
    pid=0, batch=1, finished=(), running=None, waiting=(), started_at=0.0, soft=None, hard=None,
    acked_early=False, exited=False, done=0,
)  # fmt: skip


class Child:
    """A child with this much in its slot."""

    def __init__(self, **shot: Any) -> None:
        self.consumer = f"w@h/{shot['pid']}"
        self.shot = replace(SHOT, **shot)

    def snapshot(self) -> Snapshot:
        return self.shot


class Crew:
    """Children that do what a test says."""

    def __init__(self) -> None:
        self.children: list[Child] = []

    def holders(self) -> list[Child]:
        return self.children

    def count_starts(self) -> None:
        """Nothing was started."""

    def kept_message(self, holder: Child) -> Message | None:
        return None


@pytest.fixture
def crew() -> Crew:
    return Crew()


@pytest.fixture
def requests(app: Callable[..., Celery], broker: StreamBroker, crew: Crew) -> Iterator[ActiveRequests]:
    project = app(result_backend="cache+memory://")
    project.set_current()

    @project.task(name="work", shared=False)
    def work() -> None:
        """Runs nowhere here."""

    lost = LostTasks(project, "w@h", streams_of(project), eventer=lambda: None)
    made = ActiveRequests(lost, crew, eventer=lambda: None)  # type: ignore[arg-type]
    yield made
    crew.children = []
    made.sync()


def add(broker: StreamBroker, queue: str, task_id: str, entry_id: str = "7-0") -> Entry:
    """Put a message into the stream of a queue under an id of our choice."""
    (ref, *_) = broker.streams([queue])
    headers = json.dumps({"lang": "py", "task": "work", "id": task_id, "root_id": task_id, "argsrepr": "()"})
    properties = json.dumps({"content_type": "application/json", "content_encoding": "utf-8"})
    fields = ("headers", headers, "properties", properties, "body", "[[], {}, {}]")
    broker.client.call("XADD", ref.key, entry_id, *fields)
    return Entry(ref, entry_id.encode())


def test_tasks_of_several_queues_with_one_entry_id_are_all_seen_each_in_its_process(
    requests: ActiveRequests, broker: StreamBroker, crew: Crew
) -> None:
    entries = [add(broker, queue, f"id-{queue}") for queue in QUEUES]
    crew.children = [Child(pid=pid, running=entry) for pid, entry in enumerate(entries, 1)]

    requests.sync()

    active = {request.id: request.worker_pid for request in worker_state.active_requests}
    assert active == {"id-a": 1, "id-b": 2, "id-c": 3}
    assert requests.at_work == dict(enumerate(entries, 1))
    crew.children[1] = Child(pid=2, waiting=(entries[1],))
    requests.sync()
    assert {request.id for request in worker_state.active_requests} == {"id-a", "id-c"}
    assert {request.id for request in worker_state.reserved_requests} == {"id-a", "id-b", "id-c"}


def test_two_messages_with_one_task_id_are_both_seen_and_the_end_of_one_hides_not_the_other(
    requests: ActiveRequests, broker: StreamBroker, crew: Crew
) -> None:
    entries = [add(broker, "a", "import-5", f"{number}-0") for number in (7, 8)]
    crew.children = [Child(pid=pid, running=entry) for pid, entry in enumerate(entries, 1)]
    requests.sync()
    both = sorted(request.worker_pid for request in worker_state.active_requests)

    for ended, left in ((0, 2), (1, 1)):
        crew.children = [Child(pid=pid, running=entry) for pid, entry in enumerate(entries, 1) if pid - 1 != ended]
        requests.sync()
        assert [request.worker_pid for request in worker_state.active_requests] == [left]
        assert worker_state.requests["import-5"].worker_pid == left

    assert both == [1, 2]


@pytest.mark.parametrize("names", [("id-0", "id-1", "id-2"), ("import-5", "import-5", "import-5")])
def test_tasks_that_celerys_own_requests_run_are_seen_once(
    requests: ActiveRequests, broker: StreamBroker, crew: Crew, names: tuple[str, ...]
) -> None:
    made = []
    for number, (queue, name) in enumerate(zip(partitions("a", 3), names, strict=True)):
        entry = add(broker, queue, name)
        read = broker.fetch(entry)
        assert read is not None
        # What runs it in a pool of one process.
        own = build_request(requests._lost.app, read, hostname="w@h", eventer=None, on_ack=print, on_reject=print)
        worker_state.task_reserved(own)
        worker_state.task_accepted(own)
        made.append((entry, own))
        crew.children.append(Child(pid=number + 1, running=entry))

    requests.sync()

    assert [requests.known[entry] is own for entry, own in made] == [True, True, True]
    assert sorted(request.id for request in worker_state.active_requests) == list(names)

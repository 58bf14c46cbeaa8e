"""Celery's results on a Redis Cluster: what is stored, told and counted there, and what a slot or a node does to it."""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.contrib.testing.worker import start_worker
from celery.exceptions import ChordError
from celery.result import AsyncResult

from celery_streams.cluster_map import slot_of
from celery_streams.cluster_results import ClusterBackend
from tests.support.cluster import Cluster
from tests.support.eventually import eventually


@pytest.fixture
def make_cluster_app(app: Callable[..., Celery], nodes: Cluster) -> Iterator[Callable[..., Celery]]:
    """Make apps whose streams and results are on the empty cluster."""
    made: list[Celery] = []

    def make(**settings: Any) -> Celery:
        made.append(app(streams_url=nodes.url, result_backend=nodes.url, **settings))
        return made[-1]

    yield make
    for one in made:
        one.backend.result_consumer.stop()
        one.backend.result_consumer._pubsub = None  # results that are collected later unsubscribe nowhere
        one.backend.client.close()


@pytest.fixture
def on_cluster(make_cluster_app: Callable[..., Celery]) -> Celery:
    """An app with two tasks."""
    found = make_cluster_app()

    @found.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @found.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @found.task(name="fail")
    def fail() -> None:
        raise KeyError("on purpose")

    return found


@pytest.fixture
def at_work(on_cluster: Celery) -> Iterator[Celery]:
    """The app, and a worker in this process."""
    with start_worker(on_cluster, pool="threads", perform_ping_check=False, shutdown_timeout=30):
        yield on_cluster


def test_groups_chains_and_chords_end(at_work: Celery, nodes: Cluster) -> None:
    add, total = at_work.tasks["add"], at_work.tasks["total"]

    assert isinstance(at_work.backend, ClusterBackend)
    assert group(add.s(n, n) for n in range(10)).apply_async().get(timeout=30) == [2 * n for n in range(10)]
    assert chain(add.s(1, 2), add.s(3), add.s(4)).apply_async().get(timeout=30) == 10
    done = chord((add.s(n, n) for n in range(10)), total.s()).apply_async()
    assert done.get(timeout=30) == 90
    assert [one.get(timeout=30) for one in done.parent.results] == [2 * n for n in range(10)]
    inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
    assert chord([inner, add.s(3, 3)], total.s()).apply_async().get(timeout=30) == 12
    within = group([group([add.s(1, 1), add.s(2, 2)]), add.s(3, 3)])
    assert chord(within, total.s()).apply_async().get(timeout=30) == 12

    # The body is done before its chord is cleaned up.
    eventually(lambda: not [key for key in nodes.keys("*taskset*") if key.endswith((".j", ".t", ".s", ".d"))])


def test_part_that_fails_fails_the_body(at_work: Celery) -> None:
    add, fail, total = (at_work.tasks[name] for name in ("add", "fail", "total"))

    made = chord([add.s(1, 1), fail.s(), add.s(2, 2)], total.s()).apply_async()

    with pytest.raises(ChordError, match="on purpose"):
        AsyncResult(made.id, app=at_work).get(timeout=30)


def test_result_is_kept_for_as_long_as_is_said_and_can_be_forgotten(
    make_cluster_app: Callable[..., Celery], nodes: Cluster
) -> None:
    backend = make_cluster_app(result_expires=60).backend
    ids = [uuid.uuid4().hex for _ in range(6)]  # on several nodes
    for number, task_id in enumerate(ids):
        backend.store_result(task_id, number, "SUCCESS")

    assert [backend.get_result(task_id) for task_id in ids] == list(range(6))
    assert dict(backend.get_many(ids, timeout=10)).keys() == set(ids)
    for task_id in ids:
        assert 0 < backend.client.ttl(backend.get_key_for_task(task_id)) <= 60
        backend.forget(task_id)
    assert nodes.keys("celery-task-meta-*") == []

    kept = make_cluster_app(result_expires=None).backend
    kept.store_result("kept", 1, "SUCCESS")
    assert kept.client.ttl(kept.get_key_for_task("kept")) == -1


def test_saved_group_is_restored_and_deleted(on_cluster: Celery) -> None:
    backend = on_cluster.backend
    saved = on_cluster.GroupResult("of-two", [AsyncResult("one", app=on_cluster), AsyncResult("two", app=on_cluster)])

    saved.save()

    restored = on_cluster.GroupResult.restore("of-two")
    assert [one.id for one in restored.results] == ["one", "two"]
    backend.delete_group("of-two")
    assert on_cluster.GroupResult.restore("of-two") is None


def waited_for(app: Celery, task_id: str, *, asks: bool) -> tuple[threading.Thread, list[Any]]:
    """Wait for a result in a thread; returns it and where the result is put."""
    consumer = app.backend.result_consumer
    consumer.ask_again = 0.1 if asks else float("inf")
    result, found = AsyncResult(task_id, app=app), []
    app.backend.on_task_call(None, task_id)
    thread = threading.Thread(target=lambda: found.append(result.get(timeout=30)))
    thread.start()
    return thread, found


def listeners(nodes: Cluster, task_id: str) -> int:
    return sum(client.call("PUBSUB", "NUMSUB", f"celery-task-meta-{task_id}")[1] for client in nodes.clients)


def test_who_waits_is_told_from_whatever_node_the_result_is_at(
    make_cluster_app: Callable[..., Celery], nodes: Cluster
) -> None:
    waits, stores = make_cluster_app(), make_cluster_app()
    for task_id in nodes.queues_apart(3, prefix="t"):
        thread, found = waited_for(waits, task_id, asks=False)
        eventually(lambda task_id=task_id: listeners(nodes, task_id))

        stores.backend.store_result(task_id, task_id, "SUCCESS")

        thread.join(30)
        assert found == [task_id]


def test_result_whose_news_was_lost_is_asked_for(on_cluster: Celery, nodes: Cluster) -> None:
    thread, found = waited_for(on_cluster, "lost", asks=True)
    eventually(lambda: listeners(nodes, "lost"))
    backend = on_cluster.backend

    meta = {"task_id": "lost", "status": "SUCCESS", "result": 7, "traceback": None, "children": []}
    backend.client.set(backend.get_key_for_task("lost"), backend.encode(meta))

    thread.join(30)
    assert found == [7]


def test_waiting_goes_on_when_the_connection_is_cut(make_cluster_app: Callable[..., Celery], nodes: Cluster) -> None:
    waits, stores = make_cluster_app(), make_cluster_app()
    thread, found = waited_for(waits, "cut", asks=False)
    eventually(lambda: listeners(nodes, "cut"))

    for client in nodes.clients:
        client.call("CLIENT", "KILL", "TYPE", "pubsub")
    eventually(lambda: listeners(nodes, "cut"), message="it is listened again")
    stores.backend.store_result("cut", 8, "SUCCESS")

    thread.join(30)
    assert found == [8]


def test_chord_whose_slot_moves_ends(on_cluster: Celery, nodes: Cluster) -> None:
    backend, gid = on_cluster.backend, "moving"
    size = backend.get_key_for_group(gid, ".s").decode()
    slot, source = slot_of(size), nodes.owner(size)
    target = (source + 1) % 3
    backend.set_chord_size(gid, 3)

    def count(part: int) -> Any:
        keys = [backend.get_key_for_group(gid, end) for end in (".j", ".t", ".s", ".d", "", ".c")]
        script = backend._chord_part_return_script
        return script(keys=keys, args=[f"t{part}", f"v{part}", 1, part, 60, 60, 60, f"token{part}"])

    if not hasattr(type(backend), "_chord_claim_extend_script"):
        pytest.skip("this Celery counts the parts of a chord otherwise")
    try:
        assert count(0)[0] == 1
        nodes.begin_move(slot, source, target)
        counted: list[Any] = []
        thread = threading.Thread(target=lambda: counted.append(count(1)[0]))
        thread.start()  # waits, for some of its keys are not there
        nodes.end_move(slot, source, target)
        thread.join(30)
        assert counted == [2]
        assert count(2)[::3] == [3, 1]
        assert count(2)[::3] == [3, 1], "who asks again, after a lost reply, has the dispatch all the same"
        assert count(1)[::3] == [3, 0]
    finally:
        nodes.begin_move(slot, target, source)
        nodes.end_move(slot, target, source)


def test_transaction_is_carried_out_where_its_keys_are(on_cluster: Celery, nodes: Cluster) -> None:
    """Celery 5.5 and 5.6 count the parts of a chord in one."""
    client = on_cluster.backend.client
    slot, source = slot_of("{t}"), nodes.owner("{t}")
    target = (source + 1) % 3
    try:
        for expected in (1, 2):
            with client.pipeline() as pipe:
                replies = pipe.zadd("{t}.j", {f"v{expected}": expected}).zcount("{t}.j", "-inf", "+inf").get("{t}.s")
                assert replies.execute() == [1, expected, None]
            if expected == 1:
                nodes.begin_move(slot, source, target)
                nodes.end_move(slot, source, target)
    finally:
        nodes.begin_move(slot, target, source)
        nodes.end_move(slot, target, source)


def test_backend_survives_pickling_and_shows_no_password(on_cluster: Celery) -> None:
    backend = ClusterBackend(app=on_cluster, url="redis+cluster://me:secret@one:7000;two:7001")

    again = pickle.loads(pickle.dumps(backend))

    assert again.url == backend.url
    assert backend.as_uri() == "redis+cluster://me:**@one:7000;two:7001"
    assert backend.as_uri(include_password=True) == backend.url

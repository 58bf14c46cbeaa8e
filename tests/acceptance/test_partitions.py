"""Queues with partitions, with real workers: all of them are read, as one queue, and nothing is lost or doubled."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

import celery_streams
from celery_streams import partitions
from tests.support.eventually import eventually

ACT = "tests.proj.actions.act"
QUEUE = "jobs"
EIGHT = {"streams_partitions": {QUEUE: 8}}

#: Seconds; short, so that a killed worker's tasks are claimed soon.
VISIBILITY_TIMEOUT = 4.0


def used(project, queue=QUEUE):
    """Return the numbers of the partitions whose names somebody has used."""
    return [partitions.partitions(queue, 256).index(name) for name in project.broker.partitions(queue)]


def is_drained(project, queue=QUEUE):
    found = project.status(queue)
    return (found.waiting, found.pending, found.delayed) == (0, 0, 0)


def order_of(project, results):
    """Return the results in the order in which their tasks were started."""
    runs = {run["id"]: run["at"] for run in project.ledger.runs()}
    return sorted(results, key=lambda one: runs[one.id])


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent", "asyncio"])
def test_worker_of_each_pool_reads_all_partitions_as_one_queue(project, worker, pool):
    # Given messages in all partitions, some of them for later, and a dead one
    act = project.app(**EIGHT).tasks[ACT]
    waiting = [act.apply_async(("ok", number), queue=QUEUE) for number in range(60)]
    with celery_streams.bulk(act.app):
        waiting += [act.apply_async(("ok", number), queue=QUEUE) for number in range(60, 100)]
    later = [act.apply_async(("ok", number), queue=QUEUE, countdown=0.5) for number in range(16)]
    fails = act.apply_async(("error", "on purpose"), queue=QUEUE)
    again = act.apply_async(("retry", 7), {"countdown": 0}, queue=QUEUE)
    asks = act.apply_async(("request",), queue=QUEUE)
    assert used(project) == list(range(8))
    assert project.status(QUEUE).waiting == 103
    assert project.status(QUEUE).delayed == 16
    names = project.broker.partitions(QUEUE)
    lengths = [project.broker.client.call("XLEN", project.broker.queue_keys(name).streams[0]) for name in names]
    assert min(lengths) > 0
    assert sum(lengths) == 103

    # When a worker reads the queue by its name
    running = worker(pool=pool, queues=QUEUE, options=("-l", "INFO"), **EIGHT)

    # Then all of them run, once, and what a task sees of its delivery is the queue
    assert [one.get(timeout=30) for one in waiting] == list(range(100))
    assert [one.get(timeout=30) for one in later] == list(range(16))
    assert again.get(timeout=30) == 7
    assert asks.get(timeout=30)["delivery_info"]["routing_key"] == QUEUE
    eventually(lambda: is_drained(project))
    counted = project.counted()
    assert counted.pop(again.id) == 2
    assert set(counted.values()) == {1}
    assert [(one.queue, one.task_id) for one in project.dead_letters(QUEUE)] == [(QUEUE, fails.id)]
    # And so is what remote control shows
    said = act.app.control.inspect(timeout=5, limit=1).active_queues()
    assert [queue["name"] for queues in said.values() for queue in queues] == [QUEUE]
    running.stop()
    assert "::partition" not in running.log


def test_what_a_killed_worker_held_runs_on_another_and_nothing_is_lost_or_runs_twice(project, worker):
    settings = {**EIGHT, "streams_visibility_timeout": VISIBILITY_TIMEOUT}
    act = project.app(**settings).tasks[ACT]
    first = worker(name="first", queues=QUEUE, concurrency=4, **settings)
    results = [act.apply_async(("sleep", number), {"seconds": 0.02}, queue=QUEUE) for number in range(300)]
    eventually(lambda: len(project.ledger.runs()) >= 60)

    first.kill()
    worker(name="second", queues=QUEUE, concurrency=4, **settings)

    assert [one.get(timeout=10 * VISIBILITY_TIMEOUT) for one in results] == list(range(300))
    counted = project.counted()
    assert set(counted) == {one.id for one in results}
    # What ran in the moment of the kill, in each of the four children, and may have ended just then
    assert sum(counted.values()) - 300 <= 2 * 4
    assert set(counted.values()) <= {1, 2}
    eventually(lambda: is_drained(project))
    assert project.status(QUEUE).dead == 0


def test_killed_child_takes_nothing_with_it(project, worker):
    act = project.app(**EIGHT).tasks[ACT]
    worker(queues=QUEUE, concurrency=2, **EIGHT)
    killed = [act.apply_async(("kill", number), queue=QUEUE) for number in range(3)]
    results = [act.apply_async(("ok", number), queue=QUEUE) for number in range(100)]

    assert [one.get(timeout=30) for one in (*killed, *results)] == [*range(3), *range(100)]
    assert project.counted() == Counter({**{one.id: 2 for one in killed}, **{one.id: 1 for one in results}})
    eventually(lambda: is_drained(project))


def test_number_grows_under_load_and_old_workers_read_the_new_partitions_too(project, worker):
    # Given a worker without the setting, and one with two, and load
    few = project.app(streams_partitions={QUEUE: 2}).tasks[ACT]
    worker(name="old", queues=QUEUE, concurrency=1)
    worker(name="two", queues="jo*", concurrency=1, streams_partitions={QUEUE: 2})
    stop, results = threading.Event(), []

    def publish(task):
        while not stop.is_set():
            results.append(task.apply_async(("ok", len(results)), queue=QUEUE))
            stop.wait(0.01)

    threads = [threading.Thread(target=publish, args=(few,))]
    threads[0].start()
    eventually(lambda: used(project) == [0, 1] and len(project.counted()) > 20)

    # When publishers come that spread the queue wider, beside those of before
    many = project.app(streams_partitions={QUEUE: 6}).tasks[ACT]
    threads.append(threading.Thread(target=publish, args=(many,)))
    threads[1].start()

    # Then all of it runs, though no worker was told by anybody but the news
    eventually(lambda: used(project) == list(range(6)))
    before = len(results)
    eventually(lambda: len(results) > before + 100)
    stop.set()
    for thread in threads:
        thread.join()
    for one in results:
        one.get(timeout=30)
    eventually(lambda: is_drained(project))
    assert project.counted() == Counter(dict.fromkeys((one.id for one in results), 1))


def test_partitions_beyond_a_lower_number_are_read_until_they_are_empty(project, worker):
    act = project.app(**EIGHT).tasks[ACT]
    results = [act.apply_async(("ok", number), queue=QUEUE) for number in range(60)]
    fewer = {"streams_partitions": {QUEUE: 2}}
    less = project.app(**fewer).tasks[ACT]
    results += [less.apply_async(("ok", number), queue=QUEUE) for number in range(60, 80)]
    lower = [len(project.broker.client.call("XRANGE", project.broker.queue_keys(name).streams[0], "-", "+"))
             for name in project.broker.partitions(QUEUE)[:2]]  # fmt: skip
    assert sum(lower) >= 20

    worker(queues=QUEUE, **fewer)

    assert [one.get(timeout=30) for one in results] == list(range(80))
    eventually(lambda: is_drained(project))


def test_setting_that_comes_later_leaves_what_waits_where_it_is_read(project, worker):
    before = project.app().tasks[ACT]
    results = [before.apply_async(("ok", number), queue=QUEUE) for number in range(10)]
    after = project.app(**EIGHT).tasks[ACT]
    results += [after.apply_async(("ok", number), queue=QUEUE) for number in range(10, 40)]

    worker(queues=QUEUE, **EIGHT)

    assert [one.get(timeout=30) for one in results] == list(range(40))


def test_nothing_of_a_paused_queue_starts_in_any_partition_old_or_new(project, worker):
    # Given a paused queue with two partitions
    few = project.app(streams_partitions={QUEUE: 2})
    running = worker(queues=f"{QUEUE},other", options=("-l", "INFO"))
    assert few.tasks[ACT].apply_async(("ok", 0), queue=QUEUE).get(timeout=15) == 0
    few.tasks[ACT].apply_async(("ok", 1), queue=QUEUE).get(timeout=15)
    celery_streams.pause(few, QUEUE, reason="for the test")
    eventually(lambda: f"Queue {QUEUE} is paused" in running.log)

    # When a publisher makes more of them
    act = project.app(**EIGHT).tasks[ACT]
    left = [act.apply_async(("ok", number), queue=QUEUE) for number in range(40)]
    beside = [act.apply_async(("ok", number), queue="other") for number in range(20)]

    # Then nothing of them starts
    assert [one.get(timeout=15) for one in beside] == list(range(20))
    eventually(lambda: f"New partitions of queues {QUEUE}" in running.log)
    assert act.apply_async(("ok", 9), queue="other").get(timeout=15) == 9
    assert not {one.id for one in left} & set(project.counted())
    assert project.status(QUEUE).waiting == 40
    assert project.status(QUEUE).pause_reason == "for the test"

    # And when it is resumed, all
    celery_streams.resume(few, QUEUE)
    assert [one.get(timeout=15) for one in left] == list(range(40))
    assert running.log.count(f"Queue {QUEUE} is paused") == 1


def test_messages_of_a_key_run_one_at_a_time_whoever_runs_them(project, worker):
    limits = {"concurrency_key": "value", "concurrency_per_key": 1}
    settings = {**EIGHT, "streams_limits": {ACT: limits}}
    act = project.app(**settings).tasks[ACT]
    keys = [f"key {number}" for number in range(6)]
    results = {
        one: [act.apply_async(("sleep", one), {"seconds": 0.01}, queue=QUEUE) for _ in range(15)] for one in keys
    }

    for name in ("one", "two"):
        worker(name=name, queues=QUEUE, concurrency=3, wait=False, **settings)

    for one in keys:
        assert [result.get(timeout=60) for result in results[one]] == [one] * 15
    for one in keys:
        mine = order_of(project, results[one])
        ends = [project.ledger.read("end", result.id)[0]["at"] for result in mine]
        starts = [project.ledger.runs(result.id)[0]["at"] for result in mine]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_messages_of_a_key_are_delivered_in_the_order_in_which_they_were_published(project, worker):
    act = project.app(**EIGHT).tasks[ACT]
    act.streams_partition_key = "value"
    results = [act.apply_async(("ok", number % 7), queue=QUEUE) for number in range(140)]

    worker(queues=QUEUE, concurrency=1, **EIGHT)

    assert [one.get(timeout=30) for one in results] == [number % 7 for number in range(140)]
    for key in range(7):
        mine = results[key::7]
        assert [one.id for one in order_of(project, mine)] == [one.id for one in mine]
    assert len(used(project)) > 3


def test_retry_stays_in_its_partition_whatever_the_number_is_by_then(project, worker):
    act = project.app(**EIGHT).tasks[ACT]
    results = [act.apply_async(("retry", number), {"countdown": 0.2}, queue=QUEUE) for number in range(24)]
    names = project.broker.partitions(QUEUE)
    lay = {
        fields[1]: name
        for name in names
        for _, fields in project.broker.client.call("XRANGE", project.broker.queue_keys(name).streams[0], "-", "+")
    }
    places = {one.id: name for one in results for headers, name in lay.items() if one.id.encode() in headers}
    assert len(set(places.values())) > 4

    # A worker without the setting, whose own publishes go to the first
    worker(queues=QUEUE)

    def delayed():
        found = {}
        for name in names:
            for member in project.broker.client.call("ZRANGE", project.broker.queue_keys(name).delayed, 0, -1):
                found[member.decode().partition(":")[0]] = name
        return found

    seen = {}
    eventually(lambda: seen.update(delayed()) or is_drained(project))
    assert [one.get(timeout=30) for one in results] == list(range(24))
    assert seen
    assert {one: places[one] for one in seen} == seen

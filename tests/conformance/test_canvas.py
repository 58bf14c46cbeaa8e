"""Chains, groups, chords and callbacks."""

from __future__ import annotations

import time
import uuid

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from tests.proj.actions import ActionError
from tests.support.eventually import eventually
from tests.support.versions import needs_celery


@pytest.fixture
def add(side):
    return side.task("add")


@pytest.fixture
def total(side):
    return side.task("total")


@pytest.fixture
def fail(side):
    return side.task("fail")


def test_chain_hands_each_result_to_the_next(side, add):
    result = chain(add.s(1, 2), add.s(3), add.s(4)).apply_async()

    assert side.value(result) == 10
    assert result.parent.get() == 6
    assert result.parent.parent.get() == 3


def test_chain_stops_at_the_first_failure(side, add, fail):
    result = chain(add.s(1, 2), fail.s(), add.s(3)).apply_async()

    with pytest.raises(ActionError):
        side.value(result.parent)
    assert isinstance(side.error(result), ActionError)
    assert result.state == "FAILURE"


def test_chain_with_a_countdown_inside_waits(side, add):
    result = chain(side.act.si("ok", 1), side.act.si("ok", 2).set(countdown=0.4)).apply_async()

    assert side.value(result) == 2
    (first,), (second,) = side.ledger.runs(result.parent.id), side.ledger.runs(result.id)
    assert second["at"] - first["at"] >= 0.4


def test_group_returns_its_results_in_order(side, add):
    result = group(add.s(n, n) for n in range(10)).apply_async()

    assert side.value(result) == [2 * n for n in range(10)]
    assert result.successful()


def test_group_with_a_failure_raises_it_and_keeps_the_others(side, add, fail):
    result = group(add.s(1, 1), fail.s(), add.s(2, 2)).apply_async()

    with pytest.raises(ActionError):
        side.value(result)
    eventually(result.ready)

    assert [one.state for one in result.results] == ["SUCCESS", "FAILURE", "SUCCESS"]


@needs_celery((5, 7), "before, only one result object for a task id is told of its end")
def test_saved_group_can_be_restored(side, add):
    result = group(add.s(n, 1) for n in range(3)).apply_async()
    result.save()

    restored = side.app.GroupResult.restore(result.id)

    assert side.value(restored) == [1, 2, 3]


def test_chord_calls_its_body_with_all_results(side, add, total):
    result = chord((add.s(n, n) for n in range(10)), total.s()).apply_async()

    assert side.value(result) == 90


def test_body_of_a_chord_runs_once(side, add, new_id):
    body = side.task("remember").s().set(task_id=new_id)
    result = chord([add.s(n, n) for n in range(20)], body).apply_async()

    side.value(result)
    side.settled()

    assert len(side.ledger.read("called", new_id)) == 1


def test_chord_with_a_failing_header_fails_its_body(side, add, fail, new_id):
    body = side.task("remember").s().set(task_id=new_id).on_error(side.task("on_error").s())
    result = chord([add.s(1, 1), fail.s(), add.s(2, 2)], body).apply_async()

    assert isinstance(side.error(result), ChordError)
    eventually(lambda: side.ledger.read("errback", new_id))

    assert side.ledger.read("called", new_id) == []


def test_chord_of_a_single_task_is_still_a_chord(side, add, total):
    assert side.value(chord([add.s(1, 2)], total.s()).apply_async()) == 3


def test_group_in_a_chain_becomes_a_chord(side, add, total):
    workflow = chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), add.s(100))

    assert side.value(workflow.apply_async()) == 107


def test_retry_in_a_chords_header_holds_the_body_back(side, total):
    header = [side.act.s("retry", 1, until=1, countdown=0), side.act.s("ok", 2)]

    assert side.value(chord(header, total.s()).apply_async()) == 3


def test_nested_chords_end(side, add, total):
    inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
    workflow = chord([inner, add.s(3, 3)], total.s())

    assert side.value(workflow.apply_async()) == 12


def test_chunks_split_the_arguments(side, add):
    result = add.chunks([(n, n) for n in range(9)], 4).apply_async()

    assert side.value(result) == [[0, 2, 4, 6], [8, 10, 12, 14], [16]]


def test_map_and_starmap_run_in_one_task(side, add):
    assert side.value(side.task("double").map([1, 2, 3]).apply_async()) == [2, 4, 6]
    assert side.value(add.starmap([(1, 2), (3, 4)]).apply_async()) == [3, 7]


def test_link_is_called_with_the_result(side, add, new_id):
    result = add.apply_async((1, 2), link=side.task("remember").s("more").set(task_id=new_id))

    assert side.value(result) == 3
    assert side.value(side.app.AsyncResult(new_id)) == [3, "more"]
    (called,) = side.ledger.read("called", new_id)
    assert called["parent"] == result.id
    assert called["root"] == result.id


@needs_celery((5, 7), "before, only one result object for a task id is told of its end")
def test_several_links_are_all_called(side, add):
    links = [side.task("remember").s(n) for n in range(3)]
    ids = [link.freeze().id for link in links]

    result = add.apply_async((1, 2), link=links)

    side.value(result)
    assert [side.value(side.app.AsyncResult(one)) for one in ids] == [[3, 0], [3, 1], [3, 2]]


def test_link_is_not_called_after_a_failure(side, fail, new_id):
    result = fail.apply_async(link=side.task("remember").s().set(task_id=new_id))

    assert isinstance(side.error(result), ActionError)
    side.settled()

    assert side.ledger.read("called", new_id) == []


def test_errback_gets_request_exception_and_traceback(side, fail):
    result = fail.apply_async(link_error=side.task("on_error").s())

    assert isinstance(side.error(result), ActionError)
    (called,) = eventually(lambda: side.ledger.read("errback", result.id))
    assert called["text"] == "failed in a canvas"
    assert "ActionError" in called["traceback"]


def test_errback_of_the_old_style_gets_the_id(side, fail):
    result = fail.apply_async(link_error=side.task("on_error_by_id").s())

    assert isinstance(side.error(result), ActionError)
    (called,) = eventually(lambda: side.ledger.read("errback", result.id))
    assert called["style"] == "id"


def test_errback_is_called_once_retries_are_exhausted(side):
    result = side.act.apply_async(
        ("retry_error", "gave up"), {"max_retries": 1, "countdown": 0}, link_error=side.task("on_error").s()
    )

    assert isinstance(side.error(result), ActionError)
    eventually(lambda: side.ledger.read("errback", result.id))
    side.settled()

    assert [line["text"] for line in side.ledger.read("errback", result.id)] == ["gave up"]


def test_errback_of_a_chain_is_called_for_its_failing_link(side, add, fail):
    result = chain(add.s(1, 2), fail.s(), add.s(3)).apply_async(link_error=side.task("on_error").s())

    assert isinstance(side.error(result), ActionError)
    assert eventually(lambda: side.ledger.read("errback", result.parent.id))


def test_task_can_replace_itself(side):
    result = side.act.delay("replace", "instead")

    assert side.value(result) == "instead"


def test_replaced_task_keeps_its_place_in_a_chain(side, add):
    assert side.value((side.act.s("replace", 4) | add.s(1)).apply_async()) == 5


def test_tasks_of_a_chain_know_root_and_parent(side):
    result = chain(side.act.si("request"), side.act.si("request")).apply_async()

    second = side.value(result)
    first = result.parent.get()

    assert second["root_id"] == first["id"]
    assert second["parent_id"] == first["id"]


@pytest.mark.parametrize("kind", ["group", "chord"])
def test_members_that_a_generator_makes_slowly_start_while_the_next_are_made(plain, kind):
    seen = []

    def members():
        for number in range(3):
            time.sleep(0.6)  # what a query to a database takes
            seen.append(plain.task("act").si("ok", number).set(task_id=uuid.uuid4().hex))
            yield seen[-1]
        eventually(lambda: plain.ledger.runs(seen[0].options["task_id"]), message="the first one runs before the last")
        yield plain.task("act").si("ok", 3)

    result = group(members()).apply_async() if kind == "group" else chord(members())(plain.task("total").s())

    assert plain.value(result) == ([0, 1, 2, 3] if kind == "group" else 6)


def test_members_of_a_group_know_their_group(side):
    result = group(side.act.si("request") for _ in range(2)).apply_async()

    requests = side.value(result)

    assert {request["group"] for request in requests} == {result.id}
    assert [request["group_index"] for request in requests] == [0, 1]


def test_large_group_finishes(side, add):
    result = group(add.s(n, 1) for n in range(100)).apply_async()

    assert sum(side.value(result)) == sum(range(101))

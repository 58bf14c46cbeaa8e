"""Tasks that are unique or limited on streams: all that Celery itself gives a task is the same with them on both sides.

List workers and publishers ignore these options; what streams do about duplicates is at the end.
"""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult

from celery_streams import DuplicateTask
from tests.proj.actions import ActionError
from tests.support.eventually import eventually

TASKS = ["act_unique", "act_unique_until_start", "act_in_turn", "act_limited"]


@pytest.fixture(params=TASKS)
def task(request, side):
    """Each such task, on each side."""
    return side.task(request.param)


@pytest.fixture(params=TASKS[:2])
def unique(request, streams):
    """Each unique task, on streams."""
    return streams.task(request.param)


def test_publish_returns_a_result_of_its_own_with_the_value(side, task, new_id):
    first, second = task.delay("ok", f"{new_id}-1"), task.delay("ok", value=f"{new_id}-2")

    assert isinstance(first, AsyncResult)
    assert isinstance(second, AsyncResult)
    assert first.id != second.id
    assert (side.value(first), side.value(second)) == (f"{new_id}-1", f"{new_id}-2")
    assert (first.state, first.backend.get_task_meta(first.id)["status"]) == ("SUCCESS", "SUCCESS")
    for result in (first, second):
        (run,) = side.ran(result.id)
        assert (run["task"], run["redelivered"]) == (task.name, False)


def test_same_message_runs_again_once_it_is_done(side, task, new_id):
    for _ in range(2):
        result = task.delay("ok", new_id)
        assert side.value(result) == new_id
        # A result is there a moment before its message is gone.
        side.settled()
        side.settled()


def test_id_that_was_chosen_is_kept(side, task, new_id):
    result = task.apply_async(("ok", new_id), task_id=new_id)

    assert result.id == new_id
    assert side.value(result) == new_id


def test_links_are_called(side, task, new_id):
    def linked(name):
        return side.act.si("ok", name).set(task_id=f"{new_id}-{name}")

    fine = task.apply_async(("ok", new_id), link=linked("a"), link_error=linked("d"))
    bad = task.apply_async(("error", f"{new_id}-bad"), link=linked("c"), link_error=linked("b"))

    assert side.value(fine) == new_id
    assert isinstance(side.error(bad), ActionError)
    assert [side.ran(f"{new_id}-{name}")[0]["value"] for name in "ab"] == ["a", "b"]
    side.settled()
    assert [run for name in "cd" for run in side.ledger.runs(f"{new_id}-{name}")] == []


def test_chain_hands_results_on_through_it(side, task, new_id):
    result = chain(side.act.s("ok", "ok"), task.s(new_id), side.task("add").s("!")).apply_async()

    assert side.value(result) == f"{new_id}!"
    assert side.value(result.parent) == new_id


def test_group_and_chord_of_different_messages(side, task, new_id):
    header = [task.s("ok", f"{new_id}-{number}") for number in range(3)]

    together = group(header).apply_async()
    assert side.value(together) == [f"{new_id}-{number}" for number in range(3)]
    body = chord([task.s("ok", f"{new_id}-c{number}") for number in range(3)])(side.task("collect").s())
    ((values,), _) = side.value(body)
    assert sorted(values) == [f"{new_id}-c{number}" for number in range(3)]


def test_retry_keeps_the_id_and_counts(side, task, new_id):
    result = task.delay("retry", new_id, until=2, countdown=0)

    assert side.value(result) == new_id
    assert [run["retries"] for run in side.ran(result.id, times=3)] == [0, 1, 2]


def test_retry_with_other_arguments_is_the_same_task(side, task, new_id):
    result = task.delay("retry_with", new_id, args=["ok", f"{new_id}-other"], kwargs={})

    assert side.value(result) == f"{new_id}-other"
    assert len(side.ran(result.id, times=2)) == 2


def test_failure_is_the_same_error(side, task, new_id):
    result = task.delay("error", new_id)

    error = side.error(result)

    assert isinstance(error, ActionError)
    assert (result.state, error.args) == ("FAILURE", (new_id,))


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_every_serializer_and_compression_carries_the_arguments(side, task, new_id, serializer, compression):
    value = {"id": new_id, "text": "grüße", "numbers": [1, 2.5, None, True]}

    result = task.apply_async(("ok", value), serializer=serializer, compression=compression)

    assert side.value(result) == value


OPTIONS: list[dict[str, Any]] = [
    {"countdown": 0.2},
    {"expires": 600},
    {"priority": 9},
    {"headers": {"customer": "7"}},
    {"shadow": "another.name"},
    {"time_limit": 30, "soft_time_limit": 20},
    {"ignore_result": True},
    {"retry": False},
    {"argsrepr": "<hidden>", "kwargsrepr": "<hidden>"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[next(iter(options)) for options in OPTIONS])
def test_options_of_the_call_mean_the_same(side, task, new_id, options):
    result = task.apply_async(("request", new_id), **options)

    (run,) = side.ran(result.id)
    assert run["value"] == new_id
    if options.get("ignore_result"):
        assert result.ignored
        return
    request = side.value(result)
    assert (request["id"], request["task"]) == (result.id, task.name)
    assert request.get("customer") == options.get("headers", {}).get("customer")
    assert request["shadow"] == options.get("shadow")
    assert request["argsrepr"] == options.get("argsrepr", request["argsrepr"])
    assert request["timelimit"] == [options.get("time_limit"), options.get("soft_time_limit")]


def test_request_of_the_task_shows_nothing_else(both, new_id):
    fields = [set(side.value(side.task("act_unique").delay("request", f"{new_id}-{side.name}"))) for side in both]

    assert fields[1] - fields[0] <= {"streams_unique"}
    assert fields[0] - fields[1] == set()


def test_wrong_arguments_fail_at_the_call(side, task):
    for args, kwargs in (((), {}), (("ok", 1, 2, 3), {}), (("ok",), {"action": "twice"})):
        with pytest.raises(TypeError):
            task.apply_async(args, kwargs)


def test_task_that_was_revoked_before_it_ran_does_not_run(side, task, new_id):
    result = task.apply_async(("ok", new_id), countdown=3.0)
    side.app.control.revoke(result.id)

    assert side.state(result, "REVOKED") == "REVOKED"
    # The message is there until it is due, and binds nobody any more.
    again = eventually(lambda: (one := task.delay("ok", new_id)).id != result.id and one)
    assert side.value(again) == new_id
    assert side.ledger.runs(result.id) == []


def test_task_that_expired_does_not_run(side, task, new_id):
    result = task.apply_async(("ok", new_id), expires=-1)

    assert side.state(result, "REVOKED") == "REVOKED"
    assert side.ledger.runs(result.id) == []
    assert side.value(task.delay("ok", new_id)) == new_id


def test_eager_call_runs_at_once_whatever_is_there(side, task, new_id):
    waiting = task.apply_async(("ok", new_id), countdown=1.0)

    eager = task.apply(("ok", new_id))

    assert (eager.get(), eager.state) == (new_id, "SUCCESS")
    assert side.value(waiting) == new_id


# -- duplicates --------------------------------------------------------------------------------------------------------


def test_duplicate_runs_on_lists_and_gets_the_result_of_the_first_on_streams(side, new_id):
    task = side.task("act_unique")
    results = [task.apply_async(("ok", new_id), countdown=2.5) for _ in range(3)]

    assert [side.value(result) for result in results] == [new_id] * 3
    ran = sum(len(side.ledger.runs(task_id)) for task_id in {result.id for result in results})
    assert ran == (1 if side.on_streams else 3)


@pytest.mark.parametrize("kind", ["group", "chord"])
def test_header_with_a_duplicate_is_refused_because_it_would_wait_for_ever(streams, unique, new_id, kind):
    first = unique.apply_async(("ok", new_id), countdown=2.5)
    header = [unique.s("ok", f"{new_id}-other"), unique.s("ok", new_id)]

    with pytest.raises(DuplicateTask, match="would wait for a result that never comes"):
        group(header).apply_async() if kind == "group" else chord(header)(streams.task("collect").s())

    assert streams.value(first) == new_id


def test_link_of_a_duplicate_is_not_called_because_the_first_message_is_another_one_s(streams, unique, new_id):
    first = unique.apply_async(("ok", new_id), countdown=2.5)
    linked = streams.act.si("ok", "linked").set(task_id=f"{new_id}-linked")

    second = unique.apply_async(("ok", new_id), link=linked)

    assert second.id == first.id
    assert streams.value(first) == new_id
    streams.settled()
    assert streams.ledger.runs(f"{new_id}-linked") == []

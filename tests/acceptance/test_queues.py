"""Many queues, and queues that come and go."""

from __future__ import annotations

import pytest

from tests.support.control import asked
from tests.support.eventually import eventually


def test_fifty_queues_on_one_worker_are_all_read_and_one_that_is_full_starves_none(project, act, worker):
    names = [f"q{number}" for number in range(50)]
    flood = [act.apply_async(("sleep",), {"seconds": 0.005}, queue="q0") for _ in range(400)]
    one_each = [act.apply_async(("ok", name), queue=name) for name in names]

    worker(queues=",".join(names), concurrency=2)

    assert [result.get(timeout=20) for result in one_each] == names
    eventually(lambda: {result.id for result in flood} <= set(project.counted()), timeout=20)
    runs = {run["id"]: run["at"] for run in project.ledger.runs()}
    assert max(runs[result.id] for result in one_each[1:]) < max(runs[result.id] for result in flood)


def test_queues_are_added_and_cancelled_while_the_worker_runs(project, act, worker):
    running = worker(queues="celery", concurrency=2)
    waiting = act.apply_async(("ok", "waited"), queue="added")
    control = {"destination": [running.hostname], "reply": True, "timeout": 5, "limit": 1}

    act.app.control.add_consumer("added", **control)
    assert waiting.get(timeout=10) == "waited"
    act.app.control.cancel_consumer("added", **control)
    eventually(lambda: not any("added" in str(queue) for queue in queues_of(act)))
    left = act.apply_async(("ok", "left"), queue="added")

    assert act.delay("ok", 1).get(timeout=10) == 1
    assert project.ledger.runs(left.id) == []
    assert project.status("added").waiting == 1
    act.app.control.add_consumer("added", **control)
    assert left.get(timeout=10) == "left"


def queues_of(act):
    (queues,) = asked(act.app, "active_queues").values()
    return [queue["name"] for queue in queues]


def test_counts_of_q_are_kept_to_the_child_and_said_in_the_banner(project, act, worker):
    running = worker(queues="a:2,b", concurrency=5)

    busy = [act.apply_async(("sleep", n), {"seconds": 3.0}, queue="a") for n in range(4)]
    first = [project.starts(result.id)[0] for result in busy[:2]]
    others = [act.apply_async(("sleep", n), {"seconds": 1.0}, queue="b") for n in range(3)]
    beside = [project.starts(result.id)[0] for result in others]

    assert "children:    2 for a; 3 for b" in running.log
    assert len({run["pid"] for run in (*first, *beside)}) == 5
    assert [project.ledger.runs(result.id) for result in busy[2:]] == [[], []]
    assert [result.get(timeout=15) for result in busy] == [0, 1, 2, 3]


@pytest.mark.parametrize(("queues", "readers"), [("a:1,b:1", 2), ("a:1,b:1,c", 1)])
def test_queue_that_is_added_to_a_worker_with_counts_is_read(project, act, worker, queues, readers):
    running = worker(queues=queues, concurrency=None)
    control = {"destination": [running.hostname], "reply": True, "timeout": 5, "limit": 1}

    # What is broadcast between "ready" and the subscription is heard by nobody.
    eventually(lambda: act.app.control.add_consumer("added", **control), timeout=20)
    results = [act.apply_async(("sleep", n), {"seconds": 0.3}, queue="added") for n in range(4)]

    assert [result.get(timeout=10) for result in results] == [0, 1, 2, 3]
    assert len({run["pid"] for run in project.ledger.runs()}) == readers


def test_queue_whose_name_looks_like_a_pattern_or_a_count_is_read_and_no_other(project, act, worker):
    odd = ["jobs[1]", "tenant:42", "celery:0"]
    mine = [act.apply_async(("ok", name), queue=name) for name in odd]
    others = [act.apply_async(("ok", name), queue=name) for name in ("jobs1", "tenant")]

    running = worker(queues=",".join(odd), concurrency=1)

    assert [result.get(timeout=10) for result in mine] == odd
    assert [project.ledger.runs(result.id) for result in others] == [[], []]
    assert queues_of(act) == odd
    assert "children:" not in running.log


def test_backslash_names_a_queue_that_is_not_there_yet(project, act, worker):
    worker(queues=r"tenant\:42,jobs\[1\],new\:7:1", concurrency=2)

    results = [act.apply_async(("ok", name), queue=name) for name in ("tenant:42", "jobs[1]", "new:7")]

    assert [result.get(timeout=10) for result in results] == ["tenant:42", "jobs[1]", "new:7"]


def test_pattern_reads_the_queues_that_match_also_those_that_come_up_later(project, act, worker):
    early = act.apply_async(("ok", "early"), queue="chat.early")
    other = act.apply_async(("ok", "other"), queue="mail")
    excluded = act.apply_async(("ok", "excluded"), queue="chat.excluded")

    worker(queues="chat.*", options=("-X", "chat.excluded"))

    assert early.get(timeout=10) == "early"
    late = act.apply_async(("ok", "late"), queue="chat.late")
    assert late.get(timeout=15) == "late"
    assert [project.ledger.runs(result.id) for result in (other, excluded)] == [[], []]


def test_worker_with_a_pattern_that_matches_nothing_yet_waits_for_its_first_queue(project, act, worker):
    worker(queues="chat.*")

    first = act.apply_async(("ok", "first"), queue="chat.first")

    assert first.get(timeout=15) == "first"
    assert queues_of(act) == ["chat.first"]

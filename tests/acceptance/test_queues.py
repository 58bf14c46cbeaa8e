"""Many queues, and queues that come and go."""

from __future__ import annotations

from tests.eventually import eventually


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
    (queues,) = act.app.control.inspect(timeout=5, limit=1).active_queues().values()
    return [queue["name"] for queue in queues]


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

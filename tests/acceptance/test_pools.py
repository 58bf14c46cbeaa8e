"""Every pool runs the same tasks to the same end."""

from __future__ import annotations

import sys

import pytest
from celery import chain, chord, group

from tests.proj.actions import BASE_ERRORS, ODD, PLACES
from tests.support.eventually import eventually
from tests.support.versions import CELERY, needs_celery

POOLS = ["prefork", "threads", "solo", "asyncio", "gevent", "eventlet"]


def a_few(pool):
    return 1 if pool == "solo" else 4


@pytest.fixture
def waiting(project):
    """The ``async def`` tasks by their short names, and an app that publishes them."""
    app = project.app(include=["tests.proj.waiting"])
    return lambda name: app.tasks[f"tests.proj.waiting.{name}"]


WAITING = ("-I", "tests.proj.waiting")


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_runs_the_same_tasks_to_the_same_end(project, waiting, worker, pool):
    act = waiting("wait_for").app.tasks["tests.proj.actions.act"]
    add, total = waiting("add_later"), act.app.tasks["tests.proj.actions.total"]
    running = worker(pool=pool, concurrency=a_few(pool), options=WAITING)

    plain = [act.delay("ok", n) for n in range(30)]
    retried = act.delay("retry", "at last", until=2, countdown=0.1)
    delayed = act.apply_async(("ok", "later"), countdown=0.3)
    failed = act.delay("error", "for good")
    request = act.apply_async(("request",), headers={"tenant": "a"}, priority=3)
    together = [waiting("wait_for").delay(n, seconds=0.3) for n in range(a_few(pool))]
    by_celery = waiting("wait_for_it").delay("declared with Celery's decorator")
    async_retried = waiting("wait_and_retry").delay("at last", until=2)
    async_failed = waiting("wait_and_fail").delay("for good")
    nested = waiting("add_by_calling").delay(1, 2)
    # The app is given for Celery 5.5: there, a chain that begins with a chord is of the current app.
    workflow = chain(chord(group(add.s(n, n) for n in range(3)), total.s()), add.s(1), app=act.app).delay()

    assert [result.get(timeout=15) for result in plain] == list(range(30))
    assert retried.get(timeout=15) == "at last"
    assert delayed.get(timeout=15) == "later"
    assert str(failed.get(timeout=15, propagate=False)) == "for good"
    seen = request.get(timeout=15)
    assert (seen["id"], seen["hostname"], seen["headers"]) == (request.id, running.hostname, {"tenant": "a"})
    assert seen["delivery_info"] == {"exchange": "", "routing_key": "celery", "priority": 3, "redelivered": False}
    assert [result.get(timeout=15) for result in together] == list(range(a_few(pool)))
    assert by_celery.get(timeout=15) == "declared with Celery's decorator"
    assert async_retried.get(timeout=15) == ["at last", 2]
    assert repr(async_failed.get(timeout=15, propagate=False)) == "ConnectionError('for good')"
    assert nested.get(timeout=15) == 6
    assert workflow.get(timeout=15) == 7
    once = {result.id: 1 for result in (*plain, delayed, failed, request, *together, by_celery)}
    assert project.counted() == once | {retried.id: 3, async_retried.id: 3, async_failed.id: 2}
    assert eventually(lambda: project.status().length == 0)
    assert {letter.task_id for letter in project.dead_letters()} == {failed.id, async_failed.id}
    running.process.terminate()
    assert running.wait() == 0
    assert project.status().consumers == 0


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_green_pools_keep_the_loop_of_one_task_from_the_others(project, waiting, worker, pool):
    worker(pool=pool, concurrency=4, options=WAITING)

    together = [waiting("wait_for").delay(n, seconds=1.0) for n in range(3)]
    for result in together:
        project.starts(result.id)
    beside = waiting("is_in_a_loop").delay()

    assert beside.get(timeout=10) is False
    assert [result.state for result in together] == ["PENDING"] * 3
    assert [result.get(timeout=10) for result in together] == [0, 1, 2]
    assert max(run["running"] for run in project.ledger.runs()) == 3


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_task_in_a_green_pool_may_wait_for_the_result_of_another_one(worker, act, pool):
    worker(pool=pool, concurrency=4)

    result = act.delay("get", "of the other")

    assert result.get(timeout=20) == "of the other"


def test_pool_of_eventlet_sends_celerys_signals_of_its_start_and_end(project, worker):
    running = worker(name="green", pool="eventlet")

    running.process.terminate()

    assert running.wait() == 0
    names = [line["signal"] for line in project.ledger.read("process", "green")]
    assert [name for name in names if name.startswith("eventlet_pool_")] == [
        *("eventlet_pool_started", "eventlet_pool_preshutdown", "eventlet_pool_postshutdown")
    ]


@pytest.mark.one_server("a stock worker reads lists, of which a cluster has none")
def test_async_def_tasks_run_under_a_stock_worker(project, waiting, worker):
    app = project.app(include=["tests.proj.waiting"], enabled=False)
    worker("lists", name="stock", options=WAITING, wait=False)

    task = app.tasks["tests.proj.waiting.wait_for"]
    results = [task.delay(n) for n in range(4)]
    retried = app.tasks["tests.proj.waiting.wait_and_retry"].delay("at last")

    assert [result.get(timeout=20) for result in results] == [0, 1, 2, 3]
    assert retried.get(timeout=15) == ["at last", 1]
    assert {run["hostname"] for run in project.ledger.runs()} == {"stock@test"}


def test_two_hundred_async_def_tasks_run_at_once_on_one_loop(project, waiting, worker):
    results = [waiting("meet").delay(n, count=200) for n in range(200)]

    worker(pool="asyncio", concurrency=200, options=WAITING)

    assert [result.get(timeout=20) for result in results] == list(range(200))
    runs = project.ledger.runs()
    assert max(run["running"] for run in runs) == 200
    assert len({run["thread"] for run in runs}) == 1


def test_coroutine_that_exits_leaves_the_other_coroutines_of_its_loop_running(project, waiting, worker):
    worker(pool="asyncio", concurrency=2, options=WAITING)

    beside = waiting("wait_for").delay("beside", seconds=1.0)
    exits = waiting("wait_and_exit").delay()
    assert eventually(lambda: exits.state == "FAILURE")
    after = waiting("wait_for").delay("after")

    assert beside.get(timeout=10) == "beside"
    assert after.get(timeout=10) == "after"
    assert set(project.counted().values()) == {1}


def test_threads_let_each_other_run_sooner_while_coroutines_run_and_only_then(project, waiting, worker):
    worker(pool="asyncio", concurrency=2, options=WAITING)

    during = [waiting("switch_interval_of_coroutines").delay().get(timeout=20) for _ in range(2)]
    exits = waiting("wait_and_exit").delay()
    ended = waiting("wait_for").apply_async(("never",), {"seconds": 60}, time_limit=1)
    assert eventually(lambda: exits.state == ended.state == "FAILURE")
    after = waiting("switch_interval").delay().get(timeout=10)

    assert max(during) < after == sys.getswitchinterval()


def test_threads_run_as_many_tasks_at_once_as_asked(project, act, worker):
    results = [act.delay("meet", n, count=20) for n in range(20)]

    worker(pool="threads", concurrency=20)

    assert [result.get(timeout=15) for result in results] == list(range(20))


@pytest.mark.parametrize("pool", POOLS)
def test_body_that_raises_what_is_no_exception_fails_once_in_every_pool(project, waiting, worker, pool):
    act = waiting("wait_for").app.tasks["tests.proj.actions.act"]
    worker(pool=pool, concurrency=a_few(pool), options=WAITING)
    kinds = {"cancelled": "CancelledError", "generator": "GeneratorExit", "own": "OddError", "cause": "RuntimeError"}

    results = {(kind, way): make(kind) for kind in kinds for way, make in {
        "def": lambda kind: act.delay("raise", "odd", kind=kind),
        "with expires": lambda kind: act.apply_async(("raise", "odd"), {"kind": kind}, expires=60),
        "async def": lambda kind: waiting("wait_and_raise").delay(kind),
    }.items()}  # fmt: skip
    # Before 5.7, Celery cannot store an error that is no Exception, here and there: only the message is settled.
    stored = {key: result for key, result in results.items() if CELERY >= (5, 7) or key[0] == "cause"}
    errors = {key: result.get(timeout=20, propagate=False) for key, result in stored.items()}
    for result in results.values():
        project.starts(result.id)
    after = act.delay("ok", "after").get(timeout=10)

    assert {result.state for result in stored.values()} == {"FAILURE"}
    assert {key: type(error).__name__ for key, error in errors.items() if key[0] != "cause"} == {
        key: kinds[key[0]] for key in stored if key[0] != "cause"
    }
    assert {str(error) for key, error in errors.items() if key[0] != "cause"} <= {"odd"}
    assert after == "after"
    assert set(project.counted().values()) == {1}
    assert eventually(lambda: project.status().length == 0)


@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize("pool", ["threads", "solo", "asyncio", "gevent"])
def test_exceptions_of_odd_classes_fail_once_and_are_retried_in_every_pool(project, act, worker, pool, watched):
    # The first three are no Exception, and tested above. Of one of the others ``self.retry()`` asks for the truth, and
    # fails; that one is retried because of the other Celery cannot store. The last is taken for a revocation.
    kinds = sorted(ODD.keys() - {"cancelled", "generator", "own", "args", "bool", "terminated"})
    running = worker(pool=pool, concurrency=1, watched=watched)

    failed = [act.delay("raise", "odd", kind=kind) for kind in kinds]
    retried = [act.delay("retry_odd", kind, kind=kind) for kind in kinds]

    assert [result.get(timeout=30) for result in retried] == kinds
    eventually(lambda: {one.task_id for one in project.dead_letters()} == {result.id for result in failed})
    assert [result.state for result in failed] == ["FAILURE"] * len(kinds)
    assert {one.reason for one in project.dead_letters()} == {"failed"}
    assert project.counted() == {**{result.id: 1 for result in failed}, **{result.id: 2 for result in retried}}
    assert running.running


@needs_celery((5, 7), "before, it depends on billiard what is said of it")
@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize("pool", POOLS)
def test_body_that_ends_its_process_is_said_to_have_done_so_in_every_pool(project, waiting, worker, pool, watched):
    act = waiting("wait_for").app.tasks["tests.proj.actions.act"]
    running = worker(pool=pool, concurrency=a_few(pool), watched=watched, options=WAITING)
    said = {"nothing": "exitcode 0", "number": "exitcode 3", "text": "exitcode 1", "keyboard": "KeyboardInterrupt"}

    plain = {how: act.delay("leave", how=how) for how in said}
    waited = {how: waiting("wait_and_leave").delay(how) for how in said}
    terminated = act.delay("raise", kind="terminated")

    expected = {how: f"Worker exited prematurely: {text}." for how, text in said.items()}
    for results in (plain, waited):
        assert {how: str(one.get(timeout=20, propagate=False)) for how, one in results.items()} == expected
    assert eventually(lambda: act.AsyncResult(terminated.id).state == "REVOKED")  # for a moment it is FAILURE
    assert act.delay("ok", "after").get(timeout=10) == "after"
    assert set(project.counted().values()) == {1}
    assert running.running


def test_coroutine_that_stops_or_changes_its_loop_leaves_it_to_the_others(project, waiting, worker):
    running = worker(pool="asyncio", concurrency=2, options=WAITING)

    beside = waiting("wait_for").delay("beside", seconds=1.0)
    stops = [waiting("wait_and_harm").delay(how) for how in ("stop", "factory")]
    harmed = [one.get(timeout=10) for one in stops]
    after = [waiting("wait_for").delay(n) for n in range(4)]

    assert harmed == ["stop", "factory"]
    assert beside.get(timeout=10) == "beside"
    assert [one.get(timeout=10) for one in after] == [0, 1, 2, 3]
    running.process.terminate()
    assert running.wait() == 0


@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize("pool", POOLS)
def test_exceptions_that_raise_what_is_no_exception_when_looked_at_are_settled_once_in_every_pool(
    project, act, worker, pool, watched
):
    running = worker(pool=pool, concurrency=a_few(pool), watched=watched)
    looked_at = [(place, kind) for place in PLACES for kind in BASE_ERRORS]

    sent = {act.delay("raise_hostile", place=place, kind=kind).id: (place, kind) for place, kind in looked_at}

    def settled():
        ended = [sent[one] for one in sent if project.ledger.runs(one)]
        return len(ended) == len(sent) and project.status().length == 0

    eventually(settled, timeout=60)
    counts = project.counted()
    assert act.delay("ok", "after").get(timeout=10) == "after"
    assert {what: counts.get(one) for one, what in sent.items() if counts.get(one) != 1} == {}
    assert running.running


@pytest.mark.parametrize("pool", POOLS)
def test_async_def_behind_decorators_and_with_pydantic_is_awaited(project, waiting, worker, pool):
    worker(pool=pool, concurrency=a_few(pool), options=WAITING)

    results = {
        "decorated": waiting("wait_behind_a_decorator").delay(1, 2),
        "decorated twice, bound, retried": waiting("wait_behind_decorators").delay(4),
        "with autoretry": waiting("wait_and_autoretry").delay(5),
        "pydantic": waiting("wait_for_point").delay({"x": 1}),
        "pydantic, bound": waiting("wait_for_bound_point").delay({"x": 2}),
    }

    assert {name: result.get(timeout=20) for name, result in results.items()} == {
        "decorated": 3,
        "decorated twice, bound, retried": 4,
        "with autoretry": 5,
        "pydantic": {"x": 2},
        "pydantic, bound": {"x": 3},
    }

"""``task_annotations`` in every form: classes, a list of them with a dictionary, what they wrap and what they limit."""

from __future__ import annotations

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from tests.support.eventually import eventually

FORMS = {
    "classes and a dictionary": [
        "tests.proj.annotated.Annotations",
        {"tests.proj.actions.act_totals": {"soft_time_limit": 1}},
    ],
    "a dictionary": {"*": {"soft_time_limit": 1}, "tests.proj.actions.act": {"max_retries": 1}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_annotations_mean_the_same(side, another_worker, pool, form):
    worker = another_worker(side, "annotated", pool=pool, task_annotations=FORMS[form])
    queue = {"queue": worker.queue}

    done = side.act.apply_async(("ok", 1), **queue)
    failed = side.act.apply_async(("error", "no"), **queue)
    tried = side.act.apply_async(("retry_error", "gave up"), {"countdown": 0}, **queue)
    values = [side.value(done), str(side.error(failed)), str(side.error(tried))]

    assert values == [1, "no", "gave up"]
    assert len(side.ledger.runs(tried.id)) == 2
    if form == "classes and a dictionary":
        assert eventually(lambda: len(side.ledger.read("annotated", failed.id)) == 2)
        assert [line["what"] for line in side.ledger.read("annotated", failed.id)] == ["run", "on_failure"]
        assert [line["what"] for line in side.ledger.read("annotated", done.id)] == ["run"]
    if pool == "prefork":
        for task in (side.act, side.task("act_totals")):
            assert isinstance(side.error(task.apply_async(("sleep",), {"seconds": 30}, **queue)), SoftTimeLimitExceeded)
    assert side.value(side.act.apply_async(("ok", "last"), **queue)) == "last"

"""Log lines, which people grep and ``celery logtool`` reads."""

from __future__ import annotations

import re

import pytest

from tests.support.eventually import eventually

NAME = r"Task tests\.proj\.actions\.\w+\[{id}\] "


def line(side, result, pattern):
    """Return the line of the worker's log about one task that matches, once it is there."""
    expression = re.compile(r"^\[.*?\] " + NAME.format(id=result.id) + pattern, re.MULTILINE)
    found = eventually(lambda: expression.search(side.worker.log), message=f"a line like {expression.pattern}")
    return found.group(0)


def test_received_and_succeeded_are_logged(side):
    result = side.act.delay("ok", 42)

    assert "INFO/" in line(side, result, "received")
    assert "INFO/ForkPoolWorker-" in line(side, result, r"succeeded in \d+\.\d+s: 42$")


def test_failure_is_logged_with_its_traceback(side):
    result = side.act.delay("error", "in the log")

    assert "ERROR/" in line(side, result, r"raised unexpected: ActionError\('in the log'\)")
    assert "tests.proj.actions.ActionError: in the log" in side.worker.log


def test_expected_failure_is_logged_as_information(side):
    result = side.task("act_throws").delay("expected_error", "calm")

    assert "INFO/" in line(side, result, r"raised expected: ExpectedError\('calm'\)")


def test_retry_is_logged(side):
    result = side.act.delay("retry", until=1, countdown=0)

    assert "INFO/" in line(side, result, r"retry: Retry in 0s")


def test_ignored_and_rejected_tasks_are_logged(side):
    ignored, rejected = side.act.delay("ignore"), side.act.delay("reject", "never")

    line(side, ignored, "ignored")
    line(side, rejected, "reject(ed)? ")


def test_revoked_task_is_logged(side):
    result = side.act.apply_async(("ok", 1), expires=-1)

    expected = f"Discarding revoked task: tests.proj.actions.act[{result.id}]"
    eventually(lambda: expected in side.worker.log)


def test_hard_time_limit_is_logged(side):
    result = side.act.apply_async(("sleep",), {"seconds": 30}, time_limit=1)

    expected = f"Hard time limit (1s) exceeded for tests.proj.actions.act[{result.id}]"
    eventually(lambda: expected in side.worker.log)


def test_soft_time_limit_is_logged(side):
    result = side.act.apply_async(("soft_limit",), soft_time_limit=0.3)

    expected = f"Soft time limit (0.3s) exceeded for tests.proj.actions.act[{result.id}]"
    eventually(lambda: expected in side.worker.log)


@pytest.mark.parametrize(
    ("text", "level"), [("logged by the task: {}", "INFO"), ("printed by the task: {}", "WARNING")]
)
def test_what_a_task_logs_and_prints_is_marked_with_the_task(side, new_id, text, level):
    result = side.act.delay("log", new_id)
    side.value(result)

    expected = re.escape(text.format(new_id))
    pattern = rf"{level}/ForkPoolWorker-\d+\] (tests\.proj\.actions\.act\[{result.id}\]: )?{expected}"

    found = eventually(lambda: re.search(pattern, side.worker.log))
    assert (found.group(1) is not None) is (level == "INFO")


def test_banner_names_app_queues_and_tasks(side):
    log = side.worker.log

    assert re.search(r"- \*+ ---+ .*\[queues\]", log) or "[queues]" in log
    assert f".> {side.queue}" in log
    assert "[tasks]" in log
    assert "  . tests.proj.actions.act\n" in log
    assert f"{side.worker.hostname} ready." in log

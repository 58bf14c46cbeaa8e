"""What ``make celery-suite`` makes of the results of Celery's own tests."""

from __future__ import annotations

import pytest

from tests.celery_suite import chunks, summary
from tests.celery_suite.preparation import Prepared, requirements


def row(outcome, message=""):
    return {"outcome": outcome, "seconds": 1.0, "reruns": 0, "message": message}


@pytest.mark.parametrize("outcome", ["failed", "error", "skipped", "xfailed"])
def test_test_that_no_longer_passes_is_worse(outcome):
    found = summary.worse({"a": row(outcome, "why")}, {"a": row("passed")}, whole=False)

    assert found == [f"a: {outcome} why"]


@pytest.mark.parametrize(("before", "now"), [("passed", "passed"), ("passed", "deselected"), ("xfailed", "failed")])
def test_test_that_is_as_good_as_before_or_left_out_by_name_is_not_worse(before, now):
    assert summary.worse({"a": row(now)}, {"a": row(before)}, whole=True) == []


def test_test_that_did_not_run_is_worse_in_a_whole_run_only():
    baseline = {"a": row("passed"), "b": row("skipped")}

    assert summary.worse({}, baseline, whole=True) == ["a: not run"]
    assert summary.worse({}, baseline, whole=False) == []


def test_last_result_of_a_test_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"test": "a", "outcome": "failed"}\n{"test": "a", "outcome": "passed"}\n')

    assert summary.load(path) == {"a": {"test": "a", "outcome": "passed"}}


def test_whole_suite_is_every_file_and_long_classes_in_parts(tmp_path):
    (tmp_path / "test_canvas.py").write_text("class test_chain:\n    pass\n\n\nclass test_link_error:\n    pass\n")
    for name in ("test_beat.py", "test_backend.py", "conftest.py"):
        (tmp_path / name).touch()

    found = [str(chunk) for chunk in chunks.all_chunks(tmp_path)]

    assert found == [
        "test_beat.py",
        *(f"test_canvas.py::test_chain@{part}/3" for part in range(3)),
        "test_canvas.py::test_link_error",
    ]


def test_part_of_a_chunk_is_read_and_a_wrong_one_refused():
    assert chunks.parse("test_canvas.py::test_chord@2/10") == chunks.Chunk("test_canvas.py::test_chord", "2/10")
    with pytest.raises(ValueError, match="the part is I/N"):
        chunks.parse("test_canvas.py@2")


def test_environment_of_the_suite_has_what_celery_streams_depends_on():
    assert {"rich>=13.0", "click>=8.1.2"} <= set(requirements())


def test_test_that_goes_by_the_clock_is_named_and_not_called_worse():
    name = f"{next(iter(summary.BY_THE_CLOCK))}[new_style]"

    assert summary.worse({name: row("failed")}, {name: row("passed")}, whole=True) == []
    assert any("goes by the clock" in line for line in summary.describe({name: row("failed")}))


def test_every_test_that_ended_otherwise_is_named_whichever_was_better():
    here = {"a": row("passed"), "b": row("failed"), "c": row("passed"), "d": row("passed")}
    there = {"a": row("failed"), "b": row("passed"), "c": row("passed")}

    assert list(summary.otherwise(here, there)) == [
        "failed there, passed here: a",
        "passed there, failed here: b",
        "only here: passed d",
    ]


def test_another_release_of_celery_has_an_environment_of_its_own_with_what_it_asks_for_itself(tmp_path):
    usual, other = Prepared(tmp_path), Prepared(tmp_path, "5.6.3")

    assert usual.python == tmp_path / "venv" / "bin" / "python"
    assert other.python == tmp_path / "with-5.6.3" / "venv" / "bin" / "python"
    assert other.source == tmp_path / "with-5.6.3" / "celery-5.6.3"
    assert "celery==5.6.3" in requirements("5.6.3")
    assert not any(one.startswith(("kombu", "redis==")) for one in requirements("5.6.3"))

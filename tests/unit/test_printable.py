"""What comes from messages reaches no terminal and no log as a control sequence."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

import celery_streams
from celery_streams import streams_of  # noqa: F401  (importing it guards the loggers)
from celery_streams.bin.terminal import one_line
from celery_streams.printable import printable, printable_lines

#: Clears the screen, C1 CSI, retitles the window, BEL, line breaks of all kinds, text that runs backwards.
NASTY = "a\x1b[2J\x9b1m\x1b]0;owned\x07b\nc\rd\x85e\u2028f\u202eg\x7f"


def is_harmless(text: str) -> bool:
    return all(character.isprintable() for character in text)


@pytest.mark.parametrize("text", ["send_message", "日本語 キュー", "naïve – “quoted”", "\u3000wide", "😀"])
def test_what_can_be_read_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_control_sequences_are_shown_and_not_sent() -> None:
    assert printable(NASTY) == (r"a\x1b[2J\x9b1m\x1b]0;owned\x07b\nc\rd\x85e\u2028f\u202eg\x7f")
    assert is_harmless(one_line(ValueError(NASTY)))


def test_lines_of_a_traceback_stay_lines() -> None:
    assert printable_lines("Traceback:\n\tline\x1b[2J") == "Traceback:\n        line\\x1b[2J"


def test_half_a_surrogate_pair_can_be_shown() -> None:
    assert printable("a\ud83d") == r"a\ud83d"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.handler.setFormatter(logging.Formatter("%(message)s"))
    caplog.set_level(logging.DEBUG)
    return caplog


def _modules() -> list[str]:
    package = Path(celery_streams.__file__).parent
    return sorted(
        ".".join(("celery_streams", *path.relative_to(package).with_suffix("").parts))
        for path in package.rglob("*.py")
        if "logging.getLogger(__name__)" in path.read_text()
    )


@pytest.mark.parametrize("name", _modules())
def test_log_line_of_every_module_is_harmless(name: str, lines: pytest.LogCaptureFixture) -> None:
    error = ValueError(NASTY)

    logging.getLogger(name).warning("Task %s[%s] of %r failed: %s, %d times", NASTY, NASTY, [NASTY], error, 3)

    [line] = lines.text.splitlines()
    assert is_harmless(line)
    assert line.endswith("3 times")


def test_traceback_in_a_log_line_is_harmless_and_has_its_lines(lines: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("celery_streams.worker.executor")
    try:
        raise ValueError(NASTY)
    except ValueError:
        logger.exception("It failed")
    written = lines.text.rstrip("\n")

    assert all(map(is_harmless, written.split("\n")))
    assert len(written.split("\n")) >= 4


def test_log_line_that_is_harmless_passes_as_it_is(lines: pytest.LogCaptureFixture) -> None:
    error = ValueError("plain")
    logging.getLogger("celery_streams.worker.executor").warning("%s %r %d %.1f", error, "é", 3, 2.5)

    [record] = lines.records
    assert record.args == (error, "é", 3, 2.5)
    assert record.getMessage() == "plain 'é' 3 2.5"


def test_argument_whose_text_fails_is_left_to_logging(
    lines: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    logging.getLogger("celery_streams.worker.executor").addHandler(logging.NullHandler())
    monkeypatch.setattr(lines.handler, "handleError", lambda record: None)

    logging.getLogger("celery_streams.worker.executor").warning("%s", Odd())

    assert sys.exc_info() == (None, None, None)

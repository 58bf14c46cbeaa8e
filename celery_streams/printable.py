"""Printable: what comes from messages, and may hold anything, as text that does nothing to a terminal or a log.

Task names, task ids, queue names and errors are chosen by whoever publishes. A control sequence among them would clear
an operator's screen, retitle the window or hide a line; a line break would forge a log line. They are shown as Python
writes them in a string: ``\\x1b[2J``.
"""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path
from typing import Any

__all__ = ("PrintableFilter", "guard_loggers", "printable", "printable_lines")


def printable(text: object) -> str:
    """Return ``text`` on one line, with everything that is not a visible character or a space escaped."""
    said = str(text)
    return said if said.isprintable() else "".join(map(_shown, said))


def printable_lines(text: object) -> str:
    """Return ``text`` with its line breaks and tabs, for example a traceback; all else is escaped."""
    return "\n".join(printable(line.expandtabs()) for line in str(text).split("\n"))


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


class PrintableFilter(logging.Filter):
    """Lets every record pass, after it escaped what is not printable in its arguments and its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True."""
        if isinstance(record.args, tuple) and record.args:
            record.args = tuple(map(_argument, record.args))
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            text = logging.Formatter().formatException(record.exc_info)
            shown = printable_lines(text)
            # Else it is left to the formatter, which may have its own way.
            if shown != text.expandtabs():
                record.exc_text = shown
        return True


def _argument(value: Any) -> Any:
    """Return an argument of a log line as it may be shown; one that is printable stays what it is."""
    if isinstance(value, (int, float)) or value is None:
        return value
    try:
        fine = str(value).isprintable() and repr(value).isprintable()
    except Exception:  # noqa: BLE001  (an object's own method; logging says what is wrong with it)
        return value
    return value if fine else _Shown(value)


class _Shown:
    """A value whose text and representation are printable."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(self._value)

    def __repr__(self) -> str:
        return printable(repr(self._value))


_FILTER = PrintableFilter()


def guard_loggers() -> None:
    """Put the filter on the loggers of all modules of this package; a filter on their parent would not see anything."""
    package = Path(__file__).parent
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join((__package__, *parts)).removesuffix(".__init__")
        logging.getLogger(name).addFilter(_FILTER)

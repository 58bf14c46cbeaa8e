"""Exports: a filtered list as CSV or JSON, row by row, so that a long one needs no memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from django.http import StreamingHttpResponse

from celery_streams import BrokerError

__all__ = ("FORMATS", "MOST", "as_csv", "as_file", "as_json", "cell")

#: As what a list can be taken along.
FORMATS = ("csv", "json")

#: Rows of one export at most; the last row says so when there would be more.
MOST = 100_000

#: How spreadsheets know a formula; a tab and a line break may come before it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "=", "+", "-", "@")


class _Echo:
    def write(self, text: str) -> str:
        return text


def cell(value: Any) -> str:
    """Return a value for CSV, so that no spreadsheet takes it for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) and not isinstance(value, (int, float)) else text


def as_csv(name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> StreamingHttpResponse:
    """Return rows as a CSV file (UTF-8, with the mark by which spreadsheets know it)."""
    writer = csv.writer(_Echo())

    def lines() -> Iterator[str]:
        yield "\ufeff" + writer.writerow(columns)
        try:
            for row in rows:
                yield writer.writerow([cell(row.get(column)) for column in columns])
        except BrokerError as exc:  # the answer has begun: say it where it ends
            yield writer.writerow([cell(f"Incomplete: {exc}")])

    return _file(lines(), "text/csv; charset=utf-8", f"{name}.csv")


def as_json(name: str, rows: Iterable[Mapping[str, Any]]) -> StreamingHttpResponse:
    """Return rows as a JSON file: an array of objects; broken off when Redis goes away, so that no parser takes it."""

    def lines() -> Iterator[str]:
        yield "["
        for number, row in enumerate(rows):
            yield (",\n" if number else "\n") + json.dumps(row, ensure_ascii=False, default=repr)
        yield "\n]\n"

    return _file(lines(), "application/json", f"{name}.json")


def as_file(kind: str, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> StreamingHttpResponse:
    """Return rows as a file of one of :data:`FORMATS`.

    Raises:
        BrokerError: Redis is away before the first row; later it is said in the file.
    """
    lines = iter(rows)
    rows = chain(list(islice(lines, 1)), lines)
    return as_csv(name, columns, rows) if kind == "csv" else as_json(name, rows)


def _file(lines: Iterator[str], content_type: str, name: str) -> StreamingHttpResponse:
    # Half a surrogate pair, which JSON arguments may have, is no UTF-8: it is written as JSON escapes it.
    response = StreamingHttpResponse(
        (line.encode(errors="backslashreplace") for line in lines), content_type=content_type
    )
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    response["X-Content-Type-Options"] = "nosniff"
    return response

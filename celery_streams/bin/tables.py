"""Tables: rich's part of what commands print, tables and progress bars, for those that need it and no worker or probe.

What comes from messages is shown through ``printable`` and never read as rich's markup.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..printable import printable

__all__ = ("Rows", "console", "progress_bar")

#: Columns of a table that does not go to a terminal: a pipe or log gets whole lines.
_PLAIN_WIDTH = 10_000

#: Least width of a column that may be folded.
_FOLDED = 20


def console(*, no_color: bool) -> Console:
    """Return the console for results."""
    return Console(no_color=no_color, highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


class Rows:
    """A table; where it is wider than the terminal each row becomes a small block, so that no name is cut up.

    Args:
        headers: of the columns; the first column names the row.
        right: the headers of numbers.
        folded: the headers of texts that may go over several lines.
        footer: the last row of the table, set apart.
    """

    def __init__(
        self,
        headers: Sequence[str],
        *,
        right: Collection[str] = (),
        folded: Collection[str] = (),
        footer: Sequence[str] | None = None,
    ) -> None:
        self._headers = headers
        self._right = right
        self._folded = folded
        self._footer = footer
        self._rows: list[tuple[list[str], str]] = []

    def add(self, *cells: object, style: str = "") -> None:
        """Add a row; ``style`` is that of its first cell."""
        self._rows.append(([printable(cell) for cell in cells], style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the table, or the blocks."""
        table = self._table()
        least = table.__rich_measure__(console, options.update(width=_PLAIN_WIDTH)).minimum
        if least <= options.max_width:
            yield table
        else:
            yield from self._blocks(options.max_width)

    def _table(self) -> Table:
        table = Table(box=SIMPLE, show_edge=False, padding=(0, 1, 0, 0), show_footer=self._footer is not None)
        for index, header in enumerate(self._headers):
            footer = self._footer[index] if self._footer is not None else ""
            widest = max(cell_len(text) for text in (header, footer, *(cells[index] for cells, _ in self._rows)))
            if header in self._folded:
                table.add_column(header, footer, overflow="fold", min_width=max(min(widest, _FOLDED), len(header)))
            else:
                justify: JustifyMethod = "right" if header in self._right else "left"
                table.add_column(header, footer, no_wrap=True, min_width=widest, justify=justify)
        for cells, style in self._rows:
            table.add_row(Text(cells[0], style=style), *map(Text, cells[1:]))
        return table

    def _blocks(self, width: int) -> Iterator[RenderableType]:
        rows = list(self._rows)
        if self._footer is not None:
            rows.append((list(self._footer), "bold"))
        for cells, style in rows:
            yield Text(cells[0], style=style, overflow="fold")
            line = ""
            for header, cell in zip(self._headers[1:], cells[1:], strict=True):
                piece = f"{header} {cell}"
                if line and cell_len(line) + 3 + cell_len(piece) + 2 > width:
                    yield Padding(Text(line, overflow="fold"), (0, 0, 0, 2))
                    line = ""
                line = f"{line}   {piece}" if line else piece
            yield Padding(Text(line, overflow="fold"), (0, 0, 0, 2))


@contextlib.contextmanager
def progress_bar(text: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr while it is a terminal; yields what is called with the number of items just done."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, advance=done)

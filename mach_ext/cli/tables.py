"""Tables on a terminal. In a pipe or a file they are plain text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mach_ext._terminal import one_line, show

if TYPE_CHECKING:
    from mach_ext import runs

_WIDEST = 60  # the largest width of the column of labels


def show_table(rows: Sequence[Sequence[str]], first: int, width: int) -> None:
    """Prints a table whose first row is its head and whose first column holds names.

    Args:
        rows: The cells.
        first: The width of the first column, if the output is not a terminal.
        width: The width of each other column, if the output is not a terminal.
    """
    if not sys.stdout.isatty():
        for name, *cells in rows:
            show(f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell in cells))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    _console().print(table)


class Predictions:
    """Prints the labels of documents, best first, with a line for each label.

    Args:
        title: Returns the text of a document by its number, or None if the text is not known.
    """

    def __init__(self, title: Callable[[int], str | None]) -> None:
        self._title, self._number = title, 0

    def show(self, block: list[runs.Answer]) -> None:
        """Prints the answers for some more documents."""
        from mach_ext.report import shortened

        console = _console()
        labels = [cell_len(one_line(best.label)) for answer in block for best in answer.labels]
        width = max(4, min(max(labels, default=0), _WIDEST, console.width - 18))
        for answer in block:
            text = self._title(self._number)
            heading = f"document {self._number}" if text is None else shortened(text, 2 * console.width - 2)
            console.print(Text(heading, style="bold"))
            if not answer.features:
                what = "features" if text is None else "words"
                console.print(Text(f"  The model knows none of its {what}.", style="italic"))
            elif answer.labels:
                console.print(self._labels(answer, width))
            self._number += 1

    @staticmethod
    def _labels(answer: runs.Answer, width: int) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(justify="right", width=4, style="dim")
        table.add_column(width=width, overflow="fold")
        table.add_column(justify="right", width=10, no_wrap=True)
        for rank, best in enumerate(answer.labels, 1):
            table.add_row(Text(str(rank)), Text(one_line(best.label)), Text(f"{best.score:.6g}"))
        return table


def _console() -> Console:
    """Returns a console that prints texts as they are, without markup, emoji codes or colours."""
    return Console(markup=False, emoji=False, highlight=False)

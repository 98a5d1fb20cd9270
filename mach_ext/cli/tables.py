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

_NARROWEST, _WIDEST = 4, 60  # width of the column of names
_ROOMY = 40  # on a terminal of so many columns, numbers of different documents stand below each other


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
    for number, name in enumerate(rows[0]):  # names may fold, numbers may not
        table.add_column(
            Text(name), justify="right" if number else "left", overflow="fold", no_wrap=number > 0
        )
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    numbers = sum(2 + max(map(len, column)) for column in list(zip(*rows, strict=True))[1:])
    _widened(_console(), _NARROWEST + numbers).print(table)


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

        answers = [best for answer in block for best in answer.labels]
        console = _console()
        roomy = console.width >= _ROOMY
        rank = max(4 if roomy else 0, *(len(str(len(answer.labels))) for answer in block))
        score = max([10 if roomy else 0, *(len(_score(best)) for best in answers)])
        console = _widened(console, rank + _NARROWEST + score + 4)
        labels = max((cell_len(one_line(best.label)) for best in answers), default=0)
        widths = rank, max(4, min(labels, _WIDEST, console.width - rank - score - 4)), score
        for answer in block:
            text = self._title(self._number)
            heading = f"document {self._number}" if text is None else shortened(text, 2 * console.width - 2)
            console.print(Text(heading or "(an empty text)", style="bold"))
            if not answer.features:
                what = "features" if text is None else "words"
                console.print(Text(f"  The model knows none of its {what}.", style="italic"))
            elif answer.labels:
                console.print(_labels(answer, *widths))
            self._number += 1


def _labels(answer: runs.Answer, rank: int, label: int, score: int) -> Table:
    """Returns the labels of a document. The columns have these widths."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", width=rank, style="dim")
    table.add_column(width=label, overflow="fold")
    table.add_column(justify="right", width=score, no_wrap=True)
    for number, best in enumerate(answer.labels, 1):
        table.add_row(Text(str(number)), Text(one_line(best.label)), Text(_score(best)))
    return table


def _score(best: runs.Prediction) -> str:
    return f"{best.score:.6g}"


def _console() -> Console:
    """Returns a console that prints texts as they are, without markup, emoji codes or colours."""
    return Console(markup=False, emoji=False, highlight=False)


def _widened(console: Console, width: int) -> Console:
    """Makes a console wide enough for its numbers. A narrower terminal wraps the lines itself."""
    console.width = max(console.width, width)
    return console

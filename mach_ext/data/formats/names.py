"""Lists of names of columns, and labels that are given by their names."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

from mach_ext._memory import memory_errors
from mach_ext.data.files import PathLike, suffix_of
from mach_ext.data.formats.lines import number_of, read_lines
from mach_ext.data.json_text import read_json
from mach_ext.data.matrices import Csr
from mach_ext.data.parsing import check_names, quote


@memory_errors("free memory first, or split the data", "data.read_names")
def read_names(path: PathLike, count: int | None = None) -> list[str]:
    """Names in column order, one a line: ``name`` or ``id TAB name``; or a JSON list of them, in ``.json``.

    Ids that are numbers say where a name belongs. They must be 0 ... n-1 or 1 ... n, each once, in any order.
    Ids that are not all numbers are somebody else's: the names stay in the order of the lines.

    Raises:
        ValueError: not ``count`` names, or numbers that are not those of columns; with the line.
    """
    numbered = read_numbered_names(path)
    if count is not None:
        numbered.check_count(count)
    return numbered.names


class Names(NamedTuple):
    """Names in column order, from a file."""

    path: Path
    names: list[str]
    first: int | None  # the number before the first name, 0 or 1; None where the lines have no numbers
    blank: int = 0  # blank lines at the end, which are names only if there have to be so many

    def check_count(self, count: int) -> None:
        missing = count - len(self.names)
        if 0 < missing <= self.blank:
            self.names.extend([""] * missing)
        elif missing:
            unit = "names" if suffix_of(self.path) == ".json" else "lines"
            raise ValueError(f"{self.path}: must have {count} {unit}, one a column, got {len(self.names)}")


def read_numbered_names(path: PathLike) -> Names:
    """What :func:`read_names` reads, with the number of the first name."""
    if suffix_of(path) == ".json":
        names = read_json(path, "a JSON list of names")
        check_names(names, path)
        return Names(Path(path), names, None)
    text = read_lines(path)
    blank = sum(1 for _ in itertools.takewhile(lambda line: not line.strip(), reversed(text)))
    lines = [line.partition("\t") for line in text[: len(text) - blank]]
    names = [name or head for head, _, name in lines]
    numbers = [number_of(head) if tab else None for head, tab, _ in lines]
    count, numbered = len(lines), [number for number in numbers if number is not None]
    if not numbered and _places([number_of(name) if tab else None for _, tab, name in lines]):
        raise ValueError(
            f"{path}, line 1: must be a number, a tab and a name, got a name first: {quote(text[0])}"
        )
    # Where some lines have no number, those of the others are of columns only if all of them could be.
    if not numbered or (len(numbered) < count and max(numbered) > count):
        return Names(Path(path), names, None, blank)
    first = int(0 not in numbered)
    placed: dict[int, str] = {}
    for line, (number, name) in enumerate(zip(numbers, names, strict=True), start=1):
        if number is None or not first <= number < first + count or number in placed:
            rule = f"the numbers before the names must be {first} ... {first + count - 1}, each once"
            hint = "without any numbers, names are taken in the order of the lines"
            raise ValueError(f"{path}, line {line}: {rule}, got {lines[line - 1][0][:40]!r}; {hint}")
        placed[number] = name
    return Names(Path(path), [placed[first + column] for column in range(count)], first, blank)


def _places(numbers: list[int | None]) -> bool:
    """Whether these are 0 ... n-1 or 1 ... n, each once."""
    given = sorted(number for number in numbers if number is not None)
    return bool(given) and len(given) == len(numbers) and given in (
        [*range(len(given))], [*range(1, len(given) + 1)]
    )  # fmt: skip


def name_key(name: str) -> str:
    """What two spellings of one name share: Unicode's NFC, where é is one character, not e and an accent."""
    return unicodedata.normalize("NFC", name)


@memory_errors("free memory first, or split the data", "data.label_matrix")
def label_matrix(labels: Sequence[Sequence[str]], names: Sequence[str], source: PathLike = "labels") -> Csr:
    """Label names of each document -> Y [N, L]; a name given twice counts once.

    Names that differ only in how their accents are written are one name, unless ``names`` has both.

    Raises:
        ValueError: a name that is not among ``names``.
    """
    ids = {name: i for i, name in enumerate(names)}
    if len(ids) != len(names):
        raise ValueError(f"{source}: label names must differ, got {len(names)} names, {len(ids)} different")
    ids = {name_key(name): i for name, i in ids.items()} | ids
    try:
        rows = [
            sorted({ids[name] if name in ids else ids[name_key(name)] for name in document})
            for document in labels
        ]
    except KeyError as error:
        raise ValueError(f"{source}: every label must be in labels.txt, got {quote(error.args[0])}") from None
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.fromiter((i for row in rows for i in row), np.int32, count=int(indptr[-1]))
    return scipy.sparse.csr_matrix(
        (np.ones(indices.size, np.float32), indices, indptr), (len(rows), len(names))
    )

"""Lists of column names, and labels that are given by name."""

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
    r"""Reads names of columns from lines `name` or `id TAB name`, or from a JSON list.

    A file that ends in `.json` holds a JSON list. If all ids in a text file are numbers, they say which
    column a name belongs to. They must be 0 ... n-1 or 1 ... n, each once, in any order. Ids that are not all
    numbers are ignored. Then the names are in the order of the lines.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.
        count: The required number of names. None: any.

    Returns:
        The names in column order.

    Raises:
        ValueError: The number of names differs, or ids are not the numbers of columns. The message has the
            line.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import read_names
        >>> _ = Path("labels.txt").write_text("2\tdog\n1\tcat\n")
        >>> read_names("labels.txt")
        ['cat', 'dog']
    """
    numbered = read_numbered_names(path)
    if count is not None:
        numbered.check_count(count)
    return numbered.names


class Names(NamedTuple):
    r"""The names of columns that were read from a file.

    Attributes:
        path: The file.
        names: The names in column order.
        first: The number of the first name, 0 or 1. None: the lines have no numbers.
        blank: The number of blank lines at the end. They count as empty names only if the number of columns
            needs them.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data.formats import read_numbered_names
        >>> _ = Path("labels.txt").write_text("1\tcat\n2\tdog\n")
        >>> read_numbered_names("labels.txt")
        Names(path=PosixPath('labels.txt'), names=['cat', 'dog'], first=1, blank=0)
    """

    path: Path
    names: list[str]
    first: int | None
    blank: int = 0

    def check_count(self, count: int) -> None:
        """Checks the number of names. Blank lines at the end count as empty names if they are needed.

        Args:
            count: The required number of names.

        Raises:
            ValueError: The number differs.

        Example:
            >>> from pathlib import Path
            >>> from mach_ext.data.formats import Names
            >>> names = Names(Path("labels.txt"), ["cat", "dog"], first=None, blank=1)
            >>> names.check_count(3)
            >>> names.names
            ['cat', 'dog', '']
        """
        missing = count - len(self.names)
        if 0 < missing <= self.blank:
            self.names.extend([""] * missing)
        elif missing:
            unit = "names" if suffix_of(self.path) == ".json" else "lines"
            raise ValueError(f"{self.path}: must have {count} {unit}, one a column, got {len(self.names)}")


def read_numbered_names(path: PathLike) -> Names:
    r"""Reads the same as `read_names`, and returns also the number of the first name.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.

    Raises:
        ValueError: Ids are not the numbers of columns. The message has the line.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data.formats import read_numbered_names
        >>> _ = Path("labels.txt").write_text("0\tcat\n1\tdog\n")
        >>> read_numbered_names("labels.txt").first
        0
    """
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
    # If some lines have no number, the numbers of the other lines name columns only if all of them can.
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
    """Returns whether these numbers are 0 ... n-1 or 1 ... n, each once."""
    given = sorted(number for number in numbers if number is not None)
    return bool(given) and len(given) == len(numbers) and given in (
        [*range(len(given))], [*range(1, len(given) + 1)]
    )  # fmt: skip


def name_key(name: str) -> str:
    r"""Returns the key that all Unicode spellings of a name share.

    It is the name in Unicode's form NFC. There "é" is a single character, not "e" and an accent.

    Args:
        name: A name of a label.

    Example:
        >>> from mach_ext.data import name_key
        >>> "cafe\u0301" == "café", name_key("cafe\u0301") == name_key("café")
        (False, True)
    """
    return unicodedata.normalize("NFC", name)


@memory_errors("free memory first, or split the data", "data.label_matrix")
def label_matrix(labels: Sequence[Sequence[str]], names: Sequence[str], source: PathLike = "labels") -> Csr:
    """Makes a label matrix Y [N, L] from the label names of each document.

    A name that occurs twice counts once. Names that differ only in how their accents are written are the same
    name, unless `names` has both.

    Args:
        labels: The label names of each of the N documents.
        names: The names of all L labels, in column order.
        source: How messages call the labels.

    Returns:
        Y [N, L], CSR float32. An entry is 1 if the document has the label.

    Raises:
        ValueError: A name is not among `names`, or `names` has a name twice.

    Example:
        >>> from mach_ext.data import label_matrix
        >>> label_matrix([["dog"], ["cat", "dog"]], ["cat", "dog", "owl"]).toarray()
        array([[0., 1., 0.],
               [1., 1., 0.]], dtype=float32)
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

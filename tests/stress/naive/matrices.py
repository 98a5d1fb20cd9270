"""Text formats of documents with labels: XMC, svmlight, deepxml."""

from __future__ import annotations

import re
from typing import Any

from . import MAX, Refused, Table
from .numbers import float_of, integer, is_count, pairs, whole

BLANKS = " \t\r\v\f"


def split_lines(data: bytes) -> list[str]:
    text = data.decode("latin-1").removeprefix("\xef\xbb\xbf")
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def tokens_of(line: str) -> list[str]:
    return re.findall(f"[^{BLANKS}]+", line)


def document(line: str, number: int, D: int, L: int, svmlight: bool) -> tuple[dict[int, int], set[int]]:
    tokens = tokens_of(line)
    labels: set[int] = set()
    if not tokens:
        return {}, labels
    first_column = line[0] not in BLANKS
    if ":" in tokens[0]:
        if first_column and not (svmlight and tokens[0].startswith("qid:")):
            raise Refused(number)
    elif first_column or svmlight:
        labels = {integer(label, L, number) for label in tokens.pop(0).split(",")}
    if svmlight and tokens and tokens[0].startswith("qid:") and whole(tokens.pop(0)[4:]) is None:
        raise Refused(number)
    return pairs(tokens, D, number), labels


def header(lines: list[str], fields: int) -> list[int]:
    """The counts of the first line: rows, then numbers of columns."""
    if not any(tokens_of(line) for line in lines):
        raise Refused(None, 1)
    tokens = tokens_of(lines[0])
    if len(tokens) != fields:
        raise Refused(1)
    rows = whole(tokens[0])
    if rows is None:
        raise Refused(1)
    return [rows, *(integer(token, 2**31, 1) for token in tokens[1:])]


def drop_blank_end(rows: list[Any], lines: list[str], promised: int) -> list[Any]:
    """Blank lines beyond the promised number are just the end of the file; anything else is too much."""
    while len(rows) > promised and not tokens_of(lines[len(rows)]):
        rows = rows[:-1]
    if len(rows) != promised:
        raise Refused(1)
    return rows


def read_xmc(data: bytes) -> Table:
    lines = split_lines(data)
    promised, D, L = header(lines, 3)
    documents = [document(line, i, D, L, svmlight=False) for i, line in enumerate(lines[1:], start=2)]
    documents = drop_blank_end(documents, lines, promised)
    return Table([row for row, _ in documents], [labels for _, labels in documents], D, L)


def read_svmlight(files: dict[str, bytes], base: int | None) -> list[Table]:
    """Files of one dataset; base: 0 or 1, or None for 1 where no file has a feature 0."""
    documents: dict[str, list[tuple[int, dict[int, int], set[int]]]] = {}
    for name, data in files.items():
        found = documents[name] = []
        try:
            for number, line in enumerate(split_lines(data), start=1):
                if tokens_of(line := line.partition("#")[0]):
                    found.append((number, *document(line, number, MAX, MAX, svmlight=True)))
            if not found:
                raise Refused(None)
        except Refused as refused:
            raise Refused(*refused.lines, files=(name,)) from None
    everything = [(name, *rest) for name, found in documents.items() for rest in found]
    zeros = [(name, number) for name, number, row, _ in everything if 0 in row]
    if base == 1 and zeros:
        raise Refused(zeros[0][1], None, files=(zeros[0][0],))
    base = int(not zeros) if base is None else base
    columns = [column for _, _, row, _ in everything for column in row]
    labels = [label for *_, labels in everything for label in labels]
    D, L = max(columns, default=base - 1) + 1 - base, max(labels, default=-1) + 1
    return [
        Table(
            [{column - base: bits for column, bits in row.items()} for _, row, _ in found],
            [labels for *_, labels in found],
            D,
            L,
        )
        for found in documents.values()
    ]


def read_sparse_text(data: bytes) -> tuple[list[dict[int, int]], int]:
    """``N C``, then N lines of ``column:value``; a blank line is an empty row."""
    lines = split_lines(data)
    promised, columns = header(lines, 2)
    rows = [pairs(tokens_of(line), columns, number) for number, line in enumerate(lines[1:], start=2)]
    return drop_blank_end(rows, lines, promised), columns


def read_deepxml(files: dict[str, bytes]) -> Table:
    """``trn_X_Xf.txt`` and ``trn_X_Y.txt``: features, and labels each with a whole number; 0 is no label."""
    read = {}
    for name, data in files.items():
        try:
            read[name] = read_sparse_text(data)
            for line, row in enumerate(read[name][0] if "_X_Y" in name else [], start=2):
                if not all(is_count(bits) for bits in row.values()):
                    raise Refused(None, line)  # a rule of the matrix, not of its text
        except Refused as refused:
            raise Refused(*refused.lines, files=(name,)) from None
    (rows, D), (labels, L) = read.values()
    if len(rows) != len(labels):
        raise Refused(None, 1, files=tuple(files))
    marked = [{label for label, bits in row.items() if float_of(bits)} for row in labels]
    return Table(rows, marked, D, L)

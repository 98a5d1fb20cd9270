"""The text formats in plain Python: one line, one token, one digit after another.

Every reader takes the bytes of a file and returns plain lists, or raises `Refused`. Values are the bits of a
float32, so that 0.0 and -0.0 differ.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

MAX = 2**31 - 1
BLANKS = " \t\r\v\f"

# What is decided in one place only, here: may a list of names hold column numbers for some lines only?
SOME_NAMES_WITHOUT_ID_ARE_REFUSED = True


ANY = -1  # line


class Refused(Exception):
    """The file breaks a rule. `lines`: the line numbers of which one must be named; None: no line."""

    def __init__(self, *lines: int | None, files: tuple[str, ...] = ()):
        self.lines, self.files = lines, files


class Table(NamedTuple):
    """Documents: {column: float32 bits} and the labels of each, and the numbers of columns D and L."""

    rows: list[dict[int, int]]
    labels: list[set[int]]
    columns: int
    num_labels: int


def unpack(name: str, data: bytes) -> bytes:
    """Decompresses by suffix. The whole file must consist of whole streams; zeros may follow one."""
    new = {"xz": lzma.LZMADecompressor, "bz2": bz2.BZ2Decompressor}.get(name.rpartition(".")[2])
    try:
        if name.endswith(".gz"):
            if not data:
                raise EOFError
            return gzip.decompress(data)
        if new is None:
            return data
        parts = []
        while data or not parts:
            stream = new()
            parts.append(stream.decompress(data))
            if not stream.eof:
                raise EOFError
            data = stream.unused_data.lstrip(b"\0")
        return b"".join(parts)
    except Exception:  # a reader by blocks may meet a line that the damage broke before it meets the damage
        raise Refused(None, ANY, files=(name,)) from None


# ------------------------------------------------------------------------------------------- numbers


def float32_bits(value: float) -> int | None:
    """A double, rounded to float32; None where it is too large."""
    try:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:
        return None


@lru_cache(100_000)
def nearest_float32(text: str) -> float | None:
    """The float32 nearest to a decimal text, ties to even; None where it is too large."""
    mantissa, _, exponent = text.lower().partition("e")
    digits = Decimal(mantissa)
    sign = -1.0 if digits.is_signed() else 1.0
    if digits == 0:
        return sign * 0.0
    power = int(exponent[:12] or 0)  # of a longer one, these digits say enough
    if abs(digits.adjusted() + power) > 60:
        return sign * 0.0 if digits.adjusted() + power < 0 else None
    exact = abs(Fraction(digits)) * Fraction(10) ** power
    unit = (
        exact.numerator.bit_length() - exact.denominator.bit_length()
    )  # 2^unit is exact's size, or twice that
    if Fraction(2) ** unit > exact:
        unit -= 1
    step = max(unit - 23, -149)
    value = round(exact / Fraction(2) ** step) * 2.0**step  # a Fraction rounds ties to even
    return sign * value if value < 2.0**128 else None


def integer(text: str, limit: int, line: int) -> int:
    """A non-negative integer below `limit`."""
    if not re.fullmatch("[0-9]+", text):
        raise Refused(line)
    text = text.lstrip("0") or "0"
    if len(text) > 19 or int(text) >= limit:
        raise Refused(line)
    return int(text)


def pairs(tokens: list[str], limit: int, line: int) -> dict[int, int]:
    """``column:value`` tokens; the values of a column are summed in double, then rounded once."""
    values: dict[int, list[float]] = {}
    for token in tokens:
        column, colon, number = token.partition(":")
        if not colon or not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", number):
            raise Refused(line)
        value = nearest_float32(number)
        if value is None:
            raise Refused(line)
        values.setdefault(integer(column, limit, line), []).append(value)
    row = {}
    for column_id, (first, *more) in values.items():
        for value in more:
            first += value
        bits = float32_bits(first)
        if bits is None:
            raise Refused(line)
        row[column_id] = bits
    return row


# ------------------------------------------------------------------------------------------- matrices


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
        if first_column:
            raise Refused(number)
    elif first_column or svmlight:
        labels = {integer(label, L, number) for label in tokens.pop(0).split(",")}
    if svmlight and tokens and tokens[0].startswith("qid:"):
        integer(tokens.pop(0)[4:], 10**30, number)
    return pairs(tokens, D, number), labels


def header(lines: list[str], fields: int) -> list[int]:
    """The counts of the first line: rows, then numbers of columns."""
    if not any(tokens_of(line) for line in lines):
        raise Refused(None, 1)
    tokens = tokens_of(lines[0])
    if len(tokens) != fields:
        raise Refused(1)
    rows = tokens[0].lstrip("0")[:30] if re.fullmatch("[0-9]+", tokens[0]) else "x"
    return [integer(rows or "0", 10**40, 1) if len(rows) < 19 else 10**19] + [
        integer(token, 2**31, 1) for token in tokens[1:]
    ]


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
        raise Refused(zeros[0][1], files=(zeros[0][0],))
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
    """``trn_X_Xf.txt`` and ``trn_X_Y.txt``: features, and labels each with a 1 (a 0 is no label)."""
    read = {}
    for name, data in files.items():
        try:
            read[name] = read_sparse_text(data)
            bad = [i for i, row in enumerate(read[name][0], start=2) if set(row.values()) - {0, 0x3F800000}]
            if "_X_Y" in name and bad:
                raise Refused(bad[0])
        except Refused as refused:
            raise Refused(*refused.lines, files=(name,)) from None
    (rows, D), (labels, L) = read.values()
    if len(rows) != len(labels):
        raise Refused(None, 1, files=tuple(files))
    return Table(rows, [{label for label, bits in row.items() if bits} for row in labels], D, L)


def read_filter_pairs(data: bytes, rows: int, columns: int) -> list[set[int]]:
    """``document label`` a line; blank lines mean nothing."""
    found: list[set[int]] = [set() for _ in range(rows)]
    for number, line in enumerate(split_lines(data), start=1):
        if tokens := tokens_of(line):
            if len(tokens) != 2:
                raise Refused(number)
            found[integer(tokens[0], rows, number)].add(integer(tokens[1], columns, number))
    return found


# ------------------------------------------------------------------------------------------- texts


def read_lines(data: bytes) -> list[str]:
    lines = []
    parts = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, part in enumerate(parts[:-1] if parts[-1] == b"" else parts, start=1):
        try:
            lines.append(part.removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            raise Refused(number) from None
    return lines


def read_names(data: bytes, count: int | None) -> list[str]:
    lines = [line.partition("\t") for line in read_lines(data)]
    ids = [
        int(head.lstrip("0")[:18] or 0) if tab and re.fullmatch("[0-9]+", head) else None
        for head, tab, _ in lines
    ]
    names = [name or head for head, _, name in lines]
    numbers = [i for i in ids if i is not None]
    wrong_count = count is not None and count != len(lines)
    if numbers and len(numbers) == len(ids):
        base = 0 if 0 in numbers else 1
        placed: dict[int, str] = {}
        for line, (column, name) in enumerate(zip(numbers, names, strict=True), start=1):
            if column - base >= len(lines) or column in placed:
                raise Refused(line, *[None] * wrong_count)
            placed[column] = name
        names = [placed[column] for column in sorted(placed)]
    elif SOME_NAMES_WITHOUT_ID_ARE_REFUSED and numbers and max(numbers) <= len(ids):
        raise Refused(ids.index(None) + 1, *[None] * wrong_count)
    if wrong_count:
        raise Refused(None)
    return names

"""JSON in and out: read within bounds, written so that every reader and every terminal can carry it."""

from __future__ import annotations

import itertools
import json
import os
import re
from typing import Any

from mach_ext.data.atomic import atomic_write
from mach_ext.data.files import PathLike
from mach_ext.data.sources import read_input

MAX_DEPTH = 200  # of brackets in JSON, far below what Python's own readers and writers can recurse
MAX_JSON = 1 << 30  # bytes of a JSON file; a vectorizer of ten million words has a third of that

# Lone surrogates, which UTF-8 can't carry, what some readers take for the end of a line, and what steers a
# terminal. JSON's own escapes say the same.
_ESCAPED = re.compile("[\ud800-\udfff\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def decode_json(content: str | bytes) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: anything else; brackets deeper than ``MAX_DEPTH``; an integer of thousands of digits.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    else:
        if text.count("[") + text.count("{") <= MAX_DEPTH or not _is_deep(value):
            return value
    raise ValueError(f"brackets must be at most {MAX_DEPTH} deep, got more")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = (each.values() if isinstance(each, dict) else each for each in level if _is_container(each))
        level = [each for each in itertools.chain.from_iterable(inside) if _is_container(each)]
        if not level:
            return False
    return True


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list))


def parse_json(content: str | bytes, source: PathLike, what: str = "JSON in UTF-8") -> Any:
    """The value of a JSON text; ``source`` is how messages call it, ``what`` what it must be.

    Raises:
        ValueError: as :func:`decode_json`, with the source.

    Example:
        >>> from mach_ext.data.json_text import parse_json
        >>> parse_json(b'{"a": [1, 2]}', "a.json")
        {'a': [1, 2]}
    """
    try:
        return decode_json(content)
    except ValueError as error:
        raise ValueError(f"{source}: must be {what}, got: {type(error).__name__}: {error}") from None


def read_json(path: PathLike, what: str = "JSON in UTF-8") -> Any:
    """The value in a JSON file, plain or compressed.

    Raises:
        ValueError: as :func:`parse_json`; more than ``MAX_JSON`` bytes.
        OSError: no such file, or it can't be read.
    """
    if (size := os.stat(path).st_size) > MAX_JSON:
        raise ValueError(f"{path}: must be {what} of at most {MAX_JSON} bytes, got {size}")
    return parse_json(read_input(path), path, what)


def write_json(path: PathLike, record: Any) -> None:
    """Writes JSON, atomically; NaN, which JSON has not, as null."""
    with atomic_write(path) as file:
        file.write(json.dumps(without_nan(record), indent=2, allow_nan=False).encode() + b"\n")


def without_nan(record: Any) -> Any:
    """A record with null in place of NaN."""
    if isinstance(record, dict):
        return {key: without_nan(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [without_nan(value) for value in record]
    return None if isinstance(record, float) and record != record else record


def json_line(record: Any) -> str:
    """A record as JSON on one line. Every script stays readable, and UTF-8 can carry the whole line.

    Example:
        >>> from mach_ext.data import json_line
        >>> json_line({"label": "हिन्दी"})
        '{"label": "हिन्दी"}'
    """
    text = json.dumps(record, ensure_ascii=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

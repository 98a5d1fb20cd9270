"""Reads JSON within limits, and writes JSON that every reader and every terminal accepts."""

from __future__ import annotations

import itertools
import json
import os
import re
from typing import Any

from mach_ext.data.atomic import atomic_write
from mach_ext.data.files import PathLike
from mach_ext.data.sources import read_input

MAX_DEPTH = 200  # nested brackets, far fewer than Python's own reader and writer of JSON can handle
MAX_JSON = 1 << 30  # bytes of a JSON file; a vectorizer of ten million words has a third as many

# Characters that are written as JSON escapes: lone surrogates, which UTF-8 cannot encode, characters that
# some readers take for the end of a line, and characters that control a terminal.
_ESCAPED = re.compile("[\ud800-\udfff\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def decode_json(content: str | bytes) -> Any:
    """Parses a JSON text in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: The text is not JSON, nests deeper than `MAX_DEPTH`, or has an integer of thousands of
            digits.
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
    """Returns whether lists and objects are nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = (each.values() if isinstance(each, dict) else each for each in level if _is_container(each))
        level = [each for each in itertools.chain.from_iterable(inside) if _is_container(each)]
        if not level:
            return False
    return True


def _is_container(value: Any) -> bool:
    """Returns whether a value is a list or an object."""
    return isinstance(value, (dict, list))


def parse_json(content: str | bytes, source: PathLike, what: str = "JSON in UTF-8") -> Any:
    """Parses a JSON text.

    Args:
        content: The text.
        source: How messages call the text.
        what: What the text must be, for messages.

    Raises:
        ValueError: As `decode_json`. The message names the source.

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
    """Reads a JSON file, plain or compressed.

    Raises:
        ValueError: As `parse_json`, or the file has more than `MAX_JSON` bytes.
        OSError: The file does not exist or cannot be read.
    """
    if (size := os.stat(path).st_size) > MAX_JSON:
        raise ValueError(f"{path}: must be {what} of at most {MAX_JSON} bytes, got {size}")
    return parse_json(read_input(path), path, what)


def write_json(path: PathLike, record: Any) -> None:
    """Writes a JSON file. The file appears whole or not at all.

    JSON has no NaN, so NaN is written as null.

    Args:
        path: The file to write.
        record: Any value that JSON can hold.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import write_json
        >>> write_json("metrics.json", {"P@1": 0.75, "PSP@1": float("nan")})
        >>> print(Path("metrics.json").read_text().strip())
        {
          "P@1": 0.75,
          "PSP@1": null
        }
    """
    with atomic_write(path) as file:
        file.write(json.dumps(without_nan(record), indent=2, allow_nan=False).encode() + b"\n")


def without_nan(record: Any) -> Any:
    """Returns a record with None in place of NaN."""
    if isinstance(record, dict):
        return {key: without_nan(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [without_nan(value) for value in record]
    return None if isinstance(record, float) and record != record else record


def json_line(record: Any) -> str:
    """Returns a record as JSON on one line.

    Letters of every script stay readable. Characters that UTF-8 cannot encode or that control a terminal are
    escaped.

    Args:
        record: Any value that JSON can hold.

    Example:
        >>> from mach_ext.data import json_line
        >>> json_line({"label": "हिन्दी"})
        '{"label": "हिन्दी"}'
    """
    text = json.dumps(record, ensure_ascii=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

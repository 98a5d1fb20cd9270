"""What data files say: JSON, names, and how messages quote them. `records` reads what this package wrote."""

from __future__ import annotations

import itertools
import json
import os
import reprlib
from collections.abc import Mapping
from typing import Any

from mach_ext.data.files import PathLike
from mach_ext.data.sources import read_input

MAX_DEPTH = 200  # of brackets in JSON, far below what Python's own readers and writers can recurse
MAX_JSON = 1 << 30  # bytes of a JSON file; a vectorizer of ten million words has a third of that

_LENGTH = 60  # characters of a file's contents in a message

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxtuple, _repr.maxdict = 2, 4, 4, 4
_repr.maxother, _repr.maxlong = _LENGTH, _LENGTH


def shown(value: Any) -> str:
    """A value from a file as messages quote it: short, on one line, nothing in it that a terminal obeys.

    Example:
        >>> from mach_ext.data.parsing import shown
        >>> print(shown("red\\n" + "a" * 1000)[:12], len(shown("a" * 1000)))
        'red\\naaaaaa 63
    """
    is_text = isinstance(value, (str, bytes, bytearray))
    text = repr(value[:_LENGTH]) if is_text else _repr.repr(value)
    cut = len(text) > _LENGTH + 2 or (is_text and len(value) > _LENGTH)
    return f"{text[:_LENGTH]}..." if cut else text


# ------------------------------------------------------------------------------------------------ JSON


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
        >>> from mach_ext.data.parsing import parse_json
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


# ------------------------------------------------------------------------------------------------ names


def check_names(names: Any, source: PathLike, count: int | None = None) -> None:
    """A list of names: strings, so many of them. Whatever is in them is kept, be it half of a surrogate pair.

    Raises:
        ValueError: no list, another number of names, an entry that is no string; with source and entry.
    """
    if isinstance(names, (str, bytes, Mapping)) or not hasattr(names, "__getitem__"):
        raise ValueError(f"{source}: it must be a list of names, got {shown(names)}")
    if count is not None and len(names) != count:
        raise ValueError(f"{source}: must have {count} names, got {len(names)}")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"{source}: [{i}] must be a string, got {shown(name)}")

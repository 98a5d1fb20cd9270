"""What a file says, checked: JSON, its fields, names. Each fault is a ValueError with source and rule."""

from __future__ import annotations

import itertools
import json
import os
import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .files import PathLike
from .sources import read_input

MAX_DEPTH = 200  # of brackets in JSON, far below what Python's own readers and writers can recurse
MAX_JSON = 1 << 30  # bytes of a JSON file; a vectorizer of ten million words has a third of that

_LENGTH = 60  # characters of a file's contents in a message

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxtuple, _repr.maxdict = 2, 4, 4, 4
_repr.maxother, _repr.maxlong = _LENGTH, _LENGTH


def shown(value: Any) -> str:
    """A value from a file as messages quote it: short, on one line, nothing in it that a terminal obeys.

    Example:
        >>> from mach_ext.data.records import shown
        >>> print(shown("red\\n" + "a" * 1000))
        'red\\naaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...
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
        if not _is_deep(value):
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
        >>> from mach_ext.data.records import parse_json
        >>> parse_json(b'{"a": [1, 2]}', "a.json")
        {'a': [1, 2]}
    """
    try:
        return decode_json(content)
    except ValueError as error:
        raise ValueError(f"{source}: must be {what}, got: {_said(error)}") from None


def read_json(path: PathLike, what: str = "JSON in UTF-8") -> Any:
    """The value in a JSON file, plain or compressed.

    Raises:
        ValueError: as :func:`parse_json`; more than ``MAX_JSON`` bytes.
        OSError: no such file, or it can't be read.
    """
    if (size := os.stat(path).st_size) > MAX_JSON:
        raise ValueError(f"{path}: must be {what} of at most {MAX_JSON} bytes, got {size}")
    return parse_json(read_input(path), path, what)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) else error}"


class Field(NamedTuple):
    """What an entry of a JSON object must be: in words, and as a check."""

    rule: str
    holds: Callable[[Any], bool]
    needed: bool = False


def parse_record(
    content: str | bytes, source: PathLike, what: str, fields: Mapping[str, Field]
) -> dict[str, Any]:
    """A JSON object whose entries are what they must be; others are let through.

    Raises:
        ValueError: not JSON, no object, an entry that is missing or wrong; with source, entry and rule.

    Example:
        >>> from mach_ext.data.records import Field, parse_record
        >>> fields = {"name": Field("a string", lambda value: isinstance(value, str), needed=True)}
        >>> parse_record('{"name": "a"}', "a.json", "a record", fields)
        {'name': 'a'}
        >>> parse_record('{"name": 5}', "a.json", "a record", fields)
        Traceback (most recent call last):
        ValueError: a.json: must be a record, got: TypeError: "name" must be a string, got 5
    """
    try:
        return check_fields(decode_json(content), fields)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{source}: must be {what}, got: {_said(error)}") from None


def check_fields(value: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The object itself, where its entries are what they must be.

    Raises:
        TypeError: no object, or a wrong entry.
        KeyError: a missing one.
    """
    if not isinstance(value, dict):
        raise TypeError(f"the whole must be a JSON object, got {shown(value)}")
    for name, field in fields.items():
        if name not in value:
            if field.needed:
                raise KeyError(f'"{name}" must be there')
        elif not field.holds(value[name]):
            raise TypeError(f'"{name}" must be {field.rule}, got {shown(value[name])}')
    return value


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number from 0 up that fits 64 bits; ``true`` is none."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: Any, limit: float = sys.float_info.max) -> bool:
    """Whether a JSON value is a finite number that fits a double, or whatever has this limit."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -limit <= value <= limit


# ------------------------------------------------------------------------------------------------ names


def check_names(names: Any, source: PathLike, count: int | None = None) -> None:
    """A list of names: strings, so many of them. Whatever is in them is kept, be it half of a surrogate pair.

    Raises:
        ValueError: no list, another number of names, an entry that is no string; with source and entry.
    """
    if isinstance(names, (str, bytes, Mapping)) or not hasattr(names, "__getitem__"):
        raise ValueError(f"{source}: must be a list of names, got {shown(names)}")
    if count is not None and len(names) != count:
        raise ValueError(f"{source}: must have {count} names, one a column, got {len(names)}")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"{source}, entry {i}: a name must be a string, got {shown(name)}")

"""How messages quote values from files, and the check of a list of names."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from mach_ext._deprecation import renamed_names
from mach_ext.data.files import PathLike

_LENGTH = 60  # characters of a file's content in a message

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxtuple, _repr.maxdict = 2, 4, 4, 4
_repr.maxother, _repr.maxlong = _LENGTH, _LENGTH


def quote(value: Any) -> str:
    r"""Quotes a value from a file for a message.

    The result is short and stands on one line. It contains nothing that controls a terminal.

    Example:
        >>> from mach_ext.data.parsing import quote
        >>> print(quote("red\n" + "a" * 1000)[:12], len(quote("a" * 1000)))
        'red\naaaaaa 63
    """
    is_text = isinstance(value, (str, bytes, bytearray))
    text = repr(value[:_LENGTH]) if is_text else _repr.repr(value)
    cut = len(text) > _LENGTH + 2 or (is_text and len(value) > _LENGTH)
    return f"{text[:_LENGTH]}..." if cut else text


def check_names(names: Any, source: PathLike, count: int | None = None) -> None:
    """Checks a list of names. They must be strings, and there must be `count` of them unless it is None.

    Any string is accepted, even half of a surrogate pair.

    Raises:
        ValueError: There is no list, the number differs, or an entry is not a string. The message names the
            source and the entry.
    """
    if isinstance(names, (str, bytes, Mapping)) or not hasattr(names, "__getitem__"):
        raise ValueError(f"{source}: it must be a list of names, got {quote(names)}")
    if count is not None and len(names) != count:
        raise ValueError(f"{source}: must have {count} names, got {len(names)}")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"{source}: [{i}] must be a string, got {quote(name)}")


__getattr__ = renamed_names(
    __name__,
    decode_json="mach_ext.data.json_text.decode_json",
    parse_json="mach_ext.data.json_text.parse_json",
    read_json="mach_ext.data.json_text.read_json",
    shown="mach_ext.data.parsing.quote",
)

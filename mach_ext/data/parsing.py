"""How messages quote values from files, and the check of a list of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mach_ext._deprecation import renamed_names
from mach_ext._terminal import quote as quote
from mach_ext.data.files import PathLike


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

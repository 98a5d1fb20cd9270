"""What messages quote of a file, and the check of a list of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mach_ext._deprecation import renamed_names
from mach_ext._terminal import quote as quote
from mach_ext.data.files import PathLike


def check_names(names: Any, source: PathLike, count: int | None = None) -> None:
    """A list of names: strings, so many of them. Whatever is in them is kept, be it half of a surrogate pair.

    Raises:
        ValueError: no list, another number of names, an entry that is no string; with source and entry.
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

"""An extension of griffe: docstrings head their examples with `Example:`, griffe knows `Examples:` only."""

from __future__ import annotations

import re
from typing import Any

import griffe

HEAD = re.compile(r"^( *)Example:$", re.MULTILINE)


class Examples(griffe.Extension):
    """Renames the section before docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames the section in the docstring of a module, a class, a function or an attribute."""
        if obj.docstring is not None:
            obj.docstring.value = HEAD.sub(r"\1Examples:", obj.docstring.value)

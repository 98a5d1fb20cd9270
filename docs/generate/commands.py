"""The reference page of the command line, from the commands themselves."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator
from typing import Any


def leaves(command: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    """The commands of a group and of the groups in it, each with its context."""
    if not hasattr(command, "commands"):
        yield command, context
        return
    for name, child in command.commands.items():
        if not child.hidden:
            yield from leaves(child, child.context_class(child, info_name=name, parent=context))


def anchor(context: Any) -> str:
    """The anchor of a command: `mach-ext data info` becomes `mach-ext-data-info`."""
    return str(context.command_path).replace(" ", "-")


def page(group: Any, program: str = "mach-ext") -> str:
    """The commands of a group of click or Typer in Markdown."""
    root = group.context_class(group, info_name=program)
    found = [*leaves(group, root)]
    table = [
        f"| [`{context.command_path}`](#{anchor(context)}) | {cell(command.get_short_help_str(200))} |"
        for command, context in found
    ]
    index = "\n".join(["| command | what it does |", "| --- | --- |", *table])
    return "\n\n".join([index, *(section(command, context) for command, context in found)]) + "\n"


def section(command: Any, context: Any) -> str:
    """A command: what it does, its usage, its arguments and options by panel."""
    help_text = inspect.cleandoc(command.help or "").partition("\f")[0].strip()
    parts = [f"## {context.command_path} {{#{anchor(context)}}}", help_text]
    parts.append(f"```text\n{command.get_usage(context)}\n```")
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or default
            panels.setdefault(panel, []).append(f"| `{record[0]}` | {cell(record[1])} |")
    for panel, rows in panels.items():
        parts.append("\n".join([f"| {panel} | |", "| --- | --- |", *rows]))
    return "\n\n".join(part for part in parts if part)


def cell(text: str) -> str:
    """A text for a cell of a table: one line, in which no sign means more than itself."""
    return re.sub(r"([|\[*_])", r"\\\1", html.escape(" ".join(text.split()), quote=False))

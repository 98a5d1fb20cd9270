"""What all processes of a run must have in common. Others would wait for each other without an end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mach_ext.distributed.ranks import Ranks


def check_agreement(op: str, ranks: Ranks, given: dict[str, Any]) -> None:
    """Refuse processes that were given different things. All of them call this function.

    Args:
        op: How the message begins.
        ranks: The processes.
        given: What this process was given, by name. The values are compared as Python writes them.

    Raises:
        ValueError: A process was given something else than the first. All processes raise this error.

    Example:
        >>> from mach_ext.distributed import Ranks
        >>> from mach_ext.distributed.agreement import check_agreement
        >>> check_agreement("train", Ranks(), {"epochs": 3})
    """
    first, *others = ranks.collect({name: repr(value) for name, value in given.items()})
    for rank, other in enumerate(others, 1):
        names = [name for name in first if other.get(name) != first[name]]
        if names:
            values = (", ".join(f"{name} {each.get(name)}" for name in names) for each in (first, other))
            raise ValueError(
                f"{op}: all processes need the same arguments and data, "
                f"got {next(values)} on rank 0, and {next(values)} on rank {rank}"
            )


def check_shared(folder: Path, files: Iterable[str]) -> None:
    """Refuse a folder in which this process does not see the files of the others.

    Raises:
        ValueError: A file is missing.
    """
    for name in files:
        if not (folder / name).exists():
            raise ValueError(
                f"{folder}: must be a folder that all processes share; one of them does not see {name}, "
                "which another has written"
            )

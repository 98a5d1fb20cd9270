"""Weights in several files, and how the files become a whole model or a part of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mach_ext._model_folder.extents import Cut, Extent, Shard, cut_of
from mach_ext._model_folder.record import has_uncut
from mach_ext._model_folder.tensors import Header, read_tensors


def read_part(
    folder: Path,
    shards: list[Shard],
    what: str,
    check: Callable[[Path, Header, Extent], None],
    configuration: dict[str, Any],
    extent: Extent,
    cut: Cut = cut_of,
) -> dict[str, Tensor]:
    """Read the part of a model that has an extent. Only the files that hold some of it are read.

    A file that holds exactly this part is mapped, so nothing is allocated for it.

    Args:
        folder: The folder of the files.
        shards: The shards that make up the whole.
        what: How the message describes a damaged file.
        check: A function that raises if the header of a file is not that of its extent.
        configuration: That of the whole model.
        extent: What to read.
        cut: How a tensor of this name is cut.

    Raises:
        ValueError: A file is damaged or holds something else.
        FileNotFoundError: A file does not exist.
    """
    read, needs_first = [], has_uncut(configuration)
    for shard in shards:
        if (needs_first and shard.extent.is_first) or any(map(_overlap, shard.extent, extent)):
            file = folder / shard.file
            tensors = read_tensors(
                file, what, lambda header, file=file, shard=shard: check(file, header, shard.extent),  # type: ignore[misc]
                shard.sha256 or None,
            )  # fmt: skip
            if len(shards) == 1 and shard.extent == extent:  # also compressed weights, which cannot be cut
                return tensors
            read.append((shard.extent, tensors))
    return {
        name: _joined(name, read, cut(name, configuration), extent)
        for name in dict.fromkeys(name for _, tensors in read for name in tensors)
    }


def _joined(
    name: str, read: list[tuple[Extent, dict[str, Tensor]]], cut: tuple[int, str] | None, extent: Extent
) -> Tensor:
    """Return the part of a tensor with an extent, from the parts that were read."""
    if cut is None:
        return read[0][1][name]
    dim, field = cut
    wanted, parts = getattr(extent, field), []
    for held_extent, tensors in read:
        held = getattr(held_extent, field)
        common = _overlap(held, wanted)
        if common:
            parts.append(tensors[name].narrow(dim, common.start - held.start, len(common)))
    if not parts:  # an empty part keeps the shape of the others
        return read[0][1][name].narrow(dim, 0, 0)
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim)


def _overlap(a: range, b: range) -> range:
    return range(max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop)))

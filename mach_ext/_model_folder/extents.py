"""The part of a model that a file or a process holds: some repetitions, and some units of the encoder.

Repetitions share nothing but the encoder. So a part holds some repetitions, and some units of the first
hidden layer. Tensors that belong to neither are in the first part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

Shape: TypeAlias = tuple[int, ...]
# How a tensor of this name is cut, for the configuration of its model: the dimension, a field of `Extent`.
Cut: TypeAlias = Callable[[str, dict[str, Any]], "tuple[int, str] | None"]


class Extent(NamedTuple):
    """What a part of a model holds.

    Attributes:
        repetitions: Its repetitions.
        units: Its units of the first hidden layer: columns of `encoder_weight`. Empty for linear MACH.
    """

    repetitions: range
    units: range

    @property
    def is_first(self) -> bool:
        """Whether the part also holds the tensors that are not cut."""
        return self.repetitions.start == 0


class Shard(NamedTuple):
    """A file of weights, and what it holds."""

    file: str
    sha256: str  # "" in checkpoints of before there were digests
    extent: Extent


def whole_extent(configuration: dict[str, Any]) -> Extent:
    """Return the extent of a whole model or head."""
    R, sizes = configuration["num_repetitions"], configuration.get("hidden_size") or []
    copies = R if configuration.get("encoder") == "independent" else 1
    return Extent(range(R), range(copies * sizes[0] if sizes else 0))


def cut_of(name: str, configuration: dict[str, Any]) -> tuple[int, str] | None:
    """Return the dimension in which a tensor is cut, and by which field of `Extent`. None: it is not cut."""
    if name == "encoder_weight":
        return 1, "units"
    if name == "encoder_bias":
        return 0, "units"
    is_shared = configuration.get("encoder", "shared") == "shared"
    if name.startswith("dense_") or (name.startswith("hidden_") and is_shared):
        return None
    return 0, "repetitions"


def part_shapes(shapes: dict[str, Shape], configuration: dict[str, Any], extent: Extent) -> dict[str, Shape]:
    """Return the shapes of the tensors that a part holds, from those of the whole."""
    found = {}
    for name, shape in shapes.items():
        where = cut_of(name, configuration)
        if where is None:
            if extent.is_first:
                found[name] = shape
            continue
        dim, field = where
        found[name] = (*shape[:dim], len(getattr(extent, field)), *shape[dim + 1 :])
    return found


def shard_of(entry: dict[str, Any]) -> Shard:
    """Return the shard that an entry of a record describes."""
    extent = Extent(range(*entry["repetitions"]), range(*entry["units"]))
    return Shard(entry["file"], entry["sha256"], extent)


def entry_of(shard: Shard) -> dict[str, Any]:
    """Return the entry of a record for a shard."""
    repetitions, units = shard.extent
    return {
        "file": shard.file, "sha256": shard.sha256,
        "repetitions": [repetitions.start, repetitions.stop], "units": [units.start, units.stop],
    }  # fmt: skip


def joint_digest(digests: Iterable[str]) -> str:
    """Return a digest that identifies the weights of several shards."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def check_shards(what: str, shards: list[Shard], configuration: dict[str, Any]) -> None:
    """Refuse shards that do not make up a whole.

    Raises:
        ValueError: Repetitions or units are missing or occur twice.
    """
    whole = whole_extent(configuration)
    for field in Extent._fields:
        stop, parts = 0, [getattr(shard.extent, field) for shard in shards]
        if any(part.start > part.stop or part.start < 0 for part in parts):
            raise ValueError(f"{what}: shards must hold {field} from a number to a larger one")
        for part in parts:
            if part.start != stop:
                raise ValueError(f"{what}: shards must hold all {field} in order, got {parts}")
            stop = part.stop
        if stop != len(getattr(whole, field)):
            raise ValueError(f"{what}: shards must hold {len(getattr(whole, field))} {field}, got {stop}")

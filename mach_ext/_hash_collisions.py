"""Labels that share all their buckets: how many are expected, which they are, and the warning of them."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext._hash_functions import MAX_BUCKETS

_KEY_RANGE = 2**62  # bucket codes of several repetitions are packed into int64 keys below this
_PLAUSIBLE = 100  # collisions are plausible from 1/100 expected pairs on
_EXAMPLES = 10
GROUPING_BYTES = 40  # a label, of the int64 keys by which labels are grouped


class CollisionWarning(UserWarning):
    """Some labels share their bucket in every repetition: no model on this hash can tell them apart."""


# Of this thread and context, where the filters of the warnings module are the whole process's.
collisions_are_known = contextvars.ContextVar("collisions_are_known", default=False)


@contextlib.contextmanager
def collisions_known() -> Iterator[None]:
    """No `CollisionWarning` within, for hashes that are copies or parts of one that has warned."""
    token = collisions_are_known.set(True)
    try:
        yield
    finally:
        collisions_are_known.reset(token)


@dataclass(frozen=True)
class BucketLoad:
    """How many labels the B buckets of one repetition hold: `min`, `mean`, `max`, `std` and `empty` ones."""

    min: int
    mean: float
    max: int
    std: float
    empty: int


@dataclass(frozen=True)
class HashDiagnostics:
    """What `LabelHash.diagnostics` found. `str()` gives a readable summary.

    Attributes:
        num_labels: L.
        num_buckets: B.
        num_repetitions: R.
        seed: The seed, or None for a hash made by `LabelHash.from_buckets`.
        load: The bucket load of each repetition, R of them.
        expected_colliding_pairs: L(L-1)/2 / B^R, the label pairs that random buckets are expected to put
            into the same bucket in all R repetitions. For a hash made by `LabelHash.from_buckets` the same
            formula: what random buckets of these sizes would do, to compare the table with.
        colliding_pairs: The pairs that do so here, counted exactly.
        colliding_groups: Examples: the 10 largest groups of labels that share all their buckets, at most, and
            of each the 10 lowest labels, at most.
        bytes: Memory of each tensor that the hash holds, by name, and their sum as "everything".
    """

    num_labels: int
    num_buckets: int
    num_repetitions: int
    seed: int | None
    load: tuple[BucketLoad, ...]
    expected_colliding_pairs: float
    colliding_pairs: int
    colliding_groups: tuple[tuple[int, ...], ...]
    bytes: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` takes."""
        return asdict(self)

    def __str__(self) -> str:
        source = "given table" if self.seed is None else f"seed {self.seed}"
        lines = [
            f"label hash: {self.num_labels:,} labels, {self.num_buckets:,} buckets, "
            f"{self.num_repetitions} repetitions ({source}), {self.bytes['everything']:,} bytes",
            "repetition       min      mean       max       std     empty",
        ]
        for r, load in enumerate(self.load):
            lines.append(
                f"{r:>10}{load.min:>10,}{load.mean:>10,.1f}{load.max:>10,}{load.std:>10,.1f}{load.empty:>10,}"
            )
        lines.append(
            f"label pairs that share all their buckets: {self.colliding_pairs:,} "
            f"(random buckets: {self.expected_colliding_pairs:,.4g} expected)"
        )
        lines += [f"  for example {', '.join(map(str, group))}" for group in self.colliding_groups]
        return "\n".join(lines)


def collisions_plausible(num_labels: int, num_buckets: int, num_repetitions: int) -> bool:
    """Whether random buckets are expected to collide in all repetitions for at least 0.01 label pairs."""
    # 100 pairs of each two labels are below 2^68.
    return bool(_PLAUSIBLE * math.comb(num_labels, 2) >= num_buckets ** min(num_repetitions, 68))


def _sizes_without_collisions(num_labels: int, num_buckets: int, num_repetitions: int) -> tuple[int, int]:
    """The smallest R at this B, and the smallest B at this R, where collisions are not plausible."""
    repetitions = 1
    while collisions_plausible(num_labels, num_buckets, repetitions):
        repetitions += 1
    low, high = 2, max(2, _PLAUSIBLE * math.comb(num_labels, 2) + 1)  # the smallest B lies in [low, high]
    while low < high:
        middle = (low + high) // 2
        if collisions_plausible(num_labels, middle, num_repetitions):
            low = middle + 1
        else:
            high = middle
    return repetitions, low


def _colliding_labels(
    table: NDArray[np.int32], num_buckets: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds the labels that share their bucket with another label in every repetition.

    Packs the codes of as many repetitions as fit into one int64 key, keeps the labels whose key is not
    unique, and goes on with those and the next repetitions.

    Args:
        table: [R, L] int32 bucket codes below `num_buckets`.
        num_buckets: B.

    Returns:
        The labels [n], ascending, and the group of each [n], 0, 1, ...: two labels collide if and only if
        they have the same group.
    """
    num_repetitions, num_labels = table.shape
    labels = np.arange(num_labels, dtype=np.int64)
    group = np.zeros(num_labels, dtype=np.int64)
    num_groups, r = 1, 0
    while r < num_repetitions and labels.size > 0:
        key, key_range = group, num_groups
        while r < num_repetitions and key_range * num_buckets <= _KEY_RANGE:
            key = key * num_buckets
            key += table[r].take(labels)
            key_range *= num_buckets
            r += 1
        ordered = np.sort(key)
        shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        position = np.searchsorted(shared, key)
        kept = np.append(shared, -1)[position] == key
        labels, group, num_groups = labels[kept], position[kept], len(shared)
    return labels, group


def colliding_groups(table: NDArray[np.int32], num_buckets: int) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The number of fully colliding label pairs and example groups."""
    labels, group = _colliding_labels(table, num_buckets)
    sizes = np.bincount(group)
    largest = np.argsort(-sizes, kind="stable")[:_EXAMPLES]
    examples = tuple(tuple(labels[group == g][:_EXAMPLES].tolist()) for g in largest)
    return int((sizes * (sizes - 1) // 2).sum()), examples


def expected_pairs(num_labels: int, num_buckets: int, num_repetitions: int) -> float:
    """The label pairs that random buckets are expected to put into the same bucket in all repetitions."""
    # From 2^1200 on the quotient is 0 in float64.
    return float(math.comb(num_labels, 2) / num_buckets ** min(num_repetitions, 1200))


def collision_message(pairs: int, num_labels: int, num_buckets: int, num_repetitions: int) -> str:
    """What a `CollisionWarning` says of so many colliding pairs."""
    who = "1 label pair shares its bucket" if pairs == 1 else f"{pairs:,} label pairs share their bucket"
    times = "the only repetition" if num_repetitions == 1 else f"all {num_repetitions} repetitions"
    repetitions, buckets = _sizes_without_collisions(num_labels, num_buckets, num_repetitions)
    advice = f"R={repetitions} at B={num_buckets}"
    if buckets <= MAX_BUCKETS:
        advice += f", or B={buckets} at R={num_repetitions},"
    expected = expected_pairs(num_labels, num_buckets, num_repetitions)
    return (
        f"{who} in {times} and can never be told apart (L={num_labels}, B={num_buckets}, "
        f"R={num_repetitions}: {expected:,.4g} pairs expected of random buckets). "
        f"{advice} expects fewer than {1 / _PLAUSIBLE} pairs; which labels: diagnostics()."
    )


def bucket_load(codes: NDArray[np.int32], num_buckets: int) -> BucketLoad:
    """The bucket load of one repetition, in memory for L labels however large B is."""
    if num_buckets <= len(codes):
        counts = np.bincount(codes)
        counts = counts[counts > 0]
    else:
        counts = np.unique(codes, return_counts=True)[1]
    empty = num_buckets - len(counts)
    variance = (num_buckets * int(counts @ counts) - len(codes) ** 2) / num_buckets**2
    return BucketLoad(
        min=0 if empty else int(counts.min()),
        mean=len(codes) / num_buckets,
        max=int(counts.max()),
        std=math.sqrt(variance),
        empty=empty,
    )

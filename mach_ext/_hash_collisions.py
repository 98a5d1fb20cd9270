"""Labels that share all their buckets: how many are expected, which they are, and the warning."""

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
_PLAUSIBLE = 100  # Collisions are plausible if at least 1/100 pair is expected.
_EXAMPLES = 10
GROUPING_BYTES = 40  # Grouping the labels takes so many bytes for each label (int64 keys and copies).


class CollisionWarning(UserWarning):
    """Some labels share their bucket in every repetition, so no model on this hash can tell them apart.

    Example:
        >>> import warnings
        >>> from mach_ext.hashing import CollisionWarning, LabelHash
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", CollisionWarning)
        ...     LabelHash.from_buckets([[0, 0, 1], [1, 1, 0]])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        mach_ext._hash_collisions.CollisionWarning: 1 label pair shares its bucket in all 2 repetitions ...
    """


# A context variable belongs to one thread. The filters of the warnings module belong to the whole process.
collisions_are_known = contextvars.ContextVar("collisions_are_known", default=False)


@contextlib.contextmanager
def collisions_known() -> Iterator[None]:
    """Give no `CollisionWarning` within the block, for copies or parts of a hash that has already warned."""
    token = collisions_are_known.set(True)
    try:
        yield
    finally:
        collisions_are_known.reset(token)


@dataclass(frozen=True)
class BucketLoad:
    """How many labels the B buckets of one repetition hold.

    Attributes:
        min: The smallest number of labels in a bucket.
        mean: L / B.
        max: The largest number of labels in a bucket.
        std: The standard deviation over the buckets.
        empty: The number of buckets without labels.

    Example:
        >>> from mach_ext.hashing import LabelHash
        >>> load = LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6).diagnostics().load[0]
        >>> load.min, load.mean, load.max
        (10, 20.0, 34)
    """

    min: int
    mean: float
    max: int
    std: float
    empty: int


@dataclass(frozen=True)
class HashDiagnostics:
    """The figures that `LabelHash.diagnostics` measures. `str()` gives a readable summary.

    Attributes:
        num_labels: L.
        num_buckets: B.
        num_repetitions: R.
        seed: The seed, or None for a hash made by `LabelHash.from_buckets`.
        load: The bucket load of each of the R repetitions.
        expected_colliding_pairs: L(L-1)/2 / B^R. Random buckets are expected to put so many label pairs into
            the same bucket in all R repetitions. For a hash made by `LabelHash.from_buckets` the formula is
            the same, so that the table can be compared with random buckets.
        colliding_pairs: The exact number of pairs that share their bucket in all R repetitions.
        colliding_groups: Examples of labels that share all their buckets. At most the 10 largest groups are
            given, and at most the 10 lowest labels of each.
        bytes: Memory of each tensor that the hash holds, by name, and the sum as "everything".

    Example:
        >>> from mach_ext.hashing import LabelHash
        >>> figures = LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6).diagnostics()
        >>> figures.colliding_pairs, figures.bytes
        (0, {'buckets': 24000, 'everything': 24000})
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
        """Return the fields as a dict that `json.dumps` takes.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> figures = LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6).diagnostics()
            >>> figures.as_dict()["colliding_pairs"]
            0
        """
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
    """Return whether random buckets are expected to make at least 0.01 label pairs collide everywhere."""
    # 100 times the number of label pairs is below 2^68, so larger exponents change nothing.
    return bool(_PLAUSIBLE * math.comb(num_labels, 2) >= num_buckets ** min(num_repetitions, 68))


def _sizes_without_collisions(num_labels: int, num_buckets: int, num_repetitions: int) -> tuple[int, int]:
    """Return the smallest R at this B and the smallest B at this R where collisions are not plausible."""
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
    """Find the labels that share their bucket with another label in every repetition.

    The codes of as many repetitions as fit are packed into one int64 key. Labels whose key is unique are
    dropped. The others go on with the next repetitions.

    Args:
        table: [R, L] int32 bucket codes below `num_buckets`.
        num_buckets: B.

    Returns:
        The labels [n] in ascending order, and the group of each, [n]. Two labels collide if and only if they
        have the same group.
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
    """Return the number of label pairs that collide in all repetitions, and example groups."""
    labels, group = _colliding_labels(table, num_buckets)
    sizes = np.bincount(group)
    largest = np.argsort(-sizes, kind="stable")[:_EXAMPLES]
    examples = tuple(tuple(labels[group == g][:_EXAMPLES].tolist()) for g in largest)
    return int((sizes * (sizes - 1) // 2).sum()), examples


def expected_pairs(num_labels: int, num_buckets: int, num_repetitions: int) -> float:
    """Return how many label pairs random buckets are expected to put together in all repetitions."""
    # If the divisor is 2^1200 or more, the quotient is 0 in float64.
    return float(math.comb(num_labels, 2) / num_buckets ** min(num_repetitions, 1200))


def collision_message(pairs: int, num_labels: int, num_buckets: int, num_repetitions: int) -> str:
    """Return the text of a `CollisionWarning` for a number of colliding pairs."""
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
    """Measure the bucket load of one repetition, in memory for L labels however large B is."""
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

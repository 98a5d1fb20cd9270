"""The label hash: R functions that send L labels to B buckets each.

MACH predicts R x B bucket scores in place of L label scores. This module says which buckets belong to a
label. Two labels that share their bucket in all R repetitions get the same score for every document. The hash
counts such pairs (`LabelHash.diagnostics`) and warns of them (`CollisionWarning`).

Example:
    >>> from mach_ext.hashing import LabelHash
    >>> hash = LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6)
    >>> hash.buckets[:, 7].tolist()  # the buckets of label 7
    [19, 42, 33, 38, 18, 37]
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mach_ext import _ops
from mach_ext._hash_buckets import BucketTable, check_hash_memory, check_integer, check_part, copy_table
from mach_ext._hash_collisions import (
    GROUPING_BYTES,
    BucketLoad,
    CollisionWarning,
    HashDiagnostics,
    bucket_load,
    colliding_groups,
    collision_message,
    collisions_are_known,
    collisions_plausible,
    expected_pairs,
)
from mach_ext._hash_collisions import collisions_known as collisions_known
from mach_ext._hash_functions import MAX_BUCKETS, MAX_LABELS, hash_labels
from mach_ext._hash_spread import spread_values
from mach_ext._memory import memory_errors

__all__ = ["BucketLoad", "CollisionWarning", "HashDiagnostics", "LabelHash"]

_MAX_INDEXED = 2**16  # A uint16 code can tell so many buckets apart.
_COEFFICIENTS_BYTES = 224  # the polynomial of a repetition, as Python integers


class LabelHash(BucketTable):
    """R hash functions from L labels to B buckets, as a table of bucket codes.

    Repetition r is a random polynomial of degree 3 over the integers mod p = 2^31 - 1, taken mod B. This is
    the 4-wise independent family of Wegman and Carter, so it is also 2-universal. Two labels share a bucket
    with probability 1/B, up to a factor 1 + (B/p)^2.

    Pairwise independence would give the same expected number of label pairs that collide in all repetitions.
    But with a*x + b, all pairs at the same distance collide together, so the number comes in lumps. With
    4-wise independence any two *pairs* are independent. Only then is the variance of the number that of truly
    random buckets.

    The four coefficients come from SHA-256 of the seed and r, and all arithmetic is on integers. The function
    is therefore the same on every platform and in every version. A label's bucket in repetition r depends on
    the label, r, B and the seed alone. More labels or more repetitions extend the table and change nothing in
    it.

    A `CollisionWarning` is given if labels collide in all repetitions, once for each hash. `from_buckets` and
    `diagnostics` always look for collisions. The constructor looks only if at least 0.01 such pairs are
    expected.

    Attributes are to be read, not set. Hashes are equal if they are the same functions, wherever they lie and
    however they were made.

    A hash is a `torch.nn.Module` without parameters. As an attribute of your own module it moves between
    devices with that module. The module's `state_dict` then holds the hash's fingerprint. `load_state_dict`
    refuses weights that were trained with another hash. PyTorch moves equal modules only once. If your module
    needs one hash in two places, let both hold the same object.

    Args:
        num_labels: L, from 1 to 2^31 - 2.
        num_buckets: B, from 2 to 2^31 - 1.
        num_repetitions: R, at least 1.
        seed: An integer from 0 on.

    Attributes:
        buckets: [R, L] int32, contiguous: the bucket of each label in each repetition. It lies on the CPU
            until `to`.
        num_labels: L.
        num_buckets: B.
        num_repetitions: R.
        seed: The seed, or None for a hash made by `from_buckets`.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: An argument is out of range.
        MemoryError: The table of buckets needs more memory than there is.

    References:
        Carter and Wegman, "Universal classes of hash functions", JCSS 18 (1979).
        Wegman and Carter, "New hash functions and their use in authentication and set equality", JCSS 22
        (1981).
        Medini et al., "Extreme classification in log memory using count-min sketch", NeurIPS 2019, for their
        use.

    Example:
        >>> from mach_ext.hashing import LabelHash
        >>> hash = LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6, seed=1)
        >>> hash
        LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6, seed=1)
        >>> hash.buckets.shape, hash.buckets.dtype
        (torch.Size([6, 1000]), torch.int32)
        >>> hash.diagnostics().colliding_pairs
        0
    """

    _groups: tuple[int, tuple[tuple[int, ...], ...]] | None
    _diagnostics: HashDiagnostics | None
    _warned: bool

    @memory_errors("lower num_labels or num_repetitions")
    def __init__(self, num_labels: int, num_buckets: int, num_repetitions: int, seed: int = 0) -> None:
        checked = _check_sizes("LabelHash", num_labels, num_buckets, num_repetitions, seed)
        num_labels, num_buckets, num_repetitions, seed = checked
        sizes = num_labels, num_buckets, num_repetitions
        is_plausible = collisions_plausible(*sizes)
        needed = num_repetitions * (4 * num_labels + _COEFFICIENTS_BYTES)
        needed += GROUPING_BYTES * num_labels if is_plausible else 0
        check_hash_memory("LabelHash", "the buckets of the labels", needed, *sizes)
        table = hash_labels(num_labels, num_buckets, num_repetitions, seed)
        self._set(table, num_buckets, seed)
        if is_plausible:
            self._warn_of_collisions()

    @classmethod
    @memory_errors("pass a table of fewer labels or repetitions")
    def from_buckets(cls, table: torch.Tensor | ArrayLike, num_buckets: int | None = None) -> LabelHash:
        """Make a hash from any table, such as learned, load-balanced or hand-made buckets.

        Args:
            table: [R, L] integers of any width: the bucket of each label in each repetition. It may be a
                torch tensor on any device, a NumPy array or nested lists. The table is copied, so later
                changes do not reach the hash.
            num_buckets: B. None takes the largest bucket + 1, and at least 2.

        Returns:
            The hash, on the CPU, with `seed` None.

        Raises:
            TypeError: The table does not hold integers.
            ValueError: The table is not 2-D, is empty, or holds a bucket outside [0, B).

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> LabelHash.from_buckets([[0, 0, 1, 1], [0, 1, 0, 1]])
            LabelHash.from_buckets(<table [2, 4]>, num_buckets=2)
        """
        copied, num_buckets = copy_table("LabelHash.from_buckets", table, num_buckets)
        hash = cls.__new__(cls)
        hash._set(copied, num_buckets, None)
        hash._warn_of_collisions()
        return hash

    @classmethod
    @memory_errors("take a part of fewer labels or repetitions")
    def seeded_part(
        cls,
        num_labels: int,
        num_buckets: int,
        num_repetitions: int,
        seed: int = 0,
        *,
        labels: range | None = None,
        repetitions: range | None = None,
    ) -> LabelHash:
        """Make a part of a seeded hash without the rest of its table.

        The part has the buckets that the whole hash has there, and needs memory for these alone. So each of
        several processes can hold a part of many labels. Labels and repetitions of the part are counted from
        0. Label j of the part is label `labels[j]` of the whole hash.

        No part warns of collisions. Labels that collide in a part may be told apart by the whole hash.

        Args:
            num_labels: As in `LabelHash`, of the whole hash.
            num_buckets: As in `LabelHash`.
            num_repetitions: As in `LabelHash`, of the whole hash.
            seed: As in `LabelHash`.
            labels: The labels of the part, a range within [0, L). None takes all labels.
            repetitions: The repetitions of the part, a range within [0, R). None takes all repetitions.

        Returns:
            The part, on the CPU. A part that starts at label 0 and at repetition 0 is itself a seeded hash of
            these sizes. The `seed` of any other part is None.

        Raises:
            TypeError: A size is not an integer, or a part is no range.
            ValueError: A size is out of range. A part is empty, has another step than 1, or is outside the
                whole hash.
            MemoryError: The table of buckets needs more memory than there is.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> part = LabelHash.seeded_part(1000, 50, 6, seed=1, labels=range(500, 1000))
            >>> part.buckets.equal(LabelHash(1000, 50, 6, seed=1).buckets[:, 500:])
            True
        """
        op = "LabelHash.seeded_part"
        L, B, R, seed = _check_sizes(op, num_labels, num_buckets, num_repetitions, seed)
        labels = check_part(f"{op}: labels", labels, L)
        repetitions = check_part(f"{op}: repetitions", repetitions, R)
        sizes = len(labels), B, len(repetitions)
        needed = len(repetitions) * (4 * len(labels) + _COEFFICIENTS_BYTES)
        check_hash_memory(op, "the buckets of the labels", needed, *sizes)
        table = hash_labels(*sizes, seed, labels.start, repetitions.start)
        return cls._of_part(table, B, seed, labels, repetitions)

    @memory_errors("take a part of fewer labels or repetitions")
    def part(self, labels: range | None = None, repetitions: range | None = None) -> LabelHash:
        """Return the hash of some of the labels and repetitions, as `seeded_part` does for any hash.

        Args:
            labels: As in `seeded_part`.
            repetitions: As in `seeded_part`.

        Returns:
            The part, on the device of this hash. Its buckets are copied.

        Raises:
            TypeError: A part is no range.
            ValueError: A part is empty, has another step than 1, or is outside the hash. Or `buckets` was
                changed in place.
            MemoryError: The copy needs more memory than there is.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]]).part(labels=range(1, 3)).buckets.tolist()
            [[0, 1], [1, 1]]
        """
        op = "LabelHash.part"
        labels = check_part(f"{op}: labels", labels, self.num_labels)
        repetitions = check_part(f"{op}: repetitions", repetitions, self.num_repetitions)
        self.check_buckets()
        sizes = len(labels), self.num_buckets, len(repetitions)
        check_hash_memory(op, "a copy of the buckets", 4 * sizes[0] * sizes[2], *sizes)
        rows, columns = (slice(part.start, part.stop) for part in (repetitions, labels))
        table = self.buckets[rows, columns].cpu().numpy().copy()
        hash = self._of_part(table, self.num_buckets, self.seed, labels, repetitions)
        return hash.to(self.buckets.device)

    @memory_errors("make a hash of fewer labels or repetitions")
    def label_index(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return the index of the labels that `merge_topk` reads besides `buckets`.

        The first call builds the index, and the hash keeps it. It takes `label_index_bytes`, which is 6 bytes
        for each label and repetition. On CUDA the first call waits for the device, so it can't be part of a
        graph that is captured.

        Returns:
            `codes` [L, R] uint16, the buckets of a label side by side. Then `list_starts` [R, B + 1] and
            `list_labels` [R, L] int32, the labels of each bucket in ascending order. None if B is above
            65,536.

        Raises:
            ValueError: `buckets` was changed in place.
            MemoryError: The index needs more memory than there is.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> codes, starts, labels = LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]]).label_index()
            >>> starts[0], labels[0]
            (tensor([0, 1, 3], dtype=torch.int32), tensor([1, 0, 2], dtype=torch.int32))
        """
        if self.num_buckets > _MAX_INDEXED:
            return None
        if not self._index:
            self.check_buckets()
            if self.buckets.is_cpu:
                index_bytes = self.label_index_bytes()
                check_hash_memory("LabelHash.label_index", "the index", index_bytes, *self._sizes())
            names = ("codes", "list_starts", "list_labels")
            try:
                self._index = dict(zip(names, _ops.label_index(self.buckets, self.num_buckets), strict=True))
            except RuntimeError:
                self.check_contents()
                raise
        return self._index["codes"], self._index["list_starts"], self._index["list_labels"]

    @memory_errors("make a hash of fewer labels or repetitions")
    def labels_in(self, repetition: int, bucket: int) -> torch.Tensor:
        """Return the labels of one bucket in ascending order.

        If the index is built, the labels come from it. Otherwise all L buckets of the repetition are
        compared.

        Args:
            repetition: r, from 0 to R - 1.
            bucket: From 0 to B - 1.

        Returns:
            The labels, int64.

        Raises:
            TypeError: An argument is not an integer.
            ValueError: An argument is out of range.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]]).labels_in(0, 1)
            tensor([0, 2])
        """
        repetition = check_integer("LabelHash.labels_in: repetition", repetition, 0, self.num_repetitions - 1)
        bucket = check_integer("LabelHash.labels_in: bucket", bucket, 0, self.num_buckets - 1)
        if self._index:
            begin, end = self._index["list_starts"][repetition, bucket : bucket + 2].tolist()
            return self._index["list_labels"][repetition, begin:end].long()
        return (self.buckets[repetition] == bucket).nonzero().flatten()

    @memory_errors("make a hash of fewer labels or repetitions")
    def spread(self, values: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
        """Return bucket values whose mean over a label's R buckets is nearest to the label's own value.

        This is weighted least squares over the labels by conjugate gradients, with at most 50 steps. The
        method is CGLS (Björck, Numerical Methods for Least Squares Problems, 1996, section 7.4). If R * B is
        well above L, every label gets its value to three digits or more. Otherwise the labels of large weight
        come closest.

        If several solutions are equally good, the result is about the solution with the smallest buckets,
        where each bucket is weighted by its labels. A step costs O(L R). 1 million labels in 16 repetitions
        take some seconds. The memory is about 50 bytes for each label.

        Args:
            values: [L], finite.
            weights: [L], finite, not negative.

        Returns:
            [R, B] float64. The bits are the same in every run, whatever the number of threads.

        Raises:
            ValueError: `values` or `weights` are not [L] or not finite, or a weight is negative.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> hash = LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]])
            >>> v = hash.spread([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
            >>> [round(float(v[0, b] + v[1, c]) / 2, 3) for b, c in ((1, 0), (0, 1), (1, 1))]
            [1.0, 2.0, 3.0]
        """
        self.check_contents()
        return spread_values(self._table(), self.num_buckets, values, weights)

    def label_index_bytes(self) -> int:
        """Return the bytes that the index of labels takes, built or not. 0 means that there is none.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6).label_index_bytes()
            37224
        """
        if self.num_buckets > _MAX_INDEXED:
            return 0
        return self.num_repetitions * (6 * self.num_labels + 4 * (self.num_buckets + 1))

    @memory_errors("make a hash of fewer labels or repetitions")
    def diagnostics(self) -> HashDiagnostics:
        """Measure bucket load and label collisions.

        The result is cached, so only the first call takes time. Labels are grouped by sorting and never
        compared pair by pair. This takes about one sort of L int64 keys.

        Returns:
            The figures. Their `str()` is a readable summary, and `as_dict()` goes into JSON.

        Raises:
            ValueError: `buckets` holds a bucket outside [0, B), because it was changed in place.

        Warns:
            CollisionWarning: Labels share their bucket in every repetition. The warning is given once for
                each hash.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> print(LabelHash.from_buckets([[0, 0, 1, 1], [0, 1, 0, 1]]).diagnostics())
            label hash: 4 labels, 2 buckets, 2 repetitions (given table), 32 bytes
            repetition       min      mean       max       std     empty
                     0         2       2.0         2       0.0         0
                     1         2       2.0         2       0.0         0
            label pairs that share all their buckets: 0 (random buckets: 1.5 expected)
        """
        if self._diagnostics is None:
            self.check_contents()
            needed = GROUPING_BYTES * self.num_labels
            check_hash_memory("LabelHash.diagnostics", "groups of labels", needed, *self._sizes())
            pairs, groups = self._collisions()
            self._diagnostics = HashDiagnostics(
                num_labels=self.num_labels,
                num_buckets=self.num_buckets,
                num_repetitions=self.num_repetitions,
                seed=self.seed,
                load=tuple(bucket_load(codes, self.num_buckets) for codes in self._table()),
                expected_colliding_pairs=expected_pairs(*self._sizes()),
                colliding_pairs=pairs,
                colliding_groups=groups,
                bytes={},
            )
        self._warn_of_collisions()
        held = {name: value.nbytes for name, value in {"buckets": self.buckets, **self._index}.items()}
        return replace(self._diagnostics, bytes={**held, "everything": sum(held.values())})

    def __repr__(self) -> str:
        if self.seed is None:
            table = f"<table [{self.num_repetitions}, {self.num_labels}]>"
            return f"LabelHash.from_buckets({table}, num_buckets={self.num_buckets})"
        return (
            f"LabelHash(num_labels={self.num_labels}, num_buckets={self.num_buckets}, "
            f"num_repetitions={self.num_repetitions}, seed={self.seed})"
        )

    @classmethod
    def _of_part(
        cls, table: NDArray[np.int32], num_buckets: int, seed: int | None, labels: range, repetitions: range
    ) -> LabelHash:
        """Make a hash of a part's table. The seed describes only what starts at label and repetition 0."""
        hash = cls.__new__(cls)
        hash._set(table, num_buckets, None if labels.start or repetitions.start else seed)
        hash._warned = True  # What collides in a part may be told apart by the whole.
        return hash

    def _set(self, table: NDArray[np.int32], num_buckets: int, seed: int | None) -> None:
        super()._set(table, num_buckets, seed)
        self._groups = None
        self._diagnostics = None
        self._warned = False

    def _collisions(self) -> tuple[int, tuple[tuple[int, ...], ...]]:
        """Return the number of label pairs that collide in all repetitions, and example groups. Cached."""
        if self._groups is None:
            self._groups = colliding_groups(self._table(), self.num_buckets)
        return self._groups

    def _warn_of_collisions(self) -> None:
        """Warn, once, if there are collisions.

        Public, decorated methods must call this method directly, because its stack level counts on that.
        """
        if collisions_are_known.get() or type(self.buckets) is not torch.Tensor:  # fake: it has no contents
            return
        pairs, _ = self._collisions()
        if pairs == 0 or self._warned:
            return
        self._warned = True
        warnings.warn(collision_message(pairs, *self._sizes()), CollisionWarning, stacklevel=4)


def _check_sizes(
    op: str, num_labels: int, num_buckets: int, num_repetitions: int, seed: int
) -> tuple[int, int, int, int]:
    """Check the arguments of a seeded hash, and return them."""
    return (
        check_integer(f"{op}: num_labels", num_labels, 1, MAX_LABELS),
        check_integer(f"{op}: num_buckets", num_buckets, 2, MAX_BUCKETS),
        check_integer(f"{op}: num_repetitions", num_repetitions, 1),
        check_integer(f"{op}: seed", seed, 0),
    )

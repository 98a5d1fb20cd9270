"""The label hash: R functions that send L labels to B buckets each.

MACH predicts R x B bucket scores instead of L label scores; this module says which buckets are a label's.
Two labels that share their bucket in all R repetitions get the same score for every document, so the hash
counts such pairs (`LabelHash.diagnostics`) and warns of them (`CollisionWarning`).
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from mach_ext import _ops
from mach_ext._hash_collisions import (
    PLAUSIBLE,
    BucketLoad,
    CollisionWarning,
    HashDiagnostics,
    bucket_load,
    colliding_labels,
    collisions_are_known,
    collisions_plausible,
    sizes_without_collisions,
)
from mach_ext._hash_collisions import collisions_known as collisions_known
from mach_ext._hash_functions import MAX_BUCKETS, MAX_LABELS, hash_labels
from mach_ext._memory import check_memory, memory_errors

__all__ = ["BucketLoad", "CollisionWarning", "HashDiagnostics", "LabelHash"]


_EXAMPLES = 10
_MAX_INDEXED = 2**16  # buckets that a uint16 code tells apart
_GROUPING_BYTES = 40  # a label, of the int64 keys by which labels are grouped
_COEFFICIENTS_BYTES = 224  # of a repetition's polynomial
_SPREAD_STEPS = 50  # within 8 % of the root mean square that 400 leave, on heavy-tailed weights


class LabelHash(nn.Module):
    """R hash functions from L labels to B buckets, as a table of bucket codes.

    Repetition r is a random polynomial of degree 3 over the integers mod p = 2^31 - 1, taken mod B: the
    4-wise independent family of Wegman and Carter, hence 2-universal. Two labels share a bucket with
    probability 1/B (up to a factor 1 + (B/p)^2). Pairwise independence would give the same expected number of
    label pairs that collide in all repetitions; but with a*x + b all pairs at the same distance collide
    together, and the number comes in lumps. Only when any two *pairs* are independent, 4-wise, is its
    variance that of truly random buckets.

    The four coefficients come from SHA-256 of the seed and r, and all arithmetic is on integers: the function
    is the same for ever, on every platform and version. A label's bucket in repetition r depends on the
    label, r, B and the seed alone, so more labels or more repetitions extend the table and change nothing in
    it.

    When labels collide in all repetitions a `CollisionWarning` is given, once for each hash: by the
    constructor if at least 0.01 such pairs are expected (below that it does not look for them), by
    `from_buckets` and `diagnostics` always. Attributes are to be read, not set. Hashes are equal when they
    are the same functions, wherever they lie and however they were made.

    A hash is a `torch.nn.Module` without parameters. As an attribute of your own module it moves between
    devices with that module. The module's `state_dict` then holds the hash's fingerprint, and
    `load_state_dict` refuses weights that were trained with another hash. PyTorch moves equal modules once,
    so a module that needs one hash in two places should hold the same object in both.

    Sources: Carter and Wegman, "Universal classes of hash functions", JCSS 18 (1979); Wegman and Carter, "New
    hash functions and their use in authentication and set equality", JCSS 22 (1981); the use of it: Medini et
    al., "Extreme classification in log memory using count-min sketch", NeurIPS 2019.

    Args:
        num_labels: L, from 1 to 2^31 - 2.
        num_buckets: B, from 2 to 2^31 - 1.
        num_repetitions: R, at least 1.
        seed: Any integer from 0 on.

    Attributes:
        buckets: [R, L] int32, contiguous: the bucket of each label in each repetition. On the CPU until `to`.
        num_labels: L.
        num_buckets: B.
        num_repetitions: R.
        seed: The seed; None for a hash made by `from_buckets`.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: An argument is out of range.
        MemoryError: The table of buckets needs more memory than there is.

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

    buckets: torch.Tensor
    num_labels: int
    num_buckets: int
    num_repetitions: int
    seed: int | None
    _groups: tuple[int, tuple[tuple[int, ...], ...]] | None
    _diagnostics: HashDiagnostics | None
    _table_digest: str | None
    _warned: bool
    _known_version: int
    _index: dict[str, torch.Tensor]

    @memory_errors("lower num_labels or num_repetitions")
    def __init__(self, num_labels: int, num_buckets: int, num_repetitions: int, seed: int = 0) -> None:
        num_labels = _integer("LabelHash: num_labels", num_labels, 1, MAX_LABELS)
        num_buckets = _integer("LabelHash: num_buckets", num_buckets, 2, MAX_BUCKETS)
        num_repetitions = _integer("LabelHash: num_repetitions", num_repetitions, 1)
        seed = _integer("LabelHash: seed", seed, 0)
        sizes = num_labels, num_buckets, num_repetitions
        is_plausible = collisions_plausible(*sizes)
        needed = num_repetitions * (4 * num_labels + _COEFFICIENTS_BYTES)
        needed += _GROUPING_BYTES * num_labels if is_plausible else 0
        _check_memory("LabelHash", "the buckets of the labels", needed, *sizes)
        table = hash_labels(num_labels, num_buckets, num_repetitions, seed)
        self._set(table, num_buckets, seed)
        if is_plausible:
            self._warn_of_collisions()

    @classmethod
    @memory_errors("pass a table of fewer labels or repetitions")
    def from_buckets(cls, table: torch.Tensor | ArrayLike, num_buckets: int | None = None) -> LabelHash:
        """Makes a hash of any table: learned, load-balanced or hand-made buckets.

        Args:
            table: [R, L] integers of any width (torch, on any device; NumPy; nested lists), the bucket of
                each label in each repetition. Copied, so later changes of it do not reach the hash.
            num_buckets: B; None for the largest bucket + 1, at least 2.

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
        name = "LabelHash.from_buckets"
        if isinstance(table, torch.Tensor):
            if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
                raise TypeError(f"{name}: table must hold integers, got {table.dtype}")
            table = table.cpu().numpy()
        array = np.asarray(table)
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"{name}: table must be [R, L] with R, L >= 1, got shape {list(array.shape)}")
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name}: table must hold integers, got {array.dtype}")
        _integer(f"{name}: the table's number of labels", array.shape[1], 1, MAX_LABELS)
        if num_buckets is not None:
            num_buckets = _integer(f"{name}: num_buckets", num_buckets, 2, MAX_BUCKETS)
        bound = MAX_BUCKETS if num_buckets is None else num_buckets
        highest = int(array.max())
        if int(array.min()) < 0 or highest >= bound:
            r, label = np.argwhere((array < 0) | (array >= bound))[0].tolist()
            raise ValueError(
                f"{name}: repetition {r}, label {label} has bucket {array[r, label]}, outside [0, {bound})"
            )
        R, L = array.shape
        _check_memory(name, "a copy of the table", L * (4 * R + _GROUPING_BYTES), L, bound, R)
        hash = cls.__new__(cls)
        copied = array.astype(np.int32, order="C")
        hash._set(copied, max(highest + 1, 2) if num_buckets is None else num_buckets, None)
        hash._warn_of_collisions()
        return hash

    @memory_errors("make a hash of fewer labels or repetitions")
    def to(self, *args: Any, **kwargs: Any) -> LabelHash:
        """Returns this hash with its buckets on `device`; itself when they already lie there.

        Takes what `to` of other modules takes: a device, a tensor that lies there, `non_blocking`. A dtype
        changes nothing. Unlike `to` of other modules, it leaves this hash where it is: other modules may
        share it.
        """
        self.check_buckets()
        device, _, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        buckets = self.buckets.to(device or self.buckets.device, non_blocking=non_blocking)
        if buckets is self.buckets:
            return self
        moved = copy.copy(self)
        moved._place(buckets)
        return moved

    def check_buckets(self) -> None:
        """Refuses buckets that were written to, as far as PyTorch counts writes: NumPy's it does not.

        Raises:
            ValueError: `buckets` was changed in place.
        """
        if _version(self.buckets) != self._known_version:
            raise ValueError(
                "LabelHash: buckets was changed in place; make another hash: LabelHash.from_buckets(table)"
            )

    def check_contents(self) -> None:
        """Refuses buckets outside [0, B), as writes through NumPy leave them. Looks at all R L of them.

        Raises:
            ValueError: `buckets` holds a bucket outside [0, B).

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> hash = LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]])
            >>> hash.check_contents()
            >>> hash.buckets.numpy()[1, 2] = 7
            >>> hash.check_contents()  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ValueError: LabelHash: buckets holds 7 for label 2 in repetition 1, outside [0, 2): it was ...
        """
        if self.buckets.is_meta:
            return
        low, high = self.buckets.aminmax()
        if low >= 0 and high < self.num_buckets:
            return
        r, label = ((self.buckets < 0) | (self.buckets >= self.num_buckets)).nonzero()[0].tolist()
        raise ValueError(
            f"LabelHash: buckets holds {self.buckets[r, label]} for label {label} in repetition {r}, outside "
            f"[0, {self.num_buckets}): it was changed in place; make another hash: "
            "LabelHash.from_buckets(table)"
        )

    def buckets_of(self, labels: torch.Tensor) -> torch.Tensor:
        """The buckets [R, m] int32 of labels [m], checked to be in [0, B) as `check_contents` does.

        Raises:
            ValueError: A label is outside [0, L), or `buckets` was changed in place.

        Example:
            >>> import torch
            >>> from mach_ext.hashing import LabelHash
            >>> LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]]).buckets_of(torch.tensor([2, 0])).tolist()
            [[1, 1], [1, 0]]
        """
        self.check_buckets()
        unknown = labels[(labels < 0) | (labels >= self.num_labels)]
        if len(unknown):
            raise ValueError(
                f"LabelHash.buckets_of: labels must be in [0, L={self.num_labels}), got {unknown[0]}"
            )
        buckets = self.buckets[:, labels.to(self.buckets.device)]
        if bool(((buckets < 0) | (buckets >= self.num_buckets)).any()):
            self.check_contents()
        return buckets

    @memory_errors("make a hash of fewer labels or repetitions")
    def label_index(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """What `merge_topk` reads besides `buckets`; built by the first call and kept.

        Takes `label_index_bytes`: 6 a label and repetition. On CUDA the first call waits for the device, so
        it can't be part of a graph that is captured.

        Returns:
            codes [L, R] uint16, the buckets of a label side by side; list_starts [R, B + 1] and list_labels
            [R, L] int32, the labels of each bucket, ascending. None where B is above 65,536.

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
                _check_memory("LabelHash.label_index", "the index", index_bytes, *self._sizes())
            names = ("codes", "list_starts", "list_labels")
            try:
                self._index = dict(zip(names, _ops.label_index(self.buckets, self.num_buckets), strict=True))
            except RuntimeError:
                self.check_contents()
                raise
        return self._index["codes"], self._index["list_starts"], self._index["list_labels"]

    @memory_errors("make a hash of fewer labels or repetitions")
    def labels_in(self, repetition: int, bucket: int) -> torch.Tensor:
        """The labels of one bucket, ascending: from the index where it is built, else by one look at all L.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]]).labels_in(0, 1)
            tensor([0, 2])
        """
        repetition = _integer("LabelHash.labels_in: repetition", repetition, 0, self.num_repetitions - 1)
        bucket = _integer("LabelHash.labels_in: bucket", bucket, 0, self.num_buckets - 1)
        if self._index:
            begin, end = self._index["list_starts"][repetition, bucket : bucket + 2].tolist()
            return self._index["list_labels"][repetition, begin:end].long()
        return (self.buckets[repetition] == bucket).nonzero().flatten()

    @memory_errors("make a hash of fewer labels or repetitions")
    def spread(self, values: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
        """Bucket values whose mean over a label's R buckets is nearest to the label's own value.

        Least squares over the labels, each with its weight, by conjugate gradients (CGLS, Bjorck, Numerical
        Methods for Least Squares Problems, 1996, section 7.4), at most 50 steps. With R B well above L every
        label gets its value to three digits or more; below, those of large weight come closest. Of several
        best answers it is about the one whose buckets, each weighted by its labels, are smallest. O(L R) a
        step, 1 million labels in 16 repetitions take some seconds; about 50 bytes a label of memory.

        Args:
            values: [L], finite.
            weights: [L], finite, not negative.

        Returns:
            [R, B] float64; the same bits on every run, whatever the number of threads.

        Raises:
            ValueError: values or weights are not [L], not finite, or a weight is negative.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> hash = LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]])
            >>> v = hash.spread([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
            >>> [round(float(v[0, b] + v[1, c]) / 2, 3) for b, c in ((1, 0), (0, 1), (1, 1))]
            [1.0, 2.0, 3.0]
        """
        self.check_contents()
        L, B, R = self._sizes()
        values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
        for name, array in (("values", values), ("weights", weights)):
            if array.shape != (L,) or not np.isfinite(array).all():
                raise ValueError(
                    f"LabelHash.spread: {name} must be [{L}] and finite, got shape {array.shape}"
                    + ("" if np.isfinite(array).all() else " with NaN or infinities")
                )
        if (weights < 0).any():
            raise ValueError(f"LabelHash.spread: weights must not be negative, got {weights.min()}")
        _check_memory("LabelHash.spread", "sums over labels and buckets", 32 * L + 40 * R * B, L, B, R)
        root, table = np.sqrt(weights), self._table()
        # Unknowns are scaled so that each bucket counts the same: many fewer steps.
        scale = np.stack([np.bincount(table[r], weights, B) for r in range(R)])
        scale = np.divide(1, np.sqrt(scale), where=scale > 0, out=np.zeros_like(scale))

        def means(buckets: NDArray[np.float64]) -> NDArray[np.float64]:  # [R, B] -> [L], times the roots
            buckets, total = buckets * scale, np.zeros(L)
            for r in range(R):
                total += buckets[r, table[r]]
            total *= root / R
            return total

        def sums(labels: NDArray[np.float64]) -> NDArray[np.float64]:  # its transpose
            labels = labels * root / R
            rows: NDArray[np.float64] = np.stack([np.bincount(table[r], labels, B) for r in range(R)])
            return rows * scale

        def square(x: NDArray[np.float64]) -> float:  # not by BLAS, whose bits depend on its threads
            return float((x * x).sum())

        found = np.zeros((R, B))
        residual = root * values
        gradient = direction = sums(residual)
        first = norm = square(gradient)
        for _ in range(_SPREAD_STEPS):
            if norm <= 1e-16 * first:
                break
            along = means(direction)
            step = norm / square(along)
            found += step * direction
            residual -= step * along
            gradient, former = sums(residual), norm
            norm = square(gradient)
            direction = gradient + norm / former * direction
        return found * scale

    def label_index_bytes(self) -> int:
        """Memory that `label_index` takes, built or not; 0 where there is none."""
        if self.num_buckets > _MAX_INDEXED:
            return 0
        return self.num_repetitions * (6 * self.num_labels + 4 * (self.num_buckets + 1))

    @memory_errors("make a hash of fewer labels or repetitions")
    def fingerprint(self) -> str:
        """Names the R functions: equal for equal sizes and seed, or for equal given tables (by SHA-256)."""
        sizes = f"L={self.num_labels} B={self.num_buckets} R={self.num_repetitions}"
        if self.seed is not None:
            return f"{sizes} seed={self.seed}"
        if self._table_digest is None:
            self._table_digest = hashlib.sha256(self._table().tobytes()).hexdigest()
        return f"{sizes} table={self._table_digest}"

    @memory_errors("make a hash of fewer labels or repetitions")
    def diagnostics(self) -> HashDiagnostics:
        """Measures bucket load and label collisions; cached, so only the first call takes time.

        Labels are grouped by sorting, never compared pair by pair: about one sort of L int64 keys.

        Returns:
            The figures. Their `str()` is a readable summary, `as_dict()` goes into JSON.

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
            needed = _GROUPING_BYTES * self.num_labels
            _check_memory("LabelHash.diagnostics", "groups of labels", needed, *self._sizes())
            pairs, groups = self._collisions()
            self._diagnostics = HashDiagnostics(
                num_labels=self.num_labels,
                num_buckets=self.num_buckets,
                num_repetitions=self.num_repetitions,
                seed=self.seed,
                load=tuple(bucket_load(codes, self.num_buckets) for codes in self._table()),
                expected_colliding_pairs=self._expected_pairs(),
                colliding_pairs=pairs,
                colliding_groups=groups,
                bytes={},
            )
        self._warn_of_collisions()
        held = {name: value.nbytes for name, value in {"buckets": self.buckets, **self._index}.items()}
        return replace(self._diagnostics, bytes={**held, "everything": sum(held.values())})

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, LabelHash):
            return NotImplemented
        if self._sizes() != other._sizes():
            return False
        if self.seed is not None and self.seed == other.seed:
            return True
        return torch.equal(self.buckets.cpu(), other.buckets.cpu())

    def __hash__(self) -> int:
        return hash(self._sizes())

    def __repr__(self) -> str:
        if self.seed is None:
            table = f"<table [{self.num_repetitions}, {self.num_labels}]>"
            return f"LabelHash.from_buckets({table}, num_buckets={self.num_buckets})"
        return (
            f"LabelHash(num_labels={self.num_labels}, num_buckets={self.num_buckets}, "
            f"num_repetitions={self.num_repetitions}, seed={self.seed})"
        )

    def _set(self, table: NDArray[np.int32], num_buckets: int, seed: int | None) -> None:
        nn.Module.__init__(self)
        self._place(torch.from_numpy(table))
        self.num_repetitions, self.num_labels = table.shape
        self.num_buckets = num_buckets
        self.seed = seed
        self._groups = None
        self._diagnostics = None
        self._table_digest = None
        self._warned = False

    def _place(self, buckets: torch.Tensor) -> None:
        """Takes a table that is known to be in range."""
        self.buckets = buckets
        self._known_version = _version(buckets)
        self._index = {}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LabelHash:
        """Follows the module it belongs to onto a device.

        `fn` may also change dtypes or leave memory undefined (`to_empty`), so it never sees the table, which
        is no buffer either: DistributedDataParallel would send all of it before every step. The meta device
        would lose the table, so it is not moved there.
        """
        device = fn(torch.empty(0, dtype=torch.int32, device=self.buckets.device)).device
        if device != self.buckets.device and device.type != "meta":
            self.check_buckets()
            self._place(self.buckets.to(device))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}fingerprint"] = _as_tensor(self.fingerprint())

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Compares fingerprints. State of before hashes had any is taken as it is."""
        key = f"{prefix}fingerprint"
        if strict:
            unexpected_keys += [name for name in state_dict if name.startswith(prefix) and name != key]
        if key in state_dict and (fault := self.fingerprint_fault(state_dict[key])):
            error_msgs.append(f"{key}: {fault}")

    def fingerprint_fault(self, kept: object) -> str:
        """Why weights whose state has this fingerprint are not for this hash; empty where they are."""
        ours = self.fingerprint()
        theirs = repr(kept)
        if isinstance(kept, torch.Tensor):
            if kept.is_meta:  # it has no contents
                return ""
            theirs = bytes(kept.flatten().to("cpu", torch.uint8).tolist()).decode(errors="replace")
        if theirs == ours:
            return ""
        return f"the weights are of label hash {theirs}, this model has {ours}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": {}}  # built again where it is wanted

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__init__(self)  # pickles of before it was a module lack what one has
        self.__dict__.update(state)
        # They called `_known_version` `_version`, for which modules have another use.
        self.__dict__.pop("_version", None)
        if bool((self.buckets < 0).any()) or bool((self.buckets >= self.num_buckets).any()):
            raise ValueError("LabelHash: the copied buckets are out of range: they were changed in place")
        self._known_version = _version(self.buckets)

    def _sizes(self) -> tuple[int, int, int]:
        return self.num_labels, self.num_buckets, self.num_repetitions

    def _table(self) -> NDArray[np.int32]:
        table: NDArray[np.int32] = self.buckets.cpu().numpy()
        return table

    def _expected_pairs(self) -> float:
        # From 2^1200 on the quotient is 0 in float64.
        return float(math.comb(self.num_labels, 2) / self.num_buckets ** min(self.num_repetitions, 1200))

    def _collisions(self) -> tuple[int, tuple[tuple[int, ...], ...]]:
        """The number of fully colliding label pairs and example groups, cached."""
        if self._groups is None:
            labels, group = colliding_labels(self._table(), self.num_buckets)
            sizes = np.bincount(group)
            largest = np.argsort(-sizes, kind="stable")[:_EXAMPLES]
            examples = tuple(tuple(labels[group == g][:_EXAMPLES].tolist()) for g in largest)
            self._groups = int((sizes * (sizes - 1) // 2).sum()), examples
        return self._groups

    def _warn_of_collisions(self) -> None:
        """Warns, once, if there are collisions. Public, decorated methods call it directly (stacklevel)."""
        if collisions_are_known.get():
            return
        pairs, _ = self._collisions()
        if pairs == 0 or self._warned:
            return
        self._warned = True
        who = "1 label pair shares its bucket" if pairs == 1 else f"{pairs:,} label pairs share their bucket"
        times = (
            "the only repetition" if self.num_repetitions == 1 else f"all {self.num_repetitions} repetitions"
        )
        repetitions, buckets = sizes_without_collisions(*self._sizes())
        advice = f"R={repetitions} at B={self.num_buckets}"
        if buckets <= MAX_BUCKETS:
            advice += f", or B={buckets} at R={self.num_repetitions},"
        warnings.warn(
            f"{who} in {times} and can never be told apart (L={self.num_labels}, B={self.num_buckets}, "
            f"R={self.num_repetitions}: {self._expected_pairs():,.4g} pairs expected of random buckets). "
            f"{advice} expects fewer than {1 / PLAUSIBLE} pairs; which labels: diagnostics().",
            CollisionWarning,
            stacklevel=4,
        )


def _as_tensor(fingerprint: str) -> torch.Tensor:  # uint8, which every way to keep a state_dict takes
    return torch.frombuffer(bytearray(fingerprint.encode()), dtype=torch.uint8)


def _check_memory(
    op: str, what: str, needed: int, num_labels: int, num_buckets: int, num_repetitions: int
) -> None:
    sizes = {"num_labels": num_labels, "num_buckets": num_buckets, "num_repetitions": num_repetitions}
    check_memory(f"{op}: {what}", needed, "lower num_labels, num_buckets or num_repetitions", **sizes)


def _version(t: torch.Tensor) -> int:
    """Counts writes to a tensor; inference tensors keep no count."""
    return 0 if t.is_inference() else t._version


def _integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Checks that `value` is an integer (Python's or NumPy's, no bool) from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    if value < low or (high is not None and value > high):
        rule = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {rule}, got {value}")
    return int(value)

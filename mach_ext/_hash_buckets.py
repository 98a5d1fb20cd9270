"""A table of bucket codes as a module: its device, its fingerprint, and whether it was written to."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from mach_ext._hash_collisions import GROUPING_BYTES
from mach_ext._hash_functions import MAX_BUCKETS, MAX_LABELS
from mach_ext._memory import check_memory, memory_errors

_Hash = TypeVar("_Hash", bound="BucketTable")

# What a `state_dict` calls the fingerprint: PyTorch's name for what is no tensor, and the former name. Some
# libraries look up the names of a state as attributes, and `fingerprint` is a method.
_STATE_KEYS = ("_extra_state", "fingerprint")


class BucketTable(nn.Module):
    """The base of `LabelHash`: a table [R, L] of buckets in [0, B) that moves between devices.

    It refuses a table that was changed in place, and a state that belongs to another table.
    """

    buckets: torch.Tensor
    num_labels: int
    num_buckets: int
    num_repetitions: int
    seed: int | None
    _table_digest: str | None
    _known_version: int
    _index: dict[str, torch.Tensor]

    def _set(self, table: NDArray[np.int32], num_buckets: int, seed: int | None) -> None:
        nn.Module.__init__(self)
        self._place(torch.from_numpy(table))
        self.num_repetitions, self.num_labels = table.shape
        self.num_buckets = num_buckets
        self.seed = seed
        self._table_digest = None

    @memory_errors("make a hash of fewer labels or repetitions", "LabelHash.to")
    def to(self: _Hash, *args: Any, **kwargs: Any) -> _Hash:
        """Return this hash with its buckets on a device, or itself if they already lie there.

        The arguments are those of `to` of other modules: a device, a tensor that lies there, `non_blocking`.
        A dtype changes nothing. Unlike `to` of other modules, this method leaves the hash where it is,
        because other modules may share it.

        Args:
            *args: As in `torch.nn.Module.to`.
            **kwargs: As in `torch.nn.Module.to`.

        Returns:
            The hash on the device.

        Raises:
            ValueError: `buckets` was changed in place.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> hash = LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6)
            >>> hash.to("cpu") is hash
            True
        """
        self.check_buckets()
        device, _, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        buckets = self.buckets.to(device or self.buckets.device, non_blocking=non_blocking)
        if buckets is self.buckets:
            return self
        if not non_blocking:
            _wait_for_copy(buckets)
        moved = copy.copy(self)
        moved._place(buckets)
        return moved

    def check_buckets(self) -> None:
        """Refuse buckets that were changed in place, as far as PyTorch counts writes.

        PyTorch does not count writes through NumPy. `check_contents` looks at the buckets themselves.

        Raises:
            ValueError: `buckets` was changed in place.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> hash = LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]])
            >>> _ = hash.buckets.zero_()
            >>> hash.check_buckets()  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ValueError: LabelHash: buckets was changed in place; ...
        """
        if _version(self.buckets) != self._known_version:
            raise ValueError(
                "LabelHash: buckets was changed in place; make another hash: LabelHash.from_buckets(table)"
            )

    def check_contents(self) -> None:
        """Refuse buckets outside [0, B), as writes through NumPy leave them. All R * L of them are compared.

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
        """Return the buckets of chosen labels, checked to be in [0, B) as `check_contents` does.

        Args:
            labels: [m] integers.

        Returns:
            [R, m] int32.

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

    @memory_errors("make a hash of fewer labels or repetitions", "LabelHash.fingerprint")
    def fingerprint(self) -> str:
        """Return a name of the R functions.

        Two hashes of equal sizes have the same name if their seeds are equal. Given tables are named by their
        SHA-256.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> LabelHash(num_labels=1000, num_buckets=50, num_repetitions=6, seed=1).fingerprint()
            'L=1000 B=50 R=6 seed=1'
        """
        sizes = f"L={self.num_labels} B={self.num_buckets} R={self.num_repetitions}"
        if self.seed is not None:
            return f"{sizes} seed={self.seed}"
        if self._table_digest is None:
            self._table_digest = hashlib.sha256(self._table().tobytes()).hexdigest()
        return f"{sizes} table={self._table_digest}"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, BucketTable):
            return NotImplemented
        if self._sizes() != other._sizes():
            return False
        if self.seed is not None and self.seed == other.seed:
            return True
        return torch.equal(self.buckets.cpu(), other.buckets.cpu())

    def __hash__(self) -> int:
        return hash(self._sizes())

    def _place(self, buckets: torch.Tensor) -> None:
        """Take a table that is known to be in range."""
        self.buckets = buckets
        self._known_version = _version(buckets)
        self._index = {}

    def _apply(self: _Hash, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> _Hash:
        """Follow the module that owns this hash onto a device.

        `fn` may also change dtypes or leave memory undefined (`to_empty`), so it is only called with an empty
        tensor. The table is no buffer either, because DistributedDataParallel would send all of it before
        every step. The meta device would lose the table, so the table is not moved there.
        """
        device = fn(torch.empty(0, dtype=torch.int32, device=self.buckets.device)).device
        if device != self.buckets.device and device.type != "meta":
            self.check_buckets()
            buckets = self.buckets.to(device)
            _wait_for_copy(buckets)
            self._place(buckets)
        return self

    def get_extra_state(self) -> torch.Tensor:
        """Return what `state_dict` holds of this hash: the fingerprint, as uint8 characters.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> bytes(LabelHash(1000, 50, 6, seed=1).get_extra_state().tolist()).decode()
            'L=1000 B=50 R=6 seed=1'
        """
        return _as_tensor(self.fingerprint())

    def set_extra_state(self, state: object) -> None:
        """Refuse the fingerprint of another hash. A matching one changes nothing.

        `load_state_dict` reports the fault itself. This method is for libraries that load a state key by key.

        Args:
            state: What `get_extra_state` returned.

        Raises:
            ValueError: The state is of another hash.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> LabelHash(1000, 50, 6).set_extra_state(LabelHash(1000, 50, 6).get_extra_state())
        """
        if fault := self.fingerprint_fault(state):
            raise ValueError(f"LabelHash: {fault}")

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Compare fingerprints. Older states have no fingerprint and are taken as they are."""
        if strict:
            names = [f"{prefix}{key}" for key in _STATE_KEYS]
            unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in names]
        if fault := self.state_fault(state_dict, prefix):
            error_msgs.append(f"{prefix}fingerprint: {fault}")

    def state_fault(self, state_dict: Mapping[str, Any], prefix: str = "") -> str:
        """Return why a `state_dict` is not for this hash, or an empty string if it is.

        Args:
            state_dict: The state of this hash or of a module that it is part of.
            prefix: The name of this hash in that module, with a dot at its end.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> LabelHash(1000, 50, 6).state_fault(LabelHash(1000, 50, 6).state_dict())
            ''
        """
        kept = (state_dict[f"{prefix}{key}"] for key in _STATE_KEYS if f"{prefix}{key}" in state_dict)
        return next(filter(None, map(self.fingerprint_fault, kept)), "")

    def fingerprint_fault(self, kept: object) -> str:
        """Return why weights with this fingerprint are not for this hash, or an empty string if they are.

        Args:
            kept: The fingerprint in a `state_dict`, as a uint8 tensor.

        Example:
            >>> from mach_ext.hashing import LabelHash
            >>> hash, other = (LabelHash(1000, 50, 6, seed=seed) for seed in (0, 1))
            >>> hash.fingerprint_fault(other.get_extra_state())
            'the weights are of label hash L=1000 B=50 R=6 seed=1, this model has L=1000 B=50 R=6 seed=0'
        """
        ours = self.fingerprint()
        theirs = repr(kept)
        if isinstance(kept, torch.Tensor):
            if kept.is_meta:  # A tensor on the meta device has no contents.
                return ""
            theirs = bytes(kept.flatten().to("cpu", torch.uint8).tolist()).decode(errors="replace")
        if theirs == ours:
            return ""
        return f"the weights are of label hash {theirs}, this model has {ours}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": {}}  # The copy builds its own index when it is needed.

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Older pickles were written when this class was no module. They lack a module's attributes, and they
        # have a `_version` in place of `_known_version`. Modules use the name `_version` for something else.
        nn.Module.__init__(self)
        self.__dict__.update(state)
        self.__dict__.pop("_version", None)
        if bool((self.buckets < 0).any()) or bool((self.buckets >= self.num_buckets).any()):
            raise ValueError("LabelHash: the copied buckets are out of range: they were changed in place")
        self._known_version = _version(self.buckets)

    def _sizes(self) -> tuple[int, int, int]:
        return self.num_labels, self.num_buckets, self.num_repetitions

    def _table(self) -> NDArray[np.int32]:
        table: NDArray[np.int32] = self.buckets.cpu().numpy()
        return table


def copy_table(
    op: str, table: torch.Tensor | ArrayLike, num_buckets: int | None
) -> tuple[NDArray[np.int32], int]:
    """Check a table [R, L] of integers, and return an int32 copy of it with its number of buckets."""
    if isinstance(table, torch.Tensor):
        if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
            raise TypeError(f"{op}: table must hold integers, got {table.dtype}")
        table = table.cpu().numpy()
    array = np.asarray(table)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{op}: table must be [R, L] with R, L >= 1, got shape {list(array.shape)}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{op}: table must hold integers, got {array.dtype}")
    check_integer(f"{op}: the table's number of labels", array.shape[1], 1, MAX_LABELS)
    if num_buckets is not None:
        num_buckets = check_integer(f"{op}: num_buckets", num_buckets, 2, MAX_BUCKETS)
    bound = MAX_BUCKETS if num_buckets is None else num_buckets
    highest = int(array.max())
    if int(array.min()) < 0 or highest >= bound:
        r, label = np.argwhere((array < 0) | (array >= bound))[0].tolist()
        raise ValueError(
            f"{op}: repetition {r}, label {label} has bucket {array[r, label]}, outside [0, {bound})"
        )
    R, L = array.shape
    check_hash_memory(op, "a copy of the table", L * (4 * R + GROUPING_BYTES), L, bound, R)
    copied = array.astype(np.int32, order="C")
    return copied, max(highest + 1, 2) if num_buckets is None else num_buckets


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Check that `value` is an integer from `low` to `high`: Python's or NumPy's, no bool."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    if value < low or (high is not None and value > high):
        rule = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {rule}, got {value}")
    return int(value)


def check_part(name: str, part: object, size: int) -> range:
    """Check that `part` is a range of 1 to `size` consecutive numbers below `size`. None is all of them."""
    if part is None:
        return range(size)
    if not isinstance(part, range):
        raise TypeError(f"{name} must be a range, got {type(part).__name__}")
    if part.step != 1 or not 0 <= part.start < part.stop <= size:
        raise ValueError(
            f"{name} must be a range of at least one number in [0, {size}) by step 1, got {part}"
        )
    return part


def check_hash_memory(
    op: str, what: str, needed: int, num_labels: int, num_buckets: int, num_repetitions: int
) -> None:
    """Call `check_memory` for a label hash, so that the error names its three sizes."""
    sizes = {"num_labels": num_labels, "num_buckets": num_buckets, "num_repetitions": num_repetitions}
    check_memory(f"{op}: {what}", needed, "lower num_labels, num_buckets or num_repetitions", **sizes)


def _as_tensor(fingerprint: str) -> torch.Tensor:
    """Return a string as uint8, which every format for a `state_dict` can hold."""
    return torch.frombuffer(bytearray(fingerprint.encode()), dtype=torch.uint8)


def _wait_for_copy(buckets: torch.Tensor) -> None:
    """Wait until a table has arrived on a GPU. A copy from another GPU would still be under way.

    The hash keeps the table, and its first use may be on another stream.
    """
    if buckets.is_cuda:
        torch.cuda.current_stream(buckets.device).synchronize()


def _version(t: torch.Tensor) -> int:
    """Return how often a tensor was written to. Inference tensors keep no count, so they give 0."""
    return 0 if t.is_inference() else t._version

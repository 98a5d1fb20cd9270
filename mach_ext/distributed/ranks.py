"""The processes that work together: how they find each other, exchange tensors, and notice a death."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from mach_ext._launch import is_launched, mark_rank
from mach_ext.distributed.meeting import private_store
from mach_ext.distributed.watch import Watch, ended_by_launcher, said_if_slow

# The watch ends a run whose process died. A process that is only slow must not end it, so waiting has no
# bound that a real run could reach.
PATIENCE = datetime.timedelta(days=30)
NOTICE = 60.0  # seconds after which a process says that it waits for others to come


def share(count: int, rank: int, size: int) -> range:
    """Return the consecutive part of `count` things that one of `size` ranks has. It may be empty.

    Args:
        count: The number of labels, repetitions or documents.
        rank: The number of the rank.
        size: The number of ranks.

    Returns:
        The part. The parts of two ranks differ by at most 1 in size.

    Example:
        >>> from mach_ext.distributed.ranks import share
        >>> [share(10, rank, 3) for rank in range(3)]
        [range(0, 3), range(3, 6), range(6, 10)]
    """
    return range(count * rank // size, count * (rank + 1) // size)


class Ranks:
    """The processes of a run, as one of them sees them. A process alone is rank 0 of 1.

    All ranks call the methods that exchange something in the same order.

    Attributes:
        rank: The number of this process, from 0.
        size: The number of processes.
        group: Their process group. None is that of all processes.

    Example:
        >>> from mach_ext.distributed import Ranks
        >>> alone = Ranks()
        >>> alone.share(8), alone.broadcast("a value")
        (range(0, 8), 'a value')
    """

    def __init__(self, rank: int = 0, size: int = 1, watch: Watch | None = None, group: Any = None) -> None:
        self.rank, self.size, self.group, self._watch = rank, size, group, watch

    @classmethod
    def of_group(cls, group: Any = None) -> Ranks:
        """Return the ranks of a process group of your own. A process without `torch.distributed` is alone.

        Args:
            group: The process group, such as `mesh.get_group("head")` of a device mesh. None is that of all
                processes.

        Raises:
            ValueError: This process is not in the group.

        Example:
            >>> from mach_ext.distributed import Ranks
            >>> Ranks.of_group().size
            1
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError("Ranks.of_group: this process must be in the group, and is not")
        return cls(rank, dist.get_world_size(group), group=group)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints and writes what is not in shards.

        Example:
            >>> from mach_ext.distributed import Ranks
            >>> Ranks(rank=1, size=2).is_first
            False
        """
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> range:
        """Return the part of 0 ... count - 1 of a rank. The parts differ in size by 1 at most.

        Args:
            count: The number of things to share.
            rank: The rank. None: this one.

        Example:
            >>> from mach_ext.distributed import Ranks
            >>> [Ranks(rank, 3).share(8) for rank in range(3)]
            [range(0, 2), range(2, 5), range(5, 8)]
        """
        return share(count, self.rank if rank is None else rank, self.size)

    def sizes(self, count: int) -> list[int]:
        """Return the sizes of the parts of all ranks.

        Args:
            count: The number of things to share.

        Example:
            >>> from mach_ext.distributed import Ranks
            >>> Ranks(0, 3).sizes(8)
            [2, 3, 3]
        """
        return [len(self.share(count, rank)) for rank in range(self.size)]

    def barrier(self) -> None:
        """Wait for all ranks.

        Example:
            >>> from mach_ext.distributed import Ranks
            >>> Ranks().barrier()
        """
        if self.size > 1:
            dist.barrier(group=self.group)

    def broadcast(self, value: Any) -> Any:
        """Return what rank 0 gave. Values are pickled.

        Args:
            value: The value. That of other ranks is not looked at.

        Example:
            >>> from mach_ext.distributed import Ranks
            >>> Ranks().broadcast([1, 2])
            [1, 2]
        """
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.group, group_src=0, device=torch.device("cpu"))
        return values[0]

    def collect(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order. Values are pickled.

        Args:
            value: The value of this rank.

        Example:
            >>> from mach_ext.distributed import Ranks
            >>> Ranks().collect("mine")
            ['mine']
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather(self, t: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
        """Return the tensors of all ranks side by side, in their order.

        Args:
            t: The tensor of this rank.
            dim: The dimension in which the tensors differ.
            sizes: The sizes in this dimension of the tensors of all ranks.

        Returns:
            A tensor with sum(sizes) entries in dimension `dim`.

        Example:
            >>> import torch
            >>> from mach_ext.distributed import Ranks
            >>> Ranks().gather(torch.ones(2, 3), 1, [3]).shape
            torch.Size([2, 3])
        """
        if self.size == 1:
            return t
        padded, missing = t.contiguous(), max(sizes) - t.shape[dim]  # gloo gathers tensors of one size alone
        if missing:
            shape = [*t.shape]
            shape[dim] = missing
            padded = torch.cat([t, t.new_zeros(shape)], dim)
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim)

    def sum(self, t: Tensor) -> Tensor:
        """Return the sum of the tensors of all ranks, added in the order of the ranks.

        Every rank gets the same bits.

        Args:
            t: The tensor of this rank. All have the same shape.

        Example:
            >>> import torch
            >>> from mach_ext.distributed import Ranks
            >>> Ranks().sum(torch.ones(2))
            tensor([1., 1.])
        """
        if self.size == 1:
            return t
        total, *others = self.gather(t.unsqueeze(0), 0, [1] * self.size).unbind(0)
        total = total.clone()
        for other in others:
            total += other
        return total

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set on any rank.

        Args:
            *flags: The flags of this rank.

        Example:
            >>> from mach_ext.distributed import Ranks
            >>> Ranks().any(True, False)
            [True, False]
        """
        if self.size == 1:
            return list(flags)
        both = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.group)
        return [bool(flag) for flag in both.tolist()]

    def tell_error(self, message: str) -> bool:
        """Return whether this process should print an error: no other rank has printed it.

        Args:
            message: The error.

        Example:
            >>> from mach_ext.distributed import Ranks
            >>> Ranks().tell_error("k must be at least 1")
            True
        """
        return self._watch is None or self._watch.tell_error(message)


_ALONE = Ranks()
_current = _ALONE


def current_ranks() -> Ranks:
    """Return the ranks of the innermost `together`. Outside of it a process is alone.

    Example:
        >>> from mach_ext.distributed import current_ranks
        >>> current_ranks().size
        1
    """
    return _current


_noted: set[str] = set()  # what this process itself has noted


def note_launch(key: str) -> None:
    """Note something for all attempts of this launch. `torchrun` starts processes anew after a failure."""
    _noted.add(key)
    store = _store_of_launch()
    if store is not None:
        store.set(f"mach_ext/{key}", "1")


def was_noted(key: str) -> bool:
    """Return whether a former attempt of this launch has noted something."""
    store = None if key in _noted else _store_of_launch()
    return store is not None and bool(store.check([f"mach_ext/{key}"]))


def _store_of_launch() -> Any:
    """Return the store that `torchrun` itself holds, which outlives the processes. None: it holds none."""
    if not is_launched() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=PATIENCE)


@contextlib.contextmanager
def together() -> Iterator[Ranks]:
    """Let the processes that `torchrun` started work together in a block. Alone, nothing changes.

    All of them enter and leave the block. A process group of the program's own is used if there is one. If a
    process dies, the others print one line and end within seconds.

    Yields:
        The ranks.

    Raises:
        ValueError: The processes could not find each other.

    Example:
        >>> from mach_ext.distributed import together
        >>> with together() as ranks:
        ...     ranks.size
        1
    """
    if _current is not _ALONE or not (is_launched() or _has_group()):
        yield _current
        return
    with ended_by_launcher() if is_launched() else contextlib.nullcontext():
        yield from _together()


def _together() -> Iterator[Ranks]:
    """Implement `together`: start a group if there is none, and watch the ranks until all are done."""
    global _current
    own = not _has_group()
    with said_if_slow(NOTICE, "it waits for the other processes, which must all call the same functions"):
        if own:
            _start_group()
        rank, size = dist.get_rank(), dist.get_world_size()
        watch = Watch(rank, size, dist.new_group(backend="gloo", timeout=PATIENCE)) if size > 1 else None
        # The program's own group may be for GPUs alone, and may end what takes long.
        group = None if own else dist.new_group(backend=_backend(), timeout=PATIENCE)
    _current = Ranks(rank, size, watch, group)
    try:
        yield _current
        if watch is not None:
            dist.barrier(group=group)
            watch.leave()
    except BaseException as error:
        _current = _ALONE
        if watch is not None and is_lost_connection(error):
            watch.wait_for_loss()
        if (watch is None or watch.leave(failed=True)) and own:
            dist.destroy_process_group()
        raise
    _current = _ALONE
    if own:
        dist.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process work alone in a block, while others wait or do something else.

    Under `torchrun`, `mach_ext.train` uses all ranks. In this block, it uses this process alone.

    Example:
        >>> from mach_ext.distributed import alone, current_ranks
        >>> with alone():
        ...     current_ranks().size
        1
    """
    global _current
    former, _current = _current, Ranks()  # not `_ALONE`, for which `together` would look for the others
    try:
        yield
    finally:
        _current = former


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _backend() -> str:
    """Return what exchanges tensors of this machine's devices."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _start_group() -> None:
    mark_rank()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        launched, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        store = private_store(launched, rank, size)
        dist.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(f"the processes of torchrun could not meet at {place}: {error}") from error


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an exchange failed because another process is gone."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("onnection", "gloo", "Gloo", "NCCL", "peer", "Broken pipe")
    )

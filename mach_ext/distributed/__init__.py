"""Several processes that work together: those that `torchrun` starts, on one machine or on many.

The repetitions of a model share nothing or little, so each process trains some of them. Under `torchrun`,
`mach_ext.train` and the commands do so by themselves. `together` lets a program of your own measure and
predict in the same way. `load_part` is for a model that is too large for one process.

For a training loop of your own, `HeadPart` is the part of a `mach_ext.MACHHead` that a process has. The
functions below it decode labels that are shared among processes.

Example:
    >>> from mach_ext.distributed import together
    >>> with together() as ranks:
    ...     print(ranks.rank, ranks.size)  # a program without torchrun is alone
    0 1
"""

from mach_ext._launch import is_launched
from mach_ext.distributed.decode import best_of, candidates, gather_logits, sharded_topk
from mach_ext.distributed.head import HeadPart
from mach_ext.distributed.part import load_part
from mach_ext.distributed.ranks import Ranks, alone, current_ranks, share, together

__all__ = [
    "HeadPart",
    "Ranks",
    "alone",
    "best_of",
    "candidates",
    "current_ranks",
    "gather_logits",
    "is_launched",
    "load_part",
    "sharded_topk",
    "share",
    "together",
]

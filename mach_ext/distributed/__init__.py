"""Several processes that work together: those that `torchrun` starts, on one machine or on many.

The repetitions of a model share nothing or little, so each process trains some of them. Under `torchrun`,
`mach_ext.train` and the commands do so by themselves.

Example:
    >>> from mach_ext.distributed import together
    >>> with together() as ranks:
    ...     print(ranks.rank, ranks.size)  # a program without torchrun is alone
    0 1
"""

from mach_ext.distributed.part import load_part
from mach_ext.distributed.ranks import Ranks, current_ranks, is_launched, together

__all__ = ["Ranks", "current_ranks", "is_launched", "load_part", "together"]

"""Whether `torchrun` or a launcher of its kind started this process, as its environment says."""

from __future__ import annotations

import os

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OWNER = "MACH_EXT_RANK_OF"  # environment variable: the process that works as a rank


def is_launched() -> bool:
    """Return whether `torchrun` or a launcher of its kind started this process beside others.

    A process that a rank has started inherits its environment, and is not one of them.

    Example:
        >>> from mach_ext.distributed import is_launched
        >>> is_launched()
        False
    """
    if not all(name in os.environ for name in _VARIABLES) or os.environ["WORLD_SIZE"] in ("", "0", "1"):
        return False
    return os.environ.get(_OWNER, str(os.getpid())) == str(os.getpid())


def mark_rank() -> None:
    """Note for the processes that this one may start that it is the rank, and they are not."""
    os.environ[_OWNER] = str(os.getpid())


def is_beside_first() -> bool:
    """Return whether this process was started beside the first one."""
    return is_launched() and os.environ["RANK"] != "0"

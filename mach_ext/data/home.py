"""The data folder: where it is, and the lock under which a dataset is prepared in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def data_home() -> Path:
    """The data folder: ``$MACH_DATA``, else ``mach_ext`` in the user's cache folder.

    Raises:
        ValueError: nothing says where it is, or there is something else than a folder.
    """
    given = os.environ.get("MACH_DATA")
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        home = Path(given).expanduser() if given else cache.expanduser() / "mach_ext"
    except RuntimeError:  # no $HOME, and no user of this number or name
        raise ValueError(
            "the data folder is not known, since the user has no home folder; $MACH_DATA says where it is"
        ) from None
    if home.exists() and not home.is_dir():
        raise ValueError(f"the data folder must be a folder, {home} is none; $MACH_DATA names another")
    return home


@contextlib.contextmanager
def lock_home(folder: Path) -> Iterator[None]:
    """One process at a time prepares a folder; the lock goes with the process, however it ends."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.with_name(f".{folder.name}.lock"), "w")  # noqa: SIM115
    except OSError as error:
        rule = "the data folder must be one that can be written to"
        raise OSError(f"{folder.parent}: {rule}: {error.strerror}; $MACH_DATA names another") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

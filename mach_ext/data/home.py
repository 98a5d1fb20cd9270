"""The data folder: where it is, and the lock under which a dataset is prepared in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def data_home() -> Path:
    """Returns the data folder, in which named datasets are kept.

    It is `$MACH_DATA` if this variable is set. Otherwise it is `mach_ext` in the user's cache folder.

    Raises:
        ValueError: The user has no home folder, or the path is not a folder.

    Example:
        >>> import os
        >>> from unittest import mock
        >>> from mach_ext.data import data_home
        >>> with mock.patch.dict(os.environ, {"MACH_DATA": "/data/xmc"}):
        ...     print(data_home())
        /data/xmc
    """
    given = os.environ.get("MACH_DATA")
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        home = Path(given).expanduser() if given else cache.expanduser() / "mach_ext"
    except RuntimeError:  # $HOME is not set, and the system does not know this user
        raise ValueError(
            "the place of the data folder is not known, because the user has no home folder; "
            "set $MACH_DATA to a folder"
        ) from None
    if home.exists() and not home.is_dir():
        raise ValueError(f"the data folder must be a folder, got the file {home}; set $MACH_DATA to a folder")
    return home


@contextlib.contextmanager
def lock_home(folder: Path) -> Iterator[None]:
    """Waits until no other process prepares a folder, and locks it.

    The operating system releases the lock when the process ends, in whatever way.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.with_name(f".{folder.name}.lock"), "w")  # noqa: SIM115
    except OSError as error:
        rule = "the data folder must be writable"
        raise OSError(
            f"{folder.parent}: {rule}: {error.strerror}; set $MACH_DATA to another folder"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

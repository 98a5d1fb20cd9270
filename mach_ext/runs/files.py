"""Files that a run writes. Before long work it is checked that they can be written."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mach_ext.data import atomic_path, write_json
from mach_ext.distributed import current_ranks

log = logging.getLogger("mach_ext")


def check_folder(what: str, folder: Path) -> None:
    """Refuses a folder that cannot be created or written to. This is tried out before long work.

    Raises:
        ValueError: The path is not a folder.
        OSError: The folder cannot be written to.
    """
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        if not folder.is_symlink():
            check_folder(what, folder.absolute().parent)
            return
        is_folder = False
    except OSError as error:
        raise OSError(f"{what}: {folder} can't be a folder: {error.strerror}") from None
    if not is_folder:
        raise ValueError(f"{what} must be a folder, got the file {folder}")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".mach-ext.", dir=folder))
    except OSError as error:
        raise OSError(f"{what}: {folder} can't be written to: {error.strerror}") from None


def check_utf8(what: str, folder: Path) -> None:
    """Refuses a path that safetensors cannot open.

    Raises:
        ValueError: The path is not UTF-8.
    """
    if re.search("[\udc80-\udcff]", str(folder)):
        raise ValueError(f"{what}: the path of a model must be UTF-8, got {folder}")


def check_file(what: str, file: Path) -> None:
    """Refuses a file that cannot be written.

    Raises:
        ValueError: The path is a folder or a device.
        OSError: The folder of the file cannot be written to.
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{what} must be a file, but {file} is a {'folder' if file.is_dir() else 'device'}")
    check_folder(f"the folder of {what}", file.parent)


@contextlib.contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Makes an error of writing name the path."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(f"{path} can't be written: {error.strerror}") from error


@contextlib.contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Gives a temporary name to write to. The folder is created if needed.

    Of several processes that work together, only the first writes the file.
    """
    if not current_ranks().is_first:
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere) / "file"
        return
    with name_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            yield temporary


def write(file: Path, content: bytes, what: str = "written") -> None:
    """Writes a file whole or not at all, and logs its name."""
    with atomic_file(file) as temporary:
        temporary.write_bytes(content)
    log.info("%s: %s", what, file)


def write_record(file: Path, record: Any) -> None:
    """Writes JSON whole or not at all. Of several processes that work together, only the first writes."""
    if not current_ranks().is_first:
        return
    with name_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record)


@contextlib.contextmanager
def timer(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the time of the block to the seconds of a stage."""
    started = time.monotonic()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - started

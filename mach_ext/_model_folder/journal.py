"""Writers of a model folder: one at a time, and what dead ones left is cleared."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from mach_ext._model_folder.record import OWN_FILE, SHA256, files_of
from mach_ext.data.files import delete_file, open_file
from mach_ext.data.json_text import write_json
from mach_ext.data.locks import lock_folder
from mach_ext.data.records import digest_of, read_record, seal

# While a save goes on, a record of the former files and the new ones. A kill leaves it to the next save.
_JOURNAL = re.compile(r"\.mach_ext-[0-9a-f]{16}\.journal")


def delete(folder: Path) -> None:
    """Removes the model of a folder, if it has one; other files stay."""
    with lock(folder, "delete"), replacing(folder, set()):
        (folder / "model.json").unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path, op: str, is_run: bool = False) -> Iterator[None]:
    """One writer at a time in the folder of a model or a run; what dead ones left is cleared.

    The thread of a run also saves into its folder. Runs exclude each other.

    Raises:
        ValueError: A run is training in the folder. A save is waited for.
    """
    with lock_folder(folder, op, lambda: any(_journals(folder)), is_run) as locked:
        if locked:
            for journal in list(_journals(folder)):
                _settle(folder, journal)
        yield


def _journals(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from (file for file in folder.iterdir() if _JOURNAL.fullmatch(file.name))


@contextlib.contextmanager
def replacing(folder: Path, files: set[str]) -> Iterator[None]:
    """Leaves the former model's files or these, as `model.json` says in the end; also after a kill."""
    journal = folder / f".mach_ext-{secrets.token_hex(8)}.journal"
    record = {"files": sorted(files_of(folder) | files)}
    write_json(journal, seal(record))
    try:
        yield
    finally:
        _settle(folder, journal)


def _settle(folder: Path, journal: Path) -> None:
    """Removes the files that a journal names and `model.json` does not, then the journal."""
    with contextlib.suppress(ValueError):  # a damaged journal says nothing
        record = read_record(journal, "a journal", {"files": [OWN_FILE], "sha256": SHA256})
        if record["sha256"] == digest_of(record):
            text = _record_text(folder)
            for name in record["files"]:
                if json.dumps(name).encode() not in text:
                    delete_file(folder / name)
    journal.unlink(missing_ok=True)


def _record_text(folder: Path) -> bytes:
    """`model.json` as it is: what a damaged one names, or one of a later format, stays as well."""
    try:
        with open_file(folder / "model.json") as file:
            return file.read()
    except (FileNotFoundError, ValueError):
        return b""

"""Writers of a model folder: one at a time, with the files of dead writers cleared."""

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

# During a save, the journal lists the former and the new files. After a kill, the next save reads it.
_JOURNAL = re.compile(r"\.mach_ext-[0-9a-f]{16}\.journal")


def delete(folder: Path) -> None:
    """Remove the model of a folder, if there is one. Other files stay."""
    with lock(folder, "delete"), replacing(folder, set()):
        (folder / "model.json").unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path, op: str, is_run: bool = False) -> Iterator[None]:
    """Admit one writer at a time to the folder of a model or a run, and clear what dead writers left.

    The thread of a run may also save into its folder. Runs exclude each other.

    Raises:
        ValueError: A run is training in the folder. If another save holds the lock, the function waits.
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
    """Leave either the former model's files or these files, whichever `model.json` names in the end.

    This also holds after a kill.
    """
    journal = folder / f".mach_ext-{secrets.token_hex(8)}.journal"
    record = {"files": sorted(files_of(folder) | files)}
    write_json(journal, seal(record))
    try:
        yield
    finally:
        _settle(folder, journal)


def _settle(folder: Path, journal: Path) -> None:
    """Remove the files that a journal names and `model.json` does not name, then the journal."""
    with contextlib.suppress(ValueError):  # A damaged journal is removed without any of its files.
        record = read_record(journal, "a journal", {"files": [OWN_FILE], "sha256": SHA256})
        if record["sha256"] == digest_of(record):
            text = _record_text(folder)
            for name in record["files"]:
                if json.dumps(name).encode() not in text:
                    delete_file(folder / name)
    journal.unlink(missing_ok=True)


def _record_text(folder: Path) -> bytes:
    """Return the bytes of `model.json`.

    Even a damaged record, or a record of a later format, protects the files that it names.
    """
    try:
        with open_file(folder / "model.json") as file:
            return file.read()
    except (FileNotFoundError, ValueError):
        return b""

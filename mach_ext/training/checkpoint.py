"""The checkpoint in a run's folder: its record, the files that belong to it, the lock of a run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mach_ext import _model_folder
from mach_ext.data.files import delete_file
from mach_ext.data.records import ANY, digest_of, read_record

CHECKPOINT = "checkpoint"
CHECKPOINT_FORMAT = 1  # Before it had a number, it had no digests.
_DIGEST_KEYS = {"format", "sha256", "tensors_sha256", "weights_sha256"}
_TENSORS_WITH_DIGEST = re.compile(r"checkpoint-\d+-\d+-[0-9a-f]{12}\.safetensors")
_TENSORS = re.compile(r"checkpoint-\d+-\d+(-[0-9a-f]{12})?\.safetensors")
_SHA256 = (re.compile(r"[0-9a-f]{64}"), type(None))
_count = range(2**53)  # as floats count
_CHECKPOINT_SCHEMA = {
    "format?": {CHECKPOINT_FORMAT},
    "hyperparameters": {"epochs": _count, "*": ANY},
    "model": {"*": ANY},
    "hash": str,
    "length?": float,
    "data": {"*": ANY},
    "progress": {
        "epoch": _count,
        "batch": _count,
        "loss_sum": float,
        "documents": _count,
        "seconds": float,
        "best_epoch": (_count, type(None)),
        "best": (float, type(None)),
        "history": [{"epoch": _count, "loss?": float, "dev?": {"*": (float, type(None))}, "*": ANY}],
    },
    "scalars": {"*": _count},
    "tensors": (_TENSORS, type(None)),
    "run?": {"*": ANY},
    "tensors_sha256?": _SHA256,
    "weights_sha256?": _SHA256,
    "sha256?": _SHA256[0],
}
_HALF_WRITTEN = (
    r"\.(model|checkpoint|weights-|labels-|label_counts-|features-|vectorizer-|run-).*\.(\d+)\.tmp"
)


@dataclass
class Progress:
    """Where a run stands; the part of a checkpoint that is not tensors."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of the current epoch finished
    loss_sum: float = 0.0  # over the documents of the current epoch so far
    documents: int = 0
    seconds: float = 0.0
    best_epoch: int | None = None
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch


@contextlib.contextmanager
def exclusive(folder: Path | None) -> Iterator[None]:
    """One run a folder: locks it (the lock goes with the process) and clears what a kill left half-written.

    The thread that holds the lock may save into the folder; others can't.

    Raises:
        ValueError: Another run is training in the folder.
    """
    if folder is None:
        yield
        return
    with _model_folder.lock(folder, "fit", is_run=True):
        for left in folder.iterdir():  # by versions that had the number of the process in the name
            written = re.fullmatch(_HALF_WRITTEN, left.name)
            if written and not Path(f"/proc/{written[2]}").exists():
                delete_file(left)
        yield


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The record of the checkpoint in a folder, checked by itself.

    Raises:
        ValueError: It is damaged or no checkpoint. Older ones have no digest, and less is told of them.
        OSError: It is not there, or can't be read.
    """
    file = folder / f"{CHECKPOINT}.json"
    record: dict[str, Any] = read_record(file, "a checkpoint", _CHECKPOINT_SCHEMA)
    if not _DIGEST_KEYS.isdisjoint(record):
        for key in sorted(_DIGEST_KEYS - record.keys()):
            raise ValueError(f"{file}: not a checkpoint: {key} is missing")
        if record["sha256"] != digest_of(record):
            raise ValueError(f"{file}: not a checkpoint: edited: its contents do not match their SHA-256")
    return record


def tensor_files(folder: Path) -> set[str]:
    """The tensor files of checkpoints in a folder: those of a name that only a checkpoint can have.

    Names of before there were digests could be a user's, and count where the record has them.
    """
    names = {file.name for file in folder.iterdir() if _TENSORS_WITH_DIGEST.fullmatch(file.name)}
    with contextlib.suppress(OSError, ValueError):
        names |= {read_checkpoint(folder)["tensors"]} - {None}
    return names


def forget(folder: Path) -> None:
    """Removes the checkpoint of a former run: nothing is left to resume."""
    tensors = tensor_files(folder)
    (folder / f"{CHECKPOINT}.json").unlink(missing_ok=True)
    for name in tensors:
        delete_file(folder / name)
    for part in part_folders(folder):
        delete_part(part)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run in the folder can be gone on with, or was cut off, or has ended."""
    return any((each / f"{CHECKPOINT}.json").exists() for each in (folder, *part_folders(folder)))


def checkpoint_record(folder: Path) -> dict[str, Any]:
    """What the checkpoint in a folder says of its run; empty where there is none that can be read."""
    try:
        return read_checkpoint(folder)
    except (OSError, ValueError):
        return {}


def part_folders(folder: Path) -> list[Path]:
    """Folders of repetitions trained in turn, also those that a kill left half deleted."""
    parts = (part for part in folder.glob("repetitions-*") if re.fullmatch(r"repetitions-\d+", part.name))
    return [part for part in parts if part.is_dir() and not part.is_symlink() and _is_part(part)]


def _is_part(folder: Path) -> bool:
    has_record = (folder / f"{CHECKPOINT}.json").exists()
    return has_record or bool(tensor_files(folder)) or not any(folder.iterdir())


def delete_part(part: Path) -> None:
    """Removes what a run has written into the folder of its repetitions, and the folder if that was all."""
    with exclusive(part):
        _model_folder.delete(part)
        forget(part)
    with contextlib.suppress(OSError):
        part.rmdir()

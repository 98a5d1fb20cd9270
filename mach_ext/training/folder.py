"""The folder of a run: its lock, the files of its checkpoint, the folders of repetitions trained in turn."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from mach_ext import _model_folder
from mach_ext.data.files import delete_file
from mach_ext.training.checkpoint import CHECKPOINT, read_checkpoint

_TENSORS_WITH_DIGEST = re.compile(r"checkpoint-\d+-\d+-[0-9a-f]{12}\.safetensors")
_HALF_WRITTEN = (
    r"\.(model|checkpoint|weights-|labels-|label_counts-|features-|vectorizer-|run-).*\.(\d+)\.tmp"
)


@contextlib.contextmanager
def lock_run(folder: Path | None) -> Iterator[None]:
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


def tensor_files(folder: Path) -> set[str]:
    """The tensor files of checkpoints in a folder: those of a name that only a checkpoint can have.

    Names of before there were digests could be a user's, and count where the record has them.
    """
    names = {file.name for file in folder.iterdir() if _TENSORS_WITH_DIGEST.fullmatch(file.name)}
    with contextlib.suppress(OSError, ValueError):
        names |= {read_checkpoint(folder)["tensors"]} - {None}
    return names


def delete_checkpoint(folder: Path) -> None:
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


def part_folders(folder: Path) -> list[Path]:
    """Folders of repetitions trained in turn, also those that a kill left half deleted."""
    parts = (part for part in folder.glob("repetitions-*") if re.fullmatch(r"repetitions-\d+", part.name))
    return [part for part in parts if part.is_dir() and not part.is_symlink() and _is_part(part)]


def _is_part(folder: Path) -> bool:
    has_record = (folder / f"{CHECKPOINT}.json").exists()
    return has_record or bool(tensor_files(folder)) or not any(folder.iterdir())


def delete_part(part: Path) -> None:
    """Removes what a run has written into the folder of its repetitions, and the folder if that was all."""
    with lock_run(part):
        _model_folder.delete(part)
        delete_checkpoint(part)
    with contextlib.suppress(OSError):
        part.rmdir()

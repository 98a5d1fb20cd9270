"""The folder of a run: its lock, its checkpoint files, and folders of repetitions trained in turn."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from mach_ext import _model_folder
from mach_ext.data.files import delete_file
from mach_ext.training.checkpoint import CHECKPOINT, SVM_RECORD, file_names, read_checkpoint

_TENSORS_WITH_DIGEST = re.compile(r"checkpoint-\d+-\d+-[0-9a-f]{12}\.safetensors")
_HALF_WRITTEN = (
    r"\.(model|checkpoint|weights-|labels-|label_counts-|features-|vectorizer-|run-).*\.(\d+)\.tmp"
)


@contextlib.contextmanager
def lock_run(folder: Path | None) -> Iterator[None]:
    """Lock a folder for one run, and clear the files that a kill left half-written.

    The lock ends with the process. The thread that holds the lock may save into the folder, and others
    cannot.

    Args:
        folder: The folder of a run. None locks nothing.

    Raises:
        ValueError: Another run is training in the folder.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import mach_ext
        >>> from mach_ext.training import lock_run
        >>> folder = Path(tempfile.mkdtemp())
        >>> with lock_run(folder):
        ...     mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4).save(folder)
        >>> (folder / "model.json").exists()
        True
    """
    if folder is None:
        yield
        return
    with _model_folder.lock(folder, "fit", is_run=True):
        for left in folder.iterdir():  # Older versions wrote the process id into the names of such files.
            written = re.fullmatch(_HALF_WRITTEN, left.name)
            if written and not Path(f"/proc/{written[2]}").exists():
                delete_file(left)
        yield


def tensor_files(folder: Path) -> set[str]:
    """Return the tensor files of checkpoints in a folder. Only a checkpoint can have such a name.

    Older checkpoints have no digest in the name, so their files could be a user's. They count if the record
    names them.
    """
    names = {file.name for file in folder.iterdir() if _TENSORS_WITH_DIGEST.fullmatch(file.name)}
    with contextlib.suppress(OSError, ValueError):
        names |= file_names(read_checkpoint(folder)["tensors"])
    return names


def delete_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a former run, so that nothing is left to resume.

    Args:
        folder: The folder of a run.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mach_ext.training import delete_checkpoint, has_checkpoint
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "checkpoint.json").write_text("{}")
        2
        >>> delete_checkpoint(folder)
        >>> has_checkpoint(folder)
        False
    """
    tensors = tensor_files(folder)
    for record in (f"{CHECKPOINT}.json", SVM_RECORD):
        (folder / record).unlink(missing_ok=True)
    for name in tensors:
        delete_file(folder / name)
    for part in part_folders(folder):
        delete_part(part)


def has_checkpoint(folder: Path) -> bool:
    """Return whether a folder has the checkpoint of a run, which may be unfinished or finished.

    Args:
        folder: The folder of a run.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mach_ext.training import has_checkpoint
        >>> has_checkpoint(Path(tempfile.mkdtemp()))
        False
    """
    records = (each / f"{CHECKPOINT}.json" for each in (folder, *part_folders(folder)))
    return (folder / SVM_RECORD).exists() or any(record.exists() for record in records)


def part_folders(folder: Path) -> list[Path]:
    """Return the folders of repetitions trained in turn, including those that a kill left half deleted."""
    parts = (part for part in folder.glob("repetitions-*") if re.fullmatch(r"repetitions-\d+", part.name))
    return [part for part in parts if part.is_dir() and not part.is_symlink() and _is_part(part)]


def _is_part(folder: Path) -> bool:
    has_record = (folder / f"{CHECKPOINT}.json").exists()
    return has_record or bool(tensor_files(folder)) or not any(folder.iterdir())


def delete_part(part: Path) -> None:
    """Remove what a run wrote into the folder of its repetitions, and the folder if nothing else is left."""
    with lock_run(part):
        _model_folder.delete(part)
        delete_checkpoint(part)
    with contextlib.suppress(OSError):
        part.rmdir()

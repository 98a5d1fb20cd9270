"""The record of a checkpoint: what it may hold, how it is read, and whether it belongs to a run."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from mach_ext.data.records import ANY, digest_of, read_record
from mach_ext.training.hyperparameters import Hyperparameters
from mach_ext.training.progress import Progress

CHECKPOINT = "checkpoint"
SVM_RECORD = f"{CHECKPOINT}-svm.json"  # of `fit_svm`, which has no epochs and no optimiser
# The first checkpoints had no number and no digests. Up to format 1, a hyper-parameter had another name.
# Since format 3, the tensors may be in several files. Format 4 has the hyper-parameter eps.
CHECKPOINT_FORMAT = 4
_FORMER_HYPERPARAMETERS = {"negligible_gradient": "gradient_threshold"}
_DIGEST_KEYS = {"format", "sha256", "tensors_sha256", "weights_sha256"}
_TENSORS = re.compile(r"checkpoint-\d+-\d+(-[0-9a-f]{12})?\.safetensors")
_SHA256 = (re.compile(r"[0-9a-f]{64}"), type(None))
_count = range(2**53)  # Floats hold integers exactly up to here.
_SHARD = {"file": _TENSORS, "sha256": _SHA256[0], "repetitions": [_count, _count], "units": [_count, _count]}
_CHECKPOINT_SCHEMA = {
    "format?": {1, 2, 3, CHECKPOINT_FORMAT},
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
    "tensors": (_TENSORS, type(None), [_SHARD]),
    "run?": {"*": ANY},
    "tensors_sha256?": _SHA256,
    "weights_sha256?": _SHA256,
    "sha256?": _SHA256[0],
}

_SVM_SCHEMA = {
    "format": {1},
    "solver": {"C": float, "tolerance": float, "max_passes": _count},
    "model": {"*": ANY},
    "hash": str,
    "dtype": str,
    "length": float,
    "data": {"*": ANY},
    "run?": {"*": ANY},
    "sha256": _SHA256[0],
}


def read_svm_record(folder: Path) -> dict[str, Any]:
    """Read the record of an unfinished run of `fit_svm` in a folder.

    Raises:
        ValueError: The record is damaged or is none.
        OSError: The record does not exist or cannot be read.
    """
    file = folder / SVM_RECORD
    record: dict[str, Any] = read_record(file, "a checkpoint of fit_svm", _SVM_SCHEMA)
    if record["sha256"] != digest_of(record):
        raise ValueError(
            f"{file}: not a checkpoint of fit_svm: edited: its contents do not match their SHA-256"
        )
    return record


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the record of the checkpoint in a folder, and check it by itself.

    Hyper-parameters that older versions wrote under another name get their new name.

    Args:
        folder: The folder of a run.

    Returns:
        The record, as a dict.

    Raises:
        ValueError: The record is damaged or is no checkpoint. Older checkpoints have no digest, so less
            damage is noticed.
        OSError: The record does not exist or cannot be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> from mach_ext.training import read_checkpoint
        >>> X = scipy.sparse.csr_matrix(np.eye(4, dtype=np.float32))
        >>> model = mach_ext.MACH(4, 4, num_repetitions=8, num_buckets=4, hidden_size=8)
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = mach_ext.fit(model, X, X, epochs=2, output=folder, progress=False)
        >>> read_checkpoint(folder)["progress"]["epoch"]
        2
    """
    file = folder / f"{CHECKPOINT}.json"
    record: dict[str, Any] = read_record(file, "a checkpoint", _CHECKPOINT_SCHEMA)
    if not _DIGEST_KEYS.isdisjoint(record):
        for key in sorted(_DIGEST_KEYS - record.keys()):
            raise ValueError(f"{file}: not a checkpoint: {key} is missing")
        if record["sha256"] != digest_of(record):
            raise ValueError(f"{file}: not a checkpoint: edited: its contents do not match their SHA-256")
    if record.get("format", 0) < 2:
        given = record["hyperparameters"].items()
        record["hyperparameters"] = {_FORMER_HYPERPARAMETERS.get(name, name): value for name, value in given}
    return record


def checkpoint_record(folder: Path) -> dict[str, Any]:
    """Read the record of the checkpoint in a folder, or return an empty dict if there is no readable record.

    The checkpoint is one of `fit` or of `fit_svm`.

    Args:
        folder: The folder of a run.

    Returns:
        The record, as a dict.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mach_ext.training import checkpoint_record
        >>> checkpoint_record(Path(tempfile.mkdtemp()))
        {}
    """
    for read in (read_checkpoint, read_svm_record):
        with contextlib.suppress(OSError, ValueError):
            return read(folder)
    return {}


def file_names(tensors: str | list[dict[str, Any]] | None) -> set[str]:
    """Return the names of the tensor files of a checkpoint, from the entry of its record."""
    if isinstance(tensors, list):
        return {entry["file"] for entry in tensors}
    return set() if tensors is None else {tensors}


def identity_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies the run of a checkpoint, with defaults for what older versions did not write."""
    identity = {key: record[key] for key in ("hyperparameters", "model", "hash", "data")}
    # Older checkpoints lack the length, and their rates did not depend on it. They also lack newer
    # hyper-parameters, which had their default then: Adam's own for encoder_eps, and no adjustment for tau.
    identity["length"] = record.get("length", 1.0)
    defaults = {each.name: each.default for each in fields(Hyperparameters)}
    defaults |= {"encoder_eps": 1e-8, "tau": 0.0}
    identity["hyperparameters"] = {**defaults, **identity["hyperparameters"]}
    return identity


def differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the differences of two records in words."""
    changes = []
    for key in sorted(then.keys() | now.keys()):
        a, b = then.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changes.append(f"{prefix}{key} was {a}, now {b}")
    return changes


def check_progress(
    file: Path, state: Progress, settings: Hyperparameters, steps_an_epoch: int, has_dev: bool
) -> None:
    """Refuse progress that no run can have written. Older checkpoints have no digest to rely on."""
    epochs = [entry["epoch"] for entry in state.history]
    keys = {"epoch", "loss"} | ({"dev"} if has_dev else set())
    if (
        state.epoch > settings.epochs
        or state.batch > steps_an_epoch
        or (state.documents == 0) != (state.batch == 0)
        or len(epochs) != state.epoch
        or epochs != list(range(1, len(epochs) + 1))
        or any(not keys <= entry.keys() for entry in state.history)
        or any(settings.metric not in entry["dev"] for entry in state.history if "dev" in keys)
        or (state.best_epoch not in epochs if epochs else state.best_epoch is not None)
    ):
        raise ValueError(f"{file}: not a checkpoint: its progress contradicts itself")
    for entry in state.history:  # JSON has no NaN
        for name, value in entry.get("dev", {}).items():
            entry["dev"][name] = math.nan if value is None else value

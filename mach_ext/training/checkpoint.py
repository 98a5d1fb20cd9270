"""The record of a checkpoint: what it may hold, how it is read, and whether it is of this run."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from mach_ext.data.records import ANY, digest_of, read_record
from mach_ext.training.hyperparameters import Hyperparameters
from mach_ext.training.progress import Progress

CHECKPOINT = "checkpoint"
# Before it had a number, it had no digests. Up to 1 a hyper-parameter had another name.
CHECKPOINT_FORMAT = 2
_FORMER_HYPERPARAMETERS = {"negligible_gradient": "gradient_threshold"}
_DIGEST_KEYS = {"format", "sha256", "tensors_sha256", "weights_sha256"}
_TENSORS = re.compile(r"checkpoint-\d+-\d+(-[0-9a-f]{12})?\.safetensors")
_SHA256 = (re.compile(r"[0-9a-f]{64}"), type(None))
_count = range(2**53)  # as floats count
_CHECKPOINT_SCHEMA = {
    "format?": {1, CHECKPOINT_FORMAT},
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


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The record of the checkpoint in a folder, checked by itself.

    Hyper-parameters that former versions wrote under another name have their new one.

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
    if record.get("format", 0) < 2:
        given = record["hyperparameters"].items()
        record["hyperparameters"] = {_FORMER_HYPERPARAMETERS.get(name, name): value for name, value in given}
    return record


def checkpoint_record(folder: Path) -> dict[str, Any]:
    """What the checkpoint in a folder says of its run; empty where there is none that can be read."""
    try:
        return read_checkpoint(folder)
    except (OSError, ValueError):
        return {}


def identity_of(record: dict[str, Any]) -> dict[str, Any]:
    """What makes the run of a checkpoint this run, with what former versions did not write."""
    identity = {key: record[key] for key in ("hyperparameters", "model", "hash", "data")}
    identity["length"] = record.get("length", 1.0)  # before there was one, rates did not depend on it
    # A run of before there was a hyper-parameter had its default; before encoder_eps, Adam's own;
    # before tau, none.
    defaults = {each.name: each.default for each in fields(Hyperparameters)}
    defaults |= {"encoder_eps": 1e-8, "tau": 0.0}
    identity["hyperparameters"] = {**defaults, **identity["hyperparameters"]}
    return identity


def differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
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
    """Refuses what no run can have written: older checkpoints have no digest."""
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

"""How a model becomes the files of its folder."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach_ext import compression
from mach_ext._distributed import check_whole
from mach_ext._memory import check_memory
from mach_ext._model_folder.extents import Shard, cut_of, entry_of, joint_digest
from mach_ext._model_folder.journal import lock, replacing
from mach_ext._model_folder.protocol import SavableModel, SavablePart
from mach_ext._model_folder.record import ATTACHMENT, FORMATS, own_name, parameter_shapes, scaling_shapes
from mach_ext._model_folder.tensors import (
    check_dtypes,
    check_finite,
    named_weights,
    save_tensors,
    tensors_digest,
)
from mach_ext.data.atomic import atomic_write
from mach_ext.data.json_text import write_json
from mach_ext.data.records import seal

# A good step for `save`: within 0.07 points of P@1, 3, 5 on dev of two datasets (docs/results/accuracy.md).
STEP = 0.5
_FINER = 64  # Weights that take hidden units are few, so their step is so many times finer.
ADVICE = "free memory first, or make a smaller model"


def save(op: str, model: SavableModel, folder: Path, step: float | None) -> None:
    """Implement `MACH.save` and `MACHHead.save`, which messages call `op`."""
    weights = _weights_of(model)
    check_whole(op, weights.values())
    attached = _attached_files(op, model.attachments)
    steps = {} if step is None else _steps(op, model, weights, step)
    tensors = _tensors_of(op, model, weights, steps)
    digest = tensors_digest(tensors)
    file = own_name("weights.safetensors", digest)
    weights_entry = {"file": file, "sha256": digest} | ({"steps": steps} if steps else {})
    record = _record(model.configuration(), model.hash.seed, weights_entry, attached)
    with lock(folder, op), replacing(folder, {file, *attached.values()}):
        save_tensors(folder / file, tensors)
        _write_record(folder, record, model.attachments)


def save_quantized(op: str, model: Any, folder: Path) -> None:
    """Implement `QuantizedMACH.save`."""
    tensors, attached = model.stored(), _attached_files(op, model.attachments)
    if not model.logit_adjustment.any():
        del tensors["logit_adjustment"]
    if model.hash.seed is None:
        model.hash.check_contents()
        tensors["hash.buckets"] = model.hash.buckets
    digest = tensors_digest(tensors)
    file = own_name("weights.safetensors", digest)
    entry = {"file": file, "sha256": digest, "precision": "int8"}
    record = _record(model.configuration(), model.hash.seed, entry, attached)
    with lock(folder, op), replacing(folder, {file, *attached.values()}):
        save_tensors(folder / file, tensors)
        _write_record(folder, record, model.attachments)


def save_part(op: str, part: SavablePart, folder: Path, collect: Callable[[Any], list[Any]]) -> None:
    """Save a model of which each process holds a part. Each writes its own file, and the first the record.

    All processes call this function at the same time. If one of them fails, all raise its error, and the
    former model stays.

    Args:
        op: How messages call the operation.
        part: The part of this process.
        folder: The folder of the model.
        collect: Returns the values of all processes, in their order.

    Raises:
        OSError: A file cannot be written.
        ValueError: Weights are not finite, or another run is training in the folder.
    """
    with failing_together(collect):
        tensors, attached = _part_tensors(op, part), _attached_files(op, part.model.attachments)
    digest = tensors_digest(tensors)
    own = Shard(own_name("weights.safetensors", digest), digest, part.extent)
    shards: list[Shard] = collect(own)
    files = {*(shard.file for shard in shards), *attached.values()}
    entries = [entry_of(shard) for shard in shards]
    weights = {"sha256": joint_digest(shard.sha256 for shard in shards), "shards": entries}
    record = _record(part.configuration(), part.seed, weights, attached)
    is_first = part.extent.is_first
    with contextlib.ExitStack() as stack:
        with failing_together(collect):
            if is_first:
                stack.enter_context(lock(folder, op))
                stack.enter_context(replacing(folder, files))
        with failing_together(collect):
            save_tensors(folder / own.file, tensors)
        with failing_together(collect):
            if is_first:
                _write_record(folder, record, part.model.attachments)
    collect(None)  # Nobody goes on before the files of the former model are gone.


@contextlib.contextmanager
def failing_together(collect: Callable[[Any], list[Any]]) -> Iterator[None]:
    """Let a block end on all processes before any goes on. If it fails on one, all raise its error."""
    failure: Exception | None = None
    try:
        yield
    except (OSError, ValueError) as error:
        failure = error
    for each in collect(failure):
        if each is not None:
            raise each


def _part_tensors(op: str, part: SavablePart) -> dict[str, Tensor]:
    """Return the tensors of a part to write, by name."""
    model, configuration = part.model, part.configuration()
    tensors: dict[str, Tensor] = {**named_weights(model)}
    tensors |= {"logit_adjustment": model.logit_adjustment.to(model.bucket_bias)}
    tensors |= {name: getattr(model, name) for name in scaling_shapes(configuration)}
    if part.seed is None:
        tensors["hash.buckets"] = model.hash.buckets
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_finite(op, {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()})
    if part.extent.is_first:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if cut_of(name, configuration) is not None}


def _attached_files(op: str, attachments: dict[str, bytes]) -> dict[str, str]:
    """Return the file of each attachment."""
    attached = {}
    for name, content in attachments.items():
        if not ATTACHMENT.fullmatch(name) or not isinstance(content, bytes):
            raise ValueError(f"{op}: an attachment must be bytes, named like labels.json, got {name!r}")
        attached[name] = own_name(name, hashlib.sha256(content).hexdigest())
    return attached


def _record(
    configuration: dict[str, Any], seed: int | None, weights: dict[str, Any], attached: dict[str, str]
) -> dict[str, Any]:
    """Return the content of `model.json`."""
    return {
        "format": FORMATS[-1],
        ("model" if "num_features" in configuration else "head"): configuration,
        "hash": {"kind": "table" if seed is None else "seeded", "seed": seed},
        "weights": weights,
        "attachments": attached,
    }


def _write_record(folder: Path, record: dict[str, Any], attachments: dict[str, bytes]) -> None:
    """Write the attachments, and then `model.json`, which makes the new model the folder's."""
    for name, own in record["attachments"].items():
        with atomic_write(folder / own) as out:
            out.write(attachments[name])
    write_json(folder / "model.json", seal(record))


def _weights_of(model: SavableModel) -> dict[str, Tensor]:
    """Return the weights by their names in files.

    A pruned or parametrized weight is no parameter. What the model computes with takes the place of those.
    """
    weights: dict[str, Tensor] = {**named_weights(model)}
    for name in parameter_shapes(model.configuration()):
        if name not in weights:
            sources = (f"{name}_orig", f"parametrizations.{name}.")
            weights = {key: weight for key, weight in weights.items() if not key.startswith(sources)}
            weights[name] = getattr(model, name)
    return {name: weight.detach() for name, weight in weights.items()}


def _tensors_of(
    op: str, model: SavableModel, weights: dict[str, Tensor], steps: dict[str, float]
) -> dict[str, Tensor]:
    """Return the tensors of a model to write, by name. Weights with a step become streams of bytes."""
    moved = sum(weight.nbytes for weight in weights.values() if not weight.is_cpu)
    check_memory(f"{op}: a copy of the weights on the CPU", moved, ADVICE)
    tensors = {name: weight.cpu().contiguous() for name, weight in weights.items()}
    check_dtypes(op, {name: tensor.dtype for name, tensor in tensors.items()})
    if steps:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    if model.logit_adjustment.any():
        tensors["logit_adjustment"] = model.logit_adjustment.to(tensors["bucket_bias"])
    for name in scaling_shapes(model.configuration()):
        tensors[name] = getattr(model, name).cpu()
    check_finite(op, tensors, " and fit float32" if steps else "")
    for name, step in steps.items():
        try:
            tensors[name] = compression.encode(tensors[name], step)
        except ValueError as error:
            raise ValueError(f"{op}: {name}: {error}") from None
    if model.hash.seed is None:
        model.hash.check_contents()
        tensors["hash.buckets"] = model.hash.buckets.cpu()
    return tensors


def _steps(op: str, model: SavableModel, weights: dict[str, Tensor], step: float) -> dict[str, float]:
    """Return the quantization step of each weight. Biases have none."""
    step = check_step(op, step)
    is_linear = model.configuration().get("hidden_size") == 0
    first = "bucket_weight" if is_linear else "encoder_weight"
    names = (name for name in weights if name.endswith("weight"))
    return {name: step if name == first else step / _FINER for name in names}


def check_step(op: str, step: Any) -> float:
    """Return a quantization step as a float. `op` is named in the messages.

    Raises:
        TypeError, ValueError: It is not a finite number above 0.
    """
    rule = f"{op}: quantization_step must be None or"
    if isinstance(step, bool) or not isinstance(step, (int, float, np.floating, np.integer)):
        raise TypeError(f"{rule} a number, got {type(step).__name__}")
    if not 0 < step <= torch.finfo(torch.float32).max:
        raise ValueError(f"{op}: quantization_step must be None or a finite number above 0, got {step!r}")
    return float(step)

"""How a model becomes the files of its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mach_ext import compression
from mach_ext._distributed import check_whole
from mach_ext._memory import check_memory
from mach_ext._model_folder.journal import lock, replacing
from mach_ext._model_folder.protocol import SavableModel
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
    attached = {}
    for name, content in model.attachments.items():
        if not ATTACHMENT.fullmatch(name) or not isinstance(content, bytes):
            raise ValueError(f"{op}: an attachment must be bytes, named like labels.json, got {name!r}")
        attached[name] = own_name(name, hashlib.sha256(content).hexdigest())
    steps = {} if step is None else _steps(op, model, weights, step)
    tensors = _tensors_of(op, model, weights, steps)
    digest = tensors_digest(tensors)
    file = own_name("weights.safetensors", digest)
    configuration = model.configuration()
    record = {
        "format": FORMATS[-1],
        ("model" if "num_features" in configuration else "head"): configuration,
        "hash": {"kind": "table" if model.hash.seed is None else "seeded", "seed": model.hash.seed},
        "weights": {"file": file, "sha256": digest} | ({"steps": steps} if steps else {}),
        "attachments": attached,
    }
    with lock(folder, op), replacing(folder, {file, *attached.values()}):
        save_tensors(folder / file, tensors)
        for name, own in attached.items():
            with atomic_write(folder / own) as out:
                out.write(model.attachments[name])
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
    rule = f"{op}: quantization_step must be None or"
    if isinstance(step, bool) or not isinstance(step, (int, float, np.floating, np.integer)):
        raise TypeError(f"{rule} a number, got {type(step).__name__}")
    if not 0 < step <= torch.finfo(torch.float32).max:
        raise ValueError(f"{op}: quantization_step must be None or a finite number above 0, got {step!r}")
    step = float(step)
    is_linear = model.configuration().get("hidden_size") == 0
    first = "bucket_weight" if is_linear else "encoder_weight"
    names = (name for name in weights if name.endswith("weight"))
    return {name: step if name == first else step / _FINER for name in names}

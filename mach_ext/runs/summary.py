"""A summary of a run: shape, parameters, memory, collisions and the record of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mach_ext import _ops, nn, training
from mach_ext._model_folder import named_weights, parameter_shapes
from mach_ext._model_folder.record import of_hidden_units
from mach_ext.data import attachments as kept
from mach_ext.data.records import ANY, read_record
from mach_ext.quantized import unpack
from mach_ext.runs.record import record_of


def summary(folder: Path, model: nn.AnyMACH) -> dict[str, Any]:
    """Returns everything that `mach-ext info` shows, ready for JSON."""
    checkpoint, metrics = folder / f"{training.CHECKPOINT}.json", folder / "metrics.json"
    hash = model.hash.diagnostics().as_dict()
    hash.pop("load", None)
    return {
        "folder": str(folder),
        "model": model.configuration(),
        "text_encoder": kept.text_encoder(model.attachments, model.num_dense),
        "parameters": {name: list(p.shape) for name, p in stored_weights(model).items()},
        "memory": _memory(model),
        "hash": hash,
        "operators": {"cpu": _ops.cpu_isa(), "cuda": _ops.CUDA_FAULT or "loaded"},
        "race": record_of(model).get("settings", {}).get("race"),
        "training": training.read_checkpoint(folder) if checkpoint.exists() else None,
        "metrics": read_record(metrics, "a record", ANY) if metrics.exists() else None,
    }


def stored_weights(model: nn.AnyMACH) -> dict[str, Any]:
    """Returns the weights, scales and biases of a model by name, in the shapes of the definition."""
    if isinstance(model, nn.MACH):
        return named_weights(model)
    shapes, packed = parameter_shapes(model.configuration()), of_hidden_units(model.configuration())
    stored = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return stored | {name: unpack(stored[name], shapes[name]) for name in packed}


def _memory(model: nn.AnyMACH) -> dict[str, dict[str, int]]:
    """Returns the bytes that a model takes on each device. A quantized one only predicts, on the CPU."""
    if isinstance(model, nn.MACH):
        return {device: training.expected_memory(model, device=device) for device in ("cpu", "cuda")}
    memory = training.expected_memory(model)
    return {"cpu": {name: size for name, size in memory.items() if not name.startswith("training")}}

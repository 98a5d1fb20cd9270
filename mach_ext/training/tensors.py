"""The tensor file of a checkpoint: weights and the state of the optimiser, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mach_ext import optim
from mach_ext._dense_features import SCALING
from mach_ext._model_folder import Header, named_weights, read_tensors, safetensors_dtype
from mach_ext.nn import MACH
from mach_ext.training.checkpoint import CHECKPOINT
from mach_ext.training.companion import Companion
from mach_ext.training.optimizer import RowOptimizer


def run_tensors(
    model: MACH, optimizer: RowOptimizer, companion: Companion | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the optimiser's state by name, on the CPU: tensors and plain numbers."""
    tensors = {f"model.{name}": p.detach() for name, p in named_weights(model).items()}
    tensors |= {f"model.{name}": getattr(model, name) for name in SCALING if model.num_dense}
    if companion is not None:
        tensors |= {f"companion.{name}": tensor for name, tensor in companion.tensors().items()}
    scalars: dict[str, Any] = {}
    for i, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            key = f"optimizer.{i}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                scalars[key] = value
    return {key: value.cpu() for key, value in tensors.items()}, scalars


def load_run_tensors(
    file: Path,
    record: dict[str, Any],
    model: MACH,
    optimizer: RowOptimizer,
    companion: Companion | None = None,
) -> None:
    """Load weights and optimiser state of a checkpoint, after a check that they belong to this run."""
    expected, scalars = _expected_tensors(model, optimizer), record["scalars"]
    of_companion = {} if companion is None else companion.expected()
    needed = set() if companion is None else set(companion.weights())

    def check(header: Header) -> None:
        prefix = "companion."
        others = {k.removeprefix(prefix): entry for k, entry in header.items() if k.startswith(prefix)}
        header = {k: entry for k, entry in header.items() if not k.startswith(prefix)}
        if not needed <= others.keys() or others != {k: of_companion.get(k) for k in others}:
            raise ValueError(f"{file}: not the tensors of a checkpoint: wrong names, dtypes or shapes")
        kept = {name for name in expected if name in header or name.startswith("model.")}
        # The state of a parameter is complete, or it is absent because there was no step yet.
        owners = {name.rpartition(".")[0] for name in (*kept, *scalars) if name.startswith("optimizer.")}
        kept |= {name for name in expected if name.rpartition(".")[0] in owners}
        if header != {name: expected[name] for name in kept if expected[name] is not None}:
            raise ValueError(f"{file}: not the tensors of a checkpoint: wrong names, dtypes or shapes")
        if scalars.keys() != {name for name in kept if expected[name] is None}:
            names = ", ".join(sorted(scalars)) or "none"
            raise ValueError(f"{file}: not the tensors of a checkpoint: wrong scalars, got {names}")

    digest = record.get("tensors_sha256")
    try:
        tensors = read_tensors(file, "not the tensors of a checkpoint", check, digest)
    except FileNotFoundError:
        missing = f"a file that it names is missing: {file}: no such file"
        raise ValueError(f"{file.with_name(CHECKPOINT)}.json: {missing}") from None
    state = optimizer.state_dict()
    for key, value in {**tensors, **scalars}.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            i, _, entry = rest.partition(".")
            state["state"].setdefault(int(i), {})[entry] = value
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model.load_parameters(weights)
    optimizer.load_state_dict(state)
    if companion is not None:
        prefix = "companion."
        companion.load({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def _expected_tensors(model: MACH, optimizer: RowOptimizer) -> dict[str, tuple[str, tuple[int, ...]] | None]:
    """Return dtype and shape of everything that a checkpoint may hold, by name. Numbers have None."""
    expected: dict[str, tuple[str, tuple[int, ...]] | None] = {}
    for name, parameter in named_weights(model).items():
        expected[f"model.{name}"] = (safetensors_dtype(parameter), tuple(parameter.shape))
    for name in SCALING if model.num_dense else ():
        expected[f"model.{name}"] = ("F32", tuple(getattr(model, name).shape))
    groups = optimizer.param_groups
    for i, parameter in enumerate(p for group in groups for p in group["params"]):
        for moment in optimizer._moments:
            expected[f"optimizer.{i}.{moment}"] = (safetensors_dtype(parameter), tuple(parameter.shape))
        if isinstance(optimizer, optim.SparseAdam):
            expected[f"optimizer.{i}.step"] = None
    return expected

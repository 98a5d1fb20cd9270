"""The tensor files of a checkpoint: weights and the state of the optimiser, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mach_ext import optim
from mach_ext._dense_features import SCALING
from mach_ext._model_folder import (
    Header,
    named_weights,
    parameter_shapes,
    safetensors_dtype,
)
from mach_ext._model_folder.extents import (
    Extent,
    Shape,
    Shard,
    check_shards,
    cut_of,
    part_shapes,
    shard_of,
    whole_extent,
)
from mach_ext._model_folder.record import scaling_shapes
from mach_ext._model_folder.shards import read_part
from mach_ext.distributed.part import ModelPart
from mach_ext.training.checkpoint import CHECKPOINT
from mach_ext.training.companion import Companion
from mach_ext.training.optimizer import RowOptimizer

_WHAT = "not the tensors of a checkpoint"


def run_tensors(
    part: ModelPart, optimizer: RowOptimizer, companion: Companion | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the optimiser's state by name, on the CPU: tensors and plain numbers.

    Tensors that no rank holds a part of are those of the first rank.
    """
    model = part.model
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
    if not part.extent.is_first:
        weights, configuration = _Weights(part, optimizer), part.configuration()
        tensors = {k: value for k, value in tensors.items() if weights.cut(k, configuration) is not None}
    return {key: value.cpu() for key, value in tensors.items()}, scalars


def load_run_tensors(
    folder: Path,
    record: dict[str, Any],
    part: ModelPart,
    optimizer: RowOptimizer,
    companion: Companion | None = None,
) -> None:
    """Load weights and optimiser state of a checkpoint, after a check that they belong to this run.

    However the files are cut, each rank gets its own part.
    """
    weights, scalars = _Weights(part, optimizer), record["scalars"]
    of_companion = {} if companion is None else companion.expected()
    needed = set() if companion is None else set(companion.weights())

    def check(file: Path, header: Header, extent: Extent) -> None:
        prefix = "companion."
        others = {k.removeprefix(prefix): entry for k, entry in header.items() if k.startswith(prefix)}
        header = {k: entry for k, entry in header.items() if not k.startswith(prefix)}
        if not needed <= others.keys() or others != {k: of_companion.get(k) for k in others}:
            raise ValueError(f"{file}: {_WHAT}: wrong names, dtypes or shapes")
        _check_header(file, header, weights.expected(extent), scalars)

    try:
        tensors = _read(folder, record, part, weights, check)
    except FileNotFoundError as error:
        missing = f"a file that it names is missing: {error.filename}: no such file"
        raise ValueError(f"{folder / CHECKPOINT}.json: {missing}") from None
    state = optimizer.state_dict()
    for key, value in {**tensors, **scalars}.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            i, _, entry = rest.partition(".")
            state["state"].setdefault(int(i), {})[entry] = value
    part.model.load_parameters(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    optimizer.load_state_dict(state)
    if companion is not None:
        prefix = "companion."
        companion.load({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def _read(folder: Path, record: dict[str, Any], part: ModelPart, weights: _Weights, check: Any) -> Any:
    """Read the tensors that belong to a part, from one file or from shards."""
    configuration = part.configuration()
    if isinstance(record["tensors"], str):
        whole = whole_extent(configuration)
        shards = [Shard(record["tensors"], record.get("tensors_sha256") or "", whole)]
    else:
        shards = [shard_of(entry) for entry in record["tensors"]]
        check_shards(f"{folder / CHECKPOINT}.json: not a checkpoint", shards, configuration)
    return read_part(folder, shards, _WHAT, check, configuration, part.extent, weights.cut)


def _check_header(
    file: Path, header: Header, expected: dict[str, tuple[str, Shape] | None], scalars: dict[str, Any]
) -> None:
    """Compare the header of a file with what it may hold."""
    kept = {name for name in expected if name in header or name.startswith("model.")}
    # The state of a parameter is complete, or it is absent because there was no step yet.
    owners = {name.rpartition(".")[0] for name in (*kept, *scalars) if name.startswith("optimizer.")}
    kept |= {name for name in expected if name.rpartition(".")[0] in owners}
    if header != {name: expected[name] for name in kept if expected[name] is not None}:
        raise ValueError(f"{file}: {_WHAT}: wrong names, dtypes or shapes")
    if scalars.keys() != {name for name in kept if expected[name] is None}:
        names = ", ".join(sorted(scalars)) or "none"
        raise ValueError(f"{file}: {_WHAT}: wrong scalars, got {names}")


class _Weights:
    """The weight that each tensor of a checkpoint belongs to, with its shape and how it is cut."""

    def __init__(self, part: ModelPart, optimizer: RowOptimizer) -> None:
        self.part, self.optimizer = part, optimizer
        names = {id(parameter): name for name, parameter in named_weights(part.model).items()}
        groups = optimizer.param_groups
        self.owners = [names[id(parameter)] for group in groups for parameter in group["params"]]

    def _owner(self, key: str) -> str:
        """Return the name of the weight of a tensor such as model.bucket_bias or optimizer.0.sum."""
        kind, _, rest = key.partition(".")
        return self.owners[int(rest.partition(".")[0])] if kind == "optimizer" else rest

    def cut(self, key: str, configuration: dict[str, Any]) -> tuple[int, str] | None:
        """Return how a tensor of a checkpoint is cut, as `cut_of` does."""
        return cut_of(self._owner(key), configuration)

    def expected(self, extent: Extent) -> dict[str, tuple[str, Shape] | None]:
        """Return dtype and shape of everything that a file of an extent may hold. Numbers have None."""
        configuration, model = self.part.configuration(), self.part.model
        whole = parameter_shapes(configuration) | scaling_shapes(configuration)
        shapes = part_shapes(whole, configuration, extent)
        dtypes = {name: safetensors_dtype(weight) for name, weight in named_weights(model).items()}
        dtypes |= {name: "F32" for name in SCALING if model.num_dense}
        expected: dict[str, tuple[str, Shape] | None]
        expected = {f"model.{name}": (dtypes[name], shape) for name, shape in shapes.items()}
        for i, name in enumerate(self.owners):
            for moment in self.optimizer._moments if name in shapes else ():
                expected[f"optimizer.{i}.{moment}"] = (dtypes[name], shapes[name])
            if isinstance(self.optimizer, optim.SparseAdam):
                expected[f"optimizer.{i}.step"] = None
        return expected

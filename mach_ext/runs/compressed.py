"""A small copy of a run: its model with rounded weights, and the effect on the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mach_ext import data, nn, training
from mach_ext.runs import evaluation, record
from mach_ext.runs.arguments import spell
from mach_ext.runs.files import check_folder, check_utf8, name_errors
from mach_ext.runs.metrics_file import write_metrics


def checked_step(step: float | None, precision: str) -> float | None:
    """Returns the quantization step of a copy. None: its weights will have 8 bits.

    Raises:
        ValueError: The precision is unknown, or a step is given for int8.
    """
    if precision not in ("float32", "int8"):
        argument = spell("precision", "compress")
        raise ValueError(f"{argument} must be one of float32, int8, got {precision!r}")
    if precision == "float32":
        return nn.STEP if step is None else step
    if step is not None:
        raise ValueError(f"compress: int8 has no step, got {spell('quantization_step')} {step!r}")
    return None


def copy_folder(folder: Path, output: Path | None, is_int8: bool = False) -> Path:
    """Returns the folder of a run's copy: `output`, or a folder beside the run.

    Raises:
        ValueError: It is the run's own folder or that of a training.
        OSError: It cannot be written to.
    """
    output = output or folder.resolve().with_name(f"{folder.resolve().name}-{'int8' if is_int8 else 'small'}")
    argument = spell("output", "compress")
    check_folder(argument, output)
    check_utf8(argument, output)
    if output.resolve() == folder.resolve():
        raise ValueError(f"{argument} must be another folder than the model's, got {output}")
    if training.has_checkpoint(output):
        raise ValueError(f"{argument} must not be the folder of a training run, got {output}")
    return output


def save_copy(model: nn.MACH, output: Path, quantization_step: float | None, overwrite: bool) -> None:
    """Writes the model with rounded weights. None: with weights of 8 bits.

    Raises:
        ValueError: The folder holds another run.
    """
    with name_errors(output), training.lock_run(output):
        if not overwrite:  # another run may have ended in this folder meanwhile
            record.refuse_to_replace(output, model)
        if quantization_step is None:
            nn.quantize(model).save(output)
        else:
            model.save(output, quantization_step)


@dataclass(frozen=True)
class Copy:
    """The small copy of a run.

    Attributes:
        folder: Its folder.
        model: The model as the folder has it.
        dataset, split: The data that it was measured on. None and "": nothing was measured.
        before, after: Size in "bytes" and metrics of the run and of the copy.
    """

    folder: Path
    model: nn.AnyMACH
    dataset: data.Dataset | None
    split: str
    before: dict[str, Any]
    after: dict[str, Any]

    def write_metrics(self) -> None:
        """Writes `metrics.json` of the copy, if it was measured."""
        if self.dataset is None:
            return
        results = {self.split: {name: value for name, value in self.after.items() if name != "bytes"}}
        file = self.folder / "metrics.json"
        write_metrics(file, self.folder, self.model, self.dataset, results, {}, {})


def measure(
    folder: Path,
    model: nn.AnyMACH,
    dataset: data.Dataset | None,
    split: str,
    propensity: tuple[float, float] | None,
) -> dict[str, Any]:
    """Returns the size of a model's files in "bytes" and, with a dataset, its metrics."""
    files = (folder / name for name in {"model.json", *nn.files_of(folder)})
    result = {} if dataset is None else evaluation.evaluate(model, dataset, split, propensity=propensity)
    return {"bytes": sum(file.stat().st_size for file in files), **result}

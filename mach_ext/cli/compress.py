"""`mach-ext compress`: a small copy of a run's model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from mach_ext._terminal import one_line
from mach_ext.cli import values
from mach_ext.cli.options import (
    NEWEST_RUN,
    OWN_BASE,
    OWN_ENCODER,
    OWN_PROPENSITY,
    SPLITS,
    Device,
    ModelPath,
    OtherDataset,
    Output,
    Overwrite,
    Propensity,
    Quiet,
    RunEncoder,
    SvmlightBase,
    choice,
    option,
)
from mach_ext.cli.tables import show_table
from mach_ext.cli.values import derived

EXAMPLE = "mach-ext compress --precision int8"

CopyPrecision = Annotated[
    str,
    choice(
        "--precision", choices=("float32", "int8"), metavar="TYPE", panel="Model",
        help="The type of the weights. float32 makes the smallest file. int8 also saves memory and predicts "
        "faster on the CPU.",
    ),
]  # fmt: skip
Step = Annotated[
    float | None,
    option(
        "--step", parse=values.above_0, metavar="STEP", panel="Model",
        help="In float32 weights of features are rounded to multiples of this step, other weights to 1/64 of "
        "it. A smaller step makes a larger and more exact file.",
    ),
]  # fmt: skip
Split = Annotated[
    str,
    choice(
        "--split", choices=(*SPLITS, "none"), metavar="SPLIT",
        help="The split on which both are measured: train, dev, test or none.",
    ),
]  # fmt: skip


def run(
    model_path: ModelPath = NEWEST_RUN,
    text_encoder: RunEncoder = OWN_ENCODER,
    precision: CopyPrecision = "float32",
    step: Step = derived("0.5 in float32"),
    split: Split = "test",
    dataset: OtherDataset = derived("the run's own"),
    svmlight_base: SvmlightBase = OWN_BASE,
    propensity: Propensity = OWN_PROPENSITY,
    output: Output = derived("<run>-small or <run>-int8"),
    overwrite: Overwrite = False,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Write a copy of a run whose model file is about ten times smaller, or whose model has 8 bits.

    The weights are rounded, and every command takes the copy as it takes the run. Bytes and metrics of both
    are shown. In float32 only the file is small. In int8 the file takes a quarter, and so do the weights in
    memory.
    """
    from mach_ext import runs
    from mach_ext.cli.results import all_done
    from mach_ext.runs.compressed import checked_step, copy_folder
    from mach_ext.runs.folders import newest_run

    folder = model_path or newest_run()
    step = checked_step(step, precision)
    copy_folder(folder, output, step is None)
    copy = runs.Run.open(folder, device, text_encoder=text_encoder, progress=not quiet).make_copy(
        output,
        step,
        None if split == "none" else split,
        dataset=dataset,
        propensity=propensity,
        svmlight_base=svmlight_base,
        overwrite=overwrite,
    )
    measured = "" if copy.dataset is None else split
    with all_done() as then:
        then(_show_sizes, measured, folder, copy.before, copy.folder, copy.after)
        then(copy.write_metrics)


def _show_sizes(
    split: str, folder: Path, before: dict[str, Any], output: Path, after: dict[str, Any]
) -> None:
    rows = [[split, one_line(folder.name), one_line(output.name)]]
    rows.append(["bytes", f"{before['bytes']:,}", f"{after['bytes']:,}"])
    for name in (name for name in before if name not in ("bands", "propensity", "bytes")):
        rows.append([name, f"{before[name]:.4f}", f"{after[name]:.4f}"])
    show_table(rows, 10, 20)

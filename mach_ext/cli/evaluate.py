"""`mach-ext evaluate`: metrics of a run."""

from __future__ import annotations

from typing import Annotated

from mach_ext.cli.options import (
    NEWEST_RUN,
    OWN_BASE,
    OWN_ENCODER,
    OWN_PRECISION,
    OWN_PROPENSITY,
    Device,
    ModelPath,
    OtherDataset,
    Output,
    Precision,
    Propensity,
    Quiet,
    RunEncoder,
    Split,
    SvmlightBase,
    switch,
)
from mach_ext.cli.values import derived

EXAMPLE = "mach-ext evaluate --split test"

Neighbors = Annotated[
    bool,
    switch(
        "--neighbors", panel="Model",
        help="Rank the best 200 labels again, by the labels of the nearest training documents.",
    ),
]  # fmt: skip


def run(
    model_path: ModelPath = NEWEST_RUN,
    text_encoder: RunEncoder = OWN_ENCODER,
    neighbors: Neighbors = False,
    split: Split = "test",
    dataset: OtherDataset = derived("the run's own"),
    svmlight_base: SvmlightBase = OWN_BASE,
    propensity: Propensity = OWN_PROPENSITY,
    output: Output = derived("the run's folder"),
    device: Device = "cpu",
    quiet: Quiet = False,
    precision: Precision = OWN_PRECISION,
) -> None:
    """Measure a run: precision, nDCG, recall and their propensity-scored forms.

    Each metric comes for all labels, and for frequent and rare labels by themselves.
    """
    from mach_ext import nn, runs
    from mach_ext.cli.results import all_done, show_metrics
    from mach_ext.runs.arguments import spell
    from mach_ext.runs.evaluation import result_name
    from mach_ext.runs.files import check_folder

    if output is not None:
        check_folder(spell("output"), output)
    opened = runs.Run.open(model_path, device, text_encoder=text_encoder, progress=not quiet)
    result = opened.evaluate(
        split,
        dataset=dataset,
        neighbors=neighbors,
        propensity=propensity,
        svmlight_base=svmlight_base,
        output=output,
        save=False,
        precision=precision,
    )
    name = result_name(split, neighbors, nn.other_precision("evaluate", opened.model, precision))
    with all_done() as then:
        then(show_metrics, name, result)
        then(opened.save_metrics, {name: result}, dataset, svmlight_base, output)

"""`mach-ext explain`: which features give a document its labels, and why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mach_ext._terminal import one_line, show
from mach_ext.cli import values
from mach_ext.cli.options import (
    NEWEST_RUN,
    OWN_BASE,
    OWN_ENCODER,
    Device,
    ModelPath,
    OtherDataset,
    Output,
    Quiet,
    RunEncoder,
    Split,
    SvmlightBase,
    TopK,
    choice,
    option,
    switch,
)
from mach_ext.cli.predict import from_shell
from mach_ext.cli.values import derived

if TYPE_CHECKING:
    from mach_ext import runs

EXAMPLE = 'mach-ext explain --text "a large cat with a mane" --html page.html'

METHODS = ("exact", "gausslegendre")
SCORES = ("logit", "model")

SampleId = Annotated[
    int | None,
    option(
        "--sample-id", parse=values.natural, metavar="N",
        help="The number of a document in the run's dataset.",
    ),
]  # fmt: skip
Text = Annotated[str | None, option("--text", help="The document as text.")]
Label = Annotated[
    list[Any] | None,
    option(
        "--label", metavar="LABEL", panel="Model",
        help="A label to explain, by name or number. The option can be repeated.",
    ),
]  # fmt: skip
Method = Annotated[
    str | None,
    choice(
        "--method", choices=METHODS, metavar="METHOD", panel="Model",
        help="How the path integral is computed: exact or gausslegendre. With a text encoder, exact takes "
        "the embedding for a single feature, and gausslegendre explains the tokens of the text.",
    ),
]  # fmt: skip
Score = Annotated[
    str,
    choice(
        "--score", choices=SCORES, metavar="SCORE", panel="Model",
        help="The score that is explained. logit is the mean logit of the hash functions, and model is the "
        "score of predict.",
    ),
]  # fmt: skip
Steps = Annotated[
    int | None,
    option(
        "--n-steps", parse=values.steps, metavar="N", panel="Model",
        help="The number of steps of gausslegendre.",
    ),
]  # fmt: skip
Show = Annotated[
    int,
    option(
        "--show",
        parse=values.positive,
        metavar="N",
        panel="Output",
        help="The number of features of a label.",
    ),
]
Dimensions = Annotated[
    bool,
    switch(
        "--dimensions", panel="Output",
        help="Show each dimension of an embedding. Otherwise the tokens of the text are shown, or the "
        "embedding as a single feature.",
    ),
]  # fmt: skip
Html = Annotated[
    Path | None,
    option("--html", parse=values.path, metavar="FILE", panel="Output", help="Also write one HTML page."),
]


def run(
    ctx: typer.Context,
    text: Text = None,
    sample_id: SampleId = None,
    split: Split = "test",
    dataset: OtherDataset = derived("the run's own"),
    svmlight_base: SvmlightBase = OWN_BASE,
    model_path: ModelPath = NEWEST_RUN,
    text_encoder: RunEncoder = OWN_ENCODER,
    label: Label = None,
    k: TopK = derived("5, or all labels if there are fewer"),
    method: Method = derived("exact if it applies"),
    score: Score = "logit",
    n_steps: Steps = derived("as many as are needed, or 64 through a text encoder"),
    show: Show = 10,
    dimensions: Dimensions = False,
    html: Html = None,
    output: Output = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Explain why a document gets its labels: which words add to each score, and by how much.

    The votes of the hash functions and the labels that share their buckets are shown, too.
    """
    from mach_ext import runs
    from mach_ext.cli.results import all_done
    from mach_ext.runs.files import check_file, check_folder

    if text is not None and sample_id is not None:
        ctx.fail("--sample-id is not allowed with --text")
    if text is None and sample_id is None:
        ctx.fail("--text or --sample-id is required")
    if html is not None:
        check_file("--html", html)
    if output is not None:
        check_folder("--output", output)
    whole: dict[str, Any] = {"tokens": False} if dimensions else {}
    result = runs.Run.open(model_path, device, text_encoder=text_encoder, progress=not quiet).explain(
        None if text is None else from_shell(text, "--text 1"),
        sample_id=sample_id,
        split=split,
        dataset=dataset,
        labels=[from_shell(name, "--label") for name in label] if label else None,
        k=k,
        features=show,
        svmlight_base=svmlight_base,
        method=method,
        score=score,
        n_steps=n_steps,
        **whole,
    )
    if dimensions:
        result = result.by_dimension()
    with all_done() as then:
        then(_show_explanation, result, show)
        if output is not None:
            then(result.save_parts, output)
        if html is not None:
            then(result.to_html, html)
        if output is not None:
            then(result.to_html, output / "explanation.html")


def _show_explanation(result: runs.RunExplanation, rows: int) -> None:
    from mach_ext import nn, report

    explanation, voted, checks = result.explanation, result.votes, result.collisions
    title, true = result.document.title, result.document.true_labels
    joiners = "\u200c\u200d"  # not printable, but part of words
    text = "".join(c if c.isprintable() or c in joiners else " " for c in explanation.text or "")
    features = f"{len(explanation.bars.names)} features"
    show(f"{one_line(title)}: {report.shortened(text, 300) or features}")
    low, high = float(voted.logits.min()), float(voted.logits.max())
    scale, model_scale = nn.SCALES[explanation.scale], nn.SCALES[explanation.model_scale]
    steps = f"{explanation.n_steps} steps" if explanation.n_steps else "exact"
    for i, label in enumerate(explanation.labels.tolist()):
        right = "" if true is None else ("  (right)" if label in true else "  (wrong)")
        show(f"\n{one_line(explanation.label_names[i])}{right}")
        show(
            f"  score {explanation.scores[i]:+.3f} ({scale}), "
            f"of the baseline {explanation.baseline_scores[i]:+.3f}; "
            f"delta {explanation.delta[i]:.1e} ({steps})"
        )
        if scale != model_scale:
            show(f"  the model ranks by {explanation.model_scores[i]:+.3f} ({model_scale}), as predict shows")
        votes = f"{report.sparkline(voted.logits[i].tolist(), low, high)}  {voted.scores[i]:+.2f}"
        if not math.isnan(voted.standard_error[i]):
            votes += f" ± {voted.standard_error[i]:.2f}"
        verdict = checks[i].verdict
        if not math.isnan(checks[i].own_score):
            verdict += f", own score {checks[i].own_score:+.2f} ({model_scale})"
        show(f"  votes {votes}; {verdict}")
        if not math.isnan(voted.agreement[i]):
            agreement = report.chance(voted.agreement[i])
            show(f"  agreement of the hash functions that it is in the top {voted.k}: {agreement}")
        for line in report.attribution_lines(explanation, label, rows):
            show(line)

"""`mach-ext attack`: metrics of a run, clean and under attack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from mach_ext._terminal import one_line, show
from mach_ext.cli import values
from mach_ext.cli.options import (
    NEWEST_RUN,
    OWN_BASE,
    OWN_ENCODER,
    OWN_PROPENSITY,
    Device,
    ModelPath,
    OtherDataset,
    Output,
    Propensity,
    Quiet,
    RunEncoder,
    Seed,
    Split,
    SvmlightBase,
    TopK,
    choice,
    option,
    switch,
)
from mach_ext.cli.values import derived

EXAMPLE = "mach-ext attack --eps 0.01 --attack fgsm --report page.html"

METHODS = ("fgsm", "pgd", "delete", "insert", "words")
GOALS = ("untargeted", "own")

Attack = Annotated[
    str,
    choice(
        "--attack", choices=METHODS, metavar="METHOD", panel="Attack",
        help="fgsm takes one step and pgd takes several. delete removes words and insert adds words, of the "
        "sparse features alone. words deletes words of the texts, and all features follow.",
    ),
]  # fmt: skip
Eps = Annotated[
    Any,
    option(
        "--eps", parse=values.sizes_of_changes, metavar="E[,E2,...]", panel="Attack",
        help="The sizes of the change. For delete and words they are numbers of words. A single size is "
        "expanded to a curve of six.",
    ),
]  # fmt: skip
Threat = Annotated[
    str | None,
    option(
        "--threat", parse=values.threat, metavar="MODEL", panel="Attack",
        help="What may change. support: a document's own features. dense: all features. insert(M): M new "
        "features, too. Others are l2, l1 and delete. embedding and embedding(l2): dense features alone.",
    ),
]  # fmt: skip
Signed = Annotated[bool, switch("--signed", panel="Attack", help="Let values fall below 0.")]
Goal = Annotated[
    str,
    choice(
        "--goal", choices=GOALS, metavar="GOAL", panel="Attack",
        help="untargeted raises the loss of the true labels, and own that of the model's own labels.",
    ),
]  # fmt: skip
Targeted = Annotated[
    bool,
    switch(
        "--targeted", panel="Attack",
        help="Also count how often a right label leaves the top k, and how often a wrong label enters.",
    ),
]  # fmt: skip
Steps = Annotated[
    int, option("--steps", parse=values.positive, metavar="N", panel="Attack", help="The steps of pgd.")
]
Sample = Annotated[
    int | None,
    option("--sample", parse=values.positive, metavar="N", help="Attack only the first N documents."),
]
Transfer = Annotated[
    Path | None,
    option(
        "--transfer", parse=values.path, metavar="DIR", panel="Attack",
        help="Another run, which is measured on the same changed documents.",
    ),
]  # fmt: skip
Certify = Annotated[
    bool,
    switch(
        "--certify", panel="Attack",
        help="Also compute the part of P@k that no change of this threat model can take away.",
    ),
]  # fmt: skip
Report = Annotated[
    Path | None,
    option("--report", parse=values.path, metavar="FILE", panel="Output", help="Also write one HTML page."),
]


def run(
    model_path: ModelPath = NEWEST_RUN,
    text_encoder: RunEncoder = OWN_ENCODER,
    k: TopK = derived("5, or what the model has"),
    split: Split = "test",
    sample: Sample = derived("all"),
    dataset: OtherDataset = derived("the run's own"),
    svmlight_base: SvmlightBase = OWN_BASE,
    propensity: Propensity = OWN_PROPENSITY,
    method: Attack = "fgsm",
    eps: Eps = derived("0.01, or 1,2,3 for delete and words"),
    threat: Threat = derived("support, or the one of delete or insert"),
    signed: Signed = False,
    goal: Goal = "untargeted",
    targeted: Targeted = False,
    steps: Steps = 10,
    transfer: Transfer = None,
    certify: Certify = False,
    report: Report = None,
    output: Output = derived("the run's folder"),
    device: Device = "cpu",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Measure a run under attack: small changes of documents that are chosen to mislead the model.

    The table has P@k and nDCG@k without a change and for each size of the change.
    """
    from mach_ext import runs
    from mach_ext.cli.results import all_done
    from mach_ext.runs.files import check_file, check_folder
    from mach_ext.runs.metrics_file import output_folder

    if output is not None:
        check_folder("--output", output)
    if report is not None:
        check_file("--report", report)
    opened = runs.Run.open(model_path, device, text_encoder=text_encoder, progress=not quiet)
    result = opened.attack(
        method, epsilons=eps, threat_model=threat, dataset=dataset, transfer=transfer,
        svmlight_base=svmlight_base, output=output, progress=not quiet, save=False, signed=signed, goal=goal,
        targeted=targeted, k=k, steps=steps, seed=seed, split=split, sample=sample, certify=certify,
        propensity=propensity,
    )  # fmt: skip
    folder = output_folder(output, opened.folder)
    with all_done() as then:
        then(_show_attack, result.title, result.result, result.settings.sizes)
        then(result.write_record, folder)
        then(opened.add_attack, result, dataset is None, output)
        then(result.write_chart, folder)
        if report is not None:
            then(result.to_html, report)


def _show_attack(title: str, result: dict[str, Any], sizes: Sequence[float]) -> None:
    from mach_ext import report

    threat = "" if result["attack"] == "words" else f"threat model {result['threat_model']}, "
    show(
        f"{one_line(title)}: {result['attack']}, {threat}"
        f"goal {result['goal']}, {result['documents']:,} documents"
    )
    if "documents_per_second" in result:
        speed = f"{result['documents_per_second']:,.1f} documents a second"
        show(f"Words of the texts are deleted, and all features follow ({speed}).")
    if "unchanged" in result:
        show(f"The {result['unchanged']} stay as they are.")
    names = [name for name in result["clean"] if not name.endswith("interval")]
    show(f"\n{'eps':>10}" + "".join(f"{name:>9}" for name in names) + f"{'|change|':>10}{'added':>9}")
    for entry in result["adversarial"]:
        size = entry["size"]
        rows = [("metrics", f"{entry['epsilon']:g}"), ("random", "noise"), ("transfer", "transfer"),
                ("certified", "certified")]  # fmt: skip
        for key, label in rows:
            if key not in entry or (key in ("random", "certified") and not entry["epsilon"]):
                continue
            cells = "".join(f"{entry[key][name]:>9.4f}" for name in names if name in entry[key])
            change = f"{size['l2']:.4f}" if size["l2"] < 1e4 else f"{size['l2']:.3g}"
            tail = f"{change:>10}{size['added']:>9.1f}" if key == "metrics" else ""
            show(
                f"{label:>10}{cells}{tail}"
                + ("  <-" if key == "metrics" and entry["epsilon"] in sizes else "")
            )
    for name, (low, high) in result.get("certified_zero", {}).items():
        reached = f"is above 0 up to eps {low:g}" if high is None else f"reaches 0 at eps {high:.2g}"
        show(f"certified {name} {reached}")
    for entry in result["adversarial"]:
        if entry["epsilon"] in sizes:
            for name in names:
                if "interval" not in name and f"{name} interval" in entry["metrics"]:
                    low, high = entry["metrics"][f"{name} interval"]
                    clean = result["clean"][name]
                    show(
                        f"eps {entry['epsilon']:g}: {name} {clean:.4f} -> {entry['metrics'][name]:.4f} "
                        f"[{low:.4f}, {high:.4f}], noise {entry['random'][name]:.4f}"
                    )
            if "certified" in entry:
                low, high = entry["certified"]["robust P@1"]
                show(
                    f"eps {entry['epsilon']:g}: robust P@1 is in [{low:.4f}, {high:.4f}]: proven, and left "
                    "by changes found and tried"
                )
            for goal, rates in entry.get("targeted", {}).items():
                what = "right label out of" if goal == "positive" else "wrong label into"
                cells = ", ".join(
                    f"{band} {report.percent(rate['success'])} of {rate['documents']:,}"
                    for band, rate in rates.items() if rate["documents"]
                )  # fmt: skip
                cells = cells or "no document has one to aim at"
                show(f"eps {entry['epsilon']:g}: {what} the top {result['k']}: {cells}")

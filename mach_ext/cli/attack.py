"""`mach-ext attack`: metrics of a run, clean and under attack."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mach_ext import attack, report, runs
from mach_ext._terminal import one_line, show
from mach_ext.cli.options import (
    add_model_path,
    add_propensity,
    add_reader_options,
    nonempty,
    path,
    positive,
    sizes_of_changes,
    threat,
)
from mach_ext.cli.results import all_done
from mach_ext.runs.adversarial import GOALS
from mach_ext.runs.files import check_file, check_folder
from mach_ext.runs.metrics_file import output_folder


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_path(parser)
    parser.add_argument("--dataset", type=nonempty, default=None, help="other data than the run's own")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test", help="(test)")
    parser.add_argument(
        "--eps", type=sizes_of_changes, default=None, metavar="E[,E2,...]",
        help="sizes (0.01); of delete: how many words (1,2,3); one size is shown within a curve of six",
    )  # fmt: skip
    parser.add_argument(
        "--attack", choices=attack.METHODS, default="fgsm",
        help="one step, several steps, words removed, words added (fgsm)",
    )  # fmt: skip
    parser.add_argument(
        "--threat", type=threat, default=None, metavar="MODEL",
        help="what may change: support (a document's own features; the default), dense (all), insert(M) "
        "(M new features, too), l2, l1, delete",
    )  # fmt: skip
    parser.add_argument("--signed", action="store_true", default=False, help="values may fall below 0")
    parser.add_argument(
        "--goal", choices=GOALS, default="untargeted",
        help="the loss of the true labels rises, or of the model's own (untargeted)",
    )  # fmt: skip
    parser.add_argument(
        "--targeted", action="store_true", default=False,
        help="also: how often a right label leaves the top k, and a wrong one enters",
    )  # fmt: skip
    parser.add_argument(
        "--k", "--top-k", type=positive, default=None,
        help="of metrics and goals (5; with fewer labels all, or all but one with --targeted)",
    )  # fmt: skip
    parser.add_argument("--steps", type=positive, default=10, help="of pgd (10)")
    parser.add_argument("--sample", type=positive, default=None, metavar="N", help="the first N documents")
    parser.add_argument("--transfer", type=path, default=None, metavar="DIR", help="another run, asked too")
    parser.add_argument(
        "--certify", action="store_true", default=False,
        help="also: the part of P@k that no change of this threat model can take away",
    )  # fmt: skip
    parser.add_argument("--report", type=path, default=None, metavar="FILE", help="one HTML page")
    add_reader_options(parser)
    add_propensity(parser)


def run(args: Any) -> None:
    """Attacks a split, and shows and writes the metrics."""
    if args.output is not None:
        check_folder("--output", args.output)
    if args.report is not None:
        check_file("--report", args.report)
    run = runs.Run.open(args.model_path, args.device)
    result = run.attack(
        args.attack,
        epsilons=args.eps,
        threat_model=args.threat,
        dataset=args.dataset,
        transfer=args.transfer,
        svmlight_base=args.svmlight_base,
        output=args.output,
        progress=not args.quiet,
        save=False,
        signed=args.signed,
        goal=args.goal,
        targeted=args.targeted,
        k=args.k,
        steps=args.steps,
        seed=args.seed,
        split=args.split,
        sample=args.sample,
        certify=args.certify,
        propensity=args.propensity,
    )
    output = output_folder(args.output, run.folder)
    with all_done() as then:
        then(_show_attack, result.title, result.result, result.settings.sizes)
        then(result.write_record, output)
        then(run.add_attack, result, args.dataset is None, args.output)
        then(result.write_chart, output)
        if args.report is not None:
            then(result.to_html, args.report)


def _show_attack(title: str, result: dict[str, Any], sizes: Sequence[float]) -> None:
    show(
        f"{one_line(title)}: {result['attack']}, threat model {result['threat_model']}, "
        f"goal {result['goal']}, {result['documents']:,} documents"
    )
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

"""`mach-ext explain`: which features give a document its labels, and why."""

from __future__ import annotations

import argparse
import math
from typing import Any

from mach_ext import explain, nn, report, runs
from mach_ext._terminal import one_line, show
from mach_ext.cli.options import add_model_path, add_reader_options, natural, nonempty, path, positive, steps
from mach_ext.cli.predict import from_shell
from mach_ext.cli.results import all_done
from mach_ext.runs.files import check_file, check_folder


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_path(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--sample-id", type=natural, metavar="N", help="a document of the run's dataset")
    source.add_argument("--text", default=None, help="a document as text")
    parser.add_argument(
        "--split", choices=("train", "dev", "test"), default="test", help="of the sample (test)"
    )
    parser.add_argument("--dataset", type=nonempty, default=None, help="other data than the run's own")
    parser.add_argument(
        "--label", action="append", default=None, help="name or number; may be repeated (default: the top k)"
    )
    parser.add_argument(
        "--k", "--top-k", type=positive, default=None,
        help="labels explained, and the top k that is meant by ranks (5, or all where there are fewer)",
    )  # fmt: skip
    parser.add_argument("--method", choices=explain.METHODS, default=None, help="(exact where it holds)")
    parser.add_argument(
        "--score", choices=explain.SCORES, default="logit",
        help="what is explained: logit, the mean of the hash functions' logits, or model, the score that "
        "predict shows; they differ where the model's --merge is not mean_logit (logit)",
    )  # fmt: skip
    parser.add_argument("--n-steps", type=steps, default=None, help="of gausslegendre (as it needs)")
    parser.add_argument("--show", type=positive, default=10, metavar="N", help="features a label (10)")
    parser.add_argument("--html", type=path, default=None, metavar="FILE", help="also as one HTML page")
    add_reader_options(parser)


def run(args: Any) -> None:
    """Explains one document, and shows and writes the explanation."""
    if args.html is not None:
        check_file("--html", args.html)
    if args.output is not None:
        check_folder("--output", args.output)
    result = runs.Run.open(args.model_path, args.device).explain(
        None if args.text is None else from_shell(args.text, "--text 1"),
        sample_id=args.sample_id,
        split=args.split,
        dataset=args.dataset,
        labels=None if args.label is None else [from_shell(label, "--label") for label in args.label],
        k=args.k,
        features=args.show,
        svmlight_base=args.svmlight_base,
        method=args.method,
        score=args.score,
        n_steps=args.n_steps,
    )
    with all_done() as then:
        then(_show_explanation, result, args.show)
        if args.output is not None:
            then(result.save_parts, args.output)
        if args.html is not None:
            then(result.to_html, args.html)
        if args.output is not None:
            then(result.to_html, args.output / "explanation.html")


def _show_explanation(result: runs.RunExplanation, rows: int) -> None:
    explanation, voted, checks = result.explanation, result.votes, result.collisions
    title, true = result.document.title, result.document.true_labels
    joiners = "\u200c\u200d"  # of letters: not printable, but part of words
    text = "".join(c if c.isprintable() or c in joiners else " " for c in explanation.text or "")
    show(f"{one_line(title)}: {report.shortened(text, 300) or f'{len(explanation.features)} features'}")
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

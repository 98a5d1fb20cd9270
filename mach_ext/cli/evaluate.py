"""`mach-ext evaluate`: metrics of a run."""

from __future__ import annotations

import argparse
from typing import Any

from mach_ext import runs
from mach_ext.cli.options import add_model_path, add_propensity, add_reader_options, nonempty
from mach_ext.cli.results import all_done, show_metrics
from mach_ext.runs.arguments import spell
from mach_ext.runs.files import check_folder


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_path(parser)
    parser.add_argument("--dataset", type=nonempty, default=None, help="other data than the run's own")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test", help="(test)")
    parser.add_argument(
        "--neighbors", action="store_true", default=False,
        help=f"re-rank the best {runs.CANDIDATES} labels by those of the nearest documents of train "
        "(models that rank by mean_logit)",
    )  # fmt: skip
    add_reader_options(parser)
    add_propensity(parser)


def run(args: Any) -> None:
    """Measures a split, shows the metrics and writes them."""
    if args.output is not None:
        check_folder(spell("output"), args.output)
    run = runs.Run.open(args.model_path, args.device)
    result = run.evaluate(
        args.split,
        dataset=args.dataset,
        neighbors=args.neighbors,
        propensity=args.propensity,
        svmlight_base=args.svmlight_base,
        output=args.output,
        save=False,
    )
    name = f"{args.split}+neighbors" if args.neighbors else args.split
    with all_done() as then:
        then(show_metrics, name, result)
        then(run.save_metrics, {name: result}, args.dataset, args.svmlight_base, args.output)

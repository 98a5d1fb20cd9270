"""`mach-ext compress`: a small copy of a run's model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mach_ext import nn, runs
from mach_ext._terminal import one_line, show
from mach_ext.cli.options import (
    above_0,
    add_model_path,
    add_overwrite,
    add_propensity,
    add_reader_options,
    nonempty,
)
from mach_ext.cli.results import all_done
from mach_ext.runs.compressed import copy_folder
from mach_ext.runs.run import newest_run


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes a copy of a run's model whose weights are rounded and zlib's, by default beside the run as "
        "<run>-small, and shows bytes and metrics of both. Every command takes it as it is. Only the file is "
        "small: in memory the copy is as large as the model."
    )
    add_model_path(parser)
    parser.add_argument(
        "--step", type=above_0, default=nn.STEP,
        help="weights of features become multiples of it, of hidden units of step / 64 "
        f"({nn.STEP}; less: closer, more bytes)",
    )  # fmt: skip
    parser.add_argument("--dataset", type=nonempty, default=None, help="other data than the run's own")
    parser.add_argument(
        "--split", choices=("train", "dev", "test", "none"), default="test", help="asked of both (test)"
    )
    add_overwrite(parser)
    add_reader_options(parser)
    add_propensity(parser)


def run(args: Any) -> None:
    """Writes the copy, and shows bytes and metrics of both."""
    folder = args.model_path or newest_run()
    copy_folder(folder, args.output)
    copy = runs.Run.open(folder, args.device).make_copy(
        args.output,
        args.step,
        None if args.split == "none" else args.split,
        dataset=args.dataset,
        propensity=args.propensity,
        svmlight_base=args.svmlight_base,
        overwrite=args.overwrite,
    )
    with all_done() as then:
        then(
            _show_sizes,
            "" if copy.dataset is None else args.split,
            folder,
            copy.before,
            copy.folder,
            copy.after,
        )
        then(copy.write_metrics)


def _show_sizes(
    split: str, folder: Path, before: dict[str, Any], output: Path, after: dict[str, Any]
) -> None:
    show(f"{split:<10}{one_line(folder.name):>20}{one_line(output.name):>20}")
    show(f"{'bytes':<10}{before['bytes']:>20,}{after['bytes']:>20,}")
    for name in (name for name in before if name not in ("bands", "propensity", "bytes")):
        show(f"{name:<10}{before[name]:>20.4f}{after[name]:>20.4f}")

"""`mach-ext data`: shows, fetches and converts datasets."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mach_ext import data
from mach_ext._terminal import escaped, say, show
from mach_ext.cli.options import add_reader_options, nonempty
from mach_ext.runs.dataset import sizes
from mach_ext.runs.files import check_folder, name_errors
from mach_ext.runs.trainer import load_dataset


def add_actions(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "show, fetch or convert datasets"
    parser = commands.add_parser("data", help=text, description=text)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, run, text in (
        ("info", _info, "counts of a dataset; without one, the names that are known"),
        ("fetch", _fetch, "download or build a dataset into the data folder ($MACH_DATA)"),
        ("convert", _convert, "write a dataset in another format"),
    ):
        action = actions.add_parser(name, help=text, description=text, parents=[common])
        action.set_defaults(run=run)
        action.add_argument(
            "--dataset", type=nonempty, required=name != "info", default=None, help="a name or a folder"
        )
        if name != "fetch":
            add_reader_options(action)
        if name == "convert":
            action.add_argument("--format", choices=("npz", "xmc"), default="npz", help="(npz)")
            action.add_argument(
                "--compression", choices=("", "gz", "xz", "bz2"), default="", help="of xmc (none)"
            )


def _info(args: Any) -> None:
    if args.dataset is None:
        show(f"data folder: {escaped(str(data.data_home()))}  ($MACH_DATA sets another)")
        for name in data.NAMES:
            show(f"  {name:<16}{'there' if (data.data_home() / name).is_dir() else 'not fetched'}")
        return
    show(json.dumps(load_dataset(args.dataset, svmlight_base=args.svmlight_base).info(), indent=2))


def _fetch(args: Any) -> None:
    show(escaped(str(data.fetch(data.known_name(args.dataset)))))


def _convert(args: Any) -> None:
    if args.output is None:
        raise ValueError("data convert: needs --output DIR, the folder to write")
    check_folder("--output", args.output)
    dataset = load_dataset(args.dataset, holdout=False, svmlight_base=args.svmlight_base)
    compression = f".{args.compression}" if args.compression else ""
    with name_errors(args.output):
        data.write_folder(args.output, dataset, format=args.format, compression=compression)
    say(f"{args.output}: {sizes(dataset)}")

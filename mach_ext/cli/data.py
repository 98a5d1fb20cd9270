"""`mach-ext data`: shows, fetches and converts datasets."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mach_ext._terminal import escaped, say, show
from mach_ext.cli import values
from mach_ext.cli.command import Command, Group, require_command
from mach_ext.cli.options import DATASETS, Output, SvmlightBase, choice, option, words
from mach_ext.cli.values import derived

FORMATS = ("npz", "xmc")
COMPRESSIONS = ("gz", "xz", "bz2")

Data = option(
    "--dataset", parse=values.nonempty, metavar="DATA", complete=words(DATASETS), help="A name or a folder."
)
Base = derived("1 if no file has a feature 0")
Format = Annotated[
    str, choice("--format", choices=FORMATS, metavar="FORMAT", panel="Output", help="npz or xmc.")
]
Compression = Annotated[
    str,
    choice(
        "--compression", choices=("", *COMPRESSIONS), metavar="TYPE", panel="Output",
        help="Compress the files of the xmc format: gz, xz or bz2.",
    ),
]  # fmt: skip

app = typer.Typer(
    cls=Group,
    help="Show, fetch or convert datasets.",
    epilog="Example: mach-ext data info",
    subcommand_metavar="COMMAND [ARGS]...",
    invoke_without_command=True,
)
app.callback()(require_command)


def _example(text: str) -> str:
    return f"Example: mach-ext data {text}"


@app.command("info", cls=Command, epilog=_example("info --dataset wordnet"))
def info(
    dataset: Annotated[str | None, Data] = None,
    svmlight_base: SvmlightBase = Base,
) -> None:
    """Show the counts of a dataset. Without a dataset, show the names that are known."""
    from mach_ext import data
    from mach_ext.runs.trainer import load_dataset

    if dataset is None:
        show(f"data folder: {escaped(str(data.data_home()))}  ($MACH_DATA sets another)")
        for name in data.NAMES:
            show(f"  {name:<16}{'there' if (data.data_home() / name).is_dir() else 'not fetched'}")
        return
    show(json.dumps(load_dataset(dataset, svmlight_base=svmlight_base).info(), indent=2))


@app.command("fetch", cls=Command, epilog=_example("fetch --dataset wordnet"))
def fetch(dataset: Annotated[str, Data]) -> None:
    """Download or build a dataset. It goes into the data folder, which $MACH_DATA names."""
    from mach_ext import data

    show(escaped(str(data.fetch(data.known_name(dataset)))))


@app.command("convert", cls=Command, epilog=_example("convert --dataset wordnet --format xmc --output texts"))
def convert(
    dataset: Annotated[str, Data],
    svmlight_base: SvmlightBase = Base,
    format: Format = "npz",
    compression: Compression = derived("none"),
    output: Output = None,
) -> None:
    """Write a dataset in another format."""
    from mach_ext import data
    from mach_ext.runs.dataset import sizes
    from mach_ext.runs.files import check_folder, name_errors
    from mach_ext.runs.trainer import load_dataset

    if output is None:
        raise ValueError("data convert: needs --output DIR, the folder to write")
    check_folder("--output", output)
    loaded = load_dataset(dataset, holdout=False, svmlight_base=svmlight_base)
    suffix = f".{compression}" if compression else ""
    with name_errors(output):
        data.write_folder(output, loaded, format=format, compression=suffix)
    say(f"{output}: {sizes(loaded)}")

"""Options that commands share, and how an option is declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mach_ext.cli import values

SPLITS = ("train", "dev", "test")
PRECISIONS = ("float32", "bfloat16", "int8")  # a copy of mach_ext.nn.PRECISIONS
DATASETS = (  # a copy of mach_ext.data.NAMES, whose import would load the whole library
    "wordnet", "eurlex-4k", "wiki10-31k", "amazoncat-13k", "amazon-670k", "wiki-500k", "amazon-3m",
)  # fmt: skip


def option(
    *names: str,
    help: str,
    parse: Callable[[str], Any] = str,
    metavar: str = "TEXT",
    panel: str = "Data",
    complete: Callable[[str], list[str]] | None = None,
    **settings: Any,
) -> Any:
    """Declares an option that takes a value.

    Args:
        *names: The spellings of the option. Messages use the first.
        help: The purpose of the option, in full sentences.
        parse: A parser of `mach_ext.cli.values`, which turns the text into the value.
        metavar: The placeholder of the value in the help.
        panel: The heading of the option in the help.
        complete: Returns the values that begin with a text, for a shell's completion.
        **settings: Further arguments of `typer.Option`.
    """
    return typer.Option(
        *names, help=help, parser=values.reader(parse), metavar=metavar, rich_help_panel=panel,
        autocompletion=complete, **settings,
    )  # fmt: skip


def choice(*names: str, choices: Sequence[str], help: str, metavar: str, panel: str = "Data") -> Any:
    """Declares an option that accepts only these words. Its help must name them."""
    return option(
        *names, help=help, parse=values.one_of(choices), metavar=metavar, panel=panel,
        complete=words(choices),
    )  # fmt: skip


def switch(name: str, *, help: str, panel: str) -> Any:
    """Declares a flag, which takes no value."""
    return typer.Option(name, help=help, rich_help_panel=panel)


def words(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Returns a function that completes the beginning of a word to these words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in choices if word.startswith(incomplete)]

    return complete


def _run_folders(incomplete: str) -> list[str]:
    """Returns the folders of runs that begin with a text, for a shell's completion."""
    folders = sorted(str(file.parent) for file in Path("runs").glob("*/model.json"))
    return [folder for folder in folders if folder.startswith(incomplete)]


ModelPath = Annotated[
    Path | None,
    option(
        "--model-path", parse=values.path, metavar="DIR", complete=_run_folders, panel="Model",
        help="The folder of the run.",
    ),
]  # fmt: skip
OtherDataset = Annotated[
    str | None,
    option(
        "--dataset", parse=values.nonempty, metavar="DATA", complete=words(DATASETS),
        help="Other data than the run's own: a name or a folder.",
    ),
]  # fmt: skip
Split = Annotated[
    str,
    choice("--split", choices=SPLITS, metavar="SPLIT", help="The split to measure: train, dev or test."),
]
SvmlightBase = Annotated[
    int | None,
    option(
        "--svmlight-base", parse=values.base, metavar="0|1", complete=words(("0", "1")),
        help="The number of the first feature in svmlight files.",
    ),
]  # fmt: skip
Propensity = Annotated[
    Any,
    option(
        "--propensity", parse=values.propensity, metavar="A,B",
        help="The constants A and B of the propensity-scored metrics, PSP and PSnDCG.",
    ),
]  # fmt: skip
TopK = Annotated[
    int | None,
    option("--k", "--top-k", parse=values.positive, metavar="K", help="The number of labels.", panel="Model"),
]
RunEncoder = Annotated[
    str | None,
    option(
        "--text-encoder", parse=values.nonempty, metavar="ENCODER", panel="Model",
        help="Where the run's text encoder is now: a folder, an installed package, or a name on the hub.",
    ),
]  # fmt: skip
Output = Annotated[
    Path | None,
    option("--output", parse=values.path, metavar="DIR", panel="Output", help="The folder to write to."),
]
Overwrite = Annotated[
    bool, switch("--overwrite", panel="Output", help="Replace the model that is in the folder.")
]
Device = Annotated[
    str,
    option(
        "--device", metavar="DEVICE", panel="Common", complete=words(("cpu", "cuda")),
        help="Where to compute: cpu, cuda or cuda:1.",
    ),
]  # fmt: skip
Threads = Annotated[
    int | None,
    option("--threads", parse=values.threads, metavar="N", panel="Common", help="The number of CPU threads."),
]
Seed = Annotated[
    int,
    option(
        "--seed", parse=values.seed, metavar="N", panel="Common",
        help="The seed of everything that is random. The same seed gives the same result.",
    ),
]  # fmt: skip
Precision = Annotated[
    str,
    choice(
        "--precision", choices=PRECISIONS, metavar="TYPE", panel="Model",
        help="The number type of the products: float32, bfloat16 for a GPU, or int8 for a faster CPU.",
    ),
]  # fmt: skip
Quiet = Annotated[bool, switch("--quiet", panel="Common", help="Show no progress bars.")]

NEWEST_RUN = values.derived("the newest in runs/")
OWN_PROPENSITY = values.derived("as the run keeps them")
OWN_ENCODER = values.derived("where it was at the training, if the run has one")
OWN_PRECISION = values.derived("float32, or int8 if the run has weights of 8 bits")
OWN_BASE = values.derived("as the model keeps it")

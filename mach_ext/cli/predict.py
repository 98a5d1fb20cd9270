"""`mach-ext predict`: the best labels of documents."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TextIO

import typer

from mach_ext._terminal import one_line, say
from mach_ext.cli import values
from mach_ext.cli.options import (
    NEWEST_RUN,
    OWN_BASE,
    OWN_ENCODER,
    OWN_PRECISION,
    SPLITS,
    Device,
    ModelPath,
    OtherDataset,
    Output,
    Precision,
    Quiet,
    RunEncoder,
    SvmlightBase,
    choice,
    option,
)
from mach_ext.cli.values import derived

if TYPE_CHECKING:
    from mach_ext import runs

EXAMPLE = 'mach-ext predict --text "a small dog kept as a pet" --k 5'

TEXT_FORMATS = ("text", "jsonl")
FORMATS = ("table", "tsv", "jsonl")

Text = Annotated[list[Any] | None, option("--text", help="A document as text. The option can be repeated.")]
Input = Annotated[
    Path | None,
    option(
        "--input", parse=values.path, metavar="FILE",
        help="A file of documents: .jsonl, .txt in XMC format, .svm or .npz, also compressed. A dash means "
        "standard input.",
    ),
]  # fmt: skip
Dense = Annotated[
    Path | None,
    option(
        "--dense", parse=values.path, metavar="FILE",
        help="The dense features of the documents, a .npy file with a row for each.",
    ),
]  # fmt: skip
Split = Annotated[
    str | None,
    choice(
        "--split", choices=SPLITS, metavar="SPLIT",
        help="The documents of a split of the run's dataset: train, dev or test.",
    ),
]  # fmt: skip
InputFormat = Annotated[
    str | None,
    choice(
        "--input-format", choices=TEXT_FORMATS, metavar="FORMAT",
        help="What a line of the input holds. text means a document, and a blank line is an empty document. "
        "jsonl means an object with a text, and blank lines are skipped.",
    ),
]  # fmt: skip
TopK = Annotated[
    int | None,
    option(
        "--k", "--top-k", parse=values.natural, metavar="K", panel="Model",
        help="The number of labels for a document.",
    ),
]  # fmt: skip
Format = Annotated[
    str | None,
    choice(
        "--format", choices=FORMATS, metavar="FORMAT", panel="Output",
        help="The form of the answers: table, tsv or jsonl. A document without known words has scores of nan "
        "in tsv and of null in jsonl.",
    ),
]  # fmt: skip


def run(
    ctx: typer.Context,
    text: Text = None,
    input: Input = derived("standard input"),
    split: Split = None,
    dataset: OtherDataset = derived("the run's own"),
    input_format: InputFormat = derived("by the file's name or the first line of standard input"),
    dense: Dense = derived("beside the input, as test.dense.npy is beside test.svm"),
    svmlight_base: SvmlightBase = OWN_BASE,
    model_path: ModelPath = NEWEST_RUN,
    text_encoder: RunEncoder = OWN_ENCODER,
    k: TopK = derived("5, or all labels if there are fewer"),
    format: Format = derived("table on a terminal, else tsv"),
    output: Output = derived("standard output"),
    device: Device = "cpu",
    precision: Precision = OWN_PRECISION,
    quiet: Quiet = False,
) -> None:
    """Predict the best labels of documents, by name, with their scores.

    The documents come from --text, --input, --split or standard input.
    """
    from mach_ext import nn, runs
    from mach_ext.distributed import current_ranks

    _check_source(ctx)
    if not (text or split or _is_named(input)) and not current_ranks().is_first:
        return  # Only the first process has the standard input.
    if format is None:
        format = "table" if output is None and sys.stdout.isatty() else "tsv"
    file = None if output is None else _output_file(output, format, input)
    opened = runs.Run.open(model_path, device, text_encoder=text_encoder, progress=not quiet)
    k = nn.checked_k("predict", k, opened.model.num_labels, least=0, name="--k")
    merge = opened.model.merge
    if format != "jsonl" and merge != "mean_logit":
        say(f"scores are on the scale of the model's merge: {nn.SCALES[merge]}")
    source = {
        "svmlight_base": svmlight_base,
        "dense": dense,
        **_source(text, input, split, dataset, input_format),
    }
    blocks = opened.iter_predict(k=k, precision=precision, **source)
    if file is not None:
        _write_file(file, format, merge, blocks, quiet)
        return
    write: Callable[[list[runs.Answer]], None]
    if format == "table":
        from mach_ext.cli.tables import Predictions

        write = Predictions(_titles(opened, source)).show
    else:
        write = _writer(sys.stdout, format, merge)
    _predict(blocks, write, sys.stdout, quiet=True)


def _is_named(input: Path | None) -> bool:
    """Returns whether the documents are in a file that has a name, and not on standard input."""
    return input is not None and str(input) != "-"


def _check_source(ctx: typer.Context) -> None:
    """Refuses more than one source of documents, and options that do not apply to the source."""
    given = [f"--{name}" for name in ("text", "input", "split") if ctx.params[name]]
    if len(given) > 1:
        ctx.fail(f"{given[1]} is not allowed with {given[0]}")
    if ctx.params["dataset"] is not None and ctx.params["split"] is None:
        raise ValueError("--dataset needs --split")
    if ctx.params["dense"] is not None and ctx.params["split"] is not None:
        raise ValueError("--dense is not for --split, whose files stand in the dataset")
    if ctx.params["input_format"] is not None and given not in ([], ["--input"]):
        raise ValueError("--input-format is for --input and standard input")


def _output_file(folder: Path, format: str, source: Path | None) -> Path:
    """Returns the file to write, after a check that it can be written."""
    from mach_ext.runs.files import check_file, check_folder

    if format == "table":
        raise ValueError("--format table is for the screen; with --output it must be tsv or jsonl")
    file = folder / f"predictions.{format}"
    check_folder("--output", folder)
    check_file("--output", file)
    if source is not None and file.exists() and source.exists() and file.samefile(source):
        raise ValueError(f"--output must not be where --input is read from, got {source}")
    return file


def _write_file(
    file: Path, format: str, scale: str, blocks: Iterator[list[runs.Answer]], quiet: bool
) -> None:
    from mach_ext.runs.files import atomic_file

    with (
        atomic_file(file) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace") as out,
    ):
        _predict(blocks, _writer(out, format, scale), out, quiet)
    say(f"predictions: {file}")


def _predict(
    blocks: Iterator[list[runs.Answer]], write: Callable[[list[runs.Answer]], None], out: TextIO, quiet: bool
) -> None:
    """Writes answers as they are computed."""
    from mach_ext._progress import tqdm
    from mach_ext.cli.results import remarks_afterwards

    with remarks_afterwards(), tqdm(unit="doc", disable=quiet, dynamic_ncols=True) as bar:
        for block in blocks:
            write(block)
            out.flush()  # the sender of these documents may be waiting for the answers
            bar.update(len(block))


def _writer(out: TextIO, format: str, scale: str) -> Callable[[list[runs.Answer]], None]:
    """Returns a function that writes a line for each document."""
    from mach_ext import data

    dump = json.dumps if _lacks_letters(out) else data.json_line
    number = 0

    def write(block: list[runs.Answer]) -> None:
        nonlocal number
        for answer in block:
            if format == "tsv":
                cells = (f"{one_line(best.label)}\t{best.score:.6g}" for best in answer.labels)
                out.write("\t".join(cells) + "\n")
            else:
                out.write(dump(_record(number, answer, scale)) + "\n")
            number += 1

    return write


def _titles(opened: runs.Run, source: dict[str, Any]) -> Callable[[int], str | None]:
    """Returns a function that maps a document's number to its text. None: the text is not known."""
    texts: Any = source.get("texts")
    if texts is None and "split" in source:
        loaded = opened.dataset(source["dataset"], source["svmlight_base"])
        texts = loaded.splits[source["split"]].texts if source["split"] in loaded.splits else None
    return lambda number: None if texts is None else texts[number]


def _record(number: int, answer: runs.Answer, scale: str) -> dict[str, Any]:
    """Returns an answer ready for JSON. NaN becomes None, because JSON has no NaN."""
    best = [
        {"label": each.label, "score": None if math.isnan(each.score) else each.score}
        for each in answer.labels
    ]
    return {"document": number, "features": answer.features, "scale": scale, "labels": best}


def _source(
    text: list[str] | None, file: Path | None, split: str | None, dataset: str | None, format: str | None
) -> dict[str, Any]:
    """Returns the arguments of `Run.iter_predict` that say where the documents come from."""
    if split is not None:
        return {"split": split, "dataset": dataset}
    if text:
        return {"texts": [from_shell(each, f"--text {n}") for n, each in enumerate(text, 1)]}
    if not _is_named(file):
        return {"format": format, "stream": _standard_input(file)}
    return {"format": format, "file": file}


def _lacks_letters(out: TextIO) -> bool:
    """Returns whether JSON must be escaped to ASCII, because the output is not in UTF-8."""
    return codecs.lookup(out.encoding or "utf-8").name != "utf-8"


def _standard_input(file: Path | None) -> BinaryIO:
    if sys.stdin is None:
        raise ValueError("standard input is closed; give --text, --input or --split")
    if file is None and sys.stdin.isatty():
        raise ValueError("predict needs --text, --input or --split, or text on standard input (--input -)")
    return sys.stdin.buffer


def from_shell(text: str, flag: str) -> str:
    """Returns an argument as text. Bytes that the locale's encoding cannot decode are read as UTF-8."""
    from mach_ext import data

    if re.search("[\udc80-\udcff]", text) is None:
        return text
    return data.decode_line(os.fsencode(text), flag)

"""`mach-ext predict`: the best labels of documents, a line a document."""

from __future__ import annotations

import argparse
import codecs
import json
import math
import os
import re
import sys
from typing import Any, BinaryIO, TextIO

from mach_ext import data, nn, runs
from mach_ext._progress import tqdm
from mach_ext._terminal import one_line, say
from mach_ext.cli.options import add_model_path, add_reader_options, natural, nonempty, path
from mach_ext.cli.results import remarks_afterwards
from mach_ext.runs.files import atomic_file, check_file, check_folder


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_path(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", action="append", default=None, help="a document; may be repeated")
    source.add_argument(
        "--input", type=path, default=None, metavar="FILE",
        help="Documents: .jsonl, .txt (XMC), .svm or .npz, also compressed. -, and no source at all, is "
        "standard input.",
    )  # fmt: skip
    source.add_argument(
        "--split", choices=("train", "dev", "test"), default=None, help="of the run's dataset"
    )
    parser.add_argument(
        "--dataset", type=nonempty, default=None, help="with --split: other data than the run's own"
    )
    parser.add_argument(
        "--input-format", choices=data.TEXT_FORMATS, default=None,
        help="What standard input, or a file of any name, holds: text, a document a line, or jsonl, an "
        'object with "text" a line. A blank line is an empty document in text and is passed over in jsonl. '
        "[default for standard input: jsonl where its first line is such an object, else text]",
    )  # fmt: skip
    add_reader_options(parser)
    parser.add_argument(
        "--k", "--top-k", type=natural, default=None,
        help="labels a document (5, or all where there are fewer)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("tsv", "jsonl"), default="tsv",
        help="A document without features that the model knows gets the labels of an empty document. Its "
        'scores are nan in tsv. In jsonl they are null, and "features" is 0. jsonl also names the scale of '
        "the scores: the model's --merge. [default: tsv]",
    )  # fmt: skip


def run(args: Any) -> None:
    """Predicts, and prints or writes the answers."""
    if args.dataset is not None and args.split is None:
        raise ValueError("--dataset needs --split")
    if args.input_format is not None and (args.split is not None or args.text is not None):
        raise ValueError("--input-format is for --input and standard input")
    if args.output is not None:
        file = args.output / f"predictions.{args.format}"
        check_folder("--output", args.output)
        check_file("--output", file)
        if args.input is not None and file.exists() and args.input.exists() and file.samefile(args.input):
            raise ValueError(f"--output must not be where --input is read from, got {args.input}")
    run = runs.Run.open(args.model_path, args.device)
    args.k = nn.checked_k("predict", args.k, run.model.num_labels, least=0, name="--k")
    if args.format == "tsv" and run.model.merge != "mean_logit":
        say(f"scores are on the scale of the model's merge: {nn.SCALES[run.model.merge]}")
    if args.output is None:
        _predict_to(sys.stdout, args, run)
        return
    with (
        atomic_file(file) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace") as out,
    ):
        _predict_to(out, args, run)
    say(f"predictions: {file}")


def _predict_to(out: TextIO, args: Any, run: runs.Run) -> None:
    """A line a document, written as it is computed."""
    write = json.dumps if _lacks_letters(out) else data.json_line
    number = 0
    blocks = run.iter_predict(k=args.k, **_source(args))
    with (
        remarks_afterwards(),
        tqdm(unit="doc", disable=args.quiet or out is sys.stdout, dynamic_ncols=True) as bar,
    ):
        for block in blocks:
            for answer in block:
                if args.format == "tsv":
                    cells = (f"{one_line(best.label)}\t{best.score:.6g}" for best in answer.labels)
                    out.write("\t".join(cells) + "\n")
                else:
                    out.write(write(_record(number, answer, run.model.merge)) + "\n")
                number += 1
            out.flush()  # whoever sent these documents can be waiting for the answers
            bar.update(len(block))


def _record(number: int, answer: runs.Answer, scale: str) -> dict[str, Any]:
    """An answer, ready for JSON, which has no NaN."""
    best = [
        {"label": each.label, "score": None if math.isnan(each.score) else each.score}
        for each in answer.labels
    ]
    return {"document": number, "features": answer.features, "scale": scale, "labels": best}


def _source(args: Any) -> dict[str, Any]:
    """Where the documents come from."""
    source: dict[str, Any] = {"svmlight_base": args.svmlight_base}
    if args.split is not None:
        return {**source, "split": args.split, "dataset": args.dataset}
    if args.text is not None:
        return {**source, "texts": [from_shell(text, f"--text {n}") for n, text in enumerate(args.text, 1)]}
    source["format"] = args.input_format
    if args.input is None or str(args.input) == "-":
        return {**source, "stream": _standard_input(args)}
    return {**source, "file": args.input}


def _lacks_letters(out: TextIO) -> bool:
    """Whether JSON has to go without other letters than ASCII's to arrive as it is."""
    return codecs.lookup(out.encoding or "utf-8").name != "utf-8"


def _standard_input(args: Any) -> BinaryIO:
    if sys.stdin is None:
        raise ValueError("standard input is closed; give --text, --input or --split")
    if args.input is None and sys.stdin.isatty():
        raise ValueError("predict needs --text, --input or --split, or text on standard input (--input -)")
    return sys.stdin.buffer


def from_shell(text: str, flag: str) -> str:
    """An argument as text: bytes that the locale's encoding has no letters for are read as UTF-8."""
    if re.search("[\udc80-\udcff]", text) is None:
        return text
    return data.decode_line(os.fsencode(text), flag)

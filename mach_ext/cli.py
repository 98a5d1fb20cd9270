"""The command `mach-ext`: argument parsing and what is shown on screen. The work is done by the library."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tqdm import tqdm

import mach_ext
from mach_ext import _ops, attack, certify, data, explain, metrics, nn, report, runs, svm, training
from mach_ext._memory import memory_words
from mach_ext.data.records import ANY, read_record
from mach_ext.neighbors import Neighbors

RUNS = Path("runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = build_parser()
    args = parser.parse_args(_with_dashes(sys.argv[1:] if argv is None else argv, _flags(parser)))
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", ResourceWarning)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names can be of scripts that the terminal lacks
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        _check_device(args.device)
        args.run(args)
        return 0
    except training.TrainingInterrupted as interrupt:
        print(f"\nmach-ext: {interrupt}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmach-ext: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `mach-ext predict | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        expected = (ValueError, TypeError, OSError, FloatingPointError, torch.OutOfMemoryError)
        short = memory_words(error)
        if short is None and not isinstance(error, expected):
            raise
        print(f"mach-ext: {short or str(error) or repr(error)}", file=sys.stderr)
        return 1


def _with_dashes(argv: Sequence[str], flags: set[str]) -> list[str]:
    """--hash_functions and --hash-functions are the same flag; what is no flag stays as it is."""

    def spell(argument: str) -> str:
        name, equals, value = argument.partition("=")
        dashed = name.replace("_", "-")
        return dashed + equals + value if dashed in flags else argument

    return [spell(argument) for argument in argv]


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag of the parser and its subcommands."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags.update(*(_flags(sub) for sub in action.choices.values()))
    return flags


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this PyTorch ({torch.__version__}) sees no CUDA GPU")
    if device.type == "cuda" and _ops.CUDA_FAULT:
        raise ValueError(f"--device {name}: there are no CUDA operators: {_ops.CUDA_FAULT}")


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    print(f"mach-ext: warning: {message}", file=sys.stderr)


# ------------------------------------------------------------------------------------------- arguments


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mach-ext",
        description="Extreme multi-label classification with MACH.",
        epilog="Start: mach-ext train --dataset wordnet    then: mach-ext predict --text 'a small dog'",
    )
    parser.add_argument("--version", action="version", version=f"mach-ext {mach_ext.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("common")
    group.add_argument(
        "--output", type=Path, metavar="DIR", help="folder written to (default: runs/<dataset>)"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    group.add_argument("--threads", type=_positive, help="CPU threads (default: all cores)")
    group.add_argument("--seed", type=_natural, default=0, help="of hash, weights, batches (default: 0)")
    group.add_argument("--quiet", action="store_true", help="no progress bars")

    def command(name: str, run: Callable[[Any], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(run=run)
        return sub

    _add_train(
        command("train", train, "train a model, evaluate it on the test split, keep everything in a run")
    )
    _add_evaluate(command("evaluate", evaluate, "P, nDCG, PSP, PSnDCG and R of a run, by label frequency"))
    _add_predict(command("predict", predict, "top labels of documents, as names with scores"))
    _add_explain(command("explain", explain_document, "which features give a document its labels, and why"))
    _add_attack(command("attack", attack_model, "P@k and nDCG@k of a run, clean and under attack, by size"))
    _add_compress(command("compress", compress, "a copy of a run's model in a tenth of its bytes or less"))
    _add_info(command("info", info, "shape, parameters, memory, collisions and training record of a run"))
    _add_data(commands, common)
    return parser


def _positive(text: str) -> int:
    return _integer(text, 1)


def _natural(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return value


def _hidden_sizes(text: str) -> tuple[int, ...]:
    return tuple(_natural(part) for part in text.split(","))


def _model_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-path",
        type=Path,
        default=None,
        metavar="DIR",
        help="run folder (default: the newest in runs/)",
    )


def _reader_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--svmlight-base", type=int, choices=(0, 1), default=None,
        help="number of the first feature in svmlight files (what the model keeps; in training 1 where no "
        "file has a feature 0)",
    )  # fmt: skip


def _propensity_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--propensity", type=_propensity, default=None, metavar="A,B",
        help="constants of PSP (by the dataset's name: 0.6,2.6 for Amazon's, 0.5,0.4 for Wikipedia's, else "
        "0.55,1.5)",
    )  # fmt: skip


def _propensity(text: str) -> tuple[float, float]:
    try:
        A, B = (float(part) for part in text.split(","))
    except ValueError:
        A, B = math.nan, math.nan
    if not (0 <= A < math.inf and 0 < B < math.inf):
        raise argparse.ArgumentTypeError(f"must be two numbers A,B with A >= 0 and B > 0, got {text!r}")
    return A, B


def _overwrite_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", default=False, help="replace the model that is in the folder"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="a name (wordnet, wiki10, ...) or a folder")
    parser.add_argument(
        "--no-holdout",
        action="store_true",
        default=False,
        help="without a dev split, train on all of train instead of holding a tenth out for validation",
    )
    parser.add_argument("--resume", action="store_true", default=False, help="go on from the last checkpoint")
    _overwrite_option(parser)
    _reader_options(parser)
    _propensity_option(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--hash-functions", type=_positive, default=None, metavar="R", help="repetitions (8)")
    model.add_argument(
        "--buckets", type=_positive, default=None, metavar="B",
        help="per repetition (the power of two next to L/2, within 16 ... 2048)",
    )  # fmt: skip
    model.add_argument(
        "--hidden-size", type=_hidden_sizes, default=None, metavar="H[,H2]",
        help="hidden units; 0: linear MACH; two numbers: two layers (256, with independent encoders)",
    )  # fmt: skip
    model.add_argument(
        "--encoder", choices=nn.ENCODERS, default=None,
        help="(independent; where --hidden-size is given, shared)",
    )  # fmt: skip
    model.add_argument(
        "--merge", choices=tuple(nn.MODEL_MERGES), default=None, help="(mean_logit; with --svm mean_logprob)"
    )
    model.add_argument("--dropout", type=float, default=0.0, metavar="P", help="of hidden units (0)")
    model.add_argument("--feature-dropout", type=float, default=0.0, metavar="P", help="of non-zeros (0)")
    solver = parser.add_argument_group("a solver in place of the training below")
    solver.add_argument(
        "--svm", action=argparse.BooleanOptionalAction, default=None,
        help="linear MACH, a support vector machine for each bucket: no rates, no epochs (where a label has "
        "32 documents or more on average, of 10,000 or more, and no other flag asks for what it has not)",
    )  # fmt: skip
    solver.add_argument("--C", type=float, default=None, help="of the SVMs: cost of an error (1)")
    fit = parser.add_argument_group("training")
    fit.add_argument("--epochs", type=_natural, default=None, help="(225,000 documents, within 5 ... 10)")
    fit.add_argument("--batch-size", type=_positive, default=None, help="documents a step (256)")
    fit.add_argument("--optimizer", choices=training.OPTIMIZERS, default=None, help="(adam; linear: adagrad)")
    fit.add_argument("--learning-rate", type=float, default=None, help="(0.002; linear: 0.5)")
    fit.add_argument("--encoder-learning-rate", type=float, default=None, help="of the encoder's rows (0.3)")
    fit.add_argument("--encoder-eps", type=float, default=None, help="Adam's eps for these rows (1e-4)")
    fit.add_argument("--schedule", choices=training.SCHEDULES, default=None, help="(linear)")
    fit.add_argument(
        "--negligible-gradient", type=float, default=None, help="see mach_ext.training (0: exact)"
    )
    fit.add_argument(
        "--precision", choices=training.PRECISIONS, default=None, help="of the products (float32)"
    )
    fit.add_argument("--patience", type=_positive, default=None, help="epochs without gain before stopping")
    fit.add_argument(
        "--repetitions-at-a-time",
        type=_positive,
        default=None,
        metavar="R",
        help="linear MACH: to save memory",
    )
    fit.add_argument(
        "--tau", type=float, default=None,
        help="how far frequent labels are ranked down (1 / root of the documents a label has, at most 0.5)",
    )  # fmt: skip
    fit.add_argument(
        "--metric", default=None, help="dev metric that picks the best epoch, ties by loss (P@1)"
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _model_path(parser)
    parser.add_argument("--dataset", default=None, help="other data than the run's own")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test", help="(test)")
    parser.add_argument(
        "--neighbors", action="store_true", default=False,
        help=f"re-rank the best {runs.CANDIDATES} labels by those of the nearest documents of train "
        "(models that rank by mean_logit)",
    )  # fmt: skip
    _reader_options(parser)
    _propensity_option(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    _model_path(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", action="append", default=None, help="a document; may be repeated")
    source.add_argument(
        "--input", type=Path, default=None, metavar="FILE", help=".jsonl, .txt (XMC), .svm, .npz"
    )
    source.add_argument(
        "--split", choices=("train", "dev", "test"), default=None, help="of the run's dataset"
    )
    _reader_options(parser)
    parser.add_argument(
        "--k", "--top-k", type=_natural, default=None,
        help="labels a document (5, or all where there are fewer)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("tsv", "jsonl"), default="tsv",
        help="A document without features that the model knows gets the labels of an empty document. Its "
        'scores are nan in tsv. In jsonl they are null, and "features" is 0. jsonl also names the scale of '
        "the scores: the model's --merge. [default: tsv]",
    )  # fmt: skip


def _add_explain(parser: argparse.ArgumentParser) -> None:
    _model_path(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--sample-id", type=_natural, metavar="N", help="a document of the run's dataset")
    source.add_argument("--text", default=None, help="a document as text")
    parser.add_argument(
        "--split", choices=("train", "dev", "test"), default="test", help="of the sample (test)"
    )
    parser.add_argument("--dataset", default=None, help="other data than the run's own")
    parser.add_argument(
        "--label", action="append", default=None, help="name or number; may be repeated (default: the top k)"
    )
    parser.add_argument(
        "--k", "--top-k", type=_positive, default=None,
        help="labels explained, and the top k that is meant by ranks (5, or all where there are fewer)",
    )  # fmt: skip
    parser.add_argument("--method", choices=explain.METHODS, default=None, help="(exact where it holds)")
    parser.add_argument(
        "--score", choices=explain.SCORES, default="logit",
        help="what is explained: logit, the mean of the hash functions' logits, or model, the score that "
        "predict shows; they differ where the model's --merge is not mean_logit (logit)",
    )  # fmt: skip
    parser.add_argument("--n-steps", type=_positive, default=None, help="of gausslegendre (as it needs)")
    parser.add_argument("--show", type=_positive, default=10, metavar="N", help="features a label (10)")
    parser.add_argument("--html", type=Path, default=None, metavar="FILE", help="also as one HTML page")
    _reader_options(parser)


def _add_attack(parser: argparse.ArgumentParser) -> None:
    _model_path(parser)
    parser.add_argument("--dataset", default=None, help="other data than the run's own")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test", help="(test)")
    parser.add_argument(
        "--eps", type=_numbers, default=None, metavar="E[,E2,...]",
        help="sizes (0.01); of delete: how many words (1,2,3); one size is shown within a curve of six",
    )  # fmt: skip
    parser.add_argument(
        "--attack", choices=("fgsm", "pgd", "delete", "insert"), default="fgsm",
        help="one step, several steps, words removed, words added (fgsm)",
    )  # fmt: skip
    parser.add_argument(
        "--threat", default=None, metavar="MODEL",
        help="what may change: support (a document's own features; the default), dense (all), insert(M) "
        "(M new features, too), l2, l1, delete",
    )  # fmt: skip
    parser.add_argument("--signed", action="store_true", default=False, help="values may fall below 0")
    parser.add_argument(
        "--goal", choices=("untargeted", "own"), default="untargeted",
        help="the loss of the true labels rises, or of the model's own (untargeted)",
    )  # fmt: skip
    parser.add_argument(
        "--targeted", action="store_true", default=False,
        help="also: how often a right label leaves the top k, and a wrong one enters",
    )  # fmt: skip
    parser.add_argument(
        "--k", "--top-k", type=_positive, default=None,
        help="of metrics and goals (5; with fewer labels all, or all but one with --targeted)",
    )  # fmt: skip
    parser.add_argument("--steps", type=_positive, default=10, help="of pgd (10)")
    parser.add_argument("--sample", type=_positive, default=None, metavar="N", help="the first N documents")
    parser.add_argument("--transfer", type=Path, default=None, metavar="DIR", help="another run, asked too")
    parser.add_argument(
        "--certify", action="store_true", default=False,
        help="also: the part of P@k that no change of this threat model can take away",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, default=None, metavar="FILE", help="one HTML page")
    _reader_options(parser)
    _propensity_option(parser)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between, got {text!r}") from None


def _add_compress(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes a copy of a run's model whose weights are rounded and zlib's, by default beside the run as "
        "<run>-small, and shows bytes and metrics of both. Every command takes it as it is. Only the file is "
        "small: in memory the copy is as large as the model."
    )
    _model_path(parser)
    parser.add_argument(
        "--step", type=float, default=nn.STEP,
        help="weights of features become multiples of it, of hidden units of step / 64 "
        f"({nn.STEP}; less: closer, more bytes)",
    )  # fmt: skip
    parser.add_argument("--dataset", default=None, help="other data than the run's own")
    parser.add_argument(
        "--split", choices=("train", "dev", "test", "none"), default="test", help="asked of both (test)"
    )
    _overwrite_option(parser)
    _reader_options(parser)
    _propensity_option(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    _model_path(parser)
    parser.add_argument("--json", action="store_true", default=False, help="as JSON")


def _add_data(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "show, fetch or convert datasets"
    parser = commands.add_parser("data", help=text, description=text)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, run, text in (
        ("info", data_info, "counts of a dataset; without one, the names that are known"),
        ("fetch", data_fetch, "download or build a dataset into the data folder ($MACH_DATA)"),
        ("convert", data_convert, "write a dataset in another format"),
    ):
        action = actions.add_parser(name, help=text, description=text, parents=[common])
        action.set_defaults(run=run)
        action.add_argument("--dataset", required=name != "info", default=None, help="a name or a folder")
        if name != "fetch":
            _reader_options(action)
        if name == "convert":
            action.add_argument("--format", choices=("npz", "xmc"), default="npz", help="(npz)")
            action.add_argument(
                "--compression", choices=("", "gz", "xz", "bz2"), default="", help="of xmc (none)"
            )


# ----------------------------------------------------------------------------------------------- train


def train(args: Any) -> None:
    for_fit = _only_for_fit(args)
    if args.svm and for_fit:
        raise ValueError(f"--svm takes no {', '.join(for_fit)}")
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        dataset = _load(args, holdout=not args.no_holdout)
    folder = args.output or RUNS / dataset.name
    _say(f"dataset {dataset.name} from {dataset.path}: {_sizes(dataset)}")
    resumed = args.resume and training.has_checkpoint(folder)
    if not (args.overwrite or resumed):
        runs.refuse_to_replace(folder)
    if dataset.train.Y.nnz == 0:
        _say("no document of train has a label")
    for name, split in dataset.splits.items():
        _say_without_features(f"{name}: ", split.without_features, len(split))
    if args.svm is None and not for_fit and args.hidden_size is None and args.device == "cpu":
        args.svm = svm.worthwhile(dataset.train.Y, dataset.num_features)
        if args.svm:
            _say("labels have many documents: support vector machines (--no-svm: a hidden layer)")
    if args.C is not None and not args.svm:
        raise ValueError("--C is of support vector machines, see --svm")
    model = _new_model(dataset, args).to(args.device)
    _say(f"model: {sum(p.numel() for p in model.parameters()):,} parameters; run folder {folder}")
    if args.propensity is None and resumed:
        args.propensity = runs.kept_propensity(folder)
    model.attachments = runs.attachments(dataset, settings=_settings(args), propensity=args.propensity)
    with _timed(seconds, "train"):
        record = _solve(model, dataset, folder, args) if args.svm else _fit(model, dataset, folder, args)
    results: dict[str, Any] = {}
    with _timed(seconds, "evaluate"):
        for name in ("dev", "test"):
            if name in dataset.splits:
                results[name] = runs.evaluate(model, dataset, name)
    if record.best_epoch is not None:
        _say(f"best epoch {record.best_epoch} of {record.epoch}")
    seconds["fit"] = record.seconds  # with what was done before a resume
    for name, result in results.items():
        _show_metrics(name, result)
    history = {"history": record.history}
    _write_metrics(folder / "metrics.json", folder, dataset, model, results, seconds, history)
    _say(f"metrics: {folder / 'metrics.json'}")


def _suggested(dataset: data.Dataset) -> dict[str, Any]:
    return training.suggested(len(dataset.train), dataset.num_features, dataset.num_labels)


def _new_model(dataset: data.Dataset, args: Any) -> nn.MACH:
    suggested, hidden_size, encoder = _suggested(dataset), args.hidden_size, args.encoder or "shared"
    if args.svm:
        hidden_size = hidden_size or (0,)
        suggested |= svm.suggested(dataset.num_labels)
    elif hidden_size is None:
        hidden_size, encoder = (suggested["hidden_size"],), args.encoder or suggested["encoder"]
    return nn.MACH(
        dataset.num_features,
        dataset.num_labels,
        num_repetitions=args.hash_functions or suggested["num_repetitions"],
        num_buckets=args.buckets or suggested["num_buckets"],
        hidden_size=hidden_size,
        encoder=encoder,
        merge=args.merge or ("mean_logprob" if args.svm else "mean_logit"),
        seed=args.seed,
        feature_dropout=args.feature_dropout,
        hidden_dropout=args.dropout if any(hidden_size) else 0.0,
    )


def _settings(args: Any) -> dict[str, Any]:
    """What was asked of the training, for the record of the run."""
    names = ("C",) if args.svm else training.Hyperparameters.__dataclass_fields__
    given = {name: getattr(args, name) for name in names}
    return {"svm": bool(args.svm)} | {name: value for name, value in given.items() if value is not None}


def _only_for_fit(args: Any) -> list[str]:
    """Flags given that `_solve` has no use for."""
    names = [name for name in training.Hyperparameters.__dataclass_fields__ if name != "seed"]
    given = [name for name in (*names, "encoder", "repetitions_at_a_time") if getattr(args, name) is not None]
    given += [name for name in ("resume", "dropout", "feature_dropout") if getattr(args, name)]
    return ["--" + name.replace("_", "-") for name in given]


def _solve(model: nn.MACH, dataset: data.Dataset, folder: Path, args: Any) -> training.Progress:
    """--svm: nothing to resume, so the folder changes only at the end."""
    started = time.monotonic()
    C = 1.0 if args.C is None else args.C
    svm.fit_svm(model, dataset.train.X, dataset.train.Y, C=C, progress=not args.quiet)
    with training.exclusive(folder):
        if not args.overwrite:  # another run may have ended here meanwhile
            runs.refuse_to_replace(folder)
        training.forget(folder)
        model.save(folder)
    return training.Progress(seconds=time.monotonic() - started, history=[{"solver": "svm", "C": C}])


def _fit(model: nn.MACH, dataset: data.Dataset, folder: Path, args: Any) -> training.Progress:
    dev = dataset.dev
    if not args.overwrite and not (args.resume and training.has_checkpoint(folder)):
        runs.refuse_to_replace(folder)  # another run may have ended here meanwhile
    settings = {name: getattr(args, name) for name in training.Hyperparameters.__dataclass_fields__}
    if settings["epochs"] is None:
        settings["epochs"] = _suggested(dataset)["epochs"]
    return training.fit(
        model,
        dataset.train.X,
        dataset.train.Y,
        None if dev is None else dev.X,
        None if dev is None else dev.Y,
        filtered_dev=None if dev is None else dev.filtered,
        output=folder,
        resume=args.resume,
        repetitions_at_a_time=args.repetitions_at_a_time,
        progress=not args.quiet,
        **settings,
    )


# -------------------------------------------------------------------------------------------- evaluate


def evaluate(args: Any) -> None:
    folder = _run_folder(args)
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        model = nn.load(folder, args.device)
        dataset = _run_dataset(model, folder, args)
    _split_of(dataset, args.split)  # before any work
    neighbors, name = None, args.split
    if args.neighbors:
        if args.split == "train":
            raise ValueError("--neighbors is for other documents than those of train, which find themselves")
        if model.merge != "mean_logit":
            raise ValueError(f"--neighbors adds to mean logits; this model ranks by {model.merge}")
        if len(dataset.train) == 0:
            raise ValueError(f"{dataset.path}: has no train split, among which --neighbors looks")
        neighbors, name = Neighbors(dataset.train.X, dataset.train.Y), f"{args.split}+neighbors"
    with _timed(seconds, "evaluate"):
        result = runs.evaluate(model, dataset, args.split, neighbors=neighbors, propensity=args.propensity)
    _show_metrics(name, result)
    other = "" if args.dataset is None else f"-{dataset.name}"  # the run's own metrics stay
    file = _output(args, folder) / f"metrics{other}.json"
    former = _former_metrics(file)
    path = str(dataset.path.absolute())
    if args.dataset is not None and former.get("path", path) != path:  # another dataset of that name
        file = file.with_stem(f"{file.stem}-{zlib.crc32(path.encode()):08x}")
        former = _former_metrics(file)
    if not _is_of(former, model, folder):
        former = {}
    _write_metrics(file, folder, dataset, model, {name: result}, seconds, former)
    _say(f"metrics: {file}")


def _former_metrics(file: Path) -> dict[str, Any]:
    """Metrics that a file keeps; a damaged one is written anew."""
    schema = {"seconds?": {"*": ANY}, "attacks?": {"*": ANY}, "*": ANY}
    with contextlib.suppress(ValueError, FileNotFoundError):
        former: dict[str, Any] = read_record(file, "metrics", schema)
        return former
    return {}


def _is_of(metrics: dict[str, Any], model: nn.MACH, folder: Path) -> bool:
    """Whether kept metrics are of these weights; older ones say only of which kind of model they are."""
    digest = runs.weights_digest(folder)
    return metrics.get("model") == model.configuration() and metrics.get("weights", digest) == digest


def _output(args: Any, folder: Path) -> Path:
    """--output, else the run's folder. What another run keeps of itself is not written over."""
    if args.output is None:
        return folder
    if (args.output / "model.json").exists() and args.output.resolve() != folder.resolve():
        raise ValueError(f"--output must not be the folder of another run, got {args.output}")
    return Path(args.output)


def _write_metrics(
    file: Path,
    folder: Path,
    dataset: data.Dataset,
    model: nn.MACH,
    results: dict[str, Any],
    seconds: dict[str, float],
    former: dict[str, Any],
) -> None:
    """Writes metrics of the model in a folder: `results` by split, on top of `former` contents."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rounded = {key: round(value, 3) for key, value in seconds.items()}
    record = {
        **former,
        **results,
        "dataset": dataset.name,
        "path": str(dataset.path.absolute()),
        "model": model.configuration(),
        "weights": runs.weights_digest(folder),
        "seconds": {**former.get("seconds", {}), **rounded},
    }
    data.write_json(file, record)


def _show_metrics(split: str, result: dict[str, Any]) -> None:
    """A table: a row a metric, a column all labels and each band."""
    bands = result["bands"]
    columns = {"all": result, **bands}
    print(f"\n{split:<15}" + "".join(f"{name:>9}" for name in columns))
    for metric in (key for key in result if key not in ("bands", "propensity")):
        cells = (column.get(metric) for column in columns.values())
        print(f"{metric:<15}" + "".join(f"{'-':>9}" if v is None or v != v else f"{v:>9.4f}" for v in cells))
    if any(metric.startswith("PSP") for metric in result):
        constants = result["propensity"]
        print(
            f"PSP, PSnDCG: A={constants['A']:g}, B={constants['B']:g}, labels of "
            f"{constants['documents']:,} training documents"
        )


# --------------------------------------------------------------------------------------------- predict


def predict(args: Any) -> None:
    folder = _run_folder(args)
    model = nn.load(folder, args.device)
    args.k = _top_k(args.k, model, least=0)
    if args.format == "tsv" and model.merge != "mean_logit":
        _say(f"scores are on the scale of the model's merge: {nn.SCALES[model.merge]}")
    if args.output is None:
        _predict_to(sys.stdout, args, model, folder)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / f"predictions.{args.format}"
    with (
        data.atomic_path(file) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace") as out,
    ):
        _predict_to(out, args, model, folder)
    _say(f"predictions: {file}")


def _predict_to(out: TextIO, args: Any, model: nn.MACH, folder: Path) -> None:
    """A line a document, written as it is computed: memory does not grow with the number of documents."""
    names: Sequence[str] = runs.columns_of(model).label_names or explain.Numbers()
    number = unknown = 0
    with tqdm(unit="doc", disable=args.quiet or out is sys.stdout, dynamic_ncols=True) as bar:
        for X in _documents(args, model, folder):
            scores, labels = model.predict(X, args.k)
            features = data.row_features(X).tolist()
            for count, row_scores, row_labels in zip(features, scores.tolist(), labels.tolist(), strict=True):
                pairs = [(names[label], score) for label, score in zip(row_labels, row_scores, strict=True)]
                if args.format == "tsv":
                    cells = (
                        f"{' '.join(name.split())}\t{score if count else math.nan:.6g}"
                        for name, score in pairs
                    )
                    out.write("\t".join(cells) + "\n")
                else:
                    best = [{"label": name, "score": score if count else None} for name, score in pairs]
                    record = {"document": number, "features": count, "scale": model.merge, "labels": best}
                    out.write(data.json_line(record) + "\n")
                number += 1
                unknown += count == 0
            bar.update(X.shape[0])
    rest = " that the model knows. Their labels are those of an empty document, without scores"
    _say_without_features("", unknown, number, rest)


def _documents(args: Any, model: nn.MACH, folder: Path) -> Iterator[Any]:
    """Blocks of documents as CSR, from --text, --input, --split or standard input (a text a line)."""
    if args.split is not None:
        splits = _run_dataset(model, folder, args).splits
        if args.split not in splits:
            raise ValueError(f"no {args.split} split; there are: {', '.join(splits)}")
        X = splits[args.split].X
        yield from (X[start : start + 4096] for start in range(0, X.shape[0], 4096))
    elif args.input is None:
        if args.text is None and sys.stdin.isatty():
            raise ValueError("predict needs --text, --input or --split, or text on standard input")
        texts = _lines_of_stdin() if args.text is None else _utf8(args.text, "--text")
        yield from data.vectorised(texts, runs.columns_of(model))
    else:
        remarks: list[str] = []
        yield from data.iter_documents(
            args.input, runs.columns_of(model), svmlight_base=args.svmlight_base, remarks=remarks
        )
        _say_all(remarks)


def _lines_of_stdin() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    return _utf8((line.rstrip("\n") for line in sys.stdin), "standard input, line")


def _utf8(texts: Iterable[str], source: str) -> Iterator[str]:
    """The texts. A byte that is no UTF-8 reaches this place as a lone surrogate and is refused."""
    for number, text in enumerate(texts, start=1):
        wrong = re.search("[\udc80-\udcff]", text)
        if wrong is not None:
            byte = ord(wrong[0]) - 0xDC00
            raise ValueError(f"{source} {number}: text must be UTF-8, got byte 0x{byte:02x}")
        yield text


# --------------------------------------------------------------------------------------------- explain


def explain_document(args: Any) -> None:
    folder = _run_folder(args)
    model = nn.load(folder, args.device)
    k = _top_k(args.k, model)
    X, text, title, true, dataset = _one_document(args, model, folder)
    feature_names = label_names = None
    if dataset is not None and not {"vectorizer.json", "features.json"} & set(model.attachments):
        feature_names = dataset.feature_names
    if dataset is not None and "labels.json" not in model.attachments:
        label_names = dataset.label_names
    found = explain.integrated_gradients(
        model,
        X,
        model.predict(X, k)[1][0] if args.label is None else args.label,
        method=args.method,
        score=args.score,
        n_steps=args.n_steps,
        feature_names=feature_names,
        label_names=label_names,
        text=text,
    )
    voted = explain.votes(model, X, found.labels, k=k, label_names=label_names)
    checks = [
        explain.collisions(model, X, label, k=k, label_names=label_names) for label in found.labels.tolist()
    ]
    _show_explanation(title, found, voted, checks, true, args.show)
    files: dict[Path, bytes] = {}  # written when all of them are there
    pages = [args.html] if args.html is not None else []
    if args.output is not None:
        picture = io.BytesIO()
        found.plot().savefig(picture, dpi=150)
        files[args.output / "explanation.json"] = (found.to_json() + "\n").encode()
        files[args.output / "explanation.png"] = picture.getvalue()
        pages.append(args.output / "explanation.html")
    if pages:
        # A decode for each feature: of those that count for some label.
        most = np.unique(np.argsort(-np.abs(found.attributions), axis=1)[:, : args.show])
        names = {"feature_names": feature_names, "label_names": label_names}
        removed = explain.removals(model, X, k, found.features[most].tolist(), **names)
        vectorizer = runs.columns_of(model).vectorizer
        page = report.explanation_page(found, voted, checks, removed, vectorizer, title, true)
        files.update((file, page.encode()) for file in pages)
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        with data.atomic_path(file) as temporary:
            temporary.write_bytes(content)
        _say(f"written: {file}")


def _one_document(
    args: Any, model: nn.MACH, folder: Path
) -> tuple[Any, str | None, str, list[int] | None, data.Dataset | None]:
    """The document, its text, what to call it, its true labels, its dataset: as far as they are known."""
    if args.text is not None:
        (X,) = data.vectorised(_utf8([args.text], "--text"), runs.columns_of(model))
        if not data.row_features(X).any():
            raise ValueError("--text: none of its words is in the model's vocabulary: nothing to explain")
        return X, args.text, "Explanation of a text", None, None
    dataset = _run_dataset(model, folder, args)
    if args.split not in dataset.splits:
        raise ValueError(f"no {args.split} split; there are: {', '.join(dataset.splits)}")
    split, n = dataset.splits[args.split], args.sample_id
    if len(split) == 0:
        raise ValueError(f"{dataset.path}: the {args.split} split has no document")
    if n >= len(split):
        raise ValueError(f"--sample-id must be in 0 ... {len(split) - 1}, the {args.split} split, got {n}")
    if not data.row_features(split.X[n]).any():
        raise ValueError(f"--sample-id {n}: the document has no features: nothing to explain")
    text = None if split.texts is None else split.texts[n]
    title = f"{dataset.name}, {args.split}, document {n}"
    return split.X[n], text, title, split.Y[n].indices.tolist(), dataset


def _show_explanation(
    title: str,
    found: explain.Explanation,
    voted: explain.Votes,
    checks: Sequence[explain.Collisions],
    true: Sequence[int] | None,
    show: int,
) -> None:
    joiners = "\u200c\u200d"  # of letters: not printable, but part of words
    text = "".join(c if c.isprintable() or c in joiners else " " for c in found.text or "")
    print(f"{title}: {report.shortened(text, 300) or f'{len(found.features)} features'}")
    low, high = float(voted.logits.min()), float(voted.logits.max())
    scale, model_scale = nn.SCALES[found.scale], nn.SCALES[found.model_scale]
    steps = f"{found.n_steps} steps" if found.n_steps else "exact"
    for i, label in enumerate(found.labels.tolist()):
        right = "" if true is None else ("  (right)" if label in true else "  (wrong)")
        print(f"\n{found.label_names[i]}{right}")
        print(
            f"  score {found.scores[i]:+.3f} ({scale}), of the baseline {found.baseline_scores[i]:+.3f}; "
            f"delta {found.delta[i]:.1e} ({steps})"
        )
        if scale != model_scale:
            print(f"  the model ranks by {found.model_scores[i]:+.3f} ({model_scale}), as predict shows")
        votes = f"{report.sparkline(voted.logits[i].tolist(), low, high)}  {voted.scores[i]:+.2f}"
        if not math.isnan(voted.standard_error[i]):
            votes += f" ± {voted.standard_error[i]:.2f}"
        verdict = checks[i].verdict
        if not math.isnan(checks[i].own_score):
            verdict += f", own score {checks[i].own_score:+.2f} ({model_scale})"
        print(f"  votes {votes}; {verdict}")
        if not math.isnan(voted.agreement[i]):
            agreement = report.chance(voted.agreement[i])
            print(f"  agreement of the hash functions that it is in the top {voted.k}: {agreement}")
        for line in report.attribution_lines(found, label, show):
            print(line)


# ---------------------------------------------------------------------------------------------- attack


def attack_model(args: Any) -> None:
    folder = _run_folder(args)
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        model = nn.load(folder, args.device)
        dataset = _run_dataset(model, folder, args)
        other = None if args.transfer is None else nn.load(args.transfer, args.device)
    split = _split_of(dataset, args.split)
    some = slice(0, args.sample)
    X, Y, truth = split.X[some], split.Y[some], split.truth[some]
    default = {"delete": "delete", "insert": "insert(3)"}.get(args.attack, "support")
    threat = attack.threat_model(args.threat or default, False if args.signed else None)
    wanted = args.eps or ([1.0, 2.0, 3.0] if args.attack == "delete" else [0.01])
    if not min(wanted) >= 0:
        raise ValueError(f"--eps must be numbers >= 0, got {min(wanted):g}")
    grid = _eps_grid(wanted, args.attack)
    if args.certify:
        certify.check(model, threat, "--certify")
        if split.filtered is not None:
            _say("certified figures count the answers that the filter file excludes, too")
    labels = runs.TrainingLabels.of(model, dataset, args.propensity)
    with _timed(seconds, "attack"):
        result = attack.evaluate(
            model,
            X,
            Y,
            attack=args.attack,
            threat_model=threat,
            epsilons=grid,
            goal=args.goal,
            targeted=args.targeted,
            k=args.k,
            inverse_propensity=labels.inverse_propensity(truth.shape[1] - model.num_labels),
            bands=labels.bands(),
            truth=truth,
            filtered=None if split.filtered is None else split.filtered[some],
            transfer=other,
            steps=args.steps,
            seed=args.seed,
            progress=not args.quiet,
        )
    k = result["k"]
    if args.certify:
        with _timed(seconds, "certify"):
            found = certify.certify(model, X, Y, grid, threat_model=threat, k=k, progress=not args.quiet)
        proven = found.as_dict([one for one in dict.fromkeys((*metrics.KS, k)) if one <= k])
        result["certified_zero"] = proven["zero"]
        for entry, size in zip(result["adversarial"], proven["sizes"], strict=True):
            entry["certified"] = {name: value for name, value in size.items() if name != "epsilon"}
    _show_attack(f"{dataset.name}, {args.split}", result, wanted)
    output = _output(args, folder)
    output.mkdir(parents=True, exist_ok=True)
    record = {
        **result, "split": args.split, "dataset": dataset.name, "model": model.configuration(),
        "propensity": labels.as_dict(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }  # fmt: skip
    data.write_json(output / "attack.json", record)
    file = output / "metrics.json"
    former = _former_metrics(file)
    if _is_of(former, model, folder) or not former:
        kept = former.get("attacks", {})
        where = dataset.name if args.dataset is None else dataset.path.absolute()
        whole = "" if args.dataset is None and args.sample is None else f" {where} {X.shape[0]}"
        how = {key: result[key] for key in ("attack", "threat_model", "goal", "nonnegative", "steps")}
        signed = "" if threat.nonnegative else " signed"
        steps = "" if result["steps"] is None else f" {result['steps']} steps"
        name = f"{args.attack} {threat}{signed}{steps} {args.goal} {args.split}{whole}"
        short = {f"{entry['epsilon']:g}": entry["metrics"] for entry in result["adversarial"]}
        kept[name] = {**how, "clean": result["clean"], "adversarial": short}
        weights = runs.weights_digest(folder)
        data.write_json(file, {"model": model.configuration(), "weights": weights, **former, "attacks": kept})
    with data.atomic_path(output / "attack.png") as temporary:
        report.plot_attack(result, wanted).savefig(temporary, dpi=150, format="png")
    _say(f"chart: {output / 'attack.png'}; numbers: {output / 'attack.json'}")
    if args.report is not None:
        samples = _attack_samples(args, model, dataset, X, Y, threat, wanted[-1], k)
        page = report.attack_page(result, wanted, samples, f"{dataset.name}, {args.split}: {args.attack}")
        args.report.parent.mkdir(parents=True, exist_ok=True)
        with data.atomic_path(args.report) as temporary:
            temporary.write_text(page, encoding="utf-8")
        _say(f"page: {args.report}")


def _eps_grid(wanted: Sequence[float], kind: str) -> list[float]:
    """What is asked for, 0, and for a single size a curve around it."""
    grid = {0.0, *wanted}
    if len(wanted) == 1 and kind != "delete":
        grid |= {round(wanted[0] * factor, 12) for factor in (0.1, 0.3, 3, 10, 30)}
    return sorted(grid)


def _show_attack(title: str, result: dict[str, Any], wanted: Sequence[float]) -> None:
    print(
        f"{title}: {result['attack']}, threat model {result['threat_model']}, goal {result['goal']}, "
        f"{result['documents']:,} documents"
    )
    names = [name for name in result["clean"] if not name.endswith("interval")]
    print(f"\n{'eps':>10}" + "".join(f"{name:>9}" for name in names) + f"{'|change|':>10}{'added':>9}")
    for entry in result["adversarial"]:
        size = entry["size"]
        rows = [("metrics", f"{entry['epsilon']:g}"), ("random", "noise"), ("transfer", "transfer"),
                ("certified", "certified")]  # fmt: skip
        for key, label in rows:
            if key not in entry or (key in ("random", "certified") and not entry["epsilon"]):
                continue
            cells = "".join(f"{entry[key][name]:>9.4f}" for name in names if name in entry[key])
            tail = f"{size['l2']:>10.4f}{size['added']:>9.1f}" if key == "metrics" else ""
            print(
                f"{label:>10}{cells}{tail}"
                + ("  <-" if key == "metrics" and entry["epsilon"] in wanted else "")
            )
    for name, (low, high) in result.get("certified_zero", {}).items():
        reached = f"is above 0 up to eps {low:g}" if high is None else f"reaches 0 at eps {high:.2g}"
        print(f"certified {name} {reached}")
    for entry in result["adversarial"]:
        if entry["epsilon"] in wanted:
            for name in names:
                if "interval" not in name and f"{name} interval" in entry["metrics"]:
                    low, high = entry["metrics"][f"{name} interval"]
                    clean = result["clean"][name]
                    print(
                        f"eps {entry['epsilon']:g}: {name} {clean:.4f} -> {entry['metrics'][name]:.4f} "
                        f"[{low:.4f}, {high:.4f}], noise {entry['random'][name]:.4f}"
                    )
            if "certified" in entry:
                low, high = entry["certified"]["robust P@1"]
                print(
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
                print(f"eps {entry['epsilon']:g}: {what} the top {result['k']}: {cells}")


def _attack_samples(
    args: Any, model: nn.MACH, dataset: data.Dataset, X: Any, Y: Any, threat: Any, epsilon: float, k: int
) -> list[dict[str, Any]]:
    """Some documents before and after: those whose loss rose most among the first 256."""
    first = slice(0, 256)
    X, Y = X[first], Y[first]
    one = attack.attack(args.attack, model, threat, args.goal, k, args.seed, args.steps)
    found = one.perturb(X, Y, epsilon)
    before, after = model.predict(X, k)[1], found.predict(k)[1]
    label_names: Any = dataset.label_names or explain.Numbers()
    feature_names: Any = dataset.feature_names or explain.Numbers()
    texts = dataset.splits[args.split].texts
    samples = []
    for n in sorted(range(X.shape[0]), key=lambda n: found.clean_loss[n] - found.loss[n])[:8]:
        changes = found.changes(n)
        top = sorted(changes, key=lambda change: -abs(change[2] - change[1]))[:12]
        true = set(Y[n].indices.tolist())
        samples.append({
            "number": n,
            "text": None if texts is None else texts[n],
            "loss": (float(found.clean_loss[n]), float(found.loss[n])),
            "true": [label_names[label] for label in sorted(true)],
            "before": [(label_names[label], label in true) for label in before[n].tolist()],
            "after": [(label_names[label], label in true) for label in after[n].tolist()],
            "changes": [(feature_names[feature], old, new) for feature, old, new in top],
            "others": len(changes) - len(top),
        })  # fmt: skip
    return samples


# -------------------------------------------------------------------------------------------- compress


def compress(args: Any) -> None:
    folder = _run_folder(args)
    output = args.output or folder.resolve().with_name(f"{folder.resolve().name}-small")
    if output.resolve() == folder.resolve():
        raise ValueError(f"--output must be another folder than the model's, got {output}")
    if (output / f"{training.CHECKPOINT}.json").exists():
        raise ValueError(f"--output must not be the folder of a training run, got {output}")
    model = nn.load(folder, args.device)
    if not args.overwrite:
        runs.refuse_to_replace(output, model)
    split: str = args.split
    dataset: data.Dataset | None = None
    if split != "none" and (args.dataset is not None or "run.json" in model.attachments):
        dataset = _run_dataset(model, folder, args)
        _split_of(dataset, split)  # before any work

    def measured(each: Path) -> dict[str, Any]:
        files = (each / name for name in {"model.json", *nn.files_of(each)})
        result = {} if dataset is None else runs.evaluate(model, dataset, split, propensity=args.propensity)
        return {"bytes": sum(file.stat().st_size for file in files), **result}

    before = measured(folder)
    with training.exclusive(output):
        if not args.overwrite:  # another run may have ended here meanwhile
            runs.refuse_to_replace(output, model)
        model.save(output, args.step)
    model = nn.load(output, args.device)
    after = measured(output)
    print(f"{'' if dataset is None else split:<10}{folder.name:>20}{output.name:>20}")
    print(f"{'bytes':<10}{before.pop('bytes'):>20,}{after.pop('bytes'):>20,}")
    for name in (name for name in before if name not in ("bands", "propensity")):
        print(f"{name:<10}{before[name]:>20.4f}{after[name]:>20.4f}")
    if dataset is not None:
        _write_metrics(output / "metrics.json", output, dataset, model, {split: after}, {}, {})
    _say(f"model: {output}")


# ------------------------------------------------------------------------------------------------ info


def info(args: Any) -> None:
    folder = _run_folder(args)
    model = nn.load(folder)
    checkpoint = folder / f"{training.CHECKPOINT}.json"
    record = {
        "folder": str(folder),
        "model": model.configuration(),
        "parameters": {name: list(p.shape) for name, p in model.named_parameters()},
        "memory": {device: training.expected_memory(model, device=device) for device in ("cpu", "cuda")},
        "hash": model.hash.diagnostics().as_dict(),
        "operators": {"cpu": _ops.cpu_isa(), "cuda": _ops.CUDA_FAULT or "loaded"},
        "training": training.read_checkpoint(folder) if checkpoint.exists() else None,
        "metrics": _optional_json(folder / "metrics.json"),
    }
    record["hash"].pop("load", None)
    if args.json:
        print(json.dumps(record, indent=2))
        return
    print(f"{folder}\n{model}")
    total = sum(p.numel() for p in model.parameters())
    print(f"\nparameters  {total:,}")
    for name, parameter in model.named_parameters():
        print(f"  {name:<16}{list(parameter.shape)!s:<24}{parameter.numel():>16,}  {parameter.dtype}")
    print(f"\n{'memory, batches of 256 documents':<42}{'CPU':>12}{'CUDA':>12}")
    for name, size in record["memory"]["cpu"].items():
        print(f"  {name:<40}{_size(size):>12}{_size(record['memory']['cuda'][name]):>12}")
    print(f"\nlabel hash\n{model.hash.diagnostics()}")
    operators = record["operators"]
    print(f"\noperators: CPU {operators['cpu']}; CUDA: {operators['cuda']}")
    if record["training"] is not None:
        state, settings = record["training"]["progress"], record["training"]["hyperparameters"]
        print(f"\ntraining: {state['epoch']} of {settings['epochs']} epochs, {state['seconds']:.0f} s")
        print("  " + ", ".join(f"{k} {v}" for k, v in settings.items() if k != "epochs"))
        for entry in state["history"]:
            if "loss" not in entry:  # the last word of repetitions trained in turn
                continue
            scores = entry.get("dev", {}).items()
            dev = "  ".join(f"{k} {math.nan if v is None else v:.4f}" for k, v in scores if k[0] == "P")
            print(f"  epoch {entry['epoch']}: loss {entry['loss']:.4f}  {dev}")


def _optional_json(file: Path) -> Any:
    return read_record(file, "a record", ANY) if file.exists() else None


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}"


# ------------------------------------------------------------------------------------------------ data


def data_info(args: Any) -> None:
    if args.dataset is None:
        print(f"data folder: {data.data_home()}  ($MACH_DATA sets another)")
        for name in data.NAMES:
            print(f"  {name:<16}{'there' if (data.data_home() / name).is_dir() else 'not fetched'}")
        return
    print(json.dumps(_load(args).info(), indent=2))


def data_fetch(args: Any) -> None:
    print(data.fetch(data.known_name(args.dataset)))


def data_convert(args: Any) -> None:
    if args.output is None:
        raise ValueError("data convert: needs --output DIR, the folder to write")
    dataset = _load(args, holdout=False)
    compression = f".{args.compression}" if args.compression else ""
    data.write_folder(args.output, dataset, format=args.format, compression=compression)
    _say(f"{args.output}: {_sizes(dataset)}")


# ---------------------------------------------------------------------------------------------- shared


def _run_folder(args: Any) -> Path:
    """--model-path, else the newest run; says which."""
    if args.model_path is not None:
        return Path(args.model_path)
    runs = [file.parent for file in RUNS.glob("*/model.json") if not nn.is_compressed(file.parent)]
    if not runs:
        raise ValueError(
            f"no model in {RUNS.absolute()}: give --model-path, or train one, as: "
            "mach-ext train --dataset wordnet"
        )
    newest = max(runs, key=lambda folder: (folder / "model.json").stat().st_mtime)
    _say(f"using the newest run, {newest}")
    return newest


def _top_k(k: int | None, model: nn.MACH, least: int = 1) -> int:
    """--k, checked; by default 5, or all labels where there are fewer."""
    L = model.num_labels
    if k is None:
        return min(nn.USUAL_K, L)
    if not least <= k <= L:
        raise ValueError(f"--k must be in {least} ... L={L}, got {k}")
    return k


def _split_of(dataset: data.Dataset, name: str) -> data.Split:
    if name not in dataset.splits:
        raise ValueError(f"{dataset.path}: no {name} split; there are: {', '.join(dataset.splits)}")
    return dataset.splits[name]


def _load(args: Any, holdout: bool = True) -> data.Dataset:
    """--dataset by itself."""
    dataset = data.load(
        args.dataset, holdout=holdout, svmlight_base=args.svmlight_base, num_threads=args.threads or 0
    )
    _say_all(dataset.remarks)
    return dataset


def _run_dataset(model: nn.MACH, folder: Path, args: Any) -> data.Dataset:
    """--dataset, else the run's own, read for the model."""
    chosen = getattr(args, "dataset", None)
    dataset = runs.load_dataset(model, folder, chosen, svmlight_base=args.svmlight_base)
    _say_all(dataset.remarks)
    return dataset


def _say_all(remarks: Iterable[str]) -> None:
    for remark in remarks:
        _say(remark)


def _sizes(dataset: data.Dataset) -> str:
    splits = ", ".join(f"{name} {len(split):,}" for name, split in dataset.splits.items())
    return f"{splits} documents; {dataset.num_features:,} features, {dataset.num_labels:,} labels"


def _say_without_features(where: str, without: int, count: int, rest: str = "") -> None:
    """A remark where some documents have no features."""
    if without:
        _say(f"{where}{without:,} of {count:,} documents ({without / count:.1%}) have no features{rest}")


def _say(text: str) -> None:
    """Remarks go to standard error: standard output is for results."""
    print(f"mach-ext: {text}", file=sys.stderr)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())

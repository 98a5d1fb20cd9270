"""The command `mach-ext`: argument parsing and what is shown on screen. The work is done by the library."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import difflib
import io
import json
import math
import os
import re
import stat
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

import numpy as np
import torch

from mach_ext import _ops, attack, certify, data, explain, metrics, nn, report, runs, svm, training
from mach_ext._memory import memory_words
from mach_ext._progress import tqdm
from mach_ext._terminal import escaped, one_line, say, show, signals, standard_streams
from mach_ext._version import __version__
from mach_ext.data.parsing import shown
from mach_ext.data.records import ANY, read_record
from mach_ext.neighbors import Neighbors

RUNS = Path("runs")
TRACEBACK = "MACH_EXT_TRACEBACK"  # environment variable: where errors come from is shown, too


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    with standard_streams(), signals():
        try:
            try:
                return _command(argv)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            return _failed("interrupted")
        except BrokenPipeError:
            return 0
        except OSError as error:
            return _failed(_words(error))
        except Exception as error:  # a defect of this program
            text = f"internal error, {type(error).__name__}: {error}"
            return _failed(f"{text} ({TRACEBACK}=1 shows where; please report it)")


def _failed(text: str) -> int:
    """Shows what went wrong, in one line."""
    if os.environ.get(TRACEBACK):
        traceback.print_exc()
    say(text)
    return 1


def _words(error: OSError) -> str:
    """What an error of the operating system says, without its number."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _command(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(_with_dashes(sys.argv[1:] if argv is None else argv, _flags(parser)))
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", ResourceWarning)
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        _check_device(args.device)
        args.run(args)
        return 0
    except training.TrainingInterrupted as interrupt:
        return _failed(str(interrupt))
    except BrokenPipeError:  # `mach-ext predict | head`
        return 0
    except Exception as error:
        if (shortage := memory_words(error)) is not None:
            return _failed(shortage)
        if isinstance(error, OSError):
            return _failed(_words(error))
        if isinstance(error, (ValueError, TypeError, FloatingPointError, torch.OutOfMemoryError)):
            return _failed(str(error) or type(error).__name__)
        raise


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
    say(f"warning: {message}")


# ------------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """Errors with the usage of the subcommand that has the fault, and with the nearest right spelling."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            hint = _nearest(flag, self._option_string_actions) if flag.startswith("-") else ""
            self.error(f"unknown argument {shown(unknown[0])}{hint}")
        return namespace, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = _nearest(str(value), action.choices or ())
            raise argparse.ArgumentError(action, error.message + hint) from None

    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own passes over a stream that fails


def _nearest(given: str, known: Iterable[Any]) -> str:
    near = difflib.get_close_matches(given.replace("_", "-"), map(str, known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mach-ext",
        description="Extreme multi-label classification with MACH.",
        epilog="Start: mach-ext train --dataset wordnet    then: mach-ext predict --text 'a small dog'    "
        f"An error is one line; with {TRACEBACK}=1 in the environment it comes with its traceback.",
    )
    parser.add_argument("--version", action="version", version=f"mach-ext {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    common = _Parser(add_help=False)
    group = common.add_argument_group("common")
    group.add_argument(
        "--output", type=_path, metavar="DIR", help="folder written to (default: runs/<dataset>)"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    group.add_argument("--threads", type=_threads, help="CPU threads (default: all cores)")
    group.add_argument("--seed", type=_seed, default=0, help="of hash, weights, batches (default: 0)")
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


_INT32 = 2**31 - 1
_FLOAT32 = float(np.finfo(np.float32).max)
_LARGEST_CHANGE = 1e17  # float32 holds the square of 30 times as much, where the curve ends


def _positive(text: str) -> int:
    return _integer(text, 1)


def _natural(text: str) -> int:
    return _integer(text, 0)


def _threads(text: str) -> int:
    return _integer(text, 1, 4096)


def _seed(text: str) -> int:
    return _integer(text, 0, 2**63 - 1)


def _steps(text: str) -> int:
    return _integer(text, 1, 65536)  # the nodes of the quadrature take time that grows with the square


def _integer(text: str, least: int, most: int = _INT32) -> int:
    digits = re.fullmatch(r"([+-]?)0*([0-9]+)", text)
    value = least - 1
    if digits is not None:
        value = int(digits[1] + digits[2][:30])  # no number of 30 digits is allowed, whatever follows
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {shown(text)}")
    if value > most:
        raise argparse.ArgumentTypeError(f"must be a whole number of at most {most}, got {shown(text)}")
    return value


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def _number(text: str) -> float:
    """A number in ASCII digits; NaN for any other text, infinite where float64 is too small for it."""
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def _real(rule: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """A type of numbers for which `allowed` holds, which the `rule` says in words."""

    def real(text: str) -> float:
        value = _number(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"must be a number {rule}, got {shown(text)}")
        return value

    return real


_share = _real("in [0, 1)", lambda value: 0 <= value < 1)
_rate = _real(f"within 0 and {_FLOAT32:.2g}", lambda value: 0 <= value <= _FLOAT32)
_above_0 = _real(f"above 0 and at most {_FLOAT32:.2g}", lambda value: 0 < value <= _FLOAT32)
_cost = _real("within 1e-06 and 1e+06", lambda value: 1e-6 <= value <= 1e6)
_tau = _real("within 0 and 100", lambda value: 0 <= value <= 100)


def _hidden_sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(_natural(part) for part in text.split(","))
    if len(sizes) > 2 or (len(sizes) == 2 and 0 in sizes):
        raise argparse.ArgumentTypeError(f"must be 0, a size or two sizes above 0, got {shown(text)}")
    return sizes


def _path(text: str) -> Path:
    return Path(_name(text))


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _model_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-path",
        type=_path,
        default=None,
        metavar="DIR",
        help="run folder (default: the newest in runs/)",
    )


def _reader_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--svmlight-base", type=_natural, choices=(0, 1), default=None,
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
    parts = [_number(part) for part in text.split(",")]
    A, B = parts if len(parts) == 2 else (math.nan, math.nan)
    if not (0 <= A < math.inf and 0 < B < math.inf):
        raise argparse.ArgumentTypeError(f"must be two numbers A,B with A >= 0 and B > 0, got {shown(text)}")
    return A, B


def _overwrite_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", default=False, help="replace the model that is in the folder"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", type=_name, required=True, help="a name (wordnet, wiki10, ...) or a folder"
    )
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
    model.add_argument("--dropout", type=_share, default=0.0, metavar="P", help="of hidden units (0)")
    model.add_argument("--feature-dropout", type=_share, default=0.0, metavar="P", help="of non-zeros (0)")
    solver = parser.add_argument_group("a solver in place of the training below")
    solver.add_argument(
        "--svm", action=argparse.BooleanOptionalAction, default=None,
        help="linear MACH, a support vector machine for each bucket: no rates, no epochs (where a label has "
        "32 documents or more on average, of 10,000 or more, and no other flag asks for what it has not)",
    )  # fmt: skip
    solver.add_argument("--C", type=_cost, default=None, help="of the SVMs: cost of an error (1)")
    fit = parser.add_argument_group("training")
    fit.add_argument("--epochs", type=_natural, default=None, help="(225,000 documents, within 5 ... 10)")
    fit.add_argument("--batch-size", type=_positive, default=None, help="documents a step (256)")
    fit.add_argument("--optimizer", choices=training.OPTIMIZERS, default=None, help="(adam; linear: adagrad)")
    fit.add_argument("--learning-rate", type=_rate, default=None, help="(0.002; linear: 0.5)")
    fit.add_argument("--encoder-learning-rate", type=_rate, default=None, help="of the encoder's rows (0.3)")
    fit.add_argument("--encoder-eps", type=_rate, default=None, help="Adam's eps for these rows (1e-4)")
    fit.add_argument("--schedule", choices=training.SCHEDULES, default=None, help="(linear)")
    fit.add_argument(
        "--gradient-threshold",
        "--negligible-gradient",
        type=_share,
        default=None,
        help="see mach_ext.training (0: exact)",
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
        "--tau", type=_tau, default=None,
        help="how far frequent labels are ranked down (1 / root of the documents a label has, at most 0.5)",
    )  # fmt: skip
    fit.add_argument(
        "--metric",
        choices=training.METRICS,
        default=None,
        help="dev metric that picks the best epoch, ties by loss (P@1)",
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _model_path(parser)
    parser.add_argument("--dataset", type=_name, default=None, help="other data than the run's own")
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
        "--input", type=_path, default=None, metavar="FILE",
        help="Documents: .jsonl, .txt (XMC), .svm or .npz, also compressed. -, and no source at all, is "
        "standard input.",
    )  # fmt: skip
    source.add_argument(
        "--split", choices=("train", "dev", "test"), default=None, help="of the run's dataset"
    )
    parser.add_argument(
        "--dataset", type=_name, default=None, help="with --split: other data than the run's own"
    )
    parser.add_argument(
        "--input-format", choices=data.TEXT_FORMATS, default=None,
        help="What standard input, or a file of any name, holds: text, a document a line, or jsonl, an "
        'object with "text" a line. A blank line is an empty document in text and is passed over in jsonl. '
        "[default for standard input: jsonl where its first line is such an object, else text]",
    )  # fmt: skip
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
    parser.add_argument("--dataset", type=_name, default=None, help="other data than the run's own")
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
    parser.add_argument("--n-steps", type=_steps, default=None, help="of gausslegendre (as it needs)")
    parser.add_argument("--show", type=_positive, default=10, metavar="N", help="features a label (10)")
    parser.add_argument("--html", type=_path, default=None, metavar="FILE", help="also as one HTML page")
    _reader_options(parser)


def _add_attack(parser: argparse.ArgumentParser) -> None:
    _model_path(parser)
    parser.add_argument("--dataset", type=_name, default=None, help="other data than the run's own")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test", help="(test)")
    parser.add_argument(
        "--eps", type=_sizes_of_changes, default=None, metavar="E[,E2,...]",
        help="sizes (0.01); of delete: how many words (1,2,3); one size is shown within a curve of six",
    )  # fmt: skip
    parser.add_argument(
        "--attack", choices=("fgsm", "pgd", "delete", "insert"), default="fgsm",
        help="one step, several steps, words removed, words added (fgsm)",
    )  # fmt: skip
    parser.add_argument(
        "--threat", type=_threat, default=None, metavar="MODEL",
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
    parser.add_argument("--transfer", type=_path, default=None, metavar="DIR", help="another run, asked too")
    parser.add_argument(
        "--certify", action="store_true", default=False,
        help="also: the part of P@k that no change of this threat model can take away",
    )  # fmt: skip
    parser.add_argument("--report", type=_path, default=None, metavar="FILE", help="one HTML page")
    _reader_options(parser)
    _propensity_option(parser)


def _sizes_of_changes(text: str) -> list[float]:
    sizes = [_number(part) for part in text.split(",")]
    if not all(0 <= size <= _LARGEST_CHANGE for size in sizes):
        rule = f"must be numbers >= 0 and at most {_LARGEST_CHANGE:g}, with commas between"
        raise argparse.ArgumentTypeError(f"{rule}, got {shown(text)}")
    return sizes


def _threat(text: str) -> str:
    try:
        attack.threat_model(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _add_compress(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes a copy of a run's model whose weights are rounded and zlib's, by default beside the run as "
        "<run>-small, and shows bytes and metrics of both. Every command takes it as it is. Only the file is "
        "small: in memory the copy is as large as the model."
    )
    _model_path(parser)
    parser.add_argument(
        "--step", type=_above_0, default=nn.STEP,
        help="weights of features become multiples of it, of hidden units of step / 64 "
        f"({nn.STEP}; less: closer, more bytes)",
    )  # fmt: skip
    parser.add_argument("--dataset", type=_name, default=None, help="other data than the run's own")
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
        action.add_argument(
            "--dataset", type=_name, required=name != "info", default=None, help="a name or a folder"
        )
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
    if args.output is not None:
        _check_folder("--output", args.output)
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        dataset = _load(args, holdout=not args.no_holdout)
    folder = args.output or RUNS / dataset.name
    _check_folder("the run folder (--output names another)", folder)
    _check_utf8("the run folder (--output names another)", folder)
    if folder.exists() and folder.samefile(dataset.path):
        raise ValueError(f"--output must not be the folder of the dataset, got {folder}")
    say(f"dataset {dataset.name} from {dataset.path}: {_sizes(dataset)}")
    resumed = args.resume and training.has_checkpoint(folder)
    if not (args.overwrite or resumed):
        runs.refuse_to_replace(folder)
    if dataset.train.Y.nnz == 0:
        say("no document of train has a label")
    for name, split in dataset.splits.items():
        _say_without_features(f"{name}: ", split.without_features, len(split))
    if args.svm is None and not for_fit and args.hidden_size is None and args.device == "cpu":
        args.svm = svm.prefer_svm(dataset.train.Y, dataset.num_features)
        if args.svm:
            say("labels have many documents: support vector machines (--no-svm: a hidden layer)")
    if args.C is not None and not args.svm:
        raise ValueError("--C is of support vector machines, see --svm")
    model = _new_model(dataset, args).to(args.device)
    say(f"model: {sum(p.numel() for p in model.parameters()):,} parameters; run folder {folder}")
    if args.propensity is None and resumed:
        args.propensity = runs.kept_propensity(folder)
    model.attachments = runs.attachments(dataset, settings=_settings(args), propensity=args.propensity)
    runs.TrainingLabels.of(model, dataset).inverse_propensity()  # refuses --propensity before the work
    with _timed(seconds, "train"):
        record = _solve(model, dataset, folder, args) if args.svm else _fit(model, dataset, folder, args)
    results: dict[str, Any] = {}
    with _timed(seconds, "evaluate"):
        for name in ("dev", "test"):
            if name in dataset.splits:
                results[name] = runs.evaluate(model, dataset, name)
    if record.best_epoch is not None:
        say(f"best epoch {record.best_epoch} of {record.epoch}")
    seconds["fit"] = record.seconds  # with what was done before a resume
    with _all_done() as then:
        for name, result in results.items():
            then(_show_metrics, name, result)
        history = {"history": record.history}
        then(_write_metrics, folder / "metrics.json", folder, dataset, model, results, seconds, history)


def _suggested(dataset: data.Dataset) -> dict[str, Any]:
    return training.default_sizes(len(dataset.train), dataset.num_features, dataset.num_labels)


def _new_model(dataset: data.Dataset, args: Any) -> nn.MACH:
    suggested, hidden_size, encoder = _suggested(dataset), args.hidden_size, args.encoder or "shared"
    if args.svm:
        hidden_size = hidden_size or (0,)
        suggested |= svm.default_svm_sizes(dataset.num_labels)
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
    with training.lock_run(folder):
        if not args.overwrite:  # another run may have ended here meanwhile
            runs.refuse_to_replace(folder)
        training.delete_checkpoint(folder)
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
    if args.output is not None:
        _check_folder("--output", args.output)
    folder = _run_folder(args)
    _output(args, folder)
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        model = _model(folder, args.device)
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
    with _all_done() as then:
        then(_show_metrics, name, result)
        then(_add_metrics, args, folder, dataset, model, {name: result}, seconds)


def _add_metrics(
    args: Any,
    folder: Path,
    dataset: data.Dataset,
    model: nn.MACH,
    results: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    """Writes metrics beside those that are kept; of another dataset than the run's into another file."""
    other = "" if args.dataset is None else f"-{dataset.name}"
    file = _output(args, folder) / f"metrics{other}.json"
    former = _former_metrics(file)
    path = str(dataset.path.absolute())
    if args.dataset is not None and former.get("path", path) != path:  # another dataset of that name
        file = file.with_stem(f"{file.stem}-{zlib.crc32(path.encode()):08x}")
        former = _former_metrics(file)
    if not _is_of(former, model, folder):
        former = {}
    _write_metrics(file, folder, dataset, model, results, seconds, former)


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
    _write_json(file, record)
    say(f"metrics: {file}")


def _show_metrics(split: str, result: dict[str, Any]) -> None:
    """A table: a row a metric, a column all labels and each band."""
    bands = result["bands"]
    columns = {"all": result, **bands}
    show(f"\n{split:<15}" + "".join(f"{name:>9}" for name in columns))
    for metric in (key for key in result if key not in ("bands", "propensity")):
        cells = (column.get(metric) for column in columns.values())
        show(f"{metric:<15}" + "".join(f"{'-':>9}" if v is None or v != v else f"{v:>9.4f}" for v in cells))
    if any(metric.startswith("PSP") for metric in result):
        constants = result["propensity"]
        show(
            f"PSP, PSnDCG: A={constants['A']:g}, B={constants['B']:g}, labels of "
            f"{constants['documents']:,} training documents"
        )


# --------------------------------------------------------------------------------------------- predict


def predict(args: Any) -> None:
    if args.dataset is not None and args.split is None:
        raise ValueError("--dataset needs --split")
    if args.input_format is not None and (args.split is not None or args.text is not None):
        raise ValueError("--input-format is for --input and standard input")
    if args.output is not None:
        file = args.output / f"predictions.{args.format}"
        _check_folder("--output", args.output)
        _check_file("--output", file)
        if args.input is not None and file.exists() and args.input.exists() and file.samefile(args.input):
            raise ValueError(f"--output must not be where --input is read from, got {args.input}")
    folder = _run_folder(args)
    model = _model(folder, args.device)
    args.k = nn.checked_k("predict", args.k, model.num_labels, least=0, name="--k")
    if args.format == "tsv" and model.merge != "mean_logit":
        say(f"scores are on the scale of the model's merge: {nn.SCALES[model.merge]}")
    if args.output is None:
        _predict_to(sys.stdout, args, model, folder)
        return
    with (
        _written(file) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace") as out,
    ):
        _predict_to(out, args, model, folder)
    say(f"predictions: {file}")


def _predict_to(out: TextIO, args: Any, model: nn.MACH, folder: Path) -> None:
    """A line a document, written as it is computed: memory does not grow with the number of documents."""
    names: Sequence[str] = runs.columns_of(model).label_names or explain.Numbers()
    write = json.dumps if _lacks_letters(out) else data.json_line
    number = unknown = 0
    with tqdm(unit="doc", disable=args.quiet or out is sys.stdout, dynamic_ncols=True) as bar:
        for X in _documents(args, model, folder):
            scores, labels = model.predict(X, args.k)
            features = data.row_features(X).tolist()
            for count, row_scores, row_labels in zip(features, scores.tolist(), labels.tolist(), strict=True):
                pairs = [(names[label], score) for label, score in zip(row_labels, row_scores, strict=True)]
                if args.format == "tsv":
                    cells = (f"{one_line(name)}\t{score if count else math.nan:.6g}" for name, score in pairs)
                    out.write("\t".join(cells) + "\n")
                else:
                    best = [{"label": name, "score": score if count else None} for name, score in pairs]
                    record = {"document": number, "features": count, "scale": model.merge, "labels": best}
                    out.write(write(record) + "\n")
                number += 1
                unknown += count == 0
            out.flush()  # whoever sent these documents can be waiting for the answers
            bar.update(X.shape[0])
    rest = " that the model knows. Their labels are those of an empty document, without scores"
    _say_without_features("", unknown, number, rest)


def _lacks_letters(out: TextIO) -> bool:
    """Whether JSON has to go without other letters than ASCII's to arrive as it is."""
    return codecs.lookup(out.encoding or "utf-8").name != "utf-8"


def _documents(args: Any, model: nn.MACH, folder: Path) -> Iterator[Any]:
    """Blocks of documents as CSR, from --text, --input, --split or standard input."""
    columns, remarks = runs.columns_of(model), list[str]()
    if args.split is not None:
        X = _split_of(_run_dataset(model, folder, args), args.split).X
        yield from (X[start : start + 4096] for start in range(0, X.shape[0], 4096))
    elif args.text is not None:
        texts = [_from_shell(text, f"--text {number}") for number, text in enumerate(args.text, start=1)]
        _say_no_svmlight(args)
        yield from data.vectorised(texts, columns)
    elif args.input is None or str(args.input) == "-":
        _say_no_svmlight(args)
        yield from data.stream_documents(_standard_input(args), columns, format=args.input_format)
    else:
        yield from data.iter_documents(
            args.input, columns, svmlight_base=args.svmlight_base, remarks=remarks, format=args.input_format
        )
    for remark in remarks:
        say(remark)


def _standard_input(args: Any) -> BinaryIO:
    if sys.stdin is None:
        raise ValueError("standard input is closed; give --text, --input or --split")
    if args.input is None and sys.stdin.isatty():
        raise ValueError("predict needs --text, --input or --split, or text on standard input (--input -)")
    return sys.stdin.buffer


def _from_shell(text: str, flag: str) -> str:
    """An argument as text: bytes that the locale's encoding has no letters for are read as UTF-8."""
    if re.search("[\udc80-\udcff]", text) is None:
        return text
    return data.decode_line(os.fsencode(text), flag)


# --------------------------------------------------------------------------------------------- explain


def explain_document(args: Any) -> None:
    if args.html is not None:
        _check_file("--html", args.html)
    if args.output is not None:
        _check_folder("--output", args.output)
    folder = _run_folder(args)
    model = _model(folder, args.device)
    k = nn.checked_k("explain", args.k, model.num_labels, name="--k")
    X, text, title, true, dataset = _one_document(args, model, folder)
    feature_names = label_names = None
    if dataset is not None and not {"vectorizer.json", "features.json"} & set(model.attachments):
        feature_names = dataset.feature_names
    if dataset is not None and "labels.json" not in model.attachments:
        label_names = dataset.label_names
    found = explain.integrated_gradients(
        model,
        X,
        model.predict(X, k)[1][0]
        if args.label is None
        else [_from_shell(label, "--label") for label in args.label],
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
    with _all_done() as then:
        then(_show_explanation, title, found, voted, checks, true, args.show)
        pages = [args.html] if args.html is not None else []
        if args.output is not None:
            then(_write_explanation, args.output, found)
            pages.append(args.output / "explanation.html")
        if not pages:
            return
        # A decode for each feature: of those that count for some label.
        most = np.unique(np.argsort(-np.abs(found.attributions), axis=1)[:, : args.show])
        names = {"feature_names": feature_names, "label_names": label_names}
        removed = explain.removals(model, X, k, found.features[most].tolist(), **names)
        vectorizer = runs.columns_of(model).vectorizer
        page = report.explanation_page(found, voted, checks, removed, vectorizer, title, true)
        for file in pages:
            then(_write, file, page.encode())


def _write_explanation(folder: Path, found: explain.Explanation) -> None:
    picture = io.BytesIO()
    found.plot().savefig(picture, dpi=150)
    _write(folder / "explanation.json", (found.to_json() + "\n").encode())
    _write(folder / "explanation.png", picture.getvalue())


def _one_document(
    args: Any, model: nn.MACH, folder: Path
) -> tuple[Any, str | None, str, list[int] | None, data.Dataset | None]:
    """The document, its text, what to call it, its true labels, its dataset: as far as they are known."""
    if args.text is not None:
        _say_no_svmlight(args)
        (X,) = data.vectorised([_from_shell(args.text, "--text 1")], runs.columns_of(model))
        if not data.row_features(X).any():
            raise ValueError("--text: none of its words is in the model's vocabulary: nothing to explain")
        return X, _from_shell(args.text, "--text 1"), "Explanation of a text", None, None
    dataset = _run_dataset(model, folder, args)
    split, n = _split_of(dataset, args.split), args.sample_id
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
    rows: int,
) -> None:
    joiners = "\u200c\u200d"  # of letters: not printable, but part of words
    text = "".join(c if c.isprintable() or c in joiners else " " for c in found.text or "")
    show(f"{one_line(title)}: {report.shortened(text, 300) or f'{len(found.features)} features'}")
    low, high = float(voted.logits.min()), float(voted.logits.max())
    scale, model_scale = nn.SCALES[found.scale], nn.SCALES[found.model_scale]
    steps = f"{found.n_steps} steps" if found.n_steps else "exact"
    for i, label in enumerate(found.labels.tolist()):
        right = "" if true is None else ("  (right)" if label in true else "  (wrong)")
        show(f"\n{one_line(found.label_names[i])}{right}")
        show(
            f"  score {found.scores[i]:+.3f} ({scale}), of the baseline {found.baseline_scores[i]:+.3f}; "
            f"delta {found.delta[i]:.1e} ({steps})"
        )
        if scale != model_scale:
            show(f"  the model ranks by {found.model_scores[i]:+.3f} ({model_scale}), as predict shows")
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
        for line in report.attribution_lines(found, label, rows):
            show(line)


# ---------------------------------------------------------------------------------------------- attack


def attack_model(args: Any) -> None:
    if args.output is not None:
        _check_folder("--output", args.output)
    if args.report is not None:
        _check_file("--report", args.report)
    folder = _run_folder(args)
    _output(args, folder)
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        model = _model(folder, args.device)
        dataset = _run_dataset(model, folder, args)
        other = None if args.transfer is None else _model(args.transfer, args.device, "--transfer")
    split = _split_of(dataset, args.split)
    some = slice(0, args.sample)
    X, Y, truth = split.X[some], split.Y[some], split.truth[some]
    default = {"delete": "delete", "insert": "insert(3)"}.get(args.attack, "support")
    threat = attack.threat_model(args.threat or default, False if args.signed else None)
    wanted = args.eps or ([1.0, 2.0, 3.0] if args.attack == "delete" else [0.01])
    grid = _eps_grid(wanted, args.attack)
    if args.certify:
        certify.check(model, threat, "--certify")
        if split.filtered is not None:
            say("certified figures count the answers that the filter file excludes, too")
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
    output = _output(args, folder)
    record = {
        **result, "split": args.split, "dataset": dataset.name, "model": model.configuration(),
        "propensity": labels.as_dict(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }  # fmt: skip
    with _all_done() as then:
        then(_show_attack, f"{dataset.name}, {args.split}", result, wanted)
        then(_write_json, output / "attack.json", record)
        then(_add_attack_to_metrics, args, output, folder, dataset, model, threat, result)
        then(_draw_attack, output, result, wanted)
        if args.report is not None:
            samples = _attack_samples(args, model, dataset, X, Y, threat, wanted[-1], k)
            page = report.attack_page(result, wanted, samples, f"{dataset.name}, {args.split}: {args.attack}")
            then(_write, args.report, page.encode())


def _add_attack_to_metrics(
    args: Any,
    output: Path,
    folder: Path,
    dataset: data.Dataset,
    model: nn.MACH,
    threat: attack.ThreatModel,
    result: dict[str, Any],
) -> None:
    file = output / "metrics.json"
    former = _former_metrics(file)
    if former and not _is_of(former, model, folder):
        return
    kept = former.get("attacks", {})
    where = dataset.name if args.dataset is None else dataset.path.absolute()
    whole = "" if args.dataset is None and args.sample is None else f" {where} {result['documents']}"
    how = {key: result[key] for key in ("attack", "threat_model", "goal", "nonnegative", "steps")}
    signed = "" if threat.nonnegative else " signed"
    steps = "" if result["steps"] is None else f" {result['steps']} steps"
    name = f"{args.attack} {threat}{signed}{steps} {args.goal} {args.split}{whole}"
    short = {f"{entry['epsilon']:g}": entry["metrics"] for entry in result["adversarial"]}
    kept[name] = {**how, "clean": result["clean"], "adversarial": short}
    weights = runs.weights_digest(folder)
    _write_json(file, {"model": model.configuration(), "weights": weights, **former, "attacks": kept})


def _draw_attack(output: Path, result: dict[str, Any], wanted: Sequence[float]) -> None:
    picture = io.BytesIO()
    report.plot_attack(result, wanted).savefig(picture, dpi=150, format="png")
    _write(output / "attack.png", picture.getvalue(), "chart")


def _eps_grid(wanted: Sequence[float], kind: str) -> list[float]:
    """What is asked for, 0, and for a single size a curve around it."""
    grid = {0.0, *wanted}
    if len(wanted) == 1 and kind != "delete":
        grid |= {round(wanted[0] * factor, 12) for factor in (0.1, 0.3, 3, 10, 30)}
    return sorted(grid)


def _show_attack(title: str, result: dict[str, Any], wanted: Sequence[float]) -> None:
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
                + ("  <-" if key == "metrics" and entry["epsilon"] in wanted else "")
            )
    for name, (low, high) in result.get("certified_zero", {}).items():
        reached = f"is above 0 up to eps {low:g}" if high is None else f"reaches 0 at eps {high:.2g}"
        show(f"certified {name} {reached}")
    for entry in result["adversarial"]:
        if entry["epsilon"] in wanted:
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
    _check_folder("--output", output)
    _check_utf8("--output", output)
    if output.resolve() == folder.resolve():
        raise ValueError(f"--output must be another folder than the model's, got {output}")
    if (output / f"{training.CHECKPOINT}.json").exists():
        raise ValueError(f"--output must not be the folder of a training run, got {output}")
    model = _model(folder, args.device)
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
    with _naming(output), training.lock_run(output):
        if not args.overwrite:  # another run may have ended here meanwhile
            runs.refuse_to_replace(output, model)
        model.save(output, args.step)
    say(f"model: {output}")
    model = nn.load(output, args.device)
    after = measured(output)
    with _all_done() as then:
        then(_show_sizes, "" if dataset is None else split, folder, before, output, after)
        if dataset is not None:
            metrics_after = {name: value for name, value in after.items() if name != "bytes"}
            file = output / "metrics.json"
            then(_write_metrics, file, output, dataset, model, {split: metrics_after}, {}, {})


def _show_sizes(
    split: str, folder: Path, before: dict[str, Any], output: Path, after: dict[str, Any]
) -> None:
    show(f"{split:<10}{one_line(folder.name):>20}{one_line(output.name):>20}")
    show(f"{'bytes':<10}{before['bytes']:>20,}{after['bytes']:>20,}")
    for name in (name for name in before if name not in ("bands", "propensity", "bytes")):
        show(f"{name:<10}{before[name]:>20.4f}{after[name]:>20.4f}")


# ------------------------------------------------------------------------------------------------ info


def info(args: Any) -> None:
    folder = _run_folder(args)
    model = _model(folder)
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
        show(json.dumps(record, indent=2))
        return
    show(f"{escaped(str(folder))}\n{model}")
    total = sum(p.numel() for p in model.parameters())
    show(f"\nparameters  {total:,}")
    for name, parameter in model.named_parameters():
        show(f"  {name:<16}{list(parameter.shape)!s:<24}{parameter.numel():>16,}  {parameter.dtype}")
    show(f"\n{'memory, batches of 256 documents':<42}{'CPU':>12}{'CUDA':>12}")
    for name, size in record["memory"]["cpu"].items():
        show(f"  {name:<40}{_size(size):>12}{_size(record['memory']['cuda'][name]):>12}")
    show(f"\nlabel hash\n{model.hash.diagnostics()}")
    operators = record["operators"]
    show(f"\noperators: CPU {operators['cpu']}; CUDA: {operators['cuda']}")
    for line in _training_lines(record["training"]) if record["training"] is not None else ():
        show(line)


def _training_lines(record: dict[str, Any]) -> list[str]:
    """What the record of a checkpoint, as `read_checkpoint` gives it, says of the training."""
    state, settings = record["progress"], record["hyperparameters"]
    lines = [
        f"\ntraining: {state['epoch']} of {settings['epochs']} epochs, {state['seconds']:.0f} s",
        "  " + ", ".join(f"{k} {v}" for k, v in settings.items() if k != "epochs"),
    ]
    for entry in state["history"]:
        if "loss" in entry:  # not so in the last word of repetitions trained in turn
            scores = entry.get("dev", {}).items()
            dev = "  ".join(f"{k} {math.nan if v is None else v:.4f}" for k, v in scores if k[0] == "P")
            lines.append(f"  epoch {entry['epoch']}: loss {entry['loss']:.4f}  {dev}")
    return lines


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
        show(f"data folder: {escaped(str(data.data_home()))}  ($MACH_DATA sets another)")
        for name in data.NAMES:
            show(f"  {name:<16}{'there' if (data.data_home() / name).is_dir() else 'not fetched'}")
        return
    show(json.dumps(_load(args).info(), indent=2))


def data_fetch(args: Any) -> None:
    show(escaped(str(data.fetch(data.known_name(args.dataset)))))


def data_convert(args: Any) -> None:
    if args.output is None:
        raise ValueError("data convert: needs --output DIR, the folder to write")
    _check_folder("--output", args.output)
    dataset = _load(args, holdout=False)
    compression = f".{args.compression}" if args.compression else ""
    with _naming(args.output):
        data.write_folder(args.output, dataset, format=args.format, compression=compression)
    say(f"{args.output}: {_sizes(dataset)}")


# --------------------------------------------------------------------------------------------- writing


def _check_folder(flag: str, folder: Path) -> None:
    """Raises where the folder can't be made or written to: before long work, by trying it out."""
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        if not folder.is_symlink():
            _check_folder(flag, folder.absolute().parent)
            return
        is_folder = False
    except OSError as error:
        raise OSError(f"{flag}: {folder} can't be a folder: {error.strerror}") from None
    if not is_folder:
        raise ValueError(f"{flag} must be a folder, but {folder} is none")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".mach-ext.", dir=folder))
    except OSError as error:
        raise OSError(f"{flag}: {folder} can't be written to: {error.strerror}") from None


def _check_utf8(flag: str, folder: Path) -> None:
    """Raises where safetensors could not open a file of the folder."""
    if re.search("[\udc80-\udcff]", str(folder)):
        raise ValueError(f"{flag}: the path of a model must be UTF-8, got {folder}")


def _check_file(flag: str, file: Path) -> None:
    """Raises where the file can't be written, or is something else than a file."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{flag} must be a file, but {file} is a {'folder' if file.is_dir() else 'device'}")
    _check_folder(f"the folder of {flag}", file.parent)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes an error of writing say what was to be written."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(f"{path} can't be written: {error.strerror}") from error


@contextlib.contextmanager
def _written(file: Path) -> Iterator[Path]:
    """A temporary name to write to, in a folder that is made where it is missing."""
    with _naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with data.atomic_path(file) as temporary:
            yield temporary


def _write(file: Path, content: bytes, what: str = "written") -> None:
    with _written(file) as temporary:
        temporary.write_bytes(content)
    say(f"{what}: {file}")


def _write_json(file: Path, record: Any) -> None:
    with _naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        data.write_json(file, record)


@contextlib.contextmanager
def _all_done() -> Iterator[Callable[..., None]]:
    """Takes steps that show and write results. Each is taken, whatever became of the others."""
    problems: list[OSError] = []

    def then(step: Callable[..., None], *args: Any) -> None:
        try:
            step(*args)
            sys.stdout.flush()
        except OSError as error:
            problems.append(error)

    yield then
    real = [_words(error) for error in problems if not isinstance(error, BrokenPipeError)]
    if real:
        raise OSError("; ".join(real))
    if problems:
        raise problems[0]


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
    say(f"using the newest run, {newest}")
    return newest


def _model(folder: Path, device: str = "cpu", flag: str = "--model-path") -> nn.MACH:
    """The model of a folder; a message for one that has none says which flag names another."""
    _check_utf8(flag, folder)
    try:
        return nn.load(folder, device)
    except ValueError as error:
        if (folder / "model.json").exists():
            raise
        raise ValueError(f"{error} ({flag} names the folder of a run)") from None


def _split_of(dataset: data.Dataset, name: str) -> data.Split:
    if name not in dataset.splits:
        there = ", ".join(dataset.splits)
        raise ValueError(f"{dataset.path}: no {name} split; there are: {there} (--split, --dataset)")
    return dataset.splits[name]


def _load(args: Any, holdout: bool = True) -> data.Dataset:
    """--dataset by itself."""
    dataset = data.load(
        args.dataset, holdout=holdout, svmlight_base=args.svmlight_base, num_threads=args.threads or 0
    )
    return _with_remarks(dataset, args)


def _run_dataset(model: nn.MACH, folder: Path, args: Any) -> data.Dataset:
    """--dataset, else the run's own, read for the model."""
    chosen = getattr(args, "dataset", None)
    dataset = runs.load_dataset(model, folder, chosen, svmlight_base=args.svmlight_base)
    return _with_remarks(dataset, args)


def _with_remarks(dataset: data.Dataset, args: Any) -> data.Dataset:
    for remark in dataset.remarks:
        say(remark)
    if dataset.svmlight_base is None:
        _say_no_svmlight(args)
    return dataset


def _say_no_svmlight(args: Any) -> None:
    if args.svmlight_base is not None:
        say("no svmlight file is read; --svmlight-base is passed over")


def _sizes(dataset: data.Dataset) -> str:
    splits = ", ".join(f"{name} {len(split):,}" for name, split in dataset.splits.items())
    return f"{splits} documents; {dataset.num_features:,} features, {dataset.num_labels:,} labels"


def _say_without_features(where: str, without: int, count: int, rest: str = "") -> None:
    """A remark where some documents have no features."""
    if without:
        say(f"{where}{without:,} of {count:,} documents ({without / count:.1%}) have no features{rest}")


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())

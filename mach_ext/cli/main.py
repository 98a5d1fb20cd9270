"""The command `mach-ext`: it parses and prints. The work is done by `mach_ext.runs`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mach_ext import training
from mach_ext._memory import memory_words
from mach_ext._terminal import say, signals, standard_streams
from mach_ext._version import __version__
from mach_ext.cli import attack, compress, data, evaluate, explain, info, predict, train
from mach_ext.cli.options import Parser, path, seed, threads
from mach_ext.cli.results import error_words
from mach_ext.runs.arguments import check_device, use_flags

TRACEBACK = "MACH_EXT_TRACEBACK"  # environment variable: where errors come from is shown, too

# Arguments of the library whose flag has another name.
FLAGS = {
    "num_repetitions": "--hash-functions",
    "num_buckets": "--buckets",
    "hidden_dropout": "--dropout",
    "epsilons": "--eps",
    "folder": "--model-path",
    "method": "--attack",
    "threat_model": "--threat",
    "quantization_step": "--step",
}

COMMANDS: tuple[tuple[Any, str], ...] = (
    (train, "train a model, evaluate it on the test split, keep everything in a run"),
    (evaluate, "P, nDCG, PSP, PSnDCG and R of a run, by label frequency"),
    (predict, "top labels of documents, as names with scores"),
    (explain, "which features give a document its labels, and why"),
    (attack, "P@k and nDCG@k of a run, clean and under attack, by size"),
    (compress, "a copy of a run's model in a tenth of its bytes or less"),
    (info, "shape, parameters, memory, collisions and training record of a run"),
)


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
            return _failed(error_words(error))
        except Exception as error:  # a defect of this program
            text = f"internal error, {type(error).__name__}: {error}"
            return _failed(f"{text} ({TRACEBACK}=1 shows where; please report it)")


def _failed(text: str) -> int:
    """Shows what went wrong, in one line."""
    if os.environ.get(TRACEBACK):
        traceback.print_exc()
    say(text)
    return 1


def _command(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(_with_dashes(sys.argv[1:] if argv is None else argv, _flags(parser)))
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", ResourceWarning)
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        with use_flags(FLAGS), _remarks():
            check_device(args.device)
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
            return _failed(error_words(error))
        if isinstance(error, (ValueError, TypeError, FloatingPointError, torch.OutOfMemoryError)):
            return _failed(str(error) or type(error).__name__)
        raise


class _Say(logging.Handler):
    """Prints remarks of the library."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextlib.contextmanager
def _remarks() -> Iterator[None]:
    """Shows what the library logs."""
    logger, handler = logging.getLogger("mach_ext"), _Say(logging.INFO)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)  # which also forgets what was enabled meanwhile
        logger.propagate = propagate


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


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    say(f"warning: {message}")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mach-ext",
        description="Extreme multi-label classification with MACH.",
        epilog="Start: mach-ext train --dataset wordnet    then: mach-ext predict --text 'a small dog'    "
        f"An error is one line; with {TRACEBACK}=1 in the environment it comes with its traceback.",
    )
    parser.add_argument("--version", action="version", version=f"mach-ext {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    common = Parser(add_help=False)
    group = common.add_argument_group("common")
    group.add_argument(
        "--output", type=path, metavar="DIR", help="folder written to (default: runs/<dataset>)"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    group.add_argument("--threads", type=threads, help="CPU threads (default: all cores)")
    group.add_argument("--seed", type=seed, default=0, help="of hash, weights, batches (default: 0)")
    group.add_argument("--quiet", action="store_true", help="no progress bars")

    for module, text in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        sub = commands.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(run=module.run)
        module.add_options(sub)
    data.add_actions(commands, common)
    return parser

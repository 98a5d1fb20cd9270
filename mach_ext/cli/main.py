"""The command `mach-ext`. It parses options and prints results, and `mach_ext.runs` does the work."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from mach_ext._launch import is_beside_first
from mach_ext._terminal import say, standard_streams
from mach_ext._version import __version__
from mach_ext.cli import attack, bench, compress, data, evaluate, explain, info, predict, train
from mach_ext.cli.command import Command, Group, ToldByAnother, require_command
from mach_ext.cli.results import failure
from mach_ext.cli.usage import UsageError, fault, usage

TRACEBACK = "MACH_EXT_TRACEBACK"  # environment variable: if it is set, errors come with a traceback
PROGRAM = "mach-ext"
GRACE = 5  # seconds that the first of several processes gets to print wrong usage before another ends
COMPLETE = "_MACH_EXT_COMPLETE"  # environment variable: a shell sets it to ask for completions

# Each module has an EXAMPLE and a function `run`. The parameters of `run` are the command's options.
COMMANDS: tuple[Any, ...] = (train, evaluate, predict, explain, attack, compress, info, bench)

app = typer.Typer(
    cls=Group,
    help="Train, use, explain and attack models that give documents their labels, also from among millions "
    "of labels. mach-ext implements MACH, which needs far fewer outputs than there are labels.",
    epilog="Example: mach-ext train --dataset wordnet\n\nThen: mach-ext predict --text 'a small dog'\n\n"
    f"An error is one line. With {TRACEBACK}=1 in the environment it comes with its traceback.",
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["--help", "-h"],
    },
    subcommand_metavar="COMMAND [ARGS]...",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(value: bool) -> None:
    if value:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def start(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Refuses a call without a command."""
    require_command(ctx)


for module in COMMANDS:
    name = module.__name__.rpartition(".")[2]
    app.command(name, cls=Command, epilog=f"Example: {module.EXAMPLE}")(module.run)
app.add_typer(data.app, name="data")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments after the name of the program. None: those of this process.

    Returns:
        The exit code. 0 means done, 1 means failed, and 2 means wrong usage.

    Example:
        >>> from mach_ext.cli import main
        >>> main(["predict", "--txt", "a small dog"])  # also prints that the option is called --text
        2
    """
    with standard_streams(), _only_errors():
        try:
            try:
                return _command(sys.argv[1:] if argv is None else list(argv))
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            return _failed(str(interrupt) or "interrupted")
        except BrokenPipeError:  # `mach-ext predict | head`
            return 0
        except ToldByAnother:
            return 1
        except Exception as error:
            return _failed(failure(error) or _defect(error))


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Silence a process that `torchrun` started beside the first, except for its errors."""
    if not is_beside_first():
        yield
        return
    former = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = former


def _command(argv: list[str]) -> int:
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]  # rich would use 0 as the width of the terminal
    command: Any = typer.main.get_command(app)
    try:
        if COMPLETE in os.environ:
            command.main(argv, prog_name=PROGRAM)  # raises SystemExit
        with command.make_context(PROGRAM, argv) as ctx:
            command.invoke(ctx)
    except typer.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # `mach-ext --help | head`
            return 0
        return stop.code if isinstance(stop.code, int) else 0
    except UsageError as error:
        if _is_silent():
            time.sleep(GRACE)
            return 2
        print(usage(error), file=sys.stderr)
        say(fault(error), is_error=True)
        return 2
    return 0


def _is_silent() -> bool:
    """Returns whether this is one of several processes, and not the first."""
    return getattr(sys.stderr, "name", None) == os.devnull


def _defect(error: Exception) -> str:
    text = f"internal error, {type(error).__name__}: {error}"
    return f"{text} ({TRACEBACK}=1 shows where; please report it)"


def _failed(text: str) -> int:
    """Shows what went wrong, in one line."""
    if _is_silent():  # one of several processes, whose errors are seen nevertheless
        sys.stderr, text = sys.__stderr__ or sys.stderr, f"rank {os.environ['RANK']}: {text}"
    if os.environ.get(TRACEBACK):
        traceback.print_exc()
    say(text, is_error=True)
    return 1

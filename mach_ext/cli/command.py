"""What all commands share: how they read options, and how they show messages and warnings."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mach_ext._terminal import quote, say, signals
from mach_ext.cli.options import Device, Output, Quiet, Seed, Threads
from mach_ext.cli.usage import UsageError, nearest
from mach_ext.cli.values import derived

# Flags whose name differs from that of the library's argument.
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


# Commands whose work several processes share. The first process alone runs the others.
TOGETHER = ("train", "evaluate", "predict", "attack")


class ToldByAnother(Exception):
    """Another of the processes that work together has printed the error of this one."""


def _common_options() -> list[Any]:
    """Returns the options that every command accepts, even if its function does not use them."""

    def common(
        output: Output = None,
        device: Device = "cpu",
        seed: Seed = 0,
        quiet: Quiet = False,
        threads: Threads = derived("all cores"),
    ) -> None:
        pass

    app = typer.Typer(add_completion=False)
    app.command()(common)
    return list(typer.main.get_command(app).params)


class Command(TyperCommand):
    """A command that accepts the common options. The help hides options that its function does not use."""

    allow_extra_args = True  # `parse_args` refuses them with a message of its own

    def __init__(self, *args: Any, params: list[Any] | None = None, **kwargs: Any) -> None:
        own = list(params or ())
        self._extra = []
        for option in map(copy.copy, _common_options()):
            if option.name not in {each.name for each in own}:
                option.hidden = option.name != "threads"
                self._extra.append(option)
        super().__init__(*args, params=[*own, *self._extra], **kwargs)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments. An argument that belongs to no option is a usage error."""
        with _told_where(ctx):
            if not ctx.resilient_parsing:
                self._check_places(ctx, args)
            rest = super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            ctx.fail(f"unknown argument {quote(ctx.args[0])}")
        return rest

    def _check_places(self, ctx: Any, args: list[str]) -> None:
        """Refuses an argument without an option, and an option that stands in place of another's value."""
        options = {name: each for each in self.get_params(ctx) for name in (*each.opts, *each.secondary_opts)}
        normalize = ctx.token_normalize_func or str
        given = iter(args)
        for argument in given:
            if argument == "--":
                break
            if not argument.startswith("-"):
                usual = next((name for name in ("--text", "--dataset") if name in options), None)
                hint = f"; did you mean {usual} {quote(argument)}?" if usual else ""
                ctx.fail(f"unknown argument {quote(argument)}{hint}")
            option = options.get(normalize(argument))
            if option is None and "=" not in argument:
                break  # an unknown option, which the parser refuses
            if option is None or option.is_flag:
                continue
            value = next(given, "")
            if value == "--" or normalize(value.partition("=")[0]) in options:
                ctx.fail(f"{argument} requires an argument, got the option {quote(value)}")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns the parts of the usage line, with the required options first."""
        required = [f"{option.opts[0]} {option.metavar}" for option in self.params if option.required]
        return [*required, *super().collect_usage_pieces(ctx)]

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns the options. The help shows --help under the heading of the common options."""
        return _tidy(super().get_params(ctx), "Common")

    def invoke(self, ctx: Any) -> Any:
        """Runs the command's function with its threads, device, messages and signals in place."""
        import torch  # before `signals`: Ctrl-C during these imports ends the command at once

        from mach_ext.cli.results import failure
        from mach_ext.distributed import together
        from mach_ext.distributed.ranks import alone, is_lost_connection
        from mach_ext.runs.arguments import check_device, use_flags

        given = {option.name: ctx.params.pop(option.name) for option in self._extra}
        warnings.showwarning = _show_warning
        warnings.simplefilter("default", ResourceWarning)
        # Python's own: a file that Ctrl-C left open is closed all the same.
        warnings.filterwarnings("ignore", "unclosed |Implicitly cleaning", ResourceWarning)
        with signals(), use_flags(FLAGS), _remarks():
            if given["threads"] is not None:
                torch.set_num_threads(given["threads"])
            check_device({**ctx.params, **given}["device"])
            with together() as ranks:
                try:
                    if ctx.info_name in TOGETHER:
                        return super().invoke(ctx)
                    if ranks.is_first:
                        with alone():
                            return super().invoke(ctx)
                except (Exception, KeyboardInterrupt) as error:
                    if is_lost_connection(error):
                        raise  # The watch prints why, unless an error has been told.
                    words = str(error) if isinstance(error, KeyboardInterrupt) else failure(error)
                    if not ranks.tell_error(words or repr(error)):
                        raise ToldByAnother from error
                    raise
            return None


class Group(TyperGroup):
    """A group of commands. For a misspelled name it suggests the nearest command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments before the command's name."""
        with _told_where(ctx):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command that the first argument names. An unknown name is a usage error."""
        known = self.list_commands(ctx)
        if args[0] not in known and not ctx.resilient_parsing:
            ctx.fail(f"unknown command {quote(args[0])}{nearest(args[0], known)}")
        return super().resolve_command(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns the options, as the help shows them."""
        return _tidy(super().get_params(ctx))


def require_command(ctx: typer.Context) -> None:
    """Refuses a group without a command."""
    if ctx.invoked_subcommand is None and not ctx.resilient_parsing:
        commands: Any = ctx.command
        ctx.fail(f"a command is required: {', '.join(commands.list_commands(ctx))}")


@contextlib.contextmanager
def _told_where(ctx: Any) -> Iterator[None]:
    """Sets the context of usage errors that lack it, such as those of an option without a value."""
    try:
        yield
    except UsageError as error:
        error.ctx = error.ctx or ctx
        raise


def _tidy(options: list[Any], panel: str | None = None) -> list[Any]:
    """Prepares options for the help: flags show no type, and --help gets our text and a heading."""
    for each in options:
        if getattr(each, "is_flag", False):
            each.metavar = ""
        if "--help" in each.opts:
            each.help, each.rich_help_panel = "Show this page and exit.", panel
    return options


class _Say(logging.Handler):
    """Prints messages that the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a message to standard error."""
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
        logger.setLevel(level)  # this also clears the logger's cache of enabled levels
        logger.propagate = propagate


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    say(f"warning: {message}")

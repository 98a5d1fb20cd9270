"""Shows metrics and errors, and takes every step of showing and writing results even if another fails."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mach_ext._terminal import show
from mach_ext.cli.tables import show_table


def show_metrics(split: str, result: dict[str, Any]) -> None:
    """Prints a table with a row for each metric, and columns for all labels and for each band."""
    bands = result["bands"]
    columns = {"all": result, **bands}
    rows = [[split, *columns]]
    for metric in (key for key in result if key not in ("bands", "propensity", "precision")):
        cells = (column.get(metric) for column in columns.values())
        rows.append(
            [metric, *("-" if value is None or value != value else f"{value:.4f}" for value in cells)]
        )
    show()
    show_table(rows, 15, 9)
    if any(metric.startswith("PSP") for metric in result):
        constants = result["propensity"]
        show(
            f"PSP, PSnDCG: A={constants['A']:g}, B={constants['B']:g}, labels of "
            f"{constants['documents']:,} training documents"
        )


@contextlib.contextmanager
def all_done() -> Iterator[Callable[..., None]]:
    """Yields a function that takes a step of showing or writing results.

    Each step is taken even if another fails. The errors of all steps are raised at the end.
    """
    problems: list[OSError] = []

    def then(step: Callable[..., None], *args: Any) -> None:
        try:
            step(*args)
            sys.stdout.flush()
        except OSError as error:
            problems.append(error)

    yield then
    real = [error_words(error) for error in problems if not isinstance(error, BrokenPipeError)]
    if real:
        raise OSError("; ".join(real))
    if problems:
        raise problems[0]


@contextlib.contextmanager
def remarks_afterwards() -> Iterator[None]:
    """Holds back log messages until the body is done, because they would break the progress bar."""
    logger, kept = logging.getLogger("mach_ext"), list[logging.LogRecord]()

    def keep(record: logging.LogRecord) -> bool:
        kept.append(record)
        return False

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
        for record in kept:
            logger.handle(record)


def failure(error: Exception) -> str | None:
    """Returns the message of an error in one line. None: the error is a defect of this program."""
    try:
        import torch

        from mach_ext._memory import memory_words
    except ImportError:  # then the error is about that, too
        return str(error)
    if (shortage := memory_words(error)) is not None:
        return shortage
    if isinstance(error, OSError):
        return error_words(error)
    expected = (ValueError, TypeError, FloatingPointError, ImportError, torch.OutOfMemoryError)
    return (str(error) or type(error).__name__) if isinstance(error, expected) else None


def error_words(error: OSError) -> str:
    """Returns the message of an operating system's error, without its number."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"

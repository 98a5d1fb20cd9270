"""The package transformers: imported when it is needed, and silent while it loads."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

_OLDEST = 5  # major version


def transformers() -> Any:
    """Imports transformers and returns it.

    Raises:
        ImportError: It is not installed, or it is too old.
    """
    advice = "pip install mach_ext[text]"
    try:
        library = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            f"text_encoder: needs the package transformers: {advice}", name=error.name
        ) from None
    version = str(library.__version__)
    if int(version.partition(".")[0]) < _OLDEST:
        raise ImportError(f"text_encoder: needs transformers {_OLDEST} or later, got {version}: {advice}")
    return library


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps transformers from writing bars and reports. Errors and missing weights are raised instead."""
    log = transformers().utils.logging
    verbosity, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if has_bars:
            log.enable_progress_bar()

"""Run folders: the default place, the newest run, and loading a model from its folder."""

from __future__ import annotations

import logging
from pathlib import Path

from mach_ext import nn
from mach_ext.runs.arguments import spell, spell_training
from mach_ext.runs.files import check_utf8

log = logging.getLogger("mach_ext")

RUNS = Path("runs")  # the default place of run folders


def load_model(folder: Path, device: str = "cpu", argument: str = "folder") -> nn.AnyMACH:
    """Loads the model of a folder. The message for a folder without a model says which argument to change."""
    check_utf8(spell(argument), folder)
    try:
        model = nn.load(folder, device)
    except ValueError as error:
        if (folder / "model.json").exists():
            raise
        raise ValueError(f"{error} ({spell(argument)} names the folder of a run)") from None
    if not isinstance(model, nn.AnyMACH):
        raise ValueError(f"{folder}: holds a head alone; commands and runs need a whole model")
    return model


def newest_run() -> Path:
    """Returns the folder in runs/ with the newest model. Compressed copies are ignored.

    Raises:
        ValueError: There is none.
    """
    folders = [file.parent for file in RUNS.glob("*/model.json") if not nn.is_compressed(file.parent)]
    if not folders:
        raise ValueError(
            f"no model in {RUNS.absolute()}: give {spell('folder')}, or train one, as: "
            f"{spell_training('wordnet')}"
        )
    newest = max(folders, key=lambda folder: (folder / "model.json").stat().st_mtime)
    log.info("using the newest run, %s", newest)
    return newest


def working_folder() -> Path | None:
    """Returns the current folder. None: it was deleted, and only absolute paths work."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None

"""Where an encoder is: in a folder, in an installed package, or on the Hugging Face hub."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path
from typing import NamedTuple

from mach_ext._memory import memory_shortage
from mach_ext.data.files import PathLike
from mach_ext.data.parsing import quote
from mach_ext.text_encoder._layout import WEIGHTS
from mach_ext.text_encoder._library import transformers

_PACKAGE = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?")
_HUB = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
# What an encoder on the hub consists of. Pickles and the formats of other frameworks are not fetched.
_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]


class Place(NamedTuple):
    """The folder of an encoder, and what names it."""

    folder: Path
    name: str
    revision: str | None


def locate(path_or_name: PathLike, revision: str | None) -> Place:
    """Finds the folder of an encoder, and downloads it if need be.

    Raises:
        ValueError: There is no such encoder, or `revision` is given for a folder or a package.
    """
    given = os.fspath(path_or_name)
    if not isinstance(given, str) or not given:
        raise ValueError(f"TextEncoder.load: path_or_name must be a path or a name, got {quote(given)}")
    path = Path(given).expanduser()
    if path.is_dir():
        _refuse_revision(given, revision, "a folder")
        return Place(path, str(path.resolve()), None)
    if path.exists():
        raise ValueError(f"TextEncoder.load: {given}: must be the folder of an encoder, got a file")
    is_path = isinstance(path_or_name, os.PathLike) or given.startswith((".", "~", os.sep))
    if is_path or not _HUB.fullmatch(given):
        raise ValueError(f"TextEncoder.load: {given}: there is no such folder")
    if (folder := package_folder(given)) is not None:
        _refuse_revision(given, revision, "an installed package")
        return Place(folder, given, None)
    folder = _download(given, revision)
    return Place(folder, given, folder.name)


def _refuse_revision(name: str, revision: str | None, what: str) -> None:
    """Refuses a revision where there is none."""
    if revision is not None:
        raise ValueError(f"TextEncoder.load: revision is for a name on the hub, but {name} is {what}")


def package_folder(name: str) -> Path | None:
    """Returns the folder with the encoder that an installed package carries. The package is not imported.

    Args:
        name: The import name or the name of the distribution.

    Returns:
        The folder, or None if there is no such package or it carries no encoder.

    Raises:
        ValueError: The package carries several encoders.
    """
    if not _PACKAGE.fullmatch(name):
        return None
    folders = sorted({folder for root in _package_roots(name) for folder in _encoder_folders(root)})
    if len(folders) > 1:
        listed = ", ".join(map(str, folders))
        raise ValueError(
            f"TextEncoder.load: the package {name} has several encoders; give a folder: {listed}"
        )
    return folders[0] if folders else None


def _package_roots(name: str) -> set[Path]:
    """Returns the folders of a package, by its import name or the name of its distribution."""
    names = {name.replace("-", "_")}
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    names |= {file.parts[0] for file in files if len(file.parts) > 1}
    roots = set()
    for candidate in filter(str.isidentifier, names):
        try:
            spec = importlib.util.find_spec(candidate)
        except (ValueError, ImportError):  # a module without a spec, such as __main__
            continue
        roots |= {Path(place) for place in (spec and spec.submodule_search_locations) or ()}
    return {root for root in roots if root.is_dir()}


def _encoder_folders(root: Path) -> set[Path]:
    """Returns the folders of encoders below a folder. A folder with modules.json covers those in it."""
    whole = {file.parent for file in root.rglob("modules.json")}
    plain = {file.parent for file in root.rglob("config.json") if _has_weights(file.parent)}
    return whole | {folder for folder in plain if not whole & {folder, *folder.parents}}


def _has_weights(folder: Path) -> bool:
    """Returns whether a folder holds weights."""
    return any((folder / name).exists() for name in WEIGHTS)


def _download(name: str, revision: str | None) -> Path:
    """Fetches an encoder from the hub, unless it is in the hub's cache. The folder's name is the commit."""
    transformers()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS))
    except Exception as error:  # its errors are of many kinds, and of other kinds in each version
        if memory_shortage(error) is not None:
            raise
        cause = " ".join(str(error).split())[:300]
        at = "" if revision is None else f" at revision {revision}"
        raise ValueError(
            f"TextEncoder.load: {name} is no folder and no installed package with an encoder, and the hub "
            f"does not give it{at}: {cause}"
        ) from None

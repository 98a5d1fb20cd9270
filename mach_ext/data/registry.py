"""Datasets by name: where they are looked for, and how they are fetched, checked and kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal

from mach_ext._memory import memory_errors
from mach_ext.data.archives import extract
from mach_ext.data.atomic import new_folder
from mach_ext.data.dataset import Columns, Dataset, hold_out
from mach_ext.data.downloads import download, sha256_of
from mach_ext.data.files import PathLike
from mach_ext.data.folders.read import read_file, read_folder
from mach_ext.data.home import data_home, lock_home
from mach_ext.data.wordnet import check as check_wordnet
from mach_ext.data.wordnet import prepare as prepare_wordnet

BASE_URL = "https://archive.org/download/pecos-dataset/xmc-base"

# Name -> sha256 of its archive, where one is known; otherwise what came is recorded in source.json.
ARCHIVES: dict[str, str | None] = {
    "eurlex-4k": None,
    "wiki10-31k": None,
    "amazoncat-13k": None,
    "amazon-670k": None,
    "wiki-500k": None,
    "amazon-3m": None,
}
# Documents, train and test together, as published. They bound what an archive may be and unpack to, with
# 64 KiB for the features and the text of each, which is far more than they have on average.
_DOCUMENTS = {
    "eurlex-4k": 19_348,
    "wiki10-31k": 20_762,
    "amazoncat-13k": 1_493_021,
    "amazon-670k": 643_474,
    "wiki-500k": 2_549_302,
    "amazon-3m": 2_460_406,
}
_BYTES_A_DOCUMENT = 1 << 16

ALIASES = {
    "eurlex": "eurlex-4k",
    "eurlex4k": "eurlex-4k",
    "wiki10": "wiki10-31k",
    "amazoncat": "amazoncat-13k",
    "amazoncat13k": "amazoncat-13k",
    "amazon670k": "amazon-670k",
    "wiki500k": "wiki-500k",
    "amazon3m": "amazon-3m",
}
NAMES = ("wordnet", *ARCHIVES)

# What is taken out of an archive: the end of its path there -> its name here.
_PECOS_FILES = {
    "tfidf-attnxml/X.trn.npz": "X.trn.npz",
    "tfidf-attnxml/X.tst.npz": "X.tst.npz",
    "Y.trn.npz": "Y.trn.npz",
    "Y.tst.npz": "Y.tst.npz",
    "output-items.txt": "output-items.txt",
}


def is_registered(folder: Path) -> bool:
    """Whether a folder is where a dataset of the registry is kept, so that its name says where it is."""
    try:
        return folder.name in NAMES and folder.parent == data_home()
    except ValueError:
        return False


@memory_errors("free memory first, or split the data", "data.load")
def load(
    dataset: PathLike,
    *,
    holdout: bool = True,
    columns: Columns | None = None,
    svmlight_base: int | Literal["auto"] | None = None,
    num_threads: int = 0,
) -> Dataset:
    """Loads a dataset by name or folder; what is not there yet is built or downloaded.

    Args:
        dataset: a folder; a folder in the data folder; ``wordnet`` (built on the spot); or a name of the
            registry (``wiki10-31k``, short ``wiki10``). They are tried in this order, so that what the user
            has is what is read. See :func:`read_folder` for what a folder holds. For a model (``columns``)
            also one file, as :func:`read_file` takes it.
        holdout: without a dev file, hold a tenth of train out as ``dev``; False leaves train whole.
        columns: of the model that the data are for; None: of these data.
        svmlight_base: number of the first feature in svmlight files; as :func:`read_folder` takes it.
        num_threads: threads of the text parser; 0 takes the cores there are.

    Raises:
        ValueError: unknown name, or bad data.
        ConnectionError: not there, and it cannot be fetched.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mach_ext.data import load
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "train.txt").write_text("2 5 3\\n0,2 1:0.5 4:2\\n1 0:1\\n")
        >>> data = load(folder)
        >>> data.num_labels, data.train.X.shape
        (3, (2, 5))
    """
    given = os.fspath(dataset)
    if columns is not None and Path(given).is_file():
        return read_file(given, columns, svmlight_base=svmlight_base, num_threads=num_threads)
    folder, name = locate(given)
    try:
        data = read_folder(
            folder, name=name, columns=columns, svmlight_base=svmlight_base, num_threads=num_threads
        )
    except FileNotFoundError as error:
        if given.lower() not in (*NAMES, *ALIASES):
            raise
        raise FileNotFoundError(
            f"{error}; this folder goes before the known dataset {dataset}: to get that, run elsewhere"
        ) from None
    if name == "wordnet" and columns is None:
        check_wordnet(data)
    return hold_out(data) if holdout else data


def known_name(given: str) -> str:
    """A name in the registry's spelling, where it has one: ``EURLEX_4K`` or ``eurlex`` is ``eurlex-4k``."""
    name = given.lower().replace("_", "-")
    return ALIASES.get(name, name)


def locate(dataset: PathLike) -> tuple[Path, str | None]:
    """The folder of a dataset, fetched if need be, and its name where the registry gives it one."""
    given = os.fspath(dataset)
    name = known_name(given)
    bare = given and os.sep not in given and given not in (".", "..")
    if given and Path(given).is_dir():
        return Path(given), None
    if bare and (data_home() / given).is_dir():
        return data_home() / given, given if given in NAMES else None
    if name in NAMES:
        return fetch(name), name
    raise ValueError(
        f"load: a dataset must be a folder, a name in the data folder {data_home()}, or one of "
        f"{', '.join(NAMES)}; got {given!r}"
    )


def fetch(name: str) -> Path:
    """Makes sure that a dataset of the registry is in the data folder; returns its folder.

    A download resumes where it stopped, is checked (sha256 where known, else that the files in it are whole
    and agree) and appears whole or not at all; ``source.json`` beside the data says where it came from.

    Args:
        name: one of ``mach_ext.data.NAMES``.

    Raises:
        ValueError: unknown name, or what was downloaded is not the dataset.
        ConnectionError: it could not be downloaded; the message says what to put where.
    """
    if name not in NAMES:
        raise ValueError(f"fetch: the name must be one of {', '.join(NAMES)}, got {name!r}")
    folder = data_home() / name
    if folder.is_dir():
        return folder
    with lock_home(folder):
        if folder.is_dir():  # another process was faster
            return folder
        for leftover in folder.parent.glob(f".{name}.*/"):  # of one that was killed
            shutil.rmtree(leftover)
        if name == "wordnet":
            prepare_wordnet(folder)
            return folder
        url, archive = f"{BASE_URL}/{name}.tar.gz", data_home() / f"{name}.tar.gz"
        limit = _DOCUMENTS[name] * _BYTES_A_DOCUMENT
        ours = not archive.exists()  # otherwise the user put it there
        if ours:
            try:
                download(url, archive, sha256=ARCHIVES[name], max_bytes=limit)
            except ConnectionError as error:
                raise ConnectionError(
                    f"{name}: {error}. Without network, put its archive at {archive}, or the files "
                    f"X.trn.npz, Y.trn.npz, X.tst.npz, Y.tst.npz (or train.txt, test.txt in XMC format) into "
                    f"{folder}"
                ) from None
        try:
            with new_folder(folder) as temporary:
                extract(archive, _PECOS_FILES, temporary, max_bytes=limit)
                read_folder(temporary)
                source = {"url": url, "sha256": sha256_of(archive), "bytes": archive.stat().st_size}
                (temporary / "source.json").write_text(json.dumps(source, indent=2) + "\n")
        except (ValueError, FileNotFoundError) as error:
            then = "it was deleted, a new try downloads it again" if ours else f"it is {archive}"
            raise ValueError(
                f"{name}: the archive must hold whole, matching files, got: {error} ({then})"
            ) from None
        finally:
            if ours:
                archive.unlink()
    return folder

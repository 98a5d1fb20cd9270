"""Datasets by name: how they are looked up, downloaded, checked and stored."""

from __future__ import annotations

import difflib
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

# The SHA-256 of each dataset's archive, or None if it is unknown. `source.json` records what was downloaded.
ARCHIVES: dict[str, str | None] = {
    "eurlex-4k": None,
    "wiki10-31k": None,
    "amazoncat-13k": None,
    "amazon-670k": None,
    "wiki-500k": None,
    "amazon-3m": None,
}
# The published numbers of documents, train and test together. They limit the size of an archive and of its
# content. 64 KiB for each document's features and text are far more than the average.
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

# The files that are extracted: the end of the path in the archive, and the name in the data folder.
_PECOS_FILES = {
    "tfidf-attnxml/X.trn.npz": "X.trn.npz",
    "tfidf-attnxml/X.tst.npz": "X.tst.npz",
    "Y.trn.npz": "Y.trn.npz",
    "Y.tst.npz": "Y.tst.npz",
    "output-items.txt": "output-items.txt",
}


def is_registered(folder: Path) -> bool:
    """Returns whether a folder is the place of a named dataset in the data folder.

    Then the dataset's name is enough to find it again.

    Args:
        folder: The folder's path.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import data_home, is_registered
        >>> is_registered(data_home() / "wordnet"), is_registered(Path("wordnet"))
        (True, False)
    """
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
    r"""Loads a dataset by its name or folder. A named dataset is built or downloaded if it is not there yet.

    `dataset` is looked up in this order, so that the user's own data come first.

    * The path of a folder. `mach_ext.data.folders` says which files it holds.
    * The name of a folder in the data folder.
    * "wordnet", which is built from the files of WordNet.
    * A name of the registry, such as "wiki10-31k" or short "wiki10".

    Args:
        dataset: A name or a folder. With `columns` it may also be a single file, as in `read_file`.
        holdout: Hold a tenth of train out as `dev` if there is no dev file. False: train stays whole.
        columns: Columns of the model that the data are read for. None: the data define the columns.
        svmlight_base: Number of the first feature in svmlight files, as in `read_folder`.
        num_threads: Threads of the text parser. 0: all cores.

    Returns:
        The dataset.

    Raises:
        ValueError: The name is unknown, or the data are bad.
        ConnectionError: The dataset is not there and cannot be downloaded.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mach_ext.data import load
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "train.txt").write_text("2 5 3\n0,2 1:0.5 4:2\n1 0:1\n")
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
            f"{error}; this folder goes before the known dataset {dataset}; run in another folder to get that"
        ) from None
    if name == "wordnet" and columns is None:
        check_wordnet(data)
    return hold_out(data) if holdout else data


def known_name(given: str) -> str:
    """Returns a dataset's name in the spelling of the registry.

    A name that the registry does not know is returned in lower case with hyphens.

    Args:
        given: A name in any spelling.

    Example:
        >>> from mach_ext.data import known_name
        >>> known_name("EURLEX_4K"), known_name("wiki10")
        ('eurlex-4k', 'wiki10-31k')
    """
    name = given.lower().replace("_", "-")
    return ALIASES.get(name, name)


def locate(dataset: PathLike) -> tuple[Path, str | None]:
    """Finds the folder of a dataset. A named dataset is built or downloaded if it is not there yet.

    Args:
        dataset: A name or a folder, as in `load`.

    Returns:
        The folder, and the dataset's name in the registry or None.

    Raises:
        ValueError: The name is unknown.
        ConnectionError: The dataset cannot be downloaded.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import locate
        >>> Path("mine").mkdir()
        >>> locate("mine")
        (PosixPath('mine'), None)
    """
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
        f"{', '.join(NAMES)}; got {given!r}{_nearest(given)}"
    )


def _nearest(given: str) -> str:
    """Returns a hint at the dataset or folder whose name is nearest, or an empty string."""
    if Path(given).is_file():
        return ", which is a file: give its folder"
    folder = Path(given).parent
    beside = [str(Path(entry)) for entry in folder.glob("*") if entry.is_dir()]
    near = difflib.get_close_matches(str(Path(given)), [*beside, *NAMES], 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def fetch(name: str) -> Path:
    """Makes sure that a named dataset is in the data folder.

    A download continues where it stopped, is checked, and appears whole or not at all. The check compares the
    SHA-256 if it is known. Otherwise it reads all files and compares their sizes. `source.json` beside the
    data says where they come from.

    Args:
        name: One of `mach_ext.data.NAMES`.

    Returns:
        The dataset's folder.

    Raises:
        ValueError: The name is unknown, or the download is not the dataset.
        ConnectionError: The dataset cannot be downloaded. The message says which files to put where.

    Example:
        >>> import os
        >>> from pathlib import Path
        >>> from unittest import mock
        >>> from mach_ext.data import fetch
        >>> Path("data/eurlex-4k").mkdir(parents=True)  # as an earlier download left it
        >>> with mock.patch.dict(os.environ, {"MACH_DATA": "data"}):
        ...     print(fetch("eurlex-4k"))
        data/eurlex-4k
    """
    if name not in NAMES:
        raise ValueError(f"fetch: the name must be one of {', '.join(NAMES)}, got {name!r}")
    folder = data_home() / name
    if folder.is_dir():
        return folder
    with lock_home(folder):
        if folder.is_dir():  # another process was faster
            return folder
        for leftover in folder.parent.glob(f".{name}.*/"):  # from a process that was killed
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

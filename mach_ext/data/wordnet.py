"""The built-in dataset "wordnet" predicts a word's more general terms from its definition.

A document is a synset of WordNet 3.0, from data.noun, data.verb, data.adj or data.adv. Satellite adjectives
count as adjectives. The document's text is the synset's gloss, which is its definition with examples. Its
labels are all synsets that can be reached by `@` (hypernym) and `@i` (instance hypernym), except itself.

Synsets without labels are left out. Then labels on more than 2 % of the documents are left out, and documents
without labels once more. Features come from a `mach_ext.data.Vectorizer` that is fitted on train. A document
belongs to test if the first byte of md5(part-of-speech letter + eight-digit offset) is below 26.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mach_ext.data.archives import extract
from mach_ext.data.atomic import new_folder
from mach_ext.data.dataset import Dataset, Split
from mach_ext.data.downloads import download
from mach_ext.data.files import PathLike
from mach_ext.data.folders.write import write_folder
from mach_ext.data.formats.lines import read_lines
from mach_ext.data.formats.names import label_matrix
from mach_ext.data.home import data_home
from mach_ext.data.parsing import quote
from mach_ext.data.text import Vectorizer

URL = "https://wordnetcode.princeton.edu/3.0/WNdb-3.0.tar.gz"
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
SYSTEM_FOLDER = Path("/usr/share/wordnet")  # where Debian's package wordnet-base puts the files
MAX_ARCHIVE = 1 << 28  # bytes, packed or unpacked; the published archive has far fewer
MAX_SHARE = 0.02  # a label on a larger share of the documents is left out

Key: TypeAlias = str  # part-of-speech letter n, v, a or r, followed by the offset's eight digits


@dataclass(frozen=True)
class Synset:
    """A line of a data file."""

    words: list[str]
    parents: list[Key]  # the targets of the pointers @ and @i
    gloss: str


def read_synsets(folder: PathLike) -> dict[Key, Synset]:
    """Reads the four data files in the order of `FILES`.

    Raises:
        ValueError: A line does not have the format. The message has the file and the line.
    """
    synsets: dict[Key, Synset] = {}
    for name in FILES:
        path = Path(folder) / name
        for number, line in enumerate(read_lines(path), start=1):
            if line.startswith("  "):  # the licence
                continue
            try:
                key, synset = _parse(line)
            except (IndexError, ValueError):
                raise ValueError(
                    f"{path}, line {number}: must be a line of a WordNet 3.0 data file, got {quote(line)}"
                ) from None
            synsets[key] = synset
    return synsets


def _parse(line: str) -> tuple[Key, Synset]:
    """Parses a line of a data file into its key and synset."""
    # A line reads:
    # offset file ss_type w_cnt(hex) (word lex_id)* p_cnt (symbol offset pos source/target)* ... | gloss
    data, bar, gloss = line.partition("|")
    fields = data.split()
    count = int(fields[3], 16)
    words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
    pointers = fields[5 + 2 * count :]
    parents = []
    for i in range(0, 4 * int(fields[4 + 2 * count]), 4):
        symbol, offset, letter = pointers[i : i + 3]
        if symbol in ("@", "@i"):
            parents.append(_key(letter, offset))
    if not bar or count < 1:
        raise ValueError
    return _key(fields[2], fields[0]), Synset(words, parents, gloss.strip())


def _key(letter: str, offset: str) -> Key:
    """Makes the key of a synset."""
    if letter not in ("n", "v", "a", "s", "r") or len(offset) != 8 or not offset.isdigit():
        raise ValueError
    return ("a" if letter == "s" else letter) + offset


def hypernyms(key: Key, synsets: dict[Key, Synset]) -> set[Key]:
    """Returns all synsets that can be reached from this synset, except itself."""
    ancestors: set[Key] = set()
    todo = list(synsets[key].parents)
    while todo:
        parent = todo.pop()
        if parent not in ancestors:
            ancestors.add(parent)
            todo += synsets[parent].parents
    return ancestors - {key}


def build(source: PathLike) -> Dataset:
    """Builds the dataset from a folder with WordNet's data files, as described at the top of this module.

    Args:
        source: The folder with `data.noun`, `data.verb`, `data.adj` and `data.adv`.

    Returns:
        The dataset with texts, feature names and vectorizer. A label's name is the words of its synset. There
        is no dev split.

    Raises:
        ValueError: A file is damaged.
    """
    synsets = read_synsets(source)
    try:
        labels = {key: above for key in synsets if (above := hypernyms(key, synsets))}
    except KeyError as error:
        raise ValueError(f"{source}: every hypernym must be a synset, got {error.args[0]}") from None
    counts = Counter(label for above in labels.values() for label in above)
    kept = {label for label, count in counts.items() if count <= MAX_SHARE * len(labels)}
    labels = {key: above & kept for key, above in labels.items() if above & kept}
    if not labels:
        raise ValueError(f"{source}: some document must have a label, got none in {len(synsets)} synsets")

    columns = sorted({label for above in labels.values() for label in above})
    keys = {
        "train": [key for key in labels if not _in_test(key)],
        "test": [key for key in labels if _in_test(key)],
    }
    texts = {split: [synsets[key].gloss for key in keys[split]] for split in keys}
    vectorizer = Vectorizer.fit(texts["train"])
    train, test = (
        Split(
            vectorizer.transform(texts[split]),
            label_matrix([sorted(labels[key]) for key in keys[split]], columns),
            texts[split],
        )
        for split in ("train", "test")
    )
    return Dataset(
        name="wordnet",
        path=Path(source),
        train=train,
        test=test,
        label_names=[", ".join(synsets[key].words) for key in columns],
        feature_names=vectorizer.vocabulary,
        vectorizer=vectorizer,
    )


def _in_test(key: Key) -> bool:
    """Returns whether a document belongs to test."""
    return hashlib.md5(key.encode(), usedforsecurity=False).digest()[0] < 26


def check(data: Dataset) -> None:
    """Refuses a dataset that was not built from WordNet 3.0.

    Raises:
        ValueError: The numbers of documents, features or labels differ.
    """
    in_train = int(np.unique(data.train.Y.indices).size)
    got = (len(data.train), len(data.test or ()), data.num_features, data.num_labels, in_train)
    expected = (84150, 9626, 27997, 20430, 19718)
    if got != expected:
        raise ValueError(
            f"{data.path}: wordnet must have (train, test, features, labels, labels in train) = {expected}, "
            f"as from WordNet 3.0, got {got}"
        )


def find() -> Path | None:
    """Returns the folder with WordNet's data files, or None.

    It is $WNHOME, the system's folder, or the data folder after an earlier download.
    """
    home = os.environ.get("WNHOME")
    places = [Path(home), Path(home) / "dict"] if home else []
    places += [SYSTEM_FOLDER, data_home() / "wordnet-3.0"]
    return next((place for place in places if all((place / name).is_file() for name in FILES)), None)


def find_or_fetch() -> Path:
    """Returns the folder with WordNet's data files. They are downloaded if needed, without root rights.

    Raises:
        ConnectionError: Nothing worked. The message names all ways.
    """
    folder = find()
    if folder is not None:
        return folder
    target = data_home() / "wordnet-3.0"
    problems = []
    for fetch in (_fetch_debian, _fetch_tarball):
        try:
            with new_folder(target) as temporary:
                fetch(temporary)
            return target
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            problems.append(str(error))
    raise ConnectionError(
        f"wordnet: the files {', '.join(FILES)} of WordNet 3.0 must come from one of: $WNHOME (or its folder "
        f"dict), {SYSTEM_FOLDER} (Debian: apt-get install wordnet-base), {target} (put them there), or the "
        f"network (apt-get download wordnet-base, or {URL}); got: "
        f"{'; '.join(problems)}"
    )


def _fetch_debian(folder: Path) -> None:
    """Downloads and unpacks Debian's package wordnet-base.

    It uses package lists in a temporary folder. So it needs no root rights and does not change the system.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".apt.") as work:
        for name in ("lists/partial", "archives/partial"):
            (Path(work) / name).mkdir(parents=True)
        apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}"]
        apt += ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
        _run([*apt, "update"], work)
        _run([*apt, "download", "wordnet-base"], work)
        package = next(Path(work).glob("wordnet-base_*.deb"), None)
        if package is None:
            raise ValueError("apt-get download wordnet-base: no package came")
        _run(["dpkg-deb", "-x", str(package), f"{work}/root"], work)
        for name in FILES:
            shutil.move(Path(work) / "root" / SYSTEM_FOLDER.relative_to("/") / name, folder / name)


def _run(command: list[str], folder: str) -> None:
    """Runs a command. The error of a failed command has the last line of its output."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise OSError(f"{command[0]} {command[-1]}: exit status {done.returncode}, {said}")


def _fetch_tarball(folder: Path) -> None:
    """Downloads and unpacks the archive from Princeton."""
    archive = folder / "WNdb-3.0.tar.gz"
    download(URL, archive, max_bytes=MAX_ARCHIVE)
    extract(archive, {name: name for name in FILES}, folder, max_bytes=MAX_ARCHIVE)
    archive.unlink()
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise ValueError(f"{URL}: the archive must hold {', '.join(FILES)}, got none of {', '.join(missing)}")


def prepare(folder: PathLike) -> None:
    """Builds the dataset into a new folder. WordNet's files are downloaded if needed."""
    data = build(find_or_fetch())
    check(data)
    write_folder(folder, data)

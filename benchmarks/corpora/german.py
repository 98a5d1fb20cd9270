"""The dataset "german": predicts the words of the English translation from the letters of a German word.

A document is a headword of the German-English dictionary of FreeDict that is a single word. The text is its
runs of 3 and 4 letters, where "0" marks the start and the end of the word. Its labels are the words of its
English translations. Remarks in brackets, common words and words of fewer than 3 letters are left out. Labels
of a single training document are left out, too. Words of one family share features, as compounds do.

The source is Debian's package dict-freedict-deu-eng. The dictionary is under the GNU General Public License,
version 3 or later, and comes from the Ding dictionary of Chemnitz University of Technology.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from corpora.documents import Document, Rule, assemble
from corpora.sources import debian_package
from mach_ext.data import Dataset

RULE = Rule(min_count=2)
SIZES = (52_875, 8_305, 39_199, 21_826)
FILE = "freedict-deu-eng.dict.dz"
_HEAD = re.compile(r"([^\W\d_]{4,}) /.*")  # a headword, then its sound
_BRACKETS = re.compile(r"\([^)]*\)|\[[^]]*\]|<[^>]*>|\{[^}]*\}")
_WORD = re.compile(r"[a-z]{3,}")
_COMMON = {"and", "for", "from", "into", "not", "one", "sb", "sth", "the", "with", "etc"}
_OTHER = re.compile(r"\s*(?:\w+:|\"|$)")  # a remark, an example or an empty line


def fetch() -> Path:
    return debian_package("dict-freedict-deu-eng", f"usr/share/dictd/{FILE}")


def build(source: Path, rule: Rule = RULE) -> Dataset:
    """Builds the dataset from a folder with the file of the dictionary."""
    labels: dict[str, set[str]] = {}
    for word, words in read_entries(source / FILE):
        labels.setdefault(word, set()).update(words)
    documents = (Document(word, letter_runs(word), sorted(words)) for word, words in labels.items())
    return assemble("german", source, documents, rule)


def read_entries(path: Path) -> Iterator[tuple[str, set[str]]]:
    """Reads the headwords and the words of the lines of translations below them."""
    head = ""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            if match := _HEAD.fullmatch(line.rstrip("\n")):
                head = match[1]
            elif " /" in line or _OTHER.match(line):
                head = ""  # a headword of several words, or what follows the translations
            elif head:
                words = _WORD.findall(_BRACKETS.sub(" ", line).lower())
                yield head, {*words} - _COMMON


def letter_runs(word: str) -> str:
    """All runs of 3 and 4 letters of a word, with marks of its ends."""
    marked = f"0{word.lower()}0"
    return " ".join(marked[i : i + size] for size in (3, 4) for i in range(len(marked) - size + 1))

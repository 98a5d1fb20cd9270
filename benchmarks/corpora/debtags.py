"""The dataset "debtags": predicts a Debian package's tags from its description.

A document is a package of Debian 12 (bookworm) that has tags. The text is its short and its long description.
Its labels are its debtags, such as `implemented-in::python`. All tags are kept. The special tags that only
say that a package is not yet tagged are left out. Packages of one source package stand in the same split.

The source is Debian's own list of packages. The descriptions are under the licences of the packages, and the
tags were given by Debian's users. All are free by Debian's guidelines.
"""

from __future__ import annotations

from pathlib import Path

from corpora.debian import read_packages
from corpora.documents import Document, Rule, assemble
from corpora.sources import debian_index
from mach_ext.data import Dataset

fetch = debian_index
RULE = Rule()
SIZES = (24_562, 5_738, 23_870, 596)


def build(source: Path, rule: Rule = RULE) -> Dataset:
    """Builds the dataset from a folder with the files `Packages` and `Translation-en`."""
    documents = (
        Document(
            package.name,
            package.text,
            [tag for tag in package.tags if not tag.startswith("special::")],
            package.source,
        )
        for package in read_packages(source)
    )
    return assemble("debtags", source, documents, rule)

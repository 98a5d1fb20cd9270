"""The dataset "debdepends": predicts what a Debian package needs from its description.

A document is a package of Debian 12 (bookworm). The text is its short and its long description. Its labels
are the packages that it depends on or recommends. Of alternatives, the first counts. Labels of a single
training document are left out, and so are labels on more than 2 % of the training documents. Packages of one
source package stand in the same split.

The source is Debian's own list of packages. The descriptions are under the licences of the packages. All of
these are free by Debian's guidelines.
"""

from __future__ import annotations

from pathlib import Path

from corpora.debian import read_packages
from corpora.documents import Document, Rule, assemble
from corpora.sources import debian_index
from mach_ext.data import Dataset

fetch = debian_index
RULE = Rule(min_count=2, max_share=0.02)
SIZES = (40_092, 7_880, 28_880, 19_017)


def build(source: Path, rule: Rule = RULE) -> Dataset:
    """Builds the dataset from a folder with the files `Packages` and `Translation-en`."""
    documents = (
        Document(package.name, package.text, package.needs, package.source)
        for package in read_packages(source)
    )
    return assemble("debdepends", source, documents, rule)

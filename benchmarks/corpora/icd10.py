"""The dataset "icd10": predicts where a diagnosis stands in a classification from its name.

A document is a code of ICD-10-CM that has a name of its own. The text is this name with the terms that the
classification lists under it. Its labels are everything above it: shorter codes, the category of 3
characters, the block of categories and the chapter. Texts are very short.

The source is the package simple-icd-10-cm on PyPI, which holds the official tabular list in XML. The list is
a work of the United States government and so in the public domain.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from corpora.documents import Document, Rule, assemble
from corpora.sources import python_package
from mach_ext.data import Dataset

RULE = Rule()
SIZES = (37_471, 9_410, 5_948, 10_781)
FILE = "icd10c-tabular-April-1-2026.xml"


def fetch() -> Path:
    sha256 = "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42"
    return python_package("simple-icd-10-cm", "1.5.0", sha256, f"simple_icd_10_cm/data/{FILE}")


def build(source: Path, rule: Rule = RULE) -> Dataset:
    """Builds the dataset from a folder with the package's XML file."""
    return assemble("icd10", source, read_codes(source / FILE), rule)


def read_codes(path: Path) -> Iterator[Document]:
    """Reads the chapters, the blocks in them, and the codes in these."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: must be XML, got: {error}") from None
    for chapter in root.iter("chapter"):
        label = f"chapter {_text(chapter, 'name')}: {_text(chapter, 'desc')}"
        for block in chapter.findall("section"):
            labels = [label, _text(block, "desc")]
            for code in block.findall("diag"):
                yield from _codes(code, labels)


def _codes(code: ElementTree.Element, above: list[str]) -> Iterator[Document]:
    """A code and all codes below it."""
    key, name = _text(code, "name"), _text(code, "desc")
    terms = [note.text or "" for note in code.findall("inclusionTerm/note")]
    yield Document(key, "; ".join([name, *terms]), above)
    for below in code.findall("diag"):
        yield from _codes(below, [*above, f"{key} {name}"])


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()

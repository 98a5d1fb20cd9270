"""The dataset "lemmas": predicts words from a definition.

A document is a synset of WordNet 3.0. The text is the synset's gloss, which is its definition with examples.
Its labels are the words of the synset, of its direct hypernyms and hyponyms, and of similar adjectives.
Phrases of several words are no labels. Very many labels have one, two or three documents each.

The source is the data files of WordNet 3.0, as for the built-in dataset "wordnet". WordNet's licence lets
everyone use, change and distribute it without fee.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from corpora.documents import Document, Rule, assemble
from mach_ext.data import Dataset
from mach_ext.data.parsing import quote
from mach_ext.data.wordnet import FILES, find_or_fetch

fetch = find_or_fetch
RULE = Rule(train=80_000)
SIZES = (80_000, 8_903, 28_663, 73_569)
POINTERS = {"@", "@i", "~", "~i", "&"}  # to hypernyms, hyponyms and similar adjectives
MOST_RELATED = 5  # synsets, the first of a line: some synsets have hundreds of hyponyms


def build(source: Path, rule: Rule = RULE) -> Dataset:
    """Builds the dataset from a folder with WordNet's data files."""
    return assemble("lemmas", source, read_glosses(source), rule)


def read_glosses(folder: Path) -> Iterator[Document]:
    """Reads the four data files."""
    synsets = {}
    for name in FILES:
        for number, line in enumerate((folder / name).read_text(encoding="utf-8").splitlines(), start=1):
            if line.startswith("  "):  # the licence
                continue
            try:
                key, *synset = _parse(line)
            except (IndexError, ValueError):
                rule = "must be a line of a WordNet 3.0 data file"
                raise ValueError(f"{folder / name}, line {number}: {rule}, got {quote(line)}") from None
            synsets[key] = synset
    for key, (words, related, gloss) in synsets.items():
        labels = {word for other in related[:MOST_RELATED] for word in synsets[other][0]}.union(words)
        yield Document(key, gloss, sorted(label for label in labels if " " not in label))


def _parse(line: str) -> tuple[str, list[str], list[str], str]:
    """A line's key, words, related keys and gloss."""
    data, _, gloss = line.partition("|")
    fields = data.split()
    count = int(fields[3], 16)
    words = [_word(word) for word in fields[4 : 4 + 2 * count : 2]]
    pointers = fields[5 + 2 * count :][: 4 * int(fields[4 + 2 * count])]
    related = [
        _key(letter, offset)
        for symbol, offset, letter in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True)
        if symbol in POINTERS
    ]
    return _key(fields[2], fields[0]), words, related, gloss.strip()


def _key(letter: str, offset: str) -> str:
    return ("a" if letter == "s" else letter) + offset


def _word(word: str) -> str:
    """A word in plain writing: `at_hand(p)` is "at hand", whose mark says where the adjective may stand."""
    return word.partition("(")[0].replace("_", " ")

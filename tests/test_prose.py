"""Plain English: sentences of docstrings are short, and there are few semicolons.

`python tests/sentences.py FILE ...` prints the sentences of files that break the rules.
"""

import pytest
from helpers import ROOT
from sentences import LONGEST, MEAN, SEMICOLONS, mean_words, of_files, semicolons, summary


def docstrings():
    """The sentences of all docstrings of the package."""
    return of_files(sorted((ROOT / "mach_ext").rglob("*.py")))


GROUPS = {"docstrings": docstrings}


@pytest.mark.parametrize("name", GROUPS)
def test_sentences_are_short(name, capsys):
    sentences = GROUPS[name]()
    with capsys.disabled():
        print(f"\n{summary(name, sentences)}")
    too_long = [f"{s.place}: {s.words} words: {s.text}" for s in sentences if s.words > LONGEST]
    assert too_long == []
    assert mean_words(sentences) <= MEAN
    assert semicolons(sentences) <= SEMICOLONS

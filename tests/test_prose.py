"""Plain English: how long the sentences are, and how many semicolons there are."""

import pytest
from command_cases import help_texts
from helpers import ROOT
from sentences import LONGEST, MEAN, SEMICOLONS, mean_words, of_files, of_help, semicolons, summary


def _help():
    return [sentence for place, text in help_texts() for sentence in of_help(place, text)]


def _docs():
    return of_files(sorted((ROOT / "docs").rglob("*.md")))


GROUPS = {"help": _help, "docs": _docs}


@pytest.mark.parametrize("group", GROUPS)
def test_sentences_are_short(group, capsys):
    sentences = GROUPS[group]()
    with capsys.disabled():
        print(f"\n{summary(group, sentences)}")
    assert [sentence for sentence in sentences if sentence.words > LONGEST] == []
    assert mean_words(sentences) <= MEAN
    assert semicolons(sentences) <= SEMICOLONS

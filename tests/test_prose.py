"""Plain English: sentences are short, and there are few semicolons.

`python tests/sentences.py FILE ...` prints the sentences of files that break the rules.
"""

import pytest
from command_cases import help_texts
from helpers import ROOT
from sentences import LONGEST, MEAN, SEMICOLONS, mean_words, of_files, of_help, semicolons, summary


def readme():
    return of_files([ROOT / "README.md"])


def docs():
    return of_files(sorted((ROOT / "docs").rglob("*.md")))


def docstrings():
    return of_files(sorted((ROOT / "mach_ext").rglob("*.py")))


def help_of_commands():
    return [sentence for place, text in help_texts() for sentence in of_help(place, text)]


GROUPS = {"README": readme, "docs": docs, "docstrings": docstrings, "--help": help_of_commands}


@pytest.mark.parametrize("name", GROUPS)
def test_sentences_are_short(name, say):
    sentences = GROUPS[name]()
    say(summary(name, sentences))
    too_long = [f"{s.place}: {s.words} words: {s.text}" for s in sentences if s.words > LONGEST]
    assert too_long == []
    assert mean_words(sentences) <= MEAN
    assert semicolons(sentences) <= SEMICOLONS


def test_readme_is_read_in_three_minutes():
    text = (ROOT / "README.md").read_bytes()
    lines = text.decode().splitlines()
    assert len(lines) <= 150
    assert len(text) <= 9000
    assert any(line.startswith("$ mach-ext predict") for line in lines[:30])
    tables = "\n".join("|" if line.startswith("|") else "" for line in lines).split("\n\n")
    assert max(table.count("|") for table in tables) <= 12  # a head, a ruler and ten rows

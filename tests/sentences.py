"""Sentences of our documents, docstrings and help texts: how long they are, where they stand.

A sentence ends at a full stop, a question mark or an exclamation mark, and nowhere else: not at a colon, not
at the end of a list item. Code, tables, headings, comments and pictures are no prose. A piece of code within
a sentence counts as the words that it is written in.

To see the long sentences of the repository: `python tests/sentences.py [FILE ...]`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 25  # words of a sentence
MEAN = 15
SEMICOLONS = 2  # in 1,000 words

FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[^\n]*$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
MATH = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]", re.DOTALL)
LINES = re.compile(  # tables, headings, pictures, directives, rulers, HTML
    r"^\s*(?:\|.*|#{1,6} .*|!\[[^\]]*\]\([^)]*\).*|:::.*|-{3,}|={3,}|</?\w[^>]*>.*|(?:!!!|\?\?\?\+?|===).*)$",
    re.MULTILINE,
)
LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)\s]*(?: \"[^\"]*\")?\)|\[[^\]]*\])")
END = re.compile(r"[.?!][)\]\"'*_`»”\u2019]*(?=\s|$)")
WORD = re.compile(r"\S*\w\S*")
DOCTEST = re.compile(r"^ *>>> .*(?:\n *\S.*)*", re.MULTILINE)  # the output ends at an empty line
SECTION = re.compile(
    r"^ *(?:Args|Arguments|Attributes|Returns|Yields|Raises|Warns|Example|Examples|Note|References|Source|"
    r"Shape|Shapes|See also|Keyword Args):$",
    re.MULTILINE,
)
DEFAULT = re.compile(r"\[(?:default|required|env)[^\]]*\]")


@dataclass(frozen=True)
class Sentence:
    """A sentence: where it stands, its text and the number of its words."""

    place: str
    text: str

    @property
    def words(self) -> int:
        """How many words it has."""
        return len(WORD.findall(self.text))


def _sentences(place: str, text: str) -> Iterator[Sentence]:
    """The sentences of a text that is prose throughout."""
    start = 0
    for end in [*(match.end() for match in END.finditer(text)), len(text)]:
        if words := text[start:end].split():
            line = text.count("\n", 0, end - len(text[start:end].lstrip())) + 1
            yield Sentence(f"{place}:{line}", " ".join(words))
        start = end


def _blank(text: str, *what: re.Pattern[str]) -> str:
    """The text without what is found; its lines stay."""
    for each in what:
        text = each.sub(lambda match: "\n" * match[0].count("\n"), text)
    return text


def of_markdown(place: str, text: str) -> list[Sentence]:
    """The sentences of a Markdown page."""
    text = _blank(text, FRONT_MATTER, COMMENT, FENCE, MATH, LINES)
    text = re.sub(r"^( *)(?:[-*+]|\d+\.) ", r"\1", text, flags=re.MULTILINE)
    return list(_sentences(place, LINK.sub(r"\1", text)))


def of_docstring(place: str, text: str) -> list[Sentence]:
    """The sentences of a docstring, which is Markdown with the sections of Google's style."""
    return of_markdown(place, _blank(inspect.cleandoc(text), DOCTEST, SECTION))


def of_python(place: str, source: str) -> list[Sentence]:
    """The sentences of all docstrings of a module, private ones too."""
    sentences = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if text := ast.get_docstring(node, clean=False):
            sentences += of_docstring(f"{place}::{getattr(node, 'name', 'module')}", text)
    return sentences


def of_help(place: str, text: str) -> list[Sentence]:
    """The sentences of a help text, without the default that is said in brackets."""
    return list(_sentences(place, DEFAULT.sub("", text)))


def documents() -> list[Path]:
    """README and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def of_files(files: Iterable[Path]) -> list[Sentence]:
    """The sentences of Markdown files and of the docstrings of Python files."""
    sentences = []
    for file in files:
        file = file.resolve()
        place = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)
        read = of_python if file.suffix == ".py" else of_markdown
        sentences += read(place, file.read_text(encoding="utf-8"))
    return sentences


def mean_words(sentences: list[Sentence]) -> float:
    """Words a sentence."""
    return sum(sentence.words for sentence in sentences) / max(len(sentences), 1)


def semicolons(sentences: list[Sentence]) -> float:
    """Semicolons in 1,000 words."""
    count = sum(sentence.text.count(";") for sentence in sentences)
    return 1000 * count / max(sum(sentence.words for sentence in sentences), 1)


def summary(name: str, sentences: list[Sentence]) -> str:
    """One line: the measures of a group of sentences."""
    longest = max((sentence.words for sentence in sentences), default=0)
    return (
        f"{name}: {len(sentences)} sentences, {mean_words(sentences):.1f} words each, the longest {longest}, "
        f"{semicolons(sentences):.1f} semicolons in 1,000 words"
    )


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]] or [
        *documents(),
        *sorted((ROOT / "mach_ext").rglob("*.py")),
    ]
    files = [f for path in given for f in ([path] if path.is_file() else sorted(path.rglob("*.[mp][dy]")))]
    found = of_files(files)
    for sentence in found:
        if sentence.words > LONGEST or ";" in sentence.text:
            print(f"{sentence.place}: {sentence.words} words: {sentence.text}")
    print(summary("all", found))

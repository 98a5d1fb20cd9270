"""JSON lines: each line is an object with a document's text and the names of its labels."""

from __future__ import annotations

from collections.abc import Iterator

from mach_ext._memory import memory_errors
from mach_ext.data.files import PathLike
from mach_ext.data.json_text import decode_json
from mach_ext.data.parsing import quote
from mach_ext.data.sources import iter_lines


@memory_errors("free memory first, or split the data", "data.iter_jsonl")
def iter_jsonl(path: PathLike) -> Iterator[tuple[str, list[str] | None]]:
    r"""Reads documents from a file whose lines are `{"text": "...", "labels": ["name", ...]}`.

    Blank lines and further keys are ignored. Strings are kept as they are. JSON can contain half of a
    surrogate pair, which UTF-8 cannot encode.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.

    Yields:
        The text and the label names. The names are None if the line has no `labels`.

    Raises:
        ValueError: A line is bad. The message has the file, the line, the rule and what stands there.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import iter_jsonl
        >>> _ = Path("one.jsonl").write_text('{"text": "a cat", "labels": ["animal"]}\n')
        >>> list(iter_jsonl("one.jsonl"))
        [('a cat', ['animal'])]
    """
    for number, line in iter_lines(path):
        if line.strip():
            yield json_document(line, f"{path}, line {number}")


def json_document(line: bytes, where: str) -> tuple[str, list[str] | None]:
    """Parses a line of JSON lines into text and label names.

    Args:
        line: The line.
        where: The beginning of each error message.

    Returns:
        The text and the label names. The names are None if the line has no `labels`.

    Raises:
        ValueError: The line does not hold such a document.

    Example:
        >>> from mach_ext.data.formats import json_document
        >>> json_document(b'{"text": "a cat"}', "one.jsonl, line 1")
        ('a cat', None)
    """
    try:
        record = decode_json(line.decode())
    except ValueError as error:  # a UnicodeDecodeError is a ValueError, too
        rule = f"a line must be a JSON object in UTF-8 ({error})"
        raise ValueError(f"{where}: {rule}, got {quote(line)}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a line must be a JSON object, got {quote(record)}")
    text, labels = record.get("text"), record.get("labels")
    if not isinstance(text, str):
        raise ValueError(f'{where}: "text" must be a string, got {quote(text)}')
    if labels is not None and not (isinstance(labels, list) and all(isinstance(x, str) for x in labels)):
        raise ValueError(f'{where}: "labels" must be a list of strings, got {quote(labels)}')
    return text, labels


@memory_errors("free memory first, or split the data", "data.read_jsonl")
def read_jsonl(path: PathLike) -> tuple[list[str], list[list[str]]]:
    r"""Reads all documents of a JSON lines file. Every line must have `labels`.

    Args:
        path: The file, plain or compressed as .gz, .xz or .bz2.

    Returns:
        The texts, and the label names of each document.

    Raises:
        ValueError: A line is bad, a document has no `labels`, or the file has no document.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import read_jsonl
        >>> _ = Path("one.jsonl").write_text('{"text": "a cat", "labels": ["animal", "pet"]}\n')
        >>> read_jsonl("one.jsonl")
        (['a cat'], [['animal', 'pet']])
    """
    texts: list[str] = []
    labels: list[list[str]] = []
    for text, names in iter_jsonl(path):
        if names is None:
            raise ValueError(
                f'{path}: every document must have "labels", got none in document {len(texts) + 1}'
            )
        texts.append(text)
        labels.append(names)
    if not texts:
        raise ValueError(f"{path}: the file must not be empty, got no document")
    return texts, labels

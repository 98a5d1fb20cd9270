"""JSON lines: documents as text with the names of their labels, one object a line."""

from __future__ import annotations

from collections.abc import Iterator

from mach_ext._memory import memory_errors
from mach_ext.data.files import PathLike
from mach_ext.data.json_text import decode_json
from mach_ext.data.parsing import quote
from mach_ext.data.sources import iter_lines


@memory_errors("free memory first, or split the data", "data.iter_jsonl")
def iter_jsonl(path: PathLike) -> Iterator[tuple[str, list[str] | None]]:
    """Reads documents, one JSON object a line: ``{"text": "...", "labels": ["name", ...]}``.

    Args:
        path: the file, plain or .gz, .xz, .bz2. Blank lines and further keys are ignored. Strings are kept as
            they are, also half of a surrogate pair, which JSON can write and UTF-8 can't.

    Yields:
        (text, label names); None where a line has no ``labels``.

    Raises:
        ValueError: with file, line, rule and what came.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import iter_jsonl
        >>> _ = Path("one.jsonl").write_text('{"text": "a cat", "labels": ["animal"]}\\n')
        >>> list(iter_jsonl("one.jsonl"))
        [('a cat', ['animal'])]
    """
    for number, line in iter_lines(path):
        if line.strip():
            yield json_document(line, f"{path}, line {number}")


def json_document(line: bytes, where: str) -> tuple[str, list[str] | None]:
    """One line of JSON lines as text and label names; `where` starts messages.

    Raises:
        ValueError: no such document.
    """
    try:
        record = decode_json(line.decode())
    except ValueError as error:  # also a UnicodeDecodeError
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
    """All documents of a JSON lines file: texts and label names; every line must have ``labels``."""
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

"""JSON lines in plain Python: a parser of JSON values by hand, and what a document's line must hold."""

from __future__ import annotations

import math
import re
from typing import Any

from . import Refused

WORDS = {"true": True, "false": False, "null": None}
WORDS |= {word: float(word) for word in ("NaN", "Infinity", "-Infinity")}
ESCAPES = dict(zip('"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True))
MAX_DEPTH = 200  # of brackets; what is nested deeper is no document
MAX_DIGITS = 4300  # of an integer, Python's own limit


class NotJson(Exception):
    pass


class Parser:
    def __init__(self, text: str, strict: bool = False):
        """`strict`: every number is finite, every key there once."""
        self.text, self.at, self.strict = text, 0, strict

    def match(self, pattern: str) -> str:
        found = re.compile(pattern).match(self.text, self.at)
        if found is None:
            raise NotJson
        self.at = found.end()
        return found[0]

    def space(self) -> str:
        """Skips blanks; the next character, or nothing at the end."""
        self.match("[ \t\r\n]*")
        return self.text[self.at : self.at + 1]

    def document(self) -> Any:
        value = self.value(0)
        if self.space():
            raise NotJson
        return value

    def value(self, depth: int) -> Any:
        next_character = self.space()
        if depth > MAX_DEPTH:
            raise NotJson
        if next_character == "{":
            members = self.items("}", lambda: self.member(depth + 1))
            if self.strict and len(dict(members)) < len(members):
                raise NotJson
            return dict(members)
        if next_character == "[":
            return list(self.items("]", lambda: self.value(depth + 1)))
        if next_character == '"':
            return self.string()
        for word, value in WORDS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return self.finite(value)
        number = self.match(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
        if not number.lstrip("-").isdigit():
            return self.finite(float(number))
        if len(number.lstrip("-")) > MAX_DIGITS:
            raise NotJson
        return int(number)

    def finite(self, value: Any) -> Any:
        if self.strict and isinstance(value, float) and not math.isfinite(value):
            raise NotJson
        return value

    def items(self, close: str, read: Any) -> list[Any]:
        self.at += 1
        found: list[Any] = []
        if self.space() == close:
            self.at += 1
            return found
        while True:
            found.append(read())
            self.space()
            if self.match(f"[,{re.escape(close)}]") == close:
                return found

    def member(self, depth: int) -> tuple[str, Any]:
        self.space()
        key = self.string()
        self.space()
        self.match(":")
        return key, self.value(depth)

    def string(self) -> str:
        self.match('"')
        out = ""
        while True:
            out += self.match(r'[^"\\\x00-\x1f]*')
            if self.match(r'["\\]') == '"':
                return re.sub("[\ud800-\udbff][\udc00-\udfff]", join_surrogates, out)
            escape = self.match(r'u[0-9a-fA-F]{4}|["\\/bfnrt]')
            out += chr(int(escape[1:], 16)) if escape[0] == "u" else ESCAPES[escape]


def join_surrogates(pair: re.Match[str]) -> str:
    high, low = map(ord, pair[0])
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


def read_jsonl(data: bytes, all_labelled: bool = False) -> list[tuple[str, list[str] | None]]:
    """(text, label names) of each line; `all_labelled`: there must be documents, all of them with labels."""
    documents = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip(b" \t\r\v\f"):
            continue
        try:
            record = Parser(line.decode()).document()
        except (NotJson, UnicodeDecodeError):
            raise Refused(number) from None
        if not isinstance(record, dict):
            raise Refused(number)
        text, labels = record.get("text"), record.get("labels")
        if not isinstance(text, str):
            raise Refused(number)
        if labels is not None and not (isinstance(labels, list) and all(isinstance(x, str) for x in labels)):
            raise Refused(number)
        documents.append((text, labels))
        if all_labelled and labels is None:
            raise Refused(number, None)
    if all_labelled and not documents:
        raise Refused(None)
    return documents

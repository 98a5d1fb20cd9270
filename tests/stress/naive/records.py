"""What a model keeps of its data: JSON records and lists of names, and an array of counts."""

from __future__ import annotations

import math
from typing import Any

from . import Refused
from .json_lines import NotJson, Parser
from .npz import read_array
from .numbers import float32_bits


def value_of(data: bytes) -> Any:
    try:
        return Parser(data.removeprefix(b"\xef\xbb\xbf").decode()).document()
    except (NotJson, UnicodeDecodeError):
        raise Refused(None) from None


def need(condition: Any) -> None:
    if not condition:
        raise Refused(None)


def is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_real(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def read_names(data: bytes, count: int | None) -> list[str]:
    names = value_of(data)
    need(is_list_of_names(names))
    need(count is None or len(names) == count)
    return names


def read_vectorizer(data: bytes) -> tuple[list[str], list[int | None], str]:
    """Words, the bits of their inverse document frequencies, the rule of tokens."""
    record = value_of(data)
    need(isinstance(record, dict) and record.get("type") == "tfidf")
    words, numbers, rule = record.get("vocabulary"), record.get("idf"), record.get("tokens", "words-1")
    need(is_list_of_names(words) and isinstance(numbers, list) and 0 < len(words) == len(numbers))
    need(len(set(words)) == len(words) and rule in ("words-1", "words-2"))
    need(all(is_real(number) and 0 <= number < 2**128 for number in numbers))
    bits = [float32_bits(float(number)) for number in numbers]
    need(None not in bits)
    return words, bits, rule


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def read_run(data: bytes) -> str:
    """As Python writes it, in which a NaN equals another."""
    record = value_of(data)
    need(isinstance(record, dict) and isinstance(record.get("dataset"), str))
    kinds = {"name": str, "holdout": bool, "settings": dict, "reader": dict, "versions": dict}
    need(all(isinstance(record[name], kind) for name, kind in kinds.items() if name in record))
    need(all(is_count(record[name]) for name in ("train_documents", "threads") if name in record))
    need("train" not in record or (is_pair(record["train"]) and all(map(is_count, record["train"]))))
    for base in ("svmlight_base", "svmlight_label_base"):
        given = record.get("reader", {}).get(base)
        need(given is None or (type(given) is int and given in (0, 1)))
    constants = record.get("propensity")
    if constants is not None:
        need(is_pair(constants) and all(map(is_real, constants)))
        need(0 <= constants[0] < 2**1023 and 0 < constants[1] < 2**1023)
    return repr(record)


def read_counts(data: bytes, num_labels: int) -> list[int]:
    try:
        kind, shape, items = read_array(data)
    except Exception:  # the many ways in which a header can be damaged
        raise Refused(None) from None
    need(kind in "iu" and shape == (num_labels,) and all(item >= 0 for item in items))
    return items

"""What a model keeps of its data: JSON records and lists of names, and an array of counts."""

from __future__ import annotations

import math
from typing import Any

from . import Refused
from .json_lines import NotJson, Parser
from .npz import read_array
from .numbers import float32_bits


def value_of(data: bytes, strict: bool = False) -> Any:
    """`strict`: what this package has written itself, so without a byte order mark."""
    try:
        return Parser((data if strict else data.removeprefix(b"\xef\xbb\xbf")).decode(), strict).document()
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
    names = value_of(data, strict=count is not None)
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


def read_run(data: bytes) -> str:
    """As Python writes it."""
    record = value_of(data, strict=True)
    need(isinstance(record, dict))
    kinds = {"dataset": str, "name": str, "holdout": bool, "settings": dict, "reader": dict, "versions": dict}
    need(all(isinstance(record[name], kind) for name, kind in kinds.items() if name in record))
    for name in ("train_documents", "threads"):
        need(name not in record or (type(record[name]) is int and 0 <= record[name] < 2**62))
    if "train" in record:
        need(isinstance(record["train"], list) and [type(item) for item in record["train"]] == [int, int])
    bases = record.get("reader", {})
    need(set(bases) <= {"svmlight_base", "svmlight_label_base"})
    need(all(base is None or (type(base) is int and base in (0, 1)) for base in bases.values()))
    constants = record.get("propensity")
    if constants is not None:
        need(isinstance(constants, list) and len(constants) == 2 and all(map(is_real, constants)))
        need(all(abs(constant) < 2**1024 - 2**970 for constant in constants))
    return repr(record)


def read_counts(data: bytes, num_labels: int) -> list[int]:
    try:
        kind, shape, items = read_array(data)
    except Exception:  # the many ways in which a header can be damaged
        raise Refused(None) from None
    need(kind in "iu" and shape == (num_labels,) and all(item >= 0 for item in items))
    return items

"""Records are JSON that this package wrote for itself. They are read strictly and compared with a schema.

A schema is one of these.

* A type means a value of this type: `int`, `float` (any finite number), `str`, `bool` or `type(None)`.
* `range(...)` means an integer in this range.
* A compiled pattern means a string that matches all of the pattern.
* A set means any of its values.
* `[schema]` means a list of any length. `[schema, schema]` means a list of two, and so on.
* `{"key": schema}` means an object. A key that ends in "?" may be missing. "*" stands for all other keys.
* A tuple means that any of its schemas may hold.
* `ANY` means any JSON value.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from mach_ext._deprecation import renamed_names
from mach_ext.data.files import open_file
from mach_ext.data.json_text import without_nan
from mach_ext.data.parsing import quote

ANY = object()
Schema = Any
_MAX_BYTES = 1 << 26  # size of a record in a file of its own
_SHOWN = 60  # characters of a key in a message
_TYPES = {
    str: "a string",
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    type(None): "null",
}


def read_record(file: Path, what: str, schema: Schema) -> Any:
    """Reads the record in a file.

    Args:
        file: The file.
        what: What the file should be, such as "a model record".
        schema: The record's schema.

    Raises:
        ValueError: The file does not hold such a record. The message names the file and the rule.
        OSError: The file cannot be read.
    """
    with open_file(file) as content:
        text = content.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{file}: not {what}: must have at most {_MAX_BYTES:,} bytes, got more")
    return parse_record(text, f"{file}: not {what}", schema)


def parse_record(content: bytes, name: str, schema: Schema) -> Any:
    """Parses a record from JSON text.

    Args:
        content: The text in UTF-8.
        name: The beginning of each error message.
        schema: The record's schema.

    Raises:
        ValueError: The text is not JSON in UTF-8, or it does not suit the schema.

    Example:
        >>> from mach_ext.data.records import parse_record
        >>> parse_record(b'{"a": 1}', "a.json", {"a": int, "b?": str})
        {'a': 1}
        >>> parse_record(b'{"a": true}', "a.json", {"a": int})
        Traceback (most recent call last):
        ...
        ValueError: a.json: a must be an integer, got True
    """
    try:
        record = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError(f"{name}: must have few levels, got deeply nested JSON") from None
    except ValueError as error:
        raise ValueError(f"{name}: must be JSON in UTF-8, got: {error}") from None
    check_record(record, name, schema)
    return record


def check_record(record: Any, name: str, schema: Schema) -> None:
    """Compares a record with a schema. `name` begins each error message.

    Raises:
        ValueError: The record does not suit the schema.
    """
    if (fault := _fault(record, schema, "")) is not None:
        raise ValueError(f"{name}: {fault}")


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record without NaN, and with its SHA-256 under the key "sha256"."""
    record = without_nan(record)
    return {**record, "sha256": digest_of(record)}


def digest_of(record: dict[str, Any]) -> str:
    """Returns the SHA-256 of a record. The order of keys and the record's own "sha256" do not count.

    The result is "" for JSON that is nested too deeply for Python. No record names this digest.
    """
    rest = {key: value for key, value in record.items() if key != "sha256"}
    try:
        text = json.dumps(rest, sort_keys=True)
    except RecursionError:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of pairs. A key that occurs twice is refused."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {quote(name)} twice in one object")
        result[name] = value
    return result


def _refuse_constant(text: str) -> NoReturn:
    """Refuses NaN and infinity, which standard JSON does not have."""
    raise ValueError(f"{text}, which is no number of JSON")


def _finite(text: str) -> float:
    """Parses a number. A number beyond float64 is refused."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:_SHOWN]}, which is beyond every float")
    return value


def _fault(value: Any, schema: Schema, where: str) -> str | None:
    """Says how a value breaks a schema. None: the value suits the schema. `where` names the value."""
    if schema is ANY:
        return None
    if isinstance(schema, dict) and isinstance(value, dict):
        return _object_fault(value, schema, where)
    if isinstance(schema, list) and isinstance(value, list):
        return _list_fault(value, schema, where)
    if isinstance(schema, tuple):
        faults = [_fault(value, each, where) for each in schema]
        if None in faults:
            return None
        nested = (f for f, each in zip(faults, schema, strict=True) if type(each) is type(value))
        if (fault := next(nested, None)) is not None:
            return fault
    elif _suits(value, schema):
        return None
    return f"{where or 'it'} must be {_rule(schema)}, got {quote(value)}"


def _list_fault(value: list[Any], schema: list[Schema], where: str) -> str | None:
    """Says how a list breaks a schema. None: the list suits the schema."""
    if len(schema) > 1 and len(schema) != len(value):
        return f"{where or 'it'} must be a list of {len(schema)}, got {len(value)}"
    if schema[0] in (str, int) and {*map(type, value)} <= {schema[0]}:
        return None  # a fast check for lists of a million names
    rules = schema if len(schema) > 1 else schema * len(value)
    faults = (_fault(each, rules[i], f"{where}[{i}]") for i, each in enumerate(value))
    return next((fault for fault in faults if fault is not None), None)


def _object_fault(value: dict[str, Any], schema: dict[str, Schema], where: str) -> str | None:
    """Says how an object breaks a schema. None: the object suits the schema."""
    before = where and f"{where}."
    rules = {name.removesuffix("?"): rule for name, rule in schema.items() if name != "*"}
    for name in schema:
        if name != "*" and not name.endswith("?") and name not in value:
            return f"{before}{name} is missing"
    for name, entry in value.items():
        if name not in rules and "*" not in schema:
            return f"{where or 'it'} must have no key {quote(name)}"
        rule = rules.get(name, schema.get("*"))
        if (fault := _fault(entry, rule, f"{before}{name[:_SHOWN]}")) is not None:
            return fault
    return None


def _suits(value: Any, schema: Schema) -> bool:
    """Returns whether a value suits a schema that has no parts. JSON's true does not count as 1."""
    if isinstance(schema, (dict, list)):
        return False
    if isinstance(schema, range):
        return type(value) is int and value in schema
    if isinstance(schema, re.Pattern):
        return isinstance(value, str) and schema.fullmatch(value) is not None
    if isinstance(schema, (set, frozenset)):
        return any(type(value) is type(each) and value == each for each in schema)
    if schema is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is schema


def _rule(schema: Schema) -> str:
    """Returns a schema in words."""
    if isinstance(schema, tuple):
        return " or ".join(map(_rule, schema))
    if isinstance(schema, dict):
        return "an object"
    if isinstance(schema, list):
        return "a list" if len(schema) == 1 else f"a list of {len(schema)}"
    if isinstance(schema, range):
        return f"an integer from {schema.start} to {schema.stop - 1}"
    if isinstance(schema, re.Pattern):
        return f"text like {schema.pattern}"
    if isinstance(schema, (set, frozenset)):
        return f"one of {', '.join(sorted(map(str, schema)))}"
    return _TYPES[schema]


__getattr__ = renamed_names(__name__, sealed="mach_ext.data.records.seal")

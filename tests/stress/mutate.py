"""Damage to text files, one small step at a time; every step takes and returns bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import re

from .tokens import INTEGERS, JSON_ESCAPES, JSON_NUMBERS, JSON_TOKENS, TOKENS, VALUES


def place(rng: random.Random, data: bytes) -> int:
    return rng.randint(0, len(data))


def put(data: bytes, start: int, end: int, new: bytes) -> bytes:
    return data[:start] + new + data[end:]


# ------------------------------------------------------------------------------------------- bytes


def flip_bit(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return put(data, at, at + 1, bytes([data[at] ^ 1 << rng.randrange(8)]))


def set_byte(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return put(data, at, at + 1, bytes([rng.choice((0, 9, 10, 13, 32, 44, 48, 58, 255, rng.randrange(256)))]))


def delete_bytes(rng: random.Random, data: bytes) -> bytes:
    at = place(rng, data)
    return put(data, at, at + rng.choice((1, 1, 2, 9)), b"")


def repeat_bytes(rng: random.Random, data: bytes) -> bytes:
    at = place(rng, data)
    return put(data, at, at, data[at : at + rng.choice((1, 2, 9, 40))])


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: place(rng, data)]


def insert_token(rng: random.Random, data: bytes) -> bytes:
    at = place(rng, data)
    return put(data, at, at, rng.choice(TOKENS))


# ------------------------------------------------------------------------------------------- tokens and lines


def on_token(pattern: bytes, choices: tuple[bytes, ...], rng: random.Random, data: bytes) -> bytes:
    found = [match.span() for match in re.finditer(pattern, data)]
    return put(data, *rng.choice(found), rng.choice(choices)) if found else data


def replace_integer(rng: random.Random, data: bytes) -> bytes:
    return on_token(rb"[0-9]+", INTEGERS, rng, data)


def nudge_integer(rng: random.Random, data: bytes) -> bytes:
    found = [match.span() for match in re.finditer(rb"(?<![.0-9])[0-9]{1,9}", data)]
    if not found:
        return data
    start, end = rng.choice(found)
    return put(data, start, end, b"%d" % (int(data[start:end]) + rng.choice((-1, 1, 1, 10))))


def replace_value(rng: random.Random, data: bytes) -> bytes:
    return on_token(rb"(?<=:)[^ \t\r\n]*", VALUES, rng, data)


def replace_token(rng: random.Random, data: bytes) -> bytes:
    return on_token(rb"[^ \t\r\n:,]+", TOKENS, rng, data)


def replace_blank(rng: random.Random, data: bytes) -> bytes:
    return on_token(
        rb"[ \t]+", (b"", b"  ", b"\t", b"\r", b"\v \f", b" \t ", b"\xa0", b"\n", b","), rng, data
    )


def add_blanks(rng: random.Random, data: bytes) -> bytes:
    return on_token(
        rb"^|$|\n", (b" ", b"\n ", b" \n", b"\n\n", b"\n \n", b"\n\t", b"\r\n", b"\r", b"\f\n"), rng, data
    )


def on_parts(separator: bytes, rng: random.Random, data: bytes) -> bytes:
    """Swaps, repeats, deletes or joins pieces of a line, or lines."""
    parts = data.split(separator)
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    kind = rng.choice(("swap", "repeat", "delete", "move"))
    if kind == "swap":
        parts[i], parts[j] = parts[j], parts[i]
    elif kind == "repeat":
        parts.insert(j, parts[i])
    elif kind == "delete":
        del parts[i]
    else:
        parts.insert(j, parts.pop(i))
    return separator.join(parts)


def on_tokens(rng: random.Random, data: bytes) -> bytes:
    return on_parts(rng.choice((b" ", b":", b",", b"\t")), rng, data)


def on_lines(rng: random.Random, data: bytes) -> bytes:
    return on_parts(b"\n", rng, data)


def on_header(rng: random.Random, data: bytes) -> bytes:
    first, end, rest = data.partition(b"\n")
    step = rng.choice((nudge_integer, nudge_integer, replace_integer, on_tokens, add_blanks, replace_token))
    return step(rng, first) + end + rest


def recode(rng: random.Random, data: bytes) -> bytes:
    """Line ends, byte order marks and encodings as other programs write them."""
    kind = rng.choice(("crlf", "cr", "mark", "marks", "utf-16", "nul", "control z", "no end"))
    if kind in ("crlf", "cr"):
        return data.replace(b"\n", b"\r\n" if kind == "crlf" else b"\r")
    if kind == "utf-16":
        return data.decode("latin-1").encode("utf-16")
    if kind == "no end":
        return data.rstrip(b"\r\n ")
    before = {"mark": b"\xef\xbb\xbf", "marks": b"\xef\xbb\xbf" * 2}.get(kind, b"")
    return before + data + {"nul": b"\0", "control z": b"\x1a"}.get(kind, b"")


def json_token(rng: random.Random, data: bytes) -> bytes:
    at = rng.choice([place(rng, data), *(match.end() for match in re.finditer(rb'[\[{,:"]', data))])
    return put(data, at, at, rng.choice(JSON_TOKENS))


def json_escape(rng: random.Random, data: bytes) -> bytes:
    """Into a string, or into its quotes."""
    found = [place for match in re.finditer(rb'"[^"]*"', data) for place in range(*match.span())]
    at = rng.choice(found or [0])
    return put(data, at, at, rng.choice(JSON_ESCAPES))


def json_value(rng: random.Random, data: bytes) -> bytes:
    return on_token(
        rb'"[^"]*"|\[[^\]]*\]|-?[0-9][0-9.e+-]*|null|true', (*JSON_TOKENS, b"0", b"[]", b'"x"'), rng, data
    )


def json_number(rng: random.Random, data: bytes) -> bytes:
    """Another value in the place of a number, true, false or null, and only there."""
    pattern = rb"(?<=[\[,: ])(-?[0-9][0-9.e+-]*|true|false|null)(?=[\],}\s])"
    return on_token(pattern, JSON_NUMBERS, rng, data)


BYTES = (flip_bit, set_byte, delete_bytes, repeat_bytes, truncate, insert_token, recode, on_lines, add_blanks)
NUMBERS = (replace_integer, nudge_integer, replace_value, replace_token, replace_blank, on_tokens, on_header)
JSON = (json_token, json_value, json_escape, json_token, json_value, json_escape, on_tokens)


def text(rng: random.Random, data: bytes, steps: tuple = (*BYTES, *NUMBERS, *NUMBERS)) -> bytes:
    """One to four steps of damage; rarely none."""
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(steps)(rng, data or b"\n")
    return data


# ------------------------------------------------------------------------------------------- compression


def compressed(rng: random.Random, name: str, data: bytes) -> tuple[str, bytes]:
    """The file under a compression's suffix: whole, in several streams, or damaged."""
    suffix, pack = rng.choice(
        (
            (".gz", lambda x: gzip.compress(x, 1, mtime=0)),
            (".bz2", lambda x: bz2.compress(x, 1)),
            (".xz", lambda x: lzma.compress(x, preset=0)),
        )
    )
    cut = place(rng, data)
    parts = [pack(data)] if rng.random() < 0.7 else [pack(data[:cut]), pack(data[cut:])]
    if rng.random() < 0.6:
        step = rng.choice((flip_bit, set_byte, delete_bytes, truncate, repeat_bytes))
        parts[-1] = step(rng, parts[-1])
    if rng.random() < 0.1:
        parts.append(rng.choice((b"\0" * 4, b"\0" * 512, b"garbage", b"\n", parts[0][:5])))
    return name + suffix, b"".join(parts)

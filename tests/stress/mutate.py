"""Damage to text files, one small step at a time; every step takes and returns bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import re

INTEGERS = (
    *(b"0", b"1", b"2", b"7", b"00", b"007", b"-1", b"+1", b"1_0", b"0x1", b"1.0", b"1e1", b"", b"-0"),
    *(b"2147483646", b"2147483647", b"2147483648", b"4294967295", b"4294967296", b"9223372036854775807"),
    *(b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"9" * 40, b"1" * 5000),
    *(b"0" * 30 + b"1", b"0" * 5000, "\u0661".encode(), "\u00b2".encode(), "\uff11".encode()),
)
VALUES = (
    *(
        b"0",
        b"-0",
        b"-0.0",
        b"1",
        b".5",
        b"5.",
        b".",
        b"+",
        b"-",
        b"+-5",
        b"--5",
        b"1e",
        b"1e+",
        b"e5",
        b"1e5e5",
    ),
    *(b"nan", b"-NaN", b"inf", b"-Infinity", b"nan(1)", b"0x1p3", b"1,5", b"1f", b"1_0", b"1d3", b"1.2.3"),
    *(b"1e-45", b"1e-46", b"7.006492321624085e-46", b"7.0064923216240854e-46", b"1e-400", b"1.1754943e-38"),
    *(
        b"3.4028235e38",
        b"3.4028235677973366e38",
        b"3.4028235677973365e38",
        b"3.5e38",
        b"-1e39",
        b"1e308",
        b"1e400",
    ),
    *(
        b"1e999999999999999999999",
        b"0e999999999999999999999",
        b"1e-999999999999999999999",
        b"0." + b"0" * 400 + b"1",
    ),
    *(
        b"1" + b"0" * 400 + b"e-400",
        b"0" * 400 + b"1",
        b"1" * 60,
        b"16777217",
        b"16777217." + b"0" * 60 + b"1",
    ),
    *(
        b"1.000000178813934326171875",
        b"1.00000017881393432617187499999999",
        b"4.951303999405354e-04",
        b"3e38",
    ),
    *(b"9007199254740993", b"1.513450555989948e-07", b"0.1" + b"0" * 5000, b"1" * 5000, b"1" * 39, b"-3e38"),
)
TOKENS = (
    *(
        b":",
        b",",
        b"\t",
        b" ",
        b"#",
        b"qid:1",
        b"qid:",
        b"1:2",
        b"0",
        b"a",
        b"1:",
        b":1",
        b"1:2:3",
        b"1,",
        b",1",
    ),
    *(
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xef\xbb\xbf",
        "\u00a0".encode(),
        "\u2028".encode(),
        "\u0085".encode(),
        b"\r",
    ),
    *(
        b"\v",
        b"\f",
        b"\x1c",
        b"\x1f",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"%",
        b"//",
        b'"',
        b"\\",
        b"0:1",
        b"0:1",
        b"\x1a",
    ),
)
JSON_TOKENS = (
    *(
        b'"',
        b"\\",
        b"\\u",
        b"\\ud800",
        b"\\udc00",
        b"\\ud83d\\ude00",
        b"\\u0000",
        b"\\x",
        b"[",
        b"]",
        b"{",
        b"}",
    ),
    *(
        b",",
        b":",
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-",
        b"01",
        b"1.",
        b".5",
        b"1" * 4301,
        b"1e",
    ),
    *(
        b'"text":"b",',
        b'"labels":null,',
        b'"labels":["x"],',
        b'"labels":[1],',
        b'"text":5,',
        b"/**/",
        b"'",
        b"\t",
    ),
    *(
        b'"a":' + b"[" * 50 + b"]" * 50 + b",",
        b'"a":' + b"[" * 100_000,
        b'"a":' + b'{"a":' * 100_000,
        b"\x7f",
        b"\x01",
    ),
)


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


def json_value(rng: random.Random, data: bytes) -> bytes:
    return on_token(
        rb'"[^"]*"|\[[^\]]*\]|-?[0-9][0-9.e+-]*|null|true', (*JSON_TOKENS, b"0", b"[]", b'"x"'), rng, data
    )


BYTES = (flip_bit, set_byte, delete_bytes, repeat_bytes, truncate, insert_token, recode, on_lines, add_blanks)
NUMBERS = (replace_integer, nudge_integer, replace_value, replace_token, replace_blank, on_tokens, on_header)
JSON = (json_token, json_value, json_token, json_value, on_tokens)


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

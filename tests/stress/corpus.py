"""Valid files of each format, drawn at random, with all that the format allows: what mutations start from."""

from __future__ import annotations

import json
import random
from typing import Any

NUMBERS = (
    "0",
    "-0",
    "1",
    ".5",
    "5.",
    "1e3",
    "+2E-2",
    "0.10000000149011612",
    "16777217",
    "7.006492321624085e-46",
)
WORDS = ("cat", "big dog", "Éclair", "हिन्दी", "0", "12", "naïve\u0085x", "a:b", "#1", "猫")
WORDS += ("\x1b[31mred", "nul\0", "zero\u200bwidth", "right\u202eleft")


def number(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(NUMBERS)
    return f"{rng.choice(['', '-'])}{rng.random() * 10 ** rng.randint(-3, 3):.{rng.randint(0, 9)}g}"


def pairs(rng: random.Random, columns: int, base: int = 0) -> list[str]:
    ids = [rng.randrange(columns) + base for _ in range(rng.randint(0, 5))]
    if rng.random() < 0.7:
        ids = sorted(set(ids))
    return [f"{i}:{number(rng)}" for i in ids]


def labels(rng: random.Random, columns: int) -> str:
    return ",".join(str(rng.randrange(columns)) for _ in range(rng.choice((0, 1, 1, 2, 4))))


def text(rng: random.Random, lines: list[str]) -> bytes:
    end = rng.choice(("\n", "\n", "\n", "\r\n"))
    last = rng.choice((end, end, ""))
    return (end.join(lines) + last * bool(lines)).encode()


def sizes(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(1, 8), rng.randint(1, 30), rng.randint(1, 12)


def xmc(rng: random.Random) -> dict[str, bytes]:
    N, D, L = sizes(rng)
    documents = [" ".join([labels(rng, L), *pairs(rng, D)]) for _ in range(N)]
    blank = rng.choice(([""], [""], ["", " ", ""])) if documents[-1] == "" or rng.random() < 0.2 else []
    return {"train.txt": text(rng, [f"{N} {D} {L}", *documents, *blank])}


def svmlight(rng: random.Random) -> dict[str, bytes]:
    _, D, L = sizes(rng)
    base = rng.randint(0, 1)
    files = {}
    for name in ("train.svm", "test.svm")[: rng.randint(1, 2)]:
        lines = []
        for _ in range(rng.randint(1, 6)):
            qid = [f"qid:{rng.randint(0, 9)}"] * (rng.random() < 0.2)
            comment = ["# a:b 1:2"] * (rng.random() < 0.2)
            lines += ["# made by hand"] * (rng.random() < 0.1)
            lines.append(" ".join([labels(rng, L), *qid, *pairs(rng, D, base), *comment]))
        files[name] = text(rng, [*lines, "0 1:1"])
    return files


def deepxml(rng: random.Random) -> dict[str, bytes]:
    N, D, L = sizes(rng)
    features = [" ".join(pairs(rng, D)) for _ in range(N)]
    marked = [
        " ".join(f"{i}:{rng.choice(('1', '1', '1.0', '0'))}" for i in range(rng.randint(0, L)))
        for _ in range(N)
    ]
    return {
        "trn_X_Xf.txt": "\n".join([f"{N} {D}", *features, ""]).encode(),
        "trn_X_Y.txt": "\n".join([f"{N} {L}", *marked, ""]).encode(),
    }


PAIR_ROWS, PAIR_COLUMNS = 9, 7


def filter_pairs(rng: random.Random) -> dict[str, bytes]:
    lines = [f"{rng.randrange(PAIR_ROWS)} {rng.randrange(PAIR_COLUMNS)}" for _ in range(rng.randint(0, 8))]
    return {"filter_labels_test.txt": text(rng, lines)}


def texts(rng: random.Random) -> dict[str, bytes]:
    return {
        "X.trn.txt": text(
            rng, [" ".join(rng.choices(WORDS, k=rng.randint(0, 4))) for _ in range(rng.randint(1, 7))]
        )
    }


def names(rng: random.Random) -> dict[str, bytes]:
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 7))]
    ids: list[Any] = list(range(len(words)))
    base = rng.randint(0, 1)
    if rng.random() < 0.4:
        rng.shuffle(ids)
    kind = rng.choice(("plain", "columns", "columns", "others"))
    if kind == "columns":
        words = [f"{i + base}\t{word}" for i, word in zip(ids, words, strict=True)]
    elif kind == "others":
        words = [f"n{rng.randint(0, 99):08d}\t{word}" for word in words]
    return {"labels.txt": text(rng, words)}


def jsonl(rng: random.Random) -> dict[str, bytes]:
    lines = []
    for _ in range(rng.randint(1, 5)):
        record: dict[str, Any] = {"text": " ".join(rng.choices(WORDS, k=rng.randint(0, 5)))}
        if rng.random() < 0.9:
            record["labels"] = rng.choices(WORDS, k=rng.randint(0, 3))
        if rng.random() < 0.3:
            record["more"] = rng.choice((None, True, 1.5e-3, -7, [1, {"a": []}], {"text": 5, "b": "\u2028"}))
        lines.append(json.dumps(record, ensure_ascii=rng.random() < 0.5))
    return {"train.jsonl": text(rng, lines)}


def vectorizer(rng: random.Random) -> dict[str, bytes]:
    words = rng.sample(WORDS, rng.randint(1, 6))
    record: dict[str, Any] = {
        "type": "tfidf",
        "vocabulary": words,
        "idf": [rng.choice((1, 1.5, round(rng.random() * 9, 3), 0.1)) for _ in words],
    }
    if rng.random() < 0.7:
        record["tokens"] = rng.choice(("words-1", "words-2"))
    return {"vectorizer.json": json.dumps(record, ensure_ascii=rng.random() < 0.5).encode()}


def json_names(rng: random.Random) -> dict[str, bytes]:
    names = rng.choices(WORDS, k=rng.randint(1, 5))
    return {"labels.json": json.dumps(names, ensure_ascii=rng.random() < 0.5).encode()}


def written_names(rng: random.Random) -> dict[str, bytes]:
    """Names of all kinds: of what numbers, tabs, ends of lines and files look like, and what UTF-8 lacks."""
    pieces = (
        "",
        " ",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\0",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\udc00",
        "0",
        "1",
        "2",
        *WORDS,
    )
    names = ["".join(rng.choices(pieces, k=rng.choice((0, 1, 1, 2, 3)))) for _ in range(rng.randint(1, 4))]
    return {"names.json": json.dumps(names).encode()}


def run_record(rng: random.Random) -> dict[str, bytes]:
    record: dict[str, Any] = {
        "dataset": "/data/a",
        "name": "a",
        "holdout": rng.random() < 0.5,
        "train": [rng.randrange(2**32), rng.randrange(2**32)],
        "settings": {"seed": 0, "hidden_size": [16]},
        "reader": {
            "svmlight_base": rng.choice((None, 0, 1)),
            "svmlight_label_base": rng.choice((None, 0, 1)),
        },
        "propensity": rng.choice(([0.55, 1.5], [0, 1], None)),
        "train_documents": rng.randrange(1000),
        "threads": 1,
        "versions": {"mach_ext": "0.1.0"},
    }
    for name in rng.sample(list(record)[1:], rng.randint(0, 3)):  # older runs say less
        del record[name]
    return {"run.json": json.dumps(record, indent=rng.choice((None, 2))).encode()}


LABELS = 5  # of the counts

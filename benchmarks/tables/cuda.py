"""The table of bench_cuda.py, measured or predicted, one for each card."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from frames import markdown, milliseconds, read, short_shape

HEAD = ("work", "floor, ms", "mach_ext, ms", "of the floor", "beside", "ratio", "target", "met")
PREDICTED = (
    "No GPU has run this version yet. These times are **predictions** from the bytes, sums and instructions "
    "of each kernel. PyTorch's forms get the least time that their bytes allow, so each ratio is a lower "
    "bound. A ratio below its target shows neither that the target is met nor that it is missed.\n\n"
)
PREDICTION = "of the prediction"  # a column of measured tables: measured over predicted time
TEXT = ("work", "shape", "provider", "bound", "card", "device", "test", "failed", "threads")


def load(file: Path) -> pd.DataFrame:
    """The rows of a CSV file of results, or of the summary.json that gpu.sh writes."""
    if file.suffix != ".json":
        return read(file.stem, file.parent)
    rows = pd.DataFrame(json.loads(file.read_text(encoding="utf-8"))["rows"]).replace("", None)
    for name in rows.columns.difference(TEXT):
        rows[name] = (
            rows[name].map({"True": True, "False": False}) if name == "predicted" else number(rows[name])
        )
    return rows


def number(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce")


def cuda(kept: pd.DataFrame) -> str:
    """The tables of all cards, one after the other."""
    if kept.empty:
        return "No benchmark has run.\n"
    predicted = bool(kept["predicted"].iloc[0])
    return (PREDICTED if predicted else "") + "\n".join(
        one_card(card, of, predicted) for card, of in kept.groupby("card", sort=True)
    )


def one_card(card: str, kept: pd.DataFrame, predicted: bool) -> str:
    measured = kept[kept["seconds"].notna()]
    rows = [row for _, of in measured.groupby("test", sort=False) for row in work(of, predicted)]
    head = HEAD if predicted else (*HEAD, PREDICTION)
    return f"**CUDA, {card}**{', predicted' if predicted else ''}.\n\n" + markdown(
        pd.DataFrame(rows, columns=list(head))
    )


def work(of: pd.DataFrame, predicted: bool) -> list[tuple[str, ...]]:
    """The line of a work, and one for each other form of it that is ours."""
    ours = of[of["provider"].str.startswith("mach_ext")]
    others = of[~of["provider"].str.startswith("mach_ext")]
    lines = []
    for _, mine in ours.iterrows():
        first = mine["provider"] == "mach_ext"
        beside = others if first else others[:0]
        ratios = beside["seconds"] / mine["seconds"]
        memory = (mine["peak_bytes"] / beside["peak_bytes"]).dropna()
        least = "≥ " if predicted else ""  # PyTorch's forms at the least that they can take
        form = "" if first else f" ({mine['provider'].removeprefix('mach_ext').strip(' ,')})"
        line = (
            f"{mine['work']}{form}: {short_shape(mine['shape'])}",
            f"{milliseconds(mine['floor_seconds'])} ({mine['bound'].replace('_', ' ')})",
            milliseconds(mine["seconds"]),
            f"{mine['floor_seconds'] / mine['seconds']:.0%}",
            " / ".join(beside["provider"]),
            " / ".join(f"{least}{ratio:.3g}" for ratio in ratios),
            *(promise(mine, ratios, memory, predicted) if first else ("", "")),
        )
        lines.append(line if predicted else (*line, against_prediction(mine)))
    return lines


def against_prediction(mine: pd.Series) -> str:
    """How many times as long as predicted; empty for cards and forms of which nothing is predicted."""
    expected = mine.get("predicted_seconds")
    return "" if expected is None or pd.isna(expected) else f"{mine['seconds'] / expected:.2f}"


def promise(ours: pd.Series, ratios: pd.Series, memory: pd.Series, predicted: bool) -> tuple[str, str]:
    """Targets of a work, and whether they are met, in the same order."""
    share = ours["floor_seconds"] / ours["seconds"]
    rules = {
        "share": ("≥ {:.0%} of the floor's speed", lambda target: share >= target),
        "ms": ("≤ {:g} ms", lambda target: ours["seconds"] * 1e3 <= target),
        "ratio": ("≥ {:g} x", lambda target: ratios.min() >= target if len(ratios) else None),
        "memory": ("≤ {:g} of the memory", lambda target: memory.max() <= target if len(memory) else None),
    }
    texts, words = [], []
    for of, (text, holds) in rules.items():
        target = ours.get(f"target_{of}")
        if pd.isna(target):
            continue
        met = holds(target)
        no = "not shown" if of == "ratio" and predicted else "**no**"  # the ratio is a lower bound
        word = "" if met is None else "yes" if met else no
        if of == "memory" and len(memory):
            word += f", {' / '.join(memory.map('{:.2g}'.format))}"
        texts.append(text.format(target))
        words.append(word)
    if not texts:
        return "", ""
    return "; ".join(texts), "; ".join(words) + (" (predicted)" if predicted else "")

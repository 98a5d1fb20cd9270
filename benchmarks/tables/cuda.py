"""The table of bench_cuda.py, measured or predicted."""

from __future__ import annotations

import pandas as pd
from frames import markdown, milliseconds, short_shape

HEAD = ("work", "floor, ms", "mach_ext, ms", "of the floor", "beside", "ratio", "target", "met")


def cuda(kept: pd.DataFrame) -> str:
    predicted = bool(kept["predicted"].iloc[0])
    devices = ", ".join(sorted(kept["device"].unique()))
    text = f"**CUDA**, {devices}."
    if predicted:
        text += (
            " No GPU has run this version yet. These times are **predictions** from the bytes and sums "
            "of each kernel. PyTorch's forms get the least time that their bytes allow, so each ratio "
            "is a lower bound. A ratio below its target shows neither that the target is met nor "
            "that it is missed."
        )
    measured = kept[kept["seconds"].notna()]
    rows = [work(of, predicted) for _, of in measured.groupby("test", sort=False)]
    return f"{text}\n\n" + markdown(pd.DataFrame(rows, columns=list(HEAD)))


def work(of: pd.DataFrame, predicted: bool) -> tuple[str, ...]:
    ours = of[of["provider"] == "mach_ext"].iloc[0]
    others = of[~of["provider"].str.startswith("mach_ext")]
    ratios = others["seconds"] / ours["seconds"]
    memory = (ours["peak_bytes"] / others["peak_bytes"]).dropna()
    least = "≥ " if predicted else ""  # PyTorch's forms at the least that they can take
    return (
        f"{ours['work']}: {short_shape(ours['shape'])}",
        f"{milliseconds(ours['floor_seconds'])} ({ours['bound'].replace('_', ' ')})",
        milliseconds(ours["seconds"]),
        f"{ours['floor_seconds'] / ours['seconds']:.0%}",
        " / ".join(others["provider"]),
        " / ".join(f"{least}{ratio:.3g}" for ratio in ratios),
        *promise(ours, ratios, memory, predicted),
    )


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
        target = ours[f"target_{of}"]
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

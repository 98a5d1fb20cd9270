"""The kept results as data frames, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from prose import ROOT

RESULTS = ROOT / "benchmarks" / "results"
# Of the benchmarks on a CPU, in the order of the table.
MODULES = ("merge_topk", "sparse_linear", "training", "head", "bucket_layout", "explain", "attack", "parser")
KS = (1, 3, 5)
EPSILONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # of the attacks in robustness.csv
MERGES = ("mean_logit", "mean_prob", "mean_logprob", "min_prob", "median_prob")


def read(name: str, folder: Path = RESULTS) -> pd.DataFrame:
    """One file of results. Words that pandas takes for missing values stay words."""
    return pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values=[""])


def timings(folder: Path = RESULTS) -> pd.DataFrame:
    """The rows of all benchmarks on a CPU, with their circumstances."""
    frames = [read(m, folder).assign(module=m) for m in MODULES if (folder / f"{m}.csv").exists()]
    if not frames:
        return pd.DataFrame()
    rows = pd.concat(frames, ignore_index=True)
    machines = read("circumstances", folder).rename(columns={"id": "circumstances"})
    rows = rows.merge(machines, on="circumstances", how="left")
    rows["place"] = rows["module"].map(MODULES.index)
    rows = rows.sort_values(["place", "test", "threads"], kind="stable", ignore_index=True)
    rows["title"] = rows["work"] + ": " + rows["shape"].map(short_shape)
    met = (rows["ratio"] >= rows["at_least"]) | (rows["ratio"] < rows["at_most"])
    return rows.assign(met=met | (rows["at_least"].isna() & rows["at_most"].isna()))


def points(models: pd.DataFrame) -> pd.DataFrame:
    """Rows of robustness.csv, once for each axis that they stand on: columns `axis` and `value` are added.

    The base is the model that was asked with every merge. The others differ from it in R, in B or in H.
    """
    sizes = ["R", "B", "H"]
    parts = []
    for _, of in models.groupby("dataset"):
        base = of[of["merge"] != MERGES[0]].iloc[0]
        for axis in sizes:
            others = [size for size in sizes if size != axis]
            mine = of[(of["merge"] == MERGES[0]) & (of[others] == base[others]).all(axis=1)]
            parts.append(
                mine.sort_values(axis, kind="stable").assign(axis=axis, value=mine[axis].astype(object))
            )
        mine = of[(of[sizes] == base[sizes]).all(axis=1)]
        order = mine["merge"].map(MERGES.index).sort_values(kind="stable").index
        parts.append(mine.loc[order].assign(axis="merge", value=mine["merge"].astype(object)))
    return pd.concat(parts, ignore_index=True)


def markdown(table: pd.DataFrame, head: Sequence[str] | None = None) -> str:
    """A table in Markdown. `head` is for columns whose names are not unique."""
    head = list(table.columns) if head is None else list(head)
    rows = [head, ["---"] * len(head), *table.astype(str).itertuples(index=False)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def joined(
    frame: pd.DataFrame, columns: Iterable[str], digits: int = 2, scale: float = 100
) -> pd.Series[Any]:
    """Numbers of several columns in one, with slashes."""
    return (scale * frame[list(columns)]).map(f"{{:.{digits}f}}".format).agg(" / ".join, axis=1)


def precision_columns(metric: str = "P") -> list[str]:
    return [f"{metric}@{k}" for k in KS]


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def short_shape(shape: str) -> str:
    """`kind=peaky N=256 L=670000 logits=True` as `peaky N 256 L 670K logits`."""
    words = []
    for item in shape.split():
        name, _, value = item.partition("=")
        if value != "False":
            words.append(name if value == "True" else value if name == "kind" else f"{name} {short(value)}")
    return " ".join(words)


def short(text: str) -> str:
    """A whole number of thousands or millions with its letter, another number with three digits."""
    try:
        number = float(text)
    except ValueError:
        return text
    if text.isdigit():
        thousands = number % 1000 == 0 and number >= 10_000
        millions = thousands and number % 1_000_000 == 0
        return f"{number / 1e6:.0f}M" if millions else f"{number / 1e3:.0f}K" if thousands else text
    return f"{number:.3g}"

"""Speed: how many times as fast mach_ext is as the best other form of the same work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from frames import timings
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from charts.style import BLACK, BLUE, GREY, RED, legend_above, new_figure

GRIDS = {
    "decode grid": "60 shapes, the best of PyTorch",
    "decode paths": "our own paths, the best one forced",
}


def decode(folder: Path) -> Any:
    """Decode: the promises, trained models, and the grid."""
    kept = best_others(folder)
    works = kept[kept["work"] == "decode"]
    real = works["shape"].str.contains("kind=(?:wordnet|eurlex57k)")
    panels = {"synthetic scores": works[~real], "trained models": works[real]}
    panels["many shapes, a dot each"] = kept[kept["work"].isin(GRIDS)]
    return ratios(panels, lambda row: GRIDS.get(row["work"], row["title"].removeprefix("decode: ")))


def sparse_linear(folder: Path) -> Any:
    """Sparse documents times a dense weight: forward, gradients, the optimiser's step."""
    kept = best_others(folder)
    works = {
        "forward, fp32 weights": "sparse_linear fp32",
        "forward, bf16 weights": "sparse_linear bf16 weights",
        "forward, R = 16 classifiers": "sparse_linear, linear MACH",
        "gradient to the values": "sparse_linear, gradient to the values",
        "backward and SparseAdam step": "backward + SparseAdam step",
    }
    panels = {heading: kept[kept["work"] == work] for heading, work in works.items()}
    return ratios(panels, lambda row: row["title"].partition(": ")[2] + suffix(row))


def speed(folder: Path) -> Any:
    """Training, attributions, attacks and reading, whole works of the library."""
    kept = best_others(folder)
    works = {
        "an epoch of training": "epoch of ",
        "support vector machines": "SVMs of buckets, ",
        "attributions": "explain 100 labels of a document",
        "attack on all features": "attack on all features, the pass",
        "reading": "parse XMC text",
    }
    names = {"attributions": "100 labels of a document", "attack on all features": "D 1M, N 1024"}
    panels = {heading: kept[kept["work"].str.startswith(work)] for heading, work in works.items()}
    shown = {work: names.get(heading) for heading, work in works.items()}

    def label(row: Any) -> str:
        start = next(work for work in works.values() if row["work"].startswith(work))
        name = shown[start] or row["work"].removeprefix(start) or "XMC text of eurlex57k"
        return name.replace("hidden-layer MACH", "hidden layers").replace("linear MACH", "linear") + suffix(
            row
        )

    return ratios(panels, label)


def best_others(folder: Path) -> pd.DataFrame:
    """A row a work, provider of ours and number of threads, with the ratio to the best other form."""
    kept = timings(folder)
    kept = kept[kept["over"].notna() & kept["seconds"].notna()].sort_values("ratio", kind="stable")
    kept = kept.drop_duplicates(["title", "provider", "threads"]).sort_index()
    return kept.assign(missed=~kept["met"])


def suffix(row: Any) -> str:
    name = row["provider"].removeprefix("mach_ext").lstrip(", ")
    return f", {name}" if name else ""


def ratios(panels: dict[str, pd.DataFrame], label: Callable[[Any], str]) -> Any:
    """A panel a heading, a line a work: the ratios, the target, and the name of the other form."""
    panels = {heading: of.assign(label=of.apply(label, axis=1)) for heading, of in panels.items() if len(of)}
    counts = [of["label"].nunique() for of in panels.values()]
    figure = new_figure(0.85 + sum(0.19 * count + 0.3 for count in counts))
    grid = figure.subplots(
        len(panels), 1, squeeze=False, sharex=True, height_ratios=[0.6 + n for n in counts]
    )[:, 0]
    low, high = (extreme(of["ratio"] for of in panels.values()) for extreme in (least, most))
    for axes, (heading, of) in zip(grid, panels.items(), strict=True):
        axes.set_xscale("log")
        axes.set_xlim(min(0.7, low / 1.1), high * (4 if high > 100 else 2.5))
        axes.axvline(1, color=GREY, linewidth=1)
        names = list(of["label"].unique())
        for y, name in enumerate(names):
            line(axes, y, of[of["label"] == name])
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", which="both", length=0)
        axes.set_title(heading, loc="left", fontweight="bold")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low / 1.2 <= tick <= high * 1.2]
    grid[-1].set_xticks(sorted({1, *ticks}))
    grid[-1].set_xlabel("times as fast as the best other form, which is named at the right")
    legend_above(figure, handles(), 4)
    return figure


def least(columns: Any) -> float:
    return float(min(column.min() for column in columns))


def most(columns: Any) -> float:
    return float(max(column.max() for column in columns))


def line(axes: Any, y: int, of: pd.DataFrame) -> None:
    """The dots of one work. Where they are of many shapes, they are small and the others have no name."""
    many = len(of) > 2
    for row in of.to_dict("records"):
        colour = RED if row["missed"] else BLUE
        face = colour if row["threads"] == 1 else "white"
        axes.scatter(row["ratio"], y, 12 if many else 34, face, edgecolors=colour, linewidths=1.2, zorder=3)
    target = of["at_least"].iloc[0]
    if pd.notna(target):
        axes.plot([target, target], [y - 0.36, y + 0.36], color=BLACK, linewidth=2, zorder=2)
    if not many:
        end = max(of["ratio"].max(), target if pd.notna(target) else 0)
        others = " / ".join(of.sort_values("threads")["over"].unique())
        axes.annotate(
            others, (end, y), (7, 0), textcoords="offset points", va="center", color="#555555", fontsize=7
        )


def handles() -> list[Any]:
    dot = {"marker": "o", "linestyle": "", "markersize": 6}
    return [
        Line2D([], [], color=BLUE, label="1 thread", **dot),
        Line2D([], [], color=BLUE, markerfacecolor="white", label="2 threads", **dot),
        Line2D(
            [], [], color=BLACK, marker="|", markersize=9, markeredgewidth=2, linestyle="", label="target"
        ),
        Line2D([], [], color=RED, label="target missed", **dot),
    ]

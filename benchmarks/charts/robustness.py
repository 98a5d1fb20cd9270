"""Robustness: P@1 by threat model and size, what changes it, and what is certified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from frames import points, read
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from charts.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, legend_above, new_figure

MODEL = ["dataset", "R", "B", "H", "merge"]
UNITS = {"delete": "words removed"}


def sizes(axes: Any, names: list[str], every: int = 1) -> list[int]:
    """Sizes at equal distances, with each second one or so written below."""
    at = list(range(len(names)))
    axes.set_xticks(at, [name if i % every == 0 else "" for i, name in enumerate(names)])
    axes.tick_params(axis="x", length=2, pad=2)
    return at


def threats(folder: Path) -> Any:
    """A row a dataset, a column a threat model: P@1 clean, under noise and under attack, by size."""
    kept = read("threats", folder)
    kept = kept[~kept["dataset"].str.startswith("planted")]
    datasets, models = list(kept["dataset"].unique()), list(kept["threat_model"].unique())
    figure = new_figure(3.9)
    grid = figure.subplots(len(datasets), len(models), squeeze=False, sharey="row")
    for row, name in zip(grid, datasets, strict=True):
        for axes, threat in zip(row, models, strict=True):
            of = kept[(kept["dataset"] == name) & (kept["threat_model"] == threat)]
            at = sizes(axes, [f"{size:g}".replace("0.", ".") for size in of["epsilon"]], every=2)
            axes.axhline(100 * of["P@1"].iloc[0], color=GREY, linestyle=":", linewidth=1.2)
            noise = of["noise P@1"].fillna(of["P@1"])
            axes.plot(at, 100 * noise, color=ORANGE, marker="s", markersize=3)
            axes.plot(at, 100 * of["P@1"], color=RED, marker="o", markersize=3.5)
            axes.fill_between(
                at, 100 * of["P@1 low"], 100 * of["P@1 high"], color=RED, alpha=0.18, linewidth=0
            )
            axes.set_ylim(bottom=0)
        row[0].set_ylabel(f"{name}\nP@1 on test, %")
    for axes, threat in zip(grid[0], models, strict=True):
        axes.set_title(threat)
    for axes, threat in zip(grid[-1], models, strict=True):
        axes.set_xlabel(UNITS.get(threat, "size"))
    handles = [
        Line2D([], [], color=GREY, linestyle=":", label="clean"),
        Line2D([], [], color=ORANGE, marker="s", markersize=4, label="noise of that size"),
        Line2D([], [], color=RED, marker="o", markersize=4, label="attack of that size"),
        Patch(color=RED, alpha=0.18, label="95 % interval"),
    ]
    legend_above(figure, handles, 4)
    return figure


def certified(folder: Path) -> Any:
    """A row a model, a column a threat model: P@1 that is certified, that an attack leaves, clean."""
    kept = read("certified", folder)
    models, names = list(kept["model"].unique()), list(kept["threat_model"].unique())
    figure = new_figure(4.2)
    grid = figure.subplots(len(models), len(names), squeeze=False, sharey=True)
    for row, model in zip(grid, models, strict=True):
        for axes, threat in zip(row, names, strict=True):
            of = kept[(kept["model"] == model) & (kept["threat_model"] == threat)]
            at = sizes(axes, [f"{size:g}" for size in of["epsilon"]])
            attacked = 100 * of[["untargeted P@1", "positive P@1"]].min(axis=1)
            axes.axhline(100 * of["P@1"].iloc[0], color=GREY, linestyle=":", linewidth=1.2)
            axes.plot(at, attacked, color=RED, marker="o", markersize=4)
            axes.plot(at, 100 * of["robust P@1"], color=GREEN, marker="^", markersize=4.5)
            axes.fill_between(at, 100 * of["robust P@1"], attacked, color=GREEN, alpha=0.14, linewidth=0)
            axes.set_ylim(0, None)
            axes.set_title(f"{threat}: {model}")
            axes.set_xlabel(UNITS.get(threat, "size of the change"))
        row[0].set_ylabel("P@1 on wordnet dev, %")
    handles = [
        Line2D([], [], color=GREY, linestyle=":", label="clean"),
        Line2D([], [], color=RED, marker="o", markersize=4, label="after the best attack"),
        Patch(color=GREEN, alpha=0.14, label="not known"),
        Line2D(
            [],
            [],
            color=GREEN,
            marker="^",
            markersize=4,
            label="certified: no change of that size does worse",
        ),
    ]
    legend_above(figure, handles, 4)
    return figure


LINES = (  # attack, size, its colour, line and marker
    ("noise", 0.1, ORANGE, ":", "s"),
    ("fgsm", 0.03, BLUE, "-", "o"),
    ("margin", 0.03, RED, "-", "D"),
    ("fgsm", 0.1, BLUE, "--", "o"),
    ("margin", 0.1, RED, "--", "D"),
)
TRANSFER = (("pgd", 0.1, BLACK, "-", "o"), ("transfer", 0.1, PINK, "--", "^"))
WORDS = {
    "noise": "noise",
    "fgsm": "attack on the loss",
    "margin": "attack on the margin",
    "pgd": "PGD on the same model",
    "transfer": "PGD on another seed",
}


def robustness(folder: Path) -> Any:
    """A row a dataset, a column an axis: P@1 clean and under attacks, by the value on the axis."""
    clean = points(read("robustness_clean", folder))
    curves = read("robustness", folder).set_index("attack")
    datasets, axes_names = list(clean["dataset"].unique()), ("R", "B", "H", "merge", "R")
    figure = new_figure(5.3)
    grid = figure.subplots(len(datasets), len(axes_names), squeeze=False, sharey="row")
    for row, name in zip(grid, datasets, strict=True):
        for column, (axes, axis) in enumerate(zip(row, axes_names, strict=True)):
            mine = clean[(clean["dataset"] == name) & (clean["axis"] == axis)]
            at = sizes(axes, [str(value).replace("_", "\n") for value in mine["value"]])
            interval_line(axes, at, mine, "P@1", color=GREY, linestyle="-", marker="")
            for attack, epsilon, colour, style, marker in TRANSFER if column == 4 else LINES:
                rows = mine[MODEL].merge(curves.loc[attack], on=MODEL, how="left")
                look = {"color": colour, "linestyle": style, "marker": marker}
                interval_line(axes, at, rows, f"P@1 {epsilon:g}", **look)
            axes.set_ylim(bottom=0)
        row[0].set_ylabel(f"{name}\nP@1 on dev, %")
    titles = ("R, repetitions", "B, buckets", "H, hidden units", "merge", "R, PGD at 0.1")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    for axes in grid[:-1, 3]:
        axes.tick_params(axis="x", labelbottom=False)
    grid[-1, 3].tick_params(axis="x", labelrotation=90, labelsize=7)
    handles = [Line2D([], [], color=GREY, label="clean")]
    for attack, epsilon, colour, style, marker in (*LINES, *TRANSFER):
        look = {"color": colour, "linestyle": style, "marker": marker, "markersize": 4}
        handles.append(Line2D([], [], label=f"{WORDS[attack]}, {epsilon:g}", **look))
    legend_above(figure, handles, 4, handlelength=3, columnspacing=1)
    return figure


def interval_line(axes: Any, at: list[int], rows: pd.DataFrame, column: str, **look: Any) -> None:
    """A line of percentages with its interval around."""
    value, low, high = (100 * rows[column + end] for end in ("", " low", " high"))
    axes.plot(at, value, linewidth=1.3, markersize=3.2, **look)
    axes.fill_between(at, low, high, color=look["color"], alpha=0.1, linewidth=0)

"""Faithfulness: what is left of a score when the most important features go first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from frames import read
from matplotlib.lines import Line2D
from tables.faithfulness import ORDERS

from charts.style import BLUE, GREEN, GREY, RED, legend_above, new_figure

COLOURS = dict(zip(ORDERS, (BLUE, RED, GREEN, GREY), strict=True))
STYLES = dict(zip(ORDERS, ("-", "--", ":", "-"), strict=True))


def faithfulness(folder: Path) -> Any:
    """A row a dataset: deletion and insertion curves at the largest R, areas over R, stability over R."""
    kept, checks = read("faithfulness", folder), read("collisions", folder)
    names = list(kept["dataset"].unique())
    figure = new_figure(2.35 * len(names) + 0.3)
    grid = figure.subplots(len(names), 4, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        of = kept[kept["dataset"] == name]
        largest = of["R"].max()
        for axes, curve, verb in zip(row, ("deletion", "insertion"), ("removed", "inserted"), strict=False):
            mine = of[(of["R"] == largest) & (of["curve"] == curve)].set_index("order")
            heights = mine[[column for column in mine if column.endswith(" %")]]
            for order in ORDERS:
                axes.plot(
                    np.linspace(0, 100, heights.shape[1]),
                    heights.loc[order],
                    STYLES[order],
                    color=COLOURS[order],
                )
            axes.set(title=f"{name}: {curve}, R={largest}", xlabel=f"features {verb}, %")
        deletion = of[of["curve"] == "deletion"]
        for order in ORDERS:
            interval_line(row[2], deletion[deletion["order"] == order], "area", COLOURS[order], STYLES[order])
        row[2].set(title="area under deletion", ylabel="smaller is better")
        stability = checks[checks["dataset"] == name].drop_duplicates("R")
        interval_line(row[3], stability, "stability", BLUE, "-")
        row[3].set(title="IG across hash seeds", ylim=(0, 1), ylabel="Spearman correlation")
        row[0].set_ylabel("score, 1 = whole document")
    handles = [Line2D([], [], color=COLOURS[order], linestyle=STYLES[order], label=order) for order in ORDERS]
    legend_above(figure, handles, 4)
    return figure


def interval_line(axes: Any, rows: Any, column: str, colour: str, style: str) -> None:
    """A value over R, equally spaced, with its interval."""
    value = rows[column]
    error = (value - rows[f"{column} low"], rows[f"{column} high"] - value)
    axes.errorbar(
        rows["R"].astype(str),
        value,
        error,
        linestyle=style,
        color=colour,
        marker="o",
        markersize=3.5,
        capsize=2,
    )
    axes.set_xlabel("R")

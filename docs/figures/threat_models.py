"""One document of four words among eight, before and after the worst step of each threat model."""

import matplotlib.pyplot as plt
import numpy as np
from _style import BLUE, GREY, ORANGE
from matplotlib.figure import Figure

X = np.array([0.7, 0.5, 0.4, 0.3, 0, 0, 0, 0])
GRADIENT = np.array([-1.0, 0.5, -0.7, 0.3, 0.9, -0.2, 0.6, -0.4])  # of the loss
OWN = X > 0


def changed() -> dict[str, np.ndarray]:
    """The document after the step, by threat model."""
    own = np.where(OWN, GRADIENT, 0)
    support = np.maximum(X + 0.2 * np.sign(own), 0)
    inserted = support.copy()
    inserted[[4, 6]] = 0.2  # the two absent words of the largest gradient
    l1 = X.copy()
    l1[0] -= 0.4  # all of it at the steepest word
    deleted = X.copy()
    deleted[[0, 2]] = 0
    return {
        "support, 0.2": support,
        "dense, 0.2": X + 0.2 * np.sign(GRADIENT),
        "insert(2), 0.2": inserted,
        "l2, 0.4": X + 0.4 * own / np.linalg.norm(own),
        "l1, 0.4": l1,
        "delete, 2 words": deleted,
    }


def draw() -> Figure:
    """Draws a panel for each threat model, with the document before and after its step."""
    figure, grid = plt.subplots(3, 2, figsize=(5.4, 5.6), sharex=True, sharey=True, layout="constrained")
    at = np.arange(8)
    for axes, (name, after) in zip(grid.flat, changed().items(), strict=True):
        axes.bar(at - 0.2, X, width=0.4, color="#C4C8CE", label="before")
        moved = np.abs(after - X) > 1e-9
        axes.bar(at[moved] + 0.2, after[moved], width=0.4, color=ORANGE, label="changed")
        axes.bar(at[~moved & OWN] + 0.2, after[~moved & OWN], width=0.4, color=BLUE, label="unchanged")
        vanished = moved & (after == 0)
        axes.scatter(
            at[vanished] + 0.2, np.full(vanished.sum(), 0.06), marker="x", color=ORANGE, s=45, linewidth=2.5
        )
        axes.axhline(0, color=GREY, linewidth=1)
        axes.axvline(3.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize=12, weight="bold")
        axes.set_yticks([])
        axes.set_xticks([1.5, 5.5], ["own words", "absent words"])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
    handles, labels = grid.flat[4].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=11)
    return figure

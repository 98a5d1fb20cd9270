"""Upper bounds on the scores of labels, and the few labels whose bound reaches the k-th best score."""

import matplotlib.pyplot as plt
import numpy as np
from _style import BLUE, GREY, ORANGE, RED
from matplotlib.figure import Figure

K = 5


def draw() -> Figure:
    """Draws the bounds of random scores, and marks the labels whose bound reaches the top 5."""
    rng = np.random.default_rng(4)
    scores = np.sort(np.concatenate([rng.normal(-2.2, 0.7, 42), rng.normal(0.8, 0.7, 8)]))[::-1]
    bounds = scores + rng.uniform(0.05, 0.75, len(scores))
    order = rng.permutation(len(scores))
    scores, bounds = scores[order], bounds[order]
    threshold = np.sort(scores)[-K]
    looked = bounds >= threshold
    best = scores >= threshold
    figure, axes = plt.subplots(figsize=(5.4, 4.1), layout="constrained")
    label = np.arange(len(scores))
    axes.vlines(label[~looked], -5, bounds[~looked], color="#DDDDDD", linewidth=3)
    axes.vlines(label[looked], -5, bounds[looked], color="#BFDDF0", linewidth=3)
    axes.scatter(
        label[~looked], bounds[~looked], marker="_", s=60, color=GREY, linewidth=2, label="upper bound only"
    )
    axes.scatter(
        label[looked],
        bounds[looked],
        marker="_",
        s=60,
        color=BLUE,
        linewidth=2,
        label="bound reaches the line",
    )
    axes.scatter(
        label[looked & ~best],
        scores[looked & ~best],
        s=36,
        color=ORANGE,
        label="exact score, not in the top 5",
    )
    axes.scatter(label[best], scores[best], s=60, marker="D", color=RED, label="exact score, in the top 5")
    axes.plot([-1.5, 50], [threshold] * 2, color="#333333", linewidth=1.2, linestyle="--")
    axes.text(50.5, threshold, "5th best\nscore", fontsize=10, va="center")
    axes.set(
        xlim=(-1.5, 59),
        ylim=(-4.2, 4.7),
        xlabel=f"{len(scores)} labels: {looked.sum()} need their exact score",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylabel("score")
    axes.legend(loc="upper center", ncols=2, fontsize=9, columnspacing=1, handletextpad=0.3)
    return figure

"""Eight labels in three repetitions of four buckets: the logits, and the scores that they merge to."""

import matplotlib.pyplot as plt
import numpy as np
from _style import BLUE, GREY, INK, LIGHT, ORANGE
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

LABELS = ["dog", "cat", "lion", "horse", "whale", "shark", "eagle", "owl"]
BUCKETS = np.array([[0, 1, 1, 3, 2, 3, 0, 2], [1, 2, 0, 3, 1, 0, 3, 2], [2, 0, 2, 0, 3, 1, 3, 1]])  # [R, L]
LOGITS = np.array([[-2.0, 2.4, -1.8, -2.2], [2.0, -1.5, -0.6, -2.1], [-1.0, -2.4, 1.6, -1.9]])  # [R, B]
ASKED = LABELS.index("lion")


def draw() -> Figure:
    """Draws the buckets of the repetitions above the scores of the labels."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(5.4, 6.6), height_ratios=[1.25, 1], layout="constrained"
    )
    buckets(top)
    scores(bottom)
    return figure


def buckets(axes: plt.Axes) -> None:
    """Draws a row of buckets for each repetition, with their labels and logits."""
    axes.set(xlim=(0, 4), ylim=(-0.1, 3.75))
    axes.axis("off")
    axes.text(2, 3.55, "one document in, one logit a bucket out", ha="center", va="center", weight="bold")
    for r in range(3):
        y = 2.4 - 1.15 * r
        axes.text(0.04, y + 0.75, f"repetition {r}", fontsize=10, color=GREY)
        for b in range(4):
            members = [name for name, bucket in zip(LABELS, BUCKETS[r], strict=True) if bucket == b]
            asked = LABELS[ASKED] in members
            box = FancyBboxPatch(
                (b + 0.08, y + 0.02),
                0.84,
                0.64,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor="#FDE9C4" if asked else LIGHT,
                edgecolor=ORANGE if asked else "none",
                linewidth=2,
            )
            axes.add_patch(box)
            axes.text(b + 0.5, y + 0.49, ", ".join(members), ha="center", va="center", fontsize=10)
            weight = "bold" if asked else "normal"
            axes.text(b + 0.5, y + 0.2, f"{LOGITS[r, b]:+.1f}", ha="center", va="center", weight=weight)


def scores(axes: plt.Axes) -> None:
    """Draws the score of each label, which is the mean of the logits of its buckets."""
    votes = np.take_along_axis(LOGITS, BUCKETS, 1)  # [R, L]
    merged = votes.mean(0)
    order = np.argsort(merged)
    colours = [ORANGE if label == ASKED else BLUE for label in order]
    axes.barh(range(8), merged[order], color=colours, height=0.62)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(8), [LABELS[label] for label in order])
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xticks([])
    axes.set_xlim(-2.8, 2.9)
    for y, label in enumerate(order):
        value = merged[label]
        side = 0.1 if value > 0 else -0.1
        axes.text(
            value + side, y, f"{value:+.1f}", va="center", ha="left" if value > 0 else "right", fontsize=11
        )
    axes.set_title("each label: the mean of its 3 buckets", fontsize=12, weight="bold", color=INK)

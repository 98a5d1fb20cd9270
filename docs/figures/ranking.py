"""Five predictions for a document of three labels, with what each rank counts in nDCG."""

import matplotlib.pyplot as plt
import numpy as np
from _style import BLUE, GREY
from matplotlib.figure import Figure

PREDICTED = ["lion", "cat", "predator", "mammal", "dog"]
TRUE = {"lion", "mammal", "predator"}


def draw() -> Figure:
    """Draws the weight of each rank, and writes the metrics of the ranking beside the bars."""
    ranks = np.arange(1, 6)
    hits = np.array([name in TRUE for name in PREDICTED])
    discounts = 1 / np.log2(ranks + 1)
    figure, axes = plt.subplots(figsize=(5.4, 3.7), layout="constrained")
    for rank, hit, height in zip(ranks, hits, discounts, strict=True):
        style = {"color": BLUE} if hit else {"facecolor": "#F4F4F4", "edgecolor": GREY, "hatch": "///"}
        axes.bar(rank, height, width=0.72, **style)
        axes.text(rank, height + 0.03, f"{height:.2f}", ha="center", color=BLUE if hit else GREY)
    names = [f"{name}\n{'right' if hit else 'wrong'}" for name, hit in zip(PREDICTED, hits, strict=True)]
    axes.set_xticks(ranks, names)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.set(ylim=(0, 1.2))
    axes.set_title("the top 5, and what a right label counts at its rank", fontsize=12, weight="bold")
    gain, best = (hits * discounts)[:3].sum(), discounts[:3].sum()
    lines = [
        f"P@1 = {hits[0]:.2f}    P@3 = {hits[:3].mean():.2f}    P@5 = {hits.mean():.2f}",
        f"nDCG@3 = {gain:.2f} / {best:.2f} = {gain / best:.2f}",
        f"R@5 = {hits.sum()} of {len(TRUE)} = {hits.sum() / len(TRUE):.2f}",
    ]
    axes.text(5.45, 1.08, "\n".join(lines), ha="right", va="top", fontsize=11, linespacing=1.5)
    return figure

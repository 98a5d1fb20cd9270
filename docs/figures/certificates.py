"""The lead of a label over its rival as a document changes: what an attack sees, and what a bound proves."""

import matplotlib.pyplot as plt
import numpy as np
from _style import BLUE, GREY, ORANGE, RED
from matplotlib.figure import Figure

WEIGHTS, BIAS = np.array([-1.6, 1.8, 1.1, -2.8]), np.array([-0.3, 0.3, -0.8, -0.1])
OUTPUT = np.array([0.8, -0.5, -0.3, -1.0])


def lead(change: np.ndarray) -> np.ndarray:
    """The lead by a network of four relu units, for a change of one word."""
    return 1 + np.maximum(np.outer(change, WEIGHTS) + BIAS, 0) @ OUTPUT


def proven(size: float) -> float:
    """A lower bound of the lead for changes up to a size: each relu between two lines."""
    low, high = BIAS - size * np.abs(WEIGHTS), BIAS + size * np.abs(WEIGHTS)
    line = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / np.maximum(high - low, 1e-12)))
    above = np.where((low < 0) & (high > 0), -line * low, 0)  # how far the upper line is above the lower one
    constant = 1 + OUTPUT @ (line * BIAS) + np.minimum(OUTPUT, 0) @ above
    return constant - size * abs(OUTPUT @ (line * WEIGHTS))


def draw() -> Figure:
    """Draws the lead after an attack, after the worst change, and its proven lower bound."""
    sizes = np.linspace(0, 1, 401)
    change = np.linspace(-1, 1, 801)
    worst = np.array([lead(change)[np.abs(change) <= size + 1e-9].min() for size in sizes])
    bound = np.array([proven(size) for size in sizes])
    attack = lead(sizes)  # one step along the gradient at the clean document, the wrong way for large sizes
    figure, axes = plt.subplots(figsize=(5.4, 4.2), layout="constrained")
    axes.plot(sizes, attack, color=ORANGE, linewidth=3, linestyle="--")
    axes.plot(sizes, worst, color=GREY, linewidth=2.5)
    axes.plot(sizes, bound, color=BLUE, linewidth=3)
    axes.axhline(0, color="#333333", linewidth=1)
    safe = sizes[bound > 0].max()
    axes.axvspan(0, safe, color=BLUE, alpha=0.09, linewidth=0)
    axes.text(
        safe / 2,
        -0.72,
        "certified:\nno change of\nthis size can\ntake the lead",
        ha="center",
        color=BLUE,
        fontsize=11,
    )
    axes.text(0.55, 0.42, "after an attack", color="#9A6700", fontsize=11)
    axes.text(0.99, -0.1, "after the\nworst change", color="#555555", ha="right", va="top", fontsize=10)
    axes.text(0.55, -0.75, "proven\nat least", color=BLUE, ha="left", va="top", fontsize=11)
    broken = sizes[attack > 0].max()
    axes.scatter([broken], [0], color=RED, zorder=4, s=50)
    axes.annotate("the attack\nsucceeds", (broken, 0), (broken, 0.14), fontsize=10, color=RED, ha="center")
    axes.set(
        xlim=(0, 1),
        ylim=(-1.35, 1.05),
        xlabel="size of the change",
        ylabel="lead of the label over its rival",
    )
    axes.set_xticks([])
    axes.set_yticks([0], ["0"])
    return figure

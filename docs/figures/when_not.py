"""Questions that say whether MACH is worth a try."""

import matplotlib.pyplot as plt
from _style import BLUE, GREEN, GREY, RED
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

QUESTIONS = [
    ("Thousands of labels or more?", "one-vs-rest is simpler,\nalmost as accurate"),
    ("Inputs are sparse, as words are?", "take the head alone,\non your own encoder"),
    ("A CPU will do, or you can\nmeasure the GPU yourself?", "no GPU has run\nthis version yet"),
    ("Seconds of training matter less\nthan accuracy and model size?", "PECOS often\ntrains faster"),
]


def draw() -> Figure:
    """Draws the questions from top to bottom, each with the advice for the answer no."""
    figure, axes = plt.subplots(figsize=(5.4, 5.2), layout="constrained")
    axes.set(xlim=(-0.15, 10.1), ylim=(-0.95, 7.95))
    axes.axis("off")
    for i, (question, otherwise) in enumerate(QUESTIONS):
        y = 7.3 - 1.9 * i
        box(axes, 2.9, y, 5.8, question, BLUE)
        box(axes, 8.4, y, 3.1, otherwise, RED, size=9.5)
        axes.annotate("", (6.8, y), (5.85, y), arrowprops={"arrowstyle": "->", "color": GREY})
        axes.text(6.3, y + 0.12, "no", ha="center", fontsize=10, color=GREY)
        axes.annotate("", (2.9, y - 1.32), (2.9, y - 0.58), arrowprops={"arrowstyle": "->", "color": GREY})
        axes.text(3.05, y - 0.98, "yes", fontsize=10, color=GREY, va="center")
    box(axes, 2.9, -0.25, 5.8, "Try it.", GREEN)
    return figure


def box(axes: plt.Axes, x: float, y: float, width: float, text: str, colour: str, size: float = 11) -> None:
    """A text in a box around a point."""
    shape = FancyBboxPatch(
        (x - width / 2, y - 0.52),
        width,
        1.04,
        boxstyle="round,pad=0,rounding_size=0.15",
        facecolor="white",
        edgecolor=colour,
        linewidth=2,
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=size)

"""The score along the straight path from the empty document, and what each word of it adds."""

import matplotlib.pyplot as plt
import numpy as np
from _style import BLUE, GREY, ORANGE, RED
from matplotlib.figure import Figure

WORDS = ["cats", "Africa", "mane", "tawny", "various"]
X = np.array([0.5, 0.6, 0.7, 0.4, 0.3])
ENCODER = np.array(
    [
        [1.5, 0.3, -0.8, 0.5],
        [0.2, 1.2, 0.9, -1.0],
        [1.1, 0.9, -1.2, 1.4],
        [0.3, 0.5, 1.5, 0.2],
        [-0.7, 0.2, 0.4, -0.9],
    ]
)
BIAS = np.array([-0.55, -1.1, 0.25, -0.2])
OUTPUT = np.array([1.6, 1.3, -1.1, 0.9])


def score(a: np.ndarray) -> np.ndarray:
    """The logit of the label, a part of the way to the document."""
    return np.maximum(np.outer(a, X @ ENCODER) + BIAS, 0) @ OUTPUT


def draw() -> Figure:
    """Draws the score along the path above the bars of the words."""
    slope = X @ ENCODER
    switch = np.clip(-BIAS / slope, 0, 1)  # where on the path a unit switches
    kinks = switch[(switch > 0) & (switch < 1)]
    active = np.where(slope > 0, 1 - switch, switch)  # on which part of the path it is on
    added = X * ((ENCODER * active) @ OUTPUT)  # Integrated Gradients, in closed form
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(5.4, 5.4), layout="constrained")
    a = np.linspace(0, 1, 400)
    top.plot(a, score(a), color=BLUE, linewidth=3)
    top.scatter(kinks, score(kinks), color=ORANGE, zorder=3, s=55)
    top.set_title("the score bends only where a unit switches", fontsize=12, weight="bold")
    top.set_xticks([0, 1], ["empty document", "the document"])
    for text, side in zip(top.get_xticklabels(), ("left", "right"), strict=True):
        text.set_ha(side)
    top.set_yticks([])
    top.margins(y=0.14)
    start, end = score(np.array([0.0, 1.0]))
    top.text(0.98, end + 0.02, f"{end:.2f}", ha="right", va="bottom")
    top.text(0.02, start + 0.05, f"{start:.2f}", va="bottom")
    order = np.argsort(added)
    bottom.barh(range(5), added[order], color=[BLUE if v > 0 else RED for v in added[order]], height=0.6)
    bottom.set_yticks(range(5), [WORDS[i] for i in order])
    bottom.axvline(0, color=GREY, linewidth=1)
    for y, value in enumerate(added[order]):
        bottom.text(
            value + (0.06 if value > 0 else -0.06),
            y,
            f"{value:+.2f}",
            va="center",
            ha="left" if value > 0 else "right",
        )
    bottom.set_xticks([])
    bottom.spines["bottom"].set_visible(False)
    bottom.margins(x=0.2)
    bottom.tick_params(length=0)
    bottom.set_title(
        f"the words' shares add up: {added.sum():.2f} = {end:.2f} - ({start:.2f})", fontsize=12, weight="bold"
    )
    return figure

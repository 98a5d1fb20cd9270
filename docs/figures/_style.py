"""How the figures look: one palette that colour-blind readers can tell apart, on a white card."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's colours.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
INK, GREY, LIGHT = "#222222", "#777777", "#E8E8EC"

STYLE = {
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "mach_ext",  # the same bytes in every build
}


def svg(draw: Callable[[], Figure]) -> str:
    """What a function draws, as SVG without a date."""
    with plt.rc_context(STYLE):
        figure = draw()
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", pad_inches=0.15, metadata={"Date": None})
        plt.close(figure)
    return text.getvalue()

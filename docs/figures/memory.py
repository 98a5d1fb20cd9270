"""The output layer in memory: a weight vector for each label, and R tables of B buckets with the hash."""

import matplotlib.pyplot as plt
import numpy as np
from _style import BLUE, GREY, ORANGE
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

HIDDEN, R, B = 512, 16, 2048


def draw() -> Figure:
    """Draws the bytes of both output layers by the number of labels."""
    labels = np.geomspace(1e3, 1e8, 200)
    each = 4 * HIDDEN * labels
    hashed = 4 * R * HIDDEN * B + 10 * R * labels  # weights, then table and index of the hash
    figure, axes = plt.subplots(figsize=(5.4, 3.9), layout="constrained")
    axes.loglog(labels, each, color=ORANGE, linewidth=3)
    axes.loglog(labels, hashed, color=BLUE, linewidth=3)
    axes.text(4e5, 1.2e10, "a vector\nfor each label", color="#9A6700", ha="center", weight="bold")
    axes.text(2.5e6, 2.2e7, "MACH, R = 16,\nB = 2,048", color=BLUE, ha="center", weight="bold")
    equal = 4 * R * HIDDEN * B / (4 * HIDDEN - 10 * R)
    axes.axvline(equal, color=GREY, linewidth=1, linestyle=":")
    axes.text(
        equal * 0.85, 1.2e11, f"equal at\n{equal:,.0f} labels", fontsize=10, color=GREY, ha="right", va="top"
    )
    axes.set(xlim=(1e3, 1e8), ylim=(1e6, 3e11), xlabel="labels", ylabel="bytes of the output layer")
    axes.xaxis.set_major_locator(FixedLocator([1e3, 1e4, 1e5, 1e6, 1e7, 1e8]))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda n, _: f"{n / 1e6:g}M" if n >= 1e6 else f"{n / 1e3:g}K")
    )
    axes.yaxis.set_major_locator(FixedLocator([1e6, 1e7, 1e8, 1e9, 1e10, 1e11]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda n, _: f"{n / 1e9:g} GB" if n >= 1e9 else f"{n / 1e6:g} MB")
    )
    axes.grid(True, which="major", color="#EEEEEE")
    axes.minorticks_off()
    return figure

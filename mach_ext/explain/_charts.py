"""Explanations as bars on a terminal, as a figure, and as the geometry of a page's charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mach_ext._memory import check_import
from mach_ext._page import AGAINST, FOR, NO_GLYPH, match_fonts, shortened, text_width
from mach_ext.explain._attributions import Attributions
from mach_ext.explain.collision_check import Collisions
from mach_ext.merges import SCALES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RGB = {True: (33, 102, 172), False: (216, 105, 35)}


def attribution_lines(explanation: Attributions, label: int, n: int = 10, width: int = 24) -> list[str]:
    """Returns the n features of largest effect as lines of text with bars. Positive bars go to the right.

    All dense features together are one of them, as in `Explanation.top`.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> names = {
        ...     "feature_names": ["meow", "bark", "hoot", "moo", "oink", "cluck"],
        ...     "label_names": ["cat", "dog", "owl", "cow", "pig", "hen"],
        ... }
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])  # barks, and hoots a little
        >>> result = mach_ext.explain.integrated_gradients(model, x, ["dog", "owl"], **names)
        >>> for line in mach_ext.report.attribution_lines(result, label=1, width=10):
        ...     print(line)
          bark       +2.796           |██████████
          hoot       -0.598         ██|
    """
    top = explanation.top(n, label)
    max_effect = max((abs(effect) for _, effect in top), default=0.0) or 1.0
    others = len(explanation.bars.names) - len(top)
    last = f"{others} others"
    name_width = min(28, max(text_width(name) for name in [last, *(name for name, _ in top)]))
    lines = []
    for name, effect in top:
        whole, half = divmod(round(2 * abs(effect) / max_effect * width), 2)
        left, right = ("", "█" * whole + "▌" * half) if effect > 0 else ("▐" * half + "█" * whole, "")
        short = shortened(name, name_width)
        short += " " * (name_width - text_width(short))
        lines.append(f"  {short} {effect:>+8.3f} {left:>{width}}|{right}")
    rest = explanation.attributions[explanation.row(label)].sum() - sum(effect for _, effect in top)
    if others > 0:
        lines.append(f"  {last:<{name_width}} {rest:>+8.3f}")
    return lines


def sparkline(votes: Sequence[float], low: float, high: float) -> str:
    """Returns a block character for each vote, from low to high.

    Example:
        >>> from mach_ext.report import sparkline
        >>> sparkline([-1.5, 0.2, 3.8, 4.0], low=-2, high=4)
        '▂▄██'
    """
    levels = "▁▂▃▄▅▆▇█"
    scale = (len(levels) - 1) / ((high - low) or 1.0)
    return "".join(levels[round((min(max(vote, low), high) - low) * scale)] for vote in votes)


def plot_attributions(explanation: Attributions, n: int = 15, label: int | None = None) -> Figure:
    """Draws bars of the n largest attributions, with the largest on top.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> names = {
        ...     "feature_names": ["meow", "bark", "hoot", "moo", "oink", "cluck"],
        ...     "label_names": ["cat", "dog", "owl", "cow", "pig", "hen"],
        ... }
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])  # barks, and hoots a little
        >>> result = mach_ext.explain.integrated_gradients(model, x, ["dog", "owl"], **names)
        >>> figure = mach_ext.report.plot_attributions(result)
        >>> figure.savefig("dog.png")
        >>> figure.axes[0].get_title()
        'dog: score 1.863'
    """
    check_import("matplotlib.figure")
    from matplotlib.figure import Figure

    row = explanation.row(label)
    top = explanation.top(n, int(explanation.labels[row]))[::-1]
    figure = Figure(figsize=(6.4, 0.9 + 0.27 * len(top)), layout="constrained")
    axes = figure.subplots()
    effects = [effect for _, effect in top]
    title = f"{shortened(explanation.label_names[row], 50)}: score {explanation.scores[row]:.3f}"
    (title, *names), fonts = match_fonts([title, *(shortened(name, 32) for name, _ in top)])
    note = f" ({NO_GLYPH}: no font here has this letter)" if NO_GLYPH in "".join([title, *names]) else ""
    axes.barh(
        range(len(top)), effects, color=[FOR if effect > 0 else AGAINST for effect in effects], height=0.72
    )
    axes.set_yticks(range(len(top)), names, parse_math=False, family=fonts)
    axes.axvline(0, color="0.2", linewidth=0.8)
    axes.set_xlabel(f"effect on the score ({SCALES[explanation.scale]}){note}")
    axes.set_title(title, fontsize=11, parse_math=False, family=fonts)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def shade(effect: float, scale: float) -> str:
    """Returns the style of a word's background. On the darkest backgrounds the text is white."""
    strength = min(1.0, abs(effect) / scale) ** 0.75
    if strength < 0.04:
        return ""
    r, g, b = _RGB[effect > 0]
    ink = ";color:#fff" if strength > 0.74 else ""
    return f"background:rgba({r},{g},{b},{0.9 * strength:.2f}){ink}"


def bars_chart(top: list[tuple[str, float]]) -> dict[str, Any]:
    """Returns the geometry of horizontal bars. Zero is inside the chart only if effects have both signs."""
    negative = max((-effect for _, effect in top if effect < 0), default=0.0)
    positive = max((effect for _, effect in top if effect > 0), default=0.0)
    width, gutter = 330.0, 52.0  # the gutters hold the numbers
    left, right = gutter * (negative > 0), gutter * (positive > 0)
    unit = (width - left - right) / ((negative + positive) or 1.0)
    zero = left + negative * unit
    rows = []
    for i, (name, effect) in enumerate(top):
        size = abs(effect) * unit
        rows.append(
            {
                "name": shortened(name, 26),
                "full": name,
                "y": 20 * i,
                "x": zero if effect > 0 else zero - size,
                "width": max(size, 0.5),
                "colour": FOR if effect > 0 else AGAINST,
                "effect": f"{effect:+.3f}".replace("-", "\u2212"),
                "label_x": zero + size + 5 if effect > 0 else zero - size - 5,
                "anchor": "start" if effect > 0 else "end",
            }
        )
    return {"rows": rows, "zero": zero, "width": width, "height": 20 * len(rows)}


def votes_chart(logits: np.ndarray[Any, Any], check: Collisions | None) -> dict[str, Any]:
    """Returns the geometry of the R votes and their mean. Votes that another label claims are hatched."""
    R = len(logits)
    low, high = min(0.0, float(logits.min())), max(0.0, float(logits.max()))
    span = (high - low) or 1.0
    height, width, left = 120.0, 430.0, 34.0
    step = (width - left) / R
    y = [height * (high - value) / span for value in (0.0, *logits.tolist(), float(logits.mean()))]
    claimed = [-1] * R if check is None or check.claimed_by is None else check.claimed_by.tolist()
    names = {} if check is None else {mate.label: mate.name for mate in check.mates}
    bars = [
        {
            "x": left + r * step + 0.14 * step,
            "width": 0.72 * step,
            "y": min(y[0], y[r + 1]),
            "height": max(abs(y[0] - y[r + 1]), 0.75),
            "fill": "url(#hatch)" if claimed[r] >= 0 else (FOR if logits[r] > 0 else "#8fa9c4"),
            "title": f"repetition {r}: {logits[r]:+.2f}"
            + (f", claimed by {names.get(claimed[r], claimed[r])}" if claimed[r] >= 0 else ""),
            "number": r if R <= 20 or r % 4 == 0 else "",
            "middle": left + (r + 0.5) * step,
        }
        for r in range(R)
    ]
    ticks = [
        {"y": height * (high - v) / span, "text": f"{v:g}".replace("-", "\u2212")} for v in _ticks(low, high)
    ]
    return {"bars": bars, "mean": y[-1], "ticks": ticks, "width": width, "height": height, "left": left}


def _ticks(low: float, high: float) -> list[float]:
    """Returns a few round numbers between low and high."""
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [round(i * step, 9) + 0.0 for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

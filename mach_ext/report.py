"""Plots and HTML: what explanations and attacks look like.

A page is one self-contained file, without scripts from elsewhere: the document with its words shaded by what
they add to (blue) or take from (orange) a label's score, a switch between labels, the votes of the
repetitions, the collision check, the delta. Colours are a pair that colour-blind readers can tell apart.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mach_ext._memory import check_import
from mach_ext._terminal import UNSAFE, one_line
from mach_ext.data import Vectorizer
from mach_ext.nn import SCALES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mach_ext.explain import Collisions, Explanation, Removals, Votes

FOR, AGAINST = "#2166ac", "#c8571b"
_RGB = {True: (33, 102, 172), False: (216, 105, 35)}
_NO_GLYPH = "\ufffd"
_SHOWN_FEATURES = 20  # as bars
_SHOWN_WORDS = 120  # of documents that are known by their features only
_VERDICTS = {
    "signal": "its own votes keep it in the top k",
    "collision": "without its bucket mates' votes it leaves the top k",
    "undecided": "no vote is its own",
    "not predicted": "outside the top k",
    "": "",
}


# ------------------------------------------------------------------------------------------------- numbers


def percent(share: float) -> str:
    """A share of things counted, so that 0 and 100 % mean none and all, never a number rounded to that.

    Example:
        >>> from mach_ext.report import percent
        >>> percent(1.0), percent(0.9996), percent(0.5), percent(0.0004)
        ('100.0 %', '> 99.9 %', '50.0 %', '< 0.1 %')
    """
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def chance(probability: float) -> str:
    """A probability in percent: an estimate is never 0 or 1, whatever it was rounded to.

    Example:
        >>> from mach_ext.report import chance
        >>> chance(1.0), chance(0.0)
        ('> 99.9 %', '< 0.1 %')
    """
    return percent(min(max(probability, 1e-9), 1 - 1e-9))


# ------------------------------------------------------------------------------------------------ terminal


def attribution_lines(explanation: Explanation, label: int, n: int = 10, width: int = 24) -> list[str]:
    """The n features of largest effect as lines of signed bars; positive ones to the right."""
    top = explanation.top(n, label)
    most = max((abs(effect) for _, effect in top), default=0.0) or 1.0
    others = len(explanation.features) - len(top)
    last = f"{others} others"
    name_width = min(28, max(_width(name) for name in [last, *(name for name, _ in top)]))
    lines = []
    for name, effect in top:
        whole, half = divmod(round(2 * abs(effect) / most * width), 2)
        left, right = ("", "█" * whole + "▌" * half) if effect > 0 else ("▐" * half + "█" * whole, "")
        short = shortened(name, name_width)
        short += " " * (name_width - _width(short))
        lines.append(f"  {short} {effect:>+8.3f} {left:>{width}}|{right}")
    rest = explanation.attributions[explanation.row(label)].sum() - sum(effect for _, effect in top)
    if others > 0:
        lines.append(f"  {last:<{name_width}} {rest:>+8.3f}")
    return lines


def shortened(text: str, width: int) -> str:
    """A text on one line of a terminal, cut to so many columns, never between a letter and its marks."""
    text = one_line(text)
    columns = end = 0
    for i, c in enumerate(text):
        columns += _width(c)
        if columns > width:
            return text[:end] + "…"
        if columns < width:
            end = i + 1
    return text


def _width(text: str) -> int:
    """Columns that a terminal gives a text: two for a wide letter, none for a mark."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Mc", "Me", "Cf")
        else 2 if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )  # fmt: skip


def sparkline(votes: Sequence[float], low: float, high: float) -> str:
    """One block a vote, from low to high."""
    levels = "▁▂▃▄▅▆▇█"
    scale = (len(levels) - 1) / ((high - low) or 1.0)
    return "".join(levels[round((min(max(vote, low), high) - low) * scale)] for vote in votes)


# -------------------------------------------------------------------------------------------------- charts


def plot_attributions(explanation: Explanation, n: int = 15, label: int | None = None) -> Figure:
    """Bars of the n largest attributions, largest on top."""
    check_import("matplotlib.figure")
    from matplotlib.figure import Figure

    row = explanation.row(label)
    top = explanation.top(n, int(explanation.labels[row]))[::-1]
    figure = Figure(figsize=(6.4, 0.9 + 0.27 * len(top)), layout="constrained")
    axes = figure.subplots()
    effects = [effect for _, effect in top]
    title = f"{shortened(explanation.label_names[row], 50)}: score {explanation.scores[row]:.3f}"
    (title, *names), fonts = _drawable([title, *(shortened(name, 32) for name, _ in top)])
    note = f" ({_NO_GLYPH}: no font here has this letter)" if _NO_GLYPH in "".join([title, *names]) else ""
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


def _drawable(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts, and the fonts that have their letters. A letter that no font here has becomes U+FFFD."""
    from matplotlib import font_manager, rcParams

    files: dict[str, Any] = {
        name: font_manager.findfont(font_manager.FontProperties(family=[name]))
        for name in rcParams["font.family"]
    }
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name):
        if (font.style, font.weight) == ("normal", 400) and "Last Resort" not in font.name:
            files.setdefault(font.name, font.fname)
    missing, fonts = set("".join(texts)), []
    for name, file in files.items():
        letters = set(map(chr, font_manager.get_font(file).get_charmap()))
        if missing & letters:
            missing -= letters
            fonts.append(name)
        if not missing:
            break
    shown = str.maketrans(dict.fromkeys(missing, _NO_GLYPH))
    return [text.translate(shown) for text in texts], fonts


def plot_attack(result: dict[str, Any], wanted: Sequence[float]) -> Figure:
    """Of `mach_ext.attack.evaluate`: P@k and nDCG@k clean and adversarial at a size; P@k along the sizes."""
    check_import("matplotlib.figure")
    from matplotlib.figure import Figure

    entries = result["adversarial"]
    shown = next((e for e in entries if e["epsilon"] == wanted[-1]), entries[-1])
    names = [n for n in shown["metrics"] if n.startswith(("P@", "nDCG@")) and not n.endswith("interval")]
    figure = Figure(figsize=(10.4, 4.0), layout="constrained")
    bars, curve = figure.subplots(1, 2, width_ratios=(1.15, 1))
    columns = [("clean", result["clean"], FOR), ("noise", shown["random"], "#a9b4c0"),
               ("adversarial", shown["metrics"], AGAINST)]  # fmt: skip
    for i, (label, values, colour) in enumerate(columns):
        heights = [values[name] for name in names]
        spans = [values.get(f"{name} interval", (h, h)) for name, h in zip(names, heights, strict=True)]
        errors = [[max(0.0, h - s[0]) for h, s in zip(heights, spans, strict=True)],
                  [max(0.0, s[1] - h) for h, s in zip(heights, spans, strict=True)]]  # fmt: skip
        at = [x + 0.27 * (i - 1) for x in range(len(names))]
        bars.bar(at, heights, 0.25, label=label, color=colour, yerr=errors, error_kw={"elinewidth": 0.8})
    bars.set_xticks(range(len(names)), names)
    bars.set_title(f"{result['attack']}, {result['threat_model']}, eps = {shown['epsilon']:g}", fontsize=11)
    bars.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.2))
    sizes = [entry["epsilon"] for entry in entries]
    for name in [n for n in names if n.startswith("P@")]:
        line = [entry["metrics"][name] for entry in entries]
        (drawn,) = curve.plot(range(len(sizes)), line, marker="o", markersize=4, label=name)
        if f"{name} interval" in entries[0]["metrics"]:
            low, high = zip(*(entry["metrics"][f"{name} interval"] for entry in entries), strict=True)
            curve.fill_between(range(len(sizes)), low, high, alpha=0.18, color=drawn.get_color(), linewidth=0)
        noise = [entry["random"][name] for entry in entries]
        curve.plot(range(len(sizes)), noise, ":", color=drawn.get_color(), linewidth=1.2)
        if name in entries[0].get("certified", {}):
            proven = [entry["certified"][name] for entry in entries]
            curve.plot(range(len(sizes)), proven, "--", color=drawn.get_color(), linewidth=1.2)
    curve.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
    curve.set_xlabel("words removed" if result["attack"] == "delete" else "eps")
    certified = ", dashed: certified" if "certified" in entries[0] else ""
    curve.set_title(f"P@k by size; dotted: noise{certified}", fontsize=11)
    curve.legend(frameon=False)
    for axes in (bars, curve):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


# ---------------------------------------------------------------------------------------------------- HTML


@dataclass(frozen=True)
class _Piece:
    """A stretch of text; `style` shades it, `title` says its effect."""

    text: str
    style: str = ""
    title: str = ""


def explanation_page(
    explanation: Explanation,
    votes: Votes | None = None,
    collisions: Sequence[Collisions] = (),
    removals: Removals | None = None,
    vectorizer: Vectorizer | None = None,
    title: str = "Explanation",
    true_labels: Sequence[int] | None = None,
) -> str:
    """The page of one document and its labels, as HTML text.

    Args:
        explanation: Its labels are the page's tabs.
        votes: Of the same labels, in any order.
        collisions: Of some of them.
        removals: Of the document.
        vectorizer: Finds the features in `explanation.text`; without it features are shown by name.
        title: The page's.
        true_labels: Which labels are right, where that is known: they get a mark.
    """
    in_text = explanation.text is not None and vectorizer is not None
    checked = {one.label: one for one in collisions}
    tabs = []
    for row, label in enumerate(explanation.labels.tolist()):
        effects = explanation.attributions[row]
        scale = float(np.abs(effects).max()) or 1.0
        top = explanation.top(_SHOWN_FEATURES, label)
        voted = None
        if votes is not None and label in votes.labels:
            at = votes.labels.tolist().index(label)
            voted = {
                "chart": _votes_chart(votes.logits[at], checked.get(label)),
                "spread": votes.spread[at],
                "error": votes.standard_error[at],
                "agreement": votes.agreement[at],
            }
        tabs.append(
            {
                "name": explanation.label_names[row],
                "id": label,
                "true": true_labels is not None and label in true_labels,
                "score": explanation.scores[row],
                "model_score": explanation.model_scores[row],
                "probability": _sigmoid(explanation.scores[row]) if explanation.score == "logit" else None,
                "baseline": explanation.baseline_scores[row],
                "delta": explanation.delta[row],
                "pieces": _pieces(explanation, row, scale, vectorizer),
                "chart": _bars_chart(top, scale),
                "others": len(explanation.features) - len(top),
                "hidden": 0 if in_text else len(effects) - _SHOWN_WORDS,
                "rest": float(effects.sum() - sum(effect for _, effect in top)),
                "votes": voted,
                "collisions": checked.get(label),
            }
        )
    return _page(
        "report.html.jinja",
        title=title,
        tabs=tabs,
        explanation=explanation,
        verdicts=_VERDICTS,
        removals=_removal_rows(removals),
        removals_scale="" if removals is None else SCALES[removals.merge],
        scale=SCALES[explanation.scale],
        model_scale=SCALES[explanation.model_scale],
        chance=chance,
        infinity=math.inf,
        removals_labels=[] if removals is None else removals.label_names,
        in_text=in_text,
        overlapping=any(", " in piece.title for tab in tabs for piece in tab["pieces"]),
        k=None if votes is None else votes.k,
    )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _shade(effect: float, scale: float) -> str:
    """Background of a word; text turns white on the darkest."""
    strength = min(1.0, abs(effect) / scale) ** 0.75
    if strength < 0.04:
        return ""
    r, g, b = _RGB[effect > 0]
    ink = ";color:#fff" if strength > 0.74 else ""
    return f"background:rgba({r},{g},{b},{0.9 * strength:.2f}){ink}"


def _pieces(explanation: Explanation, row: int, scale: float, vectorizer: Vectorizer | None) -> list[_Piece]:
    """The text cut into shaded words and what is between them; without text, features by effect."""
    effects = explanation.attributions[row]
    if explanation.text is None or vectorizer is None:
        order = np.argsort(-np.abs(effects), kind="stable")[:_SHOWN_WORDS]
        return [
            _Piece(explanation.feature_names[i], _shade(effects[i], scale), f"{effects[i]:+.4f}")
            for i in order
        ]
    effect_of = dict(zip(explanation.features.tolist(), effects.tolist(), strict=True))
    words = [
        (start, end, effect_of[feature])
        for start, end, feature in vectorizer.words(explanation.text)
        if feature in effect_of  # not so where the vocabulary lacks the word
    ]
    return _shaded(explanation.text, words, scale)


def _shaded(text: str, words: Sequence[tuple[int, int, float]], scale: float) -> list[_Piece]:
    """The text cut where words (start, end, effect) begin and end.

    Each word divides its effect among its pieces by their lengths. A piece is shaded by the sum of its parts.
    """
    cuts = sorted({0, len(text), *(start for start, _, _ in words), *(end for _, end, _ in words)})
    at = {cut: i for i, cut in enumerate(cuts)}
    over: list[list[tuple[int, int, float]]] = [[] for _ in cuts]  # the words over each piece
    for word in words:
        for i in range(at[word[0]], at[word[1]]):
            over[i].append(word)
    pieces = []
    for (start, end), some in zip(itertools.pairwise(cuts), over, strict=False):
        share = sum(effect * (end - start) / (last - first) for first, last, effect in some)
        title = ", ".join(f"{text[first:last]} {effect:+.4f}" for first, last, effect in some)
        if len(some) == 1:
            title = f"{some[0][2]:+.4f}"
        pieces.append(_Piece(text[start:end], _shade(share, scale) if some else "", title))
    return pieces


def _bars_chart(top: list[tuple[str, float]], scale: float) -> dict[str, Any]:
    """Geometry of the horizontal bars: zero in the middle only if effects have both signs."""
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
                "name": shortened(name, 24),
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


def _votes_chart(logits: np.ndarray[Any, Any], check: Collisions | None) -> dict[str, Any]:
    """Columns of the R votes with their mean; what a bucket mate claims is hatched."""
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
    """A few round numbers."""
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [round(i * step, 9) + 0.0 for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _removal_rows(removals: Removals | None) -> list[dict[str, Any]]:
    """Features by their largest effect on a label of the top k."""
    if removals is None:
        return []
    order = np.argsort(-np.abs(removals.changes).max(1), kind="stable")[:8]
    scale = float(np.abs(removals.changes).max()) or 1.0
    return [
        {
            "name": removals.feature_names[i],
            "cells": [
                {"text": f"{change:+.2f}".replace("-", "\u2212"), "style": _shade(change, scale)}
                for change in removals.changes[i].tolist()
            ],
            "left": len(removals.left[i]),
        }
        for i in order.tolist()
    ]


def _page(template: str, **content: Any) -> str:
    """The page. U+FFFD stands for controls, overrides of the writing direction and what UTF-8 can't carry."""
    page: str = _template(template).render(FOR=FOR, AGAINST=AGAINST, **content)
    return UNSAFE.sub(lambda match: match[0] if match[0] in "\t\n\r" else "\ufffd", page)


@functools.cache
def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mach_ext", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shortened"] = shortened
    return environment.get_template(name)


def attack_page(
    result: dict[str, Any], wanted: Sequence[float], samples: Sequence[dict[str, Any]], title: str
) -> str:
    """The page of `mach_ext.attack.evaluate`, with documents before and after."""
    image = io.BytesIO()
    plot_attack(result, wanted).savefig(image, dpi=130, format="png")
    names = [name for name in result["clean"] if not name.endswith("interval")]
    return _page(
        "attack.html.jinja",
        title=title,
        result=result,
        names=names,
        samples=samples,
        wanted=wanted,
        chart=base64.b64encode(image.getvalue()).decode(),
        percent=percent,
    )

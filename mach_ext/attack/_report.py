"""The chart and the page of an attack."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mach_ext._deprecation import renamed_argument
from mach_ext._memory import check_import
from mach_ext._page import AGAINST, FOR, percent, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@renamed_argument("wanted", "sizes")
def plot_attack(result: dict[str, Any], sizes: Sequence[float]) -> Figure:
    """Draws the result of `mach_ext.attack.evaluate`.

    One chart shows clean and adversarial P@k and nDCG@k at a size. The other shows P@k along the sizes.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> result = mach_ext.attack.evaluate(model, X, Y, epsilons=[0.25, 0.5], k=1, resamples=0)
        >>> figure = mach_ext.report.plot_attack(result, sizes=[0.5])
        >>> figure.savefig("attack.png")
        >>> [axes.get_title() for axes in figure.axes]
        ['fgsm, support, eps = 0.5', 'P@k by size; dotted: noise']
    """
    check_import("matplotlib.figure")
    from matplotlib.figure import Figure

    entries = result["adversarial"]
    shown = next((e for e in entries if e["epsilon"] == sizes[-1]), entries[-1])
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
    threat = "" if result["attack"] == "words" else f"{result['threat_model']}, "
    size = f"{shown['epsilon']:g} removed" if not threat else f"eps = {shown['epsilon']:g}"
    bars.set_title(f"{result['attack']}, {threat}{size}", fontsize=11)
    bars.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.2))
    grid = [entry["epsilon"] for entry in entries]
    for name in [n for n in names if n.startswith("P@")]:
        line = [entry["metrics"][name] for entry in entries]
        (drawn,) = curve.plot(range(len(grid)), line, marker="o", markersize=4, label=name)
        if f"{name} interval" in entries[0]["metrics"]:
            low, high = zip(*(entry["metrics"][f"{name} interval"] for entry in entries), strict=True)
            curve.fill_between(range(len(grid)), low, high, alpha=0.18, color=drawn.get_color(), linewidth=0)
        noise = [entry["random"][name] for entry in entries]
        curve.plot(range(len(grid)), noise, ":", color=drawn.get_color(), linewidth=1.2)
        if name in entries[0].get("certified", {}):
            proven = [entry["certified"][name] for entry in entries]
            curve.plot(range(len(grid)), proven, "--", color=drawn.get_color(), linewidth=1.2)
    curve.set_xticks(range(len(grid)), [f"{size:g}" for size in grid])
    curve.set_xlabel(_size_label(result))
    certified = ", dashed: certified" if "certified" in entries[0] else ""
    curve.set_title(f"P@k by size; dotted: noise{certified}", fontsize=11)
    curve.legend(frameon=False)
    for axes in (bars, curve):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _size_label(result: dict[str, Any]) -> str:
    """Returns what the sizes of an attack measure."""
    if result["attack"] in ("delete", "words"):
        return "words removed"
    is_of_dense = str(result["threat_model"]).startswith("embedding")
    return "eps, in units of the dense features" if is_of_dense else "eps"


@renamed_argument("wanted", "sizes")
def attack_page(
    result: dict[str, Any], sizes: Sequence[float], samples: Sequence[dict[str, Any]], title: str
) -> str:
    """Returns the page of a result of `mach_ext.attack.evaluate`, with documents before and after.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> result = mach_ext.attack.evaluate(model, X, Y, epsilons=[0.25, 0.5], k=1, resamples=0)
        >>> page = mach_ext.report.attack_page(result, sizes=[0.5], samples=[], title="Six documents")
        >>> "<title>Six documents</title>" in page
        True
    """
    image = io.BytesIO()
    plot_attack(result, sizes).savefig(image, dpi=130, format="png")
    names = [name for name in result["clean"] if not name.endswith("interval")]
    return render(
        "mach_ext.attack",
        "page.html.jinja",
        title=title,
        result=result,
        names=names,
        samples=samples,
        sizes=sizes,
        chart=base64.b64encode(image.getvalue()).decode(),
        percent=percent,
    )

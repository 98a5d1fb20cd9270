"""The result of an explanation: attributions, and what can be made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mach_ext._memory import memory_errors
from mach_ext.data import json_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Explanation:
    """Attributions of the scores of m labels to the nnz features of one document.

    Attributes:
        features: Ids [nnz], ascending: all in which the document or the baseline is not zero.
        feature_names: Their names [nnz].
        values, baselines: What the document and the baseline have there [nnz], float32.
        labels: Ids [m].
        label_names: Their names [m].
        scores, baseline_scores: What is explained, of document and baseline, by the model's forward pass [m].
        attributions: [m, nnz] float64.
        delta: Sum of attributions - (scores - baseline_scores), [m]: how much is unexplained.
        score: "logit" or "model", as in `MACH.label_scores`.
        scale: What `scores` are: "mean_logit", or with score "model" the model's own merge.
        model_scores: Scores by the model's own merge, those of `MACH.predict` [m].
        model_scale: What these are: that merge.
        method: "exact" or "gausslegendre".
        n_steps: Steps taken; 0 for the exact method.
        rival: Of a contrast, the label whose score was subtracted.
        text: The raw text, if given.
    """

    features: NDArray[np.int64]
    feature_names: list[str]
    values: NDArray[np.float32]
    baselines: NDArray[np.float32]
    labels: NDArray[np.int64]
    label_names: list[str]
    scores: NDArray[np.float64]
    baseline_scores: NDArray[np.float64]
    attributions: NDArray[np.float64]
    delta: NDArray[np.float64]
    score: str
    scale: str
    model_scores: NDArray[np.float64]
    model_scale: str
    method: str
    n_steps: int = 0
    rival: int | None = None
    text: str | None = field(default=None, repr=False)

    def row(self, label: int | None = None) -> int:
        """Where a label (None: the first) is in `labels`. ValueError: it was not explained."""
        if label is None:
            return 0
        at = np.flatnonzero(self.labels == label)
        if not at.size:
            raise ValueError(f"Explanation: label {label} must be one of {self.labels.tolist()}")
        return int(at[0])

    def top(self, n: int = 10, label: int | None = None) -> list[tuple[str, float]]:
        """The n features of largest absolute attribution, as (name, attribution); ties: lowest id first."""
        row = self.attributions[self.row(label)]
        order = np.argsort(-np.abs(row), kind="stable")[:n]
        return [(self.feature_names[i], float(row[i])) for i in order]

    @memory_errors("ask for fewer labels")
    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in content.items()}

    @memory_errors("ask for fewer labels")
    def to_json(self, file: str | Path | None = None) -> str:
        """The explanation as JSON text; also written to `file`, if given."""
        text = json_line(self.as_dict())
        if file is not None:
            Path(file).write_text(text + "\n", encoding="utf-8")
        return text

    @memory_errors("ask for fewer labels")
    def plot(self, n: int = 15, label: int | None = None) -> Figure:
        """Bar chart of the n largest attributions (matplotlib)."""
        from mach_ext.explain import _charts

        return _charts.plot_attributions(self, n, label)

    @memory_errors("ask for fewer labels")
    def to_html(self, file: str | Path | None = None, **options: Any) -> str:
        """One self-contained page, also written to `file`, if given.

        Options as in `mach_ext.report.explanation_page`: votes, collisions, removals, and the vectoriser that
        finds the words in `text`.
        """
        from mach_ext.explain import _report

        page = _report.explanation_page(self, **options)
        if file is not None:
            Path(file).write_text(page, encoding="utf-8")
        return page

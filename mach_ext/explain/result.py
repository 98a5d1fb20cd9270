"""The result of an explanation: attributions, and what can be made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mach_ext._deprecation import renamed_argument
from mach_ext._memory import memory_errors
from mach_ext.data import json_line
from mach_ext.explain._attributions import Attributions
from mach_ext.explain._charts import plot_attributions
from mach_ext.explain._report import explanation_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Explanation(Attributions):
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
        return plot_attributions(self, n, label)

    @renamed_argument("removals", "leave_one_out")
    @memory_errors("ask for fewer labels")
    def to_html(self, file: str | Path | None = None, **options: Any) -> str:
        """One self-contained page, also written to `file`, if given.

        Options as in `mach_ext.report.explanation_page`: votes, collisions, leave_one_out, and the vectoriser
        that finds the words in `text`.
        """
        page = explanation_page(self, **options)
        if file is not None:
            Path(file).write_text(page, encoding="utf-8")
        return page

"""The result of an explanation: attributions, and their export as JSON, charts and pages."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """Attributions of the scores of m labels to the nnz features of a document.

    Through an encoder of your own, the features are all positions of the flattened input. So
    `attributions.reshape(m, *shape)` has the shape of the input. If the attributions are summed over the last
    dimension, the features are the entries of the leading dimensions.

    Attributes:
        features: Numbers of the features at which the document or the baseline is not zero, ascending [nnz].
        feature_names: Their names [nnz].
        values, baselines: Values of the document and the baseline at these features [nnz], float32. With sums
            over the last dimension, the Euclidean lengths of these vectors.
        labels: Numbers of the labels [m].
        label_names: Their names [m].
        scores, baseline_scores: The explained scores of the document and the baseline [m]. They come from the
            model's forward pass.
        attributions: Attributions [m, nnz], float64.
        delta: Sum of the attributions - (scores - baseline_scores) [m]. It measures what is not explained.
        score: "logit" or "model", as in `MACH.label_scores`.
        scale: What `scores` are: "mean_logit", or the model's own merge if `score` is "model".
        model_scores: Scores of the model's own merge, as in `MACH.predict` [m].
        model_scale: The model's own merge.
        method: "exact" or "gausslegendre".
        n_steps: Number of steps. 0: the exact method.
        rival: The label whose score was subtracted, in a contrast.
        text: The raw text, if it was given.
        shape: The shape of an encoder's input, without the dimension of the batch. None: a sparse document or
            hidden units.
        num_dense: How many features are dense. They are the last ones, and all E of them are there.
        per_dimension: Whether charts, tables and pages show each dense feature alone.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> result = mach_ext.explain.integrated_gradients(model, X[1], [1, 4])
        >>> result.scores.round(2).tolist(), result.attributions.round(2).tolist()
        ([2.46, -0.2], [[2.8], [0.58]])
    """

    def by_dimension(self) -> Explanation:
        """Returns the explanation so that charts, tables and pages show each dense feature alone.

        Attributions are the same. By default all dense features share a bar, because a single dimension of an
        embedding means little to a reader.

        Example:
            >>> import numpy as np, mach_ext
            >>> from scipy import sparse
            >>> model = mach_ext.MACH(2, 6, num_repetitions=8, num_buckets=4, hidden_size=0, num_dense=2)
            >>> x = mach_ext.data.HybridMatrix(sparse.csr_matrix([[0.5, 0.0]]), np.ones((1, 2)))
            >>> names = ["cat", "dog"]
            >>> result = mach_ext.explain.integrated_gradients(model, x, 1, feature_names=names)
            >>> [name for name, _ in result.top()]
            ['cat', 'embedding (2 dimensions)']
            >>> [name for name, _ in result.by_dimension().top()]
            ['cat', 'dense 0', 'dense 1']
        """
        return replace(self, per_dimension=True)

    @memory_errors("ask for fewer labels")
    def as_dict(self) -> dict[str, Any]:
        """Returns all attributes, ready for JSON.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> content = mach_ext.explain.integrated_gradients(model, X[1], [1, 4]).as_dict()
            >>> content["labels"], content["method"]
            ([1, 4], 'exact')
        """
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in content.items()}

    @memory_errors("ask for fewer labels")
    def to_json(self, file: str | Path | None = None) -> str:
        """Returns the explanation as JSON text.

        Args:
            file: A file that the text is also written to. None: no file.

        Example:
            >>> import json
            >>> from scipy import sparse
            >>> import mach_ext
            >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> result = mach_ext.explain.integrated_gradients(model, X[1], [1, 4])
            >>> json.loads(result.to_json("explanation.json"))["labels"]
            [1, 4]
        """
        text = json_line(self.as_dict())
        if file is not None:
            Path(file).write_text(text + "\n", encoding="utf-8")
        return text

    @memory_errors("ask for fewer labels")
    def plot(self, n: int = 15, label: int | None = None) -> Figure:
        """Draws a bar chart of the n largest attributions with matplotlib.

        Args:
            n: The number of features.
            label: Number of the label. None: the first label.

        Returns:
            A matplotlib figure.

        Raises:
            ValueError: The label was not explained.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> figure = mach_ext.explain.integrated_gradients(model, X[1], 1).plot()
            >>> figure.axes[0].get_title()
            '1: score 2.461'
        """
        return plot_attributions(self, n, label)

    @renamed_argument("removals", "leave_one_out")
    @memory_errors("ask for fewer labels")
    def to_html(self, file: str | Path | None = None, **options: Any) -> str:
        """Returns the explanation as a self-contained HTML page.

        Args:
            file: A file that the page is also written to. None: no file.
            **options: Arguments of `mach_ext.report.explanation_page`: votes, collisions, leave_one_out and
                others. The vectorizer among them finds the words in `text`.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> result = mach_ext.explain.integrated_gradients(model, X[1], 1)
            >>> page = result.to_html("explanation.html", title="Why label 1?")
            >>> "<title>Why label 1?</title>" in page
            True
        """
        page = explanation_page(self, **options)
        if file is not None:
            Path(file).write_text(page, encoding="utf-8")
        return page

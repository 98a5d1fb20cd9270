"""The numbers of an explanation. Charts and pages read them, and `Explanation` adds methods."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mach_ext.explain._arguments import block_name


class Bars(NamedTuple):
    """What charts and tables show of attributions: n bars for each label.

    Attributes:
        features: The number of each bar's feature [n]. The bar of all dense features has the number D + E.
        names: Their names [n].
        effects: The attributions, or sums of attributions [m, n].
    """

    features: NDArray[np.int64]
    names: list[str]
    effects: NDArray[np.float64]


@dataclass(frozen=True)
class Attributions:
    """The content of an `Explanation`. That class describes each attribute."""

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
    shape: tuple[int, ...] | None = None
    num_dense: int = 0
    per_dimension: bool = False

    @property
    def bars(self) -> Bars:
        """What charts and tables show: a bar for each feature, and one bar for all dense features together.

        After `Explanation.by_dimension`, each dense feature has a bar of its own.

        Example:
            >>> import numpy as np, mach_ext
            >>> from scipy import sparse
            >>> model = mach_ext.MACH(2, 6, num_repetitions=8, num_buckets=4, hidden_size=0, num_dense=3)
            >>> x = mach_ext.data.HybridMatrix(sparse.csr_matrix([[0.5, 0.0]]), np.ones((1, 3)))
            >>> result = mach_ext.explain.integrated_gradients(model, x, [1, 4])
            >>> result.bars.names, result.bars.effects.shape, result.attributions.shape
            (['0', 'embedding (3 dimensions)'], (2, 2), (2, 4))
        """
        E = 0 if self.per_dimension else self.num_dense
        if not E:
            return Bars(self.features, self.feature_names, self.attributions)
        return Bars(
            np.append(self.features[:-E], self.features[-1] + 1),
            [*self.feature_names[:-E], block_name(E)],
            np.column_stack((self.attributions[:, :-E], self.attributions[:, -E:].sum(1))),
        )

    @property
    def is_summed(self) -> bool:
        """Whether the attributions are sums over the last dimension of an encoder's input.

        Example:
            >>> import torch, mach_ext
            >>> head = mach_ext.MACHHead(8, 6, num_repetitions=8, num_buckets=4)
            >>> encoder, x = lambda x: x.mean(1), torch.ones(1, 3, 8)
            >>> for names in (None, ["a", "dog", "barks"]):
            ...     result = mach_ext.explain.integrated_gradients(
            ...         head, x, 1, encoder=encoder, feature_names=names
            ...     )
            ...     print(result.is_summed, result.shape, result.attributions.shape)
            False (3, 8) (1, 24)
            True (3, 8) (1, 3)
        """
        return self.shape is not None and len(self.features) < math.prod(self.shape)

    def row(self, label: int | None = None) -> int:
        """Returns the position of a label in `labels`.

        Args:
            label: Number of the label. None: the first label.

        Raises:
            ValueError: The label was not explained.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> result = mach_ext.explain.integrated_gradients(model, X[1], [1, 4])
            >>> result.row(4)
            1
        """
        if label is None:
            return 0
        at = np.flatnonzero(self.labels == label)
        if not at.size:
            raise ValueError(f"Explanation: label {label} must be one of {self.labels.tolist()}")
        return int(at[0])

    def top(self, n: int = 10, label: int | None = None) -> list[tuple[str, float]]:
        """Returns the n features of largest absolute attribution, as pairs of a name and an attribution.

        Among equal attributions the lowest feature number comes first. Dense features count as one feature,
        except after `Explanation.by_dimension`.

        Args:
            n: The number of features.
            label: Number of the label. None: the first label.

        Raises:
            ValueError: The label was not explained.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])
            >>> words = ["meow", "bark", "hoot", "moo", "oink", "cluck"]
            >>> names = ["cat", "dog", "owl", "cow", "pig", "hen"]
            >>> result = mach_ext.explain.integrated_gradients(
            ...     model, x, "dog", feature_names=words, label_names=names
            ... )
            >>> [(name, round(effect, 2)) for name, effect in result.top()]
            [('bark', 2.8), ('hoot', -0.6)]
        """
        bars = self.bars
        row = bars.effects[self.row(label)]
        order = np.argsort(-np.abs(row), kind="stable")[:n]
        return [(bars.names[i], float(row[i])) for i in order]

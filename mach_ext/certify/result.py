"""`Certificate` is the result of `certify`, as ranks and as shares of P@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Certificate:
    """The result of `certify` for E sizes, N documents and the k labels of their clean top k.

    A label's rank counts from 0. The rank after any change is at most the number of labels that may overtake
    it.

    Attributes:
        threat_model: Name of the threat model.
        epsilons: The sizes, ascending [E].
        labels: The clean top k [N, k].
        correct: Which of these labels are right [N, k].
        overtakers: How many labels may overtake each label, k for k or more [E, N, k]. It is k for wrong
            labels.
        attained: The rank that each label gets in a document that was tried, k for k or more [E, N, k].
        zero: Maps k' = 1, 3, 5, k to the sizes between which certified P@k' falls to zero. It is above zero
            at the first size, or nowhere if this is -1. It is zero at the second size, which is inf if none
            was found. The bisection stops within 2 %. Documents without features are left out if the threat
            model cannot change them.
        unchanged: The features that must stay as they are for the certificate to hold: "dense features" or
            "sparse features". None: the model has features of one kind.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> certificate = mach_ext.certify.certify(model, X, Y, [0.3, 0.5], k=1, zero=False)
        >>> certificate.correct.ravel().tolist()
        [True, True, True, True, True, True]
        >>> certificate.overtakers[:, :, 0].tolist()
        [[0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    """

    threat_model: str
    epsilons: list[float]
    labels: NDArray[np.int64]
    correct: NDArray[np.bool_]
    overtakers: NDArray[np.int64]
    attained: NDArray[np.int64]
    zero: dict[int, tuple[float, float]]
    unchanged: str | None = None

    def certified(self, k: int) -> NDArray[np.bool_]:  # [E, N, K]
        """Returns which right labels provably stay in the top k [E, N, K], whatever the change.

        Args:
            k: Size of the top k, at most that of `certify`.

        Raises:
            ValueError: k is out of range.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> certificate = mach_ext.certify.certify(model, X, Y, [0.3, 0.5], k=1, zero=False)
            >>> certificate.certified(1)[:, :, 0].tolist()
            [[True, True, True, True, True, True], [False, False, False, False, False, True]]
        """
        return self.correct & (self.overtakers < self._within(k))

    def broken(self, k: int) -> NDArray[np.bool_]:  # [E, N, K]
        """Returns which right labels of the clean top k leave it in a document that was tried [E, N, K].

        The document is within the threat model, and the model itself ranked the labels.

        Args:
            k: Size of the top k, at most that of `certify`.

        Raises:
            ValueError: k is out of range.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> certificate = mach_ext.certify.certify(model, X, Y, [0.3, 0.5], k=1, zero=False)
            >>> certificate.broken(1)[:, :, 0].tolist()
            [[False, False, False, False, False, False], [True, True, True, True, True, False]]
        """
        inside = self.correct & (np.arange(self.labels.shape[1]) < self._within(k))
        return np.asarray(inside & (self.attained >= k))

    def _within(self, k: int) -> int:
        """Returns the checked k. Ranks beyond the labels that `certify` examined are not known."""
        K = self.labels.shape[1]
        if not 1 <= k <= K:
            raise ValueError(f"Certificate: k must be in 1 ... {K}, the k of certify, got {k}")
        return k

    def precision(self, k: int) -> NDArray[np.float64]:  # [E]
        """Returns certified P@k at each size [E].

        Args:
            k: Size of the top k, at most that of `certify`.

        Raises:
            ValueError: k is out of range.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> certificate = mach_ext.certify.certify(model, X, Y, [0.3, 0.5], k=1, zero=False)
            >>> certificate.precision(1).round(2).tolist()
            [1.0, 0.17]
        """
        per_document = self.certified(k).sum(2) / k
        return np.asarray(per_document.mean(1) if per_document.shape[1] else np.zeros(len(self.epsilons)))

    def robust(self) -> NDArray[np.float64]:  # [E, 2]
        """Returns bounds of P@1 under the worst changes [E, 2].

        The lower bound is the certified P@1. The upper bound is the P@1 that the tried documents leave.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> certificate = mach_ext.certify.certify(model, X, Y, [0.3, 0.5], k=1, zero=False)
            >>> certificate.robust().round(2).tolist()
            [[1.0, 1.0], [0.17, 0.17]]
        """
        left = (self.correct & ~self.broken(1))[:, :, 0]
        attained = left.mean(1) if left.shape[1] else np.zeros(len(left))
        return np.stack((self.precision(1), attained), 1)

    def as_dict(self, ks: Sequence[int] = (1, 3, 5)) -> dict[str, Any]:
        """Returns the curves and the zeros, ready for JSON.

        The keys are "threat_model", "documents", "sizes" and "zero", and "unchanged" if it is not None. An
        entry of "sizes" has "epsilon", "P@1" and so on, and "robust P@1" with its two bounds. "zero" maps
        "P@1" and so on to two sizes. None stands for infinity.

        Args:
            ks: The k of P@k. Those above the k of `certify` are left out.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> certificate = mach_ext.certify.certify(model, X[:5], Y[:5], [0.3, 0.5], k=1)
            >>> content = certificate.as_dict()
            >>> content["sizes"][1]
            {'epsilon': 0.5, 'P@1': 0.0, 'robust P@1': [0.0, 0.0]}
        """
        ks = [k for k in ks if k <= self.labels.shape[1]]
        curves = {f"P@{k}": self.precision(k) for k in ks}
        robust = self.robust()
        sizes = [
            {
                "epsilon": epsilon,
                **{name: float(curve[e]) for name, curve in curves.items()},
                "robust P@1": robust[e].tolist(),
            }
            for e, epsilon in enumerate(self.epsilons)
        ]
        zero = {f"P@{k}": [None if math.isinf(z) else z for z in self.zero[k]] for k in ks if k in self.zero}
        return {
            "threat_model": self.threat_model,
            **({} if self.unchanged is None else {"unchanged": self.unchanged}),
            "documents": len(self.labels),
            "sizes": sizes,
            "zero": zero,
        }

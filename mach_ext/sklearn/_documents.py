"""Documents as scikit-learn checks them. Its releases below 1.6 have the check as a private method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from mach_ext._memory import check_memory
from mach_ext.data import HybridMatrix, check_csr
from mach_ext.data.matrices import Csr
from mach_ext.functional import as_int

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn below 1.6

    def validate_data(estimator: Any, X: Any, **options: Any) -> Any:
        """Check documents by the method of the estimator."""
        return estimator._validate_data(X, **options)


def checked_num_dense(value: Any) -> int:
    """Return E, checked."""
    number = as_int("MACHClassifier", "num_dense", value)
    if number < 0:
        raise ValueError(f"MACHClassifier: num_dense must be at least 0, got {number}")
    return number


def read_documents(estimator: Any, X: Any, num_dense: int, *, reset: bool = False) -> Csr | HybridMatrix:
    """Return documents as canonical float32 CSR, or as a `HybridMatrix` if there are dense features.

    Args:
        estimator: The estimator, whose `n_features_in_` and `feature_names_in_` must match.
        X: Documents [N, D + E], dense or sparse of any format, or a `HybridMatrix`.
        num_dense: E, the number of dense features. They are the last columns.
        reset: Set these attributes in place of comparing with them.

    Raises:
        ValueError: X holds texts, or it is no matrix of finite numbers, or it has fewer than E columns.
    """
    name = type(estimator).__name__
    if _is_texts(X):
        raise ValueError(
            f"{name}: X must hold numbers [N, D], got texts; put a vectorizer before the "
            "estimator in a pipeline, such as TfidfVectorizer"
        )
    if isinstance(X, HybridMatrix):
        if X.num_dense != num_dense:
            raise ValueError(
                f"{name}: num_dense must be the dense features of X, got {num_dense} and a HybridMatrix of "
                f"{X.num_dense}"
            )
        X = X.join()
    X = validate_data(estimator, X, reset=reset, accept_sparse=("csr", "csc", "coo", "bsr"))
    csr = check_csr(X, f"{name}: X")
    return _parts(name, csr, num_dense) if num_dense else csr


def _parts(name: str, csr: Csr, num_dense: int) -> HybridMatrix:
    """Return a matrix [N, D + E] as its sparse and its dense columns. D = 0 gives an empty sparse column."""
    (N, columns), E = csr.shape, num_dense
    if columns < E:
        raise ValueError(f"{name}: num_dense must be at most the number of columns of X, got {E} > {columns}")
    check_memory(f"{name}: the dense columns of X", 4 * N * E + 8 * csr.nnz, "pass fewer documents", N=N, E=E)
    sparse = csr[:, : columns - E] if columns > E else scipy.sparse.csr_matrix((N, 1), dtype=np.float32)
    return HybridMatrix(sparse, csr[:, columns - E :].toarray())


def _is_texts(X: Any) -> bool:
    """Return whether X has one dimension and begins with a string."""
    if isinstance(X, Sequence):
        return len(X) > 0 and isinstance(X[0], str)
    if not hasattr(X, "__array__") or getattr(X, "ndim", 0) != 1:
        return False
    X = np.asarray(X)
    return len(X) > 0 and isinstance(X[0], str)

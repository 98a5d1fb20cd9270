"""Documents as scikit-learn checks them. Its releases below 1.6 have the check as a private method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mach_ext.data import check_csr
from mach_ext.data.matrices import Csr

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn below 1.6

    def validate_data(estimator: Any, X: Any, **options: Any) -> Any:
        """Check documents by the method of the estimator."""
        return estimator._validate_data(X, **options)


def read_documents(estimator: Any, X: Any, *, reset: bool = False) -> Csr:
    """Return documents as canonical float32 CSR.

    Args:
        estimator: The estimator, whose `n_features_in_` and `feature_names_in_` must match.
        X: Documents [N, D], dense or sparse of any format.
        reset: Set these attributes in place of comparing with them.

    Raises:
        ValueError: X holds texts, or it is no matrix of finite numbers.
    """
    if _is_texts(X):
        raise ValueError(
            f"{type(estimator).__name__}: X must hold numbers [N, D], got texts; put a vectorizer before the "
            "estimator in a pipeline, such as TfidfVectorizer"
        )
    X = validate_data(estimator, X, reset=reset, accept_sparse=("csr", "csc", "coo", "bsr"))
    return check_csr(X, f"{type(estimator).__name__}: X")


def _is_texts(X: Any) -> bool:
    """Return whether X has one dimension and begins with a string."""
    if isinstance(X, Sequence):
        return len(X) > 0 and isinstance(X[0], str)
    if not hasattr(X, "__array__") or getattr(X, "ndim", 0) != 1:
        return False
    X = np.asarray(X)
    return len(X) > 0 and isinstance(X[0], str)

"""Documents as scikit-learn checks them. Its releases below 1.6 have the check as a private method."""

from __future__ import annotations

from typing import Any

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
    """
    X = validate_data(estimator, X, reset=reset, accept_sparse=("csr", "csc", "coo", "bsr"))
    return check_csr(X, f"{type(estimator).__name__}: X")

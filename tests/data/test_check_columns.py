"""mach_ext.data.check_columns: check_csr, then the number of columns."""

import numpy as np
import pytest
import scipy.sparse

from mach_ext.data import check_columns


def test_it_returns_what_check_csr_returns():
    twice = scipy.sparse.coo_matrix(([1.0, 2.0], ([0, 0], [3, 3])), shape=(1, 4))
    X = check_columns(twice, "op: X", 4)
    assert X.format == "csr"
    assert X.dtype == np.float32
    assert X.toarray().tolist() == [[0, 0, 0, 3]]


@pytest.mark.parametrize(
    ("X", "letter", "error", "message"),
    [
        (
            scipy.sparse.csr_matrix((2, 3)),
            "D",
            ValueError,
            r"^op: X must have D=4 columns, got shape \(2, 3\)$",
        ),
        (
            scipy.sparse.csr_matrix((2, 3)),
            "L",
            ValueError,
            r"^op: X must have L=4 columns, got shape \(2, 3\)$",
        ),
        ([[0.0]], "D", TypeError, "^op: X: must be a SciPy sparse matrix, .*, got list$"),
        (
            np.full((1, 3), np.nan),
            "D",
            ValueError,
            "^op: X, row 0: values must be finite and fit float32, got nan",
        ),
    ],
)
def test_it_refuses(X, letter, error, message):
    with pytest.raises(error, match=message):
        check_columns(X, "op: X", 4, letter)

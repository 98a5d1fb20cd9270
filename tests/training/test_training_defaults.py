"""Sizes and the choice of a solver where nothing else is known."""

import numpy as np
import pytest
import scipy.sparse

from mach_ext import svm, training


@pytest.mark.parametrize(
    ("N", "D", "L", "R", "buckets", "units", "own", "epochs"),
    [
        (4_392, 1_836, 159, 32, 64, 256, True, 10),
        (9_036, 135_065, 41_218, 16, 2048, 128, True, 10),
        (45_000, 56_758, 4_271, 16, 2048, 256, True, 5),
        (75_735, 27_997, 20_430, 16, 2048, 256, True, 5),
        (90_452, 135_065, 41_218, 16, 2048, 128, True, 5),
        (90_452, 146_484, 16_385, 16, 2048, 128, True, 5),
        (90_452, 146_485, 16_385, 8, 2048, 128, True, 5),
        (90_452, 292_968, 16_385, 8, 2048, 128, True, 5),
        (90_452, 292_969, 16_385, 8, 2048, 512, False, 5),
        (10_000, 73_242, 16_384, 16, 2048, 256, True, 10),
        (10_000, 73_243, 16_384, 16, 2048, 128, True, 10),
        (30_000, 10, 7, 16, 16, 256, True, 8),
        (0, 1, 1, 32, 16, 256, True, 10),
    ],
)
def test_default_sizes(N, D, L, R, buckets, units, own, epochs):
    encoders = {"hidden_size": units, "encoder": "independent" if own else "shared"}
    expected = {"num_repetitions": R, **encoders, "num_buckets": buckets, "epochs": epochs}
    assert training.default_sizes(N, D, L) == expected


def test_svms_are_preferred_where_labels_have_many_documents():
    def labels(N, L, each):
        """Each of half of the labels has so many documents."""
        at = np.tile(np.arange(L // 2), each)
        rows = np.arange(len(at))
        return scipy.sparse.csr_matrix((np.ones(len(at)), ((rows + rows // N) % N, at)), (N, L))

    assert svm.prefer_svm(labels(10_000, 2000, 32), 1000)
    assert not svm.prefer_svm(labels(9_999, 2000, 32), 1000)
    assert not svm.prefer_svm(labels(10_000, 2000, 31), 1000)
    assert not svm.prefer_svm(labels(10_000, 2000, 32), 150_000)
    assert not svm.prefer_svm(labels(10_000, 2000, 0), 1000)
    few = labels(10_000, 2000, 31)
    stored_twice = scipy.sparse.vstack([few, few], format="coo")
    stored_twice = scipy.sparse.coo_matrix(
        (stored_twice.data, (stored_twice.row % 10_000, stored_twice.col)), few.shape
    )
    assert not svm.prefer_svm(stored_twice, 1000)  # a label counts once for a document

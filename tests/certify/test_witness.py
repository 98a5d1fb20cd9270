"""Witnesses: for linear MACH the first rank is certified, or a document breaks it."""

import numpy as np
import pytest
import scipy.sparse
from certify_cases import DENSE, SPARSE, right
from test_nn import D, draw, model_of

from mach_ext import certify
from mach_ext.attack import Delete
from mach_ext.certify import _curve

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("threat", SPARSE + DENSE, ids=str)
def test_linear_top_1_is_certified_or_broken(threat):
    """Nothing is left undecided, and what breaks it is within the threat model."""
    model, X = model_of("linear"), draw(n=40)
    Y = right(model, X)
    grid = [0, 1, 2, 4] if isinstance(threat, Delete) else [0, 0.003, 0.01, 0.03, 0.1, 0.3, 1]
    tried = []
    original = _curve.record_ranks

    def spy(model, labels, points, attained):
        tried.extend((n, *point) for n, _, point in points)
        original(model, labels, points, attained)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_curve, "record_ranks", spy)
        certificate = certify.certify(model, X, Y, grid, threat_model=threat, zero=False)
    top = certificate.correct[:, 0]
    assert (certificate.certified(1)[:, top, 0] ^ certificate.broken(1)[:, top, 0]).all()
    assert certificate.certified(1)[1:, top, 0].any()
    assert certificate.broken(1)[:, top, 0].any()
    np.testing.assert_array_equal(*certificate.robust().T)
    for n, features, values in tried:
        changed = scipy.sparse.csr_matrix((values, (np.zeros(len(features), int), features)), (1, D))
        assert threat.holds(X[n], changed, max(grid))

"""Certified P@k over the sizes of a threat set, and where it reaches zero."""

import numpy as np
import pytest
import scipy.sparse
from certify_cases import right
from test_nn import L, draw, model_of

import mach_ext
from mach_ext import certify
from mach_ext.attack import Delete, Support

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("threat", [Support(), Delete()], ids=str)
def test_zero_clean_and_curve(threat):
    model, X = model_of(), draw(n=15)
    Y = right(model, X)
    grid = [0, 1] if isinstance(threat, Delete) else [0, 0.02]
    certificate = certify.certify(model, X, Y, grid, threat_model=threat)
    clean = mach_ext.metrics.evaluate(Y, certificate.labels)
    for k in (1, 3, 5):
        assert certificate.precision(k)[0] == pytest.approx(clean[f"P@{k}"])
        assert (np.diff(certificate.precision(k)) <= 0).all()
        low, high = certificate.zero[k]
        if np.isinf(high):
            continue
        again = certify.certify(model, X, Y, [low, high], threat_model=threat, zero=False)
        assert again.precision(k)[0] > 0
        assert again.precision(k)[1] == 0
    assert set(certificate.zero) == {1, 3, 5}
    record = certificate.as_dict()
    assert record["sizes"][1]["P@5"] == certificate.precision(5)[1]
    assert record["sizes"][1]["robust P@1"][0] == certificate.precision(1)[1]
    assert (certificate.robust()[:, 0] <= certificate.robust()[:, 1]).all()
    wrong = certify.certify(model, X, scipy.sparse.csr_matrix((15, L)), grid, threat_model=threat)
    assert wrong.zero[1] == (-1, 0)
    assert not wrong.correct.any()

"""Documents without one feature, against the model's own answers."""

import numpy as np
import pytest
import scipy.sparse
import torch
from test_nn import D, draw, model_of, tensors

from mach_ext import explain

pytestmark = pytest.mark.usefixtures("one_thread")


def test_leave_one_out():
    model, X = model_of(merge="mean_prob"), draw(n=1)
    found = explain.leave_one_out(model, X, 4)
    _, labels = model.predict(X, 4)
    assert (found.labels == labels[0]).all()
    for i, feature in enumerate(found.features):
        dense = X.toarray()
        dense[0, feature] = 0
        without = scipy.sparse.csr_matrix(dense)
        expected = model.label_scores(*tensors(without), torch.from_numpy(labels[0]), "model").detach()[0]
        np.testing.assert_allclose(found.scores + found.changes[i], expected, rtol=1e-4, atol=1e-6)
        again = model.predict(without, 4)[1][0]
        assert set(found.left[i]) == set(labels[0]) - set(again)
        assert set(found.entered[i]) == set(again) - set(labels[0])
    names = [f"word {d}" for d in range(D)]
    one = explain.leave_one_out(model, X, 4, [names[found.features[2]]], feature_names=names)
    np.testing.assert_array_equal(one.changes, found.changes[2:3])

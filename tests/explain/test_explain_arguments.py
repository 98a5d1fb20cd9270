"""What functions of explanations refuse, and how they read labels."""

import numpy as np
import pytest
import scipy.sparse
from test_nn import D, L, draw, model_of

from mach_ext import explain

pytestmark = pytest.mark.usefixtures("one_thread")


def test_errors():
    model, X = model_of(), draw(n=2)
    x, empty = X[0], scipy.sparse.csr_matrix((1, D), dtype=np.float32)
    names = [f"label {i % 80}" for i in range(L)]
    words = [f"word {d}" for d in range(D)]
    ig = explain.integrated_gradients
    for call, error, message in [
        (lambda: ig(model, x, [L]), ValueError, rf"labels must be in \[0, L={L}\), got {L}"),
        (lambda: ig(model, x, -1), ValueError, "got -1"),
        (lambda: ig(model, x, []), ValueError, "at least one, got none"),
        (lambda: ig(model, x, [1.5]), TypeError, "ids .* or names, got float64"),
        (lambda: ig(model, x, [[1, 2]]), ValueError, r"labels must be \[m\], got \[1, 2\]"),
        (lambda: ig(model, x, "dog"), ValueError, "keeps no label names; give labels by number, got 'dog'"),
        (lambda: ig(model, x, "label 85", label_names=names), ValueError, "did you mean"),
        (lambda: ig(model, x, "label 2", label_names=names), ValueError, r"is the name of \[2, 82\]"),
        (lambda: ig(model, x, 1, label_names=["a"]), ValueError, f"label_names must be L={L} names, got 1"),
        (lambda: ig(model, x, 1, feature_names=["a"]), ValueError, f"must be D={D} names, got 1"),
        (lambda: ig(model, empty, 1), ValueError, "must have a feature to be explained, got none"),
        (lambda: ig(model, X, 1), ValueError, "one document .* explain_topk takes many"),
        (lambda: ig(model, x[:, :5], 1), ValueError, f"must have D={D} columns"),
        (lambda: ig(model, x.toarray().tolist(), 1), TypeError, "must be a SciPy sparse matrix"),
        (
            lambda: ig("model", x, 1),
            TypeError,
            "model must be a mach_ext.MACH or a mach_ext.MACHHead, got str",
        ),
        (lambda: ig(model, x, 1, baseline=np.zeros(3)), ValueError, f"baseline must have D={D} columns"),
        (lambda: ig(model, x, 1, method="simpson"), ValueError, "method must be one of"),
        (lambda: ig(model, x, 1, score="prob"), ValueError, 'score must be "logit" or "model"'),
        (lambda: ig(model, x, 1, method="exact", n_steps=5), ValueError, "n_steps"),
        (lambda: ig(model, x, 1, n_steps=0), ValueError, "n_steps must be at least 1"),
        (lambda: ig(model, x, 1, tolerance=0), ValueError, "tolerance must be above 0"),
        (
            lambda: ig(model_of(merge="min_prob"), x, 1, method="exact", score="model"),
            ValueError,
            "needs a mean of logits .* min_prob",
        ),
        (lambda: explain.captum_inputs(model, empty, [1]), ValueError, "without features in row 0"),
        (
            lambda: explain.captum_inputs(model, X, [[1]] * 3),
            ValueError,
            r"\[m\] or \[N=2, m\], got \[3, 1\]",
        ),
        (lambda: explain.captum_inputs(model, X, [L]), ValueError, "labels must be in"),
        (
            lambda: next(explain.explain_topk(model, scipy.sparse.vstack([X, empty], format="csr"))),
            ValueError,
            "row 2: a document must have a feature",
        ),
        (lambda: next(explain.explain_topk(model, X, 0)), ValueError, "k must be in 1"),
        (lambda: explain.votes(model, x, [L]), ValueError, "labels must be in"),
        (lambda: explain.collisions(model, x, L), ValueError, "labels must be in"),
        (
            lambda: explain.leave_one_out(model, x, 2, ["dog"], feature_names=words),
            ValueError,
            "no feature 'dog'",
        ),
        (lambda: explain.leave_one_out(model, x, 2, ["dog"]), ValueError, "keeps no feature names"),
        (
            lambda: explain.leave_one_out(model, x, 2, [np.setdiff1d(np.arange(D), x.indices)[0]]),
            ValueError,
            "the document has no feature",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_labels_by_digits_are_names_first():
    names = [str(label + 1) for label in range(L)]
    model = model_of()
    for asked, expected in ((["3"], 2), ([3], 3), (["0"], 0)):
        found = explain.integrated_gradients(model, draw()[0], asked, label_names=names)
        assert found.labels.tolist() == [expected]
    assert explain.votes(model, draw()[0], np.array(["5", "6"])).labels.tolist() == [5, 6]
    with pytest.raises(ValueError, match=r"labels must be in \[0, L=\d+\), got 1180591620717411303424"):
        explain.integrated_gradients(model, draw()[0], 2**70)

"""The votes of the repetitions, by hand."""

import math

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch
from explain_cases import Page, planted
from test_nn import D, draw, model_of, tensors

import mach_ext
from mach_ext import explain

pytestmark = pytest.mark.usefixtures("one_thread")


def test_votes():
    model, x, logits, table = planted()
    found = explain.votes(model, x, [0, 1, 2], k=1)
    np.testing.assert_allclose(found.logits[0], logits[np.arange(6), table[:, 0]], rtol=1e-6)
    np.testing.assert_allclose(found.scores, found.logits.mean(1))
    np.testing.assert_allclose(found.spread, found.logits.std(1, ddof=1))
    assert found.rivals.tolist() == [1, 0, 0]  # by the two shared buckets label 1 comes second
    assert found.agreement[0] > 0.999
    assert found.agreement[1] < 0.001
    assert found.certainty is found.agreement  # its former name
    assert explain.votes(model, x, k=3).labels[:2].tolist() == [0, 1]
    everything = explain.votes(model, x, [5], k=40)
    assert everything.rivals.tolist() == [-1]
    assert math.isnan(everything.agreement[0])


def test_votes_and_collisions_rank_as_the_model_does():
    """Label 0 has the best mean logit, label 1 the best mean log-probability: predict goes by the latter."""
    table = np.arange(8).reshape(1, 8).repeat(4, 0)
    logits = np.full((4, 8), -9.0)
    logits[:, 0], logits[:, 1] = [12, 12, 12, -8], [1.9, 2.0, 2.1, 2.2]
    for merge, first in (("mean_logit", 0), ("mean_logprob", 1), ("min_prob", 1), ("median_prob", 0)):
        hash = mach_ext.LabelHash.from_buckets(table, 8)
        model = mach_ext.MACH(1, 8, 4, 8, hidden_size=0, hash=hash, merge=merge)
        with torch.no_grad():
            model.bucket_bias.zero_()
            model.bucket_weight.copy_(torch.from_numpy(logits)[:, None])
        x = scipy.sparse.csr_matrix(np.ones((1, 1), np.float32))
        assert model.predict(x, 1)[1][0, 0] == first
        voted = explain.votes(model, x, [0, 1], k=1)
        assert voted.rivals.tolist() == [1, 0]
        np.testing.assert_allclose(voted.scores, [7, 2.05], rtol=1e-6)
        if merge.startswith("mean"):
            assert voted.agreement[first] > 0.5
            assert voted.agreement[1 - first] < 0.5
        else:
            assert np.isnan(voted.agreement).all()
        for label in (0, 1):
            check = explain.collisions(model, x, label, k=1)
            assert check.verdict == ("signal" if label == first else "not predicted")
            assert check.score == pytest.approx(
                model.predict(x, 8)[0][0, 0 if label == first else 1], rel=1e-5
            )


def test_agreement_is_that_of_the_merged_votes():
    """By mean_logprob: Student's t of the differences of log-probabilities, worked out by hand."""
    model, X = model_of(merge="mean_logprob"), draw(n=1)
    best = model.predict(X, 4)[1][0]
    voted = explain.votes(model, X, [best[0]], k=3)
    logits = model.label_logits(*tensors(X), torch.from_numpy(best)).detach().double().numpy()[0]  # [4, R]
    probabilities = -np.log1p(np.exp(-logits))
    apart = (model.hash.buckets[:, best[0]] != model.hash.buckets[:, best[3]]).numpy()
    difference = (probabilities[0] - probabilities[3])[apart]
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))
    assert voted.rivals.tolist() == [best[3]]
    assert voted.agreement[0] == pytest.approx(scipy.stats.t.cdf(t, len(difference) - 1), rel=1e-4)


@pytest.mark.parametrize("labels", [1, 2, 4])
def test_fewer_labels_than_the_usual_k(labels):
    model = mach_ext.MACH(D, labels, num_repetitions=4, num_buckets=8, hidden_size=4)
    x = draw(n=1)
    assert explain.votes(model, x).labels.tolist() == explain.leave_one_out(model, x).labels.tolist()
    assert explain.votes(model, x).k == labels
    assert len(next(explain.explain_topk(model, x)).labels) == labels
    for label in range(labels):
        assert explain.collisions(model, x, label).threshold == -math.inf
    found = explain.integrated_gradients(model, x)
    Page(
        found.to_html(
            votes=explain.votes(model, x),
            collisions=[explain.collisions(model, x, label) for label in range(labels)],
            leave_one_out=explain.leave_one_out(model, x),
        )
    )
    for call in (explain.votes, explain.leave_one_out):
        with pytest.raises(ValueError, match=rf"k must be in 1 \.\.\. L={labels}, got 5"):
            call(model, x, k=5)

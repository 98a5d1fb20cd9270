"""The collision check, on models of known votes."""

import numpy as np
import pytest
import scipy.sparse
import torch
from explain_cases import planted

import mach_ext
from mach_ext import explain

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_label_whose_votes_nobody_claims_is_a_signal():
    """Also where it is in the top k by its number alone: its score ties with the best label outside."""
    table = np.arange(4).reshape(1, 4).repeat(3, 0)
    model = mach_ext.MACH(1, 4, 3, 4, hidden_size=0, hash=mach_ext.LabelHash.from_buckets(table, 4))
    with torch.no_grad():
        model.bucket_weight.fill_(1.0)
    x = scipy.sparse.csr_matrix(np.ones((1, 1), np.float32))
    assert explain.collisions(model, x, 0, k=1).verdict == "signal"


def test_collision_check_tells_a_signal_from_a_collision():
    model, x, logits, table = planted()
    collision = explain.collisions(model, x, 1, k=2)
    assert collision.verdict == "collision"
    assert collision.claimed_by.tolist()[:2] == [0, 0]
    assert collision.mates[0].label == 0
    assert collision.mates[0].repetitions == collision.mates[0].claims == (0, 1)
    assert collision.mates[0].elsewhere == pytest.approx(
        logits[np.arange(2, 6), table[2:, 0]].mean(), rel=1e-5
    )
    assert collision.score == pytest.approx(logits[np.arange(6), table[:, 1]].mean(), rel=1e-5)
    assert collision.theirs > 2
    signal = explain.collisions(model, x, 0, k=2)
    assert signal.verdict == "signal"
    assert (signal.claimed_by == -1).all()
    assert signal.theirs == 0
    assert explain.collisions(model, x, 17, k=2).verdict == "not predicted"
    with pytest.warns(mach_ext.CollisionWarning):
        twins = planted(claimed_by_label_0=6)[:2]
    assert explain.collisions(*twins, 1, k=2).verdict == "undecided"


def test_collisions_without_a_document():
    model, _, _, table = planted()
    found = explain.collisions(model, None, 1, show=3)
    assert found.mates[0].label == 0
    assert found.mates[0].repetitions == (0, 1)
    assert found.num_mates == len(
        {label for r in range(6) for label in np.flatnonzero(table[r] == table[r, 1])} - {1}
    )
    assert found.verdict == ""
    model.hash.label_index()  # the same by the index
    assert explain.collisions(model, None, 1, show=3) == found

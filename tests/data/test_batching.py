"""Mini-batches."""

import numpy as np
import pytest
import torch
from data_cases import random_split, same
from scipy import sparse

from mach_ext.data import iter_batches, iter_on_device


def test_batches_cover_every_document_once():
    split = random_split(rows=25)
    seen = []
    for batch in iter_batches(split.X, split.Y, 4, seed=7):
        n = len(batch.rows)
        X = sparse.csr_matrix((batch.values, batch.indices, batch.indptr), shape=(n, 12))
        Y = sparse.csr_matrix(
            (np.ones(len(batch.label_indices)), batch.label_indices, batch.label_indptr), (n, 7)
        )
        assert same(X, split.X[batch.rows])
        assert same(Y, split.Y[batch.rows])
        seen.append(batch.rows)
    assert [len(rows) for rows in seen] == [4, 4, 4, 4, 4, 4, 1]
    order = np.concatenate(seen)
    assert sorted(order) == list(range(25))
    assert order.tolist() != list(range(25))


def test_batches_on_a_device_are_the_same_batches(device):
    split = random_split(rows=25)
    batches = list(iter_on_device(iter_batches(split.X, split.Y, 4, seed=7), device))
    assert len(batches) == 7
    for moved, batch in zip(batches, iter_batches(split.X, split.Y, 4, seed=7), strict=True):
        assert type(moved) is type(batch)
        assert (moved.rows == batch.rows).all()
        for a, b in zip(moved[:5], batch[:5], strict=True):
            assert a.device.type == device.type
            assert torch.equal(a.cpu(), b)


def test_batches_are_reproducible_and_can_start_anywhere():
    split = random_split(rows=25)

    def rows(**options):
        return [batch.rows.tolist() for batch in iter_batches(split.X, split.Y, 4, **options)]

    assert rows(seed=7, epoch=2) == rows(seed=7, epoch=2)
    assert rows(seed=7, epoch=2) != rows(seed=7, epoch=3)
    assert rows(seed=7, epoch=2) != rows(seed=8, epoch=2)
    assert rows(seed=7, epoch=2, start=3) == rows(seed=7, epoch=2)[3:]
    assert rows() == [list(range(i, min(i + 4, 25))) for i in range(0, 25, 4)]
    with pytest.raises(ValueError, match="iter_batches: batch_size must be at least 1, got 0"):
        list(iter_batches(split.X, split.Y, 0))

"""Threat models: the sets of documents that they allow."""

import scipy.sparse
import torch

from mach_ext.attack import L1, L2, Delete, Dense, Insert, Support


def test_holds_tells_what_does_not():
    X = scipy.sparse.csr_matrix([[0.5, 0.0, 0.2, 0.0, 0.0]])

    def holds(threat, epsilon, *row):
        return threat.holds(X, scipy.sparse.csr_matrix([row]), epsilon)

    assert holds(Support(), 0.1, 0.6, 0, 0.1, 0, 0)
    assert not holds(Support(), 0.1, 0.61, 0, 0.2, 0, 0)
    assert not holds(Support(), 0.3, 0.5, 0, -0.1, 0, 0)
    assert holds(Support(nonnegative=False), 0.3, 0.5, 0, -0.1, 0, 0)
    assert not holds(Support(), 0.3, 0.5, 0.1, 0.2, 0, 0)
    assert holds(Insert(m=1), 0.3, 0.5, 0.1, 0.2, 0, 0)
    assert not holds(Insert(m=1), 0.3, 0.5, 0.1, 0.2, 0.1, 0)
    assert holds(Dense(), 0.1, 0.5, -0.1, 0.2, 0.1, 0)
    assert not holds(Dense(nonnegative=True), 0.1, 0.5, -0.1, 0.2, 0.1, 0)
    assert holds(L2(), 0.5, 0.8, 0, 0.6, 0, 0)
    assert not holds(L2(), 0.5, 0.9, 0, 0.6, 0, 0)
    assert not holds(L1(), 0.5, 0.8, 0, 0.6, 0, 0)
    assert holds(Delete(), 1, 0.5, 0, 0, 0, 0)
    assert not holds(Delete(), 1, 0, 0, 0, 0, 0)
    assert not holds(Delete(), 1, 0.5, 0, 0.1, 0, 0)


def test_l1_vertex_is_the_best_point_of_its_set():
    """Against a linear program solved by hand: fill by falling gradient."""
    x = torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64)
    g = torch.tensor([-5.0, 3.0, -1.0], dtype=torch.float64)
    rows = torch.zeros(3, dtype=torch.int64)
    found = L1().vertex(x, g, rows, 1, 0.4)
    torch.testing.assert_close(found, x + torch.tensor([-0.1, 0.3, 0.0]).double(), rtol=0, atol=1e-5)

"""What the tests of attacks share: threat models, labels, losses by the definition."""

import scipy.sparse
import torch
from test_nn import L, dense_forward

import mach_ext
from mach_ext.attack import L1, L2, Dense, Insert, Support

THREATS = [Support(), Insert(m=3), L2(), L1(), Dense(), Dense(nonnegative=True), Support(nonnegative=False)]


def labels_of(n=7, seed=1):
    Y = scipy.sparse.random(n, L, density=0.05, format="csr", random_state=seed)
    Y.data[:] = 1
    return Y


def true_losses(model, X, Y):
    """Sum over buckets of the cross-entropy, by the definition, on a dense matrix."""
    targets = torch.zeros(X.shape[0], model.num_repetitions, model.num_buckets, dtype=torch.float64)
    for n, label in zip(*Y.nonzero(), strict=True):
        targets[n, torch.arange(model.num_repetitions), model.hash.buckets[:, label].long()] = 1
    double = mach_ext.MACH(**model.configuration()).double()
    double.load_parameters({k: v.double() for k, v in model.state_dict().items()})
    double.requires_grad_(False)
    x = X if isinstance(X, torch.Tensor) else torch.from_numpy(X.toarray())
    logits = dense_forward(double, x.double())
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum((1, 2))

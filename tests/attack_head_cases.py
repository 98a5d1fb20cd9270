"""What the tests of attacks on heads share: heads, encoders with inputs, labels, losses by the definition."""

import scipy.sparse
import torch
from helpers import random_hash
from torch import nn

import mach_ext
from mach_ext import functional as F
from mach_ext.attack import L1, L2, Dense, Support

N, L, R, B, H, T, E = 7, 90, 4, 20, 16, 5, 8
THREATS = [Dense(), Support(nonnegative=False), L2(nonnegative=False), L1(nonnegative=False)]
NAMES = ("dense", "support", "l2", "l1")
GRID = [0.0, 0.01, 0.3]


def head_of(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    hash = random_hash(generator, L, B, R)
    head = mach_ext.MACHHead(H, L, R, B, hash=hash, **options)
    head.reset_parameters(generator)
    return head


class Pooled(nn.Module):
    """A TransformerEncoder on embeddings [N, T, E], pooled: hidden units [N, H]."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(E, 2, 16, dropout=0.5, batch_first=True)
        self.body, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(E, H)

    def forward(self, x):
        return self.out(self.body(x).mean(1))


def mlp(width=12):
    return nn.Sequential(
        nn.Linear(width, 24), nn.BatchNorm1d(24), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(24, H)
    )


def build(name, seed=0):
    """An encoder in training mode, and inputs for it."""
    torch.manual_seed(seed)
    if name == "mlp":
        return mlp(), torch.randn(N, 12)
    if name == "linear":
        return nn.Linear(12, H), torch.randn(N, 12)
    return Pooled(), torch.randn(N, T, E)


ENCODERS = ("linear", "mlp", "transformer")


def labels_of(n=N, seed=1):
    Y = scipy.sparse.random(n, L, density=0.05, format="csr", random_state=seed)
    Y.data[:] = 1
    return Y


def csr(Y):
    return torch.from_numpy(Y.indices).long(), torch.from_numpy(Y.indptr).long()


def losses(head, hidden, Y):
    """The sum over buckets of each document's cross-entropy."""
    rows = [F.bucket_bce(hidden[n : n + 1], head.bucket_weight, head.bucket_bias, *csr(Y[n]), head.hash)
            for n in range(len(hidden))]  # fmt: skip
    return head.num_repetitions * torch.stack(rows)


def slope(head, encoder, x, Y):
    """The gradient of the loss to inputs, by autograd."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(head, encoder(x), Y).sum(), x)
    return gradient


def state_of(*modules):
    return [(t.clone(), t.requires_grad, t.grad) for m in modules for t in (*m.parameters(), *m.buffers())], [
        m.training for module in modules for m in module.modules()
    ]

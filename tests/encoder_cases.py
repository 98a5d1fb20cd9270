"""What the tests of heads and encoders share: a head, encoders, inputs, the definition of a score."""

import numpy as np
import torch
from torch import nn

import mach_ext

L, R, B, H, T, E = 90, 4, 32, 12, 5, 8
LABELS = [3, 0, 89]


def head_of(**options):
    head = mach_ext.MACHHead(H, L, R, B, seed=1, **options)
    with torch.no_grad():
        head.bucket_bias.normal_(generator=torch.Generator().manual_seed(2))
    return head


class Tokens(nn.Module):
    """A transformer of embeddings [N, T, E], with dropout and batch normalization."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(E, 2, 16, dropout=0.5, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)
        self.last = nn.Linear(E, H)
        self.norm = nn.BatchNorm1d(H)

    def forward(self, x):
        return self.norm(self.last(self.layers(x).mean(1)))


def tokens_encoder():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = Tokens()
        encoder.norm.running_mean.normal_()
        return encoder


def mlp(hidden=H, **options):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(E, 16), nn.Tanh(), nn.Linear(16, hidden), **options)


def deep():
    """An encoder that DeepLift takes: each non-linearity is a module that is used once."""
    return nn.Sequential(mlp(), nn.ReLU(), nn.Dropout(0.5), nn.Linear(H, H))


def uniform(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, BASELINE, DENSE = uniform(1, T, E), uniform(1, T, E, seed=6), uniform(1, E)
HIDDEN = uniform(3, H).relu()


def plain_scores(head, hidden, score):
    """The definition, [N, L], on hidden units [N, H] or [N, R, H]."""
    subscripts = "nrh,rhb->nrb" if hidden.dim() == 3 else "nh,rhb->nrb"
    logits = torch.einsum(subscripts, hidden, head.bucket_weight) + head.bucket_bias
    votes = torch.stack([logits[:, r, bucket.long()] for r, bucket in enumerate(head.hash.buckets)], 2)
    if score == "logit" or head.merge == "mean_logit":
        return votes.mean(2)
    votes = votes.sigmoid()
    if head.merge == "mean_logprob":
        return votes.log().mean(2)
    if head.merge == "median_prob":
        return votes.sort(2).values[:, :, (R - 1) // 2 : R // 2 + 1].mean(2)
    return votes.mean(2) if head.merge == "mean_prob" else votes.min(2).values


def reference(head, encoder, x, baseline, labels, n_steps, score="logit"):
    """Integrated Gradients of each label by itself, [m, *shape], by autograd alone."""
    positions, weights = np.polynomial.legendre.leggauss(n_steps)
    at = torch.from_numpy((positions + 1) / 2).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    weight = torch.from_numpy(weights / 2).to(x.dtype).view(at.shape)
    rows = []
    for label in labels:
        points = (baseline + at * (x - baseline)).requires_grad_()
        (gradient,) = torch.autograd.grad(plain_scores(head, encoder(points), score)[:, label].sum(), points)
        rows.append((x - baseline)[0] * (weight * gradient).sum(0))
    return torch.stack(rows).detach().numpy()

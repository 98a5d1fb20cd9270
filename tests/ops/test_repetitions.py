"""bucket_bce_by_repetition: one repetition's logits at a time, the loss and gradients of bucket_bce."""

import pytest
import torch
from helpers import random_hash

from mach_ext import functional as F

N, H, B, L, R = 5, 3, 7, 20, 4


@pytest.mark.parametrize("shared", [True, False])
def test_it_is_the_loss_and_its_gradients(generator, shared):
    hash = random_hash(generator, L, B, R)
    hidden = torch.randn(*((N, H) if shared else (N, R, H)), generator=generator, requires_grad=True)
    weight = torch.randn(R, H, B, generator=generator, requires_grad=True)
    Y = torch.randint(L, (2 * N,), generator=generator), torch.arange(0, 2 * N + 1, 2)
    expected = F.bucket_bce(hidden, weight, None, *Y, hash, validate=False)
    expected.backward()

    buffer, total, numbers = torch.empty(N, B), 0.0, []
    grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight)

    def logits(r):  # in memory that all repetitions share
        return torch.mm(F.of_repetition(hidden, r), weight[r], out=buffer)

    with torch.no_grad():
        for r, z, losses in F.bucket_bce_by_repetition(logits, hash.buckets, *Y, 1 / (N * R), True):
            assert z is buffer
            assert losses.dtype == torch.float64
            total += losses.sum()
            F.of_repetition(grad_hidden, r).addmm_(z, weight[r].T)
            torch.mm(F.of_repetition(hidden, r).T, z, out=grad_weight[r])
            numbers.append(r)
    assert numbers == list(range(R))
    torch.testing.assert_close((total / (N * R)).float(), expected.detach())
    torch.testing.assert_close(grad_hidden, hidden.grad)
    torch.testing.assert_close(grad_weight, weight.grad)


def test_without_a_gradient_the_logits_stay(generator):
    hash = random_hash(generator, L, B, R)
    scores = torch.randn(R, N, B, generator=generator)
    Y = torch.zeros(N, dtype=torch.int64), torch.arange(N + 1)
    for r, z, _ in F.bucket_bce_by_repetition(lambda r: scores[r].clone(), hash.buckets, *Y, 1.0, False):
        assert torch.equal(z, scores[r])

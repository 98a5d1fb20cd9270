"""A training step of MACH's head, beside a dense output layer and beside the same head in plain PyTorch.

A step is the loss and the gradients to the hidden units and to all parameters. The optimizer is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import Floor, Target, note, peak_megabytes
from inputs import label_hash
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import mach_ext

N, H, L, LABELS = 64, 384, 50_000, 5
# `fit` takes the first for so many labels. The second is what MACHHead takes when no size is named.
SIZES = {"R16-B2048": (16, 2048), "R16-B512": (16, 512)}
OURS, PLAIN, DENSE = "mach_ext", "torch, MACH", "torch, dense"


def batch() -> tuple[Tensor, Tensor]:
    """Hidden units [N, H] and label ids [N, LABELS], in a row none twice."""
    generator = torch.Generator().manual_seed(0)
    step = L // LABELS
    labels = torch.randint(step, (N, LABELS), generator=generator) + step * torch.arange(LABELS)
    return torch.randn(N, H, generator=generator).requires_grad_(), labels


def head(R: int, B: int) -> mach_ext.MACHHead:
    return mach_ext.MACHHead(H, L, R, B, hash=label_hash(L, R, B))


def step(loss: Callable[[], Tensor], leaves: list[Tensor]) -> Tensor:
    """Loss and backward pass. The gradients of the step before are freed first, as zero_grad does."""
    for leaf in leaves:
        leaf.grad = None
    value = loss()
    value.backward()
    return value.detach()


def ours(R: int, B: int) -> Callable[[], Tensor]:
    hidden, labels = batch()
    module = head(R, B)
    csr = labels.flatten(), torch.arange(0, N * LABELS + 1, LABELS)
    return functools.partial(step, lambda: module.loss(hidden, csr), [hidden, *module.parameters()])


def plain(R: int, B: int) -> Callable[[], Tensor]:
    """The same weights, logits by einsum, and dense targets [N, R, B]."""
    hidden, labels = batch()
    module = head(R, B)
    weight, bias = module.bucket_weight, module.bucket_bias
    buckets = module.hash.buckets.long()  # [R, L]

    def loss() -> Tensor:
        logits = torch.einsum("nh,rhb->nrb", hidden, weight) + bias
        targets = torch.zeros(N, R, B).scatter_(2, buckets[:, labels].transpose(0, 1), 1.0)
        return binary_cross_entropy_with_logits(logits, targets, reduction="sum") / (N * R)

    return functools.partial(step, loss, [hidden, weight, bias])


def dense(R: int, B: int) -> Callable[[], Tensor]:
    """A logit for each label, without any hash. R and B change nothing."""
    hidden, labels = batch()
    layer = nn.Linear(H, L)

    def loss() -> Tensor:
        targets = torch.zeros(N, L).scatter_(1, labels, 1.0)
        return binary_cross_entropy_with_logits(layer(hidden), targets, reduction="sum") / N

    return functools.partial(step, loss, [hidden, *layer.parameters()])


STEPS = {OURS: ours, PLAIN: plain, DENSE: dense}


@pytest.mark.parametrize("size", SIZES)
def test_step(compare: Any, size: str) -> None:
    R, B = SIZES[size]
    providers = {name: make(R, B) for name, make in STEPS.items()}
    torch.testing.assert_close(providers[OURS](), providers[PLAIN]())
    for one, other in zip(providers[OURS].args[1], providers[PLAIN].args[1], strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)
    compare(
        "training step of the head",
        providers,
        shape={"N": N, "L": L, "R": R, "B": B, "H": H},
        floor=Floor(
            "the three matrix products of the buckets; their weights read twice and the gradient written",
            bytes=3 * 4 * R * H * B,
            flops=6 * N * H * R * B,
        ),
        targets=[Target(OURS, PLAIN, 1.0), Target(OURS, DENSE, None)],
        budget=10.0,
        rounds=(5, 200),
    )


def work(name: str, R: int, B: int) -> Callable[[], Any]:
    """A step of a provider. A step of two repetitions came first, so that libraries are there."""
    STEPS[OURS](2, 64)()
    STEPS[PLAIN](2, 64)()
    return STEPS[name](R, B)


@pytest.mark.parametrize("size", SIZES)
def test_memory(request: Any, size: str) -> None:
    """The peak of a first step beyond the weights: the gradients, logits and targets."""
    R, B = SIZES[size]
    megabytes = {name: peak_megabytes(work, name, R, B) for name in STEPS}
    own = megabytes[OURS]
    numbers = {
        "MB": (own, None),
        f"of {PLAIN}": (own / megabytes[PLAIN], 0.5),
        f"of {DENSE}": (own / megabytes[DENSE], None),
        "of the head's weights": (own / (4e-6 * R * B * (H + 1)), 1.5),
    }
    shape = {"N": N, "L": L, "R": R, "B": B, "H": H}
    note(request, "memory of a step of the head beyond its weights", shape, numbers)

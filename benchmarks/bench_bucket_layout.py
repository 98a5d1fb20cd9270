"""Orders of the bucket weight in memory: what each costs a training step, prediction, votes and explanations.

The parameter is [R, H, B], contiguous. The rows of a repetition's hidden units lie together. The other orders
are [H, R * B], where a hidden unit's row has the buckets of all repetitions, and [R, B, H], the order of
`nn.Linear`. Each order gets the fastest form of the work that we know.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import Floor, Target
from inputs import label_hash

import mach_ext

F = mach_ext.functional
OURS, BY_UNIT, BY_BUCKET = "[R, H, B]", "[H, R*B]", "[R, B, H]"
TARGETS = [Target(OURS, BY_UNIT, None), Target(OURS, BY_BUCKET, None)]
SHAPES = [(16, 512, 1000), (32, 256, 4096)]  # R, H, B
HOW = "the bytes of the weight that the work needs, once, and the sums of its products"
ACTIVE = 0.3  # Share of the hidden units that are above 0.


@functools.cache
def weights(R: int, H: int, B: int) -> dict[str, torch.Tensor]:
    weight = torch.empty(R, H, B).normal_(0, H**-0.5, generator=torch.Generator().manual_seed(0))
    return {
        OURS: weight,
        BY_UNIT: weight.transpose(0, 1).reshape(H, R * B),
        BY_BUCKET: weight.mT.contiguous(),
    }


def hidden_units(N: int, H: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(N, H, generator=generator)
    return drawn.where(torch.rand(N, H, generator=generator) < ACTIVE, 0)


def shape_of(N: int, R: int, H: int, B: int, **more: int) -> dict[str, int]:
    return {"N": N, "R": R, "H": H, "B": B, **more}


@pytest.mark.parametrize(("R", "H", "B"), SHAPES)
def test_step(compare: Any, R: int, H: int, B: int) -> None:
    """The three products of a training step: logits, the gradient to hidden units, and that to the weight."""
    N, W = 256, weights(R, H, B)
    h, g, grad_hidden = hidden_units(N, H), torch.randn(N, B), torch.zeros(N, H)
    z, grad_weight = torch.empty(N, B), torch.empty(H * B)

    def by_repetition(order: str) -> Callable[[], None]:
        matrices = W[order] if order == OURS else W[order].mT  # [R, H, B]

        def step() -> None:
            for w in matrices:
                torch.mm(h, w, out=z)
                grad_hidden.addmm_(g, w.T)
                if order == OURS:
                    torch.mm(h.T, g, out=grad_weight.view(H, B))
                else:
                    torch.mm(g.T, h, out=grad_weight.view(B, H))

        return step

    group = max(1, (1 << 20) // (N * B))  # repetitions whose logits take 4 MiB

    def in_groups() -> None:
        for w in W[BY_UNIT].split(group * B, 1):
            product = torch.mm(h, w)
            grad_hidden.addmm_(product, w.T)
            torch.mm(h.T, product)

    compare(
        "layout, three products of a step",
        {OURS: by_repetition(OURS), BY_UNIT: in_groups, BY_BUCKET: by_repetition(BY_BUCKET)},
        shape=shape_of(N, R, H, B),
        floor=Floor(HOW, bytes=12.0 * R * H * B, flops=6.0 * N * R * H * B),
        targets=TARGETS,
    )


@pytest.mark.parametrize(("R", "H", "B"), SHAPES)
def test_one_document(compare: Any, R: int, H: int, B: int) -> None:
    """The logits of a document. Only two of the orders let a product skip the units that are 0."""
    W, h = weights(R, H, B), hidden_units(1, H)
    units = h[0].nonzero()[:, 0]
    active = h[0, units], units, torch.tensor([0, len(units)])
    flat = W[BY_BUCKET].view(R * B, H)
    pair = torch.cat([h, torch.zeros_like(h)])  # BLAS is faster with two columns than with one.
    compare(
        "layout, logits of one document",
        {
            OURS: lambda: F.bucket_logits(h, W[OURS], None),
            BY_UNIT: lambda: h @ W[BY_UNIT],
            BY_BUCKET: lambda: (flat @ pair.T)[:, 0].contiguous(),
            f"{OURS}, active units": lambda: F.bucket_forward(*active, None, None, W[OURS], None),
            f"{BY_UNIT}, active units": lambda: F.sparse_linear(*active, W[BY_UNIT]),
        },
        shape=shape_of(1, R, H, B),
        floor=Floor(HOW, bytes=4.0 * R * len(units) * B),
        targets=[*TARGETS, Target(f"{OURS}, active units", f"{BY_UNIT}, active units", None)],
    )


@pytest.mark.parametrize(("R", "H", "B"), SHAPES)
def test_label_logits(compare: Any, R: int, H: int, B: int) -> None:
    """`label_logits`: the R logits of 5 labels of each document."""
    N, m, L, W, h = 256, 5, 100_000, weights(R, H, B), hidden_units(256, H)
    hash = label_hash(L, R, B)
    labels = torch.randint(L, (N, m), generator=torch.Generator().manual_seed(2))
    asked = hash.buckets.long()[:, labels]  # [R, N, m]

    def gathered(order: str) -> torch.Tensor:
        parts = []
        for r in range(R):
            if order == BY_BUCKET:
                parts.append(torch.bmm(W[order][r][asked[r]], h.unsqueeze(2))[..., 0])
            else:
                columns = W[order][:, r * B : (r + 1) * B].index_select(1, asked[r].flatten())
                parts.append((columns.view(H, N, m) * h.T.unsqueeze(2)).sum(0))
        return torch.stack(parts, 2)

    expected = F.label_logits(h, W[OURS], None, hash, labels)
    assert all(torch.allclose(gathered(order), expected, atol=1e-4) for order in (BY_UNIT, BY_BUCKET))
    compare(
        "layout, label_logits, 5 labels a document",
        {
            OURS: lambda: F.label_logits(h, W[OURS], None, hash, labels, validate=False),
            BY_UNIT: lambda: gathered(BY_UNIT),
            BY_BUCKET: lambda: gathered(BY_BUCKET),
        },
        shape=shape_of(N, R, H, B, m=m),
        floor=Floor(HOW, bytes=4.0 * R * H * min(B, N * m), flops=2.0 * N * m * R * H),
        targets=TARGETS,
    )


@pytest.mark.parametrize(("R", "H", "B"), SHAPES)
def test_columns(compare: Any, R: int, H: int, B: int) -> None:
    """What an exact attribution reads of the weight: the bucket columns of 100 labels."""
    m, W = 100, weights(R, H, B)
    buckets = label_hash(100_000, R, B).buckets.long()[:, :m]  # [R, m]
    flat = (buckets + B * torch.arange(R)[:, None]).flatten()
    compare(
        "layout, bucket columns of 100 labels",
        {
            OURS: lambda: [w.index_select(1, b) for w, b in zip(W[OURS], buckets, strict=True)],
            BY_UNIT: lambda: W[BY_UNIT].index_select(1, flat),
            BY_BUCKET: lambda: W[BY_BUCKET].view(R * B, H).index_select(0, flat),
        },
        shape=shape_of(1, R, H, B, m=m),
        floor=Floor(HOW, bytes=4.0 * R * H * m),
        targets=TARGETS,
    )

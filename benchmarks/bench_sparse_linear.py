"""sparse_linear beside PyTorch and SciPy: forward, gradient to the values, backward with a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from harness import Floor, Part, Target
from inputs import documents
from torch import Tensor
from torch.nn.functional import embedding_bag

import mach_ext
from mach_ext import _ops
from mach_ext import functional as F


def weight_of(indices: Tensor, D: int, M: int) -> Tensor:
    """Weight [D, M], random in the rows that occur. The others are never read and need no memory."""
    weight = torch.zeros(D, M)
    rows = indices.unique().long()
    for block in rows.split(1 << 12):
        weight[block] = torch.randn(len(block), M, generator=torch.Generator().manual_seed(int(block[0])))
    return weight


def floor(N: int, nnz: int, M: int, unique: int, row_bytes: float, how: str) -> Floor:
    return Floor(
        f"documents, output or its gradient, {how}, once; N x nnz x M products, 16 a cycle",
        bytes=unique * row_bytes + 4 * N * M + 8 * N * nnz,
        cycles=N * nnz * M / 16,
    )


# ------------------------------------------------------------------------------------------------- forward

# N, non-zeros a document, D, M, Zipf exponent
FORWARD = [
    (1, 75, 100_000, 64, 0.8),
    (16, 75, 100_000, 64, 0.8),
    (256, 75, 100_000, 512, 0.8),
    (256, 75, 100_000, 512, 0.0),
    (256, 75, 100_000, 4096, 0.8),
    (256, 700, 100_000, 512, 0.8),
    (256, 700, 100_000, 512, 0.0),
    (256, 75, 136_000, 8192, 0.8),
]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", FORWARD, ids=lambda s: "x".join(map(str, s)))
def test_forward(compare, shape, dtype):
    N, nnz, D, M, exponent = shape
    values, indices, indptr = X = documents(N, nnz, D, exponent)
    wide = weight_of(indices, D, M)
    weight = wide.to(dtype)
    matrix = torch.sparse_csr_tensor(indptr, indices, values, (N, D), check_invariants=False)
    scipy_matrix = scipy.sparse.csr_matrix((values.numpy(), indices.numpy(), indptr.numpy()), (N, D))
    scipy_weight = wide.numpy()
    providers: dict[str, Callable[[], Any]] = {
        "mach_ext": lambda: F.sparse_linear(*X, weight, validate=False),
        "embedding_bag": lambda: bag(X, wide),
        "torch.sparse": lambda: matrix @ wide,
        "SciPy": lambda: scipy_matrix @ scipy_weight,
    }
    if dtype == torch.bfloat16:
        providers["embedding_bag bf16"] = lambda: bag((values.bfloat16(), indices, indptr), weight)
    expected = providers["SciPy"]()
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.2}
    np.testing.assert_allclose(providers["mach_ext"](), expected, **tolerance)
    unique = len(indices.unique())
    size = weight.element_size()
    reuse = len(indices) / unique
    targets = [Target("mach_ext", "embedding_bag", 1.5 if size == 2 or reuse >= 2.5 else 1.0)]
    if size == 2:  # torch's form with values and output in bf16, too: shown beside
        targets.append(Target("mach_ext", "embedding_bag bf16", None))
    with torch.no_grad():
        compare(
            f"sparse_linear {'fp32' if size == 4 else 'bf16 weights'}",
            providers,
            shape=dict(zip(("N", "nnz", "D", "M", "zipf"), shape, strict=True)),
            floor=floor(N, nnz, M, unique, size * M, "rows that occur"),
            targets=targets,
            reuse=reuse,
        )


def bag(X: tuple[Tensor, Tensor, Tensor], weight: Tensor) -> Tensor:
    values, indices, indptr = X
    return embedding_bag(
        indices, weight, indptr, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def test_linear_mach(compare):
    """All repetitions of linear MACH at eurlex57k's size: weights [16, 56758, 512], far beyond the cache."""
    N, nnz, D, R, B = 256, 245, 56_758, 16, 512
    X = documents(N, nnz, D, 0.8)
    weight = torch.randn(R, D, B)
    unique = len(X[1].unique())
    torch.testing.assert_close(
        F.bucket_forward(*X, None, None, weight, None)[:, 1], bag(X, weight[1]), rtol=1e-4, atol=1e-4
    )
    with torch.no_grad():
        compare(
            "sparse_linear, linear MACH",
            {
                "mach_ext": lambda: F.bucket_forward(*X, None, None, weight, None, validate=False),
                "embedding_bag": lambda: [bag(X, w) for w in weight],
            },
            shape={"N": N, "nnz": nnz, "D": D, "R": R, "B": B, "zipf": 0.8},
            floor=floor(N, nnz, R * B, unique, 4 * R * B, "rows that occur"),
            targets=[Target("mach_ext", "embedding_bag", 1.0)],
        )


# --------------------------------------------------------------------------------- gradient to the values

GRAD_VALUES = [
    (16, 75, 100_000, 64, 0.8),
    (256, 75, 100_000, 512, 0.8),
    (256, 75, 100_000, 4096, 0.8),
    (256, 700, 100_000, 512, 0.8),
]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("shape", GRAD_VALUES, ids=lambda s: "x".join(map(str, s)))
def test_grad_values(compare, shape):
    """A sampled dense-dense product: for each non-zero (n, d) the product of gradient[n] and weight[d].

    PyTorch's forms: sampled_addmm, what embedding_bag's backward calls, and rows gathered, so many documents
    at a time that they stay in the cache.
    """
    N, nnz, D, M, exponent = shape
    values, indices, indptr = documents(N, nnz, D, exponent)
    weight, gradient = weight_of(indices, D, M), torch.randn(N, M)
    pattern = torch.sparse_csr_tensor(
        indptr, indices, torch.zeros_like(values), (N, D), check_invariants=False
    )
    bags = torch.arange(N, dtype=torch.int32).repeat_interleave(nnz)
    block = max(1, (1 << 19) // (nnz * M))  # documents: 2 MB of rows

    def gathered() -> Tensor:
        parts = zip(indices.view(N, nnz).split(block), gradient.split(block), strict=True)
        return torch.cat([torch.bmm(weight[i], g[:, :, None]).flatten() for i, g in parts])

    providers: dict[str, Callable[[], Tensor]] = {
        "mach_ext": lambda: _ops.sparse_linear_grad_values(gradient[:, None], indices, indptr, weight[None]),
        "torch sampled_addmm": lambda: torch.sparse.sampled_addmm(
            pattern, gradient, weight.t(), beta=0.0
        ).values(),
        "torch embedding_bag": lambda: torch.ops.aten._embedding_bag_per_sample_weights_backward(
            gradient, weight, indices, indptr[:-1], bags, 0
        ),
        "torch gather + bmm": gathered,
    }
    expected = gathered()
    for name in list(providers):
        try:
            got = providers[name]()
        except RuntimeError as error:  # sampled_addmm needs MKL
            print(f"{name}: {error}")
            del providers[name]
            continue
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    unique = len(indices.unique())
    with torch.no_grad():
        compare(
            "sparse_linear, gradient to the values",
            providers,
            shape=dict(zip(("N", "nnz", "D", "M", "zipf"), shape, strict=True)),
            floor=floor(N, nnz, M, unique, 4 * M, "rows that occur"),
            targets=[Target("mach_ext", "torch", None)],
            reuse=len(indices) / unique,
        )


# ------------------------------------------------------------------------------------ backward and optimiser

BACKWARD = {(256, 75, 100_000, 512): 8.0, (256, 75, 136_000, 2048): 4.0, (256, 700, 100_000, 512): 6.0}


@pytest.mark.parametrize("shape", BACKWARD, ids=lambda s: "x".join(map(str, s)))
def test_backward_and_step(compare, shape):
    """From the gradient of the output to the weight after a SparseAdam step. The forward is not timed.

    "mach_ext fused" is what `fit` does: each row is stepped when its gradient is known. The order of the
    batch by feature, which the forward has at hand in `fit`, is computed in the timed part.
    """
    N, nnz, D, M = shape
    values, indices, indptr = X = documents(N, nnz, D, 0.8)
    gradient = torch.randn(N, M)
    plain, fused, theirs = (torch.nn.Parameter(weight_of(indices, D, M)) for _ in range(3))
    plain_optimizer = mach_ext.optim.SparseAdam([plain], lr=1e-3)
    fused_optimizer = mach_ext.optim.SparseAdam([fused], lr=1e-3)
    their_optimizer = torch.optim.SparseAdam([theirs], lr=1e-3)

    def plain_forward() -> Tensor:
        plain_optimizer.zero_grad()
        return F.sparse_linear(*X, plain, sparse_grad=True, validate=False)

    def plain_step(out: Tensor) -> None:
        out.backward(gradient)
        plain_optimizer.step()

    def fused_step() -> None:
        order = _ops.feature_order(indices, indptr, D)
        fused_optimizer.begin_step()
        fused_optimizer.step_sparse_linear(fused, None, gradient.unsqueeze(1), values, order)

    def their_forward() -> Tensor:
        their_optimizer.zero_grad()
        return embedding_bag(
            indices, theirs, indptr, mode="sum", sparse=True, per_sample_weights=values,
            include_last_offset=True,
        )  # fmt: skip

    def their_step(out: Tensor) -> None:
        out.backward(gradient)
        their_optimizer.step()

    plain_step(plain_forward())
    fused_step()
    their_step(their_forward())
    rows = indices.unique().long()
    for weight in (plain, fused):
        torch.testing.assert_close(weight[rows[:1000]], theirs[rows[:1000]], rtol=1e-3, atol=1e-5)
    compare(
        "backward + SparseAdam step",
        {
            "mach_ext fused": fused_step,
            "mach_ext": Part(plain_step, before=plain_forward),
            "torch": Part(their_step, before=their_forward),
        },
        shape=dict(zip(("N", "nnz", "D", "M"), shape, strict=True)),
        floor=floor(
            N, nnz, M, len(rows), 24 * M, "rows that occur of weight and two moments, read and written"
        ),
        targets=[Target("mach_ext fused", "torch", BACKWARD[shape]), Target("mach_ext", "torch", None)],
        budget=4.0,
    )

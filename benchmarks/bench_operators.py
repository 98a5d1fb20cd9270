"""Operators beside what one would write with PyTorch alone; same inputs, same run."""

import pytest
import torch

import mach_ext
from mach_ext import functional as F


def documents(N, nnz, D, seed=0):
    """Zipf-like features: low ids are frequent."""
    generator = torch.Generator().manual_seed(seed)
    ids = (D * torch.rand(N, nnz, generator=generator) ** 3).long().sort(dim=1).values
    ids = (ids + torch.arange(nnz)).clamp(max=D - 1).flatten()  # mostly distinct within a row
    return torch.rand(N * nnz, generator=generator), ids.int(), torch.arange(0, N * nnz + 1, nnz)


@pytest.mark.parametrize("provider", ["mach_ext", "embedding_bag"])
@pytest.mark.parametrize("shape", [(256, 75, 100_000, 512), (256, 700, 100_000, 512)], ids=str)
def test_sparse_linear(benchmark, record, threads, shape, provider):
    N, nnz, D, M = shape
    values, indices, indptr = documents(N, nnz, D)
    weight = torch.randn(D, M)
    if provider == "mach_ext":
        benchmark(F.sparse_linear, values, indices, indptr, weight, validate=False)
    else:
        offsets = indptr[:-1].int()
        benchmark(
            torch.nn.functional.embedding_bag,
            indices, weight, offsets, mode="sum", per_sample_weights=values,
        )  # fmt: skip
    record(N * nnz * M * 4 + N * M * 4, provider=provider, shape=shape, threads=threads)


@pytest.mark.parametrize("provider", ["mach_ext", "gather+topk"])
@pytest.mark.parametrize("shape", [(64, 31_000, 32, 1000, 5)], ids=str)
def test_merge_topk(benchmark, record, threads, shape, provider):
    N, L, R, B, k = shape
    hash = mach_ext.LabelHash(L, B, R)
    scores = torch.randn(N, R, B)
    buckets = hash.buckets.long()

    def gather():
        total = torch.zeros(N, L)
        for r in range(R):
            total += scores[:, r][:, buckets[r]]
        return (total / R).topk(k)

    benchmark(F.merge_topk, scores, hash, k) if provider == "mach_ext" else benchmark(gather)
    record(provider=provider, shape=shape, threads=threads)

"""Kernels at the sizes of the benchmarks, each launched once or twice, for a profiler to count."""

from __future__ import annotations

import torch
from bench_cuda import group_targets, run_bucket_bce
from inputs import bucket_scores, documents, label_hash

from mach_ext import functional as F

CUDA = torch.device("cuda")


def sparse_linear() -> None:
    values, indices, indptr = (t.to(CUDA) for t in documents(256, 75, 136_000))
    weight = torch.empty(136_000, 8192, dtype=torch.bfloat16, device=CUDA).normal_()
    F.sparse_linear(values, indices, indptr, weight, validate=False)


def scan() -> None:
    L, R, B = 670_000, 16, 2000
    scores = bucket_scores("flat", 256, L, R, B).to(CUDA)
    F.merge_topk(scores, label_hash(L, R, B).to(CUDA), 5)


def bucket_bce() -> None:
    N, G, B = 2048, 2, 2000
    run_bucket_bce(torch.randn(N, G, B, device=CUDA), *group_targets(N, G, B, 670_091))


def bucket_forward() -> None:
    N, H, R, B = 2048, 512, 8, 2000
    hidden = torch.randn(N, H, device=CUDA).to(torch.bfloat16)
    weight = torch.randn(R, B, H, device=CUDA).to(torch.bfloat16).mT
    bias, targets = torch.zeros(R, B, device=CUDA), group_targets(N, R, B, 670_091)
    torch.ops.mach_ext.bucket_forward_bce(hidden, weight, bias, *targets, 1.0)


def main() -> None:
    for function in (bucket_bce, bucket_forward, sparse_linear, scan):
        try:
            function()
            torch.cuda.synchronize()
            print(f"ran {function.__name__}", flush=True)
        except Exception as error:  # the others are still worth counting
            print(f"failed {function.__name__}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()

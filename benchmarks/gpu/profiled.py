"""Three kernels at the sizes of the benchmarks, each launched once, for a profiler to count."""

from __future__ import annotations

import torch
from inputs import bucket_scores, documents, label_hash

from mach_ext import _ops
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
    """Of one repetition or of several at a time: the shape that the operator takes."""
    N, L, B = 2048, 670_091, 2000
    logits = torch.randn(N, B, device=CUDA)
    buckets = torch.randint(B, (L,), device=CUDA, dtype=torch.int32)
    labels = torch.randint(L, (5 * N,), device=CUDA), torch.arange(0, 5 * N + 1, 5, device=CUDA)
    _ops.bucket_bce(logits, buckets, *labels, 1.0, True)


def main() -> None:
    for function in (bucket_bce, sparse_linear, scan):
        try:
            function()
            torch.cuda.synchronize()
            print(f"ran {function.__name__}", flush=True)
        except Exception as error:  # the others are still worth counting
            print(f"failed {function.__name__}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()

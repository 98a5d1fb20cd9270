"""CPU operators without memory: an error that names the operator and the bytes, on any thread."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from mach_ext import _ops

MIB = 2**20
# Freed memory of any size goes back to the system at once, so that the limit is felt.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
TEXT = r"(\w+): not enough memory: (\d+) bytes for (a result|scratch|a table|a contiguous copy)$"


def operators():
    """Calls that take many MiB each, of small or shared arguments."""
    g = torch.Generator().manual_seed(0)
    one, many = torch.ones(1), 1 << 20
    N, nnz = 20_000, 200_000
    values, indices = torch.ones(nnz), torch.randint(1000, (nnz,), generator=g)
    indptr = torch.arange(0, nnz + 1, nnz // N)
    weight = torch.ones(1, 1000, 200)
    grad = one.expand(N, 1, 200)
    order = _ops.feature_order(indices, indptr, 1000)
    L, R, B = 100_000, 8, 300
    table = torch.randint(B, (R, L), generator=g, dtype=torch.int32)
    index, scores = _ops.label_index(table, B), torch.randn(100, R, B, generator=g)
    labels = torch.zeros(1, dtype=torch.int64).expand(100, 8000)
    big = torch.zeros(2, many)
    Y = torch.zeros(2, dtype=torch.int64), torch.arange(3)
    hidden = torch.ones(100, 4)
    svm = torch.ones(400_000), torch.zeros(400_000, dtype=torch.int32), torch.arange(400_001)
    solved = torch.zeros(1000, 40), torch.zeros(40)
    svm_labels = torch.zeros(400_000, dtype=torch.int64), torch.arange(400_001)
    into, wide = (torch.zeros(100, 4), torch.zeros(4, 20_000)), torch.ones(4, 20_000)
    narrow = torch.ones(R, 4, B)
    falling = torch.arange(3 * many).flip(0)
    state, counted = [torch.zeros(many, 2) for _ in range(3)], torch.ones(many, 1)
    return {
        "feature_order": lambda: _ops.feature_order(indices, indptr, 1000),
        "sparse_linear": lambda: _ops.sparse_linear(values, indices, indptr, weight, None, True),
        "sparse_linear_grad_values": lambda: _ops.sparse_linear_grad_values(grad, indices, indptr, weight),
        "sparse_linear_grad_weight": lambda: _ops.sparse_linear_grad_weight(
            grad, values, indices, indptr, 50_000
        ),
        "sparse_linear_grad_rows": lambda: _ops.sparse_linear_grad_rows(
            grad, values, indices, indptr, 1000, order
        ),
        "label_logits": lambda: _ops.label_logits(hidden, narrow, None, table, labels),
        "label_logits_grad_weight": lambda: _ops.label_logits_grad_weight(
            one.expand(100, 10, R), hidden, one.expand(R, 4, many // 16), table, labels[:, :10]
        ),
        "bucket_bce": lambda: _ops.bucket_bce(big[:, None], None, table[:1], *Y, 1.0),
        "bucket_svm": lambda: _ops.bucket_svm(*svm, table[0], *svm_labels, 0, 1.0, 0.1, 1, None, *solved),
        "bucket_backward": lambda: _ops.bucket_backward(
            one.expand(100, 20_000), hidden, wide, 1e-3, 10**9, *into,
        ),
        "merge_scores": lambda: _ops.merge_scores(scores, table, labels, "mean"),
        "merge_scores_grad": lambda: _ops.merge_scores_grad(
            one.expand(100, 8000), scores, table, labels, "min"
        ),
        "label_index": lambda: _ops.label_index(table, B),
        "merge_topk": lambda: _ops.merge_topk(scores, table, index, 100, "mean", "scan"),
        "merge_topk of many": lambda: _ops.merge_topk(scores, table, index, 20_000, "mean", "direct"),
        "label_logits_grad_hidden": lambda: _ops.label_logits_grad_hidden(
            one.expand(100, 8000, R), hidden, narrow, table, labels
        ),
        "signs": lambda: _ops.signs(counted, True),
        "check_csr": lambda: _ops.check_csr(None, falling, torch.tensor([0, 3 * many]), 3 * many),
        "sparse_adam": lambda: _ops.sparse_adam(
            state[0], None, one.expand(many, 2), *state[1:], 0.1, 0.9, 0.99, 1e-8
        ),
    }  # fmt: skip


def starve():
    """Each call under ever less memory: how often it went well, and the texts of its errors."""
    outcome = {}
    page = resource.getpagesize()
    for name, call in operators().items():
        good, errors = 0, set()
        for room in (0, 1, 2, 4, 8, 14, 24, 40, 120):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * page
            resource.setrlimit(resource.RLIMIT_AS, (used + room * MIB, resource.RLIM_INFINITY))
            try:
                call()
                good += 1
            except Exception as error:
                errors.add(f"{type(error).__name__}: {error}")
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        call()  # nothing is left behind
        outcome[name] = good, sorted(errors)
    return outcome


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is of Linux")
@pytest.mark.parametrize("threads", [1, 2])
def test_operators_say_how_much_memory_they_lack(threads):
    code = (
        f"import sys, json, torch; sys.path.insert(0, 'tests'); torch.set_num_threads({threads})\n"
        "import test_memory_errors as t; print(json.dumps(t.starve()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (good, errors) in json.loads(done.stdout).items():
        assert good > 0, f"{name} never went well: {errors}"
        assert errors, f"{name} takes too little memory for this test"
        for error in errors:
            match = re.fullmatch("RuntimeError: " + TEXT, error)
            assert match, f"{name}: {error}"
            assert match[1] == name.split()[0]
            assert int(match[2]) > 0

"""merge_scores and merge_topk: arguments that are at fault."""

import pytest
import torch
from helpers import (
    random_hash,
)

from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")


SCORES = torch.zeros(2, 3, 4)


HASH = random_hash(torch.Generator().manual_seed(1), 9, 4, 3)


COMMON_ERRORS = [
    (TypeError, r"scores must be a torch.Tensor, got list", {"scores": [1.0]}),
    (TypeError, r"scores must be float32 or float64, got int32", {"scores": SCORES.int()}),
    (ValueError, r"scores must have 3 dimension\(s\), got shape \[3, 4\]", {"scores": SCORES[0]}),
    (ValueError, r"hash has R=3 repetitions and B=4 buckets, .* have R=2, B=4", {"scores": SCORES[:, 1:]}),
    (ValueError, r"hash has R=3 repetitions and B=4 buckets, .* have R=3, B=3", {"scores": SCORES[..., 1:]}),
    (TypeError, r"hash must be a mach_ext.LabelHash, got Tensor", {"hash": HASH.buckets}),
    (ValueError, r"hash is on meta, the tensors on cpu; use hash.to\('cpu'\)", {"hash": HASH.to("meta")}),
    (ValueError, r"merge must be one of mean, min, median, got 'max'", {"merge": "max"}),
]


LABEL_ERRORS = [
    (TypeError, r"labels must be int32 or int64, got bool", {"labels": torch.tensor([True])}),
    (
        ValueError,
        r"labels must be \[m\] or \[N=2, m\], got \[3, 1\]",
        {"labels": torch.zeros(3, 1, dtype=torch.int64)},
    ),
    (ValueError, r"labels must be in \[0, L=9\), got 9", {"labels": torch.tensor([0, 9])}),
    (ValueError, r"labels must be in \[0, L=9\), got -2", {"labels": torch.tensor([9, -2])}),
    (
        ValueError,
        r"labels must be on cpu like the other arguments, got meta",
        {"labels": torch.zeros(1, dtype=torch.int64, device="meta")},
    ),
]


K_ERRORS = [
    (TypeError, r"k must be an int, got float", {"k": 2.0}),
    (TypeError, r"k must be an int, got bool", {"k": True}),
    (ValueError, r"k must be in 0 ... L=9, got 10", {"k": 10}),
    (ValueError, r"k must be in 0 ... L=9, got -1", {"k": -1}),
]


@pytest.mark.parametrize(("error", "message", "wrong"), COMMON_ERRORS + LABEL_ERRORS)
def test_scores_errors(error, message, wrong):
    with pytest.raises(error, match=f"^merge_scores: {message}"):
        F.merge_scores(**{"scores": SCORES, "hash": HASH, "labels": torch.tensor([0]), **wrong})


@pytest.mark.parametrize(("error", "message", "wrong"), COMMON_ERRORS + K_ERRORS)
def test_topk_errors(error, message, wrong):
    with pytest.raises(error, match=f"^merge_topk: {message}"):
        F.merge_topk(**{"scores": SCORES, "hash": HASH, "k": 3, **wrong})


def test_raw_op_refuses_what_would_leave_its_arrays():
    ops, labels, grad = torch.ops.mach_ext, torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5)
    with pytest.raises(RuntimeError, match=r"merge_scores: merge must be mean, min or median, got max"):
        ops.merge_scores(SCORES, HASH.buckets, labels, "max")
    with pytest.raises(RuntimeError, match=r"merge_scores: buckets must have shape \[2, 9\], got \[3, 9\]"):
        ops.merge_scores(SCORES[:, 1:], HASH.buckets, labels, "mean")
    with pytest.raises(RuntimeError, match=r"merge_scores: scores must be \[N, R, B\] with R >= 1"):
        ops.merge_scores(SCORES[:, :0], HASH.buckets[:0], labels, "mean")
    with pytest.raises(RuntimeError, match=r"merge_scores: labels must be \[N, m\]"):
        ops.merge_scores(SCORES, HASH.buckets, labels[1:], "mean")
    with pytest.raises(RuntimeError, match=r"merge_scores_grad: grad must have shape \[2, 5\], got \[2, 4\]"):
        ops.merge_scores_grad(grad[:, 1:], SCORES, HASH.buckets, labels, "mean")
    with pytest.raises(RuntimeError, match=r"merge_scores_grad: grad must be Float, got Double"):
        ops.merge_scores_grad(grad.double(), SCORES, HASH.buckets, labels, "mean")
    for k in (-1, 10):
        with pytest.raises(RuntimeError, match=rf"merge_topk: needs 0 <= k <= L < 2\^31, got k={k}, L=9"):
            ops.merge_topk(SCORES, HASH.buckets, None, None, None, k, "mean", "auto", None)
    index = HASH.label_index()
    for wrong, message in {
        (index[0], None, None): "codes, list_starts and list_labels come together",
        (index[0].int(), *index[1:]): "codes must be UInt16, got Int",
        (index[0][1:], *index[1:]): r"codes must have shape \[9, 3\], got \[8, 3\]",
        (index[0], index[1][:, 1:], index[2]): r"list_starts must have shape \[3, 5\], got \[3, 4\]",
    }.items():
        with pytest.raises(RuntimeError, match=f"merge_topk: {message}"):
            ops.merge_topk(SCORES, HASH.buckets, *wrong, 3, "mean", "auto", None)
    with pytest.raises(RuntimeError, match="merge_topk: scores must have B >= 1 buckets"):
        ops.merge_topk(SCORES[:, :, :0], HASH.buckets, None, None, None, 3, "mean", "auto", None)
    with pytest.raises(RuntimeError, match="path must be auto, direct, scan or lists, got fast"):
        ops.merge_topk(SCORES, HASH.buckets, *index, 3, "mean", "fast", None)
    with pytest.raises(RuntimeError, match=r"trace must have shape \[2, 3\], got \[1, 3\]"):
        ops.merge_topk(SCORES, HASH.buckets, *index, 3, "mean", "auto", torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"label_index: buckets must be in \[0, B=4\)"):
        ops.label_index(torch.tensor([[0, 4]], dtype=torch.int32), 4)
    with pytest.raises(RuntimeError, match="label_index: needs 1 <= B <= 65536"):
        ops.label_index(HASH.buckets, 65537)

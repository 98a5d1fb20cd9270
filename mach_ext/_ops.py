"""The raw operators: typed callers and fake (meta) kernels, side by side. Private.

Shapes use the project's letters: N documents, D features, R repetitions, B buckets, H hidden units, M output
columns, L labels. m is the number of chosen labels, and U the number of features that occur. Nothing here is
differentiable or checks arguments for users. `mach_ext.functional` does both. `mach_ext._reference` defines
each operator in plain PyTorch under the same name. csrc/ops.cpp holds the schemas.

On CUDA an operator only queues its work. There are two exceptions, because their sizes depend on the data:
`feature_order`, and `sparse_linear_grad_rows` without an `order`. The CPU checks a given `order` in full.
CUDA kernels skip entries of an `order` that are out of range. `bucket_backward`, `bucket_forward_int8`,
`bucket_svm`, `check_csr`, `svm_factor` and `transform_logits` run on the CPU only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mach_ext._libraries import CUDA_FAULT as CUDA_FAULT
from mach_ext._libraries import refuse_cuda

_raw = torch.ops.mach_ext
_fake = torch.library.register_fake


class FeatureOrder(NamedTuple):
    """The non-zeros of a batch grouped by feature, for the operators that take an `order`."""

    features: Tensor  # [U] int64, the features that occur, ascending
    offsets: Tensor  # [U + 1] The entries of feature u are offsets[u] ... offsets[u + 1] - 1.
    positions: Tensor  # [E] index into values / indices, ascending within a feature
    documents: Tensor  # [E] document of each entry


def feature_order(
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    num_features: int,
) -> FeatureOrder:  # E is nnz without the entries that are out of range.
    return FeatureOrder(*_raw.feature_order(indices, indptr, num_features))


@_fake("mach_ext::feature_order")
def _(indices, indptr, num_features):  # type: ignore[no-untyped-def]
    U, E = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    return tuple(indices.new_empty(size, dtype=torch.int64) for size in (U, U + 1, E, E))


def sparse_linear(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    weight: Tensor,  # [R, D, M] or [D, M]
    bias: Tensor | None,  # [R, M] or [M]
    relu: bool,
    order: FeatureOrder | None = None,  # of this batch, if known. The result does not depend on it.
    check: bool = False,  # On the CPU, raise RuntimeError for documents that check_csr refuses.
) -> Tensor:  # [N, R, M] or [N, M]
    out: Tensor = _raw.sparse_linear.default(values, indices, indptr, weight, bias, relu, order, check)
    return out


# The same operator for calls outside graphs. It skips the operator's __call__, which is a Python function.
sparse_linear_now: Callable[..., Tensor] = getattr(
    _raw.sparse_linear.default, "_op", _raw.sparse_linear.default
)


@_fake("mach_ext::sparse_linear")
def _(values, indices, indptr, weight, bias, relu, order=None, check=False):  # type: ignore[no-untyped-def]
    others = (indices, indptr, weight) if bias is None else (indices, indptr, weight, bias)
    same = all(other.device == values.device for other in others)
    torch._check(same, lambda: "sparse_linear: all tensors must be on one device")
    return values.new_empty(indptr.shape[0] - 1, *weight.shape[:-2], weight.shape[-1])


def sparse_linear_grad_values(
    grad: Tensor,  # [N, R, M]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    weight: Tensor,  # [R, D, M]
) -> Tensor:  # [nnz]
    out: Tensor = _raw.sparse_linear_grad_values(grad, indices, indptr, weight)
    return out


@_fake("mach_ext::sparse_linear_grad_values")
def _(grad, indices, indptr, weight):  # type: ignore[no-untyped-def]
    return grad.new_empty(indices.shape[0])


def sparse_linear_grad_weight(
    grad: Tensor,  # [N, R, M]
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    num_features: int,
    order: FeatureOrder | None = None,
) -> Tensor:  # [R, D, M]
    out: Tensor = _raw.sparse_linear_grad_weight(grad, values, indices, indptr, num_features, order)
    return out


@_fake("mach_ext::sparse_linear_grad_weight")
def _(grad, values, indices, indptr, num_features, order=None):  # type: ignore[no-untyped-def]
    return grad.new_empty(grad.shape[1], num_features, grad.shape[2])


def sparse_linear_grad_rows(
    grad: Tensor,  # [N, R, M]
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    num_features: int,
    order: FeatureOrder | None = None,
) -> tuple[Tensor, Tensor]:  # features that occur, ascending [U], and their gradients [R, U, M]
    rows, grads = _raw.sparse_linear_grad_rows(grad, values, indices, indptr, num_features, order)
    return rows, grads


@_fake("mach_ext::sparse_linear_grad_rows")
def _(grad, values, indices, indptr, num_features, order=None):  # type: ignore[no-untyped-def]
    occurring = torch.library.get_ctx().new_dynamic_size()
    rows = indices.new_empty(occurring, dtype=torch.int64)
    return rows, grad.new_empty(grad.shape[1], occurring, grad.shape[2])


def label_logits(
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    bias: Tensor | None,  # [R, B]
    buckets: Tensor,  # [R, L] int32
    labels: Tensor,  # [N, m] int64
) -> Tensor:  # [N, m, R]
    out: Tensor = _raw.label_logits(hidden, weight, bias, buckets, labels)
    return out


@_fake("mach_ext::label_logits")
def _(hidden, weight, bias, buckets, labels):  # type: ignore[no-untyped-def]
    return hidden.new_empty(labels.shape[0], labels.shape[1], weight.shape[0])


def label_logits_grad_hidden(
    grad: Tensor,  # [N, m, R]
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    buckets: Tensor,  # [R, L] int32
    labels: Tensor,  # [N, m] int64
) -> Tensor:  # as hidden
    out: Tensor = _raw.label_logits_grad_hidden(grad, hidden, weight, buckets, labels)
    return out


@_fake("mach_ext::label_logits_grad_hidden")
def _(grad, hidden, weight, buckets, labels):  # type: ignore[no-untyped-def]
    return hidden.new_empty(hidden.shape)


def label_logits_grad_weight(
    grad: Tensor,  # [N, m, R]
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    buckets: Tensor,  # [R, L] int32
    labels: Tensor,  # [N, m] int64
) -> tuple[Tensor, Tensor]:  # [R, H, B], [R, B]
    grad_weight, grad_bias = _raw.label_logits_grad_weight(grad, hidden, weight, buckets, labels)
    return grad_weight, grad_bias


@_fake("mach_ext::label_logits_grad_weight")
def _(grad, hidden, weight, buckets, labels):  # type: ignore[no-untyped-def]
    return weight.new_empty(weight.shape), weight.new_empty(weight.shape[0], weight.shape[2])


def bucket_bce(
    logits: Tensor,  # [N, G, B] of a group of G repetitions, adjacent buckets
    bias: Tensor | None,  # [G, B], added to the logits
    buckets: Tensor,  # [G, L] int32, of the same repetitions
    label_indices: Tensor,  # [label nnz] int64
    label_indptr: Tensor,  # [N + 1]
    scale: float | None,  # Write scale * the gradient to logits + bias, over the logits or into `out`.
    out: Tensor | None = None,  # [N, G, B] bfloat16, adjacent buckets. The logits must be float32.
    grad_bias: Tensor | None = None,  # [G, B], overwritten by the gradient's sum over N, before it is rounded
) -> Tensor:  # [N] float64: each document's loss, summed over the buckets and the group, not scaled
    targets = (buckets, label_indices, label_indptr)
    loss: Tensor = _raw.bucket_bce.default(logits, bias, *targets, scale, out, grad_bias)
    return loss


@_fake("mach_ext::bucket_bce")
def _(  # type: ignore[no-untyped-def]
    logits, bias, buckets, label_indices, label_indptr, scale, out=None, grad_bias=None
):
    return logits.new_empty(logits.shape[0], dtype=torch.float64)


def has_bucket_forward(device: torch.device) -> bool:
    """Return whether the kernels of `bucket_forward` run on a device: a GPU that multiplies bfloat16.

    The CPU has them for tests. Its matrix products are faster.
    """
    return device.type == "cuda" and not CUDA_FAULT and torch.cuda.get_device_capability(device)[0] >= 8


def bucket_forward(
    hidden: Tensor,  # [N, H] or [N, G, H] bfloat16. H is a multiple of 8.
    weight: Tensor,  # [G, H, B] bfloat16 in the memory of [G, B, H]: weight.mT is contiguous.
    bias: Tensor | None,  # [G, B] float32
    transform: str = "none",  # none, sigmoid, logsigmoid
) -> Tensor:  # [N, G, B] float32: of a group of G repetitions, in one launch
    out: Tensor = _raw.bucket_forward(hidden, weight, bias, transform)
    return out


@_fake("mach_ext::bucket_forward")
def _(hidden, weight, bias, transform):  # type: ignore[no-untyped-def]
    return hidden.new_empty(hidden.shape[0], weight.shape[0], weight.shape[2], dtype=torch.float32)


def bucket_forward_int8(
    hidden: Tensor,  # [N, H] or [N, R, H] float32. Negative ones count as 0.
    weight: Tensor,  # [R, tiles, words, 64, 4] int8. Bucket 64 t + i of unit 4 w + j is at [r, t, w, i, j].
    scale: Tensor,  # [R, B] float32
    bias: Tensor | None,  # [R, B] float32
) -> Tensor:  # [N, R, B] float32
    out: Tensor = _raw.bucket_forward_int8(hidden, weight, scale, bias)
    return out


@_fake("mach_ext::bucket_forward_int8")
def _(hidden, weight, scale, bias):  # type: ignore[no-untyped-def]
    return hidden.new_empty(hidden.shape[0], *scale.shape)


def transform_logits(
    logits: Tensor,  # [...], contiguous. Their transform overwrites them.
    transform: str,  # none, sigmoid, logsigmoid
) -> None:  # The bits of an element depend on its logit alone.
    _raw.transform_logits(logits, transform)


@_fake("mach_ext::transform_logits")
def _(logits, transform):  # type: ignore[no-untyped-def]
    return None


class Extremes(NamedTuple):
    """What `merge_topk` on CUDA needs to know of scores [N, R, B], for each document and repetition."""

    high: Tensor  # [N, R] float32: the greatest score; NaN where a score is NaN or +inf
    low: Tensor  # [N, R] float32: a score that only few lie below
    best: Tensor  # [N, R] int32: the first bucket of the greatest score
    peaks: Tensor  # [N, R, (B + 255) // 256 * 4] float32: the greatest scores of groups of 64 buckets


def bucket_forward_extremes(
    hidden: Tensor,  # [N, H] or [N, G, H] bfloat16. H is a multiple of 8.
    weight: Tensor,  # [G, H, B] bfloat16 in the memory of [G, B, H]: weight.mT is contiguous.
    bias: Tensor | None,  # [G, B] float32
    transform: str = "none",  # none, sigmoid, logsigmoid
) -> tuple[Tensor, Extremes]:  # scores [N, G, B] float32, the bits of bucket_forward; in two launches
    scores, *extremes = _raw.bucket_forward_extremes(hidden, weight, bias, transform)
    return scores, Extremes(*extremes)


@_fake("mach_ext::bucket_forward_extremes")
def _(hidden, weight, bias, transform):  # type: ignore[no-untyped-def]
    N, G, B = hidden.shape[0], weight.shape[0], weight.shape[2]
    scores = hidden.new_empty(N, G, B, dtype=torch.float32)
    high, low = scores.new_empty(N, G), scores.new_empty(N, G)
    best = scores.new_empty(N, G, dtype=torch.int32)
    return scores, high, low, best, scores.new_empty(N, G, (B + 255) // 256 * 4)


def bucket_forward_bce(
    hidden: Tensor,  # [N, H] or [N, G, H] bfloat16. H is a multiple of 8.
    weight: Tensor,  # [G, H, B] bfloat16 in the memory of [G, B, H]: weight.mT is contiguous.
    bias: Tensor | None,  # [G, B] float32
    buckets: Tensor,  # [G, L] int32, of the same repetitions
    label_indices: Tensor,  # [label nnz] int64
    label_indptr: Tensor,  # [N + 1]
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    # scale * the gradient to the logits [N, G, B] bfloat16. Each document's loss [N] float64, summed over
    # buckets and repetitions, not scaled. The sums of the unrounded gradient over documents [G, B] float32.
    labels = (buckets, label_indices, label_indptr)
    gradient, loss, grad_bias = _raw.bucket_forward_bce(hidden, weight, bias, *labels, scale)
    return gradient, loss, grad_bias


@_fake("mach_ext::bucket_forward_bce")
def _(hidden, weight, bias, buckets, label_indices, label_indptr, scale):  # type: ignore[no-untyped-def]
    N, G, B = hidden.shape[0], weight.shape[0], weight.shape[2]
    gradient, loss = hidden.new_empty(N, G, B), hidden.new_empty(N, dtype=torch.float64)
    return gradient, loss, hidden.new_empty(G, B, dtype=torch.float32)


def bucket_backward(
    gradient: Tensor,  # [N, B] to the logits of one repetition
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [H, B], of the same repetition. It or its transpose is contiguous, or it is copied.
    negligible: float,  # A rank-one matrix replaces all entries 0 <= gradient < negligible together.
    max_kept: int,  # If more entries than this are to be kept, nothing is done. (`most` in the schema.)
    grad_hidden: Tensor,  # [N, H], added to
    grad_weight: Tensor,  # [H, B], overwritten. It or its transpose is contiguous.
) -> Tensor:  # [] int64: how many entries are kept
    outputs = (grad_hidden, grad_weight)
    kept: Tensor = _raw.bucket_backward(gradient, hidden, weight, negligible, max_kept, *outputs)
    return kept


@_fake("mach_ext::bucket_backward")
def _(gradient, hidden, weight, negligible, max_kept, grad_hidden, grad_weight):  # type: ignore[no-untyped-def]
    return gradient.new_empty((), dtype=torch.int64)


SVM_TILE = 16  # bucket_svm solves so many buckets side by side (kSvmTile in csrc/cpu/bucket_svm.h).


def svm_factor(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz] int32, distinct in a document
    indptr: Tensor,  # [N + 1]
    D: int,
    C: float,
) -> Tensor:  # [D + 1, D + 1] lower triangle, the inverses of its diagonal on the diagonal
    out: Tensor = _raw.svm_factor(values, indices, indptr, D, C)
    return out


@_fake("mach_ext::svm_factor")
def _(values, indices, indptr, D, C):  # type: ignore[no-untyped-def]
    return values.new_empty(D + 1, D + 1)


def bucket_svm(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz] int32, distinct in a document
    indptr: Tensor,  # [N + 1]
    buckets: Tensor,  # [L] int32, of one repetition
    label_indices: Tensor,  # [label nnz] int64
    label_indptr: Tensor,  # [N + 1]
    first: int,  # The SVMs belong to buckets first ... first + M - 1.
    C: float,
    tolerance: float,
    max_passes: int,
    factor: Tensor | None,  # of svm_factor: Newton's method. None: coordinate descent first.
    weight: Tensor,  # [D, M], overwritten
    bias: Tensor,  # [M], overwritten
) -> tuple[Tensor, Tensor]:  # [ceil(M / 16)] of each 16 buckets: passes int64, largest violation float64
    data = (values, indices, indptr, buckets, label_indices, label_indptr)
    out: tuple[Tensor, Tensor] = _raw.bucket_svm(*data, first, C, tolerance, max_passes, factor, weight, bias)
    return out


@_fake("mach_ext::bucket_svm")
def _(values, indices, indptr, buckets, labels, label_indptr, *rest):  # type: ignore[no-untyped-def]
    tiles = -(-rest[-1].shape[0] // SVM_TILE)
    return (
        values.new_empty(tiles, dtype=torch.int64),
        values.new_empty(tiles, dtype=torch.float64),
    )


def merge_scores(
    scores: Tensor,  # [N, R, B]
    buckets: Tensor,  # [R, L] int32
    labels: Tensor,  # [N, m] int64
    merge: str,  # mean, min, median
) -> Tensor:  # [N, m]
    out: Tensor = _raw.merge_scores(scores, buckets, labels, merge)
    return out


@_fake("mach_ext::merge_scores")
def _(scores, buckets, labels, merge):  # type: ignore[no-untyped-def]
    return scores.new_empty(labels.shape)


def merge_scores_grad(
    grad: Tensor,  # [N, m]
    scores: Tensor,  # [N, R, B]
    buckets: Tensor,  # [R, L] int32
    labels: Tensor,  # [N, m] int64
    merge: str,
) -> Tensor:  # [N, R, B]
    out: Tensor = _raw.merge_scores_grad(grad, scores, buckets, labels, merge)
    return out


@_fake("mach_ext::merge_scores_grad")
def _(grad, scores, buckets, labels, merge):  # type: ignore[no-untyped-def]
    return scores.new_empty(scores.shape)


def label_index(
    buckets: Tensor,  # [R, L] int32 in [0, B)
    num_buckets: int,  # B, at most 65,536
) -> tuple[Tensor, Tensor, Tensor]:  # codes [L, R] uint16, list_starts [R, B + 1], list_labels [R, L] int32
    # On CUDA it waits for the device. The codes of a repetition are contiguous there: strides (1, L rounded
    # up to 8).
    codes, list_starts, list_labels = _raw.label_index(buckets, num_buckets)
    return codes, list_starts, list_labels


@_fake("mach_ext::label_index")
def _(buckets, num_buckets):  # type: ignore[no-untyped-def]
    R, L = buckets.shape
    by_repetition = buckets.new_empty(R, (L + 7) // 8 * 8, dtype=torch.uint16)
    return (
        by_repetition.T[:L] if buckets.is_cuda else buckets.new_empty(L, R, dtype=torch.uint16),
        buckets.new_empty(R, num_buckets + 1),
        buckets.new_empty(R, L),
    )


def merge_topk(
    scores: Tensor,  # [N, R, B]
    buckets: Tensor,  # [R, L] int32
    index: tuple[Tensor, Tensor, Tensor] | None,  # label_index(buckets, B). None is slower.
    k: int,
    merge: str,
    path: str = "auto",  # direct, scan or lists forces this path where it is possible
    trace: Tensor | None = None,  # [N, 3] int64, overwritten: path (0, 1, 2), postings, exactly scored labels
    extremes: Extremes | None = None,  # of the scores, if known. CUDA does not look for them then.
) -> tuple[Tensor, Tensor]:  # values [N, k], labels [N, k] int64
    codes, list_starts, list_labels = (None, None, None) if index is None else index
    index_and_k = (codes, list_starts, list_labels, k)
    values, labels = _raw.merge_topk(scores, buckets, *index_and_k, merge, path, trace, extremes)
    return values, labels


@_fake("mach_ext::merge_topk")
def _(scores, buckets, codes, list_starts, list_labels, k, merge, path, trace, extremes=None):  # type: ignore[no-untyped-def]
    shape = (scores.shape[0], k)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


def sparse_adam(
    parameter: Tensor,  # [P, M], changed in place, as are the moments
    rows: Tensor | None,  # [U] int64, unique; None: all P rows
    gradient: Tensor,  # [U, M]
    exp_avg: Tensor,  # [P, M]
    exp_avg_sq: Tensor,  # [P, M]
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    _raw.sparse_adam(parameter, rows, gradient, exp_avg, exp_avg_sq, step_size, beta1, beta2, eps)


@_fake("mach_ext::sparse_adam")
def _(parameter, rows, gradient, exp_avg, exp_avg_sq, step_size, beta1, beta2, eps):  # type: ignore[no-untyped-def]
    return None


def sparse_adagrad(
    parameter: Tensor,  # [P, M], changed in place, as is sum
    rows: Tensor | None,  # [U] int64, unique; None: all P rows
    gradient: Tensor,  # [U, M]
    sum: Tensor,  # [P, M] squared gradients so far
    lr: float,
    eps: float,
) -> None:
    _raw.sparse_adagrad(parameter, rows, gradient, sum, lr, eps)


@_fake("mach_ext::sparse_adagrad")
def _(parameter, rows, gradient, sum, lr, eps):  # type: ignore[no-untyped-def]
    return None


def sparse_linear_adam(
    weight: Tensor,  # [R, D, M], changed in place in the rows that occur, as are the moments
    exp_avg: Tensor,  # [R, D, M]
    exp_avg_sq: Tensor,  # [R, D, M]
    grad: Tensor,  # [N, R, M]
    values: Tensor,  # [nnz]
    order: FeatureOrder,
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    _raw.sparse_linear_adam(weight, exp_avg, exp_avg_sq, grad, values, order, step_size, beta1, beta2, eps)


@_fake("mach_ext::sparse_linear_adam")
def _(weight, exp_avg, exp_avg_sq, grad, values, order, step_size, beta1, beta2, eps):  # type: ignore[no-untyped-def]
    return None


def sparse_linear_adagrad(
    weight: Tensor,  # [R, D, M], changed in place in the rows that occur, as is sum
    sum: Tensor,  # [R, D, M]
    grad: Tensor,  # [N, R, M]
    values: Tensor,  # [nnz]
    order: FeatureOrder,
    lr: float,
    eps: float,
) -> None:
    _raw.sparse_linear_adagrad(weight, sum, grad, values, order, lr, eps)


@_fake("mach_ext::sparse_linear_adagrad")
def _(weight, sum, grad, values, order, lr, eps):  # type: ignore[no-untyped-def]
    return None


def signs(
    gradient: Tensor,  # [N, T], rows contiguous. Overwritten by its signs, 0 for NaN.
    nonnegative: bool,  # -1 becomes 0.
) -> Tensor:  # [N] int64: how many signs are not 0
    counts: Tensor = _raw.signs(gradient, nonnegative)
    return counts


@_fake("mach_ext::signs")
def _(gradient, nonnegative):  # type: ignore[no-untyped-def]
    return gradient.new_empty(gradient.shape[0], dtype=torch.int64)


def check_csr(
    values: Tensor | None,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    num_columns: int,
) -> tuple[int, int, int]:  # fault (0 for none, numbers in csrc/cpu/check_csr.h), row, position
    fault, row, position = _raw.check_csr(values, indices, indptr, num_columns)
    return fault, row, position


def cpu_isa() -> str:
    """Return the instruction set of the CPU kernels: "scalar", "avx2" or "avx512"."""
    return ("scalar", "avx2", "avx512")[_raw.cpu_isa()]


if CUDA_FAULT:
    refuse_cuda(list(globals()))  # Each operator has a caller of the same name here.

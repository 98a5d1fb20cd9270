"""Differentiable functions on flat CSR documents: what a training loop of your own calls.

A batch of N documents is `values [nnz]` (float32 or float64), `indices [nnz]` and `indptr [N + 1]` (int32 or
int64, also mixed), as in SciPy's CSR; labels are `label_indices`, `label_indptr` likewise. On CPU every call
checks its input in full, one pass over the non-zeros: structure, range, duplicates, NaN. `validate=False`
leaves that out, as do CUDA tensors and `torch.compile`; kernels stay inside their arrays all the same, and
an out-of-range index gives NaN, not a plausible number.

Autocast changes nothing here: products are in the dtype of the weights, in the forward and in the backward
pass. Hidden units and bucket scores in bfloat16 or float16, as a layer under autocast gives them, are
widened. Their gradients come back in their own dtype.

The tensors of a `LabelHash` can be written to, so kernels check what they read in them, too. What needs a
bucket outside [0, B) is NaN and passes no gradient on: a label's score or logit, a document's loss. In
`merge_topk` such a label comes after every number. On CPU, with `validate`, a NaN in the result makes a
function look at the hash, and it refuses one with such a bucket: ValueError, with the label. So does
`LabelHash.label_index` when it builds the index.

Notation: N documents, D features, L labels, R repetitions, B buckets, H hidden units, k top-k.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from typing import Any

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import memory_errors
from mach_ext.hashing import LabelHash

MERGES = ("mean", "min", "median")

# ------------------------------------------------------------------------------------------- public API


@memory_errors("pass fewer documents at a time")
def sparse_linear(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    weight: Tensor,  # [D, M]
    bias: Tensor | None = None,  # [M]
    activation: str | None = None,
    sparse_grad: bool = False,
    *,
    validate: bool = True,
) -> Tensor:  # [N, M]
    """Sparse documents times a dense weight: `act(X @ weight + bias)`, X the CSR matrix [N, D].

    Gradients to `values`, `weight` and `bias`. Sums run over a row's non-zeros in their order, so the result
    does not depend on the number of threads.

    Args:
        values: Non-zeros, float32 or float64, [nnz].
        indices: Features, [nnz], unique within a row.
        indptr: Row starts, [N + 1].
        weight: [D, M], the dtype of `values`, or bfloat16, on CUDA also float16, with float32 values (then
            without a gradient).
        bias: [M] or None.
        activation: None or "relu".
        sparse_grad: True: the weight's gradient is a sparse COO tensor of the rows that occur, unique and
            ascending (for `mach_ext.optim`). False: dense.
        validate: False skips the check of the contents.

    Returns:
        [N, M], the dtype of `values`.

    Raises:
        TypeError: Wrong dtype. ValueError: wrong shape, device or contents, unknown activation.

    Example:
        >>> import torch, mach_ext
        >>> values, indices, indptr = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
        >>> weight = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
        >>> mach_ext.functional.sparse_linear(values, indices, indptr, weight)
        tensor([[ 7., 70.]])
    """
    op = "sparse_linear"
    relu = activation == "relu"
    refused = None
    # To check a single document takes as long as the product. On CPU the operator does it, in the same call;
    # only what it refuses is looked at again, for the words.
    try:
        known = (relu or activation is None) and (bias is None or bias.dtype is values.dtype)
        if known and values.is_cpu and weight.dim() == 2 and not torch.compiler.is_compiling():
            if _needs_grad(values, weight, bias):
                return _sparse_linear(values, indices, indptr, weight, bias, relu, sparse_grad, validate)
            return _ops.sparse_linear_now(values, indices, indptr, weight, bias, relu, None, validate)
    except Exception as error:
        refused = error
    _check_documents(op, values, indices, indptr)
    _check_tensor(op, "weight", weight, 2, values)
    _check_bias(op, bias, weight.shape[1:], values)
    _check_activation(op, activation)
    _check_contents(op, values, indices, indptr, weight.shape[0], validate)
    if refused is not None:
        raise refused
    return _sparse_linear(values, indices, indptr, weight, bias, relu, sparse_grad)


@memory_errors("pass fewer documents at a time")
def bucket_logits(
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    bias: Tensor | None,  # [R, B]
) -> Tensor:  # [N, R, B]
    """Bucket logits of the R classifiers: `hidden @ weight[r] + bias[r]` for every r.

    Args:
        hidden: [N, H], shared by the repetitions, or [N, R, H], one encoder each. bfloat16 and float16 are
            widened to the dtype of `weight`, or to float32 where that is narrow, too.
        weight: [R, H, B], the dtype of `hidden`, or bfloat16, on CUDA also float16 (then it is widened one
            repetition at a time, and has no gradient).
        bias: [R, B] or None.

    Returns:
        [N, R, B], the dtype of `hidden` once widened. In memory repetition-major: a view of [R, N, B].

    Raises:
        TypeError: Wrong dtype. ValueError: wrong shape or device.

    Example:
        >>> import torch, mach_ext
        >>> mach_ext.functional.bucket_logits(torch.ones(2, 3), torch.ones(4, 3, 5), torch.zeros(4, 5)).shape
        torch.Size([2, 4, 5])
    """
    op = "bucket_logits"
    hidden = _widened(hidden, weight)
    _check_buckets_weight(op, hidden, weight, bias)
    R = weight.shape[0]
    by_repetition = hidden.expand(R, -1, -1) if hidden.dim() == 2 else hidden.transpose(0, 1)  # [R, N, H]
    if bias is not None:
        bias = bias.to(hidden.dtype)
    if _needs_grad(weight):
        _check_float32_or_64(op, "weight", weight)
    if weight.dtype != hidden.dtype:
        logits: Tensor = _WideningLogits.apply(by_repetition, weight)
        if bias is not None:
            logits = logits + bias.unsqueeze(1)
    elif _needs_grad(hidden, weight, bias):
        logits = _BucketLogits.apply(by_repetition, weight, bias)
    else:
        logits = _bucket_logits(by_repetition, weight, bias)
    return logits.transpose(0, 1)


@memory_errors("pass fewer documents at a time")
def bucket_forward(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    encoder_weight: Tensor | None,  # [D, H], [D, R * H] or None
    encoder_bias: Tensor | None,  # [H], [R * H] or None
    bucket_weight: Tensor,  # [R, H, B]; linear MACH: [R, D, B]
    bucket_bias: Tensor | None,  # [R, B]
    sparse_grad: bool = False,
    *,
    validate: bool = True,
) -> Tensor:  # [N, R, B]
    """Sparse documents to bucket logits: `sparse_linear` with relu, then `bucket_logits`.

    Args:
        values, indices, indptr: Documents, as in `sparse_linear`.
        encoder_weight: [D, H] for a shared encoder; [D, R * H] for independent ones (unit h of repetition r
            is column r * H + h); None for linear MACH, whose `bucket_weight` [R, D, B] takes the documents.
        encoder_bias: [H], [R * H] or None.
        bucket_weight: [R, H, B], or [R, D, B] without an encoder.
        bucket_bias: [R, B] or None.
        sparse_grad: As in `sparse_linear`, for the weight that takes the documents.
        validate: As in `sparse_linear`.

    Returns:
        [N, R, B].

    Example:
        >>> import torch, mach_ext
        >>> X = torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0, 1])
        >>> mach_ext.functional.bucket_forward(*X, None, None, torch.ones(2, 3, 4), None).shape
        torch.Size([1, 2, 4])
    """
    op = "bucket_forward"
    _check_documents(op, values, indices, indptr)
    _check_tensor(op, "bucket_weight", bucket_weight, 3, values)
    if encoder_weight is None:
        if encoder_bias is not None:
            raise ValueError(f"{op}: encoder_bias without encoder_weight (linear MACH has no encoder)")
        _check_bias(op, bucket_bias, (bucket_weight.shape[0], bucket_weight.shape[2]), values, "bucket_bias")
        _check_contents(op, values, indices, indptr, bucket_weight.shape[1], validate)
        return _sparse_linear(values, indices, indptr, bucket_weight, bucket_bias, False, sparse_grad)
    R, H = bucket_weight.shape[0], bucket_weight.shape[1]
    _check_tensor(op, "encoder_weight", encoder_weight, 2, values)
    if encoder_weight.shape[1] not in (H, R * H):
        raise ValueError(
            f"{op}: encoder_weight must be [D, H={H}] or [D, R*H={R * H}] to match bucket_weight "
            f"{list(bucket_weight.shape)}, got {list(encoder_weight.shape)}"
        )
    hidden = sparse_linear(
        values, indices, indptr, encoder_weight, encoder_bias, "relu", sparse_grad, validate=validate
    )
    if encoder_weight.shape[1] != H:
        hidden = hidden.unflatten(1, (R, H))
    return bucket_logits(hidden, bucket_weight, bucket_bias)


@memory_errors("pass fewer documents at a time or fewer labels")
def label_logits(
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    bias: Tensor | None,  # [R, B]
    hash: LabelHash,
    labels: Tensor,  # [m] or [N, m]
    *,
    validate: bool = True,
) -> Tensor:  # [N, m, R]
    """Logits of the R buckets of the labels asked for, and of no other bucket.

    The cost is N * m * R * H, whatever L and B are. Equals `bucket_logits` gathered at the labels' buckets.

    Args:
        hidden, weight, bias: As in `bucket_logits`.
        hash: Label hash with R repetitions and B buckets.
        labels: [m], the same for every document, or [N, m]; int32 or int64.
        validate: False skips the check that labels are in [0, L).

    Returns:
        [N, m, R]. Its mean over R is the labels' score by mean logit.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash(num_labels=100, num_buckets=50, num_repetitions=4)
        >>> mach_ext.functional.label_logits(
        ...     torch.ones(2, 3), torch.ones(4, 3, 50), None, hash, torch.tensor([7, 9])
        ... ).shape
        torch.Size([2, 2, 4])
    """
    op = "label_logits"
    hidden = _widened(hidden, weight)
    _check_buckets_weight(op, hidden, weight, bias)
    weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    _check_hash(op, hash, weight.shape[0], weight.shape[2], hidden.device)
    labels = _documents_labels(op, labels, hidden.shape[0], hash, validate)
    args = (hidden, weight, bias, hash.buckets, labels)
    out: Tensor = _LabelLogits.apply(*args) if _needs_grad(*args) else _ops.label_logits(*args)
    return _checked_answer(out, hash, validate)


@memory_errors("pass fewer documents at a time or fewer labels")
def linear_label_logits(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    weight: Tensor,  # [R, D, B]
    bias: Tensor | None,  # [R, B]
    hash: LabelHash,
    labels: Tensor,  # [m] or [N, m]
    *,
    validate: bool = True,
) -> Tensor:  # [N, m, R]
    """`label_logits` of linear MACH: straight from the sparse documents, only the R * m buckets asked for.

    Args:
        values, indices, indptr: Documents, as in `sparse_linear`.
        weight, bias: [R, D, B], [R, B] or None, the dtype of `values`.
        hash, labels, validate: As in `label_logits`; `validate` covers the documents, too.

    Returns:
        [N, m, R]. Holds nnz * m * R weights for the time of the call.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash(num_labels=100, num_buckets=50, num_repetitions=4)
        >>> X = torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0, 1])
        >>> F = mach_ext.functional
        >>> F.linear_label_logits(*X, torch.ones(4, 3, 50), None, hash, torch.tensor([7])).shape
        torch.Size([1, 1, 4])
    """
    op = "linear_label_logits"
    _check_documents(op, values, indices, indptr)
    _check_tensor(op, "weight", weight, 3, values)
    R, D, B = weight.shape
    _check_bias(op, bias, (R, B), values)
    _check_contents(op, values, indices, indptr, D, validate)
    _check_hash(op, hash, R, B, values.device)
    N = indptr.shape[0] - 1
    labels = _documents_labels(op, labels, N, hash, validate)
    # Not validated, anything may come: what is out of range reads entry 0, counts 0, and ends as NaN.
    features = indices.long()
    known_label, known = (labels >= 0) & (labels < hash.num_labels), (features >= 0) & (features < D)
    position = torch.arange(len(values), device=values.device)
    document = torch.searchsorted(indptr.long().contiguous(), position, right=True).sub(1).clamp(0, N - 1)
    asked = hash.buckets[:, labels.where(known_label, 0)].long().permute(1, 2, 0)  # [N, m, R]
    unknown_bucket = (asked < 0) | (asked >= B)
    asked = asked.masked_fill(unknown_bucket, 0)
    repetition = torch.arange(R, device=values.device)
    terms = weight[repetition, features.where(known, 0)[:, None, None], asked[document]].to(values.dtype)
    out = values.new_zeros(asked.shape)
    out = out.index_add(0, document, values.where(known, 0)[:, None, None] * terms)
    if bias is not None:
        out = out + bias[repetition, asked]
    unknown = torch.zeros(N, dtype=torch.int64, device=values.device).index_add(0, document, (~known).long())
    out = out.masked_fill((~known_label | (unknown > 0)[:, None])[:, :, None] | unknown_bucket, float("nan"))
    return _checked_answer(out, hash, validate)


@memory_errors("pass fewer documents at a time")
def bucket_bce(
    hidden: Tensor,  # [N, H] or [N, R, H]
    weight: Tensor,  # [R, H, B]
    bias: Tensor | None,  # [R, B]
    label_indices: Tensor,  # [label nnz]
    label_indptr: Tensor,  # [N + 1]
    hash: LabelHash,
    *,
    validate: bool = True,
) -> Tensor:  # scalar
    """MACH's loss: binary cross-entropy of all buckets, summed over B, averaged over N and R.

        loss = 1 / (N R) * sum_{n, r} ( sum_b softplus(z[n, r, b]) - sum_{b in P(n, r)} z[n, r, b] )

    with z = `bucket_logits(hidden, weight, bias)` and P(n, r) the *set* of buckets of document n's labels in
    repetition r: two labels in one bucket count once. One repetition at a time: [N, B] is held, never
    [N, R, B]; gradients are computed in the same pass.

    Args:
        hidden, weight, bias: As in `bucket_logits`; weight and bias float32 or float64.
        label_indices, label_indptr: Labels of each document in CSR form, int32 or int64.
        hash: Label hash with R repetitions and B buckets.
        validate: False skips the check of the labels.

    Returns:
        Scalar, the dtype of `weight`.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash(num_labels=100, num_buckets=50, num_repetitions=4)
        >>> hidden, weight = torch.zeros(1, 3), torch.zeros(4, 3, 50)
        >>> Y = torch.tensor([7]), torch.tensor([0, 1])
        >>> mach_ext.functional.bucket_bce(hidden, weight, None, *Y, hash)
        tensor(34.6574)
    """
    op = "bucket_bce"
    hidden = _widened(hidden, weight)
    _check_buckets_weight(op, hidden, weight, bias)
    _check_float32_or_64(op, "weight", weight)
    if bias is not None:
        _check_float32_or_64(op, "bias", bias)
    _check_hash(op, hash, weight.shape[0], weight.shape[2], hidden.device)
    labels = _label_csr(op, label_indices, label_indptr, hidden.shape[0], hidden.device, hash, validate)
    loss: Tensor = _BucketBCE.apply(hidden, weight, bias, *labels, hash.buckets)
    return _checked_answer(loss, hash, validate)


@memory_errors("pass fewer documents at a time")
def linear_bucket_bce(
    values: Tensor,  # [nnz]
    indices: Tensor,  # [nnz]
    indptr: Tensor,  # [N + 1]
    weight: Tensor,  # [R, D, B]
    bias: Tensor | None,  # [R, B]
    label_indices: Tensor,  # [label nnz]
    label_indptr: Tensor,  # [N + 1]
    hash: LabelHash,
    sparse_grad: bool = False,
    *,
    validate: bool = True,
) -> Tensor:  # scalar
    """The loss of `bucket_bce` for linear MACH, straight from the sparse documents.

    One repetition at a time; with z[n, r] = X[n] @ weight[r] + bias[r].

    Args:
        values, indices, indptr: Documents, as in `sparse_linear`.
        weight: [R, D, B]. bias: [R, B] or None. The dtype of `values`.
        label_indices, label_indptr, hash, validate: As in `bucket_bce`.
        sparse_grad: True: the weight's gradient is a sparse COO tensor over (r, feature) of the features that
            occur, unique and ascending.

    Returns:
        Scalar, the dtype of `values`.

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash(num_labels=100, num_buckets=50, num_repetitions=4)
        >>> X = torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0, 1])
        >>> Y = torch.tensor([7]), torch.tensor([0, 1])
        >>> mach_ext.functional.linear_bucket_bce(*X, torch.zeros(4, 3, 50), None, *Y, hash)
        tensor(34.6574)
    """
    op = "linear_bucket_bce"
    _check_documents(op, values, indices, indptr)
    _check_tensor(op, "weight", weight, 3, values)
    _check_float32_or_64(op, "weight", weight)
    R, D, B = weight.shape
    _check_bias(op, bias, (R, B), values)
    if bias is not None:
        _check_float32_or_64(op, "bias", bias)
    _check_contents(op, values, indices, indptr, D, validate)
    _check_hash(op, hash, R, B, values.device)
    N = indptr.shape[0] - 1
    labels = _label_csr(op, label_indices, label_indptr, N, values.device, hash, validate)
    loss: Tensor = _LinearBucketBCE.apply(
        values, indices, indptr, weight, bias, *labels, hash.buckets, sparse_grad
    )
    return _checked_answer(loss, hash, validate)


@memory_errors("pass fewer documents at a time or fewer labels")
def merge_scores(
    scores: Tensor,  # [N, R, B]
    hash: LabelHash,
    labels: Tensor,  # [N, m] or [m]
    merge: str = "mean",
    *,
    validate: bool = True,
) -> Tensor:  # [N, m]
    """Scores of the labels asked for, merged from their R bucket scores.

    mean = (s_0 + ... + s_{R-1}) / R, added in this order in the scores' own dtype, one IEEE division; min;
    median (even R: mean of the middle two). NaN in any repetition gives NaN. The gradient of min and median
    goes to the chosen repetition(s), the lowest r among equals.

    Args:
        scores: Bucket scores of any kind (logits, probabilities), [N, R, B], float32 or float64; bfloat16
            and float16 are widened to float32.
        hash: Label hash with R repetitions and B buckets.
        labels: [m], the same for every document, or [N, m]; int32 or int64.
        merge: "mean", "min" or "median".
        validate: False skips the check that labels are in [0, L).

    Returns:
        [N, m].

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash.from_buckets([[0, 1, 1], [1, 0, 1]])
        >>> scores = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
        >>> mach_ext.functional.merge_scores(scores, hash, torch.tensor([0, 2]))
        tensor([[2.0000, 2.5000]])
    """
    op = "merge_scores"
    scores = _widened(scores)
    _check_scores(op, scores, hash, merge)
    labels = _documents_labels(op, labels, scores.shape[0], hash, validate)
    return _checked_answer(_merge_scores(scores, hash.buckets, labels, merge), hash, validate)


@memory_errors("pass fewer documents at a time or lower k")
def merge_topk(
    scores: Tensor,  # [N, R, B]
    hash: LabelHash,
    k: int,
    merge: str = "mean",
) -> tuple[Tensor, Tensor]:  # [N, k], [N, k]
    """The k best labels of each document over all L, exactly, without ever holding [N, L].

    Ids and values equal, bit for bit, a brute force over all labels by the definition in `merge_scores`.
    Order: value descending, then label ascending; -0 equals +0; NaN after every number. The result does not
    depend on threads, batch size or device. Values are differentiable.

    Args:
        scores: [N, R, B], float32 or float64; bfloat16 and float16 are widened to float32.
        hash: Label hash with R repetitions and B buckets.
        k: 0 ... L.
        merge: "mean", "min" or "median".

    Returns:
        values [N, k] and labels [N, k] (int64).

    Example:
        >>> import torch, mach_ext
        >>> hash = mach_ext.LabelHash.from_buckets([[0, 1, 1], [1, 0, 1]])
        >>> scores = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
        >>> mach_ext.functional.merge_topk(scores, hash, k=2)
        (tensor([[2.5000, 2.0000]]), tensor([[2, 0]]))
    """
    op = "merge_topk"
    scores = _widened(scores)
    _check_scores(op, scores, hash, merge)
    k = as_int(op, "k", k)
    if not 0 <= k <= hash.num_labels:
        raise ValueError(f"{op}: k must be in 0 ... L={hash.num_labels}, got {k}")
    index = _label_index(hash) if scores.dtype == torch.float32 else None
    if _needs_grad(scores):
        values, labels = _MergeTopK.apply(scores, hash.buckets, index, k, merge)
        return values, labels
    return _ops.merge_topk(scores, hash.buckets, index, k, merge)


def _label_index(hash: LabelHash) -> tuple[Tensor, Tensor, Tensor] | None:
    return hash.label_index()


# What torch.compiler.assume_constant_result does. That function imports torch._dynamo first, which takes a
# second and fails where no folder for temporary files can be written to.
_label_index._dynamo_marked_constant = True  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------- autograd


def _first_order(backward: Any) -> Any:
    """Marks a backward that is not itself differentiable: create_graph=True gets an error, not wrong numbers.

    (PyTorch's once_differentiable lets it pass where the incoming gradient is a constant, as a loss's is.)
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "mach_ext: second derivatives are not implemented; call backward without create_graph=True"
            )
        return backward(ctx, *grads)

    return checked


def own_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in their arguments' own dtype: what follows wants it, autocast or not."""
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _needs_grad(*args: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _sparse_linear(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    weight: Tensor,  # [R, D, M] or [D, M]
    bias: Tensor | None,  # [R, M] or [M]
    relu: bool,
    sparse_grad: bool,
    check: bool = False,  # documents, on CPU
) -> Tensor:  # [N, R, M] or [N, M]
    if bias is not None:
        bias = bias.to(values.dtype)
    if not _needs_grad(values, weight, bias):
        return _ops.sparse_linear(values, indices, indptr, weight, bias, relu, None, check)
    if weight.requires_grad:
        _check_float32_or_64("sparse_linear", "weight", weight)
    out: Tensor = _SparseLinear.apply(values, indices, indptr, weight, bias, relu, sparse_grad, check)
    return out


def _weight_gradient(
    grad: Tensor,  # [N, R, M]
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    shape: torch.Size,  # of the weight: [R, D, M] or [D, M]
    sparse: bool,
    order: _ops.FeatureOrder | None,
) -> Tensor:
    num_features = shape[-2]
    if not sparse:
        return _ops.sparse_linear_grad_weight(grad, values, indices, indptr, num_features, order).view(shape)
    rows, grads = _ops.sparse_linear_grad_rows(grad, values, indices, indptr, num_features, order)
    return _row_sparse(rows, grads, shape)


def _row_sparse(
    rows: Tensor,  # [U] features that occur, ascending
    grads: Tensor,  # [R, U, M]
    shape: torch.Size,
) -> Tensor:
    """COO tensor of `shape` ([R, D, M] or [D, M]) with the given rows in every repetition."""
    R, U, M = grads.shape
    at = rows.repeat(R).unsqueeze(0)
    if len(shape) == 3:
        at = torch.cat((torch.arange(R, device=rows.device).repeat_interleave(U).unsqueeze(0), at))
    return torch.sparse_coo_tensor(
        at, grads.reshape(R * U, M), shape, is_coalesced=True, check_invariants=False
    )


def _feature_order(indices: Tensor, indptr: Tensor, weight: Tensor) -> _ops.FeatureOrder | None:
    """The order that forward, backward and repetitions share. Its sizes depend on the data: no compiling,
    and on CUDA a wait for the device."""
    if torch.compiler.is_compiling():
        return None
    return _ops.feature_order(indices, indptr, weight.shape[-2])


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, values, indices, indptr, weight, bias, relu, sparse_grad, check
    ):
        # On CUDA only the backward pass has a use for it, and a dense gradient no need to wait for its size.
        wanted = ctx.needs_input_grad[3] and not indices.is_cuda
        order = _feature_order(indices, indptr, weight) if wanted else None
        out = _ops.sparse_linear(values, indices, indptr, weight, bias, relu, order, check)
        ctx.save_for_backward(values, indices, indptr, weight, out if relu else None, *(order or ()))
        ctx.sparse_grad = sparse_grad
        ctx.bias_shape = None if bias is None else bias.shape
        return out

    @staticmethod
    @_first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        values, indices, indptr, weight, out, *order = ctx.saved_tensors
        grad = grad.contiguous() if out is None else torch.where(out > 0, grad, 0)
        if weight.dim() == 2:
            grad = grad.unsqueeze(1)  # [N, R, M]
        needs_values, _, _, needs_weight, needs_bias = ctx.needs_input_grad[:5]
        grad_values = grad_weight = grad_bias = None
        if needs_values:
            stacked = weight if weight.dim() == 3 else weight.unsqueeze(0)  # [R, D, M]
            grad_values = _ops.sparse_linear_grad_values(grad, indices, indptr, stacked)
        if needs_weight:
            grad_weight = _weight_gradient(
                grad, values, indices, indptr, weight.shape, ctx.sparse_grad,
                _ops.FeatureOrder(*order) if order else None,
            )  # fmt: skip
        if needs_bias:
            grad_bias = grad.sum(0).view(ctx.bias_shape)
        return grad_values, None, None, grad_weight, grad_bias, None, None, None


def _bucket_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with own_precision(hidden.device):
        if bias is None:
            return torch.bmm(hidden, weight)
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight)


class _BucketLogits(torch.autograd.Function):
    """hidden [R, N, H] times weight [R, H, B], plus bias [R, B] or None -> [R, N, B].

    What autograd makes of the products, second derivatives included. But autocast leaves the backward pass
    alone, too.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(hidden, weight)
        return _bucket_logits(hidden, weight, bias)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        hidden, weight = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad
        with own_precision(grad.device):
            return (
                torch.bmm(grad, weight.mT) if needs_hidden else None,
                torch.bmm(hidden.mT, grad) if needs_weight else None,
                grad.sum(1) if needs_bias else None,
            )


class _WideningLogits(torch.autograd.Function):
    """hidden [R, N, H] times narrower weight [R, H, B], widened one repetition at a time -> [R, N, B]."""

    @staticmethod
    def forward(ctx, hidden, weight):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight)
        with own_precision(hidden.device):
            return torch.stack([h @ w.to(h.dtype) for h, w in zip(hidden, weight, strict=True)])

    @staticmethod
    @_first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (weight,) = ctx.saved_tensors
        with own_precision(grad.device):
            return torch.stack([g @ w.to(g.dtype).T for g, w in zip(grad, weight, strict=True)]), None


class _LabelLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, buckets, labels):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(hidden, weight, buckets, labels)
        return _ops.label_logits(hidden, weight, bias, buckets, labels)

    @staticmethod
    @_first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = grad_weight = grad_bias = None
        if needs_hidden:
            grad_hidden = _ops.label_logits_grad_hidden(grad, *ctx.saved_tensors)
        if needs_weight or needs_bias:
            grad_weight, grad_bias = _ops.label_logits_grad_weight(grad, *ctx.saved_tensors)
        return grad_hidden, grad_weight, grad_bias if needs_bias else None, None, None


class _BucketBCE(torch.autograd.Function):
    """Computes the gradients beside the loss, so that no logits outlive their repetition."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, label_indices, label_indptr, buckets):  # type: ignore[no-untyped-def]
        needs = ctx.needs_input_grad[:3]
        (N, R), shared = (hidden.shape[0], weight.shape[0]), hidden.dim() == 2
        grad_hidden, grad_weight, grad_bias = (
            torch.zeros_like(t) if need else None
            for t, need in zip((hidden, weight, bias), needs, strict=True)
        )
        loss = hidden.new_zeros((), dtype=torch.float64)
        for r in range(R):
            h = hidden if shared else hidden[:, r]  # [N, H]
            with own_precision(hidden.device):
                z = h @ weight[r] if bias is None else torch.addmm(bias[r], h, weight[r])  # [N, B]
            # 1 / R, not 1 / (N R): a number made of N would be a new graph for every N under torch.compile.
            row = _ops.bucket_bce(z, buckets[r], label_indices, label_indptr, 1 / R, any(needs))
            loss += row.sum()
            # z now holds its own gradient.
            with own_precision(hidden.device):
                if grad_hidden is not None:
                    (grad_hidden if shared else grad_hidden[:, r]).addmm_(z, weight[r].T)
                if grad_weight is not None:
                    torch.mm(h.T, z, out=grad_weight[r])
            if grad_bias is not None:
                torch.sum(z, 0, out=grad_bias[r])
        ctx.num_documents = N
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return (loss / (N * R)).to(hidden.dtype)

    @staticmethod
    @_first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad = grad / ctx.num_documents
        return *(None if g is None else grad * g for g in ctx.saved_tensors), None, None, None


class _LinearBucketBCE(torch.autograd.Function):
    """As _BucketBCE, with sparse_linear in place of the product with hidden."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, values, indices, indptr, weight, bias, label_indices, label_indptr, buckets, sparse_grad
    ):
        needs_values, needs_weight, needs_bias = (ctx.needs_input_grad[i] for i in (0, 3, 4))
        N, R = indptr.shape[0] - 1, weight.shape[0]
        X = (values, indices, indptr)
        order = _feature_order(indices, indptr, weight)
        grad_values = torch.zeros_like(values) if needs_values else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        grad_weight: Tensor | None = None
        rows: Tensor | None = None
        loss = values.new_zeros((), dtype=torch.float64)
        for r in range(R):
            b = None if bias is None else bias[r : r + 1]
            z = _ops.sparse_linear(*X, weight[r : r + 1], b, False, order)
            row = _ops.bucket_bce(
                z[:, 0],
                buckets[r],
                label_indices,
                label_indptr,
                1 / R,  # as in _BucketBCE
                needs_values or needs_weight or needs_bias,
            )
            loss += row.sum()
            # z now holds its own gradient.
            if grad_values is not None:
                grad_values += _ops.sparse_linear_grad_values(z, indices, indptr, weight[r : r + 1])
            if needs_weight and sparse_grad:
                rows, grads = _ops.sparse_linear_grad_rows(z, *X, weight.shape[1], order)
                if grad_weight is None:  # as many rows in every repetition
                    grad_weight = grads.new_empty(R, *grads.shape[1:])
                grad_weight[r] = grads[0]
            elif needs_weight:
                if grad_weight is None:
                    grad_weight = torch.empty_like(weight)
                grad_weight[r] = _ops.sparse_linear_grad_weight(z, *X, weight.shape[1], order)[0]
            if grad_bias is not None:
                torch.sum(z[:, 0], 0, out=grad_bias[r])
        ctx.num_documents = N
        ctx.weight_shape = weight.shape
        ctx.save_for_backward(grad_values, grad_weight, rows, grad_bias)
        return (loss / (N * R)).to(values.dtype)

    @staticmethod
    @_first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad = grad / ctx.num_documents
        grad_values, grad_weight, rows, grad_bias = ctx.saved_tensors
        grad_values, grad_weight, grad_bias = (
            None if g is None else grad * g for g in (grad_values, grad_weight, grad_bias)
        )
        if rows is not None:
            assert grad_weight is not None
            grad_weight = _row_sparse(rows, grad_weight, ctx.weight_shape)
        return grad_values, None, None, grad_weight, grad_bias, None, None, None, None


def _merge_scores(scores: Tensor, buckets: Tensor, labels: Tensor, merge: str) -> Tensor:
    args = (scores, buckets, labels, merge)
    out: Tensor = _MergeScores.apply(*args) if _needs_grad(scores) else _ops.merge_scores(*args)
    return out


@memory_errors("pass fewer documents at a time or fewer labels")
def merge_repetitions(logits: Tensor, merge: str) -> Tensor:
    """The merge alone: [N, m, R] scores of labels by repetition -> [N, m], as `merge_scores` to the bit."""
    logits = _widened(logits)
    _check_kind("merge_repetitions", "logits", logits, 3, _FLOATS)
    N, m, R = logits.shape
    each = torch.arange(m, device=logits.device)
    buckets = each.int().expand(R, m).contiguous()
    return _merge_scores(logits.transpose(1, 2).contiguous(), buckets, each.expand(N, m), merge)


class _MergeScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, buckets, labels, merge):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(scores, buckets, labels)
        ctx.merge = merge
        return _ops.merge_scores(scores, buckets, labels, merge)

    @staticmethod
    @_first_order
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        scores, buckets, labels = ctx.saved_tensors
        return _ops.merge_scores_grad(grad, scores, buckets, labels, ctx.merge), None, None, None


class _MergeTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, buckets, index, k, merge):  # type: ignore[no-untyped-def]
        values, labels = _ops.merge_topk(scores, buckets, index, k, merge)
        ctx.save_for_backward(scores, buckets, labels)
        ctx.mark_non_differentiable(labels)
        ctx.merge = merge
        return values, labels

    @staticmethod
    @_first_order
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        scores, buckets, labels = ctx.saved_tensors
        return _ops.merge_scores_grad(grad, scores, buckets, labels, ctx.merge), None, None, None, None


# ------------------------------------------------------------------------------------------- validation

_FLOATS = (torch.float32, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)
_INTS = (torch.int32, torch.int64)


def as_int(op: str, name: str, value: Any) -> int:
    """A Python or NumPy integer as int; bool and float are refused."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}") from None


def _name(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def _check_kind(op: str, name: str, t: Any, dim: int, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")
    if t.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got one of layout {_name(t.layout)}")
    if t.dtype not in dtypes:
        raise TypeError(f"{op}: {name} must be {' or '.join(map(_name, dtypes))}, got {_name(t.dtype)}")
    if t.dim() != dim:
        raise ValueError(f"{op}: {name} must have {dim} dimension(s), got shape {list(t.shape)}")


def _widened(t: Any, weight: Any = None) -> Any:
    """What comes in half precision, in the weight's, which is at least float32; all else as it is."""
    if not isinstance(t, Tensor) or t.dtype not in _HALVES:
        return t
    return t.to(weight.dtype if isinstance(weight, Tensor) and weight.dtype in _FLOATS else torch.float32)


def _check_device(op: str, name: str, t: Tensor, device: torch.device) -> None:
    if t.device != device:
        raise ValueError(f"{op}: {name} must be on {device} like the other arguments, got {t.device}")


def _check_tensor(op: str, name: str, t: Any, dim: int, like: Tensor) -> None:
    """A weight or bias: the dtype and device of `like`, or bfloat16, on CUDA also float16, beside float32."""
    narrow = _HALVES if like.is_cuda else (torch.bfloat16,)
    _check_kind(op, name, t, dim, (like.dtype, *(narrow if like.dtype == torch.float32 else ())))
    _check_device(op, name, t, like.device)


def _check_float32_or_64(op: str, name: str, t: Tensor) -> None:
    if t.dtype not in _FLOATS:
        raise TypeError(
            f"{op}: {name} must be float32 or float64 to be trained (keep float32 master weights), "
            f"got {_name(t.dtype)}"
        )


def _check_shape(op: str, name: str, t: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(t.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {list(shape)}, got {list(t.shape)}")


def _check_bias(
    op: str, bias: Tensor | None, shape: tuple[int, ...], like: Tensor, name: str = "bias"
) -> None:
    if bias is not None:
        _check_tensor(op, name, bias, len(shape), like)
        _check_shape(op, name, bias, shape)


def _check_activation(op: str, activation: str | None) -> None:
    if activation not in (None, "relu"):
        raise ValueError(f'{op}: activation must be None or "relu", got {activation!r}')


def _check_index_pair(op: str, indices: Any, indptr: Any, prefix: str = "") -> None:
    _check_kind(op, f"{prefix}indices", indices, 1, _INTS)
    _check_kind(op, f"{prefix}indptr", indptr, 1, _INTS)
    if indptr.shape[0] == 0:
        raise ValueError(f"{op}: {prefix}indptr must have N + 1 >= 1 entries, got 0")


def _check_documents(op: str, values: Any, indices: Any, indptr: Any) -> None:
    _check_kind(op, "values", values, 1, _FLOATS)
    _check_index_pair(op, indices, indptr)
    if values.shape[0] != indices.shape[0]:
        raise ValueError(
            f"{op}: values and indices must have the same length, "
            f"got {values.shape[0]} and {indices.shape[0]}"
        )
    _check_device(op, "indices", indices, values.device)
    _check_device(op, "indptr", indptr, values.device)


def _check_contents(
    op: str,
    values: Tensor | None,
    indices: Tensor,
    indptr: Tensor,
    num_columns: int,
    validate: bool,
    prefix: str = "",
) -> None:
    """One pass over the non-zeros on CPU. `prefix` is "label_" for labels."""
    if not validate or indices.device.type != "cpu" or torch.compiler.is_compiling():
        return
    fault, row, position = _ops.check_csr(
        None if values is None else values.detach(), indices, indptr, num_columns
    )
    if fault == 0:
        return
    kind, size = ("label", "L") if prefix else ("feature", "D")
    at = f"{prefix}indices[{position}] (row {row})"
    if fault == 1:
        rule = f"{prefix}indptr[0] must be 0, got {indptr[0]}"
    elif fault == 2:
        rule = f"{prefix}indptr must not decrease, got {indptr[row]} then {indptr[row + 1]} at row {row}"
    elif fault == 3:
        rule = f"{prefix}indptr must end at the number of non-zeros {len(indices)}, got {indptr[row]}"
    elif fault == 4:
        rule = f"{at} must be in [0, {size}={num_columns}), got {indices[position]}"
    elif fault == 5:
        rule = f"a {kind} must occur once in a row, got {kind} {indices[position]} twice in row {row}"
    else:
        assert values is not None
        rule = f"values must be finite, got {values[position].item()} at values[{position}] (row {row})"
    raise ValueError(f"{op}: {rule}")


def _check_buckets_weight(op: str, hidden: Any, weight: Any, bias: Tensor | None) -> None:
    """hidden [N, H] or [N, R, H], weight [R, H, B], bias [R, B]."""
    _check_kind(op, "hidden", hidden, 3 if isinstance(hidden, Tensor) and hidden.dim() == 3 else 2, _FLOATS)
    _check_tensor(op, "weight", weight, 3, hidden)
    R, H, B = weight.shape
    if R == 0:
        raise ValueError(f"{op}: weight must have R >= 1 repetitions, got shape {list(weight.shape)}")
    if tuple(hidden.shape[1:]) not in ((H,), (R, H)):
        raise ValueError(
            f"{op}: hidden must be [N, H={H}] or [N, R={R}, H={H}] to match weight, got {list(hidden.shape)}"
        )
    _check_bias(op, bias, (R, B), hidden)


def _check_hash(op: str, hash: LabelHash, R: int, B: int, device: torch.device) -> None:
    if not isinstance(hash, LabelHash):
        raise TypeError(f"{op}: hash must be a mach_ext.LabelHash, got {type(hash).__name__}")
    if (hash.num_repetitions, hash.num_buckets) != (R, B):
        raise ValueError(
            f"{op}: hash has R={hash.num_repetitions} repetitions and B={hash.num_buckets} buckets, "
            f"the scores or weights have R={R}, B={B}"
        )
    if hash.buckets.device != device:
        raise ValueError(
            f"{op}: hash is on {hash.buckets.device}, the tensors on {device}; use hash.to({str(device)!r})"
        )
    if not torch.compiler.is_compiling():
        hash.check_buckets()


def _checked_answer(out: Tensor, hash: LabelHash, validate: bool) -> Tensor:
    """The result; NaN in it may come of buckets that were written to, which is then said."""
    if validate and out.is_cpu and not torch.compiler.is_compiling() and math.isnan(out.detach().sum()):
        hash.check_contents()
    return out


def _check_scores(op: str, scores: Any, hash: LabelHash, merge: str) -> None:
    _check_kind(op, "scores", scores, 3, _FLOATS)
    _check_hash(op, hash, scores.shape[1], scores.shape[2], scores.device)
    if merge not in MERGES:
        raise ValueError(f"{op}: merge must be one of {', '.join(MERGES)}, got {merge!r}")


def _documents_labels(op: str, labels: Any, N: int, hash: LabelHash, validate: bool) -> Tensor:
    """labels [m] or [N, m] -> [N, m] int64."""
    _check_kind(op, "labels", labels, 2 if isinstance(labels, Tensor) and labels.dim() == 2 else 1, _INTS)
    _check_device(op, "labels", labels, hash.buckets.device)
    if labels.dim() == 1:
        labels = labels.expand(N, -1)
    elif labels.shape[0] != N:
        raise ValueError(f"{op}: labels must be [m] or [N={N}, m], got {list(labels.shape)}")
    if validate and labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
        low, high = labels.aminmax()
        if low < 0 or high >= hash.num_labels:
            wrong = int(low if low < 0 else high)
            raise ValueError(f"{op}: labels must be in [0, L={hash.num_labels}), got {wrong}")
    as_int64: Tensor = labels.long()
    return as_int64


def _label_csr(
    op: str,
    label_indices: Any,
    label_indptr: Any,
    N: int,
    device: torch.device,
    hash: LabelHash,
    validate: bool,
) -> tuple[Tensor, Tensor]:
    _check_index_pair(op, label_indices, label_indptr, "label_")
    _check_device(op, "label_indices", label_indices, device)
    _check_device(op, "label_indptr", label_indptr, device)
    if label_indptr.shape[0] != N + 1:
        raise ValueError(
            f"{op}: label_indptr must have N + 1 = {N + 1} entries, one row a document, "
            f"got {label_indptr.shape[0]}"
        )
    if N == 0:
        raise ValueError(f"{op}: the mean over documents needs at least one, got N=0")
    _check_contents(op, None, label_indices, label_indptr, hash.num_labels, validate, "label_")
    return label_indices.long(), label_indptr

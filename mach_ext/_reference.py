"""A twin of every raw operator in plain PyTorch. These are the definitions, written to be read.

Names, arguments and results are those of `mach_ext._ops`. If an operator has a gradient, autograd can
differentiate its twin. The `_grad` operators are checked in this way as well. The twins are dense and slow on
purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mach_ext._ops import Extremes, FeatureOrder


def documents(indptr: Tensor) -> Tensor:
    """Return the document of each non-zero: [nnz]."""
    lengths = indptr[1:].long() - indptr[:-1].long()
    return torch.repeat_interleave(torch.arange(lengths.numel(), device=indptr.device), lengths)


def feature_order(indices: Tensor, indptr: Tensor, num_features: int) -> FeatureOrder:
    positions = indices.long().sort(stable=True).indices
    features, counts = indices.long().unique(sorted=True, return_counts=True)
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return FeatureOrder(features, offsets, positions, documents(indptr)[positions])


# Some operators take an `order` or `check`. Their results do not depend on it, so the twins do not take it.


def sparse_linear(
    values: Tensor, indices: Tensor, indptr: Tensor, weight: Tensor, bias: Tensor | None, relu: bool
) -> Tensor:
    if weight.dim() == 2:
        return sparse_linear(values, indices, indptr, weight[None], bias, relu)[:, 0]
    R, _, M = weight.shape
    terms = values[:, None, None] * weight.to(values.dtype)[:, indices.long()].transpose(0, 1)  # [nnz, R, M]
    out = values.new_zeros(indptr.numel() - 1, R, M).index_add(0, documents(indptr), terms)
    if bias is not None:
        out = out + bias
    return out.relu() if relu else out


def sparse_linear_grad_values(grad: Tensor, indices: Tensor, indptr: Tensor, weight: Tensor) -> Tensor:
    rows = weight.to(grad.dtype)[:, indices.long()].transpose(0, 1)  # [nnz, R, M]
    return (grad[documents(indptr)] * rows).sum((1, 2))


def sparse_linear_grad_weight(
    grad: Tensor, values: Tensor, indices: Tensor, indptr: Tensor, num_features: int
) -> Tensor:
    terms = values[:, None, None] * grad[documents(indptr)]  # [nnz, R, M]
    out = grad.new_zeros(num_features, grad.shape[1], grad.shape[2])
    return out.index_add(0, indices.long(), terms).transpose(0, 1).contiguous()


def sparse_linear_grad_rows(
    grad: Tensor, values: Tensor, indices: Tensor, indptr: Tensor, num_features: int
) -> tuple[Tensor, Tensor]:
    rows = torch.unique(indices.long(), sorted=True)
    return rows, sparse_linear_grad_weight(grad, values, indices, indptr, num_features)[:, rows]


# A label outside [0, L) and a bucket outside [0, B) are read as 0. The results that need them become NaN.


def _buckets_of(buckets: Tensor, labels: Tensor, num_buckets: int) -> tuple[Tensor, Tensor]:
    """Buckets [R, *labels.shape] of labels, for buckets [R, L], and whether they are known."""
    known_label = (labels >= 0) & (labels < buckets.shape[1])
    asked = buckets.long()[:, labels.long().where(known_label, 0)]
    known = known_label & (asked >= 0) & (asked < num_buckets)
    return asked.where(known, 0), known


def label_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, buckets: Tensor, labels: Tensor
) -> Tensor:
    R = weight.shape[0]
    if hidden.dim() == 2:
        hidden = hidden[:, None].expand(-1, R, -1)
    logits = torch.einsum("nrh,rhb->nrb", hidden, weight)
    if bias is not None:
        logits = logits + bias
    asked, known = _buckets_of(buckets, labels, weight.shape[2])
    by_repetition = logits.gather(2, asked.transpose(0, 1)).where(known.transpose(0, 1), torch.nan)
    return by_repetition.transpose(1, 2)


def positives(buckets: Tensor, label_indices: Tensor, label_indptr: Tensor, num_buckets: int) -> Tensor:
    """Return the targets of one repetition as 0 and 1: [N, B].

    Two labels of a document in the same bucket count once.
    """
    targets = torch.zeros(label_indptr.numel() - 1, num_buckets, dtype=torch.float64)
    asked, known = (t[0] for t in _buckets_of(buckets[None], label_indices, num_buckets))
    targets[documents(label_indptr)[known], asked[known]] = 1
    return targets


def bucket_bce(
    logits: Tensor,
    bias: Tensor | None,
    buckets: Tensor,
    label_indices: Tensor,
    label_indptr: Tensor,
    scale: float | None,
    out: Tensor | None = None,
    grad_bias: Tensor | None = None,
) -> Tensor:
    N, G, B = logits.shape
    z = logits.double() if bias is None else (logits + bias).double()
    tables = [positives(each, label_indices, label_indptr, B) for each in buckets]
    targets = torch.stack(tables, 1) if tables else z.new_zeros(N, G, B)
    loss = binary_cross_entropy_with_logits(z, targets, reduction="none").sum((1, 2))
    known = _buckets_of(buckets, label_indices, B)[1].all(0)
    loss[documents(label_indptr)[~known]] = torch.nan
    if scale is not None:
        computed = scale * (z.sigmoid() - targets)
        (logits if out is None else out).copy_(computed)
        if grad_bias is not None:
            grad_bias.copy_(computed.sum(0))
    return loss


def bucket_forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: str = "none") -> Tensor:
    return _transformed(_wide_logits(hidden, weight, bias), transform).float()


def bucket_forward_int8(hidden: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    R, tiles, words = weight.shape[:3]
    dense = weight.permute(0, 2, 4, 1, 3).reshape(R, 4 * words, 64 * tiles)
    dense = dense[:, : hidden.shape[-1], : scale.shape[1]]
    if hidden.dim() == 2:
        hidden = hidden[:, None].expand(-1, R, -1)
    finite = hidden.isfinite().all(-1, keepdim=True)
    most = torch.nn.functional.pad(hidden.where(finite, 0.0), (0, 1)).amax(-1, keepdim=True).abs()  # of -0, 0
    q = torch.floor(hidden.clamp(min=0) / most.where(most > 0, 1.0) * 127 + 0.5)
    sums = torch.einsum("nrh,rhb->nrb", q.where(finite, 0.0).double(), dense.double())
    logits = (sums.float() + 0.0) * scale * (most / 127).where(finite, torch.nan)
    return logits if bias is None else logits + bias


def transform_logits(logits: Tensor, transform: str) -> None:
    logits.copy_(_transformed(logits.double(), transform))


def bucket_forward_extremes(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: str = "none"
) -> tuple[Tensor, Extremes]:
    scores = bucket_forward(hidden, weight, bias, transform)
    return scores, extremes(scores)


def extremes(scores: Tensor) -> Extremes:
    """Return what merge_topk on CUDA needs to know of scores [N, R, B]. NaN is skipped but for `high`."""
    B = scores.shape[2]
    padding = (-B) % 256
    seen = scores.where(~scores.isnan(), -torch.inf)
    tiles = torch.nn.functional.pad(seen, (0, padding), value=-torch.inf).unflatten(2, (-1, 8, 4, 8))
    greatest = seen.amax(2)
    hits = (scores == greatest[..., None]) & ((greatest > -torch.inf)[..., None] | (torch.arange(B) < 256))
    above = torch.nn.functional.pad(scores.where(~scores.isnan(), torch.inf), (0, padding), value=torch.inf)
    least = above.unflatten(2, (-1, 32)).amin(2)  # [N, R, 32] of the buckets b with b % 32 = i
    lanes = min(B, 32)
    low = least[..., :lanes].sort(2).values[..., lanes // 4] if B < 512 else least.amax(2)
    low = low.where(low < greatest, least.amin(2)).clamp(min=-1e30)
    high = greatest.where((scores < torch.inf).all(2), torch.nan)
    return Extremes(high, low, hits.int().argmax(2).int(), tiles.amax((3, 5)).flatten(2))


def _wide_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the logits [N, G, B] of bfloat16 hidden units and weights in float64."""
    if hidden.dim() == 2:
        hidden = hidden[:, None].expand(-1, weight.shape[0], -1)
    logits = torch.einsum("ngh,ghb->ngb", hidden.double(), weight.double())
    return logits if bias is None else logits + bias.double()


def _transformed(logits: Tensor, transform: str) -> Tensor:
    if transform == "none":
        return logits
    return logits.sigmoid() if transform == "sigmoid" else torch.nn.functional.logsigmoid(logits)


def bucket_forward_bce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    buckets: Tensor,
    label_indices: Tensor,
    label_indptr: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = _wide_logits(hidden, weight, bias)
    loss = bucket_bce(gradient, None, buckets, label_indices, label_indptr, scale)
    return gradient.bfloat16(), loss, gradient.sum(0).float()


def without_negligible(gradient: Tensor, negligible: float) -> Tensor:
    """Replace the entries 0 <= gradient < negligible of [N, B], all together, by a rank-one matrix.

    The matrix is the product of their sums by document and their sums by bucket, over their total sum.
    """
    small = (gradient >= 0) & (gradient < negligible)
    left_out = gradient.where(small, 0)
    row, column, total = left_out.sum(1), left_out.sum(0), left_out.sum()
    share = torch.where(total > 0, row / total, 0)
    return torch.where(small, share[:, None] * column, gradient)


def bucket_backward(
    gradient: Tensor,
    hidden: Tensor,
    weight: Tensor,
    negligible: float,
    max_kept: int,
    grad_hidden: Tensor,
    grad_weight: Tensor,
) -> Tensor:
    kept = (~((gradient >= 0) & (gradient < negligible))).sum()
    if kept <= max_kept:
        replaced = without_negligible(gradient, negligible)
        grad_hidden += replaced @ weight.T
        grad_weight.copy_(hidden.T @ replaced)
    return kept


def svm_factor(values: Tensor, indices: Tensor, indptr: Tensor, D: int, C: float) -> Tensor:
    X = _with_ones(values, indices, indptr, D).double()
    factor: Tensor = torch.linalg.cholesky(torch.eye(D + 1).double() + 2 * C * X.T @ X)
    factor.diagonal().reciprocal_()
    return factor.to(values.dtype)


def _with_ones(values: Tensor, indices: Tensor, indptr: Tensor, D: int) -> Tensor:
    """Return the documents as a dense matrix with a last column of ones, [N, D + 1]."""
    X = torch.zeros(indptr.numel() - 1, D + 1, dtype=values.dtype)
    X[documents(indptr), indices.long()] = values
    X[:, D] = 1
    return X


def bucket_svm(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    buckets: Tensor,
    label_indices: Tensor,
    label_indptr: Tensor,
    first: int,
    C: float,
    tolerance: float,
    max_passes: int,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Solve for the same optimum by coordinate descent, with each bucket by itself and without shrinking."""
    (D, M), N = weight.shape, indptr.numel() - 1
    X = _with_ones(values, indices, indptr, D)
    scales = 1 / X[:, :D].norm(dim=1).clamp(min=1, max=10)
    positive = torch.zeros(N, int(buckets.max()) + 1 + M + first, dtype=torch.bool)
    positive[torch.arange(N).repeat_interleave(label_indptr.diff()), buckets.long()[label_indices]] = True
    w, alpha = torch.zeros(D + 1, M, dtype=values.dtype), torch.zeros(N, M, dtype=values.dtype)
    y = torch.where(positive[:, first : first + M], 1.0, -1.0).to(values.dtype)
    passes, at_once = 0, torch.inf
    while at_once > tolerance and passes < max_passes:
        projected = torch.zeros_like(y)
        for n in range(N):
            gradient = y[n] * (X[n] @ w) - 1 + alpha[n] / (2 * C)
            step = torch.where((alpha[n] > 0) | (gradient < 0), gradient, 0)
            changed = (alpha[n] - step / (X[n] @ X[n] + 1 / (2 * C))).clamp(min=0)
            projected[n] = step * scales[n]
            w += X[n][:, None] * ((changed - alpha[n]) * y[n])
            alpha[n] = changed
        at_once, passes = float((projected.amax(0) - projected.amin(0)).max()), passes + 1
    empty = (y < 0).all(0)
    weight.copy_(w[:D].where(~empty, 0))
    bias.copy_(w[D].where(~empty, -1))
    tiles = (M + 15) // 16
    return torch.full((tiles,), passes), torch.full((tiles,), at_once, dtype=torch.float64)


def merge_scores(scores: Tensor, buckets: Tensor, labels: Tensor, merge: str) -> Tensor:
    R = scores.shape[1]
    asked, known = _buckets_of(buckets, labels, scores.shape[2])
    by_repetition = [scores[:, r].gather(1, asked[r]) for r in range(R)]
    key = _merge_repetitions(by_repetition, merge)
    return torch.where(known.all(0), key, torch.nan)


def _merge_repetitions(by_repetition: list[Tensor], merge: str) -> Tensor:
    R = len(by_repetition)
    if merge == "mean":
        total = by_repetition[0]
        for s in by_repetition[1:]:
            total = total + s
        # R is a tensor, because a division by a Python number rounds differently on some paths of PyTorch.
        return total / torch.full_like(total, R)
    stacked = torch.stack(by_repetition, dim=2)  # [N, m, R]
    # A stable sort puts the lowest r first among equals. NaN comes last.
    ordered = stacked.sort(dim=2, stable=True).values
    if merge == "min":
        key = ordered[..., 0]
    elif R % 2:
        key = ordered[..., R // 2]
    else:
        key = (ordered[..., R // 2 - 1] + ordered[..., R // 2]) / 2
    first_nan = stacked.isnan().int().argmax(dim=2, keepdim=True)
    return torch.where(stacked.isnan().any(dim=2), stacked.gather(2, first_nan).squeeze(2), key)


def label_index(buckets: Tensor, num_buckets: int) -> tuple[Tensor, Tensor, Tensor]:
    by_bucket = buckets.sort(dim=1, stable=True)
    edges = torch.arange(num_buckets + 1, dtype=torch.int32).expand(buckets.shape[0], -1).contiguous()
    starts = torch.searchsorted(by_bucket.values.contiguous(), edges, out_int32=True)
    return buckets.T.contiguous().to(torch.uint16), starts, by_bucket.indices.int()


def merge_topk(
    scores: Tensor,
    buckets: Tensor,
    index: tuple[Tensor, Tensor, Tensor] | None,
    k: int,
    merge: str,
    path: str = "auto",
    trace: Tensor | None = None,
    extremes: Extremes | None = None,
) -> tuple[Tensor, Tensor]:
    """Search all L labels, whatever the path. Order: key descending, label ascending, NaN last."""
    N, L = scores.shape[0], buckets.shape[1]
    keys = merge_scores(scores, buckets, torch.arange(L).expand(N, L), merge)
    by_key = keys.sort(dim=1, descending=True, stable=True).indices  # Labels of equal keys stay ascending.
    nan_last = keys.gather(1, by_key).isnan().int().sort(dim=1, stable=True).indices
    labels = by_key.gather(1, nan_last)[:, :k]
    return keys.gather(1, labels), labels


def sparse_adam(
    parameter: Tensor,
    rows: Tensor | None,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    at = slice(None) if rows is None else rows
    exp_avg[at] = beta1 * exp_avg[at] + (1 - beta1) * gradient
    exp_avg_sq[at] = beta2 * exp_avg_sq[at] + (1 - beta2) * gradient**2
    parameter[at] -= step_size * exp_avg[at] / (exp_avg_sq[at].sqrt() + eps)


def sparse_adagrad(
    parameter: Tensor, rows: Tensor | None, gradient: Tensor, sum: Tensor, lr: float, eps: float
) -> None:
    at = slice(None) if rows is None else rows
    sum[at] += gradient**2
    parameter[at] -= lr * gradient / (sum[at].sqrt() + eps)


def _gradient_of(weight: Tensor, grad: Tensor, values: Tensor, order: FeatureOrder) -> tuple[Tensor, Tensor]:
    """Return the rows of weight [R, D, M], as [R * D, M], that occur, and their gradients."""
    R, D, M = weight.shape
    feature = torch.repeat_interleave(order.features, order.offsets.diff())
    gradient = grad.new_zeros(D, R, M)
    gradient.index_add_(0, feature, values[order.positions, None, None] * grad[order.documents])
    rows = (torch.arange(R)[:, None] * D + order.features).flatten()
    return rows, gradient.transpose(0, 1).reshape(R * D, M)[rows]


def sparse_linear_adam(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor,
    values: Tensor,
    order: FeatureOrder,
    *numbers: float,
) -> None:
    parameter, first, second = (t.view(-1, t.shape[2]) for t in (weight, exp_avg, exp_avg_sq))
    sparse_adam(parameter, *_gradient_of(weight, grad, values, order), first, second, *numbers)


def sparse_linear_adagrad(
    weight: Tensor, sum: Tensor, grad: Tensor, values: Tensor, order: FeatureOrder, lr: float, eps: float
) -> None:
    parameter, squares = (t.view(-1, t.shape[2]) for t in (weight, sum))
    sparse_adagrad(parameter, *_gradient_of(weight, grad, values, order), squares, lr, eps)


def signs(gradient: Tensor, nonnegative: bool) -> Tensor:
    step = (gradient > 0).to(gradient.dtype)
    if not nonnegative:
        step -= (gradient < 0).to(step.dtype)
    gradient.copy_(step)
    return step.count_nonzero(1)

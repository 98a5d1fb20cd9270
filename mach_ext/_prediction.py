"""The loop of `MACH.predict`: batches of documents, their memory, and a check of their scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mach_ext import functional as F
from mach_ext._dense_features import JoinedRows, checked_documents, joined_when_taken
from mach_ext._memory import check_memory, memory_advice
from mach_ext._model_checks import check_scores, checked_k, values_dtype
from mach_ext.data import iter_on_device
from mach_ext.data.matrices import is_single_canonical
from mach_ext.functional._bucket_forward import fused_scores, rounded_weight, takes_fused
from mach_ext.functional._merge import topk_of
from mach_ext.merges import MODEL_MERGES, Merge

PRECISIONS = (*F.PRECISIONS, "int8")  # of `predict`
_SCORES_IN_MEMORY = 1 << 26  # predict holds at most so many bucket scores: 256 MiB of float32.
# int8 holds at most so many: 16 MiB. Otherwise writing them would take most of its time.
_SCORES_IN_CACHE = 1 << 22


def predict_batch(num_repetitions: int, num_buckets: int, is_int8: bool = False) -> int:
    """Return the default batch size of `predict`: at most 256, with bucket scores within 256 MiB.

    For int8 it is 16 MiB.
    """
    most = _SCORES_IN_CACHE if is_int8 else _SCORES_IN_MEMORY
    return max(1, min(256, most // (num_repetitions * num_buckets)))


def predict(
    model: Any, X: Any, k: int | None, batch_size: int | None, precision: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Implement `MACH.predict`."""
    if model.num_dense or not is_single_canonical(X, model.num_features):
        X = checked_documents("MACH.predict: X", model, X)
    k = checked_k("MACH.predict", k, model.num_labels, least=0)
    is_int8 = precision == "int8"
    if batch_size is None:
        batch_size = predict_batch(model.num_repetitions, model.num_buckets, is_int8)
    if batch_size < 1:
        raise ValueError(f"MACH.predict: batch_size must be at least 1, got {batch_size}")
    N = X.shape[0]
    on_cpu = model.bucket_bias.is_cpu
    check_precision("MACH.predict", model, precision)
    check_memory(
        "MACH.predict: scores and labels",
        12 * N * k + (_batch_bytes(model, min(batch_size, N), precision) if on_cpu else 0),
        "pass fewer documents, or lower batch_size or k",
        N=N, k=k, batch_size=batch_size,
    )  # fmt: skip
    scores = np.empty((N, k), np.float32)
    labels = np.empty((N, k), np.int64)
    with torch.inference_mode(), memory_advice("MACH.predict", "lower batch_size", model):
        model, options = rounded_model(model, precision), precision_option(precision)
        options |= {"validate": False} | ({} if is_int8 else {"dropout": False})
        topk = functools.partial(model.topk, **options)
        fill(scores, labels, model, X, batch_size, topk)
    return scores, labels


def fill(
    scores: np.ndarray[Any, Any],  # [N, k]
    labels: np.ndarray[Any, Any],  # [N, k]
    model: Any,
    X: Any,
    batch_size: int,
    topk: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    """Write the best labels of documents and their scores, as `topk` gives those of a batch and k."""
    for start, X_batch in document_batches(model, X, batch_size):
        best, ids = topk(*X_batch, scores.shape[1])
        check_scores("MACH.predict", model, best)
        scores[start : start + batch_size] = best.cpu().numpy()
        labels[start : start + batch_size] = ids.cpu().numpy()


def own_precision(model: Any) -> str:
    """Return the precision in which a model predicts if nothing else is asked for."""
    return getattr(model, "precision", "float32")


def check_precision(op: str, model: Any, precision: str) -> None:
    """Refuse an unknown precision, and one that a model does not have.

    Raises:
        TypeError: bfloat16 or int8 was asked of float64.
        ValueError: The precision is unknown, or the model is quantized and it is not int8.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if own_precision(model) == "int8" != precision:
        raise ValueError(f"{op}: precision must be int8, because the model is quantized, got {precision!r}")
    if precision == "bfloat16":
        F.check_precision(op, precision, model.bucket_weight.detach())


def other_precision(op: str, model: Any, precision: str | None) -> str | None:
    """Return a checked precision. None means the model's own."""
    if precision is None:
        return None
    check_precision(op, model, precision)
    return None if precision == own_precision(model) else precision


def rounded_model(model: Any, precision: str | None) -> Any:
    """Return a model whose bucket weight is rounded once for the products of a precision. None is its own.

    It shares everything else with the model, which stays as it is. For float32 it is the model itself. So it
    is where the weight is no parameter, because it is pruned or parametrized. Each batch then rounds it.
    """
    if not _is_rounded(model, precision):
        return model
    weight = model.bucket_weight.detach()
    weight = weight.bfloat16() if model.is_linear else rounded_weight(weight)
    head = _with(model.head, _parameters={"bucket_weight": nn.Parameter(weight, requires_grad=False)})
    return _with(model, _modules={"head": head})


def _with(module: Any, **replaced: dict[str, Any]) -> Any:
    """Return a module that shares everything with another, except the parameters or modules given."""
    shared = object.__new__(type(module))  # copy.copy refuses modules with parametrizations.
    replaced = {kind: {**module.__dict__[kind], **entries} for kind, entries in replaced.items()}
    shared.__dict__.update(module.__dict__, **replaced)
    return shared


def fused_topk(head: Any, hidden: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """Return the top k of hidden units [N, H] or [N, R, H] in bfloat16, by the fused kernel.

    Its scores come with their extremes, which the decode takes. None: the kernel does not run here.
    """
    merge = MODEL_MERGES[head.merge]
    transform = transform_name(merge)
    weight, bias = head.bucket_weight, head.bucket_bias
    if transform is None or not takes_fused(weight, torch.bfloat16):
        return None
    fused = fused_scores(hidden, weight, bias, transform)
    return None if fused is None else topk_of(*fused, head.hash, k, merge.reduction)


def owns_logits(module: nn.Module, forward: Any, inputs: bool = False) -> bool:
    """Return whether nobody but the caller sees what a module's `forward` returns, if it is this function.

    With `inputs`, also whether nobody sees its arguments.
    """
    of_all = torch.nn.modules.module
    hooks = module._forward_hooks or of_all._global_forward_hooks
    if inputs:
        hooks = hooks or module._forward_pre_hooks or of_all._global_forward_pre_hooks
    own = getattr(module.forward, "__func__", None)
    return own is forward and type(module).__call__ is nn.Module.__call__ and not hooks


def transform_name(merge: Merge) -> str | None:
    """Return what the kernel calls the transform of a merge. None: it does not have it."""
    known = {"none": None, "sigmoid": torch.sigmoid, "logsigmoid": nn.functional.logsigmoid}
    return next((name for name, function in known.items() if merge.transform is function), None)


def precision_option(precision: str | None) -> dict[str, Any]:
    """Return the argument that asks a rounded model for a precision.

    There is none for float32, which overridden methods may lack, and for a quantized model.
    """
    return {"precision": precision} if precision == "bfloat16" else {}


def _is_rounded(model: Any, precision: str | None) -> bool:
    """Return whether a precision needs a copy of the bucket weight, kept beside it."""
    if precision != "bfloat16":
        return False
    return "bucket_weight" in model.head._parameters and model.bucket_weight.dtype != torch.bfloat16


def _batch_bytes(model: Any, documents: int, precision: str) -> int:
    """Return the bytes that `predict` holds for so many documents: bucket scores and hidden units.

    bfloat16 also holds a rounded copy of the bucket weight. The merge's transform overwrites the bucket
    scores, so there is one array of them.
    """
    encoders = model.num_repetitions if model.encoder == "independent" else 1
    hidden = encoders * model.hidden_sizes[-1] if model.hidden_sizes else 0
    numbers = model.num_repetitions * model.num_buckets + hidden
    copied = 2 * model.bucket_weight.numel() if _is_rounded(model, precision) else 0
    total: int = documents * numbers * model.bucket_bias.element_size() + copied
    return total


def document_batches(
    model: Any, X: Any, batch_size: int
) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
    """Yield the number of the first document of each batch, and the batch on the model's device."""
    rows = _batches(joined_when_taken(model, X), batch_size)
    batches = iter_on_device(rows, model.bucket_bias.device)
    for start, values, indices, indptr in batches:
        yield start, (values.to(values_dtype(model)), indices, indptr)


def _batches(X: Any, batch_size: int) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield consecutive documents of a canonical CSR matrix, as copies, with the number of the first."""
    for start in range(0, X.shape[0], batch_size):
        if isinstance(X, JoinedRows):
            joined = X[start : start + batch_size]
            values, indices, indptr = map(torch.from_numpy, (joined.data, joined.indices, joined.indptr))
            yield start, values, indices, indptr
            continue
        indptr = X.indptr[start : start + batch_size + 1]
        at = slice(indptr[0], indptr[-1])
        arrays = (X.data[at], X.indices[at], indptr - indptr[0])
        values, indices, indptr = map(torch.from_numpy, arrays)
        yield start, values, indices, indptr

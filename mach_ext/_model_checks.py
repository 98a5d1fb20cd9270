"""Checks of a model's configuration, of its parameters, and of arguments of its methods."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mach_ext import functional as F
from mach_ext._memory import check_memory
from mach_ext.hashing import LabelHash
from mach_ext.merges import MODEL_MERGES

USUAL_K = 5  # the default number of labels for a document
ENCODERS = ("shared", "independent")
SCORES = ("logit", "model")
_WEIGHTS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def checked_k(op: str, k: int | None, num_labels: int, least: int = 1, name: str = "k") -> int:
    """Return a checked k. None means the usual 5, or L if there are fewer labels."""
    if k is None:
        return min(USUAL_K, num_labels)
    k = F.as_int(op, "k", k)
    if not least <= k <= num_labels:
        raise ValueError(f"{op}: {name} must be in {least} ... L={num_labels}, got {k}")
    return k


def check_scores(op: str, model: nn.Module, scores: Tensor) -> None:
    """Refuse scores that are NaN or infinite because the parameters are.

    The parameters are checked only if the scores suggest it, because finite parameters can also overflow.
    """
    if not bool((scores < math.inf).all()):
        check_finite(op, model)


def check_finite(op: str, model: nn.Module) -> None:
    """Refuse parameters that are NaN or infinite."""
    for name, parameter in model.named_parameters():
        low, high = parameter.detach().aminmax()  # unlike isfinite, without a copy
        if not bool((high - low).isfinite()) and not bool(parameter.isfinite().all()):
            raise ValueError(
                f"{op}: the model's {name.removeprefix('head.')} must be finite, got "
                f"{int((~parameter.isfinite()).sum())} of {parameter.numel()} numbers NaN or infinite"
            )


def check_parameters(op: str, model: nn.Module) -> None:
    """Refuse parameters of dtypes that the operators do not take."""
    narrow = (torch.bfloat16, torch.float16) if next(model.parameters()).is_cuda else (torch.bfloat16,)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float64} and not dtypes <= {torch.float32, *narrow}:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in (torch.float32, *narrow))
        given = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise TypeError(f"{op}: parameters must be {names}, or all float64, got {given}")


def values_dtype(model: Any) -> torch.dtype:
    """Return the dtype in which documents or hidden units go through a model or a head."""
    return torch.float64 if model.bucket_weight.dtype == torch.float64 else torch.float32


def check_hidden(op: str, hidden: Tensor, weight: Tensor) -> None:
    """Refuse hidden units that are not dense, and float64 beside float32."""
    if hidden.layout != torch.strided:
        layout = str(hidden.layout).removeprefix("torch.")
        raise TypeError(f"{op}: hidden must be a dense tensor, got one of layout {layout}")
    is_wide, needs_wide = (dtype == torch.float64 for dtype in (hidden.dtype, weight.dtype))
    if is_wide if not needs_wide else hidden.dtype == torch.float32:
        expected, given = ("float64", "float32") if needs_wide else ("float32", "float64")
        raise TypeError(f"{op}: hidden must be {expected} like the weights, got {given}")


def check_configuration(
    num_features: int,
    num_dense: int,
    sizes: tuple[int, ...],
    encoder: str,
    merge: str,
    feature_dropout: float,
    hidden_dropout: float,
) -> None:
    """Refuse sizes, names and probabilities that are not valid."""
    if num_features < 1:
        raise ValueError(f"MACH: num_features must be at least 1, got {num_features}")
    if num_dense < 0:
        raise ValueError(f"MACH: num_dense must be at least 0, got {num_dense}")
    if len(sizes) not in (1, 2) or any(size < (len(sizes) == 2) for size in sizes):
        raise ValueError(
            f"MACH: hidden_size must be 0 (linear), one size or a pair of positive sizes, got {sizes}"
        )
    if encoder not in ENCODERS:
        raise ValueError(f"MACH: encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
    check_merge("MACH", merge)
    for name, p in (("feature_dropout", feature_dropout), ("hidden_dropout", hidden_dropout)):
        if not 0 <= p < 1:
            raise ValueError(f"MACH: {name} must be in [0, 1), got {p}")


def checked_probability(name: str, value: Any) -> float:
    """Return a probability of dropping something as a float. Its range is checked with the configuration."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, (str, bytes, bool)):
            return float(value)
    raise TypeError(f"MACH: {name} must be a number, got {type(value).__name__}")


def check_merge(op: str, merge: str) -> None:
    """Refuse an unknown merge."""
    if merge not in MODEL_MERGES:
        raise ValueError(f"{op}: merge must be one of {', '.join(MODEL_MERGES)}, got {merge!r}")


def check_score(op: str, score: str) -> None:
    """Refuse an unknown score."""
    if score not in SCORES:
        raise ValueError(f'{op}: score must be "logit" or "model", got {score!r}')


def check_weights_fit(D: int, R: int, B: int, hidden_sizes: tuple[int, ...], copies: int) -> None:
    """Refuse a model whose parameters and buffers do not fit in memory, if they are to be made in memory."""
    last, count = D, 0
    for size in hidden_sizes:
        count += copies * (last + 1) * size
        last = size
    count += R * (last + 2) * B
    hidden = ",".join(f"{size:,}" for size in hidden_sizes) or 0
    _check_room(
        "MACH", count, torch.empty(0), "hidden_size",
        num_features=D, hidden_size=hidden, num_buckets=B, num_repetitions=R,
    )  # fmt: skip


def check_head_fits(R: int, H: int, B: int, like: Tensor) -> None:
    """Refuse a head whose parameters and buffers do not fit in memory, or have a dtype for no weights.

    The parameters are like `like`: of its dtype and, if it is in memory, in memory.
    """
    if like.dtype not in _WEIGHTS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _WEIGHTS)
        given = str(like.dtype).removeprefix("torch.")
        raise TypeError(f"MACHHead: dtype must be one of {names}, got {given}")
    sizes = {"in_features": H, "num_buckets": B, "num_repetitions": R}
    _check_room("MACHHead", R * (H + 2) * B, like, "in_features", **sizes)


def _check_room(op: str, count: int, like: Tensor, width: str, **sizes: Any) -> None:
    """Refuse weights of so many numbers like this one."""
    if like.is_cpu and type(like) is Tensor:
        advice = f"lower {width}, num_buckets or num_repetitions"
        check_memory(f"{op}: the weights", like.element_size() * count, advice, **sizes)


def is_of_other_hash(hash: LabelHash, state_dict: dict[str, Any], prefix: str) -> bool:
    """Return whether a `state_dict` holds weights that were trained with another label hash."""
    return bool(hash.state_fault(state_dict, f"{prefix}hash."))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch off gradients and autocast in this thread, so that products run in the model's precision."""
    with torch.no_grad(), F.own_precision(next(model.parameters()).device):
        yield

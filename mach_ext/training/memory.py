"""The memory that a model takes in training and in use, and a check that there is enough."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from mach_ext._memory import available_memory, check_memory
from mach_ext.functional._repetitions import group_size
from mach_ext.nn import MACH, AnyMACH, own_precision, predict_batch
from mach_ext.training.hyperparameters import Hyperparameters
from mach_ext.training.precision import ROUNDED_TOGETHER


def expected_memory(
    model: AnyMACH,
    batch_size: int = 256,
    nonzeros: int = 100,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, int]:
    """Return the bytes that a model takes, beyond the data and PyTorch itself.

    The figures are counted from the shapes. A batch is assumed to name at most batch_size * nonzeros rows of
    the weight that takes the documents, and all rows of dense features.

    Args:
        model: The model.
        batch_size: Documents in a batch of training.
        nonzeros: Sparse features of a document. Dense features are counted beside them.
        device: The device of the model in use, such as "cpu" or "cuda:0". It need not exist on this machine.
        precision: The precision of training, as in `Hyperparameters`.

    Returns:
        Bytes of "weights", "label hash", "predicting, peak" and "training, peak".

    Example:
        >>> import mach_ext
        >>> from mach_ext.training import expected_memory
        >>> model = mach_ext.MACH(1000, 5000, num_repetitions=8, num_buckets=64, hidden_size=32)
        >>> bytes = expected_memory(model)
        >>> bytes["weights"], bytes["label hash"]
        (195712, 160000)
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = (1 if model.is_linear else 2) * 4 * sum(p.numel() for p in model.parameters())
    R, B = model.num_repetitions, model.num_buckets
    hidden = 4 * batch_size * sum(model.hidden_sizes) * (R if model.encoder == "independent" else 1)
    table = model.hash.buckets.numel() * model.hash.buckets.element_size()
    index = model.hash.label_index_bytes()
    # A step holds the logits of a group of repetitions, which become their gradient. It holds a second table
    # of a repetition to find negligible entries, which also covers partial sums of columns, and the batch's
    # features in order. With hidden layers it also holds the weight gradient of a group, the hidden units and
    # their gradient, and autograd's tensors for a second layer.
    target = torch.device(device)
    G = min(R, group_size(batch_size, B, 4, target))
    step = 4 * (G + 1) * batch_size * B + 32 * nonzeros * batch_size
    # Dense features are read, scaled and multiplied, and their rows have a gradient.
    E, width = model.num_dense, B if model.is_linear else model.encoder_weight.shape[1]
    step += 4 * E * (3 * batch_size + width)
    if not model.is_linear:
        between = sum(p.numel() for name, p in model.named_parameters() if name.startswith("hidden_"))
        step += 4 * G * model.hidden_sizes[-1] * B + 4 * between + 4 * hidden
        if G > 1:  # gradients to the hidden units, by repetition, before they are summed
            step += 4 * G * batch_size * model.hidden_sizes[-1]
    # bfloat16 adds the copy of the weight that takes the documents, the rows that are rounded after a step,
    # and the factors and products of a step.
    if precision == "bfloat16":
        rows = model.bucket_weight if model.is_linear else model.encoder_weight
        copied = rows.shape[-1] * min(rows.shape[-2], batch_size * nonzeros + E)
        step += 2 * rows.numel() + 6 * min(copied, ROUNDED_TOGETHER)
        if not model.is_linear:
            H = model.hidden_sizes[-1]
            step += G * (2 * batch_size * B + 4 * H * B) + 4 * batch_size * H + hidden // 2
    documents = predict_batch(R, B, own_precision(model) == "int8")
    decode = 4 * documents * R * B  # The merge's transform overwrites the bucket scores.
    if target.type == "cuda":
        # The scan of merge_topk holds scores as bytes, and the candidates for the default k.
        decode += documents * (R * B + 8 * min(model.num_labels, 2048 + 4 * math.isqrt(5 * model.num_labels)))
        step += 32 * nonzeros * batch_size  # buffers of the library's sort, and the next batch
    elif index:
        # merge_topk holds the scores of a chunk of documents as bytes: 64 or more, whose scores take 12 MiB.
        decode += min(documents, max(64, (3 << 20) // (R * B))) * R * B
    return {
        "weights": weights,
        "label hash": table,
        "predicting, peak": weights + table + index + decode + hidden + 32 * E * documents,
        "training, peak": weights + moments + table + step,
    }


def repetitions_together(model: MACH, X: Any, settings: Hyperparameters, given: int | None) -> int:
    """Return how many repetitions to train at a time, and warn if all of them would not fit in memory."""
    R = model.num_repetitions
    if given is not None:
        if not model.is_linear:
            raise ValueError("fit: repetitions_at_a_time is for linear MACH; a shared encoder needs them all")
        if not 1 <= given <= R:
            raise ValueError(f"fit: repetitions_at_a_time must be in 1 ... R={R}, got {given}")
        if given < R and settings.patience is not None:
            raise ValueError("fit: patience needs dev metrics of each epoch; train all repetitions together")
        _check_state_fits(model, settings, given)
        return given
    _check_state_fits(model, settings, R)
    device = model.bucket_bias.device
    nonzeros = max(0, math.ceil(X.nnz / X.shape[0]) - model.num_dense)
    batch_size = min(settings.batch_size, X.shape[0])
    needed = expected_memory(model, batch_size, nonzeros, device.type, settings.precision)
    more = needed["training, peak"] - needed["weights"] - needed["label hash"]
    free = available_memory(device)
    if more > free:
        advice = ""
        if model.is_linear:
            fit_in = max(1, int(0.8 * free / (more / R)))
            advice = f"; repetitions_at_a_time={fit_in} would fit"
        warnings.warn(
            f"fit: training takes about {more / 2**30:.1f} GiB beside the weights, "
            f"{free / 2**30:.1f} GiB are free on {device}{advice}",
            ResourceWarning,
            stacklevel=6,  # above `fit_part`, `fit`, `memory_errors` and `renamed_argument`
        )
    return R


def _check_state_fits(model: MACH, settings: Hyperparameters, together: int) -> None:
    """Refuse a run whose optimiser state does not fit in memory, because no step could be made."""
    if not model.bucket_bias.is_cpu:
        return
    moments = 2 if settings.optimizer == "adam" else 1
    state = moments * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    advice = "lower hidden_size, num_buckets or num_repetitions"
    if model.is_linear:
        state = state * together // model.num_repetitions
        advice = "lower repetitions_at_a_time or num_buckets"
    sizes = {"optimizer": settings.optimizer, "repetitions": together}
    check_memory("fit: the optimiser's state", state, advice, **sizes)

"""Documents and scores in the form that any algorithm of Captum takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mach_ext import functional as F
from mach_ext._memory import check_memory, memory_errors
from mach_ext._model_checks import check_score
from mach_ext.explain._arguments import (
    Labels,
    Names,
    check_documents,
    check_model,
    label_names_of,
    resolve_labels,
    values_dtype,
)
from mach_ext.explain._encoder import CheckedEncoder, hidden_tensor, input_tensor
from mach_ext.head import MACHHead
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, check_parameters

_TRANSFORMS: dict[Any, type[nn.Module]] = {
    None: nn.Identity,
    torch.sigmoid: nn.Sigmoid,
    nn.functional.logsigmoid: nn.LogSigmoid,
}


class CaptumForward(nn.Module):
    """A module that computes the scores [N, m] of padded documents, for `captum_inputs`.

    There is no dropout, whatever the model's mode. Each non-linearity is a module that is used once, because
    Captum's DeepLift needs hooks on them. DeepLift has no rules for log-sigmoid, minimum and median, which
    some merges use.
    """

    def __init__(self, model: MACH, score: str = "logit") -> None:
        """Wraps a model.

        Args:
            model: The model.
            score: "logit" or "model", as in `MACH.label_scores`.
        """
        super().__init__()
        merge = MODEL_MERGES["mean_logit" if score == "logit" else model.merge]
        self.mach, self.merge = model, merge.reduction
        self.first_relu, self.second_relu = nn.ReLU(), nn.ReLU()
        self.transform = _TRANSFORMS[merge.transform]()

    def forward(
        self,
        values: Tensor,  # [N, P]
        indices: Tensor,  # [N, P], -1 is padding
        labels: Tensor,  # [N, m]
    ) -> Tensor:  # [N, m]
        """Returns scores [N, m].

        Args:
            values: Values of features [N, P].
            indices: Numbers of features [N, P]. -1 is padding, whose value is ignored.
            labels: Numbers of labels [N, m].
        """
        model = self.mach
        real = indices >= 0
        indptr = nn.functional.pad(real.sum(1).cumsum(0), (1, 0))
        X = (values[real], indices[real], indptr)
        weight, bias = model.bucket_weight.detach(), model.bucket_bias.detach()
        if model.is_linear:
            logits = F.linear_label_logits(*X, weight, bias, model.hash, labels, validate=False)
        else:
            encoder = model.encoder_weight.detach(), model.encoder_bias.detach()
            hidden = self.first_relu(F.sparse_linear(*X, *encoder, validate=False))
            if model.encoder == "independent":
                hidden = hidden.unflatten(1, (model.num_repetitions, -1))
            if len(model.hidden_sizes) == 2:
                second = model.hidden_weight.detach(), model.hidden_bias.detach()
                hidden = self.second_relu(F.bucket_logits(hidden, *second))
                if model.encoder == "shared":
                    hidden = hidden.squeeze(1)
            logits = F.label_logits(hidden, weight, bias, model.hash, labels, validate=False)
        return F.merge_repetitions(self.transform(logits), self.merge)


class HeadForward(nn.Module):
    """A module that computes the scores [N, m] of inputs of an encoder and a head, for `captum_inputs`.

    The encoder and the head are submodules, so algorithms for layers reach the layers of both. Each call runs
    the encoder in eval mode and without autocast, and restores its mode. As in `CaptumForward`, each
    non-linearity of the head is a module that is used once.
    """

    def __init__(self, op: str, head: MACHHead, encoder: Any, score: str) -> None:
        """Wraps a head and an encoder.

        Args:
            op: How messages call the function.
            head: The head.
            encoder: The encoder.
            score: "logit" or "model", as in `MACHHead.label_scores`.

        Raises:
            TypeError: The model is not a head, or the encoder is not callable.
        """
        super().__init__()
        self.encoding = CheckedEncoder(op, head, encoder)
        self.head, self.encoder = head, encoder
        merge = MODEL_MERGES["mean_logit" if score == "logit" else head.merge]
        self.merge, self.transform = merge.reduction, _TRANSFORMS[merge.transform]()

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:  # [N, ...], [N, m] -> [N, m]
        """Returns scores [N, m].

        Args:
            inputs: Inputs of the encoder [N, ...].
            labels: Numbers of labels [N, m].
        """
        with self.encoding.evaluating():
            hidden = self.encoding(inputs)
        weight, bias = self.head.bucket_weight.detach(), self.head.bucket_bias.detach()
        logits = F.label_logits(hidden, weight, bias, self.head.hash, labels, validate=False)
        return F.merge_repetitions(self.transform(logits), self.merge)


@memory_errors("pass fewer documents at a time or fewer labels")
def captum_inputs(
    model: MACH | MACHHead,
    X: Any,
    labels: Labels,
    *,
    encoder: Any = None,
    score: str = "logit",
    label_names: Names = None,
) -> tuple[CaptumForward | HeadForward, Tensor, tuple[Tensor, ...]]:
    """Prepares a batch of documents, hidden units or inputs of an encoder for any algorithm of Captum.

    Captum repeats and cuts its arguments along their first dimension. So documents of a `MACH` are padded to
    P features. Their values are the differentiable input, and padding gets an attribution of exactly 0.

    The differentiable input of a head is dense. It is hidden units [N, H], or [N, R, H] if the head has
    `per_repetition`. With `encoder` it is an input [N, ...] of the encoder. Captum's methods for layers take
    the layers of `forward.encoder`.

    Only the R * m buckets of the labels are computed.

    Args:
        model: The model, or a head.
        X: Documents [N, D], a SciPy, NumPy or torch matrix. For a head its hidden units, and with `encoder` a
            dense tensor or NumPy array [N, ...].
        labels: Labels [m] for every document, or numbers [N, m]. Captum's `target` is a position in them.
        encoder: A callable from inputs to the hidden units of a head, as in `integrated_gradients`. To be
            reached by DeepLift or by methods for layers, it must be a `torch.nn.Module`. Call its `eval()` if
            it recomputes activations in the backward pass.
        score: "logit" or "model", as in `MACH.label_scores`.
        label_names: Names of all L labels. None: those kept with the model, or numbers.

    Returns:
        A module that computes scores [N, m], its differentiable input, and a tuple of further arguments. For
        a `MACH` these are indices [N, P], which are -1 for padding, and labels [N, m]. For a head they are
        labels [N, m] alone.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape is wrong, a label is unknown, or a document has no feature.

    Example:
        >>> from captum.attr import IntegratedGradients
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> forward, inputs, args = mach_ext.explain.captum_inputs(model, X[:2], [0, 1])
        >>> algorithm = IntegratedGradients(forward)
        >>> algorithm.attribute(inputs, additional_forward_args=args, target=1).round(decimals=2)
        tensor([[-1.1400],
                [ 2.8000]])

        Through an encoder:

        >>> import torch
        >>> encoder, head = torch.nn.Linear(5, 8), mach_ext.MACHHead(8, 6, num_repetitions=8, num_buckets=4)
        >>> forward, inputs, args = mach_ext.explain.captum_inputs(
        ...     head, torch.ones(2, 5), [0, 1], encoder=encoder
        ... )
        >>> IntegratedGradients(forward).attribute(inputs, additional_forward_args=args, target=1).shape
        torch.Size([2, 5])
    """
    op = "captum_inputs"
    check_score(op, score)
    if encoder is not None or isinstance(model, MACHHead):
        return _head_inputs(op, model, X, labels, encoder, score, label_names)
    model = check_model(op, model)
    X = check_documents(op, model, X)
    check_parameters(op, model)
    N, lengths = X.shape[0], np.diff(X.indptr)
    if N == 0 or lengths.min() == 0:
        what = "no document" if N == 0 else f"a document without features in row {lengths.argmin()}"
        raise ValueError(f"{op}: X must be documents with at least one feature each, got {what}")
    ids = resolve_labels(op, model, labels, label_names_of(op, model, label_names), documents=N)
    padded, m = N * int(lengths.max()), ids.shape[-1]
    advice = "pass fewer documents at a time, or documents of equal length together"
    check_memory(f"{op}: padded documents", 12 * padded + 8 * N * m, advice, N=N, P=int(lengths.max()), m=m)
    values = np.zeros((N, lengths.max()), np.float32)
    indices = np.full(values.shape, -1, np.int64)
    real = np.arange(values.shape[1]) < lengths[:, None]
    values[real], indices[real] = X.data, X.indices
    device = model.bucket_bias.device
    inputs = torch.from_numpy(values).to(device, values_dtype(model))
    asked = _labels_of_each(ids, N, device)
    return CaptumForward(model, score), inputs, (torch.from_numpy(indices).to(device), asked)


def _head_inputs(
    op: str, head: Any, X: Any, labels: Labels, encoder: Any, score: str, label_names: Names
) -> tuple[HeadForward, Tensor, tuple[Tensor]]:
    """Prepares inputs of an encoder, or hidden units of a head alone."""
    forward = HeadForward(op, head, nn.Identity() if encoder is None else encoder, score)
    inputs = hidden_tensor(op, head, X) if encoder is None else input_tensor(op, head, X)
    ids = resolve_labels(op, head, labels, label_names_of(op, head, label_names), documents=len(inputs))
    return forward, inputs, (_labels_of_each(ids, len(inputs), inputs.device),)


def _labels_of_each(ids: NDArray[np.int64], N: int, device: torch.device) -> Tensor:  # [N, m]
    """Returns the labels of each document as a tensor."""
    return torch.from_numpy(np.broadcast_to(ids, (N, ids.shape[-1])).copy()).to(device)

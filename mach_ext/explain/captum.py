"""Documents and scores in the form that any Captum algorithm takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mach_ext import functional as F
from mach_ext._memory import check_memory, memory_errors
from mach_ext.explain._arguments import (
    SCORES,
    Labels,
    Names,
    check_documents,
    label_names_of,
    resolve_labels,
    values_dtype,
)
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, check_parameters


class CaptumForward(nn.Module):
    """Scores [N, m] of padded documents, for `captum_inputs`. No dropout, whatever the model's mode.

    Non-linearities are modules, each used once: that is what Captum's DeepLift hooks into. (Its rules do not
    cover log-sigmoid, minimum and median, of some models' own merges.)
    """

    def __init__(self, model: MACH, score: str = "logit") -> None:
        super().__init__()
        merge = MODEL_MERGES["mean_logit" if score == "logit" else model.merge]
        self.mach, self.merge = model, merge.reduction
        self.first_relu, self.second_relu = nn.ReLU(), nn.ReLU()
        modules: dict[Any, type[nn.Module]] = {
            None: nn.Identity,
            torch.sigmoid: nn.Sigmoid,
            nn.functional.logsigmoid: nn.LogSigmoid,
        }
        self.transform = modules[merge.transform]()

    def forward(
        self,
        values: Tensor,  # [N, P]
        indices: Tensor,  # [N, P]; -1: padding, whose value counts nothing
        labels: Tensor,  # [N, m]
    ) -> Tensor:  # [N, m]
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


@memory_errors("pass fewer documents at a time or fewer labels")
def captum_inputs(
    model: MACH, X: Any, labels: Labels, *, score: str = "logit", label_names: Names = None
) -> tuple[CaptumForward, Tensor, tuple[Tensor, Tensor]]:
    """A batch of documents as any Captum algorithm takes it.

    Captum repeats and cuts its arguments along their first dimension; so documents are padded to P features.
    The values are the differentiable input; padding gets an attribution of exactly 0. Only the R * m buckets
    of the labels are computed.

    Args:
        X: Documents [N, D], a SciPy sparse matrix.
        labels: [m], the same for every document, or ids [N, m]. Captum's `target` is a position in them.
        score: "logit" or "model", as in `MACH.label_scores`.
        label_names: As in `integrated_gradients`.

    Returns:
        forward: scores [N, m], a module (which DeepLift wants).
        inputs: values [N, P].
        args: (indices [N, P], -1 where there is padding; labels [N, m]).

    Example:
        >>> import scipy.sparse, mach_ext
        >>> from captum.attr import IntegratedGradients
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> X = scipy.sparse.random(3, 100, density=0.1, format="csr", dtype="float32", random_state=0)
        >>> forward, inputs, args = mach_ext.explain.captum_inputs(model, X, [7, 450])
        >>> ig = IntegratedGradients(forward)
        >>> ig.attribute(inputs, additional_forward_args=args, target=1).shape == inputs.shape
        True
    """
    op = "captum_inputs"
    if score not in SCORES:
        raise ValueError(f'{op}: score must be "logit" or "model", got {score!r}')
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
    asked = torch.from_numpy(np.broadcast_to(ids, (N, ids.shape[-1])).copy()).to(device)
    return CaptumForward(model, score), inputs, (torch.from_numpy(indices).to(device), asked)

"""The model's output for a single input: its logits, its top k, and the scores of any labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext.explain._arguments import check_document, check_features, check_model, document_tensors
from mach_ext.explain._encoder import Encoder, one_input
from mach_ext.head import MACHHead
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, check_parameters, check_scores, checked_k, evaluating


class Decoded(NamedTuple):
    """The model's output for a single input."""

    logits: NDArray[np.float64]  # [R, B]
    labels: NDArray[np.int64]  # the top k, followed by the next label if there is one
    scores: NDArray[np.float64]  # the scores of `labels` by the model's own merge
    k: int


def document_to_explain(op: str, model: Any, X: Any) -> tuple[MACH, Any]:
    """Returns the checked model, and a checked document [1, D] that has a feature."""
    model = check_model(op, model)
    check_parameters(op, model)
    document = check_document(op, model, X)
    check_features(op, document.indices)
    return model, document


def decode_one(op: str, model: Any, X: Any, k: int | None, encoder: Any) -> Decoded:
    """Runs the model, or the encoder and the head, on a single input and decodes its top k."""
    if encoder is None:
        model, document = document_to_explain(op, model, X)
    else:
        hidden = Encoder(op, model, encoder).hidden(one_input(op, model, X))
    k = checked_k(op, k, model.num_labels)
    with evaluating(model):
        if encoder is None:
            logits = model(*document_tensors(model, document), dropout=False)
        else:
            logits = model(hidden)
        scores, best = MODEL_MERGES[model.merge].topk(logits, model.hash, min(k + 1, model.num_labels))
        check_scores(op, model, scores)
    return Decoded(
        logits[0].double().cpu().numpy(), best[0].cpu().numpy(), scores[0].double().cpu().numpy(), k
    )


def own_scores(model: MACH, X: Any, labels: NDArray[np.int64]) -> NDArray[np.float64]:  # [N, m]
    """Returns the scores of labels by the model's own merge [N, m]."""
    ids = torch.from_numpy(labels).to(model.bucket_bias.device)
    with evaluating(model):
        scores = model.label_scores(*document_tensors(model, X), ids, "model", dropout=False)
    merged: NDArray[np.float64] = scores.double().cpu().numpy()
    return merged


def best_of_hidden(
    op: str, head: MACHHead, hidden: Tensor, k: int | None = None
) -> NDArray[np.int64]:  # [N, k]
    """Returns the top k of hidden units."""
    with evaluating(head):
        scores, labels = head.topk(hidden, k)
        check_scores(op, head, scores)
    best: NDArray[np.int64] = labels.cpu().numpy()
    return best


def scores_of_hidden(
    head: MACHHead, hidden: Tensor, labels: NDArray[np.int64]
) -> NDArray[np.float64]:  # [N, m]
    """Returns the scores of labels by the head's own merge."""
    with evaluating(head):
        scores = head.label_scores(hidden, torch.from_numpy(labels).to(hidden.device), "model")
    merged: NDArray[np.float64] = scores.double().cpu().numpy()
    return merged


def rival_of(label: int, best: NDArray[np.int64], k: int) -> int:
    """Returns the label on the other side of the border of the top k. -1: all labels are in the top k."""
    if label not in best[:k]:
        return int(best[k - 1])
    return int(best[k]) if len(best) > k else -1

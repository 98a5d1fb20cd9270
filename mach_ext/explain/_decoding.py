"""What the model makes of one document: its logits, its top k, the scores of any labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mach_ext.explain._arguments import check_document, check_features, check_model, document_tensors
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, check_parameters, check_scores, checked_k, evaluating


class Decoded(NamedTuple):
    """What the model makes of one document."""

    logits: NDArray[np.float64]  # [R, B]
    labels: NDArray[np.int64]  # the top k and, if there is one, the next label
    scores: NDArray[np.float64]  # theirs, by the model's own merge
    k: int


def document_to_explain(op: str, model: MACH, X: Any) -> Any:
    """One document [1, D] that has a feature, for a model of finite parameters."""
    check_model(op, model)
    check_parameters(op, model)
    document = check_document(op, model, X)
    check_features(op, document.indices)
    return document


def decode_one(op: str, model: MACH, X: Any, k: int | None) -> Decoded:
    document = document_to_explain(op, model, X)
    k = checked_k(op, k, model.num_labels)
    with evaluating(model):
        logits = model(*document_tensors(model, document), dropout=False)
        scores, best = MODEL_MERGES[model.merge].topk(logits, model.hash, min(k + 1, model.num_labels))
        check_scores(op, model, scores)
    return Decoded(
        logits[0].double().cpu().numpy(), best[0].cpu().numpy(), scores[0].double().cpu().numpy(), k
    )


def own_scores(model: MACH, X: Any, labels: NDArray[np.int64]) -> NDArray[np.float64]:  # [N, m]
    """Scores of some labels by the model's own merge."""
    ids = torch.from_numpy(labels).to(model.bucket_bias.device)
    with evaluating(model):
        scores = model.label_scores(*document_tensors(model, X), ids, "model", dropout=False)
    merged: NDArray[np.float64] = scores.double().cpu().numpy()
    return merged


def rival_of(label: int, best: NDArray[np.int64], k: int) -> int:
    """The label on the other side of the edge of the top k; -1: all labels are in the top k."""
    if label not in best[:k]:
        return int(best[k - 1])
    return int(best[k]) if len(best) > k else -1

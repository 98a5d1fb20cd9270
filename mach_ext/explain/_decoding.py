"""What the model makes of one document: its logits, its top k, the scores of any labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mach_ext import functional as F
from mach_ext.explain._arguments import document_tensors
from mach_ext.explain._encoder_paths import path_of
from mach_ext.nn import MACH, MODEL_MERGES, check_scores, checked_k, evaluating


class Decoded(NamedTuple):
    """What the model makes of one document."""

    logits: NDArray[np.float64]  # [R, B]
    labels: NDArray[np.int64]  # the top k and, if there is one, the next label
    scores: NDArray[np.float64]  # theirs, by the model's own merge
    k: int


def decode_one(op: str, model: MACH, X: Any, k: int | None) -> Decoded:
    path, k = path_of(op, model, X, None), checked_k(op, k, model.num_labels)
    transform, merge = MODEL_MERGES[model.merge]
    with evaluating(model):
        logits = model(*document_tensors(model, path.document), dropout=False)
        votes = logits if transform is None else transform(logits)
        scores, best = F.merge_topk(votes, model.hash, min(k + 1, model.num_labels), merge)
        check_scores(op, model, scores)
    return Decoded(
        logits[0].double().cpu().numpy(), best[0].cpu().numpy(), scores[0].double().cpu().numpy(), k
    )


def own_scores(model: MACH, X: Any, labels: NDArray[np.int64]) -> NDArray[np.float64]:  # [N, m]
    """Scores of some labels by the model's own merge."""
    asked = torch.from_numpy(labels).to(model.bucket_bias.device)
    with evaluating(model):
        scores = model.label_scores(*document_tensors(model, X), asked, "model", dropout=False)
    found: NDArray[np.float64] = scores.double().cpu().numpy()
    return found


def rival_of(label: int, best: NDArray[np.int64], k: int) -> int:
    """The label on the other side of the edge of the top k; -1: all labels are in the top k."""
    if label not in best[:k]:
        return int(best[k - 1])
    return int(best[k]) if len(best) > k else -1

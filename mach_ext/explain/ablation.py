"""The top k of a document without each of its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from mach_ext._memory import memory_errors
from mach_ext.explain._arguments import Names, feature_names_of, id_in_words, label_names_of, resolve_ids
from mach_ext.explain._decoding import document_to_explain, own_scores
from mach_ext.nn import MACH, checked_k


@dataclass(frozen=True)
class LeaveOneOut:
    """What removing each feature, alone, does to the top k of one document. See `leave_one_out`.

    Attributes:
        features, feature_names: Ids and names [n].
        labels, label_names: The document's top k.
        scores: Their scores [k], by the model's own merge.
        changes: Score without the feature - score [n, k].
        left, entered: Labels that leave the top k when the feature is removed, and those that take their
            place: a tuple of ids for each feature.
        merge: The model's, by which scores and top k are.
    """

    features: NDArray[np.int64]
    feature_names: list[str]
    labels: NDArray[np.int64]
    label_names: list[str]
    scores: NDArray[np.float64]
    changes: NDArray[np.float64]
    left: list[tuple[int, ...]]
    entered: list[tuple[int, ...]]
    merge: str


@memory_errors("ask for fewer features")
def leave_one_out(
    model: MACH,
    X: Any,
    k: int | None = None,
    features: Sequence[int | str] | None = None,
    *,
    feature_names: Names = None,
    label_names: Names = None,
) -> LeaveOneOut:
    """Each feature's effect on the whole top k: the document without it, scored and decoded again, exactly.

    Nothing is approximated, and nothing else of the document changes (its norm becomes smaller).

    Args:
        X: The document, a SciPy sparse matrix [1, D].
        k: 1 ... L; None: 5, or L where there are fewer labels.
        features: Those to remove, by id or name; None: all of the document's.
        feature_names, label_names: As in `integrated_gradients`.
    """
    op = "leave_one_out"
    document = document_to_explain(op, model, X)
    k = checked_k(op, k, model.num_labels)
    feature_names = feature_names_of(op, model, feature_names)
    label_names = label_names_of(op, model, label_names)
    present = document.indices.astype(np.int64)
    chosen = present
    if features is not None:
        chosen = resolve_ids(op, "feature", features, model.num_features, "D", feature_names)
        absent = np.setdiff1d(chosen, present)
        if absent.size:
            raise ValueError(f"{op}: the document has no feature {id_in_words(absent[0], feature_names)}")
    labels = model.predict(document, k)[1][0]
    scores = own_scores(model, document, labels)[0]
    changes = np.empty((len(chosen), k))
    left, entered = [], []
    size = max(1, min(256, (1 << 22) // max(1, document.nnz)))
    for start in range(0, len(chosen), size):
        block = chosen[start : start + size]
        without = scipy.sparse.vstack([document] * len(block), format="csr")
        without.data[np.arange(len(block)) * document.nnz + np.searchsorted(present, block)] = 0
        without.eliminate_zeros()
        changes[start : start + size] = own_scores(model, without, labels) - scores
        for row in model.predict(without, k)[1]:
            left.append(tuple(label for label in labels.tolist() if label not in row))
            entered.append(tuple(label for label in row.tolist() if label not in labels))
    return LeaveOneOut(
        features=chosen,
        feature_names=[feature_names[feature] for feature in chosen.tolist()],
        labels=labels,
        label_names=[label_names[label] for label in labels.tolist()],
        scores=scores,
        changes=changes,
        left=left,
        entered=entered,
        merge=model.merge,
    )

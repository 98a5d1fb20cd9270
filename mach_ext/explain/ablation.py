"""The top k of a document after each of its features is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from mach_ext._memory import memory_errors
from mach_ext.explain._arguments import (
    Names,
    Numbers,
    block_name,
    feature_names_of,
    id_in_words,
    label_names_of,
    resolve_ids,
)
from mach_ext.explain._decoding import document_to_explain, own_scores
from mach_ext.head import MACHHead
from mach_ext.nn import MACH, checked_k


@dataclass(frozen=True)
class LeaveOneOut:
    """The effect of removing each feature of a document. See `leave_one_out`.

    Attributes:
        features, feature_names: Numbers and names of the removed features [n]. All dense features together
            have the number D + E.
        labels, label_names: The document's top k.
        scores: Scores of the top k by the model's own merge [k].
        changes: Score without the feature minus score [n, k].
        left: Labels that leave the top k, a tuple of numbers for each feature.
        entered: Labels that enter the top k instead, a tuple of numbers for each feature.
        merge: The model's merge, which gives scores and top k.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])
        >>> effects = mach_ext.explain.leave_one_out(model, x, k=2)
        >>> effects.labels.tolist(), effects.changes.round(2).tolist()
        ([1, 2], [[-2.8, 0.42], [0.6, -1.76]])
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
    model: MACH | MACHHead,
    X: Any,
    k: int | None = None,
    features: Sequence[int | str] | None = None,
    *,
    encoder: Any = None,
    feature_names: Names = None,
    label_names: Names = None,
) -> LeaveOneOut:
    """Removes each feature of a document in turn, and returns the effect on the top k.

    The document without the feature is scored and decoded again, so the effects are exact. Other features
    keep their values. So the document's norm becomes smaller.

    The E dense features of a document are removed together, as one feature of the number D + E. Without them
    the document has the average embedding of the training documents. Their own numbers D ... D + E - 1 remove
    a single dimension.

    Args:
        model: The model, or a head.
        X: The document [1, D], a SciPy, NumPy or torch matrix, or a `mach_ext.data.HybridMatrix`. For a head,
            hidden units [1, H].
        k: Size of the top k, 1 ... L. None: 5, or L if there are fewer labels.
        features: Features to remove, by number or name. None: all features of the document.
        encoder: Must be None. The message for any other says what to use.
        feature_names: Names of all D features. None: those kept with the model, or numbers.
        label_names: Names of all L labels. None: those kept with the model, or numbers.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape is wrong, the document has no feature, or it lacks a feature that is to be
            removed.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])
        >>> words = ["meow", "bark", "hoot", "moo", "oink", "cluck"]
        >>> names = ["cat", "dog", "owl", "cow", "pig", "hen"]
        >>> effects = mach_ext.explain.leave_one_out(model, x, 2, feature_names=words, label_names=names)
        >>> for word, left, entered in zip(effects.feature_names, effects.left, effects.entered):
        ...     print(f"without {word}: {[names[i] for i in left]} -> {[names[i] for i in entered]}")
        without bark: [] -> []
        without hoot: ['owl'] -> ['pig']
    """
    op = "leave_one_out"
    if encoder is not None:
        raise ValueError(
            f"{op}: encoder must be None, got {type(encoder).__name__}; to remove parts of its input, use "
            "captum.attr.FeatureAblation with captum_inputs(head, X, labels, encoder=encoder)"
        )
    model, document = document_to_explain(op, model, X)
    k = checked_k(op, k, model.num_labels)
    chosen, feature_names = _features_to_remove(op, model, document, features, feature_names)
    label_names = label_names_of(op, model, label_names)
    labels = model.predict(document, k)[1][0]
    scores = own_scores(model, document, labels)[0]
    changes = np.empty((len(chosen), k))
    left, entered = [], []
    size = max(1, min(256, (1 << 22) // max(1, document.nnz)))
    for start in range(0, len(chosen), size):
        block = chosen[start : start + size]
        without = scipy.sparse.vstack([document] * len(block), format="csr")
        is_removed = document.indices == block[:, None]
        is_removed[block == model.num_columns] = document.indices >= model.num_features
        without.data[is_removed.ravel()] = 0
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


def _features_to_remove(
    op: str, model: MACH, document: Any, features: Any, names: Names
) -> tuple[NDArray[np.int64], Sequence[str]]:
    """Returns the numbers of the features to remove, and the names of all features.

    All dense features together have the number D + E.
    """
    names, E = feature_names_of(op, model, names), model.num_dense
    if E and not isinstance(names, Numbers):
        names = [*names, block_name(E)]
    present = document.indices[document.indices < model.num_features].astype(np.int64)
    if features is None:
        return (np.append(present, model.num_columns) if E else present), names
    count, size = (model.num_columns + 1, "D + E + 1") if E else (model.num_features, "D")
    chosen = resolve_ids(op, "feature", features, count, size, names)
    absent = np.setdiff1d(chosen[chosen < model.num_features], present)
    if absent.size:
        raise ValueError(f"{op}: the document has no feature {id_in_words(absent[0], names)}")
    return chosen, names

"""The collision check tells whether a label's score is its own or comes from labels in the same buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mach_ext._memory import memory_errors
from mach_ext.explain._arguments import Names, check_model, label_names_of, resolve_labels
from mach_ext.explain._decoding import decode_one, rival_of
from mach_ext.head import MACHHead
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH


@dataclass(frozen=True)
class Mate:
    """A label that shares buckets with the checked label.

    Attributes:
        label, name: The label.
        repetitions: Repetitions in which both are in the same bucket.
        elsewhere: Its mean logit over the other repetitions. NaN: there are no others, or no document was
            given.
        claims: Repetitions whose vote belongs to this label rather than to the checked label.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> mate = mach_ext.explain.collisions(model, None, 1).mates[0]
        >>> mate.label, mate.repetitions
        (4, (0, 2, 3, 6))
    """

    label: int
    name: str
    repetitions: tuple[int, ...]
    elsewhere: float = math.nan
    claims: tuple[int, ...] = ()


@dataclass(frozen=True)
class Collisions:
    """Which labels share a label's buckets, and whether the label's score is its own. See `collisions`.

    Attributes:
        label, name: The checked label.
        num_mates: Number of labels that share a bucket with it in any repetition.
        mates: The most telling of these labels. Those that claim votes come first, then those that share more
            repetitions, then those with a larger `elsewhere`.
        votes: The label's R logits [R]. None: no document was given.
        claimed_by: The label that claims the vote of each repetition [R]. -1: the vote is the label's own.
            None: no document was given.
        score: The score that the model's own merge gives the votes.
        own_score: The score that the merge gives the votes that nobody claims. NaN: there are none, or
            another label shares all its buckets.
        theirs: score - own_score, the part of the score that comes from other labels.
        threshold: The score of the rival, which the label must exceed to be in the top k. -inf: all labels
            are in the top k.
        verdict: "signal", "collision", "undecided" or "not predicted". Empty: no document was given.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])
        >>> check = mach_ext.explain.collisions(model, x, 2, k=2)  # label 2 shares buckets with label 1
        >>> check.verdict, check.claimed_by.tolist()
        ('collision', [-1, 1, -1, -1, 1, -1, -1, -1])
    """

    label: int
    name: str
    num_mates: int
    mates: tuple[Mate, ...]
    votes: NDArray[np.float64] | None = None
    claimed_by: NDArray[np.int64] | None = None
    score: float = math.nan
    own_score: float = math.nan
    theirs: float = math.nan
    threshold: float = math.nan
    verdict: str = ""


@memory_errors("ask for fewer mates")
def collisions(
    model: MACH | MACHHead,
    X: Any,
    label: int | str,
    *,
    encoder: Any = None,
    k: int | None = None,
    show: int = 10,
    label_names: Names = None,
) -> Collisions:
    """Checks whether a label scores high by itself or because of a label in the same buckets.

    A bucket's logit speaks for every label in the bucket. So the vote of repetition r may belong to another
    label q of the same bucket. Let q' and l' be the mean logits of q and the checked label over the
    repetitions in which they do *not* share a bucket. Label q *claims* the vote if q' > l' and the vote is
    nearer to q' than to l'.

    The label's own score is the score that the model's merge gives its unclaimed votes. The verdict follows
    from this score.

    * "signal": the own score keeps the label in the top k.
    * "collision": the label is in the top k, but its own score would not keep it there.
    * "undecided": no vote is the label's own, or another label shares all its buckets.
    * "not predicted": the label is outside the top k.

    Ranks and scores are those of the model's own merge.

    Args:
        model: The model, or a head.
        X: The document [1, D], a SciPy, NumPy or torch matrix. For a head, hidden units [1, H]. With
            `encoder`, an input [1, ...]. None: the result only says which labels share buckets.
        label: The label, by number or name.
        encoder: For a head, the encoder of `X`, as in `integrated_gradients`.
        k: Size of the top k, 1 ... L. None: 5, or L if there are fewer labels.
        show: The largest number of labels in `mates`.
        label_names: Names of all L labels. None: those kept with the model, or numbers.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape is wrong, the label is unknown, or the document has no feature. The encoder is
            refused as in `integrated_gradients`.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])
        >>> for label in (1, 2):
        ...     check = mach_ext.explain.collisions(model, x, label, k=2)
        ...     print(label, check.verdict, round(check.score, 2), round(check.own_score, 2))
        1 signal 1.86 1.86
        2 collision 0.01 -1.25
    """
    op = "collisions"
    if not isinstance(model, MACHHead):
        check_model(op, model)
    label_names = label_names_of(op, model, label_names)
    ids = resolve_labels(op, model, label, label_names)
    if len(ids) != 1:
        raise ValueError(f"{op}: label must be one label, got {len(ids)}")
    label_id = int(ids[0])
    mates, shared, label_buckets = _bucket_mates(model, label_id)
    result = Collisions(label_id, label_names[label_id], len(mates), ())
    if X is None:
        order = np.argsort(-shared.sum(1), kind="stable")[:show]
        return replace(result, mates=_mates(order, mates, shared, label_names))

    logits, best, best_scores, k = decode_one(op, model, X, k, encoder)
    R = model.num_repetitions
    buckets = model.hash.buckets_of(torch.from_numpy(mates)).cpu().numpy()
    own = logits[np.arange(R), label_buckets]  # [R]
    elsewhere, claims = _claims(own, logits[np.arange(R), buckets.T], shared)
    strength = np.where(claims, elsewhere[:, None], -np.inf)
    is_claimed = claims.any(0)
    strongest = mates[strength.argmax(0)] if len(mates) else -1
    score, free = _score(model, own), own[~is_claimed]
    inseparable = bool(shared.all(1).any())  # another label shares all buckets
    own_score = _score(model, free) if free.size and not inseparable else math.nan
    rival = rival_of(label_id, best, k)
    threshold = -math.inf if rival < 0 else float(best_scores[np.flatnonzero(best == rival)[0]])
    if label_id not in best[:k]:
        verdict = "not predicted"
    elif math.isnan(own_score):
        verdict = "undecided"
    else:
        verdict = "signal" if own_score > threshold or not is_claimed.any() else "collision"
    rank = np.nan_to_num(elsewhere, nan=np.inf)
    order = np.lexsort((-rank, -shared.sum(1), -claims.sum(1)))[:show]
    return replace(
        result,
        mates=_mates(order, mates, shared, label_names, elsewhere, claims),
        votes=own,
        claimed_by=np.where(is_claimed, strongest, -1),
        score=score,
        own_score=own_score,
        theirs=score - own_score,
        threshold=threshold,
        verdict=verdict,
    )


def _bucket_mates(
    model: MACH | MACHHead, label: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[int]]:
    """Returns labels [M] that share a bucket with a label, where they share one [M, R], and its R buckets."""
    buckets: list[int] = model.hash.buckets_of(torch.tensor([label])).flatten().tolist()
    members = [model.hash.labels_in(r, bucket).cpu().numpy() for r, bucket in enumerate(buckets)]
    mates = np.unique(np.concatenate(members))
    mates = mates[mates != label]
    shared = np.stack([np.isin(mates, group, assume_unique=True) for group in members], 1)
    return mates, shared, buckets


def _claims(
    own: NDArray[np.float64],  # [R]
    theirs: NDArray[np.float64],  # [M, R]
    shared: NDArray[np.bool_],  # [M, R]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns the mean logits of other labels elsewhere [M] and the votes that they claim [M, R]."""
    with np.errstate(invalid="ignore"):
        apart = (~shared).sum(1)
        theirs_elsewhere = np.where(shared, 0, theirs).sum(1) / apart  # NaN if they share all buckets
        own_elsewhere = np.where(shared, 0, own).sum(1) / apart
    middle = (theirs_elsewhere + own_elsewhere) / 2
    claims = shared & (theirs_elsewhere > own_elsewhere)[:, None] & (own > middle[:, None])
    return theirs_elsewhere, claims


def _mates(
    order: NDArray[Any],
    mates: NDArray[Any],
    shared: NDArray[Any],
    names: Sequence[str],
    elsewhere: NDArray[Any] | None = None,
    claims: NDArray[Any] | None = None,
) -> tuple[Mate, ...]:
    """Makes a `Mate` of each label in this order."""
    return tuple(
        Mate(
            int(mates[i]),
            names[int(mates[i])],
            tuple(np.flatnonzero(shared[i]).tolist()),
            math.nan if elsewhere is None else float(elsewhere[i]),
            () if claims is None else tuple(np.flatnonzero(claims[i]).tolist()),
        )
        for i in order.tolist()
    )


def _score(model: MACH | MACHHead, logits: NDArray[np.float64]) -> float:
    """Returns the score that the model's own merge gives some votes."""
    return float(MODEL_MERGES[model.merge].label_scores(torch.from_numpy(logits)[None, None]))

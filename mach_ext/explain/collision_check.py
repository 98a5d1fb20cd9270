"""The collision check: whether a label's score is its own or that of its bucket mates."""

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
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH


@dataclass(frozen=True)
class Mate:
    """A label that shares buckets with the one asked about.

    Attributes:
        label, name: Which.
        repetitions: Where they share a bucket.
        elsewhere: Its mean logit over the other repetitions (NaN: there are none, or no document was given).
        claims: The repetitions whose vote is its rather than the label's.
    """

    label: int
    name: str
    repetitions: tuple[int, ...]
    elsewhere: float = math.nan
    claims: tuple[int, ...] = ()


@dataclass(frozen=True)
class Collisions:
    """Who shares a label's buckets, and whether the label's score is its own. See `collisions`.

    Attributes:
        label, name: Which label.
        num_mates: Labels that share a bucket with it in some repetition.
        mates: The most telling ones: claimants first, then by repetitions shared, then by `elsewhere`.
        votes: Its R logits [R]; None without a document.
        claimed_by: For each repetition the mate whose vote it is, -1: the label's own [R]; None likewise.
        score: What the model's own merge makes of the votes.
        own_score: What it makes of the votes that nobody claims; NaN if none is left.
        theirs: score - own_score: what the label's score owes to its mates.
        threshold: Score that it must exceed to be in the top k: that of the best other label outside; -inf:
            all labels are in it.
        verdict: "signal", "collision", "undecided" (no vote is its own) or "not predicted" (outside the
            top k anyway); "" without a document.
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
    model: MACH,
    X: Any,
    label: int | str,
    *,
    k: int | None = None,
    show: int = 10,
    label_names: Names = None,
) -> Collisions:
    """The collision check: does a label score high by itself, or because of a label in its buckets?

    A bucket's logit speaks for every label in it. The vote of repetition r is *claimed* by a mate q, a label
    of the same bucket, if what both get elsewhere says that it is q's: with q' and l' the mean logits of q
    and of the label over the repetitions in which they do *not* share a bucket, q' > l', and the vote is
    nearer to q' than to l'. The label's own score is what the model's merge makes of its unclaimed votes. A
    label of the top k is a "signal" if its own score would still keep it there, else a "collision". Ranks and
    scores are by the model's own merge.

    Args:
        X: The document, a SciPy sparse matrix [1, D]; None: only who shares buckets.
        label: Id or name.
        k: 1 ... L; None: 5, or L where there are fewer labels.
        show: Mates to return.
        label_names: As in `integrated_gradients`.
    """
    op = "collisions"
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

    logits, best, best_scores, k = decode_one(op, model, X, k)
    R = model.num_repetitions
    buckets = model.hash.buckets_of(torch.from_numpy(mates)).cpu().numpy()
    own = logits[np.arange(R), label_buckets]  # [R]
    elsewhere, claims = _claims(own, logits[np.arange(R), buckets.T], shared)
    strength = np.where(claims, elsewhere[:, None], -np.inf)
    is_claimed = claims.any(0)
    strongest = mates[strength.argmax(0)] if len(mates) else -1
    score, free = _score(model, own), own[~is_claimed]
    inseparable = bool(shared.all(1).any())  # a mate in all of the label's buckets
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


def _bucket_mates(model: MACH, label: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[int]]:
    """Labels [M] that share a bucket with this one, where they do [M, R], and its R buckets."""
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
    """Mean logits of the mates elsewhere [M] and the votes that they claim [M, R]."""
    with np.errstate(invalid="ignore"):
        apart = (~shared).sum(1)
        theirs_elsewhere = np.where(shared, 0, theirs).sum(1) / apart  # NaN where they share everything
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


def _score(model: MACH, logits: NDArray[np.float64]) -> float:
    """What the model's own merge makes of some votes."""
    return float(MODEL_MERGES[model.merge].label_scores(torch.from_numpy(logits)[None, None]))

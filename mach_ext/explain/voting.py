"""How each repetition voted for a label, and whether other hash functions would agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mach_ext._memory import check_import, memory_errors
from mach_ext.explain._arguments import Labels, Names, label_names_of, resolve_labels
from mach_ext.explain._decoding import decode_one, rival_of
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH


@dataclass(frozen=True)
class Votes:
    """How each repetition voted for some labels of one document.

    Attributes:
        labels, label_names: Ids and names [m].
        logits: The R bucket logits of each label [m, R].
        scores: Their mean [m].
        spread: Standard deviation of the R logits [m]; NaN for R = 1.
        standard_error: spread / sqrt(R): of their mean, over draws of the label hash [m].
        rivals: The label on the other side of the edge of the top k [m]: for a label in the top k the best
            one outside it, for the others the k-th; -1: all labels are in it.
        agreement: How far the hash functions agree that the label belongs in the top k [m]: the chance that
            it would rank before its rival if all hash functions voted, not R of them. It is estimated by
            Student's t from the differences of the two labels' votes, in repetitions where their buckets
            differ. It says nothing about whether the label is right: a model can be wrong with every hash
            function. NaN with fewer than two of those repetitions, without a rival, and for merges that are
            no mean.
        k: Of the top k that is meant.
    """

    labels: NDArray[np.int64]
    label_names: list[str]
    logits: NDArray[np.float64]
    scores: NDArray[np.float64]
    spread: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    rivals: NDArray[np.int64]
    agreement: NDArray[np.float64]
    k: int

    @property
    def certainty(self) -> NDArray[np.float64]:
        """The former name of `agreement`."""
        return self.agreement


@memory_errors("ask for fewer labels")
def votes(
    model: MACH, X: Any, labels: Labels | None = None, *, k: int | None = None, label_names: Names = None
) -> Votes:
    """The R votes (bucket logits) for each label, their spread, and whether other hash functions would agree.

    Ranks are by the model's own merge.

    Args:
        X: The document, a SciPy sparse matrix [1, D].
        labels: Ids or names; None: the top k.
        k: Of `Votes.rivals` and `Votes.agreement`; 1 ... L; None: 5, or L where there are fewer labels.
        label_names: As in `integrated_gradients`.
    """
    op = "votes"
    logits, best, _, k = decode_one(op, model, X, k)
    label_names = label_names_of(op, model, label_names)
    ids = resolve_labels(op, model, best[:k] if labels is None else labels, label_names)
    R = model.num_repetitions
    rivals = np.array([rival_of(label, best, k) for label in ids.tolist()], np.int64)
    buckets, rival_buckets = (  # [R, m]
        model.hash.buckets_of(torch.from_numpy(each)).cpu().numpy() for each in (ids, rivals.clip(0))
    )
    own, theirs = (logits[np.arange(R), each.T] for each in (buckets, rival_buckets))  # [m, R]
    others = buckets != rival_buckets
    merge = MODEL_MERGES[model.merge]
    pair = merge.transformed(torch.from_numpy(np.stack((own, theirs)))).numpy()
    difference = pair[0] - pair[1]
    is_mean = merge.reduction == "mean"
    agreement = [
        _student(difference[i][others[:, i]]) if is_mean and rivals[i] >= 0 else math.nan
        for i in range(len(ids))
    ]
    spread = own.std(1, ddof=1) if R > 1 else np.full(len(ids), math.nan)
    return Votes(
        labels=ids,
        label_names=[label_names[label] for label in ids.tolist()],
        logits=own,
        scores=own.mean(1),
        spread=spread,
        standard_error=spread / math.sqrt(R),
        rivals=rivals,
        agreement=np.array(agreement),
        k=k,
    )


def _student(differences: NDArray[np.float64]) -> float:
    """Chance that the mean is above 0, given a sample."""
    n = len(differences)
    if n < 2:
        return math.nan
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(n)
    if error == 0:
        return 0.5 if mean == 0 else float(mean > 0)
    check_import("scipy.special")
    from scipy import special

    return float(special.stdtr(n - 1, mean / error))

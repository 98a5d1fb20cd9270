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
from mach_ext.head import MACHHead
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH


@dataclass(frozen=True)
class Votes:
    """The votes of each repetition for labels of a document.

    `agreement` is the chance that a label would rank before its rival if infinitely many hash functions voted
    instead of R. Student's t estimates it from the differences of the two labels' votes, in repetitions where
    their buckets differ. It does not say whether the label is right, because a model can be wrong with every
    hash function.

    Attributes:
        labels, label_names: Numbers and names of the labels [m].
        logits: The R bucket logits of each label [m, R].
        scores: Their mean [m].
        spread: Standard deviation of the R logits [m]. NaN: R is 1.
        standard_error: spread / sqrt(R), the standard error of the mean over random label hashes [m].
        rivals: The label on the other side of the border of the top k [m]. A label in the top k has the best
            label outside as its rival, and any other label has the k-th. -1: all labels are in the top k.
        agreement: Estimated chance that the label ranks before its rival [m]. NaN: there are fewer than two
            such repetitions, there is no rival, or the merge is not a mean.
        k: Size of the top k.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])
        >>> result = mach_ext.explain.votes(model, x, [1, 2], k=2)
        >>> result.logits.round(1).tolist()[0]
        [1.3, 3.7, 1.2, 1.3, 3.8, 1.2, 1.3, 1.1]
        >>> result.agreement.round(2).tolist()
        [1.0, 0.78]
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
        """The former name of `agreement`.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> mach_ext.explain.votes(model, X[1], [1], k=2).certainty.round(2).tolist()
            [1.0]
        """
        return self.agreement


@memory_errors("ask for fewer labels")
def votes(
    model: MACH | MACHHead,
    X: Any,
    labels: Labels | None = None,
    *,
    encoder: Any = None,
    k: int | None = None,
    label_names: Names = None,
) -> Votes:
    """Returns the R votes (bucket logits) for each label, their spread, and the agreement of the votes.

    Ranks are those of the model's own merge.

    Args:
        model: The model, or a head.
        X: The document [1, D], a SciPy, NumPy or torch matrix. For a head, hidden units [1, H]. With
            `encoder`, an input [1, ...].
        labels: Labels by number or name. None: the top k.
        encoder: For a head, the encoder of `X`, as in `integrated_gradients`.
        k: Size of the top k in `Votes.rivals` and `Votes.agreement`, 1 ... L. None: 5, or L if there are
            fewer labels.
        label_names: Names of all L labels. None: those kept with the model, or numbers.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape is wrong, a label is unknown, or the document has no feature. The encoder is
            refused as in `integrated_gradients`.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])
        >>> words = ["meow", "bark", "hoot", "moo", "oink", "cluck"]
        >>> names = ["cat", "dog", "owl", "cow", "pig", "hen"]
        >>> result = mach_ext.explain.votes(model, x, k=2, label_names=names)
        >>> for name, score, error in zip(result.label_names, result.scores, result.standard_error):
        ...     print(f"{name}: {score:.2f} ± {error:.2f}")
        dog: 1.86 ± 0.42
        owl: 0.01 ± 0.82
    """
    op = "votes"
    logits, best, _, k = decode_one(op, model, X, k, encoder)
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
    """Returns the chance that the mean of a distribution is above 0, given a sample."""
    n = len(differences)
    if n < 2:
        return math.nan
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(n)
    if error == 0:
        return 0.5 if mean == 0 else float(mean > 0)
    check_import("scipy.special")
    from scipy import special

    return float(special.stdtr(n - 1, mean / error))

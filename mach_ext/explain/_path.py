"""What all paths from a baseline to an input share: both ends, blocks of labels, rules of integration."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext import functional as F
from mach_ext._memory import check_import, check_memory
from mach_ext.explain._arguments import (
    Names,
    check_document,
    check_documents,
    check_features,
    feature_names_of,
    values_at,
)
from mach_ext.explain._decoding import own_scores
from mach_ext.head import MACHHead
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, check_scores, evaluating

BLOCK_BYTES = 1 << 24  # 16 MiB for the temporaries of any loop over a path
PANEL = 32  # Gauss-Legendre nodes on each piece of the path while the number of steps doubles
Nodes: TypeAlias = "tuple[Tensor, ...]"  # positions in [0, 1], weights of sum 1; [S] each


@dataclass(frozen=True)
class Rule:
    """What is integrated and how. These are the checked arguments of `integrated_gradients`."""

    score: str
    method: str
    n_steps: int | None
    tolerance: float
    max_steps: int


class Block(NamedTuple):
    """The results for a block of labels."""

    attributions: Tensor  # [m, n]
    scores: Tensor  # [m, 2], of the input and the baseline
    steps: int
    met: bool  # whether the tolerance was met


class Path:
    """The straight path from a baseline to an input, as far as it is the same for all labels, in float64.

    A label is given by its part of the bucket weights, `columns` [R, ., m] and `bias` [R, m]. Three methods
    differ between encoders.

    * `pull` returns the score's derivative to the first layer, averaged along the path. For linear MACH this
      is the derivative to the label's bucket logits.
    * `project` turns this derivative into attributions of features.
    * `total` is the sum of each row of `project`.

    With `nodes` None the averages are exact, which works for logit scores only. Otherwise they are sums over
    the nodes.
    """

    op: str
    model: MACH | MACHHead
    device: torch.device
    numbers_a_label: int  # how many numbers `columns` takes for each label
    has_closed_form: bool  # whether `nodes` may be None
    features: NDArray[np.int64]  # [n], those that get attributions
    feature_names: list[str]
    values: NDArray[np.float32]  # [n], of the input
    baselines: NDArray[np.float32]  # [n], of the baseline
    shape: tuple[int, ...] | None = None  # of an input that is no document
    num_dense = 0  # how many of the last features are dense

    def label_blocks(self, ids: NDArray[np.int64]) -> list[Tensor]:
        """Splits labels into blocks whose temporaries fit in BLOCK_BYTES."""
        return list(torch.from_numpy(ids).to(self.device).split(block_size(self.numbers_a_label)))

    def explain(self, labels: Tensor, rule: Rule) -> Block:
        """Returns attributions and scores of a block of labels."""
        buckets = self.model.hash.buckets_of(labels).long()  # [R, m]
        columns, bias = self.columns(buckets), self.model.bucket_bias.detach().gather(1, buckets)
        scores = self.scores(columns, bias, rule.score)
        steps, met = rule.n_steps or 0, True
        if rule.method == "exact":
            pulled = self.pull(columns, bias, rule.score, None)
        elif rule.n_steps is not None:
            pulled = self.pull(columns, bias, rule.score, self.nodes(steps, steps))
        else:
            pulled, steps, met = self.integrate(columns, bias, rule, scores)
        return Block(self.project(columns, pulled), scores, steps, met)

    def integrate(
        self, columns: Tensor, bias: Tensor, rule: Rule, scores: Tensor
    ) -> tuple[Tensor, int, bool]:
        """Doubles the steps until the tolerance is met twice in a row.

        Returns:
            The result of `pull`, the number of steps, and whether the tolerance is met.
        """
        change = (scores[:, 0] - scores[:, 1]).double()
        bound = rule.tolerance * scores.abs().sum(1)
        steps, met_before = PANEL, False
        while True:
            pulled = self.pull(columns, bias, rule.score, self.nodes(steps, PANEL))
            met = bool(((self.total(columns, pulled) - change).abs() <= bound).all())
            if (met and met_before) or 2 * steps > rule.max_steps:
                return pulled, steps, met
            steps, met_before = 2 * steps, met

    def nodes(self, steps: int, panel: int) -> Nodes:
        """Returns the Gauss-Legendre rule of `panel` nodes on each of steps / panel equal pieces."""
        check_memory("integrated_gradients: nodes", 32 * steps, "lower n_steps or max_steps", steps=steps)
        positions, weights = _legendre(panel)
        pieces = steps // panel
        at = (np.arange(pieces)[:, None] + positions) / pieces
        numbers = np.stack((at.ravel(), np.tile(weights / pieces, pieces)))
        return tuple(torch.from_numpy(numbers).to(self.device))

    def scores(self, columns: Tensor, bias: Tensor, score: str) -> Tensor:  # [m, 2]
        """Returns the scores of the input and the baseline.

        They come from the model's own operators, applied to the labels' part of its weights.
        """
        merge = MODEL_MERGES["mean_logit" if score == "logit" else self.model.merge]
        with evaluating(self.model):
            logits = self.logits(columns, bias).transpose(1, 2)  # [2, m, R]
            scores = merge.label_scores(logits)
            check_scores(self.op, self.model, scores)
            return scores.T

    def top_labels(self) -> NDArray[np.int64]:
        """Returns the usual number of best labels of the input."""
        raise NotImplementedError

    def own_scores(self, labels: NDArray[np.int64]) -> NDArray[np.float64]:  # [m]
        """Returns the input's scores by the model's own merge."""
        raise NotImplementedError

    def columns(self, buckets: Tensor) -> Tensor:
        """Returns the labels' part of the bucket weights."""
        raise NotImplementedError

    def logits(self, columns: Tensor, bias: Tensor) -> Tensor:  # [2, R, m]
        """Returns the logits of the input and the baseline."""
        raise NotImplementedError

    def pull(self, columns: Tensor, bias: Tensor, score: str, nodes: Nodes | None) -> Tensor:
        """Returns the score's derivative to the first layer, averaged along the path."""
        raise NotImplementedError

    def total(self, columns: Tensor, pulled: Tensor) -> Tensor:  # [m]
        """Returns the sum of all attributions of each label."""
        raise NotImplementedError

    def project(self, columns: Tensor, pulled: Tensor) -> Tensor:  # [m, n]
        """Returns the attribution of each feature."""
        raise NotImplementedError


class DocumentPath(Path):
    """The path from a baseline to a sparse document, at the nnz features of the two."""

    model: MACH
    has_closed_form = True

    def __init__(self, op: str, model: MACH, X: Any, baseline: Any, feature_names: Names) -> None:
        """Checks the document and the baseline.

        Raises:
            ValueError: There is more than one document or baseline, or no feature.
        """
        self.op, self.model, self.num_dense = op, model, model.num_dense
        self.document = check_document(op, model, X)
        self.baseline = scipy.sparse.csr_matrix((1, model.num_columns), dtype=np.float32)
        if baseline is not None:
            self.baseline = check_documents(op, model, baseline, "baseline")
            if self.baseline.shape[0] != 1:
                raise ValueError(f"{op}: baseline must be one document [1, D], got {self.baseline.shape}")
        self.features = np.union1d(self.document.indices, self.baseline.indices).astype(np.int64)
        check_features(op, self.features)
        names = feature_names_of(op, model, feature_names)
        self.feature_names = [names[feature] for feature in self.features.tolist()]
        self.values = values_at(self.document, self.features)
        self.baselines = values_at(self.baseline, self.features)
        self.device = model.bucket_bias.device
        self.rows = torch.from_numpy(self.features).to(self.device)  # [nnz]
        self.x, self.b = (  # [nnz]
            torch.from_numpy(values.astype(np.float64)).to(self.device)
            for values in (self.values, self.baselines)
        )

    def top_labels(self) -> NDArray[np.int64]:
        """Returns the usual number of best labels of the document."""
        labels: NDArray[np.int64] = self.model.predict(self.document)[1][0]
        return labels

    def own_scores(self, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the document's scores by the model's own merge."""
        scores: NDArray[np.float64] = own_scores(self.model, self.document, labels)[0]
        return scores


def block_size(numbers: int) -> int:
    """Returns how many items of `numbers` float64 values fit in BLOCK_BYTES."""
    return max(1, BLOCK_BYTES // (8 * numbers))


def bucket_columns(model: MACH | MACHHead, buckets: Tensor) -> Tensor:  # [R, H, m]
    """Returns the bucket weights of labels' buckets [R, m] on the hidden units."""
    weight = model.bucket_weight.detach()
    return torch.stack([w.index_select(1, b) for w, b in zip(weight, buckets, strict=True)])


def active_fraction(start: Tensor, end: Tensor) -> Tensor:
    """Returns the fraction of [0, 1] on which start + a * (end - start) is above 0."""
    positive = torch.maximum(start, end).relu() - torch.minimum(start, end).relu()
    crossing = positive / (end - start).abs()
    same = (start > 0) == (end > 0)
    return torch.where(same, (start > 0).double(), crossing)


def merge_gradient(model: MACH | MACHHead, logits: Tensor) -> Tensor:
    """Returns the derivative of the model's own score to the R logits of a label, [S, m, R] or [m, R]."""
    merge = MODEL_MERGES[model.merge]
    with torch.inference_mode(False), torch.enable_grad():
        logits = logits.detach().clone().requires_grad_()  # They may be an inference tensor.
        votes = merge.transformed(logits)
        score = F.merge_repetitions(votes.reshape(1, -1, votes.shape[-1]), merge.reduction).sum()
        (gradient,) = torch.autograd.grad(score, logits)
    return gradient


def is_mean_logit(model: MACH | MACHHead, score: str) -> bool:
    """Returns whether a score is a mean of logits."""
    return score == "logit" or model.merge == "mean_logit"


@functools.lru_cache(maxsize=16)
def _legendre(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns positions and weights of the Gauss-Legendre rule of n nodes on [0, 1]."""
    check_import("scipy.special")
    from scipy import special  # importing it takes 0.1 s

    positions, weights = special.roots_legendre(n)
    return (positions + 1) / 2, weights / 2

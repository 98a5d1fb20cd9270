"""Explanations: what each feature of a document adds to the score of any label, and how MACH came to it.

* `integrated_gradients`, `contrast`, `explain_topk`: exact attributions, many labels in one product.
* `captum_inputs`: the same scores for any Captum algorithm.
* `votes`, `collisions`, `removals`: how the repetitions voted, whether a score is a label's own or its bucket
  mates', what removing a feature does to the top k.

**Integrated Gradients** (Sundararajan et al., 2017) of a score F along the straight path from a baseline b
to the document x: IG_d = (x_d - b_d) * mean over a in [0, 1] of dF/dx_d at b + a (x - b). Its sum is
F(x) - F(b); what is left of that, by rounding or by steps, is the *delta*. A feature that is absent from x
and b has IG_d = 0, so sums over the union of their supports are the whole.

With ReLU layers and a score that is a mean of logits, F is piecewise linear along the path, and the mean is
known in closed form (`method="exact"`). A first-layer unit's pre-activation is affine in a, so the fraction
f_j of the path on which it is active is the length of an interval; IG_d = (x_d - b_d) sum_j W[d, j] f_j u_j
with u_j the label's weight on unit j. With a second layer, the path is cut where first-layer units switch; on
each piece the second layer's pre-activations are affine, too, and f_j u_j becomes sum_k W2[j, k] C[j, k] u_k
with C[j, k] the fraction on which units j and k are active together. Neither f nor C depends on the label.

The path through the encoder is computed in float64; scores F are the model's own forward pass, so a delta is
also a check of the model's arithmetic against this module's.

Notation: N documents, D features, L labels, m labels asked for, R repetitions, B buckets, H hidden units.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mach_ext import functional as F
from mach_ext._memory import check_import, check_memory, memory_errors
from mach_ext.data import attachments as kept
from mach_ext.data import check_csr, json_line, name_key
from mach_ext.nn import MACH, MODEL_MERGES, check_parameters, check_scores, checked_k, evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Collisions",
    "Explanation",
    "Mate",
    "Removals",
    "StepsWarning",
    "Votes",
    "captum_inputs",
    "collisions",
    "contrast",
    "explain_topk",
    "integrated_gradients",
    "removals",
    "votes",
]

Labels: TypeAlias = "int | str | Sequence[int | str] | NDArray[Any] | Tensor"
Names: TypeAlias = "Sequence[str] | None"
SCORES = ("logit", "model")
METHODS = ("exact", "gausslegendre")
_BLOCK_BYTES = 1 << 24  # temporaries of any loop below: 16 MiB
_PANEL = 32  # Gauss-Legendre nodes on each piece of the path when the number of steps is found


class StepsWarning(UserWarning):
    """Integrated Gradients met its limit of steps before its tolerance."""


# --------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True)
class Explanation:
    """Attributions of the scores of m labels to the nnz features of one document.

    Attributes:
        features: Ids [nnz], ascending: all in which the document or the baseline is not zero.
        feature_names: Their names [nnz].
        values, baselines: What the document and the baseline have there [nnz], float32.
        labels: Ids [m].
        label_names: Their names [m].
        scores, baseline_scores: What is explained, of document and baseline, by the model's forward pass [m].
        attributions: [m, nnz] float64.
        delta: Sum of attributions - (scores - baseline_scores), [m]: how much is unexplained.
        score: "logit" or "model", as in `MACH.label_scores`.
        scale: What `scores` are: "mean_logit", or with score "model" the model's own merge.
        model_scores: Scores by the model's own merge, those of `MACH.predict` [m].
        model_scale: What these are: that merge.
        method: "exact" or "gausslegendre".
        n_steps: Steps taken; 0 for the exact method.
        rival: Of a contrast, the label whose score was subtracted.
        text: The raw text, if given.
    """

    features: NDArray[np.int64]
    feature_names: list[str]
    values: NDArray[np.float32]
    baselines: NDArray[np.float32]
    labels: NDArray[np.int64]
    label_names: list[str]
    scores: NDArray[np.float64]
    baseline_scores: NDArray[np.float64]
    attributions: NDArray[np.float64]
    delta: NDArray[np.float64]
    score: str
    scale: str
    model_scores: NDArray[np.float64]
    model_scale: str
    method: str
    n_steps: int = 0
    rival: int | None = None
    text: str | None = field(default=None, repr=False)

    def row(self, label: int | None = None) -> int:
        """Where a label (None: the first) is in `labels`. ValueError: it was not explained."""
        if label is None:
            return 0
        at = np.flatnonzero(self.labels == label)
        if not at.size:
            raise ValueError(f"Explanation: label {label} must be one of {self.labels.tolist()}")
        return int(at[0])

    def top(self, n: int = 10, label: int | None = None) -> list[tuple[str, float]]:
        """The n features of largest absolute attribution, as (name, attribution); ties: lowest id first."""
        row = self.attributions[self.row(label)]
        order = np.argsort(-np.abs(row), kind="stable")[:n]
        return [(self.feature_names[i], float(row[i])) for i in order]

    @memory_errors("ask for fewer labels")
    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in content.items()}

    @memory_errors("ask for fewer labels")
    def to_json(self, file: str | Path | None = None) -> str:
        """The explanation as JSON text; also written to `file`, if given."""
        text = json_line(self.as_dict())
        if file is not None:
            Path(file).write_text(text + "\n", encoding="utf-8")
        return text

    @memory_errors("ask for fewer labels")
    def plot(self, n: int = 15, label: int | None = None) -> Figure:
        """Bar chart of the n largest attributions (matplotlib)."""
        from mach_ext import report

        return report.plot_attributions(self, n, label)

    @memory_errors("ask for fewer labels")
    def to_html(self, file: str | Path | None = None, **options: Any) -> str:
        """One self-contained page, also written to `file`, if given.

        Options as in `mach_ext.report.explanation_page`: votes, collisions, removals, and the vectoriser that
        finds the words in `text`.
        """
        from mach_ext import report

        page = report.explanation_page(self, **options)
        if file is not None:
            Path(file).write_text(page, encoding="utf-8")
        return page


# ------------------------------------------------------------------------------------ integrated gradients


@memory_errors("ask for fewer labels or lower n_steps")
def integrated_gradients(
    model: MACH,
    X: Any,
    labels: Labels | None = None,
    *,
    method: str | None = None,
    score: str = "logit",
    baseline: Any = None,
    n_steps: int | None = None,
    tolerance: float = 1e-3,
    max_steps: int = 1024,
    feature_names: Names = None,
    label_names: Names = None,
    text: str | None = None,
) -> Explanation:
    """Integrated Gradients of the scores of many labels of one document.

    The cost does not grow with L, B or D: only the R * m buckets asked for are read, and the encoder's rows
    of the document's features.

    Args:
        model: Used in eval mode.
        X: The document, a SciPy sparse matrix [1, D].
        labels: Ids, or names where the model or `label_names` has them; None: the model's top 5.
        method: "exact" (closed form) where the score is a mean of logits: `score="logit"`, or a model of
            merge "mean_logit"; "gausslegendre" for any score. None: exact where it holds.
        score: "logit": mean of the R logits. "model": the model's own merge.
        baseline: None: the empty document. Else D numbers: SciPy sparse [1, D] (another document) or an
            array (a mean document: `X_train.mean(0)`).
        n_steps: Steps of "gausslegendre", Captum's rule of that name. None: from 32 on they double until
            |delta| <= tolerance * (|F(x)| + |F(baseline)|) for every label, twice in a row (once may be
            chance).
        tolerance, max_steps: For n_steps None. A `StepsWarning` says when max_steps is not enough. What is
            bounded is the sum of a label's attributions; a single one can be off by a few times as much.
        feature_names, label_names: All D, all L names; None: those kept with the model, else numbers.
        text: The raw text, kept for the report.

    Raises:
        TypeError, ValueError: Wrong shapes, a label outside [0, L) or of unknown name, no feature at all,
            method "exact" for another score.

    Example:
        >>> import scipy.sparse, mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> x = scipy.sparse.csr_matrix(([1.0, 0.5], [3, 8], [0, 2]), (1, 100))
        >>> result = mach_ext.explain.integrated_gradients(model, x, [7, 450])
        >>> result.attributions.shape
        (2, 2)
        >>> float(abs(result.delta).max()) < 1e-5
        True
    """
    op = "integrated_gradients"
    path = _path(op, model, X, baseline)
    method = _method(op, model, method, score, n_steps, tolerance, max_steps)
    if labels is None:
        labels = model.predict(path.document)[1][0]
    label_names = _label_names(op, model, label_names)
    ids = resolve_labels(op, model, labels, label_names)
    feature_names = _feature_names(op, model, feature_names)
    m, nnz = len(ids), len(path.features)
    check_memory(f"{op}: attributions", 16 * m * nnz, "ask for fewer labels", labels=m, features=nnz)
    blocks = [
        path.explain(block, score, method, n_steps, tolerance, max_steps) for block in path.label_blocks(ids)
    ]
    attributions = np.concatenate([block.attributions.cpu().numpy() for block in blocks])
    scores = np.concatenate([block.scores.double().cpu().numpy() for block in blocks])
    change = scores[:, 0] - scores[:, 1]
    delta = attributions.sum(1) - change
    steps = max(block.steps for block in blocks)
    if not all(block.met for block in blocks):
        worst = np.argmax(np.abs(delta) - tolerance * np.abs(scores).sum(1))
        warnings.warn(
            f"{op}: max_steps {max_steps} do not meet tolerance {tolerance:g}: after {steps} steps label "
            f"{ids[worst]} has delta {delta[worst]:.3g}",
            StepsWarning,
            stacklevel=3,  # behind `memory_errors`
        )
    features = path.features.cpu().numpy()
    scale = "mean_logit" if score == "logit" else model.merge
    return Explanation(
        features=features,
        feature_names=[feature_names[feature] for feature in features.tolist()],
        values=path.x.cpu().numpy().astype(np.float32),
        baselines=path.b.cpu().numpy().astype(np.float32),
        labels=ids,
        label_names=[label_names[label] for label in ids.tolist()],
        scores=scores[:, 0],
        baseline_scores=scores[:, 1],
        attributions=attributions,
        delta=delta,
        score=score,
        scale=scale,
        model_scores=scores[:, 0] if scale == model.merge else _own_scores(model, path.document, ids)[0],
        model_scale=model.merge,
        method=method,
        n_steps=steps,
        text=text,
    )


@memory_errors("pass fewer documents at a time or lower k")
def explain_topk(
    model: MACH, X: Any, k: int | None = None, texts: Sequence[str] | None = None, **options: Any
) -> Iterator[Explanation]:
    """`integrated_gradients` of each document's own top k (by the model's merge), one document at a time.

    Args:
        X: Documents [N, D], a SciPy sparse matrix.
        k: 1 ... L; None: 5, or L where there are fewer labels.
        texts: Raw texts [N], for the reports.
        options: As in `integrated_gradients`.

    Raises:
        As `integrated_gradients`; a document without features is named by its row.
    """
    op = "explain_topk"
    X, k = _check_columns(op, model, X), checked_k(op, k, model.num_labels)
    empty = np.flatnonzero(np.diff(X.indptr) == 0)
    if empty.size and options.get("baseline") is None:
        raise ValueError(f"{op}: X, row {empty[0]}: a document must have a feature to be explained, got none")
    if texts is not None and len(texts) != X.shape[0]:
        raise ValueError(f"{op}: texts must be N={X.shape[0]}, got {len(texts)}")
    _, labels = model.predict(X, k)
    for n in range(X.shape[0]):
        text = None if texts is None else texts[n]
        yield integrated_gradients(model, X[n], labels[n], text=text, **options)


@memory_errors("lower n_steps")
def contrast(model: MACH, X: Any, label: int | str, rival: int | str, **options: Any) -> Explanation:
    """Why `label` and not `rival`: attributions of the difference of their scores.

    What both labels owe to a bucket that they share cancels (with logit scores), so of labels that share all
    buckets nothing is left.

    Args:
        label, rival: Two labels, by id or name.
        options: As in `integrated_gradients`.

    Returns:
        An explanation of `label` alone, in which scores, attributions and delta are differences.
    """
    pair = integrated_gradients(model, X, [label, rival], **options)
    difference = {
        name: getattr(pair, name)[:1] - getattr(pair, name)[1:]
        for name in ("scores", "model_scores", "baseline_scores", "attributions", "delta")
    }
    names = [f"{pair.label_names[0]} rather than {pair.label_names[1]}"]
    rival_id = int(pair.labels[1])
    return replace(pair, labels=pair.labels[:1], label_names=names, rival=rival_id, **difference)


# ------------------------------------------------------------------------- the path through the encoder


_Nodes: TypeAlias = "tuple[Tensor, ...]"  # positions in [0, 1], weights of sum 1; [S] each


class _Block(NamedTuple):
    """What is known of some labels."""

    attributions: Tensor  # [m, nnz]
    scores: Tensor  # [m, 2], of document and baseline
    steps: int
    met: bool  # the tolerance


class _Path:
    """The straight path from baseline to document, as far as it is the same for all labels; float64.

    Labels come as their part of the bucket weights, `columns` [R, ., m] and `bias` [R, m]. `pull` takes them
    to the score's derivative to the first layer (linear MACH: to the labels' buckets), averaged along the
    path; `project` takes that to the features; `total` is the sum of a row of `project`. With `nodes` None
    averages are exact (logit scores only), else sums over the nodes.
    """

    numbers_a_label: int  # of `columns`

    def __init__(self, op: str, model: MACH, X: Any, baseline: Any) -> None:
        self.op, self.model = op, model
        self.document = _check_columns(op, model, X)
        if self.document.shape[0] != 1:
            raise ValueError(
                f"{op}: X must be one document [1, D], got shape {self.document.shape}; "
                "explain_topk takes many"
            )
        self.baseline = scipy.sparse.csr_matrix((1, model.num_features), dtype=np.float32)
        if baseline is not None:
            self.baseline = _check_columns(op, model, baseline, "baseline")
            if self.baseline.shape[0] != 1:
                raise ValueError(f"{op}: baseline must be one document [1, D], got {self.baseline.shape}")
        features = np.union1d(self.document.indices, self.baseline.indices).astype(np.int64)
        if not features.size:
            raise ValueError(f"{op}: X: a document must have a feature to be explained, got none")
        self.device = model.bucket_bias.device
        self.features = torch.from_numpy(features).to(self.device)  # [nnz]
        self.x, self.b = (  # [nnz]
            torch.from_numpy(_at(row, features).astype(np.float64)).to(self.device)
            for row in (self.document, self.baseline)
        )

    def label_blocks(self, ids: NDArray[np.int64]) -> list[Tensor]:
        """Labels, as many at a time as keep temporaries within _BLOCK_BYTES."""
        size = max(1, _BLOCK_BYTES // (8 * self.numbers_a_label))
        return list(torch.from_numpy(ids).to(self.device).split(size))

    def explain(
        self, labels: Tensor, score: str, method: str, n_steps: int | None, tolerance: float, max_steps: int
    ) -> _Block:
        buckets = self.model.hash.buckets_of(labels).long()  # [R, m]
        columns, bias = self.columns(buckets), self.model.bucket_bias.detach().gather(1, buckets)
        scores = self.scores(columns, bias, score)
        steps, met = n_steps or 0, True
        if method == "exact":
            pulled = self.pull(columns, bias, score, None)
        elif n_steps is not None:
            pulled = self.pull(columns, bias, score, self.nodes(n_steps, n_steps))
        else:
            change = (scores[:, 0] - scores[:, 1]).double()
            bound = tolerance * scores.abs().sum(1)
            steps, met, met_before = _PANEL, False, False
            while True:
                pulled = self.pull(columns, bias, score, self.nodes(steps, _PANEL))
                met = bool(((self.total(columns, pulled) - change).abs() <= bound).all())
                if (met and met_before) or 2 * steps > max_steps:
                    break
                steps, met_before = 2 * steps, met
        return _Block(self.project(columns, pulled), scores, steps, met)

    def nodes(self, steps: int, panel: int) -> _Nodes:
        """The Gauss-Legendre rule of `panel` nodes on each of steps / panel equal pieces of the path."""
        check_memory("integrated_gradients: nodes", 32 * steps, "lower n_steps or max_steps", steps=steps)
        positions, weights = _legendre(panel)
        pieces = steps // panel
        at = (np.arange(pieces)[:, None] + positions) / pieces
        numbers = np.stack((at.ravel(), np.tile(weights / pieces, pieces)))
        return tuple(torch.from_numpy(numbers).to(self.device))

    def scores(self, columns: Tensor, bias: Tensor, score: str) -> Tensor:  # [m, 2]
        """Of document and baseline, by the model's own operators on the labels' part of its weights."""
        transform, merge = MODEL_MERGES["mean_logit" if score == "logit" else self.model.merge]
        with evaluating(self.model):
            logits = self.logits(columns, bias).transpose(1, 2)  # [2, m, R]
            scores = F.merge_repetitions(logits if transform is None else transform(logits), merge)
            check_scores(self.op, self.model, scores)
            return scores.T

    def columns(self, buckets: Tensor) -> Tensor:
        raise NotImplementedError

    def logits(self, columns: Tensor, bias: Tensor) -> Tensor:  # [2, R, m]
        raise NotImplementedError

    def pull(self, columns: Tensor, bias: Tensor, score: str, nodes: _Nodes | None) -> Tensor:
        raise NotImplementedError

    def total(self, columns: Tensor, pulled: Tensor) -> Tensor:  # [m]
        raise NotImplementedError

    def project(self, columns: Tensor, pulled: Tensor) -> Tensor:  # [m, nnz]
        raise NotImplementedError


class _LinearPath(_Path):
    """Linear MACH: a bucket's logit is affine along the path, and only the merge can bend the score."""

    def __init__(self, op: str, model: MACH, X: Any, baseline: Any) -> None:
        super().__init__(op, model, X, baseline)
        self.numbers_a_label = model.num_repetitions * len(self.features)

    def columns(self, buckets: Tensor) -> Tensor:  # [R, nnz, m]
        weight = self.model.bucket_weight.detach()
        return torch.stack([w[self.features[:, None], b] for w, b in zip(weight, buckets, strict=True)])

    def logits(self, columns: Tensor, bias: Tensor) -> Tensor:
        both = torch.stack((self.x, self.b)).to(_values_dtype(self.model))
        at = torch.arange(both.numel(), device=self.device)
        indices, indptr = at % both.shape[1], at.new_tensor([0, both.shape[1], both.numel()])
        return F.bucket_forward(both.flatten(), indices, indptr, None, None, columns, bias, validate=False)

    def pull(self, columns: Tensor, bias: Tensor, score: str, nodes: _Nodes | None) -> Tensor:  # [m, R]
        R, _, m = columns.shape
        if _is_mean_logit(self.model, score):
            return self.x.new_full((m, R), 1 / R)
        assert nodes is not None
        start, step = ((v @ columns.double()).T for v in (self.b, self.x - self.b))  # [m, R]
        start = start + bias.T
        pulled = torch.zeros_like(start)
        for position, weight in zip(*nodes, strict=True):
            pulled += weight * _merge_gradient(self.model, start + position * step)
        return pulled

    def total(self, columns: Tensor, pulled: Tensor) -> Tensor:
        return self.project(columns, pulled).sum(1)

    def project(self, columns: Tensor, pulled: Tensor) -> Tensor:
        return torch.einsum("mr,rdm->md", pulled, columns.double()) * (self.x - self.b)


class _HiddenPath(_Path):
    """One or two hidden layers, shared by the repetitions (C = 1) or one encoder each (C = R).

    `start` and `step` [C, H1]: pre-activations of the first layer are start + a * step.
    """

    def __init__(self, op: str, model: MACH, X: Any, baseline: Any) -> None:
        super().__init__(op, model, X, baseline)
        self.copies = model.num_repetitions if model.encoder == "independent" else 1
        self.numbers_a_label = model.num_repetitions * max(model.hidden_sizes)
        bias = model.encoder_bias.detach().double()
        start, step = bias.clone(), torch.zeros_like(bias)
        for at, weight in self._encoder_rows():
            start += self.b[at] @ weight
            step += (self.x - self.b)[at] @ weight
        self.start, self.step = (t.view(self.copies, -1) for t in (start, step))

    def _encoder_rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows [nnz, C * H1] of the encoder's weight for the document's features, block by block."""
        encoder = self.model.encoder_weight.detach()
        size = max(1, _BLOCK_BYTES // (8 * encoder.shape[1]))
        for begin in range(0, len(self.features), size):
            at = slice(begin, begin + size)
            if self._only_rows is None or size < len(self.features):
                self._only_rows = encoder.index_select(0, self.features[at]).double()
            yield at, self._only_rows

    _only_rows: Tensor | None = None  # kept where one block is all

    def columns(self, buckets: Tensor) -> Tensor:  # [R, H, m]
        weight = self.model.bucket_weight.detach()
        return torch.stack([w.index_select(1, b) for w, b in zip(weight, buckets, strict=True)])

    def logits(self, columns: Tensor, bias: Tensor) -> Tensor:
        return F.bucket_logits(self._hidden, columns, bias)

    @functools.cached_property
    def _hidden(self) -> Tensor:
        both = scipy.sparse.vstack([self.document, self.baseline], format="csr")
        return self.model.encode(*_tensors(self.model, both), validate=False, dropout=False)

    def total(self, columns: Tensor, pulled: Tensor) -> Tensor:
        return pulled @ self.step.flatten()

    def project(self, columns: Tensor, pulled: Tensor) -> Tensor:
        rows = torch.cat([pulled @ weight.T for _, weight in self._encoder_rows()], 1)
        return rows * (self.x - self.b)

    def pull(self, columns: Tensor, bias: Tensor, score: str, nodes: _Nodes | None) -> Tensor:  # [m, C * H1]
        if not _is_mean_logit(self.model, score):
            assert nodes is not None
            return self._pull_merged(columns, bias, nodes)
        # The label's weight on each last-layer unit, [C, H, m], but for 1 / R: the sum over its R buckets, or
        # with an encoder for each of them a term each.
        R = self.model.num_repetitions
        units = columns.double() if self.copies == R else columns.sum(0, keepdim=True, dtype=torch.float64)
        if len(self.model.hidden_sizes) == 1:
            first = units * self.activity(nodes).unsqueeze(2)
        else:
            first = self.joint_weight(nodes) @ units
        return first.flatten(0, 1).T / R

    def activity(self, nodes: _Nodes | None) -> Tensor:  # [C, H1]
        """Fraction of the path on which each first-layer unit is active."""
        if nodes is None:
            return _active_fraction(self.start, self.start + self.step)
        activity = torch.zeros_like(self.start)
        for position, weight in zip(*nodes, strict=True):
            activity += weight * (self.start + position * self.step > 0)
        return activity

    def joint_weight(self, nodes: _Nodes | None) -> Tensor:  # [C, H1, H2]
        """Second layer's weight times the fraction of the path on which both of its units are active.

        A matrix product of the first layer's state on each piece (or at each node) with the measure of the
        piece on which a second-layer unit is active.
        """
        joint = []
        for c, (start, step) in enumerate(zip(self.start, self.step, strict=True)):
            weight = self.model.hidden_weight[c].detach().double()
            bias = self.model.hidden_bias[c].detach().double()
            if nodes is None:
                cuts = -start / step  # NaN or infinite where a unit does not move
                cuts = cuts[(cuts > 0) & (cuts < 1)].unique()  # sorted
                cuts = torch.cat((cuts.new_zeros(1), cuts, cuts.new_ones(1)))
                at, length = (cuts[1:] + cuts[:-1]) / 2, cuts.diff()
                second = (start + cuts[:, None] * step).relu() @ weight + bias  # [T + 1, H2]
                measure = _active_fraction(second[:-1], second[1:]) * length[:, None]
            else:
                at, length = nodes
                second = (start + at[:, None] * step).relu() @ weight + bias  # [S, H2]
                measure = (second > 0) * length[:, None]
            first = start + at[:, None] * step > 0
            joint.append(weight * (first.double().T @ measure))
        return torch.stack(joint)

    def _pull_merged(self, columns: Tensor, bias: Tensor, nodes: _Nodes) -> Tensor:  # [m, C * H1]
        """For scores that bend: the chain rule at each node, as many nodes at a time as fit."""
        model, C = self.model, self.copies
        R, _, m = columns.shape
        columns, bias = columns.double(), bias.double().unsqueeze(1)
        two = len(model.hidden_sizes) == 2
        if two:
            second_weight = model.hidden_weight.detach().double()  # [C, H1, H2]
            second_bias = model.hidden_bias.detach().double().unsqueeze(1)  # [C, 1, H2]
        pulled = self.x.new_zeros(C, m, self.start.shape[1])
        size = max(1, _BLOCK_BYTES // (8 * m * C * max(model.hidden_sizes)))
        for at, node_weights in zip(nodes[0].split(size), nodes[1].split(size), strict=True):
            first = self.start[:, None] + at[:, None] * self.step[:, None]  # [C, S, H1]
            last = first.relu()
            if two:
                second = last @ second_weight + second_bias  # [C, S, H2]
                last = second.relu()
            logits = last.expand(R, -1, -1) @ columns + bias  # [R, S, m]
            gradient = _merge_gradient(model, logits.permute(1, 2, 0)) * node_weights[:, None, None]
            # To the last hidden layer, [C, S, m, H]: summed over the repetitions that share it.
            subscripts = "smr,rhm->smh" if C == 1 else "smr,rhm->rsmh"
            back = torch.einsum(subscripts, gradient, columns).view(C, len(at), m, -1)
            if two:
                back = (back * (second > 0).unsqueeze(2)) @ second_weight.mT.unsqueeze(1)
            pulled += (back * (first > 0).unsqueeze(2)).sum(1)
        return pulled.transpose(0, 1).flatten(1)


def _path(op: str, model: MACH, X: Any, baseline: Any) -> _Path:
    if not isinstance(model, MACH):
        raise TypeError(f"{op}: model must be a mach_ext.MACH, got {type(model).__name__}")
    check_parameters(op, model)
    return (_LinearPath if model.is_linear else _HiddenPath)(op, model, X, baseline)


def _active_fraction(start: Tensor, end: Tensor) -> Tensor:
    """Fraction of [0, 1] on which start + a * (end - start) is above 0."""
    positive = torch.maximum(start, end).relu() - torch.minimum(start, end).relu()
    crossing = positive / (end - start).abs()
    same = (start > 0) == (end > 0)
    return torch.where(same, (start > 0).double(), crossing)


def _merge_gradient(model: MACH, logits: Tensor) -> Tensor:
    """Derivative of the model's own score to the R logits of a label, [S, m, R] or [m, R]."""
    transform, merge = MODEL_MERGES[model.merge]
    logits = logits.detach().requires_grad_()
    with torch.enable_grad():
        votes = logits if transform is None else transform(logits)
        score = F.merge_repetitions(votes.reshape(1, -1, votes.shape[-1]), merge).sum()
    (gradient,) = torch.autograd.grad(score, logits)
    return gradient


def _is_mean_logit(model: MACH, score: str) -> bool:
    return score == "logit" or model.merge == "mean_logit"


def _method(
    op: str, model: MACH, method: str | None, score: str, n_steps: Any, tolerance: float, max_steps: int
) -> str:
    if score not in SCORES:
        raise ValueError(f'{op}: score must be "logit" or "model", got {score!r}')
    exact = _is_mean_logit(model, score)
    if method is None:
        method = "exact" if exact and n_steps is None else "gausslegendre"
    if method not in METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "exact" and not exact:
        raise ValueError(
            f'{op}: method="exact" needs a mean of logits (score="logit"); this model\'s own merge is '
            f'{model.merge}: use method="gausslegendre"'
        )
    if n_steps is not None and (method == "exact" or F.as_int(op, "n_steps", n_steps) < 1):
        raise ValueError(f"{op}: n_steps must be at least 1, and is for gausslegendre only, got {n_steps}")
    if not tolerance > 0:
        raise ValueError(f"{op}: tolerance must be above 0, got {tolerance}")
    if F.as_int(op, "max_steps", max_steps) < _PANEL:
        raise ValueError(f"{op}: max_steps must be at least {_PANEL}, got {max_steps}")
    return method


@functools.lru_cache(maxsize=16)
def _legendre(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    check_import("scipy.special")
    from scipy import special  # a tenth of a second to import

    positions, weights = special.roots_legendre(n)
    return (positions + 1) / 2, weights / 2


# ------------------------------------------------------------------------------------- MACH's own questions


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
    logits, best, _, k = _decode_one(op, model, X, k)
    label_names = _label_names(op, model, label_names)
    ids = resolve_labels(op, model, best[:k] if labels is None else labels, label_names)
    R = model.num_repetitions
    transform, merge = MODEL_MERGES[model.merge]

    def buckets(asked: NDArray[np.int64]) -> NDArray[np.int32]:  # [R, m]
        found: NDArray[np.int32] = model.hash.buckets_of(torch.from_numpy(asked)).cpu().numpy()
        return found

    def of(asked: NDArray[np.int64]) -> NDArray[np.float64]:  # [m, R]
        voted: NDArray[np.float64] = logits[np.arange(R), buckets(asked).T]
        return voted

    own = of(ids)
    rivals = np.array([_rival(label, best, k) for label in ids.tolist()], np.int64)
    others = buckets(ids) != buckets(rivals.clip(0))  # [R, m]
    pair = torch.from_numpy(np.stack((own, of(rivals.clip(0)))))
    ours, theirs = (pair if transform is None else transform(pair)).numpy()
    agreement = [
        _student((ours - theirs)[i][others[:, i]]) if merge == "mean" and rivals[i] >= 0 else math.nan
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
    if not isinstance(model, MACH):
        raise TypeError(f"{op}: model must be a mach_ext.MACH, got {type(model).__name__}")
    label_names = _label_names(op, model, label_names)
    ids = resolve_labels(op, model, label, label_names)
    if len(ids) != 1:
        raise ValueError(f"{op}: label must be one label, got {len(ids)}")
    asked, R = int(ids[0]), model.num_repetitions
    asked_buckets = model.hash.buckets_of(torch.tensor([asked])).flatten().tolist()
    members = [model.hash.labels_in(r, bucket).cpu().numpy() for r, bucket in enumerate(asked_buckets)]
    mates = np.unique(np.concatenate(members))
    mates = mates[mates != asked]
    shared = np.stack([np.isin(mates, group, assume_unique=True) for group in members], 1)  # [M, R]
    found = Collisions(asked, label_names[asked], len(mates), ())
    if X is None:
        order = np.argsort(-shared.sum(1), kind="stable")[:show]
        return replace(found, mates=_mates(order, mates, shared, label_names))

    logits, best, best_scores, k = _decode_one(op, model, X, k)
    buckets = model.hash.buckets_of(torch.from_numpy(mates)).cpu().numpy()
    theirs = logits[np.arange(R), buckets.T]  # [M, R]
    own = logits[np.arange(R), asked_buckets]  # [R]
    with np.errstate(invalid="ignore"):
        apart = (~shared).sum(1)
        theirs_elsewhere = np.where(shared, 0, theirs).sum(1) / apart  # [M]; NaN where they share everything
        own_elsewhere = np.where(shared, 0, own).sum(1) / apart
    middle = (theirs_elsewhere + own_elsewhere) / 2
    claims = shared & (theirs_elsewhere > own_elsewhere)[:, None] & (own > middle[:, None])  # [M, R]
    strength = np.where(claims, theirs_elsewhere[:, None], -np.inf)
    claimed = claims.any(0)
    strongest = strength.argmax(0) if len(mates) else np.zeros(R, np.int64)
    inseparable = bool((apart == 0).any())
    score, free = _merged(model, own), own[~claimed]
    own_score = _merged(model, free) if free.size and not inseparable else math.nan
    rival = _rival(asked, best, k)
    threshold = -math.inf if rival < 0 else float(best_scores[np.flatnonzero(best == rival)[0]])
    if asked not in best[:k]:
        verdict = "not predicted"
    elif math.isnan(own_score):
        verdict = "undecided"
    else:
        verdict = "signal" if own_score > threshold or not claimed.any() else "collision"
    elsewhere = np.nan_to_num(theirs_elsewhere, nan=np.inf)
    order = np.lexsort((-elsewhere, -shared.sum(1), -claims.sum(1)))[:show]
    return replace(
        found,
        mates=_mates(order, mates, shared, label_names, theirs_elsewhere, claims),
        votes=own,
        claimed_by=np.where(claimed, mates[strongest] if len(mates) else -1, -1),
        score=score,
        own_score=own_score,
        theirs=score - own_score,
        threshold=threshold,
        verdict=verdict,
    )


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


@dataclass(frozen=True)
class Removals:
    """What removing each feature, alone, does to the top k of one document. See `removals`.

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
def removals(
    model: MACH,
    X: Any,
    k: int | None = None,
    features: Sequence[int | str] | None = None,
    *,
    feature_names: Names = None,
    label_names: Names = None,
) -> Removals:
    """Each feature's effect on the whole top k: the document without it, scored and decoded again, exactly.

    Nothing is approximated, and nothing else of the document changes (its norm becomes smaller).

    Args:
        X: The document, a SciPy sparse matrix [1, D].
        k: 1 ... L; None: 5, or L where there are fewer labels.
        features: Those to remove, by id or name; None: all of the document's.
        feature_names, label_names: As in `integrated_gradients`.
    """
    op = "removals"
    path = _path(op, model, X, None)
    document, k = path.document, checked_k(op, k, model.num_labels)
    feature_names = _feature_names(op, model, feature_names)
    label_names = _label_names(op, model, label_names)
    present = document.indices.astype(np.int64)
    chosen = present
    if features is not None:
        chosen = _resolve(op, "feature", features, model.num_features, "D", feature_names)
        absent = np.setdiff1d(chosen, present)
        if absent.size:
            raise ValueError(f"{op}: the document has no feature {_named(absent[0], feature_names)}")
    labels = model.predict(document, k)[1][0]
    scores = _own_scores(model, document, labels)[0]
    changes = np.empty((len(chosen), k))
    left, entered = [], []
    size = max(1, min(256, (1 << 22) // max(1, document.nnz)))
    for start in range(0, len(chosen), size):
        block = chosen[start : start + size]
        without = scipy.sparse.vstack([document] * len(block), format="csr")
        without.data[np.arange(len(block)) * document.nnz + np.searchsorted(present, block)] = 0
        without.eliminate_zeros()
        changes[start : start + size] = _own_scores(model, without, labels) - scores
        for row in model.predict(without, k)[1]:
            left.append(tuple(label for label in labels.tolist() if label not in row))
            entered.append(tuple(label for label in row.tolist() if label not in labels))
    return Removals(
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


class _Decoded(NamedTuple):
    """What the model makes of one document."""

    logits: NDArray[np.float64]  # [R, B]
    labels: NDArray[np.int64]  # the top k and, if there is one, the next label
    scores: NDArray[np.float64]  # theirs, by the model's own merge
    k: int


def _decode_one(op: str, model: MACH, X: Any, k: int | None) -> _Decoded:
    path, k = _path(op, model, X, None), checked_k(op, k, model.num_labels)
    transform, merge = MODEL_MERGES[model.merge]
    with evaluating(model):
        logits = model(*_tensors(model, path.document), dropout=False)
        votes = logits if transform is None else transform(logits)
        scores, best = F.merge_topk(votes, model.hash, min(k + 1, model.num_labels), merge)
        check_scores(op, model, scores)
    return _Decoded(
        logits[0].double().cpu().numpy(), best[0].cpu().numpy(), scores[0].double().cpu().numpy(), k
    )


def _merged(model: MACH, logits: NDArray[np.float64]) -> float:
    """What the model's own merge makes of some votes."""
    transform, merge = MODEL_MERGES[model.merge]
    votes = torch.from_numpy(logits)[None, None]
    return float(F.merge_repetitions(votes if transform is None else transform(votes), merge))


def _own_scores(model: MACH, X: Any, labels: NDArray[np.int64]) -> NDArray[np.float64]:  # [N, m]
    """Scores of some labels by the model's own merge."""
    asked = torch.from_numpy(labels).to(model.bucket_bias.device)
    with evaluating(model):
        scores = model.label_scores(*_tensors(model, X), asked, "model", dropout=False)
    found: NDArray[np.float64] = scores.double().cpu().numpy()
    return found


def _rival(label: int, best: NDArray[np.int64], k: int) -> int:
    """The label on the other side of the edge of the top k; -1: all labels are in the top k."""
    if label not in best[:k]:
        return int(best[k - 1])
    return int(best[k]) if len(best) > k else -1


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


# ---------------------------------------------------------------------------------------------- for Captum


class CaptumForward(nn.Module):
    """Scores [N, m] of padded documents, for `captum_inputs`. No dropout, whatever the model's mode.

    Non-linearities are modules, each used once: that is what Captum's DeepLift hooks into. (Its rules do not
    cover log-sigmoid, minimum and median, of some models' own merges.)
    """

    def __init__(self, model: MACH, score: str = "logit") -> None:
        super().__init__()
        transform, self.merge = MODEL_MERGES["mean_logit" if score == "logit" else model.merge]
        self.mach = model
        self.first_relu, self.second_relu = nn.ReLU(), nn.ReLU()
        modules = {None: nn.Identity, torch.sigmoid: nn.Sigmoid, nn.functional.logsigmoid: nn.LogSigmoid}
        self.transform = modules[transform]()

    def forward(
        self,
        values: Tensor,  # [N, P]
        indices: Tensor,  # [N, P]; -1: padding, whose value counts nothing
        labels: Tensor,  # [N, m]
    ) -> Tensor:  # [N, m]
        model = self.mach
        real = indices >= 0
        indptr = nn.functional.pad(real.sum(1).cumsum(0), (1, 0))
        X = (values[real], indices[real], indptr)
        weight, bias = model.bucket_weight.detach(), model.bucket_bias.detach()
        if model.is_linear:
            logits = F.linear_label_logits(*X, weight, bias, model.hash, labels, validate=False)
        else:
            encoder = model.encoder_weight.detach(), model.encoder_bias.detach()
            hidden = self.first_relu(F.sparse_linear(*X, *encoder, validate=False))
            if model.encoder == "independent":
                hidden = hidden.unflatten(1, (model.num_repetitions, -1))
            if len(model.hidden_sizes) == 2:
                second = model.hidden_weight.detach(), model.hidden_bias.detach()
                hidden = self.second_relu(F.bucket_logits(hidden, *second))
                if model.encoder == "shared":
                    hidden = hidden.squeeze(1)
            logits = F.label_logits(hidden, weight, bias, model.hash, labels, validate=False)
        return F.merge_repetitions(self.transform(logits), self.merge)


@memory_errors("pass fewer documents at a time or fewer labels")
def captum_inputs(
    model: MACH, X: Any, labels: Labels, *, score: str = "logit", label_names: Names = None
) -> tuple[CaptumForward, Tensor, tuple[Tensor, Tensor]]:
    """A batch of documents as any Captum algorithm takes it.

    Captum repeats and cuts its arguments along their first dimension; so documents are padded to P features.
    The values are the differentiable input; padding gets an attribution of exactly 0. Only the R * m buckets
    of the labels are computed.

    Args:
        X: Documents [N, D], a SciPy sparse matrix.
        labels: [m], the same for every document, or ids [N, m]. Captum's `target` is a position in them.
        score: "logit" or "model", as in `MACH.label_scores`.
        label_names: As in `integrated_gradients`.

    Returns:
        forward: scores [N, m], a module (which DeepLift wants).
        inputs: values [N, P].
        args: (indices [N, P], -1 where there is padding; labels [N, m]).

    Example:
        >>> import scipy.sparse, mach_ext
        >>> from captum.attr import IntegratedGradients
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> X = scipy.sparse.random(3, 100, density=0.1, format="csr", dtype="float32", random_state=0)
        >>> forward, inputs, args = mach_ext.explain.captum_inputs(model, X, [7, 450])
        >>> ig = IntegratedGradients(forward)
        >>> ig.attribute(inputs, additional_forward_args=args, target=1).shape == inputs.shape
        True
    """
    op = "captum_inputs"
    if score not in SCORES:
        raise ValueError(f'{op}: score must be "logit" or "model", got {score!r}')
    X = _check_columns(op, model, X)
    check_parameters(op, model)
    N, lengths = X.shape[0], np.diff(X.indptr)
    if N == 0 or lengths.min() == 0:
        what = "no document" if N == 0 else f"a document without features in row {lengths.argmin()}"
        raise ValueError(f"{op}: X must be documents with at least one feature each, got {what}")
    ids = resolve_labels(op, model, labels, _label_names(op, model, label_names), documents=N)
    padded, m = N * int(lengths.max()), ids.shape[-1]
    advice = "pass fewer documents at a time, or documents of equal length together"
    check_memory(f"{op}: padded documents", 12 * padded + 8 * N * m, advice, N=N, P=int(lengths.max()), m=m)
    values = np.zeros((N, lengths.max()), np.float32)
    indices = np.full(values.shape, -1, np.int64)
    real = np.arange(values.shape[1]) < lengths[:, None]
    values[real], indices[real] = X.data, X.indices
    device = model.bucket_bias.device
    inputs = torch.from_numpy(values).to(device, _values_dtype(model))
    asked = torch.from_numpy(np.broadcast_to(ids, (N, ids.shape[-1])).copy()).to(device)
    return CaptumForward(model, score), inputs, (torch.from_numpy(indices).to(device), asked)


# ------------------------------------------------------------------------------------- documents and names


def _check_columns(op: str, model: Any, X: Any, name: str = "X") -> Any:
    """Canonical CSR without stored zeros, of the model's D columns."""
    if not isinstance(model, MACH):
        raise TypeError(f"{op}: model must be a mach_ext.MACH, got {type(model).__name__}")
    X = check_csr(X, f"{op}: {name}")
    if X.shape[1] != model.num_features:
        raise ValueError(f"{op}: {name} must have D={model.num_features} columns, got shape {X.shape}")
    if (X.data == 0).any():
        X = X.copy()
        X.eliminate_zeros()
    return X


def _at(row: Any, features: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values of a CSR row at the given features, among which are all of its own."""
    values = np.zeros(len(features), np.float32)
    values[np.searchsorted(features, row.indices)] = row.data
    return values


def _values_dtype(model: MACH) -> torch.dtype:
    return torch.float64 if model.bucket_weight.dtype == torch.float64 else torch.float32


def _tensors(model: MACH, X: Any) -> tuple[Tensor, Tensor, Tensor]:
    device = model.bucket_bias.device
    values = torch.from_numpy(X.data).to(device, _values_dtype(model))
    return values, torch.from_numpy(X.indices).to(device), torch.from_numpy(X.indptr).to(device)


def resolve_labels(
    op: str, model: MACH, labels: Labels, names: Sequence[str], documents: int | None = None
) -> NDArray[np.int64]:
    """Ids of labels given by id or name, [m]; with `documents` N also [N, m].

    Raises:
        TypeError, ValueError: Out of range, unknown or ambiguous name, none at all.
    """
    ids = _resolve(op, "label", labels, model.num_labels, "L", names)
    if ids.ndim == 2 and (documents is None or ids.shape[0] != documents):
        rule = "[m]" if documents is None else f"[m] or [N={documents}, m]"
        raise ValueError(f"{op}: labels must be {rule}, got {list(ids.shape)}")
    return ids


def _resolve(
    op: str, kind: str, given: Any, count: int, size: str, names: Sequence[str]
) -> NDArray[np.int64]:
    if isinstance(given, Tensor):
        given = given.cpu().numpy()
    if isinstance(given, (str, int, np.integer)):
        given = [given]
    if isinstance(given, (list, tuple)) and any(isinstance(one, str) for one in given):
        given = [_id_of(op, kind, one, names) if isinstance(one, str) else one for one in given]
    if isinstance(given, np.ndarray) and given.dtype.kind in "UO":
        return _resolve(op, kind, given.tolist(), count, size, names)
    if isinstance(given, (list, tuple)):
        for one in given:
            if isinstance(one, int) and not 0 <= one < count:  # which may be beyond int64
                raise ValueError(f"{op}: {kind}s must be in [0, {size}={count}), got {one}")
    ids = np.asarray(given)
    if ids.size == 0:
        raise ValueError(f"{op}: {kind}s must be at least one, got none")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{op}: {kind}s must be ids (integers) or names, got {ids.dtype}")
    if ids.ndim not in (1, 2):
        raise ValueError(f"{op}: {kind}s must be one list, got shape {list(ids.shape)}")
    wrong = ids[(ids < 0) | (ids >= count)]
    if wrong.size:
        raise ValueError(f"{op}: {kind}s must be in [0, {size}={count}), got {wrong[0]}")
    return ids.astype(np.int64)


def _id_of(op: str, kind: str, name: str, names: Sequence[str]) -> int:
    if isinstance(names, Numbers):
        if name.isdecimal():
            return int(name)
        raise ValueError(f"{op}: the model keeps no {kind} names; give {kind}s by number, got {name!r}")
    found = [i for i, other in enumerate(names) if other == name]
    if not found:  # the same letters in another Unicode form
        found = [i for i, other in enumerate(names) if name_key(other) == name_key(name)]
    if len(found) > 1:
        raise ValueError(f"{op}: {kind} {name!r} is the name of {found}: give the number")
    if not found and name.isdecimal():  # a name of digits comes before a number
        return int(name)
    if not found:
        word = re.compile(rf"\b{re.escape(name)}\b")
        close = sorted((other for other in names if word.search(other)), key=len)[:3]
        close = close or (difflib.get_close_matches(name, names, 3) if len(names) < 100_000 else [])
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"{op}: the model has no {kind} {name!r}{hint}")
    return found[0]


def _named(index: int, names: Sequence[str]) -> str:
    return f"{index}" if isinstance(names, Numbers) else f"{index} ({names[index]!r})"


class Numbers(Sequence[str]):
    """Ids as their own names."""

    def __getitem__(self, index: Any) -> Any:
        return str(index)

    def __len__(self) -> int:
        return 2**31


def _label_names(op: str, model: MACH, names: Names) -> Sequence[str]:
    if names is None:
        names = kept.label_names(model.attachments, model.num_labels)
    return _names(op, "label", names, model.num_labels, "L")


def _feature_names(op: str, model: MACH, names: Names) -> Sequence[str]:
    if names is None:
        names = kept.feature_names(model.attachments, model.num_features)
    return _names(op, "feature", names, model.num_features, "D")


def _names(op: str, kind: str, names: Names, count: int, size: str) -> Sequence[str]:
    if names is None:
        return Numbers()
    if not isinstance(names, Numbers) and len(names) != count:
        raise ValueError(f"{op}: {kind}_names must be {size}={count} names, got {len(names)}")
    return names

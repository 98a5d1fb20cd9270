"""Integrated Gradients of the scores of many labels, of one document or of each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mach_ext import functional as F
from mach_ext._memory import check_memory, memory_errors
from mach_ext.explain._arguments import (
    SCORES,
    Labels,
    Names,
    check_documents,
    feature_names_of,
    label_names_of,
    resolve_labels,
)
from mach_ext.explain._decoding import own_scores
from mach_ext.explain._encoder_paths import path_of
from mach_ext.explain._path import PANEL, Rule, is_mean_logit
from mach_ext.explain.result import Explanation
from mach_ext.nn import MACH, checked_k

METHODS = ("exact", "gausslegendre")


class StepsWarning(UserWarning):
    """Integrated Gradients met its limit of steps before its tolerance."""


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
    path = path_of(op, model, X, baseline)
    rule = _check_rule(op, model, method, score, n_steps, tolerance, max_steps)
    if labels is None:
        labels = model.predict(path.document)[1][0]
    label_names = label_names_of(op, model, label_names)
    ids = resolve_labels(op, model, labels, label_names)
    feature_names = feature_names_of(op, model, feature_names)
    m, nnz = len(ids), len(path.features)
    check_memory(f"{op}: attributions", 16 * m * nnz, "ask for fewer labels", labels=m, features=nnz)
    blocks = [path.explain(block, rule) for block in path.label_blocks(ids)]
    attributions = np.concatenate([block.attributions.cpu().numpy() for block in blocks])
    scores = np.concatenate([block.scores.double().cpu().numpy() for block in blocks])
    delta = attributions.sum(1) - (scores[:, 0] - scores[:, 1])
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
        model_scores=scores[:, 0] if scale == model.merge else own_scores(model, path.document, ids)[0],
        model_scale=model.merge,
        method=rule.method,
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
    X, k = check_documents(op, model, X), checked_k(op, k, model.num_labels)
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


def _check_rule(
    op: str, model: MACH, method: str | None, score: str, n_steps: Any, tolerance: float, max_steps: int
) -> Rule:
    if score not in SCORES:
        raise ValueError(f'{op}: score must be "logit" or "model", got {score!r}')
    exact = is_mean_logit(model, score)
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
    if F.as_int(op, "max_steps", max_steps) < PANEL:
        raise ValueError(f"{op}: max_steps must be at least {PANEL}, got {max_steps}")
    return Rule(score, method, n_steps, tolerance, max_steps)

"""Integrated Gradients of the scores of many labels, for a document or for each document of a matrix."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext import functional as F
from mach_ext._dense_features import checked_documents
from mach_ext._memory import check_memory, memory_errors
from mach_ext._model_checks import check_score
from mach_ext.data import row_features
from mach_ext.explain._arguments import (
    Labels,
    Names,
    check_model,
    label_names_of,
    resolve_labels,
)
from mach_ext.explain._decoding import best_of_hidden
from mach_ext.explain._encoder import CheckedEncoder, input_tensor
from mach_ext.explain._input_path import path_of
from mach_ext.explain._path import PANEL, Path, Rule, is_mean_logit
from mach_ext.explain.result import Explanation
from mach_ext.head import MACHHead
from mach_ext.nn import MACH, checked_k

METHODS = ("exact", "gausslegendre")


class StepsWarning(UserWarning):
    """Warns that Integrated Gradients reached `max_steps` before they met the tolerance.

    Example:
        >>> import warnings
        >>> from scipy import sparse
        >>> import mach_ext
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=8, merge="mean_prob")
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = mach_ext.explain.integrated_gradients(
        ...         model, sparse.csr_matrix([[1.0] * 6]), 0, score="model", tolerance=1e-12, max_steps=32
        ...     )
        >>> [warning.category.__name__ for warning in caught]
        ['StepsWarning']
    """


@memory_errors("ask for fewer labels or lower n_steps")
def integrated_gradients(
    model: MACH | MACHHead,
    X: Any,
    labels: Labels | None = None,
    *,
    encoder: Any = None,
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
    """Computes Integrated Gradients of the scores of many labels of a document.

    The cost does not grow with L, B or D. Only the R * m buckets of the explained labels and the encoder's
    rows of the document's features are read. The source is Sundararajan et al., 2017, "Axiomatic Attribution
    for Deep Networks".

    A model with dense features takes a `mach_ext.data.HybridMatrix`. Each of the E dense features gets an
    attribution. Charts and pages show their sum as one bar, or each alone after `Explanation.by_dimension`.
    The baseline of a dense feature is its mean over the training documents, which `MACH.scale_dense` made the
    zero of the model.

    A head is explained in two ways. Without `encoder` its documents are hidden units, and it is linear MACH
    on them. With `encoder` its document is an input of any shape [1, ...], such as the embeddings of tokens
    [1, T, E]. All its positions get attributions, and `Explanation.shape` is the shape of the input.

    The encoder runs in eval mode, without autocast, and its mode is restored. So are modules that a function
    names. Other modules must be in eval mode already. Parameters get no gradients. The encoder must not let
    an input of a batch depend on the others.

    Without `n_steps` the steps start at 32 and double. They stop when |delta| <= tolerance * (|F(x)| +
    |F(baseline)|) for every label, twice in a row. Once could be chance. The tolerance limits the sum of a
    label's attributions. A single attribution can be wrong by a few times as much. Through `encoder`, only
    those pieces of the path are divided whose own deltas count.

    Args:
        model: The model, or a head. It is used in eval mode.
        X: The document [1, D], a SciPy, NumPy or torch matrix, or a `mach_ext.data.HybridMatrix`. For a head,
            hidden units [1, H]. With `encoder`, a floating-point tensor or NumPy array [1, ...].
        labels: Labels by number or name. None: the model's top 5.
        encoder: For a head, a differentiable callable from inputs [N, ...] to hidden units [N, H], such as a
            `torch.nn.Module`. A head with `per_repetition` needs [N, R, H].
        method: "exact" is a closed form for scores that are a mean of logits. "gausslegendre" works for any
            score and through any encoder. None: exact if possible.
        score: "logit": the mean of the R logits. "model": the score of the model's own merge.
        baseline: D numbers, such as a SciPy sparse document [1, D] or a mean document `X_train.mean(0)`. With
            dense features, a `HybridMatrix` of one row. With `encoder`, an input. None: the empty document
            with average dense features, or an input of zeros.
        n_steps: Steps of "gausslegendre", Captum's rule of this name. None: they are chosen by `tolerance`.
        tolerance: The accepted relative delta if `n_steps` is None.
        max_steps: The largest number of steps if `n_steps` is None. A `StepsWarning` says if it is too small.
        feature_names: Names of all D features, or of all D + E. None: those kept with the model, or numbers.
            With `encoder`, a name for each position of the flattened input. Or give a name for each entry of
            the leading dimensions, such as the T tokens of [1, T, E]. Then attributions are summed over the
            last dimension. None: positions such as "1,5".
        label_names: Names of all L labels. None: those kept with the model, or numbers.
        text: The raw text, kept for the report.

    Returns:
        The attributions [m, nnz], with the scores and the deltas.

    Raises:
        TypeError: An argument has the wrong type. The input of an encoder is of integers, such as token ids.
        ValueError: A shape is wrong, a label is out of range or unknown, or there is no feature.
        ValueError: `method` is "exact" for a score that is not a mean of logits, or through an encoder.
        ValueError: The encoder returns hidden units of a wrong shape or device. They are not finite, not the
            same each time, or have no gradient.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])
        >>> words = ["meow", "bark", "hoot", "moo", "oink", "cluck"]
        >>> names = ["cat", "dog", "owl", "cow", "pig", "hen"]
        >>> result = mach_ext.explain.integrated_gradients(
        ...     model, x, ["dog", "owl"], feature_names=words, label_names=names
        ... )
        >>> result.feature_names, result.attributions.round(2).tolist()
        (['bark', 'hoot'], [[2.8, -0.6], [-0.42, 1.76]])
        >>> bool(abs(result.delta).max() < 1e-5)
        True

        Through an encoder, a number for each token:

        >>> import torch
        >>> layer = torch.nn.TransformerEncoderLayer(d_model=8, nhead=2, batch_first=True)
        >>> head = mach_ext.MACHHead(8, 6, num_repetitions=8, num_buckets=4)
        >>> tokens, embeddings = ["a", "dog", "barks"], torch.randn(1, 3, 8)
        >>> result = mach_ext.explain.integrated_gradients(
        ...     head, embeddings, [1, 2], encoder=lambda x: layer.eval()(x).mean(1), feature_names=tokens
        ... )
        >>> result.feature_names, result.attributions.shape, result.method
        (['a', 'dog', 'barks'], (2, 3), 'gausslegendre')
    """
    op = "integrated_gradients"
    path = path_of(op, model, X, baseline, encoder, feature_names)
    rule = check_rule(op, path, method, score, n_steps, tolerance, max_steps)
    if labels is None:
        labels = path.top_labels()
    names = label_names_of(op, path.model, label_names)
    ids = resolve_labels(op, path.model, labels, names)
    return Explanation(
        **explain_path(op, path, ids, rule),
        label_names=[names[label] for label in ids.tolist()],
        text=text,
        shape=path.shape,
        num_dense=path.num_dense,
    )


@memory_errors("pass fewer documents at a time or lower k")
def explain_topk(
    model: MACH | MACHHead,
    X: Any,
    k: int | None = None,
    texts: Sequence[str] | None = None,
    *,
    encoder: Any = None,
    **options: Any,
) -> Iterator[Explanation]:
    """Explains the top k of each document with `integrated_gradients`, one document at a time.

    The top k is that of the model's own merge.

    Args:
        model: The model, or a head. It is used in eval mode.
        X: Documents [N, D], a SciPy, NumPy or torch matrix, or a `mach_ext.data.HybridMatrix`. For a head,
            hidden units [N, H]. With `encoder`, inputs [N, ...].
        k: Size of the top k, 1 ... L. None: 5, or L if there are fewer labels.
        texts: Raw texts [N], kept for the reports.
        encoder: As in `integrated_gradients`.
        **options: Further arguments of `integrated_gradients`.

    Yields:
        An `Explanation` for each document.

    Raises:
        TypeError: As `integrated_gradients`.
        ValueError: As `integrated_gradients`. The message has the row of a document without features.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> words = ["meow", "bark", "hoot", "moo", "oink", "cluck"]
        >>> names = ["cat", "dog", "owl", "cow", "pig", "hen"]
        >>> options = {"feature_names": words, "label_names": names}
        >>> for result in mach_ext.explain.explain_topk(model, X[:2], k=1, **options):
        ...     print(result.label_names, [name for name, _ in result.top()])
        ['cat'] ['meow']
        ['dog'] ['bark']
    """
    op = "explain_topk"
    if encoder is None:
        model = check_model(op, model)
        X, k = checked_documents(f"{op}: X", model, X), checked_k(op, k, model.num_labels)
        # A document of a model with dense features always has these.
        empty = np.flatnonzero(row_features(X) == 0)
        if empty.size and not model.num_dense and options.get("baseline") is None:
            row = empty[0]
            raise ValueError(f"{op}: X, row {row}: a document must have a feature to be explained, got none")
        labels = model.predict(X, k)[1]
    else:
        encoding = CheckedEncoder(op, model, encoder)
        X, k = input_tensor(op, encoding.head, X), checked_k(op, k, encoding.head.num_labels)
        labels = best_of_hidden(op, encoding.head, encoding.hidden(X), k)
    if texts is not None and len(texts) != X.shape[0]:
        raise ValueError(f"{op}: texts must be N={X.shape[0]}, got {len(texts)}")
    for n in range(X.shape[0]):
        text = None if texts is None else texts[n]
        yield integrated_gradients(model, X[n : n + 1], labels[n], encoder=encoder, text=text, **options)


@memory_errors("lower n_steps")
def contrast(
    model: MACH | MACHHead, X: Any, label: int | str, rival: int | str, *, encoder: Any = None, **options: Any
) -> Explanation:
    """Explains why the model prefers `label` to `rival`: attributions of the difference of their scores.

    With logit scores, a bucket that both labels share cancels. So nothing is left of labels that share all
    buckets.

    Args:
        model: The model, or a head. It is used in eval mode.
        X: As in `integrated_gradients`.
        label: A label, by number or name.
        rival: The label that it is compared with.
        encoder: As in `integrated_gradients`.
        **options: Further arguments of `integrated_gradients`.

    Returns:
        An explanation of `label` alone. Scores, attributions and delta are differences.

    Raises:
        TypeError: As `integrated_gradients`.
        ValueError: As `integrated_gradients`.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])
        >>> words = ["meow", "bark", "hoot", "moo", "oink", "cluck"]
        >>> names = ["cat", "dog", "owl", "cow", "pig", "hen"]
        >>> result = mach_ext.explain.contrast(model, x, "dog", "owl", feature_names=words, label_names=names)
        >>> result.label_names, [(name, round(effect, 2)) for name, effect in result.top()]
        (['dog rather than owl'], [('bark', 3.21), ('hoot', -2.35)])
    """
    pair = integrated_gradients(model, X, [label, rival], encoder=encoder, **options)
    difference = {
        name: getattr(pair, name)[:1] - getattr(pair, name)[1:]
        for name in ("scores", "model_scores", "baseline_scores", "attributions", "delta")
    }
    names = [f"{pair.label_names[0]} rather than {pair.label_names[1]}"]
    rival_id = int(pair.labels[1])
    return replace(pair, labels=pair.labels[:1], label_names=names, rival=rival_id, **difference)


def check_rule(
    op: str, path: Path, method: str | None, score: str, n_steps: Any, tolerance: float, max_steps: int
) -> Rule:
    """Checks the arguments that say what is integrated and how."""
    check_score(op, score)
    exact = path.has_closed_form and is_mean_logit(path.model, score)
    if method is None:
        method = "exact" if exact and n_steps is None else "gausslegendre"
    if method not in METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "exact" and not path.has_closed_form:
        raise ValueError(
            f'{op}: method must be "gausslegendre" through an encoder, which has no closed form, got "exact"'
        )
    if method == "exact" and not exact:
        raise ValueError(
            f'{op}: method="exact" needs a mean of logits (score="logit"); this model\'s own merge is '
            f'{path.model.merge}: use method="gausslegendre"'
        )
    if n_steps is not None and (method == "exact" or F.as_int(op, "n_steps", n_steps) < 1):
        raise ValueError(f"{op}: n_steps must be at least 1, and is for gausslegendre only, got {n_steps}")
    if not tolerance > 0:
        raise ValueError(f"{op}: tolerance must be above 0, got {tolerance}")
    if F.as_int(op, "max_steps", max_steps) < PANEL:
        raise ValueError(f"{op}: max_steps must be at least {PANEL}, got {max_steps}")
    return Rule(score, method, n_steps, tolerance, max_steps)


def explain_path(op: str, path: Path, labels: NDArray[np.int64], rule: Rule) -> dict[str, Any]:
    """Returns attributions, scores and deltas of labels, as arguments of `Explanation`."""
    m, n = len(labels), len(path.feature_names)
    check_memory(f"{op}: attributions", 16 * m * n, "ask for fewer labels", labels=m, features=n)
    blocks = [path.explain(block, rule) for block in path.label_blocks(labels)]
    attributions = np.concatenate([block.attributions.cpu().numpy() for block in blocks])
    scores = np.concatenate([block.scores.double().cpu().numpy() for block in blocks])
    delta = attributions.sum(1) - (scores[:, 0] - scores[:, 1])
    steps = max(block.steps for block in blocks)
    if not all(block.met for block in blocks):
        worst = np.argmax(np.abs(delta) - rule.tolerance * np.abs(scores).sum(1))
        warnings.warn(
            f"{op}: max_steps {rule.max_steps} do not meet tolerance {rule.tolerance:g}: after {steps} steps "
            f"label {labels[worst]} has delta {delta[worst]:.3g}",
            StepsWarning,
            stacklevel=4,  # the caller stands behind `op` and its wrapper `memory_errors`
        )
    merge = path.model.merge
    scale = "mean_logit" if rule.score == "logit" else merge
    return {
        "features": path.features,
        "feature_names": path.feature_names,
        "values": path.values,
        "baselines": path.baselines,
        "labels": labels,
        "scores": scores[:, 0],
        "baseline_scores": scores[:, 1],
        "attributions": attributions,
        "delta": delta,
        "score": rule.score,
        "scale": scale,
        "model_scores": scores[:, 0] if scale == merge else path.own_scores(labels),
        "model_scale": merge,
        "method": rule.method,
        "n_steps": steps,
    }

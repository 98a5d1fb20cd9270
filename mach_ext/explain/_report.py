"""The HTML page of an explanation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mach_ext._deprecation import renamed_argument
from mach_ext._page import chance, render
from mach_ext.data import Vectorizer
from mach_ext.explain._arguments import block_name
from mach_ext.explain._attributions import Attributions
from mach_ext.explain._charts import bars_chart, shade, votes_chart
from mach_ext.explain._token_attributions import TokenAttributions
from mach_ext.explain.ablation import LeaveOneOut
from mach_ext.explain.collision_check import Collisions
from mach_ext.explain.voting import Votes
from mach_ext.merges import SCALES

_SHOWN_FEATURES = 20  # features that are drawn as bars
_SHOWN_WORDS = 120  # features that are listed if the document's text is not known
_SHOWN_TOKENS = 1000  # entries of an input that are listed in their order
_VERDICTS = {
    "signal": "The label's own votes keep it in the top k.",
    "collision": "Without the votes of labels in its buckets, the label leaves the top k.",
    "undecided": "None of the votes is the label's own.",
    "not predicted": "The label is outside the top k.",
    "": "",
}


@dataclass(frozen=True)
class _Piece:
    """A piece of text. `style` shades it, and `title` states its effect."""

    text: str
    style: str = ""
    title: str = ""


@renamed_argument("removals", "leave_one_out")
def explanation_page(
    explanation: Attributions,
    votes: Votes | None = None,
    collisions: Sequence[Collisions] = (),
    leave_one_out: LeaveOneOut | None = None,
    vectorizer: Vectorizer | None = None,
    title: str = "Explanation",
    true_labels: Sequence[int] | None = None,
) -> str:
    """Returns the page of a document and its labels as HTML text.

    Args:
        explanation: The attributions. Each of its labels becomes a tab.
        votes: The votes for the same labels, in any order.
        collisions: The collision checks of any of these labels.
        leave_one_out: The effects of removing features of the document.
        vectorizer: Finds the features in `explanation.text`. None: features are shown by name.
        title: The title of the page.
        true_labels: Numbers of the right labels, which get a mark. None: they are not known.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> X = Y = sparse.eye(6, format="csr")  # document i has feature i and label i
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> names = {
        ...     "feature_names": ["meow", "bark", "hoot", "moo", "oink", "cluck"],
        ...     "label_names": ["cat", "dog", "owl", "cow", "pig", "hen"],
        ... }
        >>> x = sparse.csr_matrix([[0, 1.0, 0.5, 0, 0, 0]])  # barks, and hoots a little
        >>> result = mach_ext.explain.integrated_gradients(model, x, ["dog", "owl"], **names)
        >>> votes = mach_ext.explain.votes(model, x, result.labels)
        >>> page = mach_ext.report.explanation_page(result, votes, title="A document that barks")
        >>> "<title>A document that barks</title>" in page
        True
    """
    by_token = isinstance(explanation, TokenAttributions)
    in_text = explanation.text is not None and (vectorizer is not None or by_token)
    checked = {check.label: check for check in collisions}
    tabs = [
        {
            **_tab(explanation, row, vectorizer),
            "true": true_labels is not None and label in true_labels,
            "votes": _votes_of(label, votes, checked.get(label)),
            "collisions": checked.get(label),
        }
        for row, label in enumerate(explanation.labels.tolist())
    ]
    return render(
        "mach_ext.explain",
        "page.html.jinja",
        title=title,
        tabs=tabs,
        by_token=by_token,
        sparse=len(explanation.features) - explanation.num_dense,
        embedding=block_name(explanation.num_dense),
        explanation=explanation,
        verdicts=_VERDICTS,
        leave_one_out=_leave_one_out_rows(leave_one_out),
        leave_one_out_scale="" if leave_one_out is None else SCALES[leave_one_out.merge],
        scale=SCALES[explanation.scale],
        model_scale=SCALES[explanation.model_scale],
        chance=chance,
        infinity=math.inf,
        leave_one_out_labels=[] if leave_one_out is None else leave_one_out.label_names,
        in_text=in_text,
        overlapping=any(", " in piece.title for tab in tabs for piece in tab["pieces"]),
        k=None if votes is None else votes.k,
    )


def _tab(explanation: Attributions, row: int, vectorizer: Vectorizer | None) -> dict[str, Any]:
    """Returns the attributions in the tab of a label."""
    effects = explanation.bars.effects[row]
    label, E = int(explanation.labels[row]), explanation.num_dense
    top = explanation.top(_SHOWN_FEATURES, label)
    return {
        "name": explanation.label_names[row],
        "id": label,
        "score": explanation.scores[row],
        "model_score": explanation.model_scores[row],
        "probability": _sigmoid(explanation.scores[row]) if explanation.score == "logit" else None,
        "baseline": explanation.baseline_scores[row],
        "delta": explanation.delta[row],
        "embedding": float(explanation.attributions[row, -E:].sum()) if E else None,
        "pieces": _pieces(explanation, row, vectorizer),
        "chart": bars_chart(top),
        "others": len(effects) - len(top),
        "hidden": 0 if explanation.text is not None else len(effects) - _shown(explanation),
        "rest": float(effects.sum() - sum(effect for _, effect in top)),
        "words": _word_rows(explanation, row) if isinstance(explanation, TokenAttributions) else [],
    }


def _votes_of(label: int, votes: Votes | None, check: Collisions | None) -> dict[str, Any] | None:
    """Returns the votes in the tab of a label. None: they are not known."""
    if votes is None or label not in votes.labels:
        return None
    at = votes.labels.tolist().index(label)
    return {
        "chart": votes_chart(votes.logits[at], check),
        "spread": votes.spread[at],
        "error": votes.standard_error[at],
        "agreement": votes.agreement[at],
    }


def _sigmoid(x: float) -> float:
    """Returns the logistic sigmoid of x."""
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _word_rows(explanation: TokenAttributions, row: int) -> list[dict[str, Any]]:
    """Returns the words of a text in their order, with both parts of their effects on a label."""
    names, _, features, tokens = explanation.words
    parts = np.stack(((features + tokens)[row], features[row], tokens[row]), 1)
    scale = _scale(parts[:, 0])
    return [
        {
            "name": name,
            "style": shade(cells[0], scale),
            "cells": [f"{c:+.3f}".replace("-", "\u2212") for c in cells],
        }
        for name, cells in zip([*names, "all words"], [*parts.tolist(), parts.sum(0).tolist()], strict=True)
    ]


def _scale(effects: np.ndarray[Any, Any]) -> float:
    """Returns the largest absolute effect, which has the darkest shade. 1 if there is none."""
    return float(np.abs(effects).max(initial=0)) or 1.0


def _pieces(explanation: Attributions, row: int, vectorizer: Vectorizer | None) -> list[_Piece]:
    """Cuts the text into shaded words and pieces between them.

    Without text, lists features by effect. Sums, such as those of tokens, are listed in their order.
    """
    if isinstance(explanation, TokenAttributions) and explanation.text is not None:
        return _token_pieces(explanation, explanation.text, row)
    if explanation.text is None or vectorizer is None:
        effects, names = explanation.bars.effects[row], explanation.bars.names
        scale = _scale(effects)
        order = (
            np.arange(len(effects)) if explanation.is_summed else np.argsort(-np.abs(effects), kind="stable")
        )
        return [
            _Piece(names[i], shade(effects[i], scale), f"{effects[i]:+.4f}")
            for i in order[: _shown(explanation)]
        ]
    # The largest effect of a word has the darkest shade. An embedding has no place in the text.
    count = len(explanation.features) - explanation.num_dense
    effects = explanation.attributions[row, :count]
    scale = _scale(effects)
    effect_of = dict(zip(explanation.features[:count].tolist(), effects.tolist(), strict=True))
    words = [
        (start, end, effect_of[feature])
        for start, end, feature in vectorizer.words(explanation.text)
        if feature in effect_of  # the vocabulary may lack the word
    ]
    return _shaded(explanation.text, words, scale)


def _token_pieces(explanation: TokenAttributions, text: str, row: int) -> list[_Piece]:
    """Cuts the text into shaded words and pieces between them. Titles state both parts of the effects."""
    _, spans, features, tokens = explanation.words
    effects = (features + tokens)[row]
    scale, pieces, done = _scale(effects), [], 0
    for w in np.argsort(spans[:, 0], kind="stable").tolist():
        start, end = spans[w].tolist()
        if start < done or start == end:  # a special token has no letters
            continue
        pieces.append(_Piece(text[done:start]))
        title = (
            f"{effects[w]:+.4f} = {features[row, w]:+.4f} as a word and {tokens[row, w]:+.4f} by the encoder"
        )
        pieces.append(_Piece(text[start:end], shade(effects[w], scale), title))
        done = end
    return [*pieces, _Piece(text[done:])]


def _shown(explanation: Attributions) -> int:
    """Returns how many features are listed without text."""
    return _SHOWN_TOKENS if explanation.is_summed else _SHOWN_WORDS


def _shaded(text: str, words: Sequence[tuple[int, int, float]], scale: float) -> list[_Piece]:
    """Cuts the text where words (start, end, effect) begin and end.

    A word divides its effect among its pieces by their lengths. A piece is shaded by the sum of its shares.
    """
    cuts = sorted({0, len(text), *(start for start, _, _ in words), *(end for _, end, _ in words)})
    at = {cut: i for i, cut in enumerate(cuts)}
    over: list[list[tuple[int, int, float]]] = [[] for _ in cuts]  # the words over each piece
    for word in words:
        for i in range(at[word[0]], at[word[1]]):
            over[i].append(word)
    pieces = []
    for (start, end), covering in zip(itertools.pairwise(cuts), over, strict=False):
        share = sum(effect * (end - start) / (last - first) for first, last, effect in covering)
        title = ", ".join(f"{text[first:last]} {effect:+.4f}" for first, last, effect in covering)
        if len(covering) == 1:
            title = f"{covering[0][2]:+.4f}"
        pieces.append(_Piece(text[start:end], shade(share, scale) if covering else "", title))
    return pieces


def _leave_one_out_rows(leave_one_out: LeaveOneOut | None) -> list[dict[str, Any]]:
    """Returns the features with the largest effect on any label of the top k."""
    if leave_one_out is None:
        return []
    order = np.argsort(-np.abs(leave_one_out.changes).max(1), kind="stable")[:8]
    scale = float(np.abs(leave_one_out.changes).max()) or 1.0
    return [
        {
            "name": leave_one_out.feature_names[i],
            "cells": [
                {"text": f"{change:+.2f}".replace("-", "\u2212"), "style": shade(change, scale)}
                for change in leave_one_out.changes[i].tolist()
            ],
            "left": len(leave_one_out.left[i]),
        }
        for i in order.tolist()
    ]

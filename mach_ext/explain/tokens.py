"""Integrated Gradients of a text: of its words and of its tokens, through a text encoder and a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mach_ext._memory import memory_errors
from mach_ext.data import HybridMatrix, Vectorizer, check_columns
from mach_ext.data import attachments as kept
from mach_ext.explain._arguments import Labels, Names, feature_names_of, label_names_of, resolve_labels
from mach_ext.explain._decoding import own_scores
from mach_ext.explain._text_path import BASELINES, USUAL_STEPS, TextPath, tokenized
from mach_ext.explain._token_attributions import TokenAttributions
from mach_ext.explain.ablation import LeaveOneOut
from mach_ext.explain.attribution import check_rule, explain_path
from mach_ext.explain.result import Explanation
from mach_ext.nn import MACH, checked_k

if TYPE_CHECKING:
    from mach_ext.text_encoder import TextEncoder


@dataclass(frozen=True, kw_only=True)
class TokenExplanation(TokenAttributions, Explanation):
    """Attributions of the scores of m labels to the P features and the T tokens of a text.

    The attributions [m, P + T] have the features first, such as the TF-IDF values of words. The tokens
    follow. All attributions of a label add up to its score minus the score of the baseline. Charts, tables
    and pages show words. A word has the attributions of its tokens and its share of a feature.

    All attributes of an `Explanation` are there, and these.

    Attributes:
        features: Numbers of the features of the text, then D + t for token t [P + T].
        values, baselines: The values of the features, then the lengths of the token vectors [P + T].
        tokens: The letters of each token [T]. The special tokens are "[start]" and "[end]".
        token_spans: Start and end of each token in the text [T, 2]. Special tokens have (0, 0).
        token_words: The number of the word that each token is a part of [T]. Special tokens have -1.
        occurrences: Where features stand in the text [K, 3]: start, end, and position in `features`.
        truncated: Whether the encoder read only the beginning of the text.
        baseline: "pad" or "zero", as in `token_attributions`.

    Example:
        >>> import mach_ext
        >>> from mach_ext.text_encoder import TextEncoder
        >>> encoder = TextEncoder.load("encoder")
        >>> words = mach_ext.data.Vectorizer(["cat", "dog"], [1.0, 1.0])
        >>> model = mach_ext.MACH(2, 6, num_repetitions=8, num_buckets=4, hidden_size=8, num_dense=32)
        >>> why = mach_ext.explain.token_attributions(model, encoder, "a purring cat", [1], vectorizer=words)
        >>> why.tokens
        ['[start]', 'a', 'purr', 'ing', 'cat', '[end]']
        >>> why.words.names
        ['a', 'purring', 'cat']
    """

    @memory_errors("ask for fewer labels")
    def as_dict(self) -> dict[str, Any]:
        """Returns all attributes and the effects of the words, ready for JSON.

        Example:
            >>> import mach_ext
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder = TextEncoder.load("encoder")
            >>> words = mach_ext.data.Vectorizer(["cat", "dog"], [1.0, 1.0])
            >>> model = mach_ext.MACH(2, 6, num_repetitions=8, num_buckets=4, hidden_size=8, num_dense=32)
            >>> why = mach_ext.explain.token_attributions(model, encoder, "a cat", [1], vectorizer=words)
            >>> content = why.as_dict()
            >>> sorted(content["words"])
            ['names', 'of_features', 'of_tokens', 'spans']
        """
        words = self.words._asdict()
        listed = {
            name: each.tolist() if isinstance(each, np.ndarray) else each for name, each in words.items()
        }
        return {**super().as_dict(), "words": listed}


@memory_errors("ask for fewer labels or lower n_steps")
def token_attributions(
    model: MACH,
    encoder: TextEncoder,
    text: str,
    labels: Labels | None = None,
    *,
    X: Any = None,
    vectorizer: Vectorizer | None = None,
    baseline: str = "pad",
    score: str = "logit",
    n_steps: int | None = USUAL_STEPS,
    tolerance: float = 1e-3,
    max_steps: int = 1024,
    feature_names: Names = None,
    label_names: Names = None,
) -> TokenExplanation:
    """Computes Integrated Gradients of a text that a model reads in two ways: by its words and by an encoder.

    The model has dense features. A text becomes its D features, such as TF-IDF values, and the E numbers of
    the encoder. The path goes straight from a reference text to the text. On it the features grow from 0, and
    at the same time the vector of each token moves from that of the reference. So the attributions of all
    features and tokens together add up to the score minus the score of the reference.

    The reference text has the special tokens of the text, and the padding token in place of every other. This
    is what users of Captum's `LayerIntegratedGradients` take. The attention mask covers all tokens.

    The path runs through the encoder once for all labels. Each label takes a backward pass of its own.

    Args:
        model: A model with `num_dense` dense features. It is used in eval mode.
        encoder: The encoder that made its dense features.
        text: The text.
        labels: Labels by number or name. None: the model's top 5.
        X: The D features of the text [1, D], if no vectorizer makes them. The sparse part of a `HybridMatrix`
            is taken.
        vectorizer: Turns the text into D features, and says where they are in the text. None: the one that is
            kept with the model.
        baseline: "pad" is the reference text. "zero" has vectors of zeros in place of the padding token's.
        score: As in `integrated_gradients`.
        n_steps: Steps along the path. `delta` says how exact they are. None: they are chosen by `tolerance`,
            which takes minutes with a large encoder.
        tolerance: As in `integrated_gradients`.
        max_steps: As in `integrated_gradients`.
        feature_names: Names of all D features. None: the words of the vectorizer, those kept with the model,
            or numbers.
        label_names: Names of all L labels. None: those kept with the model, or numbers.

    Raises:
        TypeError: The model is not a `MACH`, the encoder is not a `TextEncoder`, or the text is no string.
        ValueError: The encoder or the vectorizer does not fit the model, a label is unknown, or another
            argument is out of range.

    Example:
        >>> import mach_ext
        >>> from mach_ext.text_encoder import TextEncoder
        >>> encoder = TextEncoder.load("encoder")
        >>> words = mach_ext.data.Vectorizer(["cat", "dog"], [1.0, 1.0])
        >>> model = mach_ext.MACH(2, 6, num_repetitions=8, num_buckets=4, hidden_size=8, num_dense=32)
        >>> model.scale_dense(encoder.encode(["a cat", "a dog"], progress=False))
        >>> why = mach_ext.explain.token_attributions(
        ...     model, encoder, "a purring cat", [1, 4], vectorizer=words
        ... )
        >>> why.attributions.shape, bool(abs(why.delta).max() < 0.01)
        ((2, 7), True)
    """
    op = "token_attributions"
    _check_parts(op, model, encoder, text)
    vectorizer = _checked_vectorizer(op, model, vectorizer)
    row = _features_of(op, model, text, X, vectorizer)
    if baseline not in BASELINES:
        raise ValueError(f"{op}: baseline must be one of {', '.join(BASELINES)}, got {baseline!r}")
    read = tokenized(encoder, text)
    path = TextPath(op, model, encoder, read, row, baseline)
    rule = check_rule(op, path, None, score, n_steps, tolerance, max_steps)
    names = label_names_of(op, model, label_names)
    ids = resolve_labels(op, model, path.top_labels() if labels is None else labels, names)
    if feature_names is None and vectorizer is not None:
        feature_names = vectorizer.vocabulary
    words = feature_names_of(op, model, feature_names)
    path.feature_names = [*(words[d] for d in row.indices.tolist()), *read.names]
    return TokenExplanation(
        **explain_path(op, path, ids, rule),
        label_names=[names[label] for label in ids.tolist()],
        text=text,
        tokens=read.names,
        token_spans=read.spans,
        token_words=read.words,
        occurrences=_occurrences(row, text, vectorizer),
        truncated=read.truncated,
        baseline=baseline,
    )


@memory_errors("ask for fewer words")
def leave_words_out(
    model: MACH,
    encoder: TextEncoder,
    text: str,
    spans: Sequence[tuple[int, int]],
    k: int | None = None,
    *,
    vectorizer: Vectorizer | None = None,
    label_names: Names = None,
) -> LeaveOneOut:
    """Cuts words out of a text in turn, asks the model again, and returns the effect on the top k.

    The shorter text is read anew, by the vectorizer and by the encoder. So the effects are exact.

    Args:
        model: A model with `num_dense` dense features. It is used in eval mode.
        encoder: The encoder that made its dense features.
        text: The text.
        spans: Start and end of each word, such as those of `TokenExplanation.words`.
        k: Size of the top k, 1 ... L. None: 5, or L if there are fewer labels.
        vectorizer: Turns texts into D features. None: the one that is kept with the model.
        label_names: Names of all L labels. None: those kept with the model, or numbers.

    Returns:
        The effects. `features` are positions in `spans`.

    Raises:
        TypeError: As in `token_attributions`.
        ValueError: As in `token_attributions`, or a span is empty or beyond the text.

    Example:
        >>> import mach_ext
        >>> from mach_ext.text_encoder import TextEncoder
        >>> encoder = TextEncoder.load("encoder")
        >>> words = mach_ext.data.Vectorizer(["cat", "dog"], [1.0, 1.0])
        >>> model = mach_ext.MACH(2, 6, num_repetitions=8, num_buckets=4, hidden_size=8, num_dense=32)
        >>> effects = mach_ext.explain.leave_words_out(
        ...     model, encoder, "a purring cat", [(2, 9), (10, 13)], k=2, vectorizer=words
        ... )
        >>> effects.feature_names, effects.changes.shape
        (['purring', 'cat'], (2, 2))
    """
    op = "leave_words_out"
    _check_parts(op, model, encoder, text)
    vectorizer = _checked_vectorizer(op, model, vectorizer)
    if vectorizer is None:
        raise ValueError(f"{op}: vectorizer must be given, because the model keeps none")
    k = checked_k(op, k, model.num_labels)
    for start, end in spans:
        if not 0 <= start < end <= len(text):
            raise ValueError(f"{op}: spans must be in the text of {len(text)} characters, got {(start, end)}")
    texts = [text, *(text[:start] + text[end:] for start, end in spans)]
    X = HybridMatrix(vectorizer.transform(texts), encoder.encode(texts, progress=False))
    best = model.predict(X, k)[1]
    labels, names = best[0], label_names_of(op, model, label_names)
    scores = own_scores(model, model.join(X), labels)
    return LeaveOneOut(
        features=np.arange(len(spans)),
        feature_names=[text[start:end] for start, end in spans],
        labels=labels,
        label_names=[names[label] for label in labels.tolist()],
        scores=scores[0],
        changes=scores[1:] - scores[0],
        left=[tuple(label for label in labels.tolist() if label not in row) for row in best[1:]],
        entered=[tuple(label for label in row.tolist() if label not in labels) for row in best[1:]],
        merge=model.merge,
    )


def _check_parts(op: str, model: Any, encoder: Any, text: Any) -> None:
    """Refuses a model, an encoder and a text that do not fit together."""
    from mach_ext.text_encoder import TextEncoder

    if not isinstance(model, MACH):
        raise TypeError(f"{op}: model must be a mach_ext.MACH, got {type(model).__name__}")
    if not isinstance(encoder, TextEncoder):
        raise TypeError(
            f"{op}: encoder must be a mach_ext.text_encoder.TextEncoder, got {type(encoder).__name__}; for a "
            "head on another encoder, use integrated_gradients with encoder="
        )
    if not isinstance(text, str):
        raise TypeError(f"{op}: text must be a string, got {type(text).__name__}")
    if model.num_dense != encoder.num_dense:
        raise ValueError(
            f"{op}: encoder must give the E={model.num_dense} dense features of the model, "
            f"got embeddings of {encoder.num_dense} numbers"
        )
    kept.check_encoder(op, model.attachments, model.num_dense, encoder)
    devices = model.bucket_bias.device, next(encoder.parameters()).device
    if devices[0] != devices[1]:
        raise ValueError(f"{op}: encoder must be on {devices[0]} like the model, got {devices[1]}")


def _features_of(op: str, model: MACH, text: str, X: Any, vectorizer: Vectorizer | None) -> Any:
    """Returns the features of a text [1, D], CSR without stored zeros."""
    if X is None:
        if vectorizer is None:
            raise ValueError(f"{op}: vectorizer or X must be given, because the model keeps no vectorizer")
        return vectorizer.transform([text])
    row = check_columns(X.sparse if isinstance(X, HybridMatrix) else X, f"{op}: X", model.num_features)
    if row.shape[0] != 1:
        raise ValueError(f"{op}: X must be one document [1, D], got shape {row.shape}")
    row = row.copy()
    row.eliminate_zeros()
    return row


def _occurrences(row: Any, text: str, vectorizer: Vectorizer | None) -> NDArray[np.int64]:
    """Returns where features stand in a text [K, 3]: start, end, and position among the features."""
    if vectorizer is None:
        return np.empty((0, 3), np.int64)
    place = {column: at for at, column in enumerate(row.indices.tolist())}
    spans = [(start, end, place[d]) for start, end, d in vectorizer.words(text) if d in place]
    return np.array(spans, np.int64).reshape(-1, 3)


def _checked_vectorizer(op: str, model: MACH, vectorizer: Any) -> Vectorizer | None:
    """Returns the given vectorizer, or the model's own. None: there is none."""
    if vectorizer is None:
        return kept.vectorizer(model.attachments, model.num_features)
    if not isinstance(vectorizer, Vectorizer):
        raise TypeError(f"{op}: vectorizer must be a Vectorizer, got {type(vectorizer).__name__}")
    if (count := len(vectorizer.vocabulary)) != model.num_features:
        raise ValueError(f"{op}: vectorizer must have the model's D={model.num_features} words, got {count}")
    checked: Vectorizer = vectorizer
    return checked

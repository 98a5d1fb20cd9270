"""Integrated Gradients of a text: of its words and of its tokens, through a text encoder and a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mach_ext._memory import memory_errors
from mach_ext.data import Vectorizer
from mach_ext.data import attachments as kept
from mach_ext.explain._arguments import Labels, Names, label_names_of, resolve_labels
from mach_ext.explain._text_path import BASELINES, TextPath, tokenized
from mach_ext.explain._token_attributions import TokenAttributions
from mach_ext.explain.attribution import check_rule, explain_path
from mach_ext.explain.result import Explanation
from mach_ext.nn import MACH

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
    vectorizer: Vectorizer | None = None,
    baseline: str = "pad",
    score: str = "logit",
    n_steps: int | None = None,
    tolerance: float = 1e-3,
    max_steps: int = 1024,
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
        vectorizer: Turns the text into D features. None: the one that is kept with the model.
        baseline: "pad" is the reference text. "zero" has vectors of zeros in place of the padding token's.
        score: As in `integrated_gradients`.
        n_steps: As in `integrated_gradients`.
        tolerance: As in `integrated_gradients`.
        max_steps: As in `integrated_gradients`.
        label_names: Names of all L labels. None: those kept with the model, or numbers.

    Raises:
        TypeError: The model is not a `MACH`, the encoder is not a `TextEncoder`, or the text is no string.
        ValueError: The encoder or the vectorizer does not fit the model, a label is out of range or unknown,
            or another argument is out of range.

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
        >>> why.attributions.shape, abs(why.delta).max() < 0.01
        ((2, 7), True)
    """
    op = "token_attributions"
    _check_parts(op, model, encoder, text)
    vectorizer = _checked_vectorizer(op, model, vectorizer)
    if baseline not in BASELINES:
        raise ValueError(f"{op}: baseline must be one of {', '.join(BASELINES)}, got {baseline!r}")
    row, read = vectorizer.transform([text]), tokenized(encoder, text)
    path = TextPath(op, model, encoder, read, row, baseline)
    rule = check_rule(op, path, None, score, n_steps, tolerance, max_steps)
    names = label_names_of(op, model, label_names)
    ids = resolve_labels(op, model, path.top_labels() if labels is None else labels, names)
    path.feature_names = [*(vectorizer.vocabulary[d] for d in row.indices.tolist()), *read.names]
    place = {column: at for at, column in enumerate(row.indices.tolist())}
    spans = [(start, end, place[d]) for start, end, d in vectorizer.words(text) if d in place]
    return TokenExplanation(
        **explain_path(op, path, ids, rule),
        label_names=[names[label] for label in ids.tolist()],
        text=text,
        tokens=read.names,
        token_spans=read.spans,
        token_words=read.words,
        occurrences=np.array(spans, np.int64).reshape(-1, 3),
        truncated=read.truncated,
        baseline=baseline,
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
    devices = model.bucket_bias.device, next(encoder.parameters()).device
    if devices[0] != devices[1]:
        raise ValueError(f"{op}: encoder must be on {devices[0]} like the model, got {devices[1]}")


def _checked_vectorizer(op: str, model: MACH, vectorizer: Any) -> Vectorizer:
    """Returns the given vectorizer, or the model's own."""
    if vectorizer is None:
        vectorizer = kept.vectorizer(model.attachments, model.num_features)
        if vectorizer is None:
            raise ValueError(f"{op}: vectorizer must be given, because the model keeps none")
    if not isinstance(vectorizer, Vectorizer):
        raise TypeError(f"{op}: vectorizer must be a Vectorizer, got {type(vectorizer).__name__}")
    if (count := len(vectorizer.vocabulary)) != model.num_features:
        raise ValueError(f"{op}: vectorizer must have the model's D={model.num_features} words, got {count}")
    checked: Vectorizer = vectorizer
    return checked

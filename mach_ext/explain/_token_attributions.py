"""The numbers of an explanation of a text that a model reads as words and as tokens of a text encoder."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mach_ext.explain._attributions import Attributions, Bars

Ints = NDArray[np.int64]


class WordEffects(NamedTuple):
    """The effects of the W words of a text, in the order of the text.

    Attributes:
        names: The words as they stand in the text [W].
        spans: Start and end of each in the text [W, 2]. (0, 0): it is not in the text.
        of_features: The part of each effect that the word has as a feature [m, W], such as its TF-IDF value.
        of_tokens: The part that it has through its tokens and the encoder [m, W].
    """

    names: list[str]
    spans: Ints
    of_features: NDArray[np.float64]
    of_tokens: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TokenAttributions(Attributions):
    """The content of a `TokenExplanation`. That class describes each attribute."""

    tokens: list[str]
    token_spans: Ints
    token_words: Ints
    occurrences: Ints
    truncated: bool
    baseline: str

    @functools.cached_property
    def words(self) -> WordEffects:
        """The effects of the words of the text, whose sum is that of all attributions.

        A word gets the attributions of its tokens. A feature divides its attribution equally among its places
        in the text. At each place the words there share it by their letters. Text that the encoder
        did not read has words of its own. So has a feature that is nowhere in the text.

        Example:
            >>> import mach_ext
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder = TextEncoder.load("encoder")
            >>> words = mach_ext.data.Vectorizer(["cat", "dog"], [1.0, 1.0])
            >>> model = mach_ext.MACH(2, 6, num_repetitions=8, num_buckets=4, hidden_size=8, num_dense=32)
            >>> why = mach_ext.explain.token_attributions(model, encoder, "purring cats", 1, vectorizer=words)
            >>> why.words.names, why.words.spans.tolist(), why.words.of_tokens.shape
            (['purring', 'cats'], [[0, 7], [8, 12]], (1, 2))
        """
        T = len(self.tokens)
        of_tokens = self.attributions[:, self.attributions.shape[1] - T :]
        is_shown = (self.token_words >= 0) | (of_tokens != 0).any(0)
        names: list[str] = []
        spans: list[list[int]] = []
        groups = np.full(T, -1)
        for t in np.flatnonzero(is_shown).tolist():
            start, end = self.token_spans[t].tolist()
            if t and self.token_words[t] >= 0 and self.token_words[t] == self.token_words[t - 1]:
                spans[-1][1] = end
            else:
                spans.append([start, end])
                names.append(self.tokens[t])
            groups[t] = len(spans) - 1
        joined = np.zeros((len(self.labels), len(spans)))
        np.add.at(joined.T, groups[is_shown], of_tokens[:, is_shown].T)
        return self._with_features(names, np.array(spans, np.int64).reshape(-1, 2), joined)

    def _with_features(self, names: list[str], spans: Ints, of_tokens: NDArray[np.float64]) -> WordEffects:
        """Divides the attributions of the features among words, and adds words that have no token."""
        features, P = self.occurrences[:, 2], len(self.features) - len(self.tokens)
        times = np.bincount(features, minlength=P)
        effects = self.attributions[:, features] / times[features]
        text, rows, columns, shares = self.text or "", [], [], []
        names = [text[a:b] if a < b else name for (a, b), name in zip(spans.tolist(), names, strict=True)]
        read = np.flatnonzero(spans[:, 0] < spans[:, 1])
        unread: dict[tuple[int, int], int] = {}
        for k, (start, end) in enumerate(self.occurrences[:, :2].tolist()):
            low = np.searchsorted(spans[read, 1], start, "right")
            at = read[low : max(low, np.searchsorted(spans[read, 0], end))]  # the words that overlap
            letters = np.minimum(spans[at, 1], end) - np.maximum(spans[at, 0], start)
            if not at.size:
                at, letters = (
                    np.array([unread.setdefault((start, end), len(names) + len(unread))]),
                    np.ones(1),
                )
            rows += [k] * len(at)
            columns += at.tolist()
            shares += (letters / letters.sum()).tolist()
        placed = np.zeros((len(self.labels), len(names) + len(unread)))
        np.add.at(placed.T, np.array(columns, np.int64), (effects[:, rows] * shares).T)
        elsewhere = np.flatnonzero(times == 0)
        new = [*unread, *[(0, 0)] * len(elsewhere)]
        return WordEffects(
            [*names, *(text[a:b] for a, b in unread), *(self.feature_names[i] for i in elsewhere)],
            np.array([*spans.tolist(), *new], np.int64).reshape(-1, 2),
            np.column_stack((placed, self.attributions[:, elsewhere])),
            np.pad(of_tokens, ((0, 0), (0, len(new)))),
        )

    @property
    def bars(self) -> Bars:
        """What charts and tables show: a bar for each word of the text.

        Example:
            >>> import mach_ext
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder = TextEncoder.load("encoder")
            >>> words = mach_ext.data.Vectorizer(["cat", "dog"], [1.0, 1.0])
            >>> model = mach_ext.MACH(2, 6, num_repetitions=8, num_buckets=4, hidden_size=8, num_dense=32)
            >>> why = mach_ext.explain.token_attributions(model, encoder, "purring cats", 1, vectorizer=words)
            >>> why.bars.names, why.bars.effects.shape
            (['purring', 'cats'], (1, 2))
        """
        words = self.words
        return Bars(np.arange(len(words.names)), words.names, words.of_features + words.of_tokens)

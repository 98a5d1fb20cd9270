"""A model with all that turns texts into its documents, and the losses of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from mach_ext import functional as F
from mach_ext.attack._hybrid_inputs import HybridInputLayer
from mach_ext.attack._inputs import InputLayer
from mach_ext.attack._layer import Layer
from mach_ext.attack._models import attacked_model
from mach_ext.attack._text_words import Span
from mach_ext.attack.goals import Targets
from mach_ext.attack.threats import Support
from mach_ext.attack.token_encoder import TokenEncoder
from mach_ext.data import HybridMatrix, Vectorizer
from mach_ext.data import attachments as kept
from mach_ext.data.matrices import Csr
from mach_ext.head import MACHHead

_BATCH = 32  # texts that go through the encoder at a time


class TextModel:
    """A model, its vectorizer and its text encoder. It takes texts."""

    def __init__(self, op: str, model: Any, encoder: Any, vectorizer: Vectorizer | None) -> None:
        """Checks that the parts fit together."""
        self.given, self.model = model, attacked_model(op, model)
        self.encoder, self.vectorizer, is_head = encoder, vectorizer, isinstance(model, MACHHead)
        E = self.model.num_features if is_head else self.model.num_dense
        if (encoder is not None) != (E > 0):
            need = f"encoder must be a TextEncoder, because the model takes E={E} dense features"
            none = "encoder must be None, because the model takes no dense features (num_dense=0)"
            raise ValueError(f"{op}: {need if E else none}, got {type(encoder).__name__}")
        if encoder is not None and encoder.num_dense != E:
            raise ValueError(f"{op}: encoder must give embeddings of E={E} entries, got {encoder.num_dense}")
        if encoder is not None and not is_head:
            kept.check_encoder(op, self.model.attachments, E, encoder)
        D = 0 if is_head else self.model.num_features
        if (vectorizer is not None) != (D > 0) or (
            vectorizer is not None and len(vectorizer.vocabulary) != D
        ):
            got = "None" if vectorizer is None else f"one of {len(vectorizer.vocabulary)} words"
            must = f"a Vectorizer of D={D} words" if D else "None for a head"
            raise ValueError(f"{op}: vectorizer must be {must}, got {got}")
        self.layer = Layer(op, self.model)

    # ------------------------------------------------------------------------------------------- documents

    def documents(self, texts: Sequence[str]) -> Any:
        """Returns the documents of texts: what the model's `predict` takes."""
        return self._joined_parts(self.words(texts), self.dense(texts))

    def words(self, texts: Sequence[str]) -> Csr | None:
        """Returns the sparse features of texts."""
        if self.vectorizer is None:
            return None
        if not len(texts):
            return scipy.sparse.csr_matrix((0, self.model.num_features), dtype=np.float32)
        return self.vectorizer.transform(texts)

    def dense(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """Returns the embeddings of texts."""
        if self.encoder is None:
            return None
        dense: NDArray[np.float32] = self.encoder.encode(texts, _BATCH, progress=False)
        return dense

    def _joined_parts(self, words: Csr | None, dense: NDArray[np.float32] | None) -> Any:
        """Returns documents of both parts."""
        if dense is None:
            return words
        return scipy.sparse.csr_matrix(dense) if words is None else HybridMatrix(words, dense)

    def joined(self, documents: Any) -> Csr:
        """Returns documents as one matrix."""
        return self.model.join(documents) if isinstance(documents, HybridMatrix) else documents

    # ---------------------------------------------------------------------------------------------- losses

    def losses(self, documents: Any, goal: Targets, owners: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the loss of each document. `owners` says whose labels the loss is about."""
        X, layer = self.joined(documents), self.layer
        parts = []
        for start in range(0, X.shape[0], layer.batch_size):
            rows = slice(start, start + layer.batch_size)
            first = layer.first(*layer.tensors(X[rows], Support()))
            parts.append(layer.losses(first, _taken(goal, owners[rows]), False)[0].cpu().numpy())
        return np.concatenate(parts) if parts else np.empty(0)

    def effects(
        self, text: str, spans: Sequence[Span], candidates: Sequence[tuple[int, str]], goal: Targets
    ) -> NDArray[np.float64]:  # [candidates]
        """Returns by how much the removal of each word changes the loss of a text, to first order.

        The effect on the sparse features is exact. That on the embedding is linear in the vectors of the
        word's tokens.

        Args:
            text: The text.
            spans: Where its words stand.
            candidates: Numbers of words, and the text without each.
            goal: The labels of the text alone.
        """
        effect = self._effects_on_embedding(text, goal)
        at = np.array([spans[number] for number, _ in candidates]).reshape(-1, 2)
        total = np.zeros(len(candidates))
        for start, end, value in effect:
            total += np.where((at[:, 0] < end) & (start < at[:, 1]), value, 0.0)
        if self.vectorizer is not None:
            dense = self.dense([text])
            assert dense is not None
            words = self.vectorizer.transform([text, *(changed for _, changed in candidates)])
            documents = self._joined_parts(words, np.repeat(dense, words.shape[0], 0))
            losses = self.losses(documents, goal, np.zeros(words.shape[0], np.int64))
            total += losses[1:] - losses[0]
        return total

    def _effects_on_embedding(self, text: str, goal: Targets) -> list[tuple[int, int, float]]:
        """Returns start, end and first-order effect of each token of a text."""
        tokens, behind = self.encoder.tokenize([text], offsets=True), TokenEncoder(self.encoder)
        op, vectors = "WordDeletion", behind.vectors([text])
        layer: InputLayer
        if self.vectorizer is None:
            layer = InputLayer(op, self.given, behind)
        else:
            layer = HybridInputLayer(op, self.model, behind)
            layer.sparse = self.vectorizer.transform([text])
        layer.input_shape = tuple(vectors.shape[1:])
        with layer.evaluating():
            _, gradient = layer.losses(vectors, goal, True)
        assert gradient is not None
        effect = -(gradient.double() * vectors.double()).sum(2)[0]
        return [
            (a, b, v) for (a, b), v in zip(tokens.offsets[0].tolist(), effect.tolist(), strict=True) if b > a
        ]


def _taken(goal: Targets, rows: NDArray[np.int64]) -> Targets:
    """Returns the labels of some rows of a batch, perhaps several times."""
    at = torch.from_numpy(rows)
    if goal.pairs is not None:
        assert isinstance(goal.active, torch.Tensor)
        at = at.to(goal.pairs.device)
        return Targets(goal.labels, goal.pairs[at], goal.active[at])
    indices, indptr = (t.cpu() for t in goal.labels)
    lengths = indptr.diff()[at]
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(indptr[:-1][at] - (ends - lengths), lengths)
    chosen = indices[torch.arange(len(shift)) + shift]
    device = goal.labels[0].device
    return Targets((chosen.to(device), torch.cat((ends.new_zeros(1), ends)).to(device)))


def row_goal(goal: Targets, row: int) -> Targets:
    """Returns the labels of a row of a batch."""
    return _taken(goal, np.array([row]))


def check_words(op: str, words: Any) -> list[int]:
    """Returns numbers of words to delete, as a list."""
    several = isinstance(words, (Sequence, np.ndarray)) and not isinstance(words, str)
    counts = [_count(op, each) for each in (words if several else [words])]
    if not counts:
        raise ValueError(f"{op}: words must be at least one number")
    return counts


def _count(op: str, words: Any) -> int:
    """Returns a number of words. A float that is whole counts."""
    if isinstance(words, (float, np.floating)) and float(words).is_integer():
        words = int(words)
    if (count := F.as_int(op, "words", words)) < 0:
        raise ValueError(f"{op}: words must be numbers >= 0, got {count}")
    return count

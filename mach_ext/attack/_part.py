"""The part of a document that a threat model may change: its words, or its dense features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach_ext.attack._threat_model import Step, ThreatModel
from mach_ext.attack.threats import Dense, Embedding
from mach_ext.data import HybridMatrix
from mach_ext.data.matrices import Csr


@dataclass(frozen=True)
class Part:
    """Columns of joined documents that may change. All others stay as they are, whatever an attack does.

    Attributes:
        begin, end: The first column and the end. None as `end`: every entry may change.
        scale: How much a column of joined documents changes if a feature changes by 1.
        center_size: The largest absolute value of a center of these columns, scaled.
    """

    begin: int = 0
    end: int | None = None
    scale: float = 1.0
    center_size: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether every entry may change."""
        return self.end is None

    def radius(self, epsilon: float) -> float:
        """Returns the size of a change in joined documents. Rounding does not enlarge it."""
        return epsilon if self.scale == 1 else epsilon * self.scale * (1 - 2.0**-51)

    def columns(self, X: Any) -> Any:
        """Returns the columns of joined documents that may change."""
        return X if self.end is None else X[:, self.begin : self.end]

    def contains(self, indices: Tensor) -> Tensor:
        """Returns which entries may change, by their columns."""
        if self.end is None:
            return torch.ones_like(indices, dtype=torch.bool)
        return (indices >= self.begin) & (indices < self.end)

    def on(self, threat: ThreatModel, indices: Tensor) -> ThreatModel | ThreatOnPart:
        """Returns the threat model as it moves the entries of these columns."""
        return threat if self.end is None else ThreatOnPart(threat, self.contains(indices).nonzero()[:, 0])


def changed_part(op: str, model: Any, threat: ThreatModel) -> Part:
    """Returns the part of documents of a model that a threat model may change.

    Threat models of words leave the dense features as they are, and `Embedding` leaves the words as they are.

    Raises:
        ValueError: The threat model does not fit the features of the model.
    """
    D, E = model.num_features, model.num_dense
    if isinstance(threat, Embedding):
        if not E:
            raise ValueError(
                f"{op}: threat model {threat} changes dense features, but the model takes none (num_dense=0)"
            )
        scale = float(model.dense_scale)
        return Part(D, D + E, scale, scale * float(model.dense_center.abs().max()))
    if not E:
        return Part()
    if isinstance(threat, Dense):
        raise ValueError(
            f"{op}: threat model {threat} changes every feature by the same size, but the D={D} sparse and "
            f"E={E} dense features of this model have different units; use embedding or embedding(l2) for "
            "the dense features, or support, insert(m), l1, l2 or delete for the sparse ones"
        )
    return Part(0, D)


def unchanged_features(model: Any, threat: ThreatModel, behind_encoder: bool = False) -> str | None:
    """Returns which features of documents the threat model leaves as they are, in words. None: none."""
    if not getattr(model, "num_dense", 0):
        return None
    return "sparse features" if behind_encoder or isinstance(threat, Embedding) else "dense features"


class ThreatOnPart:
    """A threat model that moves some of the entries. The others keep their clean values."""

    def __init__(self, threat: ThreatModel, at: Tensor) -> None:
        """Takes the threat model and the positions of the entries that may change, ascending."""
        self.threat, self.at = threat, at

    def project(self, x: Tensor, y: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """Moves values y into the set around x."""
        at = self.at
        return x.index_copy(0, at, self.threat.project(x[at], y[at], rows[at], N, epsilon))

    def vertex(self, x: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float) -> Tensor:
        """Returns the point at which FGSM ends."""
        at = self.at
        return x.index_copy(0, at, self.threat.vertex(x[at], g[at], rows[at], N, epsilon))

    def advance(
        self, x: Tensor, now: Tensor, g: Tensor, rows: Tensor, N: int, epsilon: float, step: Step
    ) -> Tensor:
        """Returns PGD's next point."""
        at = self.at
        moved = self.threat.advance(x[at], now[at], g[at], rows[at], N, epsilon, step)
        return x.index_copy(0, at, moved)


def without_zeros(X: Csr, num_features: int) -> Csr:
    """Returns joined documents without stored zeros among the words. All dense features are stored.

    The dense features that a matrix of the user lacks are zeros, which an attacker may change.
    """
    N, E = X.shape[0], X.shape[1] - num_features
    is_word = X.indices < num_features
    complete = np.count_nonzero(~is_word) == N * E
    if complete and not (is_word & (X.data == 0)).any():
        return X
    words = X[:, :num_features].copy()
    words.eliminate_zeros()
    return HybridMatrix(words, X[:, num_features:].toarray()).join() if E else words

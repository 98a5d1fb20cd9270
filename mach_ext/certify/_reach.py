"""The threat set around a document, and how much a linear function can lose within it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from mach_ext.attack._part import Part
from mach_ext.attack.threats import L1, Delete, Embedding, ThreatModel

_JOIN = 8 * 2.0**-24  # see `Reach._rounding`


class Reach:
    """How far a document's own features may move together, and how much a linear function of them can lose.

    Functions g [n, K] are K columns. A change d is between `low` and `high`, and within the ball. Features
    outside the threat model's part of the document do not move.

    Attributes:
        epsilon: The radius of the ball in joined documents, rounded up.
        inner: The same radius, rounded down. Documents that are tried keep to it.
    """

    def __init__(self, threat: ThreatModel, x: Tensor, epsilon: float, free: Tensor, part: Part) -> None:
        """Computes how far each feature may move. `free` [n] says which features may."""
        self.threat, self.x, self.free = threat, x, free
        self.inner = part.radius(epsilon)
        self.epsilon = epsilon
        if isinstance(threat, Embedding):
            self.epsilon = epsilon * part.scale + self._rounding(epsilon * part.scale, part)
        low, high = (
            (x.clamp(max=0), x.clamp(min=0)) if isinstance(threat, Delete) else threat.bounds(x, self.epsilon)
        )
        low, high = torch.where(free, low, x), torch.where(free, high, x)
        self.low, self.high = low - x, high - x  # [n]
        self.largest = torch.maximum(low.abs(), high.abs())  # the largest absolute value of each feature

    def _rounding(self, radius: float, part: Part) -> float:
        """Returns how far rounding may move joined dense features beyond the ball, in its norm.

        A dense feature is rounded to float32, moved by the center c and scaled by s. Each of these steps is
        wrong by at most 2^-24 of its result, and the clean feature took them, too. In all this is at most
        2^-24 times 6 |x| + 3 epsilon s + 2 s |c|, up to terms of second order. `_JOIN` is 8 * 2^-24.
        """
        total = self.x[self.free].abs() + part.center_size + radius
        return _JOIN * float(total.square().sum().sqrt() if self.threat.norm == 2 else total.max())

    def change(self, g: Tensor) -> Tensor:  # [n, K]
        """Returns the change along which each function falls most. For L2 it is exact up to rounding."""
        threat, low, high = self.threat, self.low[:, None], self.high[:, None]
        if isinstance(threat, Delete):
            return self._deleted(g)
        if isinstance(threat, L1):
            room = torch.where(g > 0, -low, high)
            order = g.abs().sort(0, descending=True).indices
            room = room.gather(0, order)
            moved = (self.epsilon - (room.cumsum(0) - room)).clamp(min=0).minimum(room)
            return -g.sign() * torch.empty_like(g).scatter_(0, order, moved)
        if threat.norm == 2:
            return self._on_ball(g)[0]
        return torch.where(g > 0, low, high)

    def lowest(self, g: Tensor, quick: bool = False) -> Tensor:  # [K]
        """Returns the most that each function can lose, <= 0. `quick` gives a bound, for many columns."""
        threat, epsilon = self.threat, self.epsilon
        if not len(g):
            return g.new_zeros(g.shape[1])
        if isinstance(threat, Delete):
            effect = self._removed(g)
            return effect.topk(min(int(epsilon), len(g)), 0, largest=False).values.clamp(max=0).sum(0)
        if isinstance(threat, L1):
            return -epsilon * self._movable(g).abs().amax(0) if quick else (g * self.change(g)).sum(0)
        if threat.norm == 2:
            if quick:
                size: Tensor = vector_norm(self._movable(g), dim=0)
                return -epsilon * size
            change, t = self._on_ball(g)  # the Lagrangian's dual function is a lower bound for every t
            return (g * change).sum(0) + (change.square().sum(0) - epsilon * epsilon) / (2 * t)
        return self.low @ g.clamp(min=0) + self.high @ g.clamp(max=0)

    def _movable(self, g: Tensor) -> Tensor:
        """Returns functions without what cannot move."""
        return g * self.free[:, None]

    def _removed(self, g: Tensor) -> Tensor:  # [n, K]
        """Returns the effect of the removal of each word. Other features cannot be removed."""
        return -(self.x * self.free)[:, None] * g

    def _deleted(self, g: Tensor) -> Tensor:
        """Returns the removal of words that lowers each function most."""
        effect = self._removed(g)
        words = min(int(self.epsilon), len(g))
        worst, at = effect.topk(words, 0, largest=False)
        chosen = torch.zeros_like(g).scatter_(0, at, (worst < 0).to(g.dtype))
        return -self.x[:, None] * chosen

    def _on_ball(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Returns -t g within the bounds, with t [K] such that the norm is epsilon.

        This satisfies the conditions of Karush, Kuhn and Tucker.
        """
        t = self.epsilon / vector_norm(self._movable(g), dim=0).clamp(min=1e-150)
        low, high = torch.zeros_like(t), torch.full_like(t, 64.0)  # log2 of the factor of t
        for _ in range(36):
            middle = (low + high) / 2
            inside = vector_norm(self._clamped(t * middle.exp2(), g), dim=0) <= self.epsilon
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        t = t * low.exp2()
        return self._clamped(t, g), t

    def _clamped(self, t: Tensor, g: Tensor) -> Tensor:
        """Returns -t g, moved into the bounds of each feature."""
        return (-t * g).clamp(self.low[:, None], self.high[:, None])

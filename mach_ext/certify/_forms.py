"""Affine forms: bounds of the model's output for all documents within reach of a document."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mach_ext.certify._reach import Reach


@dataclass
class HiddenForm:
    """The last hidden layer: pre-activations p + slope' d, up to `spread`, in [low, high], all [M]."""

    p: Tensor
    slope: Tensor  # [n, M]
    spread: Tensor
    low: Tensor
    high: Tensor
    rounding: Tensor  # how far rounding may move the unit that the model computes
    magnitude: float  # the largest sum of absolute values of a unit, plus that of the layer before


@dataclass
class AffineForm:
    """A document, and bounds of the model's output for everything within its reach.

    d is the change of the document's own features. A bucket's logit is base + slope' d, up to two errors.
    `spread` covers the lines around ReLU and the rounding of hidden units. `inserted` covers new features.
    `size` is the sum of the absolute values that the logit is summed from. Rounding moves the logit that the
    model computes by at most rate * size.
    """

    n: int  # number of the document
    own: Tensor  # [n], the document's own features
    reach: Reach
    slope: Tensor  # [n, R, B]
    base: Tensor  # [R, B]
    spread: Tensor  # [R, B]
    inserted: Tensor  # [R, B]
    size: Tensor  # [R, B]
    rate: float
    hidden: HiddenForm | None
    finite: bool  # whether all sums are in the range of float32; otherwise nothing is certified

    def uncertainty(self) -> Tensor:
        """Returns how far each logit [R, B] that the model computes may be from base + slope' d."""
        return self.spread + self.inserted + self.rate * self.size


def relu_lines(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Returns slope and gap such that relu(p) is in [slope * p, slope * p + gap] for p in [low, high]."""
    unsure = (low < 0) & (high > 0)
    slope = torch.where(unsure, high / (high - low), (low >= 0).to(low.dtype))
    return slope, torch.where(unsure, -slope * low, 0.0)

"""Documents as affine forms: what a model makes of everything within reach of a document."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mach_ext.certify._reach import Reach


@dataclass
class HiddenForm:
    """The last hidden layer: pre-activations p + slope' d, within `spread`, in [low, high]; all [M]."""

    p: Tensor
    slope: Tensor  # [n, M]
    spread: Tensor
    low: Tensor
    high: Tensor
    rounding: Tensor  # by how much what the model computes for the unit is rounded
    magnitude: float  # the largest sum of absolute values of a unit, with that of the layer before added


@dataclass
class AffineForm:
    """A document, and what the model makes of everything within its reach.

    A bucket's logit is base + slope' d for a change d of the document's own features, within `spread`, what
    lines leave of relu and the rounding of hidden units, and `inserted`, what new features do. `size` is the
    sum of absolute values that the logit is summed of; as the model computes it, it is off by rate * size.
    """

    n: int  # number of the document
    own: Tensor  # [n] its features
    reach: Reach
    slope: Tensor  # [n, R, B]
    base: Tensor  # [R, B]
    spread: Tensor  # [R, B]
    inserted: Tensor  # [R, B]
    size: Tensor  # [R, B]
    rate: float
    hidden: HiddenForm | None
    finite: bool  # all that is summed is in the range of float32; otherwise nothing is shown

    def uncertainty(self) -> Tensor:
        """How far each logit [R, B], as the model computes it, may be from base + slope' d."""
        return self.spread + self.inserted + self.rate * self.size


def relu_lines(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """relu(p) is in [slope * p, slope * p + gap] for p in [low, high]."""
    unsure = (low < 0) & (high > 0)
    slope = torch.where(unsure, high / (high - low), (low >= 0).to(low.dtype))
    return slope, torch.where(unsure, -slope * low, 0.0)

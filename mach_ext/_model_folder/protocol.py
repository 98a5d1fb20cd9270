"""What a model or head must have to be saved. `mach_ext.nn` and `mach_ext.head` import this package."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from mach_ext._model_folder.extents import Extent
from mach_ext.hashing import LabelHash


class SavableModel(Protocol):
    """The parts of a model or head that its folder knows."""

    attachments: dict[str, bytes]
    hash: LabelHash
    logit_adjustment: Tensor

    def configuration(self) -> dict[str, Any]:
        """Return the constructor arguments."""

    @property
    def bucket_weight(self) -> nn.Parameter:
        """The weight of the bucket classifiers."""


class SavablePart(Protocol):
    """The part of a model that a process holds, as its folder knows it.

    Attributes:
        model: The model of the part's repetitions.
        extent: What the part holds.
        seed: The seed of the whole label hash. None: it is a table.
    """

    model: Any
    extent: Extent
    seed: int | None

    def configuration(self) -> dict[str, Any]:
        """Return the constructor arguments of the whole model."""

"""What a model or head must have to be saved. `mach_ext.nn` and `mach_ext.head` import this package."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

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

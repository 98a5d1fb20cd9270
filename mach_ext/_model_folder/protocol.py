"""What a model must have to be saved and loaded. `mach_ext.nn.MACH`, which imports this package, has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor
from torch.nn import Parameter

from mach_ext.hashing import LabelHash


class SavableModel(Protocol):
    """The parts of a model that its folder knows."""

    attachments: dict[str, bytes]
    hash: LabelHash
    logit_adjustment: Tensor

    @property
    def is_linear(self) -> bool:
        """Whether the model has no hidden layer."""

    def configuration(self) -> dict[str, Any]:
        """Return the constructor arguments."""

    def parameters(self) -> Iterator[Parameter]:
        """Return the parameters."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Return the parameters with their names."""

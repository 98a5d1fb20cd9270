"""What a model has that can be saved and loaded. `mach_ext.nn.MACH`, which stands above, has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor
from torch.nn import Parameter

from mach_ext.hashing import LabelHash


class SavableModel(Protocol):
    """The part of a model that its folder knows of."""

    attachments: dict[str, bytes]
    hash: LabelHash
    logit_adjustment: Tensor

    @property
    def is_linear(self) -> bool: ...

    def configuration(self) -> dict[str, Any]: ...

    def parameters(self) -> Iterator[Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

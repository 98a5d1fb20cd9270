"""The center and the scale of a model's dense features, for their way back from joined documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """A joined dense feature is (raw - center) * scale. All numbers are float64."""

    center: Tensor  # [E]
    scale: float

    @staticmethod
    def of(model: Any) -> Scaling | None:
        """Returns the scaling of a model. None: it takes no dense features."""
        if not model.num_dense:
            return None
        return Scaling(model.dense_center.detach().double(), float(model.dense_scale))

    @property
    def E(self) -> int:
        """The number of dense features."""
        return len(self.center)

    def raw(self, joined: Tensor) -> Tensor:
        """Returns the dense features of joined ones [N * E]."""
        return (joined.double().view(-1, self.E) / self.scale + self.center.to(joined.device)).flatten()

    def join(self, raw: Tensor) -> Tensor:
        """Returns joined dense features of raw ones [N * E]."""
        return ((raw.view(-1, self.E) - self.center.to(raw.device)) * self.scale).flatten()

    def raw_rows(self, X: Any) -> NDArray[np.float32]:
        """Returns the dense features [N, E] of joined documents that store them all."""
        joined = torch.from_numpy(X[:, X.shape[1] - self.E :].toarray())
        return self.raw(joined.flatten()).view(-1, self.E).float().numpy()

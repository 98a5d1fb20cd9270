"""What a run trains together with its model, as its checkpoints and its folder know it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor


class Companion(Protocol):
    """What is trained together with a model: a text encoder and its optimiser."""

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint has to hold, by name."""

    def expected(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of everything that `tensors` may hold, by name."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors` returned."""

    def weights(self) -> dict[str, Tensor]:
        """Return the weights alone, by name."""

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take what `weights` returned."""

    def save(self, folder: Path, attachments: dict[str, bytes]) -> None:
        """Save the weights into a run's folder, and note their place in the model's attachments."""

    def load_saved(self, folder: Path, attachments: dict[str, bytes]) -> None:
        """Take the weights that `save` wrote."""

    def delete_others(self, folder: Path, attachments: dict[str, bytes]) -> None:
        """Remove weights in the folder that the attachments do not name."""

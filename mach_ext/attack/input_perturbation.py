"""Perturbations of the inputs of an encoder: the results of attacks, as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext._memory import memory_errors
from mach_ext.attack._batch import Batch, joined, joined_targets
from mach_ext.attack._inputs import InputLayer
from mach_ext.attack._threat_checks import holds_on_all_entries
from mach_ext.attack.threats import Support, ThreatModel
from mach_ext.nn import checked_k

_CHECKED = 1 << 20  # entries that are compared at a time, in float64


class InputPerturbation:
    """Adversarial inputs of an encoder. Attacks that have `encoder` return it.

    Attributes:
        X: The clean inputs [N, ...], a tensor.
        inputs: The adversarial inputs, a tensor with the shape, dtype and device of X.
        epsilon: The size of the change.
        threat_model: What the attacker may change.
        loss, clean_loss: Loss of each adversarial and clean input [N], float64. The attack raises it.
        targets: For targeted goals, the label that is to leave or enter [N]. -1: none. None for other goals.

    Example:
        >>> import torch, mach_ext
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh())
        >>> head = mach_ext.MACHHead(16, 40, num_repetitions=8, num_buckets=16)
        >>> X, Y = torch.randn(3, 6), torch.eye(40)[:3]  # input n has label n
        >>> perturbed = mach_ext.attack.FGSM(head, encoder=encoder).perturb(X, Y, epsilon=0.1)
        >>> perturbed, perturbed.inputs.shape
        (InputPerturbation(N=3, support, epsilon=0.1), torch.Size([3, 6]))
        >>> bool((perturbed.loss >= perturbed.clean_loss).all())
        True
    """

    def __init__(
        self,
        layer: InputLayer,
        threat: ThreatModel,
        X: Tensor,
        epsilon: float,
        batches: list[Batch],
        inputs: Tensor,
    ) -> None:
        """Joins the losses of the batches of an attack, which have been written to `inputs`."""
        self._layer, self.threat_model, self.epsilon = layer, threat, epsilon
        self.X, self.inputs = X, inputs
        self.loss, self.clean_loss = joined(batches, "loss"), joined(batches, "clean_loss")
        self.targets = joined_targets(batches)

    def __repr__(self) -> str:
        """Returns the number of inputs, the threat model and epsilon."""
        return f"InputPerturbation(N={len(self.X)}, {self.threat_model}, epsilon={self.epsilon:g})"

    @memory_errors("perturb fewer inputs at a time")
    def hidden(self) -> Tensor:
        """Returns the hidden units of the adversarial inputs, [N, H] or [N, R, H].

        Example:
            >>> import torch, mach_ext
            >>> encoder = torch.nn.Linear(6, 16)
            >>> head = mach_ext.MACHHead(16, 40, num_repetitions=8, num_buckets=16)
            >>> X, Y = torch.randn(3, 6), torch.eye(40)[:3]
            >>> mach_ext.attack.FGSM(head, encoder=encoder).perturb(X, Y, 0.1).hidden().shape
            torch.Size([3, 16])
        """
        return self._layer.all_hidden(self.inputs)

    @memory_errors("perturb fewer inputs at a time or lower k")
    def predict(self, k: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns the top k of the adversarial inputs.

        Args:
            k: Size of the top k. None: 5, or L if there are fewer labels.

        Returns:
            Scores [N, k], float32, and labels [N, k], int64.

        Raises:
            ValueError: k is out of range.

        Example:
            >>> import torch, mach_ext
            >>> encoder = torch.nn.Linear(6, 16)
            >>> head = mach_ext.MACHHead(16, 40, num_repetitions=8, num_buckets=16)
            >>> X, Y = torch.randn(3, 6), torch.eye(40)[:3]
            >>> perturbed = mach_ext.attack.FGSM(head, encoder=encoder).perturb(X, Y, epsilon=0.1)
            >>> scores, labels = perturbed.predict(k=2)
            >>> bool((torch.from_numpy(labels) == head.topk(encoder(perturbed.inputs), k=2)[1]).all())
            True
        """
        op = "InputPerturbation.predict"
        return self._layer.predict(op, self.inputs, checked_k(op, k, self._layer.model.num_labels))

    @property
    @memory_errors("perturb fewer inputs at a time")
    def norms(self) -> dict[str, NDArray[np.float64]]:
        """Norms of each input's change, and numbers of entries, by name [N].

        "linf", "l2" and "l1" are norms over all entries of an input. "added" and "removed" count entries that
        cease to be 0 or become 0.

        Example:
            >>> import torch, mach_ext
            >>> encoder = torch.nn.Linear(6, 16)
            >>> head = mach_ext.MACHHead(16, 40, num_repetitions=8, num_buckets=16)
            >>> X, Y = torch.randn(3, 6), torch.eye(40)[:3]
            >>> perturbed = mach_ext.attack.FGSM(head, "l2", encoder=encoder).perturb(X, Y, epsilon=0.5)
            >>> perturbed.norms["l2"].round(2).tolist()
            [0.5, 0.5, 0.5]
        """
        parts = [_norms(before, after) for before, after in self._pairs()]
        names = ("linf", "l2", "l1", "added", "removed")
        return {name: np.concatenate([part[name] for part in parts] or [np.empty(0)]) for name in names}

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields clean and adversarial inputs as rows of float64 on the CPU, some inputs at a time."""
        size = max(1, _CHECKED // max(1, self.X[:1].numel()))
        for start in range(0, len(self.X), size):
            at = slice(start, start + size)
            yield self.X[at].flatten(1).double().cpu(), self.inputs[at].flatten(1).double().cpu()

    @memory_errors("perturb fewer inputs at a time")
    def changes(self, n: int) -> list[tuple[tuple[int, ...], float, float]]:
        """Returns the changes of input n as a list of position, old value and new value.

        A position is an index of `X[n]`.

        Args:
            n: Number of the input.

        Raises:
            ValueError: n is out of range.

        Example:
            >>> import torch, mach_ext
            >>> encoder = torch.nn.Linear(6, 16)
            >>> head = mach_ext.MACHHead(16, 40, num_repetitions=8, num_buckets=16)
            >>> X, Y = torch.randn(3, 6), torch.eye(40)[:3]
            >>> perturbed = mach_ext.attack.FGSM(head, encoder=encoder).perturb(X, Y, epsilon=0.1)
            >>> position, old, new = perturbed.changes(1)[0]
            >>> position, old == X[1][position].item(), new == perturbed.inputs[1][position].item()
            ((0,), True, True)
        """
        if not 0 <= n < len(self.X):
            raise ValueError(f"InputPerturbation.changes: n must be in [0, N={len(self.X)}), got {n}")
        old, new = self.X[n], self.inputs[n]
        at = (old != new).nonzero(as_tuple=True)
        positions = zip(*(axis.tolist() for axis in at), strict=True)
        return list(zip(positions, old[at].tolist(), new[at].tolist(), strict=True))

    @memory_errors("perturb fewer inputs at a time")
    def holds(self) -> bool:
        """Returns whether every input is within the threat model. The numbers are compared in float64.

        Example:
            >>> import torch, mach_ext
            >>> encoder = torch.nn.Linear(6, 16)
            >>> head = mach_ext.MACHHead(16, 40, num_repetitions=8, num_buckets=16)
            >>> X, Y = torch.randn(3, 6), torch.eye(40)[:3]
            >>> mach_ext.attack.PGD(head, "l1", encoder=encoder).perturb(X, Y, epsilon=0.5).holds()
            True
        """
        threat, epsilon = self.threat_model, self.epsilon
        pairs = ((before.numpy(), after.numpy()) for before, after in self._pairs())
        if isinstance(threat, Support):
            return all(threat.holds(before, after, epsilon) for before, after in pairs)
        return all(holds_on_all_entries(threat, before, after, epsilon) for before, after in pairs)


def _norms(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Returns the norms of the changes of rows, and numbers of entries."""
    change = (after - before).abs()
    largest = change.amax(1) if change.shape[1] else change.sum(1)
    measures = {
        "linf": largest,
        "l2": torch.linalg.vector_norm(change, dim=1),
        "l1": change.sum(1),
        "added": ((before == 0) & (after != 0)).sum(1),
        "removed": ((before != 0) & (after == 0)).sum(1),
    }
    return {name: measure.double().numpy() for name, measure in measures.items()}

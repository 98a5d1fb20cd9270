"""What all attacks share: checks of their input, batches of documents, and goals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from mach_ext._memory import check_memory, memory_advice
from mach_ext.attack._batch import Batch
from mach_ext.attack._layer import Layer
from mach_ext.attack.goals import GOALS, NEAREST, Targets, check_true_labels, first_label, goal_k, is_true
from mach_ext.attack.perturbation import Perturbation
from mach_ext.attack.threats import Delete, Dense, Insert, ThreatModel, threat_model
from mach_ext.data import check_columns
from mach_ext.nn import MACH, evaluating

_FIRST_LAYER = 1 << 24  # numbers of the first layer that are in memory at a time: 64 MiB of float32


class Attack:
    """The common part of all attacks."""

    name = ""
    usual_threat = "support"

    def __init__(
        self,
        model: MACH,
        threat_model: str | ThreatModel | None = None,  # None means `usual_threat`
        goal: str = "untargeted",
        k: int | None = None,
        *,
        keep_best: bool = True,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        """Checks the arguments, which the subclasses describe."""
        op = type(self).__name__
        if not isinstance(model, MACH):
            raise TypeError(f"{op}: model must be a mach_ext.MACH, got {type(model).__name__}")
        if goal not in GOALS:
            raise ValueError(f"{op}: goal must be one of {', '.join(GOALS)}, got {goal!r}")
        self.model, self.goal = model, goal
        self.threat_model = self._threat_of(threat_model)
        self.k = goal_k(op, model, goal, k)
        self.keep_best, self.seed = keep_best, seed
        self._layer = Layer(op, model)
        C, M = self._layer.shape
        self.batch_size = batch_size or max(1, min(1024, _FIRST_LAYER // (C * M)))
        self._check_threat(op)

    def _threat_of(self, threat: str | ThreatModel | None) -> ThreatModel:
        """Returns the threat model, or the usual one for None."""
        return threat_model(self.usual_threat if threat is None else threat)

    def _check_threat(self, op: str) -> None:
        """Refuses threat models that the attack cannot handle."""
        if isinstance(self.threat_model, Delete):
            raise ValueError(f"{op}: threat model delete removes words, so it needs Greedy (--attack delete)")

    def perturb(
        self, X: Any, Y: Any = None, epsilon: float | Sequence[float] = 0.01, *,
        targets: Any = None, progress: Any = None,
    ) -> Any:  # fmt: skip
        """Returns adversarial documents of X.

        Args:
            X: Documents [N, D], a SciPy, NumPy or torch matrix.
            Y: True labels [N, L], a SciPy, NumPy or torch matrix. The goal "own" does not need them.
            epsilon: The size of the change, or several sizes. The perturbations of several sizes share work.
            targets: The false label that is to enter the top k, for each document [N]. -1: none. Only the
                goal "negative" takes targets. None: the best-ranked false label outside the top k.
            progress: A function that is called with the number of finished documents.

        Returns:
            A `Perturbation`, or a list of them if `epsilon` has several sizes.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: Labels are missing or have another shape, epsilon is negative, or the threat model
                does not fit the features.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> Y = sparse.eye(6, format="csr")  # document i has label i
            >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
            >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
            >>> mach_ext.fit_svm(model, X, Y, progress=False)
            >>> small, large = mach_ext.attack.FGSM(model).perturb(X, Y, epsilon=[0.1, 0.5])
            >>> small.predict(1)[1].ravel().tolist(), large.predict(1)[1].ravel().tolist()
            ([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 5])
        """
        op = f"{type(self).__name__}.perturb"
        with memory_advice(op, "lower batch_size or pass fewer documents or epsilons"):
            several = not isinstance(epsilon, (int, float, np.number))
            grid = [float(e) for e in epsilon] if several else [float(epsilon)]  # type: ignore[union-attr,arg-type]
            result = self._perturb(op, X, Y, grid, targets, progress)
        return result if several else result[0]

    def _perturb(
        self, op: str, X: Any, Y: Any, grid: list[float], targets: Any, progress: Any
    ) -> list[Perturbation]:
        """Perturbs all documents batch by batch, at each size of the grid."""
        given, X = X, check_columns(X, f"{op}: X", self.model.num_features)
        if not (scipy.sparse.issparse(given) and given.ndim == 2):
            given = X
        if not (X.data != 0).all():
            X = X.copy()
            X.eliminate_zeros()
        for e in grid:
            self.threat_model.check(op, X, e)
        Y = check_true_labels(op, self.model, self.goal, X, Y)
        if targets is not None and (self.goal != "negative" or np.shape(targets) != (X.shape[0],)):
            raise ValueError(f'{op}: targets [N] are for goal "negative", a label for each document')
        self._check_memory(op, X, sum(e > 0 for e in grid))
        batches: list[list[Batch]] = [[] for _ in grid]
        with evaluating(self.model):
            for start in range(0, X.shape[0], self.batch_size):
                rows = slice(start, min(X.shape[0], start + self.batch_size))
                x, indices, indptr = self._tensors(X[rows])
                chosen = None if targets is None else np.asarray(targets)[rows]
                goal = self._targets(op, X[rows], None if Y is None else Y[rows], chosen)
                perturbed = self._batch(start, x, indices, indptr, goal, grid)
                for batch, kept in zip(perturbed, batches, strict=True):
                    batch.targets = goal.targets
                    kept.append(batch)
                if progress is not None:
                    progress(rows.stop - rows.start)
        return [
            Perturbation(self.model, self.threat_model, X, e, b, given)
            for e, b in zip(grid, batches, strict=True)
        ]

    def _check_memory(self, op: str, X: Any, sizes: int) -> None:
        """Checks the memory of the result: documents of each size, or a gradient that moves all features."""
        threat, N, kept = self.threat_model, X.shape[0], 4 * X.nnz * sizes
        if isinstance(threat, Dense):
            kept = 4 * N * math.prod(self._layer.shape)
        elif isinstance(threat, Insert):
            kept += 4 * N * threat.m * sizes
        # With Delete the sizes may share documents, so the memory is not known.
        if self._layer.device.type == "cpu" and not isinstance(threat, Delete):
            advice = "pass fewer documents or sizes of epsilon at a time"
            check_memory(f"{op}: perturbed documents", kept, advice, N=N, sizes=sizes)

    def _tensors(self, X: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Returns values, indices and indptr of documents as tensors on the model's device."""
        device = self._layer.device
        x = torch.from_numpy(X.data).to(device, self._layer.dtype)
        return x, torch.from_numpy(X.indices).to(device).long(), torch.from_numpy(X.indptr).to(device).long()

    def _targets(self, op: str, X: Any, Y: Any, chosen: Any) -> Targets:
        """Returns the labels that the loss of a batch is about."""
        model, device, N, k = self.model, self._layer.device, X.shape[0], self.k
        if self.goal == "untargeted":
            labels = torch.from_numpy(Y.indices).long(), torch.from_numpy(Y.indptr).long()
            return Targets((labels[0].to(device), labels[1].to(device)))
        ranked = model.predict(X, k if self.goal == "own" else min(model.num_labels, max(NEAREST, k + 1)))[1]
        if self.goal == "own":
            indptr = torch.arange(N + 1, device=device) * k
            return Targets((torch.from_numpy(ranked).flatten().to(device), indptr))
        true = is_true(Y, ranked)
        if self.goal == "positive":
            eligible = true[:, :k]
            rival = ranked[:, k]
        else:
            eligible = ~true
            eligible[:, :k] = False
            rival = ranked[:, k - 1]
        target = first_label(ranked, eligible)
        if chosen is not None:
            target = np.asarray(chosen, np.int64)
            if N and not (target.min() >= -1 and target.max() < model.num_labels):
                raise ValueError(f"{op}: targets must be labels in [0, L={model.num_labels}), or -1 for none")
            if (is_true(Y, target[:, None])[:, 0] & (target >= 0)).any():
                raise ValueError(f"{op}: targets must be labels that are false for their documents")
        active = target >= 0
        safe = np.where(active, target, 0)
        pair = (rival, safe) if self.goal == "positive" else (safe, rival)
        return Targets(
            (torch.empty(0), torch.empty(0)),
            torch.from_numpy(np.stack(pair, 1)).to(device),
            torch.from_numpy(active).to(device, self._layer.dtype),
            torch.from_numpy(target).to(device),
        )

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: Targets, grid: list[float]
    ) -> list[Batch]:
        """Perturbs a batch of documents at each size of the grid."""
        raise NotImplementedError

    def _gradient(self, first: Tensor, goal: Targets) -> tuple[Tensor, Tensor]:
        """Returns the loss of each document and its gradient to the first layer."""
        loss, gradient = self._layer.losses(first, goal, True)
        assert gradient is not None
        return loss, gradient

    def _loss(self, first: Tensor, goal: Targets) -> Tensor:
        """Returns the loss of each document."""
        return self._layer.losses(first, goal, False)[0]

    def _is_better(self, loss: Tensor, best: Tensor) -> Tensor:
        """Returns which documents have a larger loss than before. Without `keep_best` all documents count."""
        return loss > best if self.keep_best else torch.ones_like(loss, dtype=torch.bool)

"""What all attacks share: checks of their input, batches of documents, and goals."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext import functional as F
from mach_ext._memory import memory_advice
from mach_ext._user_encoder import Encoder
from mach_ext.attack._batch import Batch
from mach_ext.attack._hybrid_inputs import HybridInputLayer
from mach_ext.attack._inputs import InputLayer
from mach_ext.attack._layer import Layer
from mach_ext.attack._models import attacked_model, threat_of
from mach_ext.attack._part import Part, changed_part
from mach_ext.attack.goals import GOALS, NEAREST, Targets, check_true_labels, first_label, goal_k, is_true
from mach_ext.attack.input_perturbation import InputPerturbation
from mach_ext.attack.perturbation import Perturbation
from mach_ext.attack.threats import Delete, Embedding, Insert, ThreatModel
from mach_ext.head import MACHHead
from mach_ext.nn import MACH

_Self = TypeVar("_Self", bound="Attack")


class Attack:
    """The common part of all attacks."""

    name = ""
    usual_threat = "support"
    is_of_words = False

    def __init__(
        self,
        model: MACH | MACHHead,
        threat_model: str | ThreatModel | None = None,  # None means `usual_threat`
        goal: str = "untargeted",
        k: int | None = None,
        *,
        keep_best: bool = True,
        seed: int = 0,
        batch_size: int | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        """Checks the arguments, which the subclasses describe."""
        op = type(self).__name__
        self.model, self.encoder = attacked_model(op, model, encoder), encoder
        if goal not in GOALS:
            raise ValueError(f"{op}: goal must be one of {', '.join(GOALS)}, got {goal!r}")
        self.goal = goal
        threat = self.usual_threat if threat_model is None else threat_model
        self.threat_model = threat_of(model if encoder is None else None, threat)
        self.k = goal_k(op, self.model, goal, k)
        self.keep_best, self.seed = keep_best, seed
        if batch_size is not None and F.as_int(op, "batch_size", batch_size) < 1:
            raise ValueError(f"{op}: batch_size must be at least 1, got {batch_size}")
        self._part = changed_part(op, self.model, self.threat_model) if encoder is None else Part()
        self._layer = _layer(op, self.model, encoder)
        # The usual number of an encoder's inputs depends on their shape.
        usual = self._layer.batch_size if encoder is None else None
        self.batch_size = usual if batch_size is None else batch_size
        if encoder is not None and (self.is_of_words or isinstance(self.threat_model, (Delete, Insert))):
            raise ValueError(
                f"{op}: threat model must be dense, support, l2 or l1 with encoder=, because its inputs have "
                f"no words to delete or insert, got {self.threat_model}"
            )
        if encoder is not None and isinstance(self.threat_model, Embedding):
            raise ValueError(
                f"{op}: threat model must be dense, support, l2 or l1 with encoder=, because all its inputs "
                f"are embeddings, got {self.threat_model}"
            )
        self._check_threat(op)

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
            X: Documents [N, D], a SciPy, NumPy or torch matrix. For a model with dense features, a
                `mach_ext.data.HybridMatrix`. With `encoder`, its inputs [N, ...] as a tensor of float32 or
                float64, or a NumPy array, which gets the head's dtype. With `encoder` and a model with dense
                features, a `HybridInputs`.
            Y: True labels [N, L], a SciPy, NumPy or torch matrix. The goal "own" does not need them.
            epsilon: The size of the change, or several sizes. The perturbations of several sizes share work.
            targets: The false label that is to enter the top k, for each document [N]. -1: none. Only the
                goal "negative" takes targets. None: the best-ranked false label outside the top k.
            progress: A function that is called with the number of finished documents.

        Returns:
            A `Perturbation`, or an `InputPerturbation` with `encoder`. A list of them if `epsilon` has
            several sizes.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: Labels are missing or have another shape, epsilon is negative, or the threat model
                does not fit the features. The encoder returns another shape, or is not differentiable.

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

    def _perturb(self, op: str, X: Any, Y: Any, grid: list[float], targets: Any, progress: Any) -> list[Any]:
        """Perturbs all documents batch by batch, at each size of the grid."""
        given, X = self._layer.documents(op, X)
        self._layer.check_threat(op, self._part.columns(X), self.threat_model, grid)
        Y = check_true_labels(op, self.model, self.goal, X, Y)
        if targets is not None and (self.goal != "negative" or np.shape(targets) != (X.shape[0],)):
            raise ValueError(f'{op}: targets [N] are for goal "negative", a label for each document')
        self._layer.check_memory(op, X, self.threat_model, grid)
        attack, radii = self._bound(X), [self._part.radius(epsilon) for epsilon in grid]
        batches: list[list[Batch]] = [[] for _ in grid]
        with attack._layer.evaluating():
            inputs, whole = [attack._copied(X) for _ in grid], attack._layer
            for start in range(0, X.shape[0], attack._documents_at_a_time):
                rows = slice(start, min(X.shape[0], start + attack._documents_at_a_time))
                attack._layer = whole.of_rows(rows)
                x, indices, indptr = attack._tensors(X[rows])
                chosen = None if targets is None else np.asarray(targets)[rows]
                goal = attack._targets(op, X[rows], None if Y is None else Y[rows], chosen)
                perturbed = attack._batch(start, x, indices, indptr, goal, radii)
                if start == 0:  # Shapes and gradients were checked before, with messages that say more.
                    attack._layer.check_encoder(X)
                for batch, kept, written in zip(perturbed, batches, inputs, strict=True):
                    batch.targets = goal.targets
                    kept.append(attack._kept(batch, written))
                if progress is not None:
                    progress(rows.stop - rows.start)
            attack._layer = whole
        return [
            attack._result(given, X, epsilon, kept, written)
            for epsilon, kept, written in zip(grid, batches, inputs, strict=True)
        ]

    def _bound(self: _Self, X: Any) -> _Self:
        """Returns the attack for documents like X. The shape of an encoder's inputs is not known before."""
        attack = copy.copy(self)
        attack._layer = self._layer.for_documents(X, self.batch_size)
        return attack

    @property
    def _documents_at_a_time(self) -> int:
        """The size of a batch, as soon as the attack is bound to documents."""
        return self._layer.batch_size if self.batch_size is None else self.batch_size

    def _copied(self, X: Any) -> Tensor | None:
        """Returns a copy of inputs to write to. The perturbation of a model keeps batches."""
        if not isinstance(self._layer, InputLayer):
            return None
        return self._layer.inputs(X).clone(memory_format=torch.contiguous_format)

    def _kept(self, batch: Batch, inputs: Tensor | None) -> Batch:
        """Returns what the result keeps of a batch, when the batch has been written to the inputs."""
        if inputs is None:
            return batch
        assert isinstance(self._layer, InputLayer)
        return self._layer.write(batch, inputs)

    def _result(
        self, given: Any, X: Any, epsilon: float, batches: list[Batch], inputs: Tensor | None
    ) -> Perturbation | InputPerturbation:
        """Returns the perturbation of a size."""
        if inputs is None:
            return Perturbation(self.model, self.threat_model, X, epsilon, batches, given)
        assert isinstance(self._layer, InputLayer)
        clean = self._layer.inputs(X)
        return InputPerturbation(self._layer, self.threat_model, clean, epsilon, batches, inputs)

    def _ranked(self, X: Any, k: int) -> NDArray[np.int64]:  # [N, k]
        """Returns the top k of clean documents."""
        return self._layer.ranked(X, k)

    def _tensors(self, X: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Returns values, indices and indptr of documents as tensors on the model's device."""
        return self._layer.tensors(X, self.threat_model)

    def _targets(self, op: str, X: Any, Y: Any, chosen: Any) -> Targets:
        """Returns the labels that the loss of a batch is about."""
        model, device, N, k = self.model, self._layer.device, X.shape[0], self.k
        if self.goal == "untargeted":
            labels = torch.from_numpy(Y.indices).long(), torch.from_numpy(Y.indptr).long()
            return Targets((labels[0].to(device), labels[1].to(device)))
        ranked = self._ranked(X, k if self.goal == "own" else min(model.num_labels, max(NEAREST, k + 1)))
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


def _layer(op: str, model: Any, encoder: Encoder | None) -> Layer:
    """Returns what the attack changes the input of."""
    if encoder is None:
        return Layer(op, model)
    return (HybridInputLayer if isinstance(model, MACH) else InputLayer)(op, model, encoder)

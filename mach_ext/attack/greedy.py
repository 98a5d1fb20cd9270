"""Greedy attacks on words delete or insert a word at a time."""

from __future__ import annotations

import math

from torch import Tensor

from mach_ext.attack._batch import Batch
from mach_ext.attack._rows import first_of_rows, rank_in_rows
from mach_ext.attack._threat_checks import round_down
from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.goals import Targets
from mach_ext.attack.threats import Delete, Insert


class Greedy(FGSM):
    """Deletes or inserts words, each time the word of the largest first-order effect.

    The gradient is computed again after each word. With `Delete()` at most epsilon words are removed. With
    `Insert(m)` m words of weight epsilon are added, and the document's own words are left unchanged. The best
    document on the way is kept.

    The arguments are those of `FGSM`. The default threat model is "delete". The words of a head are its
    hidden units, so deletion sets them to 0. An `encoder` is refused, because its inputs have no words.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> perturbed = mach_ext.attack.Greedy(model).perturb(X, Y, epsilon=1)
        >>> perturbed.changes(0)  # feature, old value, new value
        [(0, 1.0, 0.0)]
        >>> perturbed.predict(1)[1].ravel().tolist()
        [1, 2, 3, 4, 5, 5]
    """

    name = "greedy"
    usual_threat = "delete"
    is_of_words = True

    def _check_threat(self, op: str) -> None:
        """Refuses all threat models but `Delete` and `Insert`."""
        if not isinstance(self.threat_model, (Delete, Insert)):
            raise ValueError(f"{op}: threat model must be delete or insert(m), got {self.threat_model}")

    def _batch(
        self, start: int, x: Tensor, indices: Tensor, indptr: Tensor, goal: Targets, grid: list[float]
    ) -> list[Batch]:
        """Perturbs a batch of documents at each number of words."""
        clean_loss = self._loss(self._layer.first(x, indices, indptr), goal)
        if isinstance(self.threat_model, Insert):
            clean = Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
            return [self._insert(clean, goal, epsilon, self.threat_model.m) for epsilon in grid]
        clean = best = Batch(start, x, x, indices, indptr, clean_loss, clean_loss)
        fixed = ~self._part.contains(indices)
        values, asked, by_count = x, {int(epsilon) for epsilon in grid}, {0: clean}
        for count in range(1, max(asked, default=0) + 1):
            first = self._layer.first(values, indices, indptr)
            _, gradient = self._gradient(first, goal)
            effect = -self._layer.to_values(gradient, indices, indptr) * values
            effect[(values == 0) | fixed] = -math.inf
            chosen = first_of_rows(rank_in_rows(effect, clean.rows), clean.rows, len(indptr) - 1)
            chosen = chosen[effect[chosen] > 0]
            if not len(chosen):  # no further word helps in any document
                break
            values = values.clone()
            values[chosen] = 0
            best = self._choose(clean, best, values, goal)
            if count in asked:
                by_count[count] = best
        # Larger counts share the last best documents, because more words do not change them.
        return [by_count.get(int(epsilon), best) for epsilon in grid]

    def _insert(self, clean: Batch, goal: Targets, epsilon: float, m: int) -> Batch:
        """Inserts m words of weight epsilon into each document, a word at a time."""
        best, now = clean, clean
        size = round_down(epsilon, clean.x.dtype)
        for _ in range(m if epsilon else 0):
            first = self._layer.first(now.values, now.indices, now.indptr)
            _, gradient = self._gradient(first, goal)
            direction = self._direction(clean.start, gradient)
            wide = [
                self._with_new(v, now.indices, now.indptr, direction, 1)[0]
                for v in (now.x, now.values, best.values)
            ]
            _, indices, indptr = self._with_new(now.x, now.indices, now.indptr, direction, 1)
            new = indptr[1:] - 1
            slope = self._layer.to_values(gradient, indices, indptr)[new]
            values = wide[1].clone()
            values[new] = size * slope.sign().clamp(min=0 if self.threat_model.nonnegative else -1)
            last = Batch(clean.start, wide[0], wide[0], indices, indptr, clean.loss, clean.loss)
            best = Batch(clean.start, wide[0], wide[2], indices, indptr, best.loss, clean.loss)
            best = self._choose(last, best, values, goal)
            now = Batch(clean.start, wide[0], values, indices, indptr, clean.loss, clean.loss)
        return best

"""The path from a baseline to an input of any shape, through an encoder of the user's and a head."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext import functional as F
from mach_ext.explain._arguments import Names
from mach_ext.explain._decoding import best_of_hidden, scores_of_hidden
from mach_ext.explain._encoder import CheckedEncoder, batch_size, input_tensor, one_input
from mach_ext.explain._encoder_paths import document_path
from mach_ext.explain._path import (
    PANEL,
    DocumentPath,
    Nodes,
    Path,
    Rule,
    block_size,
    bucket_columns,
    is_mean_logit,
    merge_gradient,
)
from mach_ext.head import MACHHead
from mach_ext.merges import MODEL_MERGES


class InputPath(Path):
    """The path through any differentiable encoder, at all n positions of the flattened input.

    The encoder runs in its own precision, once for each batch of nodes and block of labels. Then each label
    takes a backward pass of its own. Sums over the nodes are in float64.
    """

    model: MACHHead
    has_closed_form = False
    shape: tuple[int, ...]
    cuts: tuple[float, ...] = ()  # where the path is cut before anything is known of it

    def __init__(self, op: str, head: Any, encoder: Any, X: Any, baseline: Any, feature_names: Names) -> None:
        """Checks the input, the baseline and the encoder.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: There is more than one input, or the baseline has another shape.
        """
        self.encoder = CheckedEncoder(op, head, encoder)
        self.op, self.model, self.device = op, head, self.encoder.device
        x = one_input(op, head, X)
        b = torch.zeros_like(x)
        if baseline is not None:
            b = input_tensor(op, head, baseline, "baseline").to(x.dtype)
        self.shape = tuple(x.shape[1:])
        if tuple(b.shape) not in (self.shape, (1, *self.shape)):
            shape = [1, *self.shape]
            raise ValueError(f"{op}: baseline must have the shape {shape} of X, got {list(b.shape)}")
        self.dtype = x.dtype
        self.feature_names, self.is_summed = position_names(op, self.shape, feature_names)
        self.features = np.arange(len(self.feature_names))
        self.hidden = self.encoder.hidden(torch.cat((x, b.reshape(x.shape))))  # [2, H] or [2, R, H]
        self.x, self.b = x.flatten().double(), b.flatten().double()
        self.values, self.baselines = (self._sizes(each) for each in (self.x, self.b))
        # Results [m, n] are held anyway. A block of labels holds a few of them.
        self.numbers_a_label = max(head.num_repetitions * head.in_features, len(self.x) // 16)

    def top_labels(self) -> NDArray[np.int64]:
        """Returns the usual number of best labels of the input."""
        labels: NDArray[np.int64] = best_of_hidden(self.op, self.model, self.hidden[:1])[0]
        return labels

    def own_scores(self, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the input's scores by the head's own merge."""
        scores: NDArray[np.float64] = scores_of_hidden(self.model, self.hidden[:1], labels)[0]
        return scores

    def columns(self, buckets: Tensor) -> Tensor:  # [R, H, m]
        """Returns the bucket weights on the hidden units."""
        return bucket_columns(self.model, buckets)

    def logits(self, columns: Tensor, bias: Tensor) -> Tensor:
        """Returns the logits of the input and the baseline."""
        return F.bucket_logits(self.hidden, columns, bias)

    def total(self, columns: Tensor, pulled: Tensor) -> Tensor:
        """Returns the sum of all attributions of each label."""
        return pulled @ (self.x - self.b)

    def project(self, columns: Tensor, pulled: Tensor) -> Tensor:
        """Returns the attribution of each position, or their sums over the last dimension."""
        rows = pulled * (self.x - self.b)
        return rows.unflatten(1, (-1, self.shape[-1])).sum(2) if self.is_summed else rows

    def integrate(
        self, columns: Tensor, bias: Tensor, rule: Rule, scores: Tensor
    ) -> tuple[Tensor, int, bool]:
        """Halves pieces of the path until the tolerance is met twice in a row, or until no piece is too long.

        The attributions of a piece sum to the change of the score over the piece, so its error is known. Only
        pieces whose errors count are halved. Layer normalization bends a score within a thousandth of the
        path from an input of zeros. Equal pieces would have to be as short everywhere.
        """
        change = (scores[:, 0] - scores[:, 1]).double()
        bound = rule.tolerance * scores.abs().sum(1).double()
        share = bound * PANEL / (2 * rule.max_steps)  # All pieces together stay within half of the bound.
        score_at = {0.0: scores[:, 1].double(), 1.0: scores[:, 0].double()}
        panel = self.nodes(PANEL, PANEL)
        done = self.x.new_zeros(len(bound), len(self.x))
        cuts = self.cuts if PANEL * (len(self.cuts) + 1) <= rule.max_steps else ()
        if cuts:
            score_at.update(zip(cuts, self._scores_at([*cuts], columns, bias, rule.score), strict=True))
        pieces, done_pieces, met_before = [*itertools.pairwise((0.0, *cuts, 1.0))], 0, False
        while True:
            rough, long_pieces = torch.zeros_like(done), []
            for start, end in pieces:
                nodes = (start + (end - start) * panel[0], (end - start) * panel[1])
                pulled = self.pull(columns, bias, rule.score, nodes)
                error = self.total(columns, pulled) - (score_at[end] - score_at[start])
                if bool((error.abs() <= share).all()):
                    done += pulled
                    done_pieces += 1
                else:
                    rough += pulled
                    long_pieces.append((start, end))
            total = self.total(columns, done) + self.total(columns, rough)
            met = bool(((total - change).abs() <= bound).all())
            after = PANEL * (done_pieces + 2 * len(long_pieces))
            if not long_pieces or (met and met_before) or after > rule.max_steps:
                return done.add_(rough), PANEL * (done_pieces + len(long_pieces)), met
            met_before = met
            middles = [(start + end) / 2 for start, end in long_pieces]
            score_at.update(zip(middles, self._scores_at(middles, columns, bias, rule.score), strict=True))
            halves = zip(long_pieces, middles, strict=True)
            pieces = [half for (start, end), at in halves for half in ((start, at), (at, end))]

    def pull(self, columns: Tensor, bias: Tensor, score: str, nodes: Nodes | None) -> Tensor:  # [m, n]
        """Returns the derivative of the score to each position, averaged along the path."""
        assert nodes is not None
        m, step = columns.shape[2], self.x - self.b
        copies = self.model.num_repetitions if self.model.per_repetition else 1
        numbers = m * max(copies * self.model.in_features, self.model.num_repetitions)
        size = min(batch_size(len(self.x)), block_size(numbers))
        with self.encoder.evaluating(), torch.enable_grad():
            pulled = self.x.new_zeros(m, len(self.x))
            for at, weights in zip(nodes[0].split(size), nodes[1].split(size), strict=True):
                points = (self.b + at[:, None] * step).to(self.dtype).requires_grad_()
                hidden = self.encoder(points.view(-1, *self.shape))
                if not hidden.requires_grad:
                    self._check_constant()
                    break
                back = self._gradient(hidden.detach(), columns, bias, score).to(hidden.dtype)
                for label in range(m):
                    (gradient,) = torch.autograd.grad(
                        hidden, points, back[label], retain_graph=label + 1 < m, allow_unused=True
                    )
                    if gradient is None:
                        self._check_constant()
                        break
                    pulled[label] += weights @ gradient.double()
        return pulled

    def _scores_at(
        self, positions: list[float], columns: Tensor, bias: Tensor, score: str
    ) -> Tensor:  # [P, m]
        """Returns the scores of points of the path."""
        merge = MODEL_MERGES["mean_logit" if score == "logit" else self.model.merge]
        scores = []
        with self.encoder.evaluating(), torch.no_grad():
            for at in self.x.new_tensor(positions).split(batch_size(len(self.x))):
                points = (self.b + at[:, None] * (self.x - self.b)).to(self.dtype)
                logits = F.bucket_logits(self.encoder(points.view(-1, *self.shape)), columns, bias)
                scores.append(merge.label_scores(logits.transpose(1, 2)))
        return torch.cat(scores).double()

    @torch.no_grad()
    def _gradient(self, hidden: Tensor, columns: Tensor, bias: Tensor, score: str) -> Tensor:
        """Returns the derivative of each label's score to the hidden units, [m, S, H] or [m, S, R, H]."""
        R, _, m = columns.shape
        if is_mean_logit(self.model, score):
            gradient = columns.new_full((len(hidden), m, R), 1 / R, dtype=torch.float64)
        else:
            logits = F.bucket_logits(hidden, columns, bias).double()
            gradient = merge_gradient(self.model, logits.transpose(1, 2))
        subscripts = "smr,rhm->msrh" if self.model.per_repetition else "smr,rhm->msh"
        return torch.einsum(subscripts, gradient, columns.double())

    def _check_constant(self) -> None:
        """Refuses an encoder that passes no gradient to its input, unless both ends have one score."""
        if not self.hidden[0].equal(self.hidden[1]):
            raise ValueError(
                f"{self.op}: encoder must be differentiable, got hidden units without a gradient to the "
                "input (does it detach them, or use torch.no_grad?)"
            )

    def _sizes(self, values: Tensor) -> NDArray[np.float32]:
        """Returns the values of positions, or their lengths over the last dimension."""
        if self.is_summed:
            values = values.unflatten(0, (-1, self.shape[-1])).norm(dim=1)
        sizes: NDArray[np.float32] = values.cpu().numpy().astype(np.float32)
        return sizes


def path_of(
    op: str, model: Any, X: Any, baseline: Any, encoder: Any, feature_names: Names
) -> DocumentPath | InputPath:
    """Returns the path from a baseline to a document, to hidden units, or to an input of an encoder."""
    if encoder is None:
        return document_path(op, model, X, baseline, feature_names)
    return InputPath(op, model, encoder, X, baseline, feature_names)


def position_names(op: str, shape: tuple[int, ...], names: Names) -> tuple[list[str], bool]:
    """Returns names of what gets attributions, and whether these are sums over the last dimension.

    Raises:
        ValueError: There are neither names of all positions nor of all entries of the leading dimensions.
    """
    if names is None:
        return [",".join(map(str, at)) for at in itertools.product(*map(range, shape))], False
    names = list(names)
    n, leading = math.prod(shape), math.prod(shape[:-1])
    if len(names) == n:
        return names, False
    if len(shape) > 1 and len(names) == leading:
        return names, True
    sums = f", or {leading} for sums over the last dimension" if len(shape) > 1 else ""
    raise ValueError(
        f"{op}: feature_names must be {n} names for the positions of {list(shape)}{sums}, got {len(names)}"
    )

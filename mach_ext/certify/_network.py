"""`Network` holds a model's weights for the bounds, and says how far the model's sums may be rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from mach_ext.nn import MACH, MODEL_MERGES, first_layer

HELD = 1 << 24  # float64 numbers of a table that are in memory at a time: 128 MiB
UNDERFLOW = 1e-30  # far above the sum of all underflows
_LARGEST = float(torch.finfo(torch.float32).max)


class Network:
    """A model with its small parameters in float64. Large parameters are converted when they are used."""

    def __init__(self, model: MACH) -> None:
        """Reads the model's parameters."""
        model.hash.check_contents()
        self.model, self.hash = model, model.hash
        self.buckets = model.hash.buckets.long()  # [R, L]
        self.device = self.buckets.device
        single = model.bucket_bias.dtype == torch.float32
        self.unit = (2.0**-24 if single else 2.0**-53) + 2.0**-49  # unit of rounding
        self.merge = MODEL_MERGES[model.merge]
        self.by_margin = model.merge == "mean_logit"
        self.first = first_layer(model)
        self.bucket_weight = model.bucket_weight.detach()
        self.bucket_bias = model.bucket_bias.detach().double()
        if not model.is_linear:
            self.encoder_bias = self.first.bias[0].double()
        self.two_layers = len(model.hidden_sizes) == 2
        if self.two_layers:
            self.hidden_weight = model.hidden_weight.detach().double()  # [C, H1, H2]
            self.hidden_bias = model.hidden_bias.detach().double()
        self.copies = model.num_repetitions if model.encoder == "independent" else 1
        self.limit = _LARGEST / (4 * model.num_repetitions)  # limit of a bucket's sum

    def gamma(self, n: int) -> float:
        """Returns the largest error of a sum of n products, relative to the sum of their absolute values."""
        return n * self.unit / (1 - n * self.unit)

    def block(self, r: int) -> slice:
        """Returns the units of the last hidden layer that repetition r uses."""
        H = self.model.hidden_sizes[-1]
        return slice(r * H, (r + 1) * H) if self.copies > 1 else slice(0, H)

    def difference(self, t: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the margins' weights on the last hidden layer [K, M] and their constants.

        Buckets that both labels share cancel.
        """
        R = self.model.num_repetitions
        parts, constant = [], torch.zeros(len(labels), dtype=torch.float64, device=self.device)
        for r in range(R):
            at, mine = self.buckets[r, labels], self.buckets[r, t]
            weight = self.bucket_weight[r]
            parts.append((weight[:, mine, None].double() - weight[:, at].double()).T / R)
            constant += (self.bucket_bias[r, mine] - self.bucket_bias[r, at]) / R
        u = torch.cat(parts, 1) if self.copies > 1 else torch.stack(parts).sum(0)
        return u, constant

    def without_twins(self, labels: Tensor, t: int) -> Tensor:
        """Removes labels that share all buckets with t and have a larger number.

        Labels that share all buckets always have the same score, and the lower number ranks first.
        """
        same = (self.buckets[:, labels] == self.buckets[:, t, None]).all(0)
        return labels[~(same & (labels > t))]

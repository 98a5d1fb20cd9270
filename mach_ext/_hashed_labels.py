"""What a model and its head share: sizes of their label hash, adjusted logits, parameters from files."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mach_ext._distributed import sharded_like
from mach_ext._memory import memory_errors
from mach_ext.hashing import LabelHash


class _OfLabelHash(nn.Module):
    """A module that knows the sizes of its label hash. Its subclasses are public."""

    hash: LabelHash

    @property
    def num_labels(self) -> int:
        """L, the number of labels.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=4).num_labels
            20
        """
        return self.hash.num_labels

    @property
    def num_buckets(self) -> int:
        """B, the number of buckets of each repetition.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=4).num_buckets
            6
        """
        return self.hash.num_buckets

    @property
    def num_repetitions(self) -> int:
        """R, the number of hash functions and of bucket classifiers.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=4).num_repetitions
            8
        """
        return self.hash.num_repetitions


class _HashedLabels(_OfLabelHash):
    """A module whose R * B buckets stand for L labels, and whose biases can be adjusted."""

    merge: str
    bucket_bias: nn.Parameter  # [R, B]
    logit_adjustment: Tensor  # [R, B], the part of `bucket_bias` that `adjust_logits` added

    @memory_errors("free memory first, or make a smaller model")
    def adjust_logits(self, label_counts: ArrayLike, tau: float) -> None:
        """Rank by score - tau * log(n + 1), where n is the number of training documents of a label.

        Training favours frequent labels beyond what the documents say. The effect is larger where the other
        labels have fewer documents. This method is post-hoc logit adjustment (Menon et al., Long-tail
        learning via logit adjustment, ICLR 2021, section 4.2) for hashed labels. The change of a label's
        score is spread over its R bucket biases by `LabelHash.spread`, with weights sqrt(n + 1). Nothing is
        therefore kept for each label.

        If R * B is well above L, each label gets its change to three digits, up to a constant for all labels.
        `fit` calls this method at its end. A former adjustment is taken away first, so tau = 0 removes it.

        Args:
            label_counts: [L], the number of training documents of each label, such as `Y.sum(0)` of 0/1
                labels.
            tau: Strength of the adjustment, within -100 and 100. Values of 0.1 to 0.5 helped in
                docs/results/accuracy.md.

        Raises:
            ValueError: `label_counts` is not [L], is negative or is not finite. `tau` is out of range. `tau`
                is not 0 and the model does not rank by mean_logit.

        Example:
            >>> import mach_ext, scipy.sparse
            >>> model = mach_ext.MACH(10, 3, num_repetitions=4, num_buckets=8, hidden_size=4)
            >>> X = scipy.sparse.csr_matrix((1, 10), dtype="float32")  # no words: all labels equal
            >>> model.adjust_logits([100, 10, 1], tau=0.5)
            >>> model.predict(X, k=3)[1]
            array([[2, 1, 0]])
        """
        self.set_logit_adjustment(self.logit_offsets(label_counts, tau))

    def logit_offsets(self, label_counts: ArrayLike, tau: float) -> Tensor:  # [R, B]
        """Return what `adjust_logits` would add to `bucket_bias`.

        Args:
            label_counts: As in `adjust_logits`.
            tau: As in `adjust_logits`.

        Returns:
            The offsets [R, B]. They are 0 for tau = 0.

        Raises:
            ValueError: As in `adjust_logits`.

        Example:
            >>> import mach_ext
            >>> model = mach_ext.MACH(10, 3, num_repetitions=4, num_buckets=8, hidden_size=4)
            >>> offsets = model.logit_offsets([100, 10, 1], tau=0.5)
            >>> rare, frequent = model.hash.buckets[0, 2], model.hash.buckets[0, 0]
            >>> (offsets[0, rare] > offsets[0, frequent]).item()
            True
        """
        op = f"{type(self).__name__}.adjust_logits"
        tau, counts = float(tau), np.asarray(label_counts, np.float64)
        if counts.ndim == 2 and 1 in counts.shape:  # Y.sum(0) of a SciPy matrix has two dimensions.
            counts = counts.ravel()
        if not abs(tau) <= 100:
            raise ValueError(f"{op}: tau must be within -100 and 100, got {tau}")
        if counts.shape != (self.num_labels,) or not (np.isfinite(counts) & (counts >= 0)).all():
            raise ValueError(
                f"{op}: label_counts must be [L={self.num_labels}], finite and not negative, "
                f"got shape {counts.shape}" + (f", smallest {counts.min()}" if counts.size else "")
            )
        if tau == 0:
            return torch.zeros_like(self.logit_adjustment)
        if self.merge != "mean_logit":
            raise ValueError(f"{op}: merge must be mean_logit, got {self.merge}")
        by_label = -tau * np.log1p(counts)
        by_label -= np.average(by_label, weights=counts + 1)  # With this constant, scores change least.
        return torch.from_numpy(self.hash.spread(by_label, np.sqrt(counts + 1))).to(self.logit_adjustment)

    @torch.no_grad()
    def set_logit_adjustment(self, offsets: Tensor | float) -> None:
        """Put offsets into `bucket_bias`, in place of a former adjustment.

        Args:
            offsets: [R, B], as `logit_offsets` returns them. 0 removes a former adjustment.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> model.set_logit_adjustment(torch.ones(8, 8))
            >>> model.set_logit_adjustment(3 * torch.ones(8, 8))
            >>> model.logit_adjustment[0, 0].item()
            3.0
        """
        bias = self.bucket_bias
        bias.sub_(sharded_like(self.logit_adjustment, bias))
        self.logit_adjustment.copy_(torch.as_tensor(offsets))
        bias.add_(sharded_like(self.logit_adjustment, bias))

    @memory_errors("free memory first, or make a smaller model")
    def load_parameters(self, tensors: dict[str, Tensor], assign: bool = False) -> None:
        """Load parameters that are known to belong to this label hash.

        Args:
            tensors: The parameters by name, as `named_parameters` names them.
            assign: Take the tensors themselves as parameters in place of copying them.

        Raises:
            RuntimeError: A parameter is missing, unknown or of another shape.

        Example:
            >>> import mach_ext
            >>> sizes = {"num_repetitions": 8, "num_buckets": 8, "hidden_size": 4}
            >>> first, second = (mach_ext.MACH(10, 20, **sizes) for _ in range(2))
            >>> _ = first.bucket_bias.data.fill_(-2.0)
            >>> second.load_parameters(dict(first.named_parameters()))
            >>> second.bucket_bias[0, 0].item()
            -2.0
        """
        self.load_state_dict(tensors, assign=assign)

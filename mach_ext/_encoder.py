"""The encoder of a model: a sparse layer that takes the documents, dropout, and perhaps a second layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mach_ext import functional as F
from mach_ext._dense_features import _DenseFeatures
from mach_ext._dropout import Dropout, drop
from mach_ext._memory import memory_errors


def initial_std(name: str, shape: tuple[int, ...]) -> float:
    """Return the standard deviation that the initial values of a weight are drawn with."""
    return 0.1 if name == "encoder_weight" else float(shape[-2]) ** -0.5


class _Encoder(_DenseFeatures):
    """The part of `mach_ext.MACH` from documents to hidden units. Linear MACH has dropout alone."""

    hidden_sizes: tuple[int, ...]  # () for linear MACH
    encoder: str
    feature_dropout: float
    hidden_dropout: float

    def _make_layers(self, copies: int) -> int:
        """Make the parameters of so many encoders, without values, and return the width of the last layer."""
        D, sizes = self.num_columns, self.hidden_sizes
        if sizes:
            self.encoder_weight = nn.Parameter(torch.empty(D, copies * sizes[0]))
            self.encoder_bias = nn.Parameter(torch.empty(copies * sizes[0]))
        if len(sizes) == 2:
            self.hidden_weight = nn.Parameter(torch.empty(copies, *sizes))
            self.hidden_bias = nn.Parameter(torch.empty(copies, sizes[1]))
        return sizes[-1] if sizes else D

    @torch.no_grad()
    def _draw_layers(self, generator: torch.Generator) -> None:
        """Draw the initial weights of the encoder, on the CPU."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("_bias"):
                parameter.zero_()
            else:
                std = initial_std(name, parameter.shape)
                drawn = parameter if parameter.is_cpu else torch.empty_like(parameter, device="cpu")
                parameter.copy_(drawn.normal_(0, std, generator=generator))

    @property
    def is_linear(self) -> bool:
        """Whether this is linear MACH, which has no hidden layer.

        Example:
            >>> import mach_ext
            >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=0).is_linear
            True
        """
        return not self.hidden_sizes

    @memory_errors("pass fewer documents at a time")
    def encode(
        self,
        values: Tensor,  # [nnz]
        indices: Tensor,  # [nnz]
        indptr: Tensor,  # [N + 1]
        *,
        dense: Tensor | None = None,  # [N, E]
        sparse_grad: bool = False,
        validate: bool = True,
        dropout: Dropout = None,
    ) -> Tensor:  # [N, H] or, with independent encoders, [N, R, H]
        """Return the hidden units of documents, which the bucket classifiers take.

        Linear MACH has no hidden units, so it has no use for this method.

        Args:
            values: Non-zeros of the documents, [nnz].
            indices: Feature of each non-zero, [nnz].
            indptr: Start of each document, [N + 1].
            dense: As in `forward`.
            sparse_grad: As in `forward`.
            validate: As in `forward`.
            dropout: As in `forward`.

        Returns:
            [N, H], or [N, R, H] with independent encoders.

        Raises:
            ValueError: The model is linear, or the documents are not valid.
            TypeError: The documents have a wrong dtype.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
            >>> X = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
            >>> model.encode(*X).shape
            torch.Size([1, 4])
        """
        if self.is_linear:
            raise ValueError("MACH.encode: linear MACH (hidden_size=0) has no hidden layer")
        values, indices, indptr = self.join_tensors(values, indices, indptr, dense, validate)
        hidden = F.sparse_linear(
            self.drop_features(values, dropout=dropout),
            indices,
            indptr,
            self.encoder_weight,
            self.encoder_bias,
            "relu",
            sparse_grad,
            validate=validate,
        )
        return self.encode_hidden(hidden, dropout=dropout)

    def encode_hidden(self, hidden: Tensor, *, dropout: Dropout = None) -> Tensor:
        """Apply what follows the sparse layer of `encode`: dropout and a second layer, if there is one.

        Args:
            hidden: Output of the sparse layer, [N, H] or [N, R * H].
            dropout: As in `forward`.

        Returns:
            [N, H], or [N, R, H] with independent encoders.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=(4, 3))
            >>> model.encode_hidden(torch.ones(1, 4)).shape
            torch.Size([1, 3])
        """
        if self.encoder == "independent":
            hidden = hidden.unflatten(1, (self.num_repetitions, self.hidden_sizes[0]))
        hidden = drop(hidden, self.hidden_dropout, dropout, self.training)
        if len(self.hidden_sizes) == 2:
            hidden = F.bucket_logits(hidden, self.hidden_weight, self.hidden_bias).relu()
            if self.encoder == "shared":
                hidden = hidden.squeeze(1)
            hidden = drop(hidden, self.hidden_dropout, dropout, self.training)
        return hidden

    def drop_features(self, values: Tensor, *, dropout: Dropout = None) -> Tensor:
        """Apply feature dropout to the values of documents.

        Args:
            values: Non-zeros of the documents, [nnz].
            dropout: As in `forward`.

        Returns:
            The values, [nnz]. Those that are dropped are 0, and the others are scaled up.

        Example:
            >>> import torch, mach_ext
            >>> model = mach_ext.MACH(10, 20, 8, 8, hidden_size=4, feature_dropout=0.5)
            >>> kept = model.drop_features(torch.ones(1000), dropout=torch.Generator().manual_seed(0))
            >>> kept.unique()
            tensor([0., 2.])
        """
        return drop(values, self.feature_dropout, dropout, self.training)

"""The weights of a model that take the documents."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class FirstLayer(NamedTuple):
    """The weights that take the documents, in C parts.

    An encoder is a single part, so C = 1. In linear MACH each repetition is a part, so C = R.

    Attributes:
        weight: [C, D, M], the weights.
        bias: [C, M], the biases.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=0)
        >>> weight, bias = mach_ext.nn.first_layer(model)
        >>> weight.shape, bias.shape
        (torch.Size([8, 10, 6]), torch.Size([8, 6]))
    """

    weight: Tensor  # [C, D, M]
    bias: Tensor  # [C, M]


def first_layer(model: Any) -> FirstLayer:
    """Return detached views of the first layer, which give pre-activations [N, C, M] of documents.

    An encoder is one part. It is M = H1 columns wide, or R * H1 if the encoders are independent. Unit h of
    repetition r is then column r * H1 + h. In linear MACH each repetition is a part, M = B columns wide.

    Args:
        model: The model.

    Returns:
        The weight [C, D, M] and the bias [C, M].

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=6, hidden_size=4)
        >>> mach_ext.nn.first_layer(model).weight.shape
        torch.Size([1, 10, 4])
    """
    if model.is_linear:
        return FirstLayer(model.bucket_weight.detach(), model.bucket_bias.detach())
    return FirstLayer(model.encoder_weight.detach()[None], model.encoder_bias.detach()[None])

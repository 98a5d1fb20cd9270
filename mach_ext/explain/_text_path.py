"""The path from a reference text to a text, through a text encoder and a model with dense features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mach_ext._memory import check_memory
from mach_ext._model_checks import values_dtype
from mach_ext.explain._input_path import InputPath
from mach_ext.head import MACHHead
from mach_ext.nn import MACH, check_parameters, first_layer

if TYPE_CHECKING:
    from mach_ext.text_encoder import TextEncoder

BASELINES = ("pad", "zero")
USUAL_STEPS = 64  # Captum takes 50. With all-MiniLM-L6-v2 delta was then 0.3 % of the score.


class TokenizedText(NamedTuple):
    """A text as the encoder reads it, in T tokens.

    Attributes:
        ids: Numbers of the tokens [T].
        reference: Numbers of the tokens of the reference text [T].
        spans: Start and end of each token in the text [T, 2]. Special tokens have (0, 0).
        words: The number of each token's word [T]. Special tokens have -1.
        names: The letters of each token [T].
        truncated: Whether the encoder reads only the beginning of the text.
    """

    ids: Tensor
    reference: Tensor
    spans: NDArray[np.int64]
    words: NDArray[np.int64]
    names: list[str]
    truncated: bool


def tokenized(encoder: TextEncoder, text: str) -> TokenizedText:
    """Returns the tokens of a text, and those of a text of padding that has the same special tokens."""
    # The second text is empty, so its row is filled with padding.
    ids, mask, truncated, offsets, words = encoder.tokenize([text, ""], offsets=True)
    assert offsets is not None
    assert words is not None
    T = int(mask[0].sum())
    spans, numbers = offsets[0, :T].numpy(), words[0, :T].numpy()
    names = [text[start:end] for start, end in spans.tolist()]
    special = np.flatnonzero(numbers < 0)
    for t in special.tolist():
        names[t] = "[start]" if t < len(special) / 2 else "[end]"
    padding = ids[1, -1]  # It is a special token only if the text has no other ones.
    reference = torch.where(words[0, :T] < 0, ids[0, :T], padding)
    return TokenizedText(ids[0, :T], reference, spans, numbers, names, bool(truncated[0]))


class TextHidden:
    """From the features and the token vectors of texts [N, P + T * H] to what the model's head takes.

    A document has P of the model's D features. The rows of the first layer are restricted to these and to the
    E dense features, so that no vector of D numbers is made.
    """

    def __init__(self, model: MACH, encoder: TextEncoder, columns: Tensor, tokens: int) -> None:
        """Takes the rows of the first layer.

        Args:
            model: The model.
            encoder: The text encoder.
            columns: The P + E columns of the document.
            tokens: T, the number of tokens.
        """
        self.model, self.encoder = model, encoder
        self.mask = columns.new_ones(1, tokens)
        self.num_words = len(columns) - model.num_dense
        self.dtype = values_dtype(model)
        self.first: tuple[Tensor, Tensor] | None = None  # [P + E, C * H1] and [C * H1]
        if not model.is_linear:
            weight, bias = first_layer(model)
            self.first = weight[0].index_select(0, columns).to(self.dtype), bias[0].to(self.dtype)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Returns hidden units [N, H] or [N, R, H], or in linear MACH the joined features [N, P + E]."""
        N, model = len(inputs), self.model
        values, tokens = inputs[:, : self.num_words], inputs[:, self.num_words :]
        mask = self.mask.expand(N, -1)
        dense = self.encoder(None, mask, inputs_embeds=tokens.reshape(*mask.shape, -1)).to(self.dtype)
        scaled = (dense - model.dense_center.to(self.dtype)) * model.dense_scale.to(self.dtype)
        joined = torch.cat((values.to(self.dtype), scaled), 1)
        if self.first is None:
            return joined
        weight, bias = self.first
        return model.encode_hidden((joined @ weight + bias).relu(), dropout=False)


class TextPath(InputPath):
    """The path of the P features of a text, from 0, and at the same time of the vectors of its T tokens."""

    # Sentence encoders of 6 layers need 33 to 64 nodes for a relative delta of 1e-3.
    cuts = (0.5,)

    def __init__(
        self, op: str, model: MACH, encoder: TextEncoder, text: TokenizedText, row: Any, baseline: str
    ) -> None:
        """Computes both ends of the path.

        Args:
            op: How messages call the function.
            model: A model with dense features.
            encoder: The text encoder.
            text: The tokens of the text.
            row: The features of the text [1, D], CSR.
            baseline: "pad" or "zero".
        """
        check_parameters(op, model)
        device = model.bucket_bias.device
        dense = np.arange(model.num_features, model.num_columns)
        columns = torch.from_numpy(np.append(row.indices.astype(np.int64), dense)).to(device)
        is_special = torch.from_numpy(text.words < 0).to(device)
        with torch.no_grad():
            ends = encoder.token_embeddings(torch.stack((text.ids, text.reference)).to(device)).float()
        if baseline == "zero":
            ends[1, ~is_special] = 0
        values = torch.from_numpy(row.data).to(device, torch.float32)
        points = torch.cat((torch.stack((values, torch.zeros_like(values))), ends.flatten(1)), 1)
        hidden = TextHidden(model, encoder, columns, len(text.ids))
        head = restricted_head(op, model, columns) if model.is_linear else model.head
        self.num_words, self.num_tokens = len(values), len(text.ids)
        names = [""] * points.shape[1]  # They are not shown.
        super().__init__(op, head, hidden, points[:1], points[1:], names)
        T = self.num_tokens
        self.features = np.append(row.indices, model.num_features + np.arange(T)).astype(np.int64)
        self.values, self.baselines = (self._lengths(point) for point in points)

    def _lengths(self, point: Tensor) -> NDArray[np.float32]:
        """Returns the values of the features and the lengths of the token vectors [P + T]."""
        vectors = point[self.num_words :].unflatten(0, (self.num_tokens, -1))
        lengths: NDArray[np.float32] = torch.cat((point[: self.num_words], vectors.norm(dim=1))).cpu().numpy()
        return lengths

    def project(self, columns: Tensor, pulled: Tensor) -> Tensor:  # [m, P + T]
        """Returns the attribution of each feature and of each token."""
        rows = pulled * (self.x - self.b)
        of_tokens = rows[:, self.num_words :].unflatten(1, (self.num_tokens, -1)).sum(2)
        return torch.cat((rows[:, : self.num_words], of_tokens), 1)


def restricted_head(op: str, model: MACH, columns: Tensor) -> MACHHead:
    """Returns the head that linear MACH is on some of its columns."""
    R, _, B = model.bucket_weight.shape
    size = R * len(columns) * B * model.bucket_weight.element_size()
    check_memory(f"{op}: bucket weights of the text", size, "explain a shorter text", features=len(columns))
    head = MACHHead(
        len(columns), model.num_labels, R, B, model.merge, model.seed, model.hash, device="meta"
    )  # Its parameters are replaced at once.
    weight = model.bucket_weight.detach().index_select(1, columns)
    head.bucket_weight = nn.Parameter(weight, requires_grad=False)
    head.bucket_bias, head.logit_adjustment = model.head.bucket_bias, model.head.logit_adjustment
    return head

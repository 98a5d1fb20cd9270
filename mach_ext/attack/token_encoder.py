"""`TokenEncoder`: a text encoder from the vectors of its tokens on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mach_ext.text_encoder import TextEncoder


class TokenEncoder(nn.Module):
    """A text encoder from the vectors of its tokens on, as attacks take it for `encoder`.

    Token ids are integers and cannot change a little, but the vectors of tokens can. A padded place has a
    vector of zeros. So the threat model "support" leaves padding as it is, and the others may turn padding
    into tokens.

    Args:
        encoder: A text encoder.

    Example:
        >>> import mach_ext
        >>> from mach_ext.text_encoder import TextEncoder
        >>> tokens = mach_ext.attack.TokenEncoder(TextEncoder.load("encoder"))
        >>> vectors = tokens.vectors(["a cat", "dogs"])
        >>> vectors.shape, tokens(vectors).shape  # texts, tokens, entries of a vector; the embeddings
        (torch.Size([2, 4, 32]), torch.Size([2, 32]))
    """

    def __init__(self, encoder: TextEncoder) -> None:
        """Keeps the encoder."""
        super().__init__()
        self.encoder = encoder

    def vectors(self, texts: Iterable[str]) -> Tensor:
        """Returns the vectors of the tokens of texts [N, T, H], and zeros for padding.

        Args:
            texts: The N texts.

        Raises:
            TypeError: As `TextEncoder.tokenize`.

        Example:
            >>> import mach_ext
            >>> from mach_ext.text_encoder import TextEncoder
            >>> tokens = mach_ext.attack.TokenEncoder(TextEncoder.load("encoder"))
            >>> (tokens.vectors(["a cat", ""]) != 0).any(2)
            tensor([[ True,  True,  True,  True],
                    [ True,  True, False, False]])
        """
        device = next(self.encoder.parameters()).device
        tokens = self.encoder.tokenize(texts)
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        with torch.no_grad():
            return self.encoder.token_embeddings(ids) * mask[:, :, None]

    def forward(self, vectors: Tensor) -> Tensor:  # [N, E]
        """Returns the embeddings of texts, with gradients.

        Args:
            vectors: Vectors of tokens [N, T, H], and zeros for padding.

        Example:
            >>> import mach_ext
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder = TextEncoder.load("encoder")
            >>> tokens = mach_ext.attack.TokenEncoder(encoder)
            >>> embeddings = encoder.encode(["a cat"], progress=False)
            >>> change = tokens(tokens.vectors(["a cat"])).detach().numpy() - embeddings
            >>> bool(abs(change).max() < 1e-5)
            True
        """
        mask = (vectors.detach() != 0).any(2).long()
        return self.encoder(None, mask, inputs_embeds=vectors)  # type: ignore[no-any-return]

"""Sentence encoders: models of transformers that turn texts into embeddings.

A `TextEncoder` is a PyTorch module, so it can be trained. `TextEncoder.embed` keeps the embeddings of texts
in the data folder, and goes on there after an interruption. The package transformers is needed: `pip install
mach_ext[text]`.

Example:
    >>> from mach_ext.text_encoder import TextEncoder
    >>> encoder = TextEncoder.load("encoder")  # a folder, an installed package, or a name on the hub
    >>> embeddings = encoder.encode(["a cat", "a dog"], progress=False)
    >>> embeddings.shape == (2, encoder.num_dense)
    True
    >>> encoder.tokenize(["a cat"]).input_ids.shape
    torch.Size([1, 4])
"""

from mach_ext.text_encoder._tokens import Tokens
from mach_ext.text_encoder.encoder import TextEncoder

__all__ = ["TextEncoder", "Tokens"]

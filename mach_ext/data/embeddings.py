"""Embeddings of texts that are computed when they are used."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """What the readers of this package ask of a text encoder. `mach_ext.text_encoder.TextEncoder` has it.

    Example:
        >>> import numpy as np
        >>> class Lengths:  # not a useful encoder
        ...     num_dense = 1
        ...     def encode(self, texts):
        ...         return np.array([[len(text)] for text in texts], np.float32)
        ...     embed = encode
        >>> from mach_ext.data.embeddings import Encoder
        >>> encoder: Encoder = Lengths()
        >>> encoder.encode(["cat", "mouse"]).tolist()
        [[3.0], [5.0]]
    """

    @property
    def num_dense(self) -> int:
        """E, the size of an embedding."""

    def encode(self, texts: Sequence[str]) -> NDArray[Any]:
        """Returns the embeddings of a few texts [n, E]."""

    def embed(self, texts: Sequence[str]) -> NDArray[Any]:
        """Returns the embeddings of a corpus [N, E], perhaps from files that are kept."""


class TextEmbeddings:
    """The embeddings [N, E] of the texts of a split. They are computed when they are first used.

    It stands in `Split.dense`. A split that is never used costs nothing. `numpy.asarray` gives the numbers.

    Args:
        encoder: The text encoder.
        texts: The N texts.

    Example:
        >>> import numpy as np
        >>> from mach_ext.data import TextEmbeddings
        >>> class Lengths:  # not a useful encoder
        ...     num_dense = 1
        ...     def encode(self, texts):
        ...         print("working")
        ...         return np.array([[len(text)] for text in texts], np.float32)
        ...     embed = encode
        >>> dense = TextEmbeddings(Lengths(), ["cat", "mouse", "elk"])
        >>> dense.shape
        (3, 1)
        >>> dense.take(np.array([1])).array.tolist()  # all texts are embedded together
        working
        [[5.0]]
        >>> dense.array.tolist()
        [[3.0], [5.0], [3.0]]
    """

    ndim = 2

    def __init__(self, encoder: Encoder, texts: Sequence[str]) -> None:
        self.encoder, self.texts = encoder, texts
        self._whole: tuple[TextEmbeddings, NDArray[np.integer[Any]]] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """N and E.

        Example:
            >>> import types
            >>> from mach_ext.data import TextEmbeddings
            >>> TextEmbeddings(types.SimpleNamespace(num_dense=384), ["cat", "mouse"]).shape
            (2, 384)
        """
        return len(self.texts), int(self.encoder.num_dense)

    @functools.cached_property
    def array(self) -> NDArray[Any]:
        """The embeddings [N, E], perhaps memory-mapped. Rows that were taken are copied into memory.

        Example:
            >>> import types
            >>> import numpy as np
            >>> from mach_ext.data import TextEmbeddings
            >>> encoder = types.SimpleNamespace(num_dense=2, embed=lambda texts: np.ones((len(texts), 2)))
            >>> TextEmbeddings(encoder, ["cat"]).array.tolist()
            [[1.0, 1.0]]
        """
        if self._whole is None:
            return self.encoder.embed(self.texts)
        whole, rows = self._whole
        part: NDArray[Any] = whole.array[rows]
        return part

    def take(self, rows: NDArray[np.integer[Any]]) -> TextEmbeddings:
        """Returns the embeddings of the texts with these row numbers, which are not computed yet.

        They are computed together with those of all the other texts. So a corpus is embedded once, and not
        again for each part that is held out.

        Args:
            rows: Row numbers [n].

        Example:
            >>> import types
            >>> import numpy as np
            >>> from mach_ext.data import TextEmbeddings
            >>> encoder = types.SimpleNamespace(num_dense=2)
            >>> TextEmbeddings(encoder, ["cat", "mouse"]).take(np.array([1])).texts
            ['mouse']
        """
        part = TextEmbeddings(self.encoder, [self.texts[row] for row in rows])
        whole, numbers = self._whole or (self, np.arange(len(self)))
        part._whole = whole, numbers[rows]
        return part

    def __len__(self) -> int:
        """Returns N."""
        return len(self.texts)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Returns some rows of the array."""
        part: NDArray[Any] = self.array[rows]
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Returns the array. It is not copied, unless another dtype or a copy is asked for."""
        array = self.array
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

"""Texts and their tokens."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext._progress import tqdm
from mach_ext.data.parsing import quote

_SURROGATES = re.compile("[\ud800-\udfff]")
_TOGETHER = 4096  # texts that are tokenized at a time

Ints = NDArray[np.int64]


class Tokens(NamedTuple):
    """The tokens of n texts, padded to the longest of T tokens.

    Attributes:
        input_ids: The numbers of the tokens [n, T], int64.
        attention_mask: 1 for a token and 0 for padding [n, T], int64.
        truncated: Whether a text was longer than `max_length` and was cut [n], bool.
        offsets: Start and end of each token in its text [n, T, 2], int64. Special tokens and padding have (0,
            0). None: not asked for.
        words: Number of the word that each token is a piece of [n, T], int64. It is -1 for special tokens and
            padding. None: not asked for.

    Example:
        >>> from mach_ext.text_encoder import TextEncoder
        >>> text = "Unpurring cat"
        >>> tokens = TextEncoder.load("encoder").tokenize([text], offsets=True)
        >>> [text[start:end] for start, end in tokens.offsets[0].tolist()]
        ['', 'Un', 'purr', 'ing', 'cat', '']
        >>> tokens.words[0].tolist()
        [-1, 0, 0, 0, 1, -1]
    """

    input_ids: Tensor
    attention_mask: Tensor
    truncated: Tensor
    offsets: Tensor | None = None
    words: Tensor | None = None


class Tokenizer:
    """A tokenizer that cuts texts to a length. It is transformers' own, without Python around it.

    Args:
        backend: The tokenizer of the package tokenizers.
        max_length: The largest number of tokens, special tokens included.
        pad_id: The number of the token that fills rows.
    """

    def __init__(self, backend: Any, max_length: int, pad_id: int) -> None:
        self.backend, self.max_length, self.pad_id = backend, max_length, pad_id
        backend.no_padding()
        backend.enable_truncation(max_length)

    def encode(self, texts: Sequence[str], fast: bool = True) -> list[Any]:
        """Returns the encodings of texts. A lone surrogate counts as U+FFFD, because UTF-8 has none."""
        texts = [_SURROGATES.sub("\ufffd", text) for text in texts]
        encode = self.backend.encode_batch_fast if fast else self.backend.encode_batch
        encodings: list[Any] = encode(texts)
        return encodings


def check_texts(op: str, texts: Iterable[str]) -> list[str]:
    """Returns texts as a list.

    Raises:
        TypeError: `texts` is a single string or no list, or an entry is not a string.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise TypeError(f"{op}: texts must be a list of strings, got {type(texts).__name__}")
    rows = list(texts)
    for row, text in enumerate(rows):
        if not isinstance(text, str):
            raise TypeError(f"{op}: texts[{row}] must be a string, got {type(text).__name__} {quote(text)}")
    return rows


def padded_tokens(tokenizer: Tokenizer, texts: Sequence[str], offsets: bool) -> Tokens:
    """Returns the tokens of texts as tensors."""
    encodings = tokenizer.encode(texts, fast=not offsets)
    lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
    mask = padding_mask(lengths)
    truncated = torch.tensor([bool(encoding.overflowing) for encoding in encodings], dtype=torch.bool)
    ids = _filled(mask, (i for encoding in encodings for i in encoding.ids), tokenizer.pad_id)
    spans = words = None
    if offsets:
        spans = torch.zeros((*mask.shape, 2), dtype=torch.int64)
        pairs = [pair for encoding in encodings for pair in encoding.offsets]
        spans[torch.from_numpy(mask)] = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        numbers = (-1 if word is None else word for encoding in encodings for word in encoding.word_ids)
        words = _filled(mask, numbers, -1)
    return Tokens(ids, torch.from_numpy(mask.astype(np.int64)), truncated, spans, words)


def padding_mask(lengths: Ints) -> NDArray[np.bool_]:
    """Returns a mask [n, T] that is true for the first `lengths` [n] of each row."""
    return np.arange(lengths.max(initial=0)) < lengths[:, None]


def _filled(mask: NDArray[np.bool_], values: Iterable[int], rest: int) -> Tensor:
    """Returns [n, T], int64, with values where the mask is true."""
    array = np.full(mask.shape, rest, np.int64)
    array[mask] = np.fromiter(values, np.int64)
    return torch.from_numpy(array)


class Corpus:
    """The distinct texts of a corpus as tokens, longest first. Texts of one length keep their order.

    Attributes:
        rows: The place of each of the N texts among the U distinct ones [N].
        lengths: Their numbers of tokens [U], descending.
        truncated: How many of the N texts were cut.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], progress: bool) -> None:
        numbers: dict[str, int] = {}
        first = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.int64, len(texts))
        distinct = list(numbers)
        ids, lengths, cut = (
            [np.empty(0, np.int32)],
            np.empty(len(distinct), np.int64),
            np.empty(len(distinct), bool),
        )
        with progress_bar("tokenize", "text", len(distinct), 0, progress) as bar:
            for start in range(0, len(distinct), _TOGETHER):
                encodings = tokenizer.encode(distinct[start : start + _TOGETHER])
                at = slice(start, start + len(encodings))
                lengths[at] = [len(encoding.ids) for encoding in encodings]
                cut[at] = [bool(encoding.overflowing) for encoding in encodings]
                ids.append(np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), np.int32))
                bar.update(len(encodings))
        order = np.argsort(-lengths, kind="stable")
        place = np.empty(len(distinct), np.int64)
        place[order] = np.arange(len(distinct))
        self.rows: Ints = place[first]
        self.lengths: Ints = lengths[order]
        self.truncated = int(cut[first].sum())
        self._ids, self._starts = np.concatenate(ids), (np.cumsum(lengths) - lengths)[order]
        self._pad_id = tokenizer.pad_id

    def __len__(self) -> int:
        """Returns U, the number of distinct texts."""
        return len(self.lengths)

    def batches(self, most_tokens: int, most_texts: int | None = None) -> list[slice]:
        """Returns batches of distinct texts that cover all of them.

        Args:
            most_tokens: Tokens in a batch, padding included. A single text may have more.
            most_texts: Texts in a batch. None: any number.
        """
        start, batches = 0, []
        while start < len(self):
            texts = max(1, most_tokens // int(self.lengths[start]))  # the first is the longest
            stop = min(len(self), start + min(texts, most_texts or texts))
            batches.append(slice(start, stop))
            start = stop
        return batches

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Returns token numbers and attention mask of some distinct texts, both [n, T], int64."""
        lengths = self.lengths[start:stop]
        mask = padding_mask(lengths)
        shift = self._starts[start:stop] - (np.cumsum(lengths) - lengths)
        ids = np.full(mask.shape, self._pad_id, np.int64)
        ids[mask] = self._ids[np.repeat(shift, lengths) + np.arange(lengths.sum())]
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def progress_bar(what: str, unit: str, total: int, done: int, shown: bool) -> Any:
    """Returns a progress bar, which starts at what is done."""
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        unit_scale=True,
        disable=not shown,
        leave=False,
        dynamic_ncols=True,
    )

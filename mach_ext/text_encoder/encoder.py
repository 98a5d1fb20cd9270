"""`TextEncoder`: a model of transformers, its tokenizer, and how vectors of tokens become an embedding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mach_ext._memory import check_memory, memory_errors, memory_shortage
from mach_ext.data.files import PathLike
from mach_ext.data.home import data_home
from mach_ext.data.records import ANY, check_record
from mach_ext.text_encoder._cache import EmbeddingCache, corpus_key
from mach_ext.text_encoder._layout import POOLINGS, Layout, read_layout
from mach_ext.text_encoder._loading import encoder_digest, load_model, load_tokenizer, tokenizer_files
from mach_ext.text_encoder._locating import Place, locate
from mach_ext.text_encoder._saving import save_encoder
from mach_ext.text_encoder._tokens import (
    Corpus,
    Tokenizer,
    Tokens,
    check_texts,
    padded_tokens,
    progress_bar,
)

Vectors = NDArray[np.float32]

_PRECISIONS = ("float32", "bfloat16")
# Tokens that pass through the model at a time. On the CPU larger batches leave its caches: all-MiniLM-L6-v2
# takes texts of 165 tokens twice as fast 4 at a time as 32 at a time. Short texts lose nothing.
_BATCH_TOKENS = {"cpu": 1 << 10, "cuda": 1 << 15}
_RECORD = {
    "name": str,
    "revision": (str, type(None)),
    "digest": str,
    "max_length": range(1, 2**31),
    "pooling": {*POOLINGS},
    "normalize": bool,
    "num_dense": range(1, 2**31),
    "*": ANY,
}


class TextEncoder(nn.Module):
    """A sentence encoder. It turns a text into a dense vector, its embedding.

    A model of transformers gives each token a vector. Pooling makes one vector of them, and perhaps that is
    divided by its length. The encoder is a PyTorch module: its parameters can be trained, and gradients reach
    the embeddings of the tokens. `TextEncoder.load` makes one.

    Attributes:
        model: The model of transformers, without its pooler.
        name: The path of the folder, the name of the package, or the name on the hub.
        revision: The commit of an encoder from the hub. None: it is from elsewhere.
        pooling: "mean" or "max" over the tokens of a text, or "cls", the vector of the first token.
        normalize: Whether embeddings are divided by their Euclidean length.
        num_dense: E, the number of entries of an embedding.

    Example:
        >>> from mach_ext.text_encoder import TextEncoder
        >>> encoder = TextEncoder.load("encoder")
        >>> encoder.pooling, encoder.normalize, encoder.num_dense
        ('mean', True, 32)
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, layout: Layout, place: Place) -> None:
        super().__init__()
        self.model = model
        self.name, self.revision = place.name, place.revision
        self.pooling, self.normalize = layout.pooling, layout.normalize
        self._tokenizer, self._layout = tokenizer, layout
        self._files = tokenizer_files(layout.folder)
        self.num_dense = self._probe()

    @classmethod
    @memory_errors("free memory first, or take a smaller encoder", "TextEncoder.load")
    def load(
        cls,
        path_or_name: PathLike,
        max_length: int | None = None,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        digest: str | None = None,
    ) -> TextEncoder:
        """Loads an encoder, in float32 and evaluation mode. Code that comes with a model is never run.

        Args:
            path_or_name: A folder in the layout of Hugging Face or of sentence-transformers. Or the name of
                an installed package that carries such a folder, as it is imported or as pip knows it. Or a
                name on the Hugging Face hub, which is downloaded into the hub's cache.
            max_length: Number of tokens that texts are cut to, special tokens included. None: as the folder
                states it.
            revision: A commit, tag or branch, for a name on the hub.
            device: The device that the model is put on.
            digest: The `digest` that the encoder must have. None: any.

        Raises:
            ImportError: The package transformers is not installed.
            TypeError: `max_length` is not an integer.
            ValueError: There is no such encoder, or a file is missing, damaged or a pickle. Or the model is
                no encoder, `max_length` is out of range, or the digest is another.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> TextEncoder.load("encoder", max_length=8).max_length
            8
        """
        place = locate(path_or_name, revision)
        layout = read_layout(place.folder)
        model = load_model(layout)
        encoder = cls(model, load_tokenizer(layout, model, max_length), layout, place)
        if digest is not None and (got := encoder.digest) != digest:
            raise ValueError(
                f"TextEncoder.load: the encoder at {place.name} has digest {got}, the model was trained with "
                f"{digest}; give its folder"
            )
        return encoder.eval().to(device)

    @classmethod
    def from_record(
        cls, record: dict[str, Any], path: PathLike | None = None, *, device: torch.device | str = "cpu"
    ) -> TextEncoder:
        """Loads the encoder that a record names, and checks that it is this encoder.

        Args:
            record: What `record` returned.
            path: The folder or name of the encoder, if the record's name does not lead to it any more.
            device: The device that the model is put on.

        Raises:
            ImportError: As in `load`.
            ValueError: As in `load`, or this is no record of an encoder.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder = TextEncoder.load("encoder", max_length=8)
            >>> TextEncoder.from_record(encoder.record()).digest == encoder.digest
            True
        """
        check_record(record, "TextEncoder.from_record: not the record of an encoder", _RECORD)
        revision = record["revision"] if path is None else None
        return cls.load(
            record["name"] if path is None else path,
            record["max_length"],
            revision=revision,
            device=device,
            digest=record["digest"],
        )

    @property
    def max_length(self) -> int:
        """The number of tokens that texts are cut to, special tokens included.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> TextEncoder.load("encoder").max_length
            32
        """
        return self._tokenizer.max_length

    @property
    def digest(self) -> str:
        """SHA-256 of all that an embedding depends on: weights, tokenizer, pooling, normalisation and length.

        It is computed at each access, because training changes it. That takes about a second for a gigabyte
        of weights.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder, shorter = TextEncoder.load("encoder"), TextEncoder.load("encoder", max_length=8)
            >>> len(encoder.digest), encoder.digest == shorter.digest
            (64, False)
        """
        return encoder_digest(self.model.state_dict(), self._files, self._settings())

    def _settings(self) -> dict[str, Any]:
        """Returns all that an embedding depends on, besides the weights and the tokenizer."""
        return {
            "config": self._layout.config,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "lower_case": self._layout.lower_case,
            "max_length": self.max_length,
        }

    def record(self) -> dict[str, Any]:
        """Returns what identifies the encoder, for a JSON file. `from_record` loads the encoder again.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> sorted(TextEncoder.load("encoder").record())
            ['digest', 'max_length', 'name', 'normalize', 'num_dense', 'pooling', 'revision']
        """
        names = ("name", "revision", "digest", "max_length", "pooling", "normalize", "num_dense")
        return {name: getattr(self, name) for name in names}

    def save(self, folder: PathLike) -> None:
        """Writes the encoder into a new folder. `load` and sentence-transformers read it.

        The folder appears whole or not at all. The encoder that is loaded from it has the same digest.

        Args:
            folder: A folder that does not exist, or that is empty.

        Raises:
            ValueError: The folder is not empty.
            OSError: The folder cannot be written.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder = TextEncoder.load("encoder")
            >>> encoder.save("copy")
            >>> TextEncoder.load("copy").digest == encoder.digest
            True
        """
        settings = {**self._settings(), "num_dense": self.num_dense}
        save_encoder("TextEncoder.save", folder, self.model.state_dict(), self._files, settings)

    # ------------------------------------------------------------------------------------------- tensors

    def tokenize(self, texts: Iterable[str], offsets: bool = False) -> Tokens:
        """Turns texts into tokens, padded to the longest text.

        A lone surrogate counts as U+FFFD. An empty text has the special tokens alone.

        Args:
            texts: The n texts.
            offsets: Return also where the tokens and words stand in the texts.

        Raises:
            TypeError: `texts` is a single string, or an entry is not a string. The message gives its number.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> tokens = TextEncoder.load("encoder").tokenize(["a cat", ""])
            >>> tokens.attention_mask
            tensor([[1, 1, 1, 1],
                    [1, 1, 0, 0]])
        """
        return padded_tokens(self._tokenizer, check_texts("TextEncoder.tokenize", texts), offsets)

    def token_embeddings(self, input_ids: Tensor) -> Tensor:
        """Returns the vectors of tokens that enter the model, before positions are added [n, T, H].

        Args:
            input_ids: Numbers of tokens [n, T], on the device of the model.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder = TextEncoder.load("encoder")
            >>> encoder.token_embeddings(encoder.tokenize(["a cat"]).input_ids).shape
            torch.Size([1, 4, 32])
        """
        embeddings: Tensor = self.model.get_input_embeddings()(input_ids)  # type: ignore[operator]
        return embeddings

    def forward(
        self, input_ids: Tensor | None, attention_mask: Tensor, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Returns the embeddings of tokenized texts [n, E], with gradients.

        Args:
            input_ids: Numbers of tokens [n, T]. They do not count if `inputs_embeds` is given.
            attention_mask: 1 for a token, 0 for padding [n, T]. Each text has a token.
            inputs_embeds: In place of the tokens their vectors [n, T, H], as `token_embeddings` returns them.

        Raises:
            ValueError: A text has no token. This is not checked on a GPU.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder = TextEncoder.load("encoder")
            >>> ids, mask, *_ = encoder.tokenize(["a cat", "dogs"])
            >>> vectors = encoder.token_embeddings(ids).detach().requires_grad_()
            >>> encoder(None, mask, inputs_embeds=vectors).sum().backward()
            >>> vectors.grad.shape
            torch.Size([2, 4, 32])
        """
        if not len(attention_mask):
            return next(self.model.parameters()).new_zeros(0, self.num_dense)
        if attention_mask.is_cpu and not torch.compiler.is_compiling() and not attention_mask.any(1).all():
            raise ValueError("TextEncoder: each text must have a token, got a row of zeros in attention_mask")
        given = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        hidden = self.model(attention_mask=attention_mask, **given).last_hidden_state  # [n, T, H]
        if hidden.dtype in (torch.bfloat16, torch.float16):
            hidden = hidden.float()
        pooled = _pool(hidden, attention_mask, self.pooling)
        return nn.functional.normalize(pooled, dim=1) if self.normalize else pooled

    # ---------------------------------------------------------------------------------------------- texts

    @memory_errors("lower batch_size", "TextEncoder.encode")
    def encode(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        progress: bool = True,
        *,
        precision: str = "float32",
        remarks: list[str] | None = None,
    ) -> Vectors:
        """Returns the embeddings of texts [N, E], float32, in evaluation mode and without gradients.

        Texts of about the same length go through the model together, so that there is little padding. The
        embedding of a text depends on the other texts by rounding alone. In float32 its entries differ by
        less than 1e-5 of its length. Equal texts are computed once.

        Args:
            texts: The N texts.
            batch_size: The largest number of texts that pass through the model at a time. On the CPU they are
                fewer if they are long, because that is faster.
            progress: Show a progress bar.
            precision: "float32", or on a GPU "bfloat16". The result is float32 for both.
            remarks: A list to which a sentence about texts that were cut is added.

        Raises:
            TypeError: `texts` is a single string, or an entry is not a string. The message gives its number.
            ValueError: `batch_size` or `precision` is not valid, or an embedding is not finite.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder, remarks = TextEncoder.load("encoder", max_length=4), []
            >>> encoder.encode(["a cat", "cat " * 9], progress=False, remarks=remarks).shape
            (2, 32)
            >>> remarks
            ['1 of 2 texts were cut, because they have more than max_length=4 tokens']
        """
        op = "TextEncoder.encode"
        rows = check_texts(op, texts)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"{op}: batch_size must be an integer, got {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"{op}: batch_size must be at least 1, got {batch_size}")
        self._check_precision(op, precision)
        corpus = Corpus(self._tokenizer, rows, progress)
        self._remark(corpus.truncated, len(rows), remarks)
        size = 4 * self.num_dense * (len(corpus) + len(rows))
        check_memory(f"{op}: the embeddings", size, "use embed, which keeps them in a file", N=len(rows))
        vectors = np.empty((len(corpus), self.num_dense), np.float32)
        with (
            self._inference(precision),
            progress_bar("encode", "token", int(corpus.lengths.sum()), 0, progress) as bar,
        ):
            for at in corpus.batches(self._batch_tokens(), batch_size):
                vectors[at] = self._batch(op, corpus, at)
                bar.update(int(corpus.lengths[at].sum()))
        return vectors[corpus.rows]

    @memory_errors("use encode with a lower batch_size", "TextEncoder.embed")
    def embed(
        self,
        texts: Iterable[str],
        cache: PathLike | None = None,
        progress: bool = True,
        *,
        precision: str = "float32",
        remarks: list[str] | None = None,
    ) -> Vectors:
        """Returns the embeddings of texts like `encode`, and keeps them in a file.

        The file is found again by the digest of the encoder and by all texts in their order. A damaged file
        is noticed and made anew. If the process is killed, the next call goes on at the last whole block.
        With the same number of threads it ends with the same bits as without the interruption. If another
        process embeds the same texts, the call waits for it.

        Args:
            texts: The N texts.
            cache: The folder of the files. None: `embeddings` in the data folder.
            progress: Show a progress bar. It starts at what is done.
            precision: As in `encode`.
            remarks: As in `encode`.

        Returns:
            [N, E], float32, mapped from the file and read-only.

        Raises:
            TypeError: As in `encode`.
            ValueError: As in `encode`.
            OSError: The folder cannot be written, or the disk is full.

        Example:
            >>> from mach_ext.text_encoder import TextEncoder
            >>> encoder = TextEncoder.load("encoder")
            >>> embeddings = encoder.embed(["a cat", "a dog"], cache="cache", progress=False)
            >>> again = encoder.embed(["a cat", "a dog"], cache="cache")  # read from the file
            >>> type(again).__name__, bool((again == embeddings).all())
            ('memmap', True)
        """
        op = "TextEncoder.embed"
        rows = check_texts(op, texts)
        self._check_precision(op, precision)
        if not rows:
            return np.empty((0, self.num_dense), np.float32)
        folder = data_home() / "embeddings" if cache is None else cache
        store = EmbeddingCache(folder, corpus_key(self.digest, precision, rows), (len(rows), self.num_dense))
        with store.locked():
            cached = store.read()
            if cached is None:
                self._fill(store, rows, progress, precision)
                cached = store.read()
        if cached is None:
            raise OSError(f"{op}: {store.folder}: the file was damaged while it was written")
        embeddings, truncated = cached
        self._remark(truncated, len(rows), remarks)
        return embeddings

    def _fill(self, store: EmbeddingCache, texts: list[str], progress: bool, precision: str) -> None:
        """Embeds texts block by block into a cache."""
        op, corpus = "TextEncoder.embed", Corpus(self._tokenizer, texts, progress)
        batches = corpus.batches(self._batch_tokens())
        with store.blocks(corpus.lengths, batches) as blocks, self._inference(precision):
            done = blocks.texts_done
            tokens = int(corpus.lengths[:done].sum()), int(corpus.lengths.sum())
            parts: list[Vectors] = []  # of a block
            with progress_bar("embed", "token", tokens[1], tokens[0], progress) as bar:
                for at in batches:
                    if at.start < done:
                        continue
                    parts.append(self._batch(op, corpus, at))
                    bar.update(int(corpus.lengths[at].sum()))
                    if at.stop == blocks.stops[blocks.done]:
                        blocks.append(np.concatenate(parts))
                        parts.clear()
            store.finish(blocks, corpus.rows, corpus.truncated, self.record())

    def _batch(self, op: str, corpus: Corpus, at: slice) -> Vectors:
        """Returns the embeddings of some texts of a corpus [n, E]."""
        ids, mask = corpus.batch(at.start, at.stop)
        vectors: Vectors = self(ids.to(self._device), mask.to(self._device)).float().cpu().numpy()
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            text = int(np.flatnonzero(corpus.rows == at.start + row)[0])
            raise ValueError(f"{op}: embeddings must be finite, got NaN or infinity for texts[{text}]")
        return vectors

    def _batch_tokens(self) -> int:
        """Returns how many tokens should pass through the model at a time."""
        return _BATCH_TOKENS["cpu" if self._device.type == "cpu" else "cuda"]

    def _probe(self) -> int:
        """Embeds an empty text, and returns the number of entries.

        Raises:
            ValueError: The model does not give a vector for each token.
        """
        name = "TextEncoder.load"
        ids, mask, *_ = padded_tokens(self._tokenizer, [""], offsets=False)
        try:
            with self._inference("float32"):
                size = int(self(ids, mask).shape[1])
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
            if memory_shortage(error) is not None:
                raise
            cause = " ".join(str(error).split())[:300]
            rule = "the model must give a vector for each token of a text"
            raise ValueError(f"{name}: {self.name}: {rule}, got: {type(error).__name__}: {cause}") from None
        return size

    @contextlib.contextmanager
    def _inference(self, precision: str) -> Iterator[None]:
        """Puts the model into evaluation mode for a block without gradients, in a precision."""
        training = [module for module in self.modules() if module.training]
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bfloat16")
        self.eval()
        try:
            with torch.no_grad(), autocast:
                yield
        finally:
            for module in training:
                module.training = True

    def _check_precision(self, op: str, precision: str) -> None:
        """Refuses a precision that there is not."""
        if precision not in _PRECISIONS:
            raise ValueError(f"{op}: precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
        if precision == "bfloat16" and self._device.type == "cpu":
            raise ValueError(f"{op}: precision must be float32 on the CPU, got {precision!r}")

    def _remark(self, truncated: int, total: int, remarks: list[str] | None) -> None:
        """Adds a sentence about texts that were cut."""
        if remarks is not None and truncated:
            rule = f"they have more than max_length={self.max_length} tokens"
            remarks.append(f"{truncated:,} of {total:,} texts were cut, because {rule}")

    @property
    def _device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device


def _pool(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Makes one vector of the vectors of a text's tokens: [n, T, H] to [n, H]."""
    if pooling == "cls":
        return hidden[:, 0]
    mask = attention_mask.unsqueeze(-1)  # [n, T, 1]
    if pooling == "max":
        return hidden.masked_fill(mask == 0, -torch.inf).max(dim=1).values
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

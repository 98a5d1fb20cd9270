"""The part of a model that a rank holds: R / G of its repetitions, and as large a part of its encoder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from mach_ext import _prediction
from mach_ext import functional as F
from mach_ext._dense_features import checked_documents
from mach_ext._dropout import Dropout, PartOfMasks
from mach_ext._model_folder import is_compressed, parameter_shapes, read_model_record
from mach_ext._model_folder.extents import Extent, part_shapes, whole_extent
from mach_ext._model_folder.loading import read_weights
from mach_ext._model_folder.record import configuration_of
from mach_ext._model_folder.saving import save_part
from mach_ext.distributed.decode import gather_logits, sharded_topk
from mach_ext.distributed.drawing import draw_weights
from mach_ext.distributed.ranks import Ranks, current_ranks
from mach_ext.hashing import LabelHash, collisions_known
from mach_ext.head import MACHHead
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, checked_k, predict_batch


class ModelPart:
    """Some repetitions of a model, and some units of its encoder. A model that is not cut is one part.

    Independent encoders and linear MACH are cut by repetition, and the parts share nothing. A shared encoder
    is cut by unit. Each rank then computes some hidden units of every document, and all ranks gather them.

    Attributes:
        model: A model of the part's repetitions. If a shared encoder is cut, `encoder_weight` and
            `encoder_bias` of this model are those of the part's units.
        ranks: The processes that hold the parts.
        extent: What the part holds.
        seed: The seed of the whole label hash. None: it is a table.
        fingerprint: The fingerprint of the whole label hash.
        num_repetitions: R, the number of repetitions of the whole model, over which the loss averages.
    """

    def __init__(
        self, model: MACH, ranks: Ranks, configuration: dict[str, Any], extent: Extent, seed: int | None,
        fingerprint: str,
    ) -> None:  # fmt: skip
        self.model, self.ranks, self.extent = model, ranks, extent
        self._configuration = configuration
        self.seed, self.fingerprint = seed, fingerprint
        self.num_repetitions: int = configuration["num_repetitions"]
        self._decode_hash: LabelHash | None = None

    @classmethod
    def alone(cls, model: MACH, num_repetitions: int | None = None) -> ModelPart:
        """Return a model that this process trains alone.

        Args:
            model: The model.
            num_repetitions: If it is a part of a model whose parts are trained in turn, the number of
                repetitions of the whole.
        """
        configuration = model.configuration()
        extent = whole_extent(configuration)
        part = cls(model, Ranks(), configuration, extent, model.hash.seed, model.hash.fingerprint())
        part.num_repetitions = num_repetitions or part.num_repetitions
        return part

    @classmethod
    def new(cls, configuration: dict[str, Any], ranks: Ranks) -> ModelPart:
        """Return the part of a rank of a new model, with the weights that `MACH(**configuration)` draws.

        Raises:
            ValueError: There are more ranks than repetitions or units.
        """
        extent = extent_of_rank(configuration, ranks)
        part = _empty_part(configuration, extent, ranks, configuration["seed"])
        generator = torch.Generator().manual_seed(configuration["seed"] % 2**63)
        with torch.no_grad():
            for name, drawn in draw_weights(configuration, extent, generator).items():
                getattr(part.model, name).copy_(drawn)
            part.model.head.reset_biases()
        return part

    @classmethod
    def load(cls, folder: Path, ranks: Ranks) -> ModelPart:
        """Return the part of a rank of the model in a folder, however the model is cut there.

        Raises:
            ValueError: The folder does not hold such a model, or there are too many ranks.
        """
        record = read_model_record(folder)
        configuration, seed = configuration_of(record), record["hash"]["seed"]
        if "num_features" not in configuration or seed is None or is_compressed(folder):
            raise ValueError(
                f"{folder}: only a model with a seeded label hash that is not compressed can be loaded in "
                "parts; mach_ext.load reads any model"
            )
        part = _empty_part(configuration, extent_of_rank(configuration, ranks), ranks, seed)
        part.load_weights(folder)
        part.model.eval()
        return part

    def configuration(self) -> dict[str, Any]:
        """Return the constructor arguments of the whole model."""
        return self._configuration

    @property
    def num_labels(self) -> int:
        """L, the number of labels."""
        return self.model.num_labels

    @property
    def attachments(self) -> dict[str, bytes]:
        """The files that belong to the model."""
        return self.model.attachments

    @property
    def merge(self) -> str:
        """How labels are scored."""
        return self.model.merge

    @property
    def is_alone(self) -> bool:
        """Whether no other process holds parts of the model."""
        return self.ranks.size == 1

    @property
    def shares_units(self) -> bool:
        """Whether the part has only some of the units that its classifiers take."""
        return not self.is_alone and not self.model.is_linear and self.model.encoder == "shared"

    def dropout(self, dropout: Dropout) -> Dropout:
        """Return the dropout of a step that drops what it would drop in the whole model."""
        if self.is_alone or not isinstance(dropout, torch.Generator):
            return dropout
        return PartOfMasks(dropout, self.extent.repetitions, self.num_repetitions)

    def gather_units(self, hidden: Tensor) -> Tensor:  # [N, units] -> [N, H]
        """Return the units of all ranks. If the classifiers take the part's units alone, return these."""
        if not self.shares_units:
            return hidden
        return self.ranks.gather(hidden, 1, self.ranks.sizes(self.model.hidden_sizes[0]))

    def own_units(self, t: Tensor) -> Tensor:  # [N, H] -> [N, units]
        """Return the columns of the part's units."""
        return t[:, self.extent.units.start : self.extent.units.stop] if self.shares_units else t

    def sum_of_parts(self, grad_hidden: Tensor) -> Tensor:
        """Return the sum of the parts' gradients to hidden units, if all parts have taken the same units."""
        return self.ranks.sum(grad_hidden) if self.shares_units else grad_hidden

    @property
    def predictor(self) -> Any:
        """What predicts as the whole model: the model itself, or the parts together."""
        return self.model if self.is_alone else self

    def whole_loss(self, loss: float) -> float:
        """Return the loss of the whole model, from the mean loss of the part's repetitions on each rank."""
        if self.is_alone:
            return loss
        share = len(self.extent.repetitions) / self.num_repetitions
        return float(sum(self.ranks.collect(loss * share)))

    def part_of_loss(self, loss: float) -> float:
        """Return what the ranks together make of it the loss of the whole model, as `whole_loss` does."""
        if self.is_alone:
            return loss
        share = len(self.extent.repetitions) / self.num_repetitions
        return loss / share if self.ranks.is_first else 0.0

    def logit_offsets(self, label_counts: ArrayLike, tau: float) -> Tensor:  # [repetitions, B]
        """Return the part's rows of `MACH.logit_offsets` of the whole model. Rank 0 computes them for all."""
        if self.is_alone or tau == 0:
            return self.model.logit_offsets(label_counts, tau)
        computed = None
        if self.ranks.is_first:
            L, B, R = (self._configuration[f"num_{name}"] for name in ("labels", "buckets", "repetitions"))
            with collisions_known():
                head = MACHHead(1, L, R, B, self.merge, hash=LabelHash(L, B, R, self._configuration["seed"]))
            computed = head.logit_offsets(label_counts, tau)
        offsets: Tensor = self.ranks.broadcast(computed)
        own = self.extent.repetitions
        return offsets[own.start : own.stop].to(self.model.logit_adjustment)

    # --------------------------------------------------------------------------------------- prediction

    def predict(
        self, X: Any, k: int | None = None, batch_size: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k best labels of each document, as `MACH.predict` of the whole model does, to the bit.

        All ranks call this method with the same documents, and all get the answer. Each scores the buckets of
        its repetitions. Each then decodes a range of the labels.
        """
        if self.is_alone:
            return self.model.predict(X, k, batch_size)
        model, R = self.model, self.num_repetitions
        X = checked_documents("MACH.predict: X", model, X)
        k = checked_k("MACH.predict", k, model.num_labels, least=0)
        batch_size = batch_size or predict_batch(R, model.num_buckets)
        scores = np.empty((X.shape[0], k), np.float32)
        labels = np.empty((X.shape[0], k), np.int64)
        with torch.inference_mode():
            _prediction.fill(scores, labels, model, X, batch_size, self.topk)
        return scores, labels

    def topk(self, values: Tensor, indices: Tensor, indptr: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k best labels of one batch of documents, as `MACH.topk` of the whole model does."""
        own = self.bucket_scores(values, indices, indptr)
        scores = gather_logits(self.ranks, own, self.num_repetitions, not self.model.is_linear)
        first, merge = self.ranks.share(self.num_labels).start, MODEL_MERGES[self.merge]
        place = self._hash_of_labels(), first, self.num_labels
        return sharded_topk(self.ranks, scores, *place, k, merge, overwrite=True)

    def bucket_scores(self, values: Tensor, indices: Tensor, indptr: Tensor) -> Tensor:
        """Return the bucket logits [N, repetitions, B] of documents in CSR form."""
        model = self.model
        if not self.shares_units:
            own: Tensor = model(values, indices, indptr, validate=False, dropout=False)
            return own
        weight, bias = model.encoder_weight, model.encoder_bias
        hidden = F.sparse_linear(values, indices, indptr, weight, bias, "relu", validate=False)
        logits: Tensor = model.head(model.encode_hidden(self.gather_units(hidden), dropout=False))
        return logits

    def _hash_of_labels(self) -> LabelHash | None:
        """Return the buckets of the labels that this rank decodes, in all repetitions. None: it has none."""
        own = self.ranks.share(self.num_labels)
        if self._decode_hash is None and own:
            L, B, R = (self._configuration[f"num_{name}"] for name in ("labels", "buckets", "repetitions"))
            part = LabelHash.seeded_part(L, B, R, self._configuration["seed"], labels=own)
            self._decode_hash = part.to(self.model.bucket_bias.device)
        return self._decode_hash

    # -------------------------------------------------------------------------------------- model folder

    def save(self, folder: Path, quantization_step: float | None = None) -> None:
        """Save the model. All ranks write their parts, in files of their own. A step is for one rank."""
        if self.is_alone:
            self.model.save(folder, quantization_step)
        else:
            save_part("MACH.save", self, folder, self.ranks.collect)

    def load_weights(self, folder: Path) -> None:
        """Take the weights in a folder, however they are cut there.

        Raises:
            ValueError: The folder does not hold such a model.
        """
        record = read_model_record(folder)
        tensors = read_weights(folder, record, self.extent)
        tensors.pop("hash.buckets", None)
        self.model.load_parameters(tensors)


def extent_of_rank(configuration: dict[str, Any], ranks: Ranks) -> Extent:
    """Return what a rank holds of a model.

    Raises:
        ValueError: There are more ranks than repetitions or units.
    """
    whole, R = whole_extent(configuration), configuration["num_repetitions"]
    repetitions = ranks.share(R)
    if configuration.get("encoder") == "independent" and whole.units:
        each = len(whole.units) // R
        units = range(repetitions.start * each, repetitions.stop * each)
    else:
        units = ranks.share(len(whole.units))
    for name, count in (("num_repetitions", R), ("hidden_size", len(whole.units))):
        if 0 < count < ranks.size:
            raise ValueError(
                f"train: {name}={count} must be at least the number of processes, which each train a part, "
                f"got {ranks.size} processes"
            )
    return Extent(repetitions, units)


def _empty_part(configuration: dict[str, Any], extent: Extent, ranks: Ranks, seed: int) -> ModelPart:
    """Return the part of a model with a seeded label hash. Its weights are 0."""
    L, B, R = (configuration[f"num_{name}"] for name in ("labels", "buckets", "repetitions"))
    own = extent.repetitions
    hash = LabelHash.seeded_part(L, B, R, seed, repetitions=own)
    with torch.device("meta"):
        model = MACH(**{**configuration, "num_repetitions": len(own)}, hash=hash)
    whole = parameter_shapes(configuration)
    for name, shape in {**whole, **part_shapes(whole, configuration, extent)}.items():
        owner: nn.Module = model.head if name.startswith("bucket_") else model
        setattr(owner, name, nn.Parameter(torch.zeros(shape)))
    model.head.logit_adjustment = torch.zeros(model.bucket_bias.shape)
    model.head.hash = hash
    model._make_scaling()
    return ModelPart(model, ranks, configuration, extent, seed, f"L={L} B={B} R={R} seed={seed}")


def load_part(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> ModelPart:
    """Read a rank's part of a model: as many repetitions and labels as each of the ranks gets.

    This is for a model that is too large for one process. All ranks of `together` call this function, and
    then `predict` of the parts. Each rank scores the buckets of its repetitions, and decodes a range of the
    labels. The answers have the bits of one process. A process alone gets the whole model.

    Args:
        path: The folder of the model. It may be in one file, or in files of any number of processes.
        device: Where to put the part.

    Returns:
        The part, in eval mode.

    Raises:
        ValueError: The folder does not hold a model with a seeded label hash, or the model is compressed. Or
            there are more processes than repetitions or hidden units.

    Example:
        >>> import scipy.sparse, tempfile, mach_ext
        >>> from mach_ext.distributed import load_part, together
        >>> folder = tempfile.mkdtemp()
        >>> mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4).save(folder)
        >>> X = scipy.sparse.random(3, 10, density=0.3, format="csr", dtype="float32")
        >>> with together():
        ...     scores, labels = load_part(folder).predict(X, k=5)
        >>> labels.shape
        (3, 5)
    """
    part = ModelPart.load(Path(path), current_ranks())
    part.model.to(device)
    return part

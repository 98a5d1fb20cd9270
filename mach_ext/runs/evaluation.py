"""Metrics of a run on a split, in all and by how many training documents a label has."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from mach_ext import data, metrics, nn, training
from mach_ext.data.matrices import spaced_rows
from mach_ext.distributed.documents import shared_by_documents
from mach_ext.metrics import KS, RECALL_KS
from mach_ext.neighbors import WEIGHTS, Neighbors
from mach_ext.runs.arguments import spell
from mach_ext.runs.labels import TrainingLabels
from mach_ext.training.adjustment import is_ahead, precisions

log = logging.getLogger("mach_ext")

FEWEST, MOST = 200, 1000  # documents of dev that say whether neighbours help
MOST_PRODUCTS = 2e10  # of non-zeros of train and these documents, some twenty seconds
CANDIDATES = 200  # number of labels that neighbours re-rank


def evaluate(
    model: nn.AnyMACH,
    dataset: data.Dataset,
    split: str,
    *,
    neighbors: Neighbors | None = None,
    propensity: tuple[float, float] | None = None,
    ks: Sequence[int] = KS,
    recall_ks: Sequence[int] = RECALL_KS,
    precision: str | None = None,
) -> dict[str, Any]:
    r"""Returns metrics of a split, in all and by how many training documents a label has.

    Labels that the model does not know count as misses. Labels that a filter file excludes are removed from
    the answers.

    Args:
        model: The model.
        dataset: The dataset, read with the model's columns.
        split: "train", "dev" or "test".
        neighbors: Re-rank the model's best labels with these neighbours.
        propensity: A and B of the propensity model. None: those that the run keeps.
        ks: The k of P, nDCG, PSP and PSnDCG.
        recall_ks: The k of R.
        precision: As in `MACH.predict`. None: float32, or int8 if the model is quantized.

    Returns:
        Metrics by name. "bands" holds the same for each frequency band. "propensity" holds A, B and the
        number of training documents. "precision" holds the precision, unless it is the model's own.

    Raises:
        ValueError: The dataset has no such split, or A and B are out of range.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> result = mach_ext.runs.evaluate(run.model, run.dataset(), "test")
        >>> result["P@1"], result["nDCG@1"], list(result["bands"])
        (1.0, 1.0, ['head', 'torso', 'tail'])
    """
    if split not in dataset.splits:
        raise ValueError(f"{dataset.path}: no {split} split; there are: {', '.join(dataset.splits)}")
    precision = nn.other_precision("evaluate", model, precision)
    documents = dataset.splits[split]
    truth = documents.truth
    frequencies = TrainingLabels.of(model, dataset, propensity)
    unseen = truth.shape[1] - model.num_labels
    q = frequencies.inverse_propensity(unseen)  # before the prediction, because A and B can be too large
    k = max((*ks, *recall_ks), default=0)
    labels = training.answers(
        model, documents.documents, k, documents.filtered, _ranking(model, neighbors, precision)
    )
    result: dict[str, Any] = metrics.evaluate(truth, labels, ks, recall_ks, q)
    result["bands"] = metrics.evaluate_by_band(truth, labels, frequencies.bands(unseen), ks, recall_ks, q)
    remark = {} if precision is None else {"precision": precision}
    return {**result, "propensity": frequencies.as_dict(), **remark}


def result_name(split: str, neighbors: bool, precision: str | None) -> str:
    """Returns the name of metrics among those of a run: the split, and what is unusual about them."""
    remarks = (["neighbors"] if neighbors else []) + ([] if precision is None else [precision])
    return "+".join([split, *remarks])


def _ranking(model: nn.AnyMACH, neighbors: Neighbors | None, precision: str | None) -> Any:
    """Returns a function that predicts the k best labels, and re-ranks them if there are neighbours."""
    model, options = nn.rounded_model(model, precision), nn.precision_option(precision)

    def best(X: Any, k: int) -> tuple[NDArray[Any], ...]:
        candidates = k if neighbors is None else min(max(CANDIDATES, k), model.num_labels)
        found = model.predict(X, candidates, **options)
        return found if neighbors is None else neighbors.rerank(X, *found, merge=model.merge)

    # The parts of a model share their work by themselves.
    ask = shared_by_documents(model, best) if isinstance(model, nn.AnyMACH) else best
    return lambda X, k: ask(X, k)[1]


def log_neighbors(model: nn.AnyMACH, dataset: data.Dataset) -> None:
    """Logs if neighbours make up to 1,000 documents of dev clearly better.

    Where train is large, fewer documents are asked or none. Embeddings are not computed for this.
    """
    dev, train = dataset.dev, dataset.train
    if dev is None or model.merge not in WEIGHTS or model.num_labels < 2:
        return
    asked = min(MOST, len(dev), int(MOST_PRODUCTS / max(1, train.X.nnz)))
    if asked < FEWEST or isinstance(train.dense, data.TextEmbeddings):
        return
    with contextlib.suppress(MemoryError):  # A remark is not worth an error.
        _log_neighbors(model, dataset, dev, asked)


def _log_neighbors(model: nn.AnyMACH, dataset: data.Dataset, dev: data.Split, asked: int) -> None:
    """Logs if neighbours make so many documents of dev clearly better."""
    rows = spaced_rows(len(dev), asked)
    some, k = dev.take(rows), min(5, model.num_labels)
    near = Neighbors(dataset.train.documents, dataset.train.Y)
    answers = [
        training.answers(model, some.documents, k, some.filtered, _ranking(model, neighbors, None))
        for neighbors in (None, near)
    ]
    without, with_neighbors = (precisions(some.Y, labels) for labels in answers)
    if not is_ahead(with_neighbors, without):
        return
    shown = [
        " / ".join(f"{100 * metrics.precision_at_k(some.Y, labels, n):.2f}" for n in (1, 3, 5) if n <= k)
        for labels in answers
    ]
    log.info(
        "neighbors would make dev better: P@1/3/5 of %d documents %s, without them %s (%s of evaluate)",
        len(rows), shown[1], shown[0], spell("neighbors", value=True),
    )  # fmt: skip


def neighbors_for(model: nn.AnyMACH, dataset: data.Dataset, split: str) -> Neighbors:
    """Returns the documents of train as neighbours of the documents of a split.

    Raises:
        ValueError: The split is train, the model ranks in another way, or there is no train split.
    """
    argument = spell("neighbors")
    if split == "train":
        raise ValueError(f"{argument} does not work for documents of train, which find themselves")
    if model.merge not in WEIGHTS:
        known = " or ".join(WEIGHTS)
        raise ValueError(f"{argument} is for models that rank by {known}; this one ranks by {model.merge}")
    if len(dataset.train) == 0:
        raise ValueError(f"{dataset.path}: has no train split, which {argument} needs")
    return Neighbors(dataset.train.documents, dataset.train.Y)

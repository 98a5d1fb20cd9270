"""Metrics of a run on a split, overall and by how many training documents a label has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext import data, metrics, nn, training
from mach_ext.metrics import KS, RECALL_KS
from mach_ext.neighbors import Neighbors
from mach_ext.runs.arguments import spell
from mach_ext.runs.labels import TrainingLabels

CANDIDATES = 200  # labels that neighbours re-rank


def evaluate(
    model: nn.MACH,
    dataset: data.Dataset,
    split: str,
    *,
    neighbors: Neighbors | None = None,
    propensity: tuple[float, float] | None = None,
    ks: Sequence[int] = KS,
    recall_ks: Sequence[int] = RECALL_KS,
) -> dict[str, Any]:
    """Metrics of a split, overall and, under "bands", by how many training documents a label has.

    Labels that the model does not know count as misses. Answers that a filter file excludes do not count.

    Args:
        model: the model.
        dataset: read by the model's columns.
        split: "train", "dev" or "test".
        neighbors: re-rank the model's best labels by these.
        propensity: A and B of the propensity model; None: as the run keeps them.
        ks: of P, nDCG, PSP, PSnDCG.
        recall_ks: of R.

    Returns:
        Metrics by name; under "bands" the same for each band; under "propensity" A, B and how many training
        documents they were used with.
    """
    if split not in dataset.splits:
        raise ValueError(f"{dataset.path}: no {split} split; there are: {', '.join(dataset.splits)}")
    documents = dataset.splits[split]
    truth = documents.truth
    frequencies = TrainingLabels.of(model, dataset, propensity)
    unseen = truth.shape[1] - model.num_labels
    q = frequencies.inverse_propensity(unseen)  # before the work: A and B can be too large
    k = max((*ks, *recall_ks), default=0)
    labels = training.answers(model, documents.X, k, documents.filtered, _rerank(model, neighbors))
    result: dict[str, Any] = metrics.evaluate(truth, labels, ks, recall_ks, q)
    result["bands"] = metrics.evaluate_by_band(truth, labels, frequencies.bands(unseen), ks, recall_ks, q)
    return {**result, "propensity": frequencies.as_dict()}


def _rerank(model: nn.MACH, neighbors: Neighbors | None) -> Any:
    if neighbors is None:
        return None

    def labels(X: Any, k: int) -> NDArray[np.integer[Any]]:
        candidates = min(max(CANDIDATES, k), model.num_labels)
        return neighbors.rerank(X, *model.predict(X, candidates))[1]

    return labels


def neighbors_for(model: nn.MACH, dataset: data.Dataset, split: str) -> Neighbors:
    """The documents of train as neighbours of those of a split.

    Raises:
        ValueError: The split is train, the model does not rank by mean logits, or there is no train split.
    """
    argument = spell("neighbors")
    if split == "train":
        raise ValueError(f"{argument} is for other documents than those of train, which find themselves")
    if model.merge != "mean_logit":
        raise ValueError(f"{argument} adds to mean logits; this model ranks by {model.merge}")
    if len(dataset.train) == 0:
        raise ValueError(f"{dataset.path}: has no train split, among which {argument} looks")
    return Neighbors(dataset.train.X, dataset.train.Y)

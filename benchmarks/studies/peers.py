"""Other XMC systems and simple baselines beside mach_ext.

Run it by `PYTHONPATH=benchmarks python -m studies.peers DATASET [SYSTEM ...]`.

All are trained and asked on the same CSR matrices, the same split and as many threads. Each result goes into
results/peers.csv as soon as it is there, in place of the former one of the same name. `make bench-table`
makes the table of docs/results/accuracy.md from it. Needs the extra [peers].

Settings are chosen on dev: systems learn from train and are asked on dev. Where there is no dev, or dev has
the last word, a tenth of train is held out. `--final` is for the last word. Systems learn from all of train
and are asked on test, or on dev where there is no test. Where both are there, one model serves both.

Each result has a second column, "adjusted". mach_ext takes a logit adjustment, so the others get one, too.
Their best 200 labels, or as many as their beam gives, are ranked again by log p - tau log(n + 1). n is the
number of the label's training documents. tau, of 0 to 0.7, has the best mean of P@1, P@3 and P@5 on dev.
`--final` takes it from the kept row of dev, so run without `--final` first. p is what each system says:

* omikuji, PECOS and napkinXC return probabilities: products along the path to a label. A node's factor is
  exp(-max(0, 1 - margin)^2) in omikuji and exp(-max(0, 1 - margin)^3) in PECOS, of trees and of one-vs-rest.
  In napkinXC it is a logistic function.
* scikit-learn returns margins. Squared hinge loss is least where margin = 2p - 1. The logistic function of
  2 margin touches this line at p = 1/2, and its logarithm goes on beyond margins of -1 and 1.
* Neighbours: p is proportional to the sum of cosines. Popularity: to n + 1.
* mach_ext: the logistic function of its logits. SVMs have log probabilities already. Its first column has its
  own adjustment where it has hidden layers, so its second column has tau more.

Times are CPU seconds of the process, so that other jobs on the machine count little. With more than one
thread they are the sum over threads. `ms a document` is of asking for the top 50. `--keep-times` leaves the
times of the former row as they are, for a machine that others keep busy. Bytes: the model's folder as the
system itself writes it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from harness import RESULTS, circumstances, write_rows
from harness.record import read_rows
from studies.rankings import Ranking, best, choose_tau, filled, log_sigmoid, logs, of_pairs, second_column

import mach_ext
from mach_ext import data, metrics, svm, training

K = 50  # labels asked for, in the first column
CANDIDATES = 200  # labels that are ranked again
SINGLE = 200  # documents asked one by one, for their time
BATCH = 2000  # documents asked at a time, for their time
TIMES = ("training_seconds", "ms_single", "ms_batch", "circumstances")
FILE = RESULTS / "peers.csv"

Predict = Callable[[sp.csr_matrix, int], Ranking]  # documents, k -> the k best labels of each


@dataclass(frozen=True)
class System:
    """`train` learns from X and Y, writes its model into a folder that does not exist, returns `Predict`."""

    package: str
    train: Callable[..., Predict]  # (X, Y, folder, threads, **settings)
    settings: dict[str, Any] = field(default_factory=dict)
    most_labels: int | None = None  # where it is not worth the wait beyond


# --------------------------------------------------------------------------------------------- the systems


def unit(X: sp.csr_matrix) -> sp.csr_matrix:
    """Rows of length 1, which omikuji and napkinXC make of them by themselves, and the others expect."""
    X = sp.csr_matrix(X, dtype=np.float32, copy=True)
    X.data /= np.repeat(data.row_lengths(X), np.diff(X.indptr))
    X.sort_indices()
    return X


def omikuji(X: sp.csr_matrix, Y: sp.csr_matrix, folder: Path, threads: int, **settings: Any) -> Predict:
    """Partitioned label trees. They refuse documents without features, which teach a linear model nothing."""
    import omikuji

    hyper_param = omikuji.Model.default_hyper_param()
    for name, value in settings.items():
        setattr(hyper_param, name, value)
    kept = np.flatnonzero(np.diff(X.indptr))
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        data.write_xmc(file.name, X[kept], Y[kept])
        model = omikuji.Model.train_on_data(file.name, hyper_param, threads)
    model.save(str(folder))
    model.init_prediction_thread_pool(threads)

    def predict(X: sp.csr_matrix, k: int) -> Ranking:
        documents = (X[n] for n in range(X.shape[0]))
        pairs = (list(zip(x.indices.tolist(), x.data.tolist(), strict=True)) for x in documents)
        return of_pairs([model.predict(p, top_k=k) for p in pairs], k)

    return predict


def pecos(
    X: sp.csr_matrix,
    Y: sp.csr_matrix,
    folder: Path,
    threads: int,
    tree: bool = True,
    beam_size: int = 10,
    **settings: Any,
) -> Predict:
    """XR-Linear of PECOS, or with `tree=False` its solver's one-vs-rest (DiSMEC's loss and pruning)."""
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    X, clusters = unit(X), None
    if tree:
        embedding = LabelEmbeddingFactory.create(Y.astype(np.float32), X, method="pifa")
        clusters = Indexer.gen(embedding, threads=threads)
    model = XLinearModel.train(X, Y.astype(np.float32), C=clusters, threads=threads, **settings)
    model.save(str(folder))
    model = XLinearModel.load(str(folder), is_predict_only=True)
    asked = {"beam_size": beam_size, "threads": threads}
    return lambda X, k: best(model.predict(unit(X), only_topk=k, **asked), k)


def napkinxc(X: sp.csr_matrix, Y: sp.csr_matrix, folder: Path, threads: int, **settings: Any) -> Predict:
    """Probabilistic label trees of napkinXC."""
    from napkinxc.models import PLT

    model = PLT(str(folder), threads=threads, **settings)
    model.fit(X, Y)
    return lambda X, k: of_pairs(model.predict_proba(X, top_k=k), k)


def neighbours(X: sp.csr_matrix, Y: sp.csr_matrix, folder: Path, threads: int, n: int = 20) -> Predict:
    """The labels of the n nearest training documents by cosine, each with the sum of its cosines."""
    X = unit(X)
    near = mach_ext.Neighbors(X, Y, n)
    folder.mkdir()
    sp.save_npz(folder / "X.npz", X, compressed=False)
    sp.save_npz(folder / "Y.npz", Y, compressed=False)
    return lambda X, k: best((near.nearest(X) @ Y).tocsr(), k)


def popularity(X: sp.csr_matrix, Y: sp.csr_matrix, folder: Path, threads: int) -> Predict:
    """The most frequent labels, for every document."""
    counts = np.bincount(Y.indices, minlength=Y.shape[1])
    labels = np.argsort(-counts, kind="stable")
    scores = logs((counts[labels] + 1) / (X.shape[0] + 1))
    folder.mkdir()
    np.save(folder / "labels.npy", labels[:K])
    return lambda X, k: Ranking(*(np.tile(row[:k], (X.shape[0], 1)) for row in (labels, scores)))


def one_vs_rest(X: sp.csr_matrix, Y: sp.csr_matrix, folder: Path, threads: int, **settings: Any) -> Predict:
    """scikit-learn's LinearSVC for each label that occurs."""
    from sklearn.svm import LinearSVC

    X, labels, columns = unit(X), np.unique(Y.indices), Y.tocsc()
    folder.mkdir()
    weight = np.zeros((X.shape[1] + 1, labels.size), np.float32)
    for j, label in enumerate(labels):
        svm = LinearSVC(**settings).fit(X, columns[:, label].toarray().ravel() > 0)
        weight[:-1, j], weight[-1, j] = svm.coef_[0], svm.intercept_[0]
    np.save(folder / "weight.npy", weight)

    def predict(X: sp.csr_matrix, k: int) -> Ranking:
        margins = unit(X) @ weight[:-1] + weight[-1]
        order = np.argsort(-margins, axis=1, kind="stable")[:, :k]
        return Ranking(labels[order], log_sigmoid(np.take_along_axis(margins, order, axis=1), slope=2))

    return predict


Rows = Callable[[sp.csr_matrix], sp.csr_matrix]  # what becomes of the documents before a model sees them


def top(model: mach_ext.MACH, rows: Rows = unit) -> Predict:
    return lambda X, k: of_model(model, *model.predict(rows(X), min(k, model.num_labels)))


def of_model(model: mach_ext.MACH, scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Ranking:
    """A ranking of what `MACH.predict` returned."""
    if model.merge not in ("mean_logit", "mean_logprob"):
        raise ValueError(f"of_model: merge must be mean_logit or mean_logprob, got {model.merge!r}")
    return Ranking(labels, log_sigmoid(scores) if model.merge == "mean_logit" else scores.astype(np.float64))


def mach(
    X: sp.csr_matrix,
    Y: sp.csr_matrix,
    folder: Path,
    threads: int,
    candidates: int | None = None,
    step: float | None = None,
    as_given: bool = False,
    **settings: Any,
) -> Predict:
    """mach_ext with `training.default_sizes`, but for what is given. Small gradients are skipped.

    The model in the folder, compressed where there is a step, is the one that answers. With `candidates`, so
    many are re-ranked by the nearest training documents, which then are part of the model. `as_given` leaves
    the lengths of the documents as they are, as `mach-ext train` does.
    """
    rows: Rows = sp.csr_matrix if as_given else unit
    chosen = {**training.default_sizes(*X.shape, Y.shape[1]), **settings}
    epochs = chosen.pop("epochs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        model = mach_ext.MACH(X.shape[1], Y.shape[1], **chosen)
        mach_ext.fit(model, rows(X), Y, epochs=epochs, gradient_threshold=0.003, progress=False)
        model.save(folder, step)
        model = mach_ext.load(folder)
    if candidates is None:
        return top(model, rows)
    near = mach_ext.Neighbors(X, Y)
    for name, matrix in (("X.npz", X), ("Y.npz", Y)):
        sp.save_npz(folder / name, sp.csr_matrix(matrix), compressed=step is not None)

    def predict(X: sp.csr_matrix, k: int) -> Ranking:
        ranked = near.rerank(X, *model.predict(rows(X), min(candidates, Y.shape[1])))
        return of_model(model, *(part[:, :k] for part in ranked))

    return predict


def svms(
    X: sp.csr_matrix, Y: sp.csr_matrix, folder: Path, threads: int, step: float | None = None, **sizes: int
) -> Predict:
    """mach_ext with a support vector machine for each bucket."""
    sizes = {**svm.default_svm_sizes(Y.shape[1]), **sizes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        model = mach_ext.MACH(X.shape[1], Y.shape[1], **sizes, hidden_size=0, merge="mean_logprob")
        mach_ext.fit_svm(model, unit(X), Y, progress=False)
        model.save(folder, step)
        model = mach_ext.load(folder)
    return top(model)


SHARED = {"num_repetitions": 8, "hidden_size": 512, "encoder": "shared"}

# Bonsai's settings are those of omikuji's README. Without a name in brackets: the package's defaults.
SYSTEMS = {
    "omikuji (Parabel)": System("omikuji", omikuji),
    "omikuji (Bonsai)": System(
        "omikuji", omikuji, {"cluster_balanced": False, "cluster_k": 100, "max_depth": 3}
    ),
    "PECOS XR-Linear": System("libpecos", pecos),
    "PECOS XR-Linear (tuned)": System(
        "libpecos", pecos, {"beam_size": 50, "negative_sampling_scheme": "tfn+man"}
    ),
    "PECOS one-vs-rest": System("libpecos", pecos, {"tree": False}, most_labels=5000),
    "napkinXC PLT": System("napkinxc", napkinxc),
    "scikit-learn one-vs-rest": System("scikit-learn", one_vs_rest, most_labels=1300),
    "20 nearest neighbours": System("scipy", neighbours),
    "popularity": System("numpy", popularity),
    "mach_ext": System("mach_ext", mach),
    "mach_ext and neighbours": System("mach_ext", mach, {"candidates": 200}),
    "mach_ext (rows as given)": System("mach_ext", mach, {"as_given": True}),
    "mach_ext (rows as given) and neighbours": System(
        "mach_ext", mach, {"as_given": True, "candidates": 200}
    ),
    "mach_ext (compressed)": System("mach_ext", mach, {"step": 0.5}),
    "mach_ext (compressed) and neighbours": System("mach_ext", mach, {"step": 0.5, "candidates": 200}),
    "mach_ext (rows as given, compressed)": System("mach_ext", mach, {"as_given": True, "step": 0.5}),
    "mach_ext (SVM)": System("mach_ext", svms),
    "mach_ext (SVM, compressed)": System("mach_ext", svms, {"step": 0.8}),
    "mach_ext (SVM, R 8, B 1024)": System("mach_ext", svms, {"num_buckets": 1024}),
    "mach_ext (SVM, R 8, B 256)": System("mach_ext", svms, {"num_buckets": 256}),
    "mach_ext (R 4, B 512, compressed)": System(
        "mach_ext", mach, {"num_repetitions": 4, "num_buckets": 512, "step": 0.5}
    ),
    "mach_ext (R 4)": System("mach_ext", mach, {"num_repetitions": 4}),
    "mach_ext (R 4, B 512)": System("mach_ext", mach, {"num_repetitions": 4, "num_buckets": 512}),
    "mach_ext (R 8)": System("mach_ext", mach, {"num_repetitions": 8, "hidden_size": 256}),
    "mach_ext (R 4, B 16)": System("mach_ext", mach, {"num_repetitions": 4, "num_buckets": 16}),
    "mach_ext (R 8, B 256)": System("mach_ext", mach, {"num_repetitions": 8, "num_buckets": 256}),
    "mach_ext (B 4096)": System("mach_ext", mach, {"num_buckets": 4096}),
    "mach_ext (R 8, B 1024)": System("mach_ext", mach, {"num_repetitions": 8, "num_buckets": 1024}),
    "mach_ext (R 16, B 256)": System("mach_ext", mach, {"num_repetitions": 16, "num_buckets": 256}),
    "mach_ext (R 16, B 1024)": System("mach_ext", mach, {"num_repetitions": 16, "num_buckets": 1024}),
    "mach_ext (shared H 512)": System("mach_ext", mach, SHARED),
    "mach_ext (shared H 1024)": System("mach_ext", mach, {**SHARED, "hidden_size": 1024}),
    "mach_ext (R 4, shared H 512)": System("mach_ext", mach, {**SHARED, "num_repetitions": 4}),
    "mach_ext (R 4, B 512, shared H 512)": System(
        "mach_ext", mach, {**SHARED, "num_repetitions": 4, "num_buckets": 512}
    ),
    "mach_ext (R 4, B 1024, shared H 1024)": System(
        "mach_ext", mach, {**SHARED, "num_repetitions": 4, "num_buckets": 1024, "hidden_size": 1024}
    ),
}


# ------------------------------------------------------------------------------------------------- the run


def load(name: str, final: bool) -> tuple[data.Dataset, dict[str, data.Split]]:
    """The dataset, whose train is learnt from, and the splits to ask."""
    dataset = data.load(name, holdout=not final)
    asked = {name: split for name, split in dataset.splits.items() if name != "train"}
    if final:
        return dataset, asked if "test" in asked else {"test": asked["dev"]}
    if dataset.test is None:  # dev is the last word
        N = len(dataset.train)
        order = np.random.default_rng(0).permutation(N)
        held, rest = np.sort(order[: N // 10]), np.sort(order[N // 10 :])
        return replace(dataset, train=dataset.train.take(rest)), {"dev": dataset.train.take(held)}
    return dataset, {"dev": asked["dev"]}


def measure(
    system: System,
    train: data.Split,
    asked: dict[str, data.Split],
    threads: int,
    tau: float | None,
    timed: bool,
) -> dict[str, dict[str, Any]]:
    """Trains a system and asks it. There is a result for each split.

    Where dev is asked, tau is chosen on it. Without dev and tau there is no second column.
    """
    q, counts = metrics.inverse_propensity(train.Y), metrics.label_counts(train.Y)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "model"
        start = time.process_time()
        predict = system.train(train.X, train.Y, folder, threads, **system.settings)
        about: dict[str, Any] = {"training_seconds": time.process_time() - start}
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        times = {name: ask_times(predict, split.X) if timed else {} for name, split in asked.items()}
        rankings = {name: filled(predict(split.X, CANDIDATES), CANDIDATES) for name, split in asked.items()}
    if "dev" in asked:
        tau = choose_tau(asked["dev"].Y, rankings["dev"], counts)
    results = {}
    for name, split in asked.items():
        first = metrics.evaluate(split.Y, rankings[name].labels[:, :K], (1, 3, 5), (K,), q)
        second = {} if tau is None else second_column(split.Y, rankings[name], counts, tau, q)
        sizes = {"documents": len(train), "asked": len(split), "bytes": size}
        results[name] = sizes | first | about | times[name] | second
    return results


def ask_times(predict: Predict, X: sp.csr_matrix) -> dict[str, float]:
    """CPU milliseconds of a document that is asked by itself, and of one among many."""
    some, single = (
        X[np.linspace(0, X.shape[0] - 1, min(n, X.shape[0])).astype(int)] for n in (BATCH, SINGLE)
    )
    start = time.process_time()
    predict(some, K)
    batch = (time.process_time() - start) / some.shape[0]
    documents = [single[n] for n in range(single.shape[0])]
    start = time.process_time()
    for x in documents:
        predict(x, K)
    alone = (time.process_time() - start) / len(documents)
    return {"ms_single": alone * 1e3, "ms_batch": batch * 1e3}


def kept_row(dataset: str, split: str, system: str) -> dict[str, str]:
    """The kept result of this name, or nothing."""
    key = {"dataset": dataset, "split": split, "system": system}
    return next((row for row in read_rows(FILE) if key.items() <= row.items()), {})


def kept_tau(dataset: str, system: str) -> float | None:
    """tau as it was chosen on dev, or None where that was not done."""
    tau = kept_row(dataset, "dev", system).get("tau")
    return float(tau) if tau else None


def run(dataset: data.Dataset, asked: dict[str, data.Split], name: str, args: argparse.Namespace) -> None:
    """Measures one system, and puts its results into the file."""
    system = SYSTEMS[name]
    former = {split: kept_row(dataset.name, split, name) for split in asked}
    timed = not (args.keep_times and all(former.values()))
    tau = kept_tau(dataset.name, name)
    results = measure(system, dataset.train, asked, args.threads, tau, timed)
    about = {"package": f"{system.package} {version(system.package)}", "settings": system.settings}
    about |= {"threads": args.threads}
    for split, result in results.items():
        key = {"dataset": dataset.name, "split": split, "system": name}
        times = circumstances(RESULTS) if timed else {column: former[split][column] for column in TIMES}
        write_rows(FILE, [key | about | result | times], list(key))
        print(
            f"{dataset.name}, {split}, {name}: P@1/3/5 {precisions(result)}, "
            f"{result['training_seconds']:.1f} s, {result['bytes'] / 1e6:.1f} MB, "
            + (
                f"adjusted {precisions(result, 'adjusted ')}, tau {result['tau']}" if "tau" in result else "-"
            ),
            flush=True,
        )


def precisions(result: dict[str, Any], prefix: str = "") -> str:
    return " / ".join(f"{100 * result[f'{prefix}P@{k}']:.2f}" for k in (1, 3, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", help="a name or a folder")
    parser.add_argument("systems", nargs="*", help=f"of {', '.join(SYSTEMS)} (all)")
    parser.add_argument("--final", action="store_true", help="see above")
    parser.add_argument("--keep-times", action="store_true", help="see above")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_intermixed_args()
    for name in args.systems:
        if name not in SYSTEMS:
            parser.error(f"unknown system {name!r}; known: {', '.join(SYSTEMS)}")
    torch.set_num_threads(args.threads)
    dataset, asked = load(args.dataset, args.final)
    for name in args.systems or SYSTEMS:
        most = SYSTEMS[name].most_labels
        if args.systems or most is None or dataset.num_labels <= most:
            run(dataset, asked, name, args)


if __name__ == "__main__":
    main()

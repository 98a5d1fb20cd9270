"""Evaluation of attacks: metrics of documents, clean and adversarial, over a grid of epsilon."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext._memory import memory_errors
from mach_ext._progress import tqdm
from mach_ext.attack._base import Attack
from mach_ext.attack.goals import NEAREST, check_true_labels, first_label, goal_k, is_true
from mach_ext.attack.greedy import Greedy
from mach_ext.attack.methods import attack as _named
from mach_ext.attack.noise import Random
from mach_ext.attack.threats import ThreatModel
from mach_ext.attack.threats import threat_model as _threat
from mach_ext.data import check_csr, check_labels
from mach_ext.metrics import KS, without_filtered
from mach_ext.nn import MACH, checked_k


@memory_errors("pass fewer documents or epsilons")
def evaluate(
    model: MACH,
    X: Any,
    Y: Any,
    *,
    attack: str = "fgsm",
    threat_model: str | ThreatModel = "support",
    epsilons: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    goal: str = "untargeted",
    targeted: bool = False,
    ks: Sequence[int] | None = None,
    k: int | None = None,
    inverse_propensity: Any = None,
    bands: Any = None,
    transfer: MACH | None = None,
    steps: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    truth: Any = None,
    filtered: Any = None,
    progress: bool = False,
) -> dict[str, Any]:
    """P@k, nDCG@k and PSP@k of documents, clean and adversarial, over a grid of epsilon.

    Beside each adversarial result stands that of noise of the same threat model and size. Memory: a batch of
    documents at a time.

    Args:
        model, X, Y: As for the attacks.
        attack: "fgsm", "pgd", "delete" (words, threat model delete) or "insert" (words, insert(m)).
        threat_model: Object or name.
        epsilons: The grid.
        goal: What the attack is after: "untargeted" or "own".
        targeted: Also both targeted goals: how many documents lose their best right label from the top k, by
            band of that label; how many get a wrong label of each band into it, the best-ranked one of the
            first 100.
        ks: Of the metrics. None: of 1, 3, 5 those up to k, and k.
        k: Of the goals. None: 5; with fewer labels L, or L - 1 if `targeted`, whose goals need a label that
            is outside the top k.
        inverse_propensity: [L], for PSP.
        bands: name -> booleans [L], as of `metrics.label_frequency_bands`.
        transfer: Another model, as one with other hash seeds, asked for the same adversarial documents.
        steps: Of "pgd".
        resamples: Of documents, for the 95 % intervals; 0: none.
        seed: Of noise and of resampling.
        truth: [N, L + U], what the metrics take for true in place of Y: with labels that the model does not
            know in the last U columns. `inverse_propensity` is [L + U] then.
        filtered: [N, L], non-zero where a label must not be answered, as of `metrics.without_filtered`.
        progress: Shows a bar.

    Returns:
        {"clean": METRICS, "transfer_clean": METRICS of the other model, "adversarial": [{"epsilon",
        "metrics": METRICS, "random": METRICS, "transfer": METRICS, "size": mean norms and non-zeros added and
        removed, "loss", "clean_loss", "targeted": {goal: {band: {"success", "documents"}}}}], ...}; METRICS:
        {"P@1": value, "P@1 interval": [low, high], ...}.

    Raises:
        TypeError, ValueError: As the attacks; no documents; a transfer model of other features or labels.
    """
    op = "evaluate"
    threat = _threat(threat_model)
    if attack not in ("fgsm", "pgd", "delete", "insert"):
        raise ValueError(f"{op}: attack must be fgsm, pgd, delete or insert, got {attack!r}")
    grid = [float(e) for e in epsilons]
    if not grid:
        raise ValueError(f"{op}: epsilons must be at least one number")
    k = goal_k(op, model, "positive" if targeted else goal, k)
    if ks is None:
        ks = [one for one in dict.fromkeys((*KS, k)) if one <= k]
    ks = [checked_k(op, one, model.num_labels) for one in ks]
    goals = [goal, *(("positive", "negative") if targeted else ())]
    if transfer is not None:
        sizes_of = [(m.num_features, m.num_labels) for m in (model, transfer)]
        if sizes_of[0] != sizes_of[1]:
            raise ValueError(
                f"{op}: transfer must have the model's (features, labels) {sizes_of[0]}, got {sizes_of[1]}"
            )
    attacks = [_named(attack, model, threat, one, k, seed, steps) for one in goals]
    X = check_csr(X, f"{op}: X")
    if X.shape[0] == 0:
        raise ValueError(f"{op}: X must have at least one document, got N=0")
    Y = check_true_labels(op, model, goal, X, Y)
    if Y is None:
        raise ValueError(f"{op}: needs the true labels Y")
    truth = Y if truth is None else check_labels(truth, f"{op}: truth")
    filtered = None if filtered is None else check_labels(filtered, f"{op}: filtered")
    q = None if inverse_propensity is None else np.asarray(inverse_propensity, np.float64)
    N = X.shape[0]
    surplus = 0 if filtered is None else int(np.diff(filtered.indptr).max(initial=0))
    asked = min(max((*ks, k)) + surplus, model.num_labels)

    def measure(labels: NDArray[Any], rows: slice) -> NDArray[np.float64]:
        if filtered is not None:
            labels = without_filtered(labels, filtered[rows])
        return _by_document(truth[rows], labels, ks, q)

    bands = {"all": np.ones(model.num_labels, bool), **(bands or {})}

    columns: list[list[NDArray[np.float64]]] = [[] for _ in range(2 + 3 * len(grid))]  # transfer, clean: last
    sizes: list[list[dict[str, NDArray[np.float64]]]] = [[] for _ in grid]
    won: dict[tuple[str, str, int], list[NDArray[Any]]] = {}
    batch = attacks[0].batch_size
    with tqdm(total=N, unit="doc", disable=not progress, dynamic_ncols=True) as bar:
        for start in range(0, N, batch):
            rows = slice(start, start + batch)
            x, y = X[rows], Y[rows]
            found = attacks[0].perturb(x, y, grid)
            words = isinstance(attacks[0], Greedy)
            noise = Random(model, threat, goal, k, words=words, seed=seed + start).perturb(x, y, grid)
            clean = measure(model.predict(x, asked)[1], rows)
            columns[0].append(clean)
            if transfer is not None:
                columns[-1].append(measure(transfer.predict(x, asked)[1], rows))
            for i, (changed, random) in enumerate(zip(found, noise, strict=True)):
                for place, each in ((1 + i, changed), (1 + len(grid) + i, random)):
                    columns[place].append(measure(each.predict(asked)[1], rows) if grid[i] else clean)
                if transfer is not None:
                    labels = changed.predict(asked, transfer)[1]
                    columns[1 + 2 * len(grid) + i].append(measure(labels, rows))
                sizes[i].append(
                    {**changed.norms, "loss": changed.loss, "clean_loss": changed.clean_loss,
                     "random_l2": random.norms["l2"]}
                )  # fmt: skip
            for one in attacks[1:]:
                for band, chosen in _aims(one, x, y, bands):
                    for i, changed in enumerate(one.perturb(x, y, grid, targets=chosen)):
                        inside = (changed.predict(k)[1] == changed.targets[:, None]).any(1)
                        success = inside if one.goal == "negative" else ~inside
                        outcome = np.stack((changed.targets, success))
                        won.setdefault((one.goal, band, i), []).append(outcome)
            bar.update(x.shape[0])
    names = [f"{name}@{one}" for name in ("P", "nDCG", "PSP")[: 3 if q is not None else 2] for one in ks]
    everything = _summaries(columns, names, len(ks), resamples, seed)
    results = []
    for i, epsilon in enumerate(grid):
        parts = {name: np.concatenate([s[name] for s in sizes[i]]) for name in sizes[i][0]}
        means = {name: float(part.mean()) for name, part in parts.items()}
        entry: dict[str, Any] = {
            "epsilon": epsilon,
            "metrics": everything[1 + i],
            "random": everything[1 + len(grid) + i],
            "loss": means.pop("loss"),
            "clean_loss": means.pop("clean_loss"),
            "size": means,
        }
        if transfer is not None:
            entry["transfer"] = everything[1 + 2 * len(grid) + i]
        if targeted:
            entry["targeted"] = {}
            for aim in ("positive", "negative"):
                entry["targeted"][aim] = {
                    name: _rate(np.concatenate(won[aim, name if aim == "negative" else "all", i], 1), band)
                    for name, band in bands.items()
                }
        results.append(entry)
    result = {
        "attack": attack,
        "threat_model": str(threat),
        "nonnegative": threat.nonnegative,
        "goal": goal,
        "k": k,
        "steps": steps if attack == "pgd" else None,
        "seed": seed,
        "documents": N,
        "clean": everything[0],
        "adversarial": results,
    }
    return result if transfer is None else {**result, "transfer_clean": everything[-1]}


def _aims(one: Attack, X: Any, Y: Any, bands: Any) -> Iterator[tuple[str, NDArray[np.int64] | None]]:
    """Targets of a goal: one run for "positive", one a band for "negative"."""
    if one.goal == "positive":
        yield "all", None
        return
    ranked = one.model.predict(X, min(one.model.num_labels, max(NEAREST, one.k + 1)))[1]
    false = ~is_true(Y, ranked)
    false[:, : one.k] = False
    for name, band in bands.items():
        yield name, first_label(ranked, false & np.asarray(band)[ranked])


def _rate(won: NDArray[Any], band: Any) -> dict[str, float]:
    targets, success = won
    inside = (targets >= 0) & np.asarray(band)[np.maximum(targets, 0)]
    count = int(inside.sum())
    return {"success": float(success[inside].mean()) if count else math.nan, "documents": count}


def _by_document(Y: Any, labels: NDArray[Any], ks: Sequence[int], q: Any) -> NDArray[np.float64]:
    """Columns a document: P, nDCG at each k; with q also numerators and denominators of PSP."""
    hits = is_true(Y, labels).astype(np.float64)
    discount = 1 / np.log2(np.arange(labels.shape[1]) + 2)
    ideal = np.concatenate(([1.0], np.cumsum(1 / np.log2(np.arange(max(ks)) + 2))))  # [count]
    counts = np.diff(Y.indptr)
    columns = [hits[:, :k].sum(1) / k for k in ks]
    columns += [hits[:, :k] @ discount[:k] / ideal[np.minimum(counts, k)] for k in ks]
    if q is not None:
        rows = np.repeat(np.arange(Y.shape[0]), counts)
        order = np.lexsort((-q[Y.indices], rows))
        rank = np.arange(len(rows)) - np.repeat(Y.indptr[:-1], counts)
        weights = q[Y.indices[order]]
        columns += [(hits * q[labels])[:, :k].sum(1) for k in ks]
        columns += [np.bincount(rows, weights * (rank < k), minlength=Y.shape[0]) for k in ks]
    return np.stack(columns, 1)


def _summaries(
    columns: list[list[NDArray[np.float64]]], names: list[str], num_ks: int, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Metrics of each column set with the 2.5 and 97.5 % quantiles over resampled documents."""
    tables = [np.concatenate(parts) if parts else None for parts in columns]
    wide = np.concatenate([t for t in tables if t is not None], 1)
    N = len(wide)
    rng = np.random.default_rng(seed)
    totals = [wide.mean(0, keepdims=True)]
    for begin in range(0, resamples, 50):
        draws = rng.integers(0, N, (min(50, resamples - begin), N))
        weights = np.stack([np.bincount(draw, minlength=N) for draw in draws])
        totals.append(weights @ wide / N)
    sums = np.concatenate(totals)  # [1 + resamples, columns]
    results: list[dict[str, Any]] = []
    at = 0
    for table in tables:
        if table is None:
            results.append({})
            continue
        part, at = sums[:, at : at + table.shape[1]], at + table.shape[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = part[:, 2 * num_ks : 3 * num_ks] / part[:, 3 * num_ks :]
        values = np.concatenate((part[:, : 2 * num_ks], ratios), 1)
        entry: dict[str, Any] = {}
        for j, name in enumerate(names):
            entry[name] = float(values[0, j])
            if len(values) > 1:
                low, high = np.quantile(values[1:, j], (0.025, 0.975))
                entry[f"{name} interval"] = [float(low), float(high)]
        results.append(entry)
    return results

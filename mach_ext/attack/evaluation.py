"""Evaluation of attacks: metrics of documents, clean and adversarial, over a grid of epsilon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mach_ext._deprecation import renamed_argument
from mach_ext._memory import memory_errors
from mach_ext._progress import tqdm
from mach_ext.attack._scores import Truth
from mach_ext.attack._tally import Settings, Tally
from mach_ext.attack.goals import check_true_labels, goal_k
from mach_ext.attack.methods import METHODS
from mach_ext.attack.threats import ThreatModel, threat_model
from mach_ext.data import check_csr, check_labels
from mach_ext.metrics import KS
from mach_ext.nn import MACH, checked_k


@renamed_argument("attack", "method")
@memory_errors("pass fewer documents or epsilons")
def evaluate(
    model: MACH,
    X: Any,
    Y: Any,
    *,
    method: str = "fgsm",
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
        method: "fgsm", "pgd", "delete" (words, threat model delete) or "insert" (words, insert(m)).
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
    threat = _threat_of(op, method, threat_model)
    grid = [float(e) for e in epsilons]
    if not grid:
        raise ValueError(f"{op}: epsilons must be at least one number")
    k = goal_k(op, model, "positive" if targeted else goal, k)
    ks = _metric_ks(op, ks, k, model.num_labels)
    _check_transfer(op, model, transfer)
    settings = Settings(model, method, threat, grid, goal, targeted, k, transfer, steps, seed)
    attacks = settings.attacks()
    X = check_csr(X, f"{op}: X")
    if X.shape[0] == 0:
        raise ValueError(f"{op}: X must have at least one document, got N=0")
    Y = check_true_labels(op, model, goal, X, Y)
    if Y is None:
        raise ValueError(f"{op}: needs the true labels Y")
    scored = Truth(
        Y if truth is None else check_labels(truth, f"{op}: truth"),
        None if filtered is None else check_labels(filtered, f"{op}: filtered"),
        None if inverse_propensity is None else np.asarray(inverse_propensity, np.float64),
        ks,
    )
    bands = {"all": np.ones(model.num_labels, bool), **(bands or {})}
    tally = Tally(settings, attacks, scored, bands)
    with tqdm(total=X.shape[0], unit="doc", disable=not progress, dynamic_ncols=True) as bar:
        for start in range(0, X.shape[0], attacks[0].batch_size):
            rows = slice(start, start + attacks[0].batch_size)
            x = X[rows]
            tally.add(x, Y[rows], rows)
            bar.update(x.shape[0])
    return tally.result(resamples)


def _threat_of(op: str, method: str, threat: str | ThreatModel) -> ThreatModel:
    """The threat model of an evaluation; the method is one that there is."""
    known = threat_model(threat)
    if method not in METHODS:
        raise ValueError(f"{op}: method must be fgsm, pgd, delete or insert, got {method!r}")
    return known


def _metric_ks(op: str, ks: Sequence[int] | None, k: int, num_labels: int) -> list[int]:
    if ks is None:
        ks = [usual for usual in (*KS, k) if usual <= k]
    return list(dict.fromkeys(checked_k(op, each, num_labels) for each in ks))


def _check_transfer(op: str, model: MACH, transfer: MACH | None) -> None:
    if transfer is None:
        return
    ours, theirs = ((m.num_features, m.num_labels) for m in (model, transfer))
    if ours != theirs:
        raise ValueError(f"{op}: transfer must have the model's (features, labels) {ours}, got {theirs}")

"""Evaluation of attacks: metrics of clean and adversarial documents over a grid of epsilon."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mach_ext._dense_features import checked_documents
from mach_ext._deprecation import renamed_argument
from mach_ext._memory import memory_errors
from mach_ext._progress import tqdm
from mach_ext._user_encoder import Encoder
from mach_ext.attack._models import attacked_model, threat_of
from mach_ext.attack._scores import Truth
from mach_ext.attack._tally import Settings, Tally
from mach_ext.attack.goals import check_true_labels, goal_k
from mach_ext.attack.methods import METHODS
from mach_ext.attack.threats import ThreatModel
from mach_ext.data import HybridMatrix, check_labels
from mach_ext.distributed import current_ranks
from mach_ext.head import MACHHead
from mach_ext.metrics import KS
from mach_ext.nn import MACH, checked_k


@renamed_argument("attack", "method")
@memory_errors("pass fewer documents or epsilons")
def evaluate(
    model: MACH | MACHHead,
    X: Any,
    Y: Any,
    *,
    encoder: Encoder | None = None,
    method: str = "fgsm",
    threat_model: str | ThreatModel = "support",
    epsilons: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    goal: str = "untargeted",
    targeted: bool = False,
    ks: Sequence[int] | None = None,
    k: int | None = None,
    inverse_propensity: Any = None,
    bands: Any = None,
    transfer: MACH | MACHHead | None = None,
    steps: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    truth: Any = None,
    filtered: Any = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures P@k, nDCG@k and PSP@k of clean and adversarial documents over a grid of epsilon.

    Random noise of the same threat model and size is measured for comparison. The documents are processed
    batch by batch, so memory does not grow with N. Processes that work together share the batches.

    The result is a dictionary. METRICS stands for a dictionary like `{"P@1": value, "P@1 interval": [low,
    high], ...}`.

    * "clean" holds METRICS of the clean documents.
    * "adversarial" is a list with an entry for each epsilon. An entry has the keys below.
    * "transfer_clean" holds METRICS of the other model, if there is one.
    * Further keys repeat the settings.

    An entry of "adversarial" has these keys.

    * "epsilon" is the size.
    * "metrics" holds METRICS of the adversarial documents, and "random" those of the noise. "transfer" holds
      those of the other model on the adversarial documents.
    * "loss" and "clean_loss" are means over documents.
    * "size" holds mean norms of the change, and mean numbers of features added and removed.
    * "targeted" maps goal and band to `{"success": rate, "documents": count}`.

    Args:
        model: The model, or a head as in `FGSM`.
        X: Documents [N, D], a SciPy, NumPy or torch matrix. For a model with dense features, a
            `mach_ext.data.HybridMatrix`. With `encoder`, its inputs as in `FGSM.perturb`.
        Y: True labels [N, L], a SciPy, NumPy or torch matrix.
        encoder: The encoder before a head, as in `FGSM`. There are no words to delete or insert.
        method: "fgsm" or "pgd", or "delete" or "insert" for words. "delete" needs the threat model delete,
            and "insert" needs insert(m).
        threat_model: A threat model or its name. For a head, a name allows values below 0.
        epsilons: The grid of sizes.
        goal: "untargeted" or "own".
        targeted: Also measure both targeted goals, by frequency band of the label. "positive" counts how
            often the best right label leaves the top k. "negative" counts how often a wrong label of a band
            enters it. This label is the best-ranked of the first 100 labels.
        ks: The k of the metrics. None: those of 1, 3, 5 that are at most k, and k itself.
        k: Size of the top k in the goals. None: 5, or L if there are fewer labels. With `targeted` it is at
            most L - 1, because a label must be outside the top k.
        inverse_propensity: Inverse propensities [L] for PSP. None: no PSP.
        bands: Maps a name to booleans [L], as `metrics.label_frequency_bands` returns them.
        transfer: Another model or head that labels the same adversarial documents, such as a model with other
            hash seeds. With `encoder` there is none.
        steps: Steps of "pgd".
        resamples: Number of resamples for the 95 % intervals. 0: no intervals.
        seed: Seed of noise and resampling.
        truth: Labels [N, L + U] that the metrics use as true instead of Y. The last U columns are labels that
            the model does not know. `inverse_propensity` is [L + U] then.
        filtered: An entry [N, L] is not 0 if a label must not count as an answer, as in
            `metrics.without_filtered`.
        progress: Show a progress bar.

    Returns:
        The dictionary, ready for JSON.

    Raises:
        TypeError: As the attacks.
        ValueError: As the attacks, or there is no document, or `transfer` has other features or labels.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> Y = sparse.eye(6, format="csr")  # document i has label i
        >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
        >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> result = mach_ext.attack.evaluate(model, X, Y, epsilons=[0.25, 0.5], k=1, resamples=0)
        >>> result["clean"]["P@1"]
        1.0
        >>> for entry in result["adversarial"]:
        ...     attacked, noise = entry["metrics"]["P@1"], entry["random"]["P@1"]
        ...     print(f"eps {entry['epsilon']}: P@1 {attacked:.2f} attacked, {noise:.2f} with noise")
        eps 0.25: P@1 1.00 attacked, 1.00 with noise
        eps 0.5: P@1 0.17 attacked, 0.83 with noise
    """
    op = "evaluate"
    threat = _threat_of(op, method, model if encoder is None else None, threat_model)
    model = attacked_model(op, model, encoder)
    grid = [float(e) for e in epsilons]
    if not grid:
        raise ValueError(f"{op}: epsilons must be at least one number")
    k = goal_k(op, model, "positive" if targeted else goal, k)
    ks = metric_ks(op, ks, k, model.num_labels)
    transfer = _checked_transfer(op, model, encoder, transfer, X)
    settings = Settings(model, encoder, method, threat, grid, goal, targeted, k, transfer, steps, seed)
    attacks = settings.attacks()
    X = checked_documents(f"{op}: X", model, X) if encoder is None else attacks[0]._layer.documents(op, X)[1]
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
    attacks = [attack._bound(X) for attack in attacks]
    tally = Tally(settings, attacks, scored, bands)
    for rows in _own_batches(X.shape[0], attacks[0]._documents_at_a_time, progress):
        tally.add(X[rows], Y[rows], rows)
    tally.gather(current_ranks())
    return tally.result(resamples)


def _own_batches(count: int, size: int, progress: bool) -> Iterator[slice]:
    """Yields the batches of documents that this process measures, with a progress bar."""
    starts = range(0, count, size)
    own = current_ranks().share(len(starts))
    batches = [slice(start, min(start + size, count)) for start in starts[own.start : own.stop]]
    total = sum(rows.stop - rows.start for rows in batches)
    with tqdm(total=total, unit="doc", disable=not progress, dynamic_ncols=True) as bar:
        for rows in batches:
            yield rows
            bar.update(rows.stop - rows.start)


def _threat_of(op: str, method: str, model: Any, threat: str | ThreatModel) -> ThreatModel:
    """Returns the threat model of an evaluation, and refuses an unknown method."""
    known = threat_of(model, threat)
    if method not in METHODS:
        raise ValueError(f"{op}: method must be fgsm, pgd, delete or insert, got {method!r}")
    return known


def metric_ks(op: str, ks: Sequence[int] | None, k: int, num_labels: int) -> list[int]:
    """Returns the k of the metrics."""
    if ks is None:
        ks = [usual for usual in (*KS, k) if usual <= k]
    return list(dict.fromkeys(checked_k(op, each, num_labels) for each in ks))


def _checked_transfer(op: str, model: Any, encoder: Encoder | None, transfer: Any, X: Any) -> Any:
    """Returns the other model. Refuses one whose numbers of features or labels differ."""
    if transfer is None:
        return None
    if encoder is not None:
        raise ValueError(
            f"{op}: transfer must be None with encoder=; for another encoder and head, decode the inputs of "
            "a perturbation yourself"
        )
    transfer = attacked_model(op, transfer)
    ours, theirs = ((m.num_columns, m.num_labels) for m in (model, transfer))
    if ours != theirs or model.num_dense != transfer.num_dense:
        dense = f", {transfer.num_dense} of the features dense" if ours == theirs else ""
        raise ValueError(
            f"{op}: transfer must have the model's (features, labels) {ours}, got {theirs}{dense}"
        )
    if model.num_dense and not isinstance(X, HybridMatrix):
        raise ValueError(
            f"{op}: X must be a HybridMatrix if transfer is given, because each model centres and scales the "
            f"dense features in its own way, got {type(X).__name__}"
        )
    return transfer

"""Evaluation of attacks that delete words of texts: metrics of clean and adversarial texts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mach_ext._memory import memory_errors
from mach_ext._progress import tqdm
from mach_ext.attack._scores import Truth
from mach_ext.attack._tally import Settings, Tally
from mach_ext.attack._text_model import check_words
from mach_ext.attack.evaluation import metric_ks
from mach_ext.attack.goals import check_true_labels, goal_k
from mach_ext.attack.threats import Delete
from mach_ext.attack.word_deletion import RandomDeletion, WordDeletion
from mach_ext.data import Vectorizer, check_labels
from mach_ext.head import MACHHead
from mach_ext.nn import MACH

_TOGETHER = 64  # texts that are attacked at a time


@dataclass(frozen=True)
class _TextSettings(Settings):
    """The checked arguments of an evaluation of texts."""

    vectorizer: Vectorizer | None = None
    shortlist: int | None = None

    def attacks(self) -> list[Any]:
        """Returns the attack of the goal, followed by those of the targeted goals."""
        goals = [self.goal, *(("positive", "negative") if self.targeted else ())]
        parts = (self.model, self.encoder, self.vectorizer)
        return [WordDeletion(*parts, goal, self.k, shortlist=self.shortlist) for goal in goals]

    def noise(self, start: int) -> Any:
        """Returns the control for the batch that begins at text `start`."""
        parts = (self.model, self.encoder, self.vectorizer)
        return RandomDeletion(*parts, self.goal, self.k, seed=self.seed + start)

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings, ready for JSON."""
        return {
            "attack": "words",
            "threat_model": "words",
            "nonnegative": False,
            "goal": self.goal,
            "k": self.k,
            "steps": None,
            "shortlist": self.shortlist,
            "seed": self.seed,
        }


@memory_errors("pass fewer texts")
def evaluate_texts(
    model: MACH | MACHHead,
    texts: Sequence[str],
    Y: Any,
    *,
    encoder: Any = None,
    vectorizer: Vectorizer | None = None,
    words: Sequence[int] = (1, 2, 3),
    goal: str = "untargeted",
    targeted: bool = False,
    ks: Sequence[int] | None = None,
    k: int | None = None,
    shortlist: int | None = 32,
    inverse_propensity: Any = None,
    bands: Any = None,
    resamples: int = 1000,
    seed: int = 0,
    truth: Any = None,
    filtered: Any = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures P@k, nDCG@k and PSP@k of texts, and of the same texts without their most important words.

    The attack is `WordDeletion`, and the control is `RandomDeletion`. The result has the form of `evaluate`.
    "epsilon" is the number of words. "size" has the mean number of words "removed", and mean norms of the
    change of the joined documents. "seconds" is the time of the whole, and "documents_per_second" follows.

    Args:
        model: The model, or a head on embeddings alone.
        texts: The N texts.
        Y: True labels [N, L], a SciPy, NumPy or torch matrix.
        encoder: As in `WordDeletion`.
        vectorizer: As in `WordDeletion`.
        words: The grid of numbers of words.
        goal: "untargeted" or "own".
        targeted: As in `evaluate`.
        ks: As in `evaluate`.
        k: As in `evaluate`.
        shortlist: As in `WordDeletion`.
        inverse_propensity: As in `evaluate`.
        bands: As in `evaluate`.
        resamples: As in `evaluate`.
        seed: Seed of the control and of resampling.
        truth: As in `evaluate`.
        filtered: As in `evaluate`.
        progress: Show a progress bar.

    Returns:
        The dictionary, ready for JSON.

    Raises:
        TypeError: As `WordDeletion`.
        ValueError: As `WordDeletion`, or there is no text.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> texts = ["a big cat", "a small dog", "a cat", "the dog"]
        >>> vectorizer = mach_ext.data.Vectorizer.fit(texts, min_df=1)
        >>> X, Y = vectorizer.transform(texts), sparse.csr_matrix([[1, 0], [0, 1], [1, 0], [0, 1]])
        >>> model = mach_ext.MACH(X.shape[1], 2, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> result = mach_ext.attack.evaluate_texts(
        ...     model, texts, Y, vectorizer=vectorizer, words=[0, 1], k=1, resamples=0
        ... )
        >>> [entry["size"]["removed"] for entry in result["adversarial"]]
        [0.0, 1.0]
    """
    op = "evaluate_texts"
    grid = [float(count) for count in check_words(op, words)]
    k = goal_k(op, model, "positive" if targeted else goal, k)
    settings = _TextSettings(
        model, encoder, "words", Delete(), grid, goal, targeted, k, None, 0, seed, vectorizer, shortlist
    )
    attacks = settings.attacks()
    if not len(texts):
        raise ValueError(f"{op}: texts must be at least one, got N=0")
    Y = check_true_labels(op, model, "untargeted", np.empty((len(texts), 0)), Y)
    scored = Truth(
        Y if truth is None else check_labels(truth, f"{op}: truth"),
        None if filtered is None else check_labels(filtered, f"{op}: filtered"),
        None if inverse_propensity is None else np.asarray(inverse_propensity, np.float64),
        metric_ks(op, ks, k, model.num_labels),
    )
    tally = Tally(settings, attacks, scored, {"all": np.ones(model.num_labels, bool), **(bands or {})})
    began = time.perf_counter()
    with tqdm(total=len(texts), unit="doc", disable=not progress, dynamic_ncols=True) as bar:
        for start in range(0, len(texts), _TOGETHER):
            rows = slice(start, start + _TOGETHER)
            tally.add(texts[rows], Y[rows], rows)
            bar.update(len(texts[rows]))
    seconds = time.perf_counter() - began
    speed = {"seconds": round(seconds, 3), "documents_per_second": round(len(texts) / seconds, 2)}
    return {**tally.result(resamples), **speed}

"""Attacks that delete words of texts. The TF-IDF row and the embedding follow the changed text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext import functional as F
from mach_ext._memory import memory_advice
from mach_ext.attack._text_model import TextModel, check_words, row_goal
from mach_ext.attack._text_words import Span, without, words_of
from mach_ext.attack.goals import Targets, check_true_labels
from mach_ext.attack.greedy import Greedy
from mach_ext.attack.text_perturbation import TextPerturbation
from mach_ext.data import Vectorizer
from mach_ext.head import MACHHead
from mach_ext.nn import MACH, evaluating

_CANDIDATES = 2048  # changed texts that are in memory at a time


@dataclass
class _State:
    """A text on the way of the attack."""

    text: str
    spans: list[Span]
    loss: float  # of the best text so far
    best: tuple[int, ...] = ()  # the words that the best text lacks
    deleted: list[int] = field(default_factory=list)  # the words that the present text lacks

    def candidates(self) -> list[tuple[int, str]]:
        """Returns the words that are left, and the text without each."""
        left = [number for number in range(len(self.spans)) if number not in self.deleted]
        return [(n, without(self.text, self.spans, (*self.deleted, n))[0]) for n in left]

    def delete(self, number: int, loss: float, keep_best: bool) -> None:
        """Deletes a word."""
        self.deleted.append(number)
        if loss > self.loss or not keep_best:
            self.loss, self.best = loss, tuple(self.deleted)


class WordDeletion:
    """Deletes words of a text, one by one, and recomputes its features from the changed text.

    Each time all texts without one more word are made. They go through the vectorizer, the text encoder and
    the model, and the word whose loss is largest is deleted. The text with the largest loss on the way is
    kept, perhaps the clean one. With one word this is the best attack there is. With more it is greedy.

    In a text of more than `shortlist` words, only the words of the largest first-order effect are tried. This
    concerns models with a text encoder, because the encoder takes nearly all the time.

    A word is a run of letters and digits, as `mach_ext.data.words` says. Punctuation stays.

    Args:
        model: The model or a head on embeddings alone. It is used in eval mode.
        encoder: The `mach_ext.text_encoder.TextEncoder` that makes the dense features. None: the model has
            none.
        vectorizer: The `mach_ext.data.Vectorizer` that makes the sparse features. None: for a head.
        goal: One of `GOALS`.
        k: As in `FGSM`.
        keep_best: False: words are deleted even if the loss falls.
        shortlist: How many words of a text are tried each time. None: all.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The parts do not fit together, or an argument is out of range.

    Example:
        >>> from scipy import sparse
        >>> import mach_ext
        >>> texts = ["a big cat", "a small dog", "a cat", "the dog"]
        >>> vectorizer = mach_ext.data.Vectorizer.fit(texts, min_df=1)
        >>> X, Y = vectorizer.transform(texts), sparse.csr_matrix([[1, 0], [0, 1], [1, 0], [0, 1]])
        >>> model = mach_ext.MACH(X.shape[1], 2, num_repetitions=8, num_buckets=4, hidden_size=0)
        >>> mach_ext.fit_svm(model, X, Y, progress=False)
        >>> found = mach_ext.attack.WordDeletion(model, vectorizer=vectorizer).perturb(texts, Y, words=1)
        >>> found.adversarial[:2], found.deleted(0)
        (['a big', 'a small'], [(6, 'cat')])
    """

    name = "words"

    def __init__(
        self,
        model: MACH | MACHHead,
        encoder: Any = None,
        vectorizer: Vectorizer | None = None,
        goal: str = "untargeted",
        k: int | None = None,
        *,
        keep_best: bool = True,
        shortlist: int | None = 32,
    ) -> None:
        """Makes the attack."""
        op = type(self).__name__
        self._texts = TextModel(op, model, encoder, vectorizer)
        self._goals = Greedy(self._texts.model, "delete", goal, k)
        self.model, self.goal, self.k, self.keep_best = self._texts.model, goal, self._goals.k, keep_best
        if shortlist is not None and F.as_int(op, "shortlist", shortlist) < 1:
            raise ValueError(f"{op}: shortlist must be None or at least 1, got {shortlist}")
        self.shortlist = shortlist

    def perturb(
        self,
        texts: Sequence[str],
        Y: Any = None,
        words: int | Sequence[int] = 1,
        *,
        targets: Any = None,
        progress: Any = None,
    ) -> Any:
        """Returns adversarial texts.

        Args:
            texts: The N texts.
            Y: True labels [N, L], a SciPy, NumPy or torch matrix. The goal "own" does not need them.
            words: How many words may be deleted, or several numbers. Several numbers share work.
            targets: As in `FGSM.perturb`.
            progress: A function that is called with the number of finished texts.

        Returns:
            A `TextPerturbation`. A list of them if `words` has several numbers.

        Raises:
            TypeError: A text is not a string, or an argument has the wrong type.
            ValueError: Labels are missing or have another shape, or `words` is negative.

        Example:
            >>> from scipy import sparse
            >>> import mach_ext
            >>> from mach_ext.text_encoder import TextEncoder
            >>> texts, encoder = ["a big cat", "the dog barks"], TextEncoder.load("encoder")
            >>> words = mach_ext.data.Vectorizer.fit(texts, min_df=1)
            >>> D, E = len(words.vocabulary), encoder.num_dense
            >>> model = mach_ext.MACH(
            ...     D, 9, num_repetitions=8, num_buckets=4, hidden_size=4, num_dense=E
            ... )
            >>> one, two = mach_ext.attack.WordDeletion(model, encoder, words).perturb(
            ...     texts, sparse.eye(2, 9, format="csr"), words=[1, 2]
            ... )
            >>> bool((two.loss >= one.loss).all()), len(two.deleted(0)) <= 2
            (True, True)
        """
        op = f"{type(self).__name__}.perturb"
        texts = _checked_texts(op, texts)
        counts = check_words(op, words)
        with memory_advice(op, "pass fewer texts"), evaluating(self.model):
            documents = self._texts.documents(texts)
            goal = self._targets(op, documents, Y, targets)
            clean = self._texts.losses(documents, goal, np.arange(len(texts)))
            spans = [words_of(text) for text in texts]
            states = [_State(t, s, float(loss)) for t, s, loss in zip(texts, spans, clean, strict=True)]
            kept = self._run(states, goal, counts, progress)
        labels = None if goal.targets is None else goal.targets.cpu().numpy()
        results = []
        for count in counts:
            deleted = [best for best, _ in kept[count]]
            losses = np.array([loss for _, loss in kept[count]], np.float64), clean
            results.append(TextPerturbation(self._texts, texts, spans, count, deleted, losses, labels))
        return results if isinstance(words, (Sequence, np.ndarray)) else results[0]

    def _run(
        self, states: list[_State], goal: Targets, counts: list[int], progress: Any
    ) -> dict[int, list[tuple[tuple[int, ...], float]]]:
        """Returns for each number of words what the best texts lack, and their losses."""
        kept: dict[int, list[tuple[tuple[int, ...], float]]] = {count: [] for count in counts}
        for group in _groups(states):
            rows = range(group.start, group.stop)
            for step in range(max(counts) + 1):
                if step:
                    self._step(states, rows, goal)
                if step in kept:
                    kept[step] += [(states[row].best, states[row].loss) for row in rows]
            if progress is not None:
                progress(len(rows))
        return kept

    def _step(self, states: list[_State], rows: range, goal: Targets) -> None:
        """Deletes one more word of each text of a group that has one."""
        candidates = {row: self._candidates(states[row], row, goal) for row in rows}
        texts = [text for row in rows for _, text in candidates[row]]
        owners = np.repeat(np.array(rows), [len(candidates[row]) for row in rows])
        losses = self._texts.losses(self._texts.documents(texts), goal, owners) if texts else np.empty(0)
        start = 0
        for row in rows:
            of_row = losses[start : start + len(candidates[row])]
            start += len(of_row)
            if len(of_row):
                chosen = int(of_row.argmax())
                states[row].delete(candidates[row][chosen][0], float(of_row[chosen]), self.keep_best)

    def _candidates(self, state: _State, row: int, goal: Targets) -> list[tuple[int, str]]:
        """Returns the words of a text that are tried, and the text without each."""
        candidates, limit = state.candidates(), self.shortlist
        if limit is None or len(candidates) <= limit or self._texts.encoder is None:
            return candidates
        text, spans = without(state.text, state.spans, state.deleted)
        effects = self._texts.effects(text, spans, candidates, row_goal(goal, row))
        return [candidates[i] for i in sorted(np.argsort(-effects, kind="stable")[:limit].tolist())]

    def _targets(self, op: str, documents: Any, Y: Any, targets: Any) -> Targets:
        """Returns the labels that the losses are about."""
        Y = check_true_labels(op, self.model, self.goal, documents, Y)
        if targets is not None and (self.goal != "negative" or np.shape(targets) != (documents.shape[0],)):
            raise ValueError(f'{op}: targets [N] are for goal "negative", a label for each text')
        return self._goals._targets(op, documents, Y, targets)

    # ------------------------------------------------------------------------ what an evaluation asks for

    def _ranked(self, texts: Sequence[str], k: int) -> NDArray[np.int64]:  # [N, k]
        """Returns the top k of clean texts."""
        ranked: NDArray[np.int64] = self.model.predict(self._texts.documents(texts), k)[1]
        return ranked


class RandomDeletion(WordDeletion):
    """The control of `WordDeletion`: it deletes as many words, drawn at random, and always.

    The arguments are those of `WordDeletion` without `keep_best` and `shortlist`, and `seed`.

    Args:
        seed: Seed of the draws.

    Example:
        >>> import mach_ext
        >>> vectorizer = mach_ext.data.Vectorizer.fit(["a cat", "a dog"], min_df=1)
        >>> model = mach_ext.MACH(3, 2, num_repetitions=8, num_buckets=4, hidden_size=4)
        >>> noise = mach_ext.attack.RandomDeletion(model, vectorizer=vectorizer, goal="own", k=1)
        >>> noise.perturb(["a cat"], words=2).adversarial
        ['']
    """

    name = "random"

    def __init__(self, *args: Any, seed: int = 0, **options: Any) -> None:
        """Makes the control.

        Args:
            *args: As in `WordDeletion`.
            seed: Seed of the draws.
            **options: As in `WordDeletion`.
        """
        super().__init__(*args, keep_best=False, shortlist=None, **options)
        self.seed = seed

    def _run(
        self, states: list[_State], goal: Targets, counts: list[int], progress: Any
    ) -> dict[int, list[tuple[tuple[int, ...], float]]]:
        """Deletes the first words of a random order."""
        rng = np.random.default_rng(self.seed)
        orders = [rng.permutation(len(state.spans)).tolist() for state in states]
        kept = {}
        for count in counts:
            gone = [tuple(order[:count]) for order in orders]
            texts = [without(s.text, s.spans, g)[0] for s, g in zip(states, gone, strict=True)]
            documents = self._texts.documents(texts)
            losses = self._texts.losses(documents, goal, np.arange(len(texts)))
            kept[count] = list(zip(gone, losses.tolist(), strict=True))
        return kept


def _groups(states: list[_State]) -> Iterator[slice]:
    """Yields texts that have at most `_CANDIDATES` words together, or a single text."""
    start = total = 0
    for row, state in enumerate(states):
        if row > start and total + len(state.spans) > _CANDIDATES:
            yield slice(start, row)
            start, total = row, 0
        total += len(state.spans)
    if states:
        yield slice(start, len(states))


def _checked_texts(op: str, texts: Any) -> list[str]:
    """Returns texts as a list."""
    if isinstance(texts, (str, bytes)) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{op}: texts must be a list of strings, got {type(texts).__name__}")
    return list(texts)

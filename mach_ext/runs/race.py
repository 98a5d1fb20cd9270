"""A race between ways to train: each trains on a sample, and the best of them then trains on everything.

A race must be short, so its problem is a smaller one. Labels are put into at most 512 groups at random, and
the groups are what is predicted. A sample of the training documents is learnt from, with four encoders, and
documents that are held out decide. A sample of the labels would lose more. Here every document keeps all of
its labels, and frequent labels stay frequent.

The result depends on the data, the arguments and the seed alone. How large the sample is follows from the
expected number of operations, not from a clock.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from mach_ext import data, metrics, nn, svm, training
from mach_ext._progress import tqdm
from mach_ext.data.matrices import spaced_rows
from mach_ext.hashing import LabelHash
from mach_ext.runs.contenders import (
    Contender,
    contenders,
    nonzeros,
    step_seconds,
    svm_seconds,
    training_seconds,
)
from mach_ext.runs.recipe import FOR_SVM, Recipe
from mach_ext.training.adjustment import is_ahead, precisions

log = logging.getLogger("mach_ext")

CHOICES = ("race", "rule")  # how solver and rates are chosen where no argument says it
GROUPS = 512
REPETITIONS = 4
SHARE = 0.2  # of the time of the training that follows
SECONDS = 10.0  # which a race may take if the training takes no less
FEWEST_HELD_OUT, MOST_HELD_OUT = 200, 3000  # documents that decide; fewer would leave it to chance
FEWEST = 2000  # documents of the sample, if train has them
KS = (1, 3, 5)  # of P@k, as far as there are so many groups
NAMES = "the winner with names of labels"  # in the table


@dataclass(frozen=True)
class Result:
    """How a contender did.

    Attributes:
        contender: The contender.
        P: Its P@1, P@3 and P@5 on groups of labels, fractions of 1. With fewer groups only the first of them.
        scores: The mean of these for each document that decides.
        documents: How many documents it trained on.
    """

    contender: Contender
    P: list[float]
    scores: NDArray[np.float64]
    documents: int


@dataclass(frozen=True)
class Race:
    """A race that is over.

    Attributes:
        results: The results of the contenders, the usual one first.
        winner: The contender that trains on everything.
        names: The result of the winner with names of labels among the documents. None if that was not open.
        documents: How many documents each trained on.
        held_out: How many documents decided.
        groups: The number of groups of labels.
    """

    results: list[Result]
    winner: Contender
    names: Result | None
    documents: int
    held_out: int
    groups: int

    @property
    def label_names(self) -> bool | None:
        """Whether names of labels help: the winner is better with them. None if that was not open.

        No standard error is asked for. Groups of labels hide most of what names bring to rare labels.
        """
        without = next(each for each in self.results if each.contender == self.winner)
        return None if self.names is None else bool(self.names.scores.mean() > without.scores.mean())

    def applied(self, recipe: Recipe) -> Recipe:
        """Returns the recipe with what the race chose. What was given stays."""
        recipe = self.winner.applied(recipe)
        return recipe if self.names is None else replace(recipe, label_names=self.label_names)

    def record(self) -> dict[str, Any]:
        """Returns what the run keeps of the race, the same for the same arguments."""
        entries = [{**asdict(each.contender), "P": [round(p, 4) for p in each.P]} for each in self.results]
        about = {"documents": self.documents, "held_out": self.held_out, "groups": self.groups}
        record = {**about, "contenders": entries, "winner": self.winner.name}
        if self.names is not None:
            P = [round(p, 4) for p in self.names.P]
            record["names"] = {"documents": self.names.documents, "P": P, "help": self.label_names}
        return record


def table(record: dict[str, Any]) -> list[str]:
    """Returns a table of a race, as `Race.record` keeps it, what won marked by a star."""
    entries = [{**each, "wins": each["name"] == record["winner"]} for each in record["contenders"]]
    if names := record.get("names"):
        entries.append({**names, "name": NAMES, "wins": names["help"]})
    width = max(len(each["name"]) for each in entries)
    lines = [
        f"race on {record['documents']:,} documents and {record['groups']:,} groups of labels, "
        f"decided by {record['held_out']:,} others:"
    ]
    for each in entries:
        mark = "*" if each["wins"] else " "
        shown = " / ".join(f"{100 * p:5.2f}" for p in each["P"])
        ahead = 100 * each.get("handicap", 0.0)  # runs of before keep none
        note = f"  must be {ahead:g} points ahead" if ahead else ""
        ks = "/".join(str(k) for k in KS[: len(each["P"])])
        lines.append(f"{mark} {each['name']:{width}}  P@{ks} {shown}{note}")
    return lines


def run_race(
    recipe: Recipe, dataset: data.Dataset, device: str, progress: bool, processes: int = 1
) -> Race | None:
    """Runs a race between the ways to train that the arguments leave open.

    Args:
        recipe: The arguments of the training.
        dataset: The dataset. Its dev split decides. Without one, a tenth of train is held out for the race.
        device: The device of the training.
        progress: Show a progress bar.
        processes: How many will share the training. The race is run by one.

    Returns:
        The race, or None if there is nothing to choose, if too few documents would decide, or if memory is
        too short for it.

    Raises:
        TrainingInterrupted: Ctrl-C was pressed.
    """
    for_svm = not recipe.svm and any(getattr(recipe, name) is not None for name in FOR_SVM)
    if for_svm or dataset.num_labels < 2 or not _is_sound(recipe, dataset):
        return None
    field, names = (
        contenders(recipe, dataset, device),
        recipe.label_names is None and data.names_tell(dataset),
    )
    dataset = data.hold_out(dataset)
    if len(field) + names < 2 or dataset.dev is None or len(dataset.dev) < FEWEST_HELD_OUT:
        return None
    try:
        return _run(Problem.of(recipe, dataset, field, names, processes), field, device, progress)
    except (MemoryError, torch.OutOfMemoryError):
        log.info("memory is too short for a race, so rules choose")
        return None


def _run(problem: Problem, field: list[Contender], device: str, progress: bool) -> Race:
    """Runs a race between the contenders, then of the winner against itself with names of labels."""
    results: list[Result] = []
    names, total = None, len(field) + (problem.named is not None)
    with tqdm(total=total, desc="race", unit="way", disable=not progress, leave=False) as bar:
        try:
            for contender in field:
                results.append(problem.result(contender, device))
                bar.update()
            winner = _winner(results).contender
            if problem.named is not None:
                with contextlib.suppress(MemoryError, torch.OutOfMemoryError):
                    names = problem.named.result(winner, device)
                bar.update()
        except training.TrainingInterrupted:
            raise training.TrainingInterrupted("stopped in the race; nothing is trained or saved") from None
    return Race(results, winner, names, len(problem), len(results[0].scores), problem.groups)


def _is_sound(recipe: Recipe, dataset: data.Dataset) -> bool:
    """Returns whether the arguments can be trained with. If not, the training says what is wrong."""
    sizes = recipe.configuration(dataset)
    if recipe.svm and sizes["hidden_size"]:
        return False
    hidden = sizes["hidden_size"] or [0]
    numbers = (sizes["num_repetitions"], sizes["num_buckets"], *hidden, recipe.hyperparameters.get("epochs"))
    given = [recipe.seed, *(each for each in numbers if each is not None)]
    return all(type(each) is int and each >= 0 for each in given)


def _winner(results: list[Result]) -> Result:
    """Returns the best of the results that are ahead of the usual way's, or the usual way's if none is.

    Ahead is who leads after the handicap by more than a standard error.
    """
    scores = [each.scores - each.contender.handicap for each in results]
    ahead = [0, *(at for at, each in enumerate(scores) if is_ahead(each, scores[0]))]
    return results[max(ahead, key=lambda at: scores[at].mean())]


@dataclass(frozen=True)
class Problem:
    """The problem that all contenders solve: groups of labels, for a sample of the documents.

    Attributes:
        recipe: The arguments of the training.
        configuration: The sizes of the model.
        epochs: Passes over the documents.
        X, Y: The documents to learn from, and their groups.
        X_held, Y_held: Those that decide.
        named: The same problem with names of labels among the documents, if that is open. As in a training,
            names do not change the epochs.
    """

    recipe: Recipe
    configuration: dict[str, Any]
    epochs: int
    X: Any
    Y: Any
    X_held: Any
    Y_held: Any
    named: Problem | None = None

    @classmethod
    def of(
        cls, recipe: Recipe, dataset: data.Dataset, field: list[Contender], names: bool = False,
        processes: int = 1,
    ) -> Problem:  # fmt: skip
        """Draws the sample and the groups."""
        assert dataset.dev is not None
        configuration = recipe.configuration(dataset)
        random = np.random.RandomState(recipe.seed % 2**32)  # its numbers never change, unlike a Generator's
        N, L = len(dataset.train), dataset.num_labels
        learnt = data.with_label_names(dataset) if names else dataset.train
        names = len(learnt) > N
        size = _sample_size(recipe, dataset, field, processes, len(learnt) / N if names else 0.0)
        epochs = _epochs(recipe, size)
        rows = np.sort(random.permutation(N)[:size])
        groups = min(L, GROUPS)
        group = np.arange(L) if groups == L else random.randint(0, groups, L)
        held = spaced_rows(len(dataset.dev), MOST_HELD_OUT)

        def problem(train: data.Split, named: Problem | None = None) -> Problem:
            assert dataset.dev is not None
            dev = dataset.dev.take(held)
            each = [_grouped(split.Y, group, groups) for split in (train, dev)]
            return cls(recipe, configuration, epochs, train.documents, each[0], dev.documents, each[1], named)

        named = None
        if names:  # The sample has as large a part of the names as of the documents.
            of_names = N + random.permutation(len(learnt) - N)[: round(size / N * (len(learnt) - N))]
            named = problem(learnt.take(np.concatenate([rows, np.sort(of_names)])))
        return problem(dataset.train.take(rows), named)

    @property
    def groups(self) -> int:
        """The number of groups."""
        return int(self.Y.shape[1])

    def __len__(self) -> int:
        """The number of documents of the sample."""
        return int(self.Y.shape[0])

    def result(self, contender: Contender, device: str) -> Result:
        """Trains a contender and measures it."""
        labels = self._trained(contender, device).predict(self.X_held, min(5, self.groups))[1]
        P = [metrics.precision_at_k(self.Y_held, labels, k) for k in KS if k <= self.groups]
        return Result(contender, P, precisions(self.Y_held, labels), len(self))

    def _trained(self, contender: Contender, device: str) -> nn.MACH:
        recipe = contender.applied(self.recipe)
        repetitions = 1 if contender.svm else min(REPETITIONS, self.configuration["num_repetitions"])
        table = np.tile(np.arange(self.groups, dtype=np.int32), (repetitions, 1))
        sizes = {"num_labels": self.groups, "num_buckets": self.groups, "num_repetitions": repetitions}
        changes: dict[str, Any] = {}
        if contender.svm:
            changes = {"hidden_size": 0, "hidden_dropout": 0.0, "merge": "mean_logprob"}
        hash = LabelHash.from_buckets(table, self.groups)
        model = nn.MACH(**{**self.configuration, **sizes, **changes}, hash=hash).to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", svm.ConvergenceWarning)  # A race needs no last digits.
            if contender.svm:
                svm.fit_svm(model, self.X, self.Y, C=recipe.C or 1.0, progress=False)
            else:
                training.fit(model, self.X, self.Y, progress=False, **self._fit_arguments(recipe, device))
        return model

    def _fit_arguments(self, recipe: Recipe, device: str) -> dict[str, Any]:
        arguments = recipe.fit_arguments()
        arguments["tau"] = 0.0  # Groups have no frequencies of labels.
        arguments["epochs"] = self.epochs
        if arguments["gradient_threshold"] is None and str(device) == "cpu" and not recipe.is_linear:
            arguments["gradient_threshold"] = 0.003  # which is faster and as accurate
        return arguments


def _epochs(recipe: Recipe, documents: int) -> int:
    """Returns the epochs of a sample: as given, or by the rule for a dataset of its size."""
    given = recipe.hyperparameters.get("epochs")
    return int(training.default_sizes(documents, 1, 2)["epochs"] if given is None else given)


def _sample_size(
    recipe: Recipe, dataset: data.Dataset, field: list[Contender], processes: int = 1, named: float = 0.0
) -> int:
    """Returns how many documents the contenders can train on in their share of the time.

    One of them then runs again with names of labels, on `named` times as many documents.
    """
    N, shape = len(dataset.train), (nonzeros(dataset), min(dataset.num_labels, GROUPS))
    hidden = max(recipe.configuration(dataset)["hidden_size"] or [0])
    whole = training_seconds(recipe, dataset) / processes
    budget = max(min(SECONDS, whole), SHARE * whole)
    for documents in sorted({N, *(round(N * 0.8**step) for step in range(40))}, reverse=True):
        steps = _epochs(recipe, documents) * step_seconds(shape[0], REPETITIONS, hidden, shape[1])
        of_svm = svm_seconds(*shape, dataset.num_features + dataset.num_dense, documents)
        costs = [of_svm if each.svm else steps for each in field]
        cost = sum(costs) + named * costs[0]
        if documents * cost <= budget or documents <= FEWEST:
            break
    return max(documents, min(N, FEWEST))


def _grouped(Y: Any, group: NDArray[np.integer[Any]], groups: int) -> Any:
    """Returns which groups [N, groups] the documents of Y [N, L] have labels of."""
    L = len(group)
    members = scipy.sparse.csr_matrix((np.ones(L, np.float32), group, np.arange(L + 1)), (L, groups))
    grouped = (scipy.sparse.csr_matrix(Y, dtype=np.float32) @ members).tocsr()
    grouped.eliminate_zeros()
    grouped.data[:] = 1
    return grouped

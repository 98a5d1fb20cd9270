"""The contenders of a race: what a training may choose between, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mach_ext import data
from mach_ext.runs.recipe import Recipe, default_sizes, not_none
from mach_ext.training.svm import MAX_FACTOR

# A larger eps makes steps that are as large as the evidence, a smaller one lets rare words move as far as
# common ones. The rate keeps the pace of common words. Fine steps are for rare words and rare labels, so the
# classifiers get an eps as well.
STEPS = {
    "usual": {"encoder_eps": 3e-4, "encoder_learning_rate": 1.0},
    "coarse": {"encoder_eps": 1e-3, "encoder_learning_rate": 3.0},
    "fine": {"encoder_eps": 1e-5, "encoder_learning_rate": 0.04, "eps": 1e-5},
}
SVM = "support vector machines"
# What a way must be ahead by. The usual steps gain more than others from the documents and the encoders that
# a race has not. The numbers are those that `best_handicaps` of benchmarks/tables/race.py finds.
HANDICAPS = {"fine": 0.005, SVM: 0.006}
MOST_SVM_FLOATS = 6e8  # weights of support vector machines, 2.4 GB
FEWEST_FOR_SVM = 16  # documents of a label that occurs; with fewer, labels have to share hidden units


@dataclass(frozen=True)
class Contender:
    """A way to train, as the table of the race names it.

    Attributes:
        name: What the table calls it.
        svm: Whether it is a support vector machine for each bucket.
        settings: Hyper-parameters of gradient training.
        handicap: What the mean of its P@1, P@3 and P@5 must be ahead by, a fraction of 1.
    """

    name: str
    svm: bool = False
    settings: dict[str, float] = field(default_factory=dict)
    handicap: float = 0.0

    def applied(self, recipe: Recipe) -> Recipe:
        """Returns the recipe with the choice of this contender. What was given stays."""
        settings = {**self.settings, **not_none(recipe.hyperparameters)}
        return replace(recipe, svm=self.svm, hyperparameters=settings)


def contenders(recipe: Recipe, dataset: data.Dataset, device: str) -> list[Contender]:
    """Returns the ways to train that the arguments leave open, the usual one first. There is at least one."""
    if recipe.svm:
        return [Contender(SVM, svm=True)]
    if recipe.is_linear or recipe.hyperparameters.get("optimizer") == "adagrad":
        return [Contender("linear model" if recipe.is_linear else "hidden layers")]
    found = []
    given = not_none(recipe.hyperparameters)
    is_open = not {"encoder_eps", "encoder_learning_rate", "dense_learning_rate"} & set(given)
    for name, steps in STEPS.items():
        settings = dict(steps)
        settings |= {"dense_learning_rate": steps["encoder_learning_rate"]} if dataset.num_dense else {}
        if is_open or name == "usual":
            kept, handicap = settings if is_open else {}, HANDICAPS.get(name, 0.0)
            found.append(Contender(f"hidden layers, {name} steps", settings=kept, handicap=handicap))
    if recipe.svm is None and recipe.may_be_svm and str(device) == "cpu" and _suits_svm(recipe, dataset):
        found.append(Contender(SVM, svm=True, handicap=HANDICAPS[SVM]))
    return found


def _suits_svm(recipe: Recipe, dataset: data.Dataset) -> bool:
    """Returns whether support vector machines may be best, and whether their weights fit memory.

    Each label needs documents enough for weights of its own. And there must be as many features as labels,
    because a linear model of fewer can't tell labels apart freely. A race would see neither: its groups of
    labels are few and have many documents.
    """
    Y, sizes = dataset.train.Y, replace(recipe, svm=True).configuration(dataset)
    columns, present = dataset.num_features + dataset.num_dense, max(1, int((Y.getnnz(axis=0) > 0).sum()))
    floats = columns * sizes["num_repetitions"] * sizes["num_buckets"]
    return bool(Y.nnz >= FEWEST_FOR_SVM * present and columns >= present and floats <= MOST_SVM_FLOATS)


# Nanoseconds of one thread: of a step for a document, and of each product of a non-zero or a bucket with a
# hidden unit, forward and backward. They were measured, and are constants so that a race is deterministic.
_STEP, _SPARSE, _DENSE, _SVM, _FACTOR = 3000.0, 0.8, 0.12, 2.0, 0.02
_PASSES = 15  # over the documents that a support vector machine takes
_SKIPPING = 0.6  # of its time is what a training of hidden layers takes that skips small gradients


def step_seconds(nonzeros: float, repetitions: int, hidden: int, buckets: int) -> float:
    """Returns about how long a document takes in a step of gradient training.

    Args:
        nonzeros: Features of a document.
        repetitions: The number of encoders and classifiers.
        hidden: Hidden units of each encoder, or 0.
        buckets: Buckets of each classifier.
    """
    units, behind = (hidden, buckets) if hidden else (buckets, 0)
    return 1e-9 * (_STEP + repetitions * units * (_SPARSE * nonzeros + _DENSE * behind))


def svm_seconds(nonzeros: float, buckets: int, columns: int, documents: int) -> float:
    """Returns about how long a document takes in training support vector machines.

    Args:
        nonzeros: Features of a document.
        buckets: All buckets that are solved.
        columns: D, the number of features. If they are few, Newton's method factors D x D numbers.
        documents: The number of documents.
    """
    seconds = 1e-9 * _SVM * _PASSES * nonzeros * buckets / 16
    if columns <= MAX_FACTOR and nonzeros * documents >= columns**2:
        seconds += 1e-9 * _FACTOR * min(1.0, (columns / 900) ** 3) * buckets * columns**2
    return seconds


def training_seconds(recipe: Recipe, dataset: data.Dataset) -> float:
    """Returns about how long a training takes on one thread, to bound the cost of a race.

    A training that a race has yet to choose counts as one of hidden layers.
    """
    sizes, N = default_sizes(dataset), len(dataset.train)
    configuration = recipe.configuration(dataset)
    R, B = configuration["num_repetitions"], configuration["num_buckets"]
    if recipe.svm:
        return N * svm_seconds(nonzeros(dataset), R * B, dataset.num_features + dataset.num_dense, N)
    epochs = int(recipe.hyperparameters.get("epochs") or sizes["epochs"])
    hidden = max(configuration["hidden_size"] or [0])
    skips = hidden and recipe.hyperparameters.get("gradient_threshold")
    return (_SKIPPING if skips else 1.0) * N * epochs * step_seconds(nonzeros(dataset), R, hidden, B)


def nonzeros(dataset: data.Dataset) -> float:
    """Returns how many features a training document has on average."""
    return float(dataset.train.X.nnz / max(1, len(dataset.train)) + dataset.num_dense)

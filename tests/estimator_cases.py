"""What tests of `MACHClassifier` share: a small corpus, a small estimator, and comparison of fits."""

import functools

import numpy as np
import scipy.sparse as sp
from training_cases import same_bits

from mach_ext.sklearn import MACHClassifier

NAMES = np.array(["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"])
N, D, L = 60, 12, len(NAMES)
SMALL = {"num_repetitions": 8, "num_buckets": 16, "hidden_size": 16, "epochs": 15, "batch_size": 8}
SMALL["learning_rate"] = 0.01

rng = np.random.default_rng(0)
ROWS = [sorted(rng.choice(L, rng.integers(1, 4), replace=False).tolist()) for _ in range(N)]
DENSE = np.array([[int(label in row) for label in range(L)] for row in ROWS])
LISTS = [[str(NAMES[label]) for label in row] for row in ROWS]
X = sp.csr_matrix(np.hstack([DENSE * rng.uniform(0.5, 1, (N, L)), rng.uniform(0, 0.2, (N, D - L))]))
FIRST = np.array([row[0] for row in ROWS])  # one label of each document
TEXTS = [" ".join(labels) for labels in LISTS]
FORMS = {"sparse": sp.csr_matrix(DENSE), "dense": DENSE, "lists": LISTS, "classes": NAMES[FIRST]}


def small(**parameters):
    return MACHClassifier(**{**SMALL, **parameters})


def brief(**parameters):
    """For tests that compare fits, and need no good model."""
    return small(epochs=1, **parameters)


@functools.cache
def shared_fit(form="sparse", make=small, **parameters):
    """An estimator fitted on a form of the labels. Tests do not change it."""
    return make(**parameters).fit(X, FORMS[form])


def state(estimator):
    return {name: tensor for name, tensor in estimator.model_.state_dict().items() if "hash" not in name}


def assert_same_model(a, b):
    assert a.model_.hash == b.model_.hash
    assert same_bits(state(a), state(b))


def dense(indicator):
    return indicator.toarray() if sp.issparse(indicator) else indicator

"""Threat models, documents of a threat set and true labels, for the tests of certificates."""

import numpy as np
import scipy.sparse
import torch
from test_nn import ARCHITECTURES, tensors

from mach_ext.attack import L1, L2, Delete, Dense, Insert, Support

SPARSE = [Support(), Support(nonnegative=False), Insert(m=3), Insert(nonnegative=False, m=2), L1(), L2(),
          L1(nonnegative=False), L2(nonnegative=False), Delete()]  # fmt: skip
DENSE = [Dense(), Dense(nonnegative=True)]


def cases(name):
    return SPARSE + DENSE if ARCHITECTURES[name]["hidden_size"] == 0 else SPARSE


def sampled(threat, x, epsilon, rng, count=60):
    """Documents of the threat set around the row x: corners and points inside, float32."""
    x = x.toarray()[0].astype(np.float64)
    own, other = np.flatnonzero(x), np.flatnonzero(x == 0)
    rows = np.tile(x, (count, 1))
    for i, row in enumerate(rows):
        part = 1.0 if i % 2 else rng.random()
        if isinstance(threat, Delete):
            row[rng.permutation(own)[: int(epsilon)]] = 0
            continue
        at = own
        if isinstance(threat, Dense):
            at = np.arange(len(x))
        elif isinstance(threat, Insert):
            at = np.concatenate((own, rng.permutation(other)[: threat.m]))
        step = rng.choice([-1.0, 1.0], len(at))
        if threat.norm == 1:
            step *= rng.dirichlet(np.full(len(at), 0.2)) if len(at) else 1.0
        elif threat.norm == 2 and len(at):
            step *= np.abs(rng.normal(size=len(at)))
            step /= np.linalg.norm(step)
        row[at] += (1 - 1e-6) * epsilon * part * step
        if threat.nonnegative:
            row[:] = row.clip(min=0)
    near = rows.astype(np.float32)
    beyond = np.abs(near - x) > np.abs(rows - x)
    documents = scipy.sparse.csr_matrix(np.where(beyond, np.nextafter(near, x.astype(np.float32)), near))
    assert threat.holds(scipy.sparse.csr_matrix(np.tile(x, (count, 1))), documents, epsilon)
    return documents


def right(model, X, k=5, seed=0):
    """True labels of which most are in the clean top k."""
    rng = np.random.default_rng(seed)
    labels = model.predict(X, k)[1]
    Y = np.zeros((X.shape[0], model.num_labels))
    for n, row in enumerate(labels):
        Y[n, row[rng.random(k) < 0.7]] = 1
        Y[n, rng.integers(model.num_labels)] = 1
    return scipy.sparse.csr_matrix(Y)


def sizes_of(threat):
    return [1, 2, 5] if isinstance(threat, Delete) else [1e-4, 0.003, 0.03, 0.3]


def scores_of(model, X, labels):
    with torch.no_grad():
        values, indices, indptr = tensors(X)
        values = values.to(model.bucket_bias.dtype)
        return model.label_scores(values, indices, indptr, torch.as_tensor(labels), "model").double().numpy()

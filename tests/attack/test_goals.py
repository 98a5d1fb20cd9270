"""Goals of attacks, and what attacks refuse."""

import numpy as np
import pytest
import scipy.sparse
from attack_cases import labels_of
from test_nn import L, draw, model_of

from mach_ext.attack import FGSM, PGD, Greedy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_targeted_goals():
    model, X = model_of(), draw()
    ranked = model.predict(X, L)[1]
    Y = scipy.sparse.csr_matrix((np.ones(7), (np.arange(7), ranked[:, 1])), (7, L))
    out = PGD(model, "dense", "positive", k=3).perturb(X, Y, 0.5)
    assert (out.targets == ranked[:, 1]).all()
    assert not (out.predict(3)[1] == out.targets[:, None]).any(1).all()
    into = PGD(model, "dense", "negative", k=3).perturb(X, Y, 0.5)
    assert (into.targets == ranked[:, 3]).all()
    assert (into.predict(3)[1] == into.targets[:, None]).any(1).any()
    chosen = FGSM(model, "support", "negative", k=3).perturb(X, Y, 0.1, targets=ranked[:, 50])
    assert (chosen.targets == ranked[:, 50]).all()
    nothing = FGSM(model, "support", "positive", k=1).perturb(X, Y, 0.1)  # no true label is first
    assert (nothing.targets == -1).all()
    assert (nothing.loss == 0).all()


def perturb(**changes):
    options = {"model": model_of(), "threat_model": "support", "goal": "untargeted", "k": 5, "kind": FGSM}
    call = {"X": draw(), "Y": labels_of(), "epsilon": 0.1}
    options.update({k: v for k, v in changes.items() if k in options})
    call.update({k: v for k, v in changes.items() if k in call or k == "targets"})
    kind = options.pop("kind")
    return kind(**options).perturb(**call)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, r"epsilon must be a number >= 0, got -0.1", {"epsilon": -0.1}),
        (ValueError, r"epsilon must be a number >= 0, got nan", {"epsilon": [0.1, float("nan")]}),
        (ValueError, r"goal 'untargeted' needs the true labels Y", {"Y": None}),
        (ValueError, r"Y must be \[N, L\] = \[7, 90\], got shape \(3, 90\)", {"Y": labels_of(3)}),
        (TypeError, r"Y: must be a SciPy sparse matrix", {"Y": [1, 2]}),
        (ValueError, r"X must have D=60 columns, got shape \(7, 50\)", {"X": draw(columns=50)}),
        (ValueError, r"k must be in 1 \.\.\. L=90, got 91", {"k": 91}),
        (ValueError, r"needs k < L=90", {"k": 90, "goal": "positive"}),
        (ValueError, r"goal must be one of", {"goal": "all"}),
        (TypeError, r"model must be a mach_ext.MACH", {"model": None}),
        (ValueError, r"threat model support keeps values >= 0, but X has -", {"X": -draw()}),
        (ValueError, r"m must be in 0 \.\.\. \d+, .* got 60", {"threat_model": "insert(60)"}),
        (ValueError, r"threat model must be one of dense, support", {"threat_model": "linf"}),
        (ValueError, r"or as insert\(10\), got 'insert\(3'", {"threat_model": "insert(3"}),
        (ValueError, r"or as insert\(10\), got 'insert\(3\)\)'", {"threat_model": "insert(3))"}),
        (ValueError, r"threat model delete removes words", {"threat_model": "delete"}),
        (
            ValueError,
            r"number of words, got 0.5",
            {"kind": Greedy, "threat_model": "delete", "epsilon": 0.5},
        ),
        (ValueError, r"must be delete or insert\(m\), got support", {"kind": Greedy}),
        (ValueError, r"targets \[N\] are for goal", {"targets": np.zeros(7, int)}),
        (ValueError, r"in \[0, L=90\)", {"goal": "negative", "targets": np.full(7, 90)}),
    ],
)
def test_bad_input(error, message, changes):
    with pytest.raises(error, match=message):
        perturb(**changes)

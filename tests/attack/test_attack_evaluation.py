"""attack.evaluate: metrics, clean and adversarial, over a grid of epsilon."""

import numpy as np
import pytest
import scipy.sparse
from attack_cases import labels_of
from test_nn import D, draw, model_of

import mach_ext
from mach_ext import attack, metrics
from mach_ext.attack import FGSM

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("kind", "threat"), [("fgsm", "dense"), ("pgd", "support"), ("delete", "delete")])
def test_evaluate(kind, threat):
    model, X, Y = model_of(), draw(n=40), labels_of(n=40)
    q = metrics.inverse_propensity(Y)
    bands = metrics.label_frequency_bands(Y, 1, 3)
    other = model_of(seed=5)
    grid = (0, 1, 2) if kind == "delete" else (0.0, 0.05, 0.5)
    result = attack.evaluate(
        model, X, Y, method=kind, threat_model=threat, epsilons=grid, targeted=True, inverse_propensity=q,
        bands=bands, transfer=other, steps=2, resamples=100,
    )  # fmt: skip
    expected = metrics.evaluate(Y, model.predict(X, 5)[1], inverse_propensity=q)
    for entry in (result["clean"], result["adversarial"][0]["metrics"], result["adversarial"][0]["random"]):
        for name in ("P@1", "P@5", "nDCG@3", "PSP@1", "PSP@5"):
            assert entry[name] == pytest.approx(expected[name])
            low, high = entry[f"{name} interval"]
            assert low <= entry[name] <= high
    first, *_, last = result["adversarial"]
    assert first["size"]["l2"] == 0
    assert last["loss"] > last["clean_loss"] == pytest.approx(first["loss"])
    transferred = metrics.evaluate(Y, other.predict(X, 5)[1])
    assert first["transfer"]["P@1"] == pytest.approx(transferred["P@1"])
    assert result["transfer_clean"] == first["transfer"]
    assert result["steps"] == (2 if kind == "pgd" else None)
    assert "transfer_clean" not in attack.evaluate(model, X, Y, epsilons=[0.1], resamples=0)
    for rates in last["targeted"].values():
        assert set(rates) == {"all", "head", "torso", "tail"}
    rates = last["targeted"]["positive"]
    assert sum(rates[b]["documents"] for b in ("head", "torso", "tail")) == rates["all"]["documents"]


@pytest.mark.parametrize("labels", [1, 2, 3, 5])
def test_fewer_labels_than_the_usual_k(labels):
    """By default as many as there are; targeted goals need one outside the top k."""
    model = mach_ext.MACH(D, labels, num_repetitions=4, num_buckets=8, hidden_size=4)
    X, Y = draw(), scipy.sparse.csr_matrix(np.eye(labels)[np.arange(7) % labels])
    assert FGSM(model).perturb(X, Y, 0.1).predict()[1].shape == (7, labels)
    assert FGSM(model, goal="own").k == labels
    ks = [k for k in (1, 3, 5, labels) if k <= labels]
    result = attack.evaluate(model, X, Y, epsilons=[0.1], resamples=10)
    assert result["k"] == labels
    assert [name for name in result["clean"] if name[:2] == "P@" and "interval" not in name] == [
        f"P@{k}" for k in dict.fromkeys(ks)
    ]
    if labels == 1:
        with pytest.raises(ValueError, match="goal 'positive' needs a label outside the top k, got L=1"):
            attack.evaluate(model, X, Y, targeted=True)
        return
    for goal in ("positive", "negative"):
        assert FGSM(model, goal=goal).k == labels - 1
    result = attack.evaluate(model, X, Y, epsilons=[0.1], resamples=10, targeted=True)
    assert result["k"] == labels - 1
    assert result["adversarial"][0]["targeted"]["positive"]["all"]["documents"] > 0
    with pytest.raises(ValueError, match=rf"needs k < L={labels}, got {labels}"):
        attack.evaluate(model, X, Y, targeted=True, k=labels)
    with pytest.raises(ValueError, match=rf"k must be in 1 \.\.\. L={labels}, got 6"):
        attack.evaluate(model, X, Y, k=6)


def test_metrics_of_an_evaluation_are_those_up_to_k():
    model, X, Y = model_of(), draw(), labels_of()
    for k, expected in ((None, [1, 3, 5]), (2, [1, 2]), (3, [1, 3]), (7, [1, 3, 5, 7])):
        clean = attack.evaluate(model, X, Y, epsilons=[0.0], resamples=0, k=k)["clean"]
        assert list(clean) == [f"{name}@{k}" for name in ("P", "nDCG") for k in expected]


def test_evaluate_refuses_no_documents():
    with pytest.raises(ValueError, match="evaluate: X must have at least one document, got N=0"):
        attack.evaluate(model_of(), draw()[:0], labels_of()[:0])

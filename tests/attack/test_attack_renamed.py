"""Former names of the package work for one release, with a DeprecationWarning."""

import pytest
from attack_cases import labels_of
from test_nn import draw, model_of

from mach_ext import attack


def test_the_method_of_an_evaluation_was_its_attack():
    model, X, Y = model_of(), draw(), labels_of()
    with pytest.warns(DeprecationWarning, match="evaluate: argument attack is now called method"):
        former = attack.evaluate(model, X, Y, attack="pgd", steps=2, epsilons=[0.1], resamples=0)
    assert former == attack.evaluate(model, X, Y, method="pgd", steps=2, epsilons=[0.1], resamples=0)
    assert former["attack"] == "pgd"  # as files call it
    with pytest.raises(TypeError, match="pass only method"):
        attack.evaluate(model, X, Y, attack="pgd", method="pgd")
    with pytest.raises(ValueError, match="method must be fgsm, pgd, delete or insert, got 'bim'"):
        attack.evaluate(model, X, Y, method="bim")


def test_create_was_attack():
    message = r"mach_ext\.attack\.attack is now called mach_ext\.attack\.create"
    with pytest.warns(DeprecationWarning, match=message):
        former = attack.attack
    assert former is attack.create
    with pytest.raises(AttributeError, match="no attribute 'bim'"):
        attack.bim  # noqa: B018

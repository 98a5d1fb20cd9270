"""Explanations against Captum's algorithms, and these on documents of this package."""

import numpy as np
import pytest
import torch
from explain_cases import LABELS
from test_nn import ARCHITECTURES, MERGES, draw, model_of, tensors

import mach_ext
from mach_ext import explain
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
attr = pytest.importorskip("captum.attr", reason="Captum is not installed: nothing to compare with")
captum_metrics = pytest.importorskip("captum.metrics")
CAPTUM_SAYS = pytest.mark.filterwarnings(
    "ignore:Setting forward, backward hooks:UserWarning",
    "ignore:Input Tensor . did not already require gradients:UserWarning",
)
ALGORITHMS = {
    "IntegratedGradients": lambda f: (attr.IntegratedGradients(f), {"n_steps": 5}),
    "Saliency": lambda f: (attr.Saliency(f), {}),
    "InputXGradient": lambda f: (attr.InputXGradient(f), {}),
    "GradientShap": lambda f: (attr.GradientShap(f), {"baselines": "zeros", "n_samples": 4, "stdevs": 0.1}),
    "DeepLift": lambda f: (attr.DeepLift(f), {}),
    "FeatureAblation": lambda f: (attr.FeatureAblation(f), {}),
}


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gausslegendre_is_captums(name, merge):
    model, X = model_of(name, merge=merge), draw(n=1)
    forward, inputs, args = explain.captum_inputs(model, X, LABELS, score="model")
    captum, options = attr.IntegratedGradients(forward), {"additional_forward_args": args, "n_steps": 20}
    theirs = [captum.attribute(inputs, target=j, **options) for j in range(3)]
    ours = explain.integrated_gradients(
        model, X, LABELS, method="gausslegendre", score="model", n_steps=20
    ).attributions
    scale = np.abs(ours).max()
    np.testing.assert_allclose(ours, torch.cat(theirs).numpy(), rtol=1e-3, atol=1e-4 * scale)


@CAPTUM_SAYS
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captum_on_documents_of_different_lengths(name, algorithm):
    model, X = model_of(name), draw(n=4)
    assert len(set(np.diff(X.indptr))) > 1
    labels = np.array([[3, 0], [5, 89], [7, 1], [2, 2]])
    forward, inputs, args = explain.captum_inputs(model, X, labels)

    def run(inputs, args):
        torch.manual_seed(0)
        method, options = ALGORITHMS[algorithm](forward)
        if "baselines" in options:
            options["baselines"] = torch.zeros_like(inputs)
        return method.attribute(inputs, additional_forward_args=args, target=1, **options).detach()

    found = run(inputs, args)
    assert found.shape == inputs.shape
    assert (found[args[0] < 0] == 0).all()  # padding
    assert (found[args[0] >= 0] != 0).any()
    if algorithm == "GradientShap":  # draws noise for the whole batch
        return
    for n in range(4):  # each alone, without padding
        _, alone, its_args = explain.captum_inputs(model, X[n], labels[n])
        assert its_args[0].min() >= 0
        torch.testing.assert_close(run(alone, its_args)[0], found[n, : X[n].nnz], rtol=1e-4, atol=1e-5)


@CAPTUM_SAYS
def test_deeplift_of_one_layer_is_the_closed_form():
    """Rescale's slope is the fraction of the path on which a unit is active: an independent check."""
    for name in ("shared", "independent"):
        model, X = model_of(name), draw(n=1)
        forward, inputs, args = explain.captum_inputs(model, X, LABELS)
        deeplift = attr.DeepLift(forward)
        theirs = [deeplift.attribute(inputs, additional_forward_args=args, target=j)[0] for j in range(3)]
        ours = explain.integrated_gradients(model, X, LABELS).attributions
        np.testing.assert_allclose(torch.stack(theirs).detach().numpy(), ours, rtol=1e-3, atol=1e-5)


@CAPTUM_SAYS
def test_captum_metrics():
    model, X = model_of(), draw(n=3)
    forward, inputs, args = explain.captum_inputs(model, X, LABELS)

    def perturb(inputs):
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    def explained(inputs, **options):
        return attr.InputXGradient(forward).attribute(inputs, **options)

    torch.manual_seed(0)
    attributions = attr.Saliency(forward).attribute(inputs, additional_forward_args=args, target=0, abs=False)
    found = captum_metrics.infidelity(
        forward, perturb, inputs, attributions, additional_forward_args=args, target=0
    )
    assert found.shape == (3,)
    assert found.isfinite().all()
    far = captum_metrics.infidelity(
        forward, perturb, inputs, attributions + 5, additional_forward_args=args, target=0
    )
    assert (found < far).all()
    found = captum_metrics.sensitivity_max(
        explained, inputs, n_perturb_samples=2, additional_forward_args=args, target=0
    )
    assert found.isfinite().all()


def test_captum_computes_only_the_buckets_asked_for(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("all buckets")

    model, X = model_of(), draw(n=2)
    monkeypatch.setattr(mach_ext.MACH, "forward", forbidden)
    monkeypatch.setattr(F, "bucket_forward", forbidden)
    forward, inputs, args = explain.captum_inputs(model, X, LABELS)
    assert forward(inputs, *args).shape == (2, 3)
    expected = model.label_scores(*tensors(X), torch.tensor(LABELS))
    torch.testing.assert_close(forward(inputs, *args), expected)
    explain.integrated_gradients(model, X[0], LABELS)

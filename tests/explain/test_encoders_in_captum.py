"""Captum's algorithms on a head and any encoder in front of it."""

import copy

import numpy as np
import pytest
import scipy.sparse
import torch
from encoder_cases import HIDDEN, LABELS, E, H, T, X, deep, head_of, tokens_encoder, uniform

import mach_ext
from mach_ext import explain

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTUM_SAYS = pytest.mark.filterwarnings(
    "ignore:Setting forward, backward hooks:UserWarning",
    "ignore:Input Tensor . did not already require gradients:UserWarning",
)


@CAPTUM_SAYS
@pytest.mark.parametrize("with_encoder", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "IntegratedGradients",
        "Saliency",
        "InputXGradient",
        "DeepLift",
        "FeatureAblation",
        "Occlusion",
        "GradientShap",
    ],
)
def test_algorithms_of_captum(name, with_encoder):
    attr = pytest.importorskip("captum.attr", reason="Captum is not installed: nothing to run")
    head, encoder = head_of(merge="mean_prob"), deep() if with_encoder else None
    x = uniform(3, E if with_encoder else H)
    labels = np.array([[3, 0], [5, 89], [7, 1]])
    forward, inputs, args = explain.captum_inputs(head, x, labels, encoder=encoder, score="model")
    assert args[0].tolist() == labels.tolist()
    options = {"Occlusion": {"sliding_window_shapes": (2,)}, "GradientShap": {"baselines": 0 * x}}.get(
        name, {}
    )
    method = getattr(attr, name)(forward)
    found = method.attribute(inputs, additional_forward_args=args, target=1, **options).detach()
    assert found.shape == inputs.shape
    assert (found != 0).any()
    if with_encoder:
        assert encoder.training
    if name == "GradientShap":  # draws noise for the whole batch
        return
    for n in range(3):
        _, one, its = explain.captum_inputs(head, x[n : n + 1], labels[n], encoder=encoder, score="model")
        alone = method.attribute(one, additional_forward_args=its, target=1, **options).detach()
        torch.testing.assert_close(alone[0], found[n], rtol=1e-4, atol=1e-6)
    if name == "FeatureAblation":
        without = x.clone()
        without[:, 0] = 0
        scores = forward(inputs, *args) - forward(without, *args)
        torch.testing.assert_close(found[:, 0], scores[:, 1].detach(), rtol=1e-4, atol=1e-6)


@CAPTUM_SAYS
def test_captum_reaches_layers_of_the_encoder():
    attr = pytest.importorskip("captum.attr", reason="Captum is not installed: nothing to run")
    head, encoder = head_of(), tokens_encoder()
    forward, inputs, args = explain.captum_inputs(head, uniform(2, T, E), LABELS, encoder=encoder)
    assert dict(forward.named_modules())["encoder.last"] is encoder.last
    options = {"additional_forward_args": args, "target": 2, "n_steps": 30}
    for layer, shape in ((encoder, (2, H)), (forward.encoder.last, (2, H)), (encoder.layers, (2, T, E))):
        found = attr.LayerIntegratedGradients(forward, layer).attribute(inputs, **options)
        assert found.shape == shape
        scores = forward(inputs, *args) - forward(torch.zeros_like(inputs), *args)
        torch.testing.assert_close(found.flatten(1).sum(1), scores[:, 2], rtol=1e-2, atol=1e-2)
    assert encoder.training


def test_captum_computes_the_heads_scores(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("all buckets")

    head, encoder = head_of(merge="median_prob"), tokens_encoder()
    x = uniform(2, T, E)
    expected = head.label_scores(copy.deepcopy(encoder).eval()(x), torch.tensor(LABELS), "model")
    monkeypatch.setattr(mach_ext.MACHHead, "forward", forbidden)
    forward, inputs, args = explain.captum_inputs(head, x, LABELS, encoder=encoder, score="model")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(forward(inputs, *args), expected)
    explain.integrated_gradients(head, X, LABELS, encoder=encoder, n_steps=3, score="model")
    torch.testing.assert_close(
        explain.captum_inputs(head, scipy.sparse.csr_matrix(HIDDEN), LABELS)[1], HIDDEN
    )

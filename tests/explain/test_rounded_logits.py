"""Captum's integrated gradients and FGSM through logits in bfloat16: the fused operator and the unfused."""

import pytest
import torch
from helpers import random_csr, to, uniform

from mach_ext import _ops
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
attr = pytest.importorskip("captum.attr", reason="Captum is not installed: nothing to run")
robust = pytest.importorskip("captum.robust")

D, R, H, B = 40, 3, 24, 300
TARGET = (7, 250, 131)  # a bucket of each repetition, as a label has them
UNIT = 2.0**-24


class Model:
    """The score of one label: the mean over repetitions of the sigmoid of its bucket's logit."""

    def __init__(self, device, generator, shared):
        columns = H if shared else R * H
        tensors = (
            uniform(generator, D, columns),
            uniform(generator, columns),
            uniform(generator, R, H, B).mT.contiguous().mT,
            uniform(generator, R, B),
        )
        self.parameters = to(device, [t.float() for t in tensors])
        self.document = to(device, random_csr(generator, [9], D))

    def logits(self, values):  # [N, P] -> [N, R, B]
        N, P = values.shape
        indptr = torch.arange(N + 1, device=values.device) * P
        X = values.flatten(), self.document[1].repeat(N), indptr
        return F.bucket_forward(*X, *self.parameters, validate=False, precision="bfloat16")

    def __call__(self, values):
        logits = self.logits(values)
        return torch.stack([logits[:, r, b] for r, b in enumerate(TARGET)], 1).sigmoid().mean(1)

    def error(self, largest):
        """How far the gradients to the values [P] may be apart, where no value exceeds `largest`.

        Logits differ by twice the bound of a sum of H products, which changes the sigmoid's slope by a tenth
        of that at most. Each further product in float32 adds one unit of the magnitudes.
        """
        encoder, encoder_bias, weight, bias = (t.abs().double().cpu() for t in self.parameters)
        at = self.document[1].cpu()
        hidden = (largest * encoder[at].sum(0) + encoder_bias).unflatten(0, (-1, H)).expand(R, H)
        error = magnitude = 0.0
        for r, b in enumerate(TARGET):
            column = weight[r, :, b]
            logit = 2 * (H + 2) * UNIT * float(hidden[r] @ column + bias[r, b])
            slope = encoder[at].unflatten(1, (-1, H))[:, r % (encoder.shape[1] // H)] @ column / R
            error = error + 0.1 * logit * slope
            magnitude = magnitude + slope / 4
        return error + (R * H + 8) * UNIT * magnitude


@pytest.fixture(params=[True, False], ids=["shared", "independent"])
def model(request, device, generator):
    return Model(device, generator, request.param)


def fused_and_not(monkeypatch, model, run):
    """What `run` returns with the operator where it is taken, and without."""
    calls, own = [], _ops.bucket_forward
    monkeypatch.setattr(_ops, "bucket_forward", lambda *args: calls.append(args) or own(*args))
    fused = run()
    assert bool(calls) == _ops.has_bucket_forward(model.document[0].device)
    before = len(calls)
    monkeypatch.setattr(_ops, "has_bucket_forward", lambda device: False)
    unfused = run()
    assert len(calls) == before
    return fused.cpu(), unfused.cpu()


def test_integrated_gradients(monkeypatch, model):
    values = model.document[0][None]
    method = attr.IntegratedGradients(model)
    fused, unfused = fused_and_not(
        monkeypatch, model, lambda: method.attribute(values, n_steps=20, method="gausslegendre").detach()
    )
    assert fused.abs().max() > 0.01
    allowed = values.cpu().abs().double() * model.error(float(values.abs().max()))
    assert allowed.max() < 1e-2 * fused.abs().max()
    assert ((fused - unfused).abs() <= allowed).all()


def test_fgsm(monkeypatch, model):
    """A gradient that is larger than the bound has the same sign, so the step is the same to the bit."""
    values = model.document[0][None]
    allowed = model.error(float(values.abs().max()))
    (gradient,) = torch.autograd.grad(model(leaf := values.clone().requires_grad_()).sum(), leaf)
    sure = gradient.cpu()[0].abs() > 1e-6 + allowed  # Captum takes what is below 1e-6 as 0
    assert sure.sum() > len(sure) // 2
    method = robust.FGSM(model, lambda scores, target: scores)
    fused, unfused = fused_and_not(
        monkeypatch,
        model,
        lambda: method.perturb(values.clone().requires_grad_(), 0.1, target=None).detach(),
    )
    assert torch.equal(fused[0][sure], unfused[0][sure])
    assert (fused != values.cpu()).any()

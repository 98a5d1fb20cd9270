"""What explanations of a head and an encoder refuse."""

import functools
import math

import numpy as np
import pytest
import scipy.sparse
import torch
from encoder_cases import DENSE, HIDDEN, LABELS, B, E, H, L, R, T, deep, head_of, mlp, uniform
from torch import nn

import mach_ext
from mach_ext import explain

pytestmark = pytest.mark.usefixtures("one_thread")

CALLS = {
    "integrated_gradients": explain.integrated_gradients,
    "contrast": lambda head, x, labels, **options: explain.contrast(head, x, 1, 2, **options),
    "explain_topk": lambda head, x, labels, **options: next(explain.explain_topk(head, x, 1, **options)),
    "votes": explain.votes,
    "collisions": lambda head, x, labels, **options: explain.collisions(head, x, 1, **options),
    "captum_inputs": explain.captum_inputs,
}


IDS, WITH_NAN = torch.arange(T)[None], torch.tensor([[math.nan] + (E - 1) * [1.0]])


def returns(kind):
    """An encoder whose hidden units are of another dtype or on another device."""
    return lambda x: torch.ones(len(x), H).to(kind)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("error", "message", "x"),
    [
        (TypeError, "X must be floating-point numbers, got int64; for token ids, pass", IDS),
        (TypeError, "X must be floating-point numbers, got int64; for token ids", IDS.numpy()),
        (TypeError, "X must be floating-point numbers, got complex64", torch.ones(1, 5) * 1j),
        (TypeError, r"X must be a dense torch.Tensor or a NumPy array \[N, ...\], got list", [[1.0] * E]),
        (TypeError, r"X must be a dense torch.Tensor .* \[N, ...\], got sparse_coo", DENSE.to_sparse()),
        (TypeError, "X must be a dense .* got csr_matrix", scipy.sparse.csr_matrix(DENSE.numpy())),
        (ValueError, "X must be on cpu like the head, got meta", torch.ones(1, E, device="meta")),
        (ValueError, r"X must be \[N, ...\] with at least two dimensions, got shape \[8\]", DENSE[0]),
        (ValueError, r"X must have at least one number, got shape \[0, 8\]", DENSE[:0]),
        (ValueError, "X, row 0: values must be finite, got NaN or infinity", WITH_NAN),
        (ValueError, "X, row 0: values must be finite", np.full((1, E), 1e300)),
    ],
)  # fmt: skip
def test_inputs_are_refused(name, error, message, x):
    with pytest.raises(error, match=rf"^(integrated_gradients|{name}): {message}"):
        CALLS[name](head_of(), x, [1], encoder=mlp())


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("error", "message", "encoder"),
    [
        (TypeError, "encoder must be a callable such as a torch.nn.Module, got str", "bert"),
        (TypeError, "encoder must return hidden units .* as a torch.Tensor, got tuple", lambda x: (x,)),
        (TypeError, "encoder must return hidden units in float32 .* got int64", returns(torch.int64)),
        (TypeError, "encoder must return .* or in half precision, got float64", returns(torch.double)),
        (ValueError, r"encoder must return hidden units \[N=\d+, H=12\], got \[\d+, 8\]", lambda x: x),
        (ValueError, r"encoder must return hidden units .* got \[12\]", lambda x: torch.ones(H)),
        (ValueError, "encoder must return hidden units on cpu like the head, got meta", returns("meta")),
    ],
)  # fmt: skip
def test_encoders_are_refused(name, error, message, encoder):
    def call():
        made = CALLS[name](head_of(), DENSE, [1], encoder=encoder)
        if name == "captum_inputs":
            forward, inputs, args = made
            forward(inputs, *args)

    with pytest.raises(error, match=rf"^(integrated_gradients|{name}): {message}"):
        call()


@pytest.mark.parametrize("name", ["integrated_gradients", "explain_topk", "votes", "collisions"])
def test_encoders_with_dropout_noise_or_nan_are_refused(name):
    head, modules = head_of(), [deep()]  # A module that no name leads to stays in training mode.
    with pytest.raises(ValueError, match=f"{name}: encoder must return the same hidden units .* call eval"):
        CALLS[name](head, DENSE, [1], encoder=lambda x: modules[0](x))
    with pytest.raises(ValueError, match=f"{name}: encoder must return finite hidden units, got (12|24) of"):
        CALLS[name](head, DENSE, [1], encoder=lambda x: math.nan * mlp()(x))


def test_an_encoder_that_mixes_a_batch_is_refused():
    norm = nn.BatchNorm1d(E, track_running_stats=False)
    with pytest.raises(ValueError, match="let no input of a batch depend on the others"):
        explain.integrated_gradients(
            head_of(), DENSE, 1, encoder=lambda x: mlp()(norm(x) if len(x) > 1 else x), baseline=DENSE + 1
        )


@pytest.mark.parametrize(
    "encoder",
    [
        lambda x: mlp()(x).detach(),
        torch.no_grad()(lambda x: mlp()(x)),
        lambda x: mlp()(x.detach()),
    ],
    ids=["detach", "no_grad", "detached input"],
)
def test_an_encoder_without_gradients_is_refused(encoder):
    message = "integrated_gradients: encoder must be differentiable, got hidden units without a gradient"
    with pytest.raises(ValueError, match=message):
        explain.integrated_gradients(head_of(), DENSE, LABELS, encoder=encoder)


def test_refusals():
    head, encoder = head_of(), mlp()
    model = mach_ext.MACH(E, L, R, B, hidden_size=4)
    ig = functools.partial(explain.integrated_gradients, encoder=encoder)
    for call, error, message in [
        (lambda: ig(model, DENSE, 1), TypeError, "must be a mach_ext.MACHHead if encoder is given, got MACH"),
        (lambda: explain.votes(model, DENSE, encoder=encoder), TypeError, "if encoder is given, got MACH"),
        (lambda: ig(head, DENSE, 1, method="exact"), ValueError, 'method must be "gausslegendre" through an'),
        (
            lambda: ig(head, uniform(2, E), 1),
            ValueError,
            r"X must be one input \[1, ...\], got shape \[2, 8\]",
        ),
        (lambda: ig(head, DENSE, [L]), ValueError, r"labels must be in \[0, L=90\), got 90"),
        (lambda: ig(head, DENSE, 1, label_names=["a"]), ValueError, "label_names must be L=90 names"),
        (lambda: ig(head, DENSE, 1, n_steps=0), ValueError, "n_steps must be at least 1"),
        (
            lambda: ig(head, DENSE, 1, baseline=torch.zeros(2, E)),
            ValueError,
            r"baseline must have the shape \[1, 8\] of X, got \[2, 8\]",
        ),
        (
            lambda: ig(head, DENSE, 1, baseline=torch.zeros(1, E).long()),
            TypeError,
            "baseline must be floating-point numbers, got int64",
        ),
        (
            lambda: explain.leave_one_out(head, DENSE, encoder=encoder),
            ValueError,
            "leave_one_out: encoder must be None, got Sequential; .* use captum.attr.FeatureAblation",
        ),
        (
            lambda: next(explain.explain_topk(head, uniform(2, E), 1, ["a"], encoder=encoder)),
            ValueError,
            "texts must be N=2, got 1",
        ),
        (
            lambda: explain.captum_inputs(head, HIDDEN[:, :5], 1),
            ValueError,
            r"X must have H=12 columns, got shape \(3, 5\)",
        ),
        (
            lambda: explain.captum_inputs(head_of(per_repetition=True), HIDDEN, 1),
            ValueError,
            r"X must be hidden units \[N, R=4, H=12\], got shape \[3, 12\]",
        ),
        (
            lambda: explain.captum_inputs(head, uniform(2, E), [[1]] * 3, encoder=encoder),
            ValueError,
            r"labels must be \[m\] or \[N=2, m\], got \[3, 1\]",
        ),
        (lambda: explain.votes(head.half(), DENSE, encoder=encoder), TypeError, "parameters must be float32"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_parameters_that_are_not_finite_are_reported():
    head = head_of()
    with torch.no_grad():
        head.bucket_weight[0] = math.nan
    for encoder in (None, mlp()):
        x = HIDDEN[:1] if encoder is None else DENSE
        with pytest.raises(ValueError, match="the model's bucket_weight must be finite"):
            explain.integrated_gradients(head, x, np.arange(L), encoder=encoder)

"""What attacks on heads and through encoders refuse."""

import functools

import numpy as np
import pytest
import scipy.sparse
import torch
from attack_head_cases import B, H, L, N, R, head_of, labels_of
from torch import nn

import mach_ext
from mach_ext import attack
from mach_ext.attack import FGSM, Delete, Greedy, Insert, Random

pytestmark = pytest.mark.usefixtures("one_thread")


def model():
    return mach_ext.MACH(12, L, num_repetitions=R, num_buckets=B, hidden_size=8)


def spoilt(value):
    X = torch.zeros(N, 12)
    X[3, 4] = value
    return X


class Output:
    pass


CONSTRUCTION = [
    (TypeError, r"FGSM: model must be a mach_ext.MACH or a mach_ext.MACHHead, got Li", nn.Linear(2, 2), {}),
    (TypeError, r"model must be a mach_ext.MACHHead if encoder is given, got MACH", model, {}),
    (TypeError, r"FGSM: encoder must be a callable such as .*, got str", head_of, {"encoder": "bert"}),
    (ValueError, r"per_repetition=True must have an encoder=", lambda: head_of(per_repetition=True),
     {"encoder": None}),
    (ValueError, r"must be dense, support, l2 or l1 with encoder=, .* got insert\(3\)", head_of,
     {"threat_model": "insert(3)"}),
    (ValueError, r"must be dense, support, l2 or l1 with encoder=, .* got delete", head_of,
     {"threat_model": "delete"}),
    (ValueError, r"Greedy: threat model must be dense, .* got delete", head_of, {"kind": Greedy}),
    (ValueError, r"Greedy: threat model must be dense, .* got insert\(5\)", head_of,
     {"kind": Greedy, "threat_model": Insert()}),
    (ValueError, r"Random: threat model must be dense, .* got delete", head_of,
     {"kind": Random, "threat_model": Delete()}),
    (ValueError, r"FGSM: batch_size must be at least 1, got 0", head_of, {"batch_size": 0}),
    (TypeError, r"FGSM: batch_size must be an int, got float", head_of, {"batch_size": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "attacked", "options"), CONSTRUCTION)
def test_arguments_that_do_not_fit(error, message, attacked, options):
    attacked = attacked if isinstance(attacked, nn.Module) else attacked()
    options = {"encoder": nn.Identity(), "kind": FGSM, **options}
    kind = options.pop("kind")
    with pytest.raises(error, match=message):
        kind(attacked, **options)


CALLS = [
    (TypeError, r"FGSM.perturb: X must be floating-point numbers, got int64; for token ids, pass their emb",
     {"X": torch.ones(N, 12, dtype=torch.int64)}),
    (TypeError, r"got int32; for token ids, pass their embeddings", {"X": np.ones((N, 12), np.int32)}),
    (TypeError, r"X must be floating-point numbers, got bool", {"X": torch.ones(N, 12, dtype=torch.bool)}),
    (TypeError, r"got float16; pass X.float\(\), and let the encoder", {"X": torch.ones(N, 12).half()}),
    (TypeError, r"X must be floating-point numbers, got complex64",
     {"X": torch.ones(N, 12, dtype=torch.complex64)}),
    (TypeError, r"must be a dense torch.Tensor .* \[N, ...\], got csr_matrix; pass X",
     {"X": scipy.sparse.csr_matrix(np.ones((N, 12)))}),
    (TypeError, r"X must be a dense torch.Tensor or a NumPy array .* got list", {"X": [[1.0] * 12] * N}),
    (TypeError, r"X must be a dense torch.Tensor or a NumPy array .* got sparse_coo",
     {"X": torch.ones(N, 12).to_sparse()}),
    (ValueError, r"X must be inputs \[N, ...\] with encoder=, got shape \[12\]", {"X": torch.ones(12)}),
    (ValueError, r"FGSM.perturb: X, row 3: values must be finite", {"X": spoilt(float("nan"))}),
    (ValueError, r"FGSM.perturb: X, row 3: values must be finite", {"X": spoilt(float("inf")).numpy()}),
    (ValueError, r"Y must be \[N, L\] = \[7, 90\], got shape \(3, 90\)", {"Y": labels_of(3)}),
    (ValueError, r"Y must be \[N, L\] = \[7, 90\], got shape \(7, 50\)", {"Y": labels_of()[:, :50]}),
    (ValueError, r"goal 'untargeted' needs the true labels Y", {"Y": None}),
    (ValueError, r"epsilon must be a number >= 0, got -0.1", {"epsilon": -0.1}),
    (ValueError, r"targets \[N\] are for goal", {"targets": np.zeros(N, int)}),
    (ValueError, r"FGSM: encoder must return hidden units \[N=7, H=16\], got \[7, 12\]",
     {"encoder": nn.Identity()}),
    (ValueError, r"encoder must return hidden units \[N=7, H=16\], got \[7, 5, 16\]",
     {"encoder": nn.Linear(8, H), "X": torch.ones(N, 5, 8)}),
    (ValueError, r"encoder must return hidden units \[N=7, H=16\], got \[16\]",
     {"encoder": lambda x: nn.Linear(12, H)(x).mean(0)}),
    (TypeError, r"encoder must return hidden units \[N=7, H=16\] as a torch.Tensor, got Output",
     {"encoder": lambda x: Output()}),
    (TypeError, r"encoder must return hidden units in float32 like the head, .* got float64",
     {"encoder": lambda x: torch.ones(7, H).double()}),
    (ValueError, r"encoder must return hidden units on cpu like the head, got meta",
     {"encoder": lambda x: torch.ones(7, H, device="meta")}),
    (ValueError, r"encoder must return finite hidden units",
     {"encoder": lambda x: torch.full((7, H), torch.nan)}),
    (ValueError, r"encoder must be differentiable, but autograd found no way from its output to X",
     {"encoder": lambda x: torch.ones(7, H)}),
    (ValueError, r"encoder must be differentiable",
     {"encoder": lambda x: torch.ones(7, H, requires_grad=True) * 2}),
    (ValueError, r"encoder must have finite gradients",
     {"encoder": lambda x: (x[:, :1] * 0).sqrt().expand(-1, H)}),
    (ValueError, r"head of per_repetition=True|hidden units \[N=7, R=4, H=16\], got \[7, 16\]",
     {"encoder": nn.Linear(12, H), "head": functools.partial(head_of, per_repetition=True)}),
    (ValueError, r"X must have D=16 columns, got shape \(7, 12\)", {"encoder": None}),
    (ValueError, r"must have two dimensions, .* got shape \(7, 5, 16\)",
     {"encoder": None, "X": torch.ones(7, 5, 16)}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "changes"), CALLS)
def test_bad_input(error, message, changes):
    call = {"X": torch.ones(N, 12), "Y": labels_of(), "epsilon": 0.1, **changes}
    head, encoder = call.pop("head", head_of)(), call.pop("encoder", nn.Linear(12, H))
    with pytest.raises(error, match=message):
        FGSM(head, encoder=encoder).perturb(**call)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, r"evaluate: transfer must be None with encoder=", {"transfer": head_of}),
        (ValueError, r"evaluate: X must have at least one document, got N=0", {"X": torch.ones(0, 12)}),
        (ValueError, r"evaluate: needs the true labels Y", {"Y": None, "goal": "own"}),
        (TypeError, r"evaluate: X must be floating-point numbers, got int64; for token ids",
         {"X": torch.ones(N, 12).long()}),
        (ValueError, r"Greedy: threat model must be dense, support, l2 or l1", {"method": "delete"}),
        (ValueError, r"Greedy: threat model must be dense",
         {"method": "insert", "threat_model": "insert(3)"}),
        (ValueError, r"must be fgsm, pgd, delete or insert, got 'bim'", {"method": "bim"}),
        (TypeError, r"evaluate: model must be a mach_ext.MACHHead if encoder is given, got MACH",
         {"model": model}),
        (TypeError, r"evaluate: model must be a mach_ext.MACH or a mach_ext.MACHHead, got str",
         {"model": "m"}),
    ],
)  # fmt: skip
def test_bad_evaluations(error, message, changes):
    call = {
        "model": head_of,
        "X": torch.ones(N, 12),
        "Y": labels_of(),
        "encoder": nn.Linear(12, H),
        **changes,
    }
    call = {name: value() if value in (head_of, model) else value for name, value in call.items()}
    with pytest.raises(error, match=message):
        attack.evaluate(**call, resamples=0)


def test_transfer_must_fit():
    head, X, Y = head_of(), torch.randn(N, H), labels_of()
    narrow = mach_ext.MACHHead(8, L, R, B, hash=head.hash)
    with pytest.raises(ValueError, match=r"the model's \(features, labels\) \(16, 90\), got \(8, 90\)"):
        attack.evaluate(head, X, Y, transfer=narrow)
    with pytest.raises(TypeError, match=r"evaluate: model must be a mach_ext\.MACH or"):
        attack.evaluate(head, X, Y, transfer="other")

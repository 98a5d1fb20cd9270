"""torch.compile: whole graphs, the eager result, and no recompilation for every batch size."""

import shutil

import pytest
import torch
from helpers import ROWS, bitwise_equal, random_csr, random_hash, to, uniform
from torch._dynamo.testing import CompileCounterWithBackend

from mach_ext import LabelHash
from mach_ext import functional as F

D, H, R, B, L = 30, 17, 3, 8, 25

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Dynamo tracing an autograd.Function; importing inductor.
    pytest.mark.filterwarnings(
        "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def functions(generator, device):
    """name -> (function of a batch and the weights, its weights)."""
    hash = random_hash(generator, L, B, R, device)

    def weights(*shapes):
        return to(device, [uniform(generator, *shape, dtype=torch.float32) for shape in shapes])

    shared = weights((D, H), (H,), (R, H, B), (R, B))
    linear = weights((R, D, B), (R, B))

    def loss(X, Y, W, b, w, c):
        return F.bucket_bce(F.sparse_linear(*X, W, b, "relu"), w, c, *Y, hash)

    return {
        "sparse_linear": (lambda X, Y, W, b, *_: F.sparse_linear(*X, W, b, "relu"), shared),
        "bucket_forward": (lambda X, Y, *p: F.bucket_forward(*X, *p), shared),
        "rounded forward": (lambda X, Y, *p: F.bucket_forward(*X, *p, precision="bfloat16"), shared),
        "linear forward": (lambda X, Y, *p: F.bucket_forward(*X, None, None, *p), linear),
        "label_logits": (
            lambda X, Y, W, b, w, c: F.label_logits(F.sparse_linear(*X, W, b), w, c, hash, Y[0][:4]),
            shared,
        ),
        "linear_label_logits": (lambda X, Y, *p: F.linear_label_logits(*X, *p, hash, Y[0][:4]), linear),
        "bucket_bce": (loss, shared),
        "linear_bucket_bce": (lambda X, Y, *p: F.linear_bucket_bce(*X, *p, *Y, hash), linear),
        "merge_scores": (
            lambda X, Y, *p: F.merge_scores(F.bucket_forward(*X, *p), hash, Y[0][:4], "median"),
            shared,
        ),
        "decode": (lambda X, Y, *p: F.merge_topk(F.bucket_forward(*X, *p), hash, 5), shared),
    }


NAMES = list(functions(torch.Generator(), "cpu"))


def batch(generator, rows, device):
    X = random_csr(generator, rows, D)
    Y = random_csr(generator, [3 + n % 2 for n in range(len(rows))], L)[1:]
    return tuple(to(device, X)), tuple(to(device, Y))


def run(function, X, Y, weights):
    """Outputs and the gradients of the first of them."""
    leaves = [t.clone().requires_grad_() for t in weights]
    out = function(X, Y, *leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    gradients = torch.autograd.grad(outputs[0].square().sum(), leaves, allow_unused=True)
    return [t.detach() for t in (*outputs, *gradients) if t is not None]


@pytest.mark.parametrize("name", NAMES)
def test_whole_graph_equals_eager(device, generator, name):
    """Forward and backward under aot_eager: the same calls, so the same bits; few graphs for many shapes."""
    function, weights = functions(generator, device)[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for rows in ([3, 0, 5], [2, 7, 0, 4], [1] * 9, ROWS["one_huge"], [4, 4], [9, 0, 0, 2, 2], [3] * 20):
        X, Y = batch(generator, rows, device)
        results, expected = run(compiled, X, Y, weights), run(function, X, Y, weights)
        for a, b in zip(results, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count <= 3, "recompiled for every batch"

    with torch.no_grad():
        a, b = (f(X, Y, *weights) for f in (compiled, function))
    for s, t in zip(*((x if isinstance(x, tuple) else (x,)) for x in (a, b)), strict=True):
        assert bitwise_equal(s, t)


WITHOUT_LABELS = ("sparse_linear", "bucket_forward", "rounded forward", "linear forward", "decode")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [(name, "feature") for name in NAMES if name != "decode"]
    + [(name, "label") for name in NAMES if name not in WITHOUT_LABELS],
)
def test_index_out_of_range_is_nan(device, generator, name, wrong):
    """Contents are not checked in a graph: no crash, no plausible number, as with validate=False."""
    function, weights = functions(generator, device)[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (values, indices, indptr), (label_indices, label_indptr) = batch(generator, [3, 2], device)
    if wrong == "label":
        label_indices[0] = -1
    else:
        indices[0] = D
    out = compiled((values, indices, indptr), (label_indices, label_indptr), *weights)
    assert out.reshape(-1)[0].isnan()


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor's CPU code needs a C++ compiler")
def test_inductor_decodes_as_eager(device, generator):
    function, weights = functions(generator, device)["decode"]
    compiled = torch.compile(function, fullgraph=True)
    X, Y = batch(generator, [3, 0, 5], device)
    with torch.no_grad():
        (values, labels), (expected_values, expected_labels) = (
            f(X, Y, *weights) for f in (compiled, function)
        )
    torch.testing.assert_close(values, expected_values)
    assert torch.equal(labels, expected_labels)


def test_each_hash_decodes_by_its_own_index():
    """The index is a constant of the graph, so another hash must be another graph."""
    compiled = torch.compile(F.merge_topk, fullgraph=True, backend="eager")
    scores = torch.randn(3, 8, 512, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1, 0):
        hash = LabelHash(30_000, 512, 8, seed)
        assert torch.equal(compiled(scores, hash, 5)[1], F.merge_topk(scores, hash, 5)[1])


class OwnModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hash = LabelHash(L, B, R, seed=2)
        self.layer = torch.nn.Linear(3, R * B)

    def forward(self, x):
        return F.merge_topk(self.layer(x).unflatten(1, (R, B)), self.hash, 2)


@pytest.mark.filterwarnings("ignore::mach_ext.hashing.CollisionWarning")
def test_a_module_with_a_hash_in_it():
    model, x = OwnModel(), torch.rand(4, 3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(x), model(x), strict=True))

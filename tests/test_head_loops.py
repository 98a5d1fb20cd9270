"""MACHHead in stock training code: optimisers, clipping, scaling, autocast, torch.compile, checkpointing."""

import shutil

import pytest
import torch
from head_cases import SIZES, B, H, R, all_equal, build, csr_of, dense_loss, hidden_of, random_labels
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import mach_ext

WIDTH = 4  # of the documents that the encoder takes

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Dynamo tracing an autograd.Function; importing inductor.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]


class Network(nn.Module):
    """An encoder and a head, as someone would write them."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        dtype = options.get("dtype", torch.float32)
        own = R if options.get("per_repetition") else 1
        self.encoder = nn.Sequential(nn.Linear(WIDTH, own * H, dtype=dtype), nn.Tanh())
        self.head = build(**options)

    def encode(self, x):
        hidden = self.encoder(x)
        return hidden.unflatten(-1, (R, H)) if self.head.per_repetition else hidden

    def forward(self, x, *labels):
        return self.head.loss(self.encode(x), labels)


def batch(N, seed=0, dtype=torch.float32):
    """Documents and at least two labels, in lists and as a pair."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    lists = random_labels(generator, N)
    lists[0] = [3, 5]
    return x, lists, csr_of(lists)


def gradients_of(module):
    found = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    return found


# ----------------------------------------------------------------------------------------- stock optimisers


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.02, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.02, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True, weight_decay=0.1),
    "AdamW AMSGrad": lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("per_repetition", [False, True])
def test_training_is_that_of_the_dense_loss(per_repetition, name):
    """Eight clipped steps in float64, by the head's loss and by PyTorch's on one-hot targets."""
    ours, twin = (Network(per_repetition=per_repetition, dtype=torch.float64) for _ in range(2))
    optimizers = [OPTIMIZERS[name](network.parameters()) for network in (ours, twin)]
    first = None
    for step in range(8):
        x, lists, pair = batch(9, step % 2, torch.float64)
        weights = twin.head.bucket_weight, twin.head.bucket_bias
        losses = ours(x, *pair), dense_loss(twin.head, twin.encode(x), *weights, lists)
        torch.testing.assert_close(*losses)
        for network, optimizer, loss in zip((ours, twin), optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
        first = losses[0] if first is None else first
    torch.testing.assert_close(dict(ours.named_parameters()), dict(twin.named_parameters()))
    assert losses[0] < first


def test_gradients_may_be_kept_and_added_up_in_place():
    """zero_grad(set_to_none=False) writes to the gradients, which the loss has given away."""
    network, expected = Network(), []
    for step in range(3):
        x, _, pair = batch(5, step)
        network(x, *pair).backward()
        expected.append([gradient.clone() for gradient in gradients_of(network)])
    kept = None
    for step in range(3):
        network.zero_grad(set_to_none=False)
        x, _, pair = batch(5, step)
        network(x, *pair).backward()
        found = [parameter.grad for parameter in network.parameters()]
        assert all_equal(found, expected[step])
        assert kept is None or all(a is b for a, b in zip(kept, found, strict=True))
        kept = found


def test_grad_scaler():
    network, plain = Network(), Network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.02) for each in (network, plain)]
    for step in range(4):
        x, _, pair = batch(9, step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(network(x, *pair)).backward()
        scaler.unscale_(optimizers[0])
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizers[0])
        scaler.update()
        plain(x, *pair).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizers[1].step()
    torch.testing.assert_close(dict(network.named_parameters()), dict(plain.named_parameters()))
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    optimizers[0].zero_grad()
    scaler.scale(network(x, *pair) * float("inf")).backward()
    scaler.step(optimizers[0])
    scaler.update()
    assert scaler.get_scale() == 2.0**11
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


@pytest.mark.parametrize("where", ["forward", "forward and backward"])
def test_autocast(where):
    """The encoder's layer gives bfloat16. The head widens it and computes in float32."""
    network = Network()
    x, _, pair = batch(9)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network.encode(x)
        assert hidden.dtype == torch.bfloat16
        loss = network(x, *pair)
        if where != "forward":
            loss.backward()
        logits, scores = network.head(hidden), network.head.label_scores(hidden, torch.tensor([3, 4]))
        best = network.head.topk(hidden, 3)
    if where == "forward":
        loss.backward()
    assert loss.dtype == logits.dtype == scores.dtype == torch.float32
    found = gradients_of(network)
    head = network.head
    for answer, alone in (
        (loss, head.loss(hidden.float(), pair)),
        (logits, head(hidden.float())),
        (scores, head.label_scores(hidden.float(), torch.tensor([3, 4]))),
        (best[1], head.topk(hidden.float(), 3)[1]),
    ):
        assert torch.equal(answer, alone)
    units = hidden.detach().float().requires_grad_()
    head.loss(units, pair).backward()
    assert all_equal(found[2:], [head.bucket_weight.grad, head.bucket_bias.grad])
    assert all(gradient.dtype == torch.float32 for gradient in found)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("part", ["encoder", "head", "both"])
def test_activation_checkpointing(part, use_reentrant):
    network = Network()
    x, _, pair = batch(9)
    x.requires_grad_()
    network(x, *pair).backward()
    expected, expected_x = gradients_of(network), x.grad
    x.grad = None

    def again(function, *arguments):
        return checkpoint(function, *arguments, use_reentrant=use_reentrant)

    calls = {
        "encoder": lambda: network.head.loss(again(network.encode, x), pair),
        "head": lambda: again(network.head, network.encode(x), pair),
        "both": lambda: again(network, x, *pair),
    }
    calls[part]().backward()
    assert all_equal(gradients_of(network), expected)
    assert torch.equal(x.grad, expected_x)


# -------------------------------------------------------------------------------------------- torch.compile


@pytest.fixture
def compiled():
    """Compile a function as a whole graph, and count the graphs."""
    counters = []

    def compile_whole(function, backend="aot_eager", **options):
        counters.append(CompileCounterWithBackend(backend))
        return torch.compile(function, fullgraph=True, backend=counters[-1], **options), counters[-1]

    torch.compiler.reset()
    yield compile_whole
    torch.compiler.reset()


ASKED = torch.tensor([3, 0, 19, 7])
GRAPHS = {
    "loss": lambda network, x, pair: network.head.loss(network.encode(x), pair),
    "sum": lambda network, x, pair: network.head(network.encode(x), pair, reduction="sum"),
    "arrays": lambda network, x, pair: network.head.loss(network.encode(x), tuple(p.numpy() for p in pair)),
    "forward": lambda network, x, pair: network.head(network.encode(x)),
    "bfloat16": lambda network, x, pair: network.head(network.encode(x), precision="bfloat16"),
    "leading dimensions": lambda network, x, pair: network.head(network.encode(x)[None]),
    "label_logits": lambda network, x, pair: network.head.label_logits(network.encode(x), ASKED),
    "label_scores": lambda network, x, pair: network.head.label_scores(network.encode(x), ASKED, "model"),
    "topk": lambda network, x, pair: network.head.topk(network.encode(x), 3),
}


@pytest.mark.parametrize(
    ("name", "per_repetition"), [*((name, False) for name in GRAPHS), ("loss", True), ("topk", True)]
)
def test_an_encoder_and_a_head_are_one_graph(compiled, name, per_repetition, say):
    """Few graphs for many sizes of a batch. Gradients are those without torch.compile."""
    network = Network(per_repetition=per_repetition)
    function, counter = compiled(GRAPHS[name])
    for N in (3, 5, 8, 20, 2):
        x, _, pair = batch(N, N)
        answers = []
        for call in (function, GRAPHS[name]):
            out = call(network, x, pair)
            outputs = out if isinstance(out, tuple) else (out,)
            outputs[0].sum().backward()
            answers.append([*outputs, *gradients_of(network)])
        for ours, plain in zip(*answers, strict=True):
            torch.testing.assert_close(ours, plain)
    assert counter.frame_count <= 2, "recompiled for every batch"
    say(f"{name}, per_repetition={per_repetition}: {counter.frame_count} graphs for 5 sizes of a batch")


def test_a_compiled_module_trains(compiled):
    ours, plain = Network(), Network()
    module, _ = compiled(ours)
    for step in range(3):
        x, _, pair = batch(6 + step, step)
        for each, network in ((module, ours), (plain, plain)):
            with torch.autocast("cpu", torch.bfloat16):
                loss = each(x, *pair)
            loss.backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor's CPU code needs a C++ compiler")
def test_inductor(compiled):
    network = Network()
    x, _, pair = batch(9)
    for name in ("loss", "topk"):
        function, _ = compiled(GRAPHS[name], "inductor")
        out = function(network, x, pair)
        values = out[0] if isinstance(out, tuple) else out
        values.sum().backward()
        found = gradients_of(network)
        plain = GRAPHS[name](network, x, pair)
        expected = plain[0] if isinstance(plain, tuple) else plain
        expected.sum().backward()
        torch.testing.assert_close(values, expected)
        torch.testing.assert_close(found, gradients_of(network))


# -------------------------------------------------------------------------------------------- fake tensors


@pytest.mark.parametrize("per_repetition", [False, True])
def test_fake_tensors(per_repetition):
    """Shapes without contents, for a head that is made among them."""
    with FakeTensorMode():
        head = mach_ext.MACHHead(**{**SIZES, "per_repetition": per_repetition})
        own = (R,) if per_repetition else ()
        hidden = torch.randn(7, *own, H, requires_grad=True)
        pair = torch.zeros(9, dtype=torch.int64), torch.zeros(8, dtype=torch.int64)
        loss = head(hidden, pair)
        loss.backward()
        assert loss.shape == ()
        assert hidden.grad.shape == hidden.shape
        assert head.bucket_weight.grad.shape == (R, H, B)
        assert head(hidden).shape == (7, R, B)
        assert head.label_scores(hidden, pair[0], "model").shape == (7, 9)
        assert [t.shape for t in head.topk(hidden, 3)] == [(7, 3), (7, 3)]


def test_fake_documents_of_a_real_head():
    head = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        hidden, pair = torch.randn(2, H), csr_of([[1], [2, 3]])
        assert head.loss(hidden, pair).shape == ()
        assert head.topk(hidden, 3)[0].shape == (2, 3)
    assert head.loss(hidden_of(head, 2), [[1], [2, 3]]).isfinite()

"""MACHHead: documents and labels that are none, hooks, dtypes, and the words of what it refuses."""

import copy

import pytest
import torch
from head_cases import SIZES, B, H, L, R, all_equal, build, hidden_of

import mach_ext

LISTS = [[1, 2], [], [19], [0, 5, 7]]
LABELS = torch.tensor([3, 0, 6])
MERGES = tuple(mach_ext.merges.MODEL_MERGES)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_modes_differ_in_nothing():
    head = build()
    hidden = hidden_of(head, 4)
    for mode in (head.eval(), head.train()):
        assert torch.equal(mode(hidden), head(hidden))
        assert torch.equal(mode.loss(hidden, LISTS), head.loss(hidden, LISTS))


@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("per_repetition", [False, True])
def test_no_documents(per_repetition, leading):
    head = build(per_repetition=per_repetition)
    hidden = hidden_of(head, *leading)
    assert head(hidden).shape == (*leading, R, B)
    assert head.label_scores(hidden, torch.tensor([1, 2])).shape == (*leading, 2)
    for precision in ("float32", "bfloat16"):
        scores, labels = head.topk(hidden, precision=precision)
        assert scores.shape == labels.shape == (*leading, 5)
    for reduction in ("mean", "sum"):
        with pytest.raises(
            ValueError, match="bucket_bce: the mean over documents needs at least one, got N=0"
        ):
            head.loss(hidden, [], reduction=reduction)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_no_labels_to_score(leading):
    head = build()
    hidden = hidden_of(head, *leading)
    for labels in (torch.empty(0, dtype=torch.int64), torch.empty(*leading, 0, dtype=torch.int64)):
        for score in ("logit", "model"):
            assert head.label_scores(hidden, labels, score).shape == (*leading, 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("merge", MERGES)
def test_topk_is_that_of_a_model(merge, precision):
    """Of any k, to the bit."""
    model = mach_ext.MACH(30, 40, 8, 16, hidden_size=8, merge=merge)
    X = torch.rand(5, 30, generator=torch.Generator().manual_seed(0))
    csr = X.flatten(), torch.arange(30).repeat(5), torch.arange(6) * 30
    hidden = model.encode(*csr)
    for k in (0, 1, 5, 40):
        expected = model.topk(*csr, k, precision=precision)
        assert all_equal(model.head.topk(hidden, k, precision=precision), expected)
        stacked = model.head.topk(hidden.view(1, 5, 8), k, precision=precision)
        assert all_equal([rows[0] for rows in stacked], expected)
    assert model.head.topk(hidden)[0].shape == (5, 5)
    assert build(num_labels=3).topk(torch.zeros(2, H))[1].shape == (2, 3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_topk_sees_hooks(precision):
    head = build(merge="mean_prob")
    hidden, seen = hidden_of(head, 4).detach(), []
    with torch.no_grad():
        plain, logits = head.topk(hidden, 4, precision=precision), head(hidden, precision=precision)
        handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output))
        assert all_equal(head.topk(hidden, 4, precision=precision), plain)
        assert torch.equal(seen[0], logits)  # and not overwritten
        handle.remove()
        handle = head.register_forward_hook(lambda module, inputs, output: -output)
        changed, _ = head.topk(hidden, L, precision=precision)
        handle.remove()
        torch.testing.assert_close(changed, 1 - head.topk(hidden, L, precision=precision)[0].flip(-1))
        head.register_forward_pre_hook(lambda module, inputs: (0 * inputs[0],))
        labels = head.topk(hidden, 3, precision=precision)[1]
        assert torch.equal(labels, labels[:1].expand(4, 3))


LIKE_WEIGHTS = "hidden must be float32 like the weights, got float64"
MASTER = "weight must be float32 or float64 to be trained (keep float32 master weights), got bfloat16"
REFUSED = {
    "TypeError: MACHHead: hidden must be a torch.Tensor, got ndarray": lambda head, h: head(h.numpy()),
    "TypeError: MACHHead: hidden must be a dense tensor, got one of layout sparse_coo": (
        lambda head, h: head(h.to_sparse())
    ),
    "ValueError: MACHHead: hidden must be [..., H=6], got [4, 5]": lambda head, h: head(h[:, 1:]),
    "ValueError: MACHHead: hidden must be [..., H=6], got []": lambda head, h: head(h.sum()),
    f"TypeError: MACHHead: {LIKE_WEIGHTS}": lambda head, h: head(h.double()),
    f"TypeError: MACHHead.loss: {LIKE_WEIGHTS}": lambda head, h: head.loss(h.double(), LISTS),
    f"TypeError: MACHHead: {LIKE_WEIGHTS} ": lambda head, h: head.topk(h.double()),
    f"TypeError: MACHHead.topk: {LIKE_WEIGHTS}": lambda head, h: head.topk(h.double(), precision="bfloat16"),
    f"TypeError: MACHHead.label_logits: {LIKE_WEIGHTS}": (
        lambda head, h: head.label_scores(h.double(), LABELS)
    ),
    "TypeError: MACHHead: hidden must be float64 like the weights, got float32": (
        lambda head, h: head.double()(h)
    ),
    "TypeError: bucket_logits: hidden must be float32 or float64, got int64": lambda head, h: head(h.long()),
    "ValueError: bucket_logits: weight must be on meta like the other arguments, got cpu": (
        lambda head, h: head(h.to("meta"))
    ),
    f"TypeError: bucket_bce: {MASTER}": lambda head, h: head.bfloat16().loss(h, LISTS),
    f"TypeError: bucket_logits: {MASTER}": lambda head, h: head.bfloat16()(h),
    "ValueError: MACHHead.loss: reduction must be one of mean, sum, got 'none'": (
        lambda head, h: head.loss(h, LISTS, reduction="none")
    ),
    "ValueError: MACHHead: precision is for bucket logits; the loss has none, got 'bfloat16'": (
        lambda head, h: head(h, LISTS, precision="bfloat16")
    ),
    "ValueError: bucket_logits: precision must be one of float32, bfloat16, got 'half'": (
        lambda head, h: head(h, precision="half")
    ),
    "ValueError: merge_topk: k must be in 0 ... L=20, got 21": lambda head, h: head.topk(h, L + 1),
    "ValueError: merge_topk: k must be in 0 ... L=20, got -1": lambda head, h: head.topk(h, -1),
    "TypeError: merge_topk: k must be an int, got float": lambda head, h: head.topk(h, 2.0),
    'ValueError: MACHHead.label_scores: score must be "logit" or "model", got \'prob\'': (
        lambda head, h: head.label_scores(h, LABELS, "prob")
    ),
    "TypeError: label_logits: labels must be a torch.Tensor, got list": (
        lambda head, h: head.label_scores(h, [1])
    ),
    "ValueError: label_logits: labels must be in [0, L=20), got 20": (
        lambda head, h: head.label_scores(h, torch.tensor([L]))
    ),
    "ValueError: MACHHead.label_logits: labels must be [m] or [4, m] like hidden, got [3, 3]": (
        lambda head, h: head.label_scores(h, LABELS.expand(3, 3))
    ),
    "ValueError: MACHHead: hidden must be [..., R=3, H=6], got [4, 6]": (
        lambda head, h: build(per_repetition=True)(h)
    ),
    "ValueError: MACHHead: hidden must be [..., R=3, H=6], got [1, 4, 6]": (
        lambda head, h: build(per_repetition=True)(h[None])
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_calls_that_are_refused(message):
    head = build()
    with pytest.raises((TypeError, ValueError)) as raised:
        REFUSED[message](head, hidden_of(head, 4).detach())
    assert f"{raised.type.__name__}: {raised.value}" == message.strip()


@pytest.mark.filterwarnings("ignore::mach_ext.hashing.CollisionWarning")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "MACHHead: in_features must be at least 1, got 0"),
        ({"in_features": 2.5}, TypeError, "MACHHead: in_features must be an int, got float"),
        ({"in_features": True}, TypeError, "MACHHead: in_features must be an int, got bool"),
        ({"num_labels": 0}, ValueError, "LabelHash: num_labels must be from 1 to 2147483646, got 0"),
        ({"num_buckets": 1}, ValueError, "LabelHash: num_buckets must be from 2 to 2147483647, got 1"),
        ({"num_repetitions": 0}, ValueError, "LabelHash: num_repetitions must be at least 1, got 0"),
        ({"seed": -1}, ValueError, "LabelHash: seed must be at least 0, got -1"),
        ({"merge": "mean"}, ValueError, "MACHHead: merge must be one of mean_logit, .*, got 'mean'"),
        ({"per_repetition": "no"}, TypeError, "MACHHead: per_repetition must be a bool, got str"),
        ({"hash": 3}, TypeError, "MACHHead: hash must be a mach_ext.LabelHash, got int"),
        (
            {"hash": mach_ext.LabelHash(30, 50, 4)},
            ValueError,
            r"MACHHead: hash has \(L, B, R\) = \(30, 50, 4\)",
        ),
        ({"dtype": torch.int64}, TypeError, "MACHHead: dtype must be one of float32, .*, got int64"),
        ({"dtype": torch.complex64}, TypeError, "MACHHead: dtype must be one of float32, .*, got complex64"),
        ({"in_features": 2**45}, MemoryError, "MACHHead: not enough memory: .* for the weights"),
    ],
    ids=str,
)
def test_constructor_refuses(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        mach_ext.MACHHead(**{**SIZES, **changes})


def test_half_precision_hidden_units_are_widened():
    head = build(dtype=torch.float64)
    hidden = hidden_of(head, 4).detach()
    for dtype in (torch.bfloat16, torch.float16):
        narrow = hidden.to(dtype).requires_grad_()
        wide = narrow.detach().double().requires_grad_()
        head.loss(narrow, LISTS).backward()
        head.loss(wide, LISTS).backward()
        assert torch.equal(head.loss(narrow, LISTS), head.loss(wide, LISTS))
        assert torch.equal(narrow.grad, wide.grad.to(dtype))
        assert torch.equal(head(narrow), head(wide))


def test_narrow_weights_predict(say):
    head = build(num_labels=200, num_buckets=16, num_repetitions=8)
    hidden = hidden_of(head, 50).detach()
    narrow = copy.deepcopy(head).bfloat16()
    assert narrow.bucket_weight.dtype == narrow.logit_adjustment.dtype == torch.bfloat16
    with torch.no_grad():
        assert narrow(hidden).dtype == torch.float32
        same = (narrow.topk(hidden)[1] == head.topk(hidden)[1]).float().mean().item()
    assert same > 0.8
    say(f"bfloat16 weights: {same:.0%} of the 5 best labels are in their places")


def test_hidden_units_without_a_gradient():
    head = build()
    head.loss(hidden_of(head, 4).detach(), LISTS).backward()
    assert head.bucket_weight.grad.shape == (R, H, B)

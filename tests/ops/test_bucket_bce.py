"""bucket_bce and linear_bucket_bce: MACH's loss and its gradients, a group of repetitions at a time."""

import subprocess
import sys
import textwrap

import pytest
import torch
from helpers import (
    FLOATS,
    INTS,
    Csr,
    assert_deterministic,
    assert_matches,
    bitwise_equal,
    csr_batches,
    double,
    random_csr,
    random_hash,
    strided,
    to,
    uniform,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from mach_ext import LabelHash, _ops, _reference
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
parametrize_shared = pytest.mark.parametrize("shared", [True, False], ids=["shared", "independent"])


def targets(hash, label_indices, label_indptr):
    """[N, R, B] of 0 and 1 by a loop over the labels: no code in common with the twin."""
    N, R = len(label_indptr) - 1, hash.num_repetitions
    out = torch.zeros(N, R, hash.num_buckets, dtype=torch.float64)
    for n in range(N):
        for label in label_indices[label_indptr[n] : label_indptr[n + 1]].tolist():
            for r in range(R):
                out[n, r, hash.buckets[r, label]] = 1
    return out


def dense_loss(logits, positive):
    """Sum over buckets, mean over documents and repetitions, by torch in float64."""
    loss = binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return loss.sum(2).mean()


def dense_logits(hidden, weight, bias):
    if hidden.dim() == 2:
        hidden = hidden[:, None].expand(-1, len(weight), -1)
    logits = torch.einsum("nrh,rhb->nrb", hidden, weight)
    return logits if bias is None else logits + bias


def gradients_match(ours, twins, dtype):
    for a, b in zip(ours, twins, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == dtype
            assert_matches(a, b)


def label_sets(draw, generator, N, L):
    rows = draw(st.lists(st.integers(0, 6), min_size=N, max_size=N))
    index, pointer = draw(st.sampled_from(INTS)), draw(st.sampled_from(INTS))
    return random_csr(generator, rows, L, index=index, pointer=pointer)[1:]


# ----------------------------------------------------------------------------------------------- raw op


def laid_out(t, order):
    """[N, G, B] as products leave it: documents first, repetitions first, or in rows of a wider tensor."""
    if order == "documents":
        return t.contiguous()
    if order == "repetitions":
        return t.transpose(0, 1).contiguous().transpose(0, 1)
    wider = t.new_zeros(t.shape[0], t.shape[1] + 1, t.shape[2] + 3)
    wider[:, 1:, 2:-1] = t
    return wider[:, 1:, 2:-1]


ORDERS = ["documents", "repetitions", "wider"]


@parametrize_dtype
def test_raw_op_matches_reference(device, dtype):
    @given(
        N=st.sampled_from([0, 1, 2, 6, 15, 16, 17, 35]),
        G=st.integers(0, 3),
        B=st.sampled_from([2, 3, 16, 33, 64, 131]),
        kind=st.sampled_from(["loss", "in place", "out"]),
        orders=st.tuples(st.sampled_from(ORDERS), st.sampled_from(ORDERS)),
        with_bias=st.booleans(),
        with_grad_bias=st.booleans(),
        scale=st.floats(0.01, 4),
        spread=st.sampled_from([1, 30]),
        data=st.data(),
    )
    def check(N, G, B, kind, orders, with_bias, with_grad_bias, scale, spread, data):
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
        indices, indptr = label_sets(data.draw, generator, N, 12)
        indices = indices.long()
        buckets = random_hash(generator, 12, B, max(1, G)).buckets[:G]
        logits = uniform(generator, N, G, B, dtype=dtype) * spread
        bias = uniform(generator, G, B, dtype=dtype) * spread if with_bias else None
        if kind == "loss":
            scale = None
        out = grad_bias = twin_out = twin_grad_bias = None
        if kind == "out" and dtype == torch.float32:
            out = laid_out(torch.full((N, G, B), torch.nan, dtype=torch.bfloat16, device=device), orders[1])
            twin_out = logits.double()
        if kind != "loss" and with_grad_bias:
            grad_bias, twin_grad_bias = (
                logits.new_full((G, B), torch.nan, device=device),
                logits.new_empty(G, B).double(),
            )
        ours, twin = laid_out(logits.clone().to(device), orders[0]), logits.double()
        args = (buckets, indices, indptr)
        loss = _ops.bucket_bce(ours, *to(device, (bias, *args)), scale, out, grad_bias)
        sums = logits if bias is None else logits + bias  # rounded, as the operator has them
        twin = sums.double()
        expected = _reference.bucket_bce(twin, None, *args, scale, twin_out, twin_grad_bias)
        assert loss.dtype == torch.float64
        assert_matches(loss, expected, dtype)
        if grad_bias is not None:
            assert_matches(grad_bias, twin_grad_bias)
        if out is not None:
            assert_matches(out, twin_out)
        if kind == "in place":
            assert_matches(ours, twin)
        elif out is not None or kind == "loss":
            assert bitwise_equal(ours, logits)

    check()


def group_arguments(generator, N, G, B, dtype=torch.float32, device="cpu", num_labels=60):
    """Logits, bias, buckets and labels of a group."""
    buckets = random_hash(generator, num_labels, B, G).buckets
    labels = random_csr(generator, [9, 0, 3, 1] * (N // 4) + [2] * (N % 4), num_labels)[1:]
    logits, bias = uniform(generator, N, G, B, dtype=dtype), uniform(generator, G, B, dtype=dtype)
    return to(device, (logits * 9, bias, buckets, *labels))


def test_raw_op_is_that_of_each_repetition(device, generator):
    """A group is its repetitions one after another, to the bit; so is the order in memory."""
    logits, bias, buckets, *labels = group_arguments(generator, 37, 3, 150, device=device)
    single, losses, grads, sums = logits.clone(), [], [], []
    for g in range(3):
        at, grad_bias = slice(g, g + 1), torch.empty_like(bias[:1])
        losses.append(_ops.bucket_bce(single[:, at], bias[at], buckets[at], *labels, 0.3, None, grad_bias))
        grads.append(single[:, at])
        sums.append(grad_bias)
    expected = losses[0] + losses[1] + losses[2]
    for order in ORDERS:
        z, grad_bias = laid_out(logits, order).clone(), torch.empty_like(bias)
        loss = _ops.bucket_bce(z, bias, buckets, *labels, 0.3, None, grad_bias)
        assert bitwise_equal(loss, expected)
        assert bitwise_equal(z, torch.cat(grads, 1))
        assert bitwise_equal(grad_bias, torch.cat(sums))


def test_bias_is_added_inside(device, generator):
    """The bits of adding it before; without a gradient the logits stay."""
    logits, bias, buckets, *labels = group_arguments(generator, 5, 2, 70, device=device)
    before, inside = logits + bias, logits.clone()
    loss = _ops.bucket_bce(inside, bias, buckets, *labels, None)
    assert bitwise_equal(inside, logits)
    assert bitwise_equal(_ops.bucket_bce(inside, bias, buckets, *labels, 0.3), loss)
    assert bitwise_equal(_ops.bucket_bce(before, None, buckets, *labels, 0.3), loss)
    assert bitwise_equal(inside, before)


def test_narrow_gradient_is_the_rounded_one(device, generator):
    """The bits of PyTorch's rounding, NaN and infinities included; the column sums are taken before it."""
    logits, bias, buckets, *labels = group_arguments(generator, 18, 2, 70, device=device)
    logits[0, 0, 0], logits[1, 1, 3], logits[2, 0, 1] = float("nan"), float("inf"), -float("inf")
    wide, out = logits.clone(), torch.empty_like(logits, dtype=torch.bfloat16)
    sums = [torch.empty_like(bias) for _ in range(2)]
    expected = _ops.bucket_bce(wide, bias, buckets, *labels, 0.3, None, sums[0])
    loss = _ops.bucket_bce(logits, bias, buckets, *labels, 0.3, out, sums[1])
    assert bitwise_equal(loss, expected)
    assert bitwise_equal(out, wide.bfloat16())
    assert bitwise_equal(*sums)
    assert out.isnan().sum() == 1
    assert sums[0].isnan().sum() == 1


def test_what_lies_between_rows_stays(device, generator):
    _, bias, buckets, *labels = group_arguments(generator, 6, 2, 5, device=device)
    wider = uniform(generator, 6, 3, 9, dtype=torch.float32).to(device)
    before = wider.clone()
    _ops.bucket_bce(wider[:, 1:, 2:7], bias, buckets, *labels, 0.5)
    assert not bitwise_equal(wider, before)
    wider[:, 1:, 2:7] = before[:, 1:, 2:7]
    assert bitwise_equal(wider, before)


@pytest.mark.parametrize("B", [7, 1024, 2052, 70_001])
def test_gradient_has_the_same_bits_on_every_device(device, generator, B):
    """1024 buckets are a tile of the CUDA kernel; 150 documents are more than 8 blocks of 16."""
    N = 150 if B < 100 else 19
    arguments = group_arguments(generator, N, 2, B)
    expected, sums = arguments[0].clone(), arguments[0].new_empty(2, B)
    ours, bias, buckets, *labels = to(device, arguments)
    grad_bias = torch.empty_like(bias)
    cpu_loss = torch.ops.mach_ext.bucket_bce(expected, *arguments[1:], 0.3, None, sums)
    loss = _ops.bucket_bce(ours, bias, buckets, *labels, 0.3, None, grad_bias)
    assert bitwise_equal(ours, expected)
    assert bitwise_equal(grad_bias, sums)
    torch.testing.assert_close(loss.cpu(), cpu_loss, rtol=1e-6, atol=0)


def test_labels_out_of_range_make_the_loss_nan(device):
    buckets = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.int32, device=device)
    for wrong in (-1, 3, 2**40, -(2**40)):
        labels = torch.tensor([2, wrong, 1], device=device), torch.tensor([0, 2, 3], device=device)
        loss = _ops.bucket_bce(torch.zeros(2, 2, 2, device=device), None, buckets, *labels, 1.0)
        assert loss.isnan().tolist() == [True, False]
    wrong = torch.tensor([[1, 0, 1], [0, 2, 0]], dtype=torch.int32, device=device)  # a bucket
    loss = _ops.bucket_bce(torch.zeros(2, 2, 2, device=device), None, wrong, *labels, 1.0)
    assert loss.isnan().tolist() == [True, True]


@parametrize_dtype
@pytest.mark.parametrize("gradient", [False, True])
def test_opcheck(device, generator, dtype, gradient):
    logits, bias, buckets, *labels = group_arguments(generator, 3, 2, 5, dtype, device)
    op = torch.ops.mach_ext.bucket_bce
    torch.library.opcheck(op, (logits, bias, buckets, *labels, 0.5 if gradient else None))
    if gradient:
        out = torch.empty_like(logits, dtype=torch.bfloat16) if dtype == torch.float32 else None
        outputs = (out, torch.empty_like(bias))
        torch.library.opcheck(op, (logits, None, buckets, *labels, 0.5, *outputs))


@parametrize_dtype
def test_raw_op_deterministic(generator, dtype):
    logits, bias, buckets, *labels = group_arguments(generator, 150, 3, 301, dtype)

    def run():
        z, grad_bias = logits.clone(), torch.empty_like(bias)
        return _ops.bucket_bce(z, bias, buckets, *labels, 0.3, None, grad_bias), z, grad_bias

    assert_deterministic(run)


@parametrize_dtype
def test_loss_is_finite_for_huge_logits(device, dtype):
    """softplus(1e4) = 1e4 and sigmoid = 0 or 1, exactly; no overflow on the way."""
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4], [0, -0.0, 88.8, -88.8]], dtype=dtype, device=device)
    logits = logits[:, None]
    buckets = torch.tensor([[0, 1]], dtype=torch.int32, device=device)
    labels = torch.tensor([0, 1], device=device), torch.tensor([0, 2, 2], device=device)
    loss = _ops.bucket_bce(logits, None, buckets, *labels, 2.0)
    assert loss[0] == 2e4  # bucket 1: -1e4 for a positive; bucket 2: +1e4 for a negative
    assert logits[0, 0].tolist() == [0, -2, 2, 0]
    assert logits.isfinite().all()
    torch.testing.assert_close(loss[1].item(), 2 * 0.6931471805599453 + 88.8, rtol=1e-6, atol=0)


# --------------------------------------------------------------------------------------------- bucket_bce


@parametrize_shared
@parametrize_dtype
def test_loss_and_gradients_match_dense_twin(device, dtype, shared):
    @given(
        N=st.integers(1, 5),
        R=st.integers(1, 4),
        H=st.integers(1, 9),
        B=st.integers(2, 12),
        with_bias=st.booleans(),
        data=st.data(),
    )
    def check(N, R, H, B, with_bias, data):
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
        L = 15
        labels = label_sets(data.draw, generator, N, L)
        hash = random_hash(generator, L, B, R)
        tensors = [
            uniform(generator, *((N, H) if shared else (N, R, H)), dtype=dtype),
            uniform(generator, R, H, B, dtype=dtype),
            uniform(generator, R, B, dtype=dtype) if with_bias else None,
        ]

        def run(loss, tensors):
            leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
            value = loss(*leaves)
            (3 * value).backward()
            return value.detach(), [None if t is None else t.grad for t in leaves]

        on_device = to(device, labels)
        moved = hash.to(device)
        value, gradients = run(lambda *t: F.bucket_bce(*t, *on_device, moved), to(device, tensors))
        positive = targets(hash, *labels)
        expected, twins = run(lambda *t: dense_loss(dense_logits(*t), positive), double(tensors))
        assert value.shape == ()
        assert value.dtype == dtype
        assert_matches(value, expected)
        gradients_match(gradients, twins, dtype)

    check()


@parametrize_shared
def test_gradcheck(device, generator, shared):
    hash = random_hash(generator, 9, 4, 2, device)
    labels = to(device, random_csr(generator, [2, 0, 5], 9)[1:])
    tensors = [
        uniform(generator, *((3, 5) if shared else (3, 2, 5))),
        uniform(generator, 2, 5, 4),
        uniform(generator, 2, 4),
    ]
    leaves = [t.requires_grad_() for t in to(device, tensors)]
    torch.autograd.gradcheck(lambda h, w, b: F.bucket_bce(h, w, b, *labels, hash), leaves)
    for i in range(3):  # one at a time: no gradient is taken from another's work
        fixed = [t.detach() for t in leaves]

        def alone(t, i=i, fixed=fixed):
            return F.bucket_bce(*fixed[:i], t, *fixed[i + 1 :], *labels, hash)

        torch.autograd.gradcheck(alone, [leaves[i]])


def test_two_labels_in_one_bucket_count_once(device):
    """Labels 0, 1 and 2 share bucket 1 of repetition 0; in repetition 1 they are 0, 2, 1, and 3 is 1, too."""
    hash = LabelHash.from_buckets([[1, 1, 1, 0], [0, 2, 1, 1]], num_buckets=3).to(device)
    hidden = torch.zeros(1, 2, dtype=torch.float64, device=device)
    weight = torch.zeros(2, 2, 3, dtype=torch.float64, device=device)
    logits = [[0.5, 2.0, -1.0], [1.0, -3.0, 0.25]]
    bias = torch.tensor(logits, dtype=torch.float64, device=device).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3], device=device), torch.tensor([0, 4], device=device)
    loss = F.bucket_bce(hidden, weight, bias, *labels, hash)
    softplus = bias.detach().exp().log1p().sum()
    torch.testing.assert_close(loss.detach(), (softplus - (2.0 + 0.5) - (1.0 + 0.25 - 3.0)) / 2)
    loss.backward()
    positive = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.float64, device=device)
    torch.testing.assert_close(bias.grad, (bias.detach().sigmoid() - positive) / 2)


def test_documents_without_labels(device, generator):
    """nnz 0: only negatives."""
    hash = random_hash(generator, 9, 4, 2, device)
    hidden, weight = to(device, (uniform(generator, 3, 5), uniform(generator, 2, 5, 4)))
    labels = to(device, (torch.empty(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)))
    expected = torch.nn.functional.softplus(dense_logits(hidden, weight, None)).sum(2).mean()
    torch.testing.assert_close(F.bucket_bce(hidden, weight, None, *labels, hash), expected)


@parametrize_shared
def test_strided_arguments(device, generator, shared):
    hash = random_hash(generator, 9, 4, 2, device)
    labels = to(device, random_csr(generator, [2, 0, 5], 9)[1:])
    tensors = to(
        device,
        [
            uniform(generator, *((3, 5) if shared else (3, 2, 5))),
            uniform(generator, 2, 5, 4),
            uniform(generator, 2, 4),
        ],
    )
    results = []
    for change in (
        lambda t: t.clone(),
        strided,
        lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    ):
        leaves = [change(t).requires_grad_() for t in tensors]
        loss = F.bucket_bce(*leaves, *map(strided, labels), hash)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_backward_twice_and_no_grad(device, generator):
    """The kept gradients survive a first backward pass; without gradients none are computed."""
    hash = random_hash(generator, 9, 4, 2, device)
    labels = to(device, random_csr(generator, [2, 0, 5], 9)[1:])
    hidden, weight = to(device, (uniform(generator, 3, 5), uniform(generator, 2, 5, 4)))
    leaf = weight.clone().requires_grad_()
    loss = F.bucket_bce(hidden, leaf, None, *labels, hash)
    first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    assert bitwise_equal(torch.autograd.grad(loss, leaf)[0], first)
    assert bitwise_equal(F.bucket_bce(hidden, weight, None, *labels, hash), loss)
    with torch.no_grad():
        assert not F.bucket_bce(hidden, leaf, None, *labels, hash).requires_grad


def test_runs_twice_alike(generator):
    """Matrix products are PyTorch's: the same threads, the same bits."""
    hash = random_hash(generator, 200, 300, 3)
    labels = random_csr(generator, [5, 0, 9] * 20, 200)[1:]
    hidden, weight = (
        uniform(generator, 60, 33, dtype=torch.float32),
        uniform(generator, 3, 33, 300, dtype=torch.float32),
    )

    def run():
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = F.bucket_bce(*leaves, None, *labels, hash)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    for a, b in zip(run(), run(), strict=True):
        assert bitwise_equal(a, b)


def test_never_holds_all_repetitions():
    """N R B would be 512 MiB of float32; a step with gradients stays below a sixth of it."""
    script = """
        import torch
        from mach_ext import LabelHash, functional as F
        N, R, B, H, L = 128, 64, 16384, 2, 1000
        hash = LabelHash(L, B, R)
        weight = torch.zeros(R, H, B, requires_grad=True)
        hidden = torch.ones(N, H, requires_grad=True)
        labels = torch.arange(N), torch.arange(N + 1)
        F.bucket_bce(hidden[:1], weight, None, labels[0][:1], labels[1][:2], hash).backward()  # warm up
        def memory(key):  # ru_maxrss would begin at that of the process that started this one
            return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
        before = memory("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")  # restart the peak
        F.bucket_bce(hidden, weight, None, *labels, hash).backward()
        print(memory("VmHWM") - before)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 80 * 2**20


HASH = random_hash(torch.Generator().manual_seed(1), 6, 4, 2)
LABELS = Csr(None, torch.tensor([0, 5, 3]), torch.tensor([0, 2, 2, 3]))
GOOD = {
    "hidden": torch.ones(3, 5),
    "weight": torch.ones(2, 5, 4),
    "bias": torch.ones(2, 4),
    "label_indices": LABELS.indices,
    "label_indptr": LABELS.indptr,
    "hash": HASH,
}
LABEL_ERRORS = [
    (
        TypeError,
        r"label_indices must be int32 or int64, got float32",
        {"label_indices": LABELS.indices.float()},
    ),
    (
        ValueError,
        r"label_indptr must have 1 dimension\(s\), got shape \[1, 4\]",
        {"label_indptr": LABELS.indptr[None]},
    ),
    (
        ValueError,
        r"label_indptr must have N \+ 1 = 4 entries, one row a document, got 3",
        {"label_indptr": LABELS.indptr[:3]},
    ),
    (
        ValueError,
        r"label_indptr must end at the number of non-zeros 3, got 2",
        {"label_indptr": torch.tensor([0, 2, 2, 2])},
    ),
    (
        ValueError,
        r"label_indptr must not decrease, got 3 then 2 at row 1",
        {"label_indptr": torch.tensor([0, 3, 2, 3])},
    ),
    (ValueError, r"label_indptr\[0\] must be 0, got 1", {"label_indptr": torch.tensor([1, 2, 2, 3])}),
    (
        ValueError,
        r"label_indices\[1\] \(row 0\) must be in \[0, L=6\), got 6",
        {"label_indices": torch.tensor([0, 6, 3])},
    ),
    (
        ValueError,
        r"a label must occur once in a row, got label 5 twice in row 0",
        {"label_indices": torch.tensor([5, 5, 3])},
    ),
    (
        ValueError,
        r"label_indices must be on cpu like the other arguments, got meta",
        {"label_indices": LABELS.indices.to("meta")},
    ),
    (
        ValueError,
        r"hash has R=2 repetitions and B=4 buckets, .* have R=1, B=4",
        {"weight": GOOD["weight"][:1], "bias": GOOD["bias"][:1]},
    ),
]
ARGUMENTS = [
    *LABEL_ERRORS,
    (
        ValueError,
        r"the mean over documents needs at least one, got N=0",
        {"hidden": torch.ones(0, 5), "label_indptr": torch.tensor([0])},
    ),
    (ValueError, r"hidden must be .* got \[3, 4\]", {"hidden": torch.ones(3, 4)}),
    (
        TypeError,
        r"weight must be float32 or float64 to be trained .* got bfloat16",
        {"weight": GOOD["weight"].bfloat16()},
    ),
    (
        TypeError,
        r"bias must be float32 or float64 to be trained .* got bfloat16",
        {"bias": GOOD["bias"].bfloat16()},
    ),
    (ValueError, r"bias must have shape \[2, 4\], got \[2, 3\]", {"bias": torch.ones(2, 3)}),
]


@pytest.mark.parametrize(("error", "message", "wrong"), ARGUMENTS, ids=[a[1] for a in ARGUMENTS])
def test_errors(error, message, wrong):
    with pytest.raises(error, match=f"^bucket_bce: {message}"):
        F.bucket_bce(**{**GOOD, **wrong})


@pytest.mark.parametrize("wrong", [-1, 6, 2**40])
def test_unvalidated_label_out_of_range_is_nan(device, wrong):
    """The loss is not a plausible number; nothing is read or written out of bounds."""
    label_indices = LABELS.indices.clone()
    label_indices[1] = wrong
    args = to(device, [GOOD["hidden"], GOOD["weight"], GOOD["bias"], label_indices, LABELS.indptr])
    args[1] = args[1].clone().requires_grad_()
    loss = F.bucket_bce(*args, HASH.to(device), validate=False)
    assert loss.isnan()
    loss.backward()

    logits = torch.ones(3, 2, 4, device=device)
    row = _ops.bucket_bce(logits, None, HASH.buckets.to(device), *args[3:], 1.0)
    assert row.isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("indptr", [[5, 2, 9, 4], [-7, 2, 2, 3], [0, 2**31 - 1, 1, 6]], ids=str)
def test_unvalidated_indptr_stays_inside(device, indptr):
    args = {**GOOD, "label_indptr": torch.tensor(indptr)}
    args = {name: t.to(device) for name, t in args.items()}
    assert F.bucket_bce(**args, validate=False).shape == ()


def test_raw_op_refuses_what_would_leave_its_arrays():
    z, bias = torch.ones(3, 2, 4), torch.ones(2, 4)
    out, narrow = torch.ones(2, 4), z.bfloat16()
    fitting = {"logits": z, "bias": bias, "buckets": HASH.buckets, "label_indices": LABELS.indices}
    fitting |= {"label_indptr": LABELS.indptr, "scale": 1.0}
    for message, change in {
        r"logits must be \[N, G, B\] with adjacent buckets": {"logits": torch.ones(3, 4, 2).mT},
        r"logits must be \[N, G, B\]": {"logits": torch.ones(3, 4)},
        r"label_indptr must have N \+ 1 entries": {"logits": z[:2]},
        r"label_indices must be Long, got Int": {"label_indices": LABELS.indices.int()},
        r"logits must be float32 or float64, got BFloat16": {"logits": narrow, "bias": None},
        r"buckets must be \[G, L\]": {"buckets": HASH.buckets[:1]},
        r"bias must have shape \[2, 4\], got \[2, 3\]": {"bias": bias[:, :3]},
        r"bias must be Float, got Double": {"bias": bias.double()},
        r"out and grad_bias need a scale": {"scale": None, "grad_bias": out},
        r"grad_bias must have shape \[2, 4\]": {"grad_bias": out[:1]},
        r"grad_bias must be contiguous": {"grad_bias": torch.ones(4, 2).T},
        r"out must have shape \[3, 2, 4\]": {"out": narrow[:2]},
        r"out must be BFloat16, got Float": {"out": z.clone()},
        r"out must be \[N, G, B\] with adjacent buckets": {"out": torch.ones(3, 4, 2).mT.bfloat16()},
        r"logits with out must be Float, got Double": {"logits": z.double(), "bias": None, "out": narrow},
    }.items():
        with pytest.raises(RuntimeError, match=f"^bucket_bce: {message}"):
            torch.ops.mach_ext.bucket_bce(**{**fitting, **change})


# -------------------------------------------------------------------------------------- linear_bucket_bce


@parametrize_dtype
def test_linear_loss_and_gradients_match_dense_twin(device, dtype):
    @given(csr_batches(dtype), st.integers(1, 4), st.integers(2, 20), st.booleans(), st.data())
    def check(batch, R, B, with_bias, data):
        X, D, generator = batch
        N, L = len(X.indptr) - 1, 15
        if N == 0:
            return
        labels = label_sets(data.draw, generator, N, L)
        hash = random_hash(generator, L, B, R)
        tensors = [
            X.values,
            uniform(generator, R, D, B, dtype=dtype),
            uniform(generator, R, B, dtype=dtype) if with_bias else None,
        ]

        def run(loss, tensors):
            leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
            value = loss(*leaves)
            (3 * value).backward()
            return value.detach(), [None if t is None else t.grad for t in leaves]

        indices, indptr, *on_device = to(device, (*X[1:], *labels))
        moved = hash.to(device)
        positive = targets(hash, *labels)
        expected, twins = run(
            lambda v, w, b: dense_loss(_reference.sparse_linear(v, *X[1:], w, b, False), positive),
            double(tensors),
        )
        for sparse in (False, True):
            value, gradients = run(
                lambda v, w, b, sparse=sparse: F.linear_bucket_bce(
                    v, indices, indptr, w, b, *on_device, moved, sparse
                ),
                to(device, tensors),
            )
            assert value.dtype == dtype
            assert_matches(value, expected)
            assert gradients[1].is_sparse == sparse
            gradients[1] = gradients[1].to_dense()
            gradients_match(gradients, twins, dtype)

    check()


def linear_arguments(generator, dtype, device="cpu"):
    """X, weight, bias, labels, hash."""
    X = Csr(*to(device, random_csr(generator, [0, 3, 0, 4, 0], 60, dtype)))
    weight, bias = to(
        device, (uniform(generator, 2, 60, 4, dtype=dtype), uniform(generator, 2, 4, dtype=dtype))
    )
    labels = to(device, random_csr(generator, [2, 0, 5, 1, 0], 9)[1:])
    return X, weight, bias, labels, random_hash(generator, 9, 4, 2, device)


def test_gradients_that_nobody_needs_are_not_computed(generator, monkeypatch):
    """Under torch.no_grad(), parameters need none either."""
    X, weight, bias, labels, hash = linear_arguments(generator, torch.float32)
    hidden = uniform(generator, 5, 60, dtype=torch.float32)
    leaves = [weight.requires_grad_(), bias.requires_grad_()]
    calls = (
        lambda: F.linear_bucket_bce(*X, *leaves, *labels, hash),
        lambda: F.bucket_bce(hidden, *leaves, *labels, hash),
    )
    expected = [call().detach() for call in calls]
    for name in ("sparse_linear_grad_weight", "sparse_linear_grad_rows"):
        monkeypatch.setattr(_ops, name, None)
    monkeypatch.setattr("mach_ext.functional._products.Group.write_grad_weight", None)
    with torch.no_grad():
        assert all(bitwise_equal(call(), loss) for call, loss in zip(calls, expected, strict=True))
    for leaf in leaves:
        leaf.requires_grad_(False)
    assert all(bitwise_equal(call(), loss) for call, loss in zip(calls, expected, strict=True))


def test_linear_gradcheck(device, generator):
    X, weight, bias, labels, hash = linear_arguments(generator, torch.float64, device)
    leaves = [t.requires_grad_() for t in (X.values, weight, bias)]
    torch.autograd.gradcheck(
        lambda v, w, b: F.linear_bucket_bce(v, *X[1:], w, b, *labels, hash), leaves, fast_mode=True
    )


@parametrize_dtype
def test_linear_sparse_gradient_equals_dense(device, generator, dtype):
    X, weight, bias, labels, hash = linear_arguments(generator, dtype, device)
    gradients = []
    for sparse in (False, True):
        leaf = weight.clone().requires_grad_()
        F.linear_bucket_bce(*X, leaf, bias, *labels, hash, sparse_grad=sparse).backward()
        gradients.append(leaf.grad)
    dense, coo = gradients
    rows = torch.unique(X.indices)
    repetitions = torch.arange(2, device=device)
    assert torch.equal(coo._indices(), torch.cartesian_prod(repetitions, rows).T)  # each once, ascending
    assert bitwise_equal(coo.to_dense(), dense)


def test_linear_strided_arguments(device, generator):
    X, weight, bias, labels, hash = linear_arguments(generator, torch.float32, device)
    expected = F.linear_bucket_bce(*X, weight, bias, *labels, hash)
    changed = [strided(t) for t in (*X, weight, bias, *labels)]
    assert bitwise_equal(F.linear_bucket_bce(*changed, hash), expected)


def test_linear_unvalidated_index_is_nan(device, generator):
    X, weight, bias, labels, hash = linear_arguments(generator, torch.float32, device)
    X.indices[2] = 60
    leaf = weight.clone().requires_grad_()
    loss = F.linear_bucket_bce(*X, leaf, bias, *labels, hash, validate=False)
    assert loss.isnan()
    loss.backward()


@pytest.mark.parametrize(("error", "message", "wrong"), LABEL_ERRORS, ids=[a[1] for a in LABEL_ERRORS])
def test_linear_label_errors(error, message, wrong):
    X = {"values": torch.ones(3), "indices": torch.tensor([0, 1, 2]), "indptr": torch.tensor([0, 1, 1, 3])}
    good = {**X, **GOOD}
    del good["hidden"]
    with pytest.raises(error, match=f"^linear_bucket_bce: {message}"):
        F.linear_bucket_bce(**{**good, **wrong})


def test_linear_errors(generator):
    X, weight, bias, labels, hash = linear_arguments(generator, torch.float32)
    with pytest.raises(
        ValueError, match=r"^linear_bucket_bce: indices\[\d\] \(row \d\) must be in \[0, D=2\)"
    ):
        F.linear_bucket_bce(*X, weight[:, :2], bias, *labels, hash)
    with pytest.raises(ValueError, match=r"^linear_bucket_bce: bias must have shape \[2, 4\], got \[1, 4\]"):
        F.linear_bucket_bce(*X, weight, bias[:1], *labels, hash)
    with pytest.raises(
        TypeError, match=r"^linear_bucket_bce: weight must be float32 or float64 to be trained"
    ):
        F.linear_bucket_bce(*X, weight.bfloat16(), bias, *labels, hash)
    with pytest.raises(TypeError, match=r"^linear_bucket_bce: bias must be float32 or float64 to be trained"):
        F.linear_bucket_bce(*X, weight, bias.bfloat16(), *labels, hash)
    empty = torch.empty(0), torch.empty(0, dtype=torch.int64), torch.tensor([0])
    with pytest.raises(
        ValueError, match=r"^linear_bucket_bce: the mean over documents needs at least one, got N=0"
    ):
        F.linear_bucket_bce(*empty, weight, bias, *empty[1:], hash)

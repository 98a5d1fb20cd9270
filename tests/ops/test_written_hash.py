"""A label hash that was written to behind PyTorch's back: NaN, or an error in words, and never a crash.

Memory can't be made read-only: NumPy, `.data` and DLPack write to it and no version tells. So every operator
that follows buckets, codes or lists checks them where it reads them.
"""

import contextlib
import copy
import ctypes
import mmap
import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import FLOATS, ROOT, assert_matches, bitwise_equal, random_hash, to, uniform

import mach_ext
from mach_ext import LabelHash, _ops, _reference, attack, certify, explain
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
MERGES = ("mean", "min", "median")
PATHS = ("auto", "direct", "scan", "lists")
OUTSIDE = (-(2**31), -1, 2**31 - 1)  # and B itself
N, R, B, L, H, m, k = 5, 4, 30, 700, 6, 9, 5


def written(generator, num_labels=L, num_buckets=B, num_repetitions=R):
    """A table of buckets of which every seventh label has one that is not there."""
    table = torch.randint(num_buckets, (num_repetitions, num_labels), generator=generator, dtype=torch.int32)
    for label in range(3, num_labels, 7):
        table[label % num_repetitions, label] = (*OUTSIDE, num_buckets)[label % 4]
    return table


def index_of_written(table, num_buckets):
    """What label_index makes of the table before it is written to, with the codes written to as well."""
    there = (table >= 0) & (table < num_buckets)
    codes, starts, labels = _reference.label_index(table.where(there, 0), num_buckets)
    outside = torch.where(table == num_buckets, num_buckets, 65535)
    codes = torch.where(there, codes.int().T, outside).T.contiguous()
    return codes.to(torch.uint16), starts, labels


def asked(generator, num_labels=L):
    labels = torch.randint(num_labels, (N, m), generator=generator)
    labels[0, 0], labels[1, 1], labels[2, :3] = 3, -1, torch.tensor([10, num_labels, 10])
    return labels


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_label_logits_are_nan_and_pass_no_gradient_on(device, generator, dtype):
    table, labels = written(generator), asked(generator)
    hidden, weight, bias = (uniform(generator, *s, dtype=dtype) for s in ((N, H), (R, H, B), (R, B)))
    leaves = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    expected = _reference.label_logits(*leaves, table, labels)
    given = to(device, (hidden, weight, bias, table, labels))
    out = _ops.label_logits(*given)
    assert_matches(out, expected.detach())
    assert out[0, 0].isnan().sum() == 1  # in one repetition
    assert out[1, 1].isnan().all()  # no label
    grad = uniform(generator, N, m, R, dtype=dtype)
    grads = torch.autograd.grad(expected, leaves, grad.double())
    there = grad.to(device)
    assert_matches(_ops.label_logits_grad_hidden(there, given[0], given[1], *given[3:]), grads[0])
    actual = _ops.label_logits_grad_weight(there, given[0], given[1], *given[3:])
    for ours, reference in zip(actual, grads[1:], strict=True):
        assert_matches(ours, reference)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_losses_are_nan_and_labels_passed_over(device, generator, dtype):
    g = 3 % R
    table = written(generator)[g : g + 1]
    label_indices = torch.tensor([0, 1, 3, 4, 5, 6, 31])  # 3 and 31 have no bucket in this repetition
    label_indptr = torch.tensor([0, 2, 4, 4, 6, 7])
    assert table[0, [3, 31]].tolist() == [B, B]
    logits = uniform(generator, N, 1, B, dtype=dtype)
    expected_gradient = logits.double().clone()
    expected = _reference.bucket_bce(expected_gradient, None, table, label_indices, label_indptr, 0.5)
    z, *there = to(device, (logits, table, label_indices, label_indptr))
    loss = _ops.bucket_bce(z, None, *there, 0.5)
    assert loss.isnan().tolist() == [False, True, False, False, True]
    assert_matches(loss, expected, dtype)
    assert_matches(z, expected_gradient)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scores_are_nan_and_pass_no_gradient_on(device, generator, dtype, merge):
    table, labels = written(generator), asked(generator)
    scores = uniform(generator, N, R, B, dtype=dtype)
    leaf = scores.clone().requires_grad_()
    inside = labels.clamp(0, L - 1)
    expected = _reference.merge_scores(leaf, table, inside, merge).where(labels == inside, torch.nan)
    args = to(device, (scores, table, labels))
    out = _ops.merge_scores(*args, merge)
    assert bitwise_equal(out, expected.detach())
    assert out[0, 0].isnan()
    grad = uniform(generator, N, m, dtype=dtype)
    (expected_gradient,) = torch.autograd.grad(expected, leaf, grad)
    assert_matches(_ops.merge_scores_grad(grad.to(device), *args, merge), expected_gradient)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("documents", "num_labels", "size"), [(1, 2000, 30), (20, 3000, 500), (70, 9000, 40)]
)
def test_labels_without_a_bucket_come_last(
    device, operators, generator, merge, path, documents, num_labels, size
):
    """On every path, bit for bit: brute force over labels of which some are NaN."""
    if operators == "shim":
        num_labels //= 4
    table = written(generator, num_labels, size)
    index = index_of_written(table, size)
    scores = torch.randn(documents, R, size, generator=generator)
    # The buckets of labels that are not all there are the best ones.
    there = (table >= 0) & (table < size)
    best = torch.arange(3, num_labels, 7)
    for r in range(R):
        chosen = table[r, best[there[r, best]][:20]].long()
        scores[: documents // 2 + 1, r, chosen] += 5
    expected = _reference.merge_topk(scores, table, None, k, merge)
    args = to(device, (scores, table)), to(device, index)
    values, labels = _ops.merge_topk(*args[0], args[1], k, merge, path)
    assert torch.equal(labels.cpu(), expected[1])
    assert bitwise_equal(values, expected[0])
    assert not torch.isin(labels.cpu(), best).any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_table_with_no_bucket_in_range(device, generator, dtype):
    table = torch.full((R, L), 2**31 - 1, dtype=torch.int32)
    scores = uniform(generator, N, R, B, dtype=dtype)
    values, labels = _ops.merge_topk(*to(device, (scores, table)), None, k, "mean")
    assert values.isnan().all()
    assert labels.tolist() == [list(range(k))] * N


def test_label_index_says_which_bucket(device):
    hash = random_hash(torch.Generator().manual_seed(0), L, B, R, device)
    table = hash.buckets.clone()
    table[2, 5] = 700
    with pytest.raises(RuntimeError, match=r"label_index: buckets must be in \[0, B=30\)"):
        _ops.label_index(table, B)


# ------------------------------------------------------------------------------------ the public functions


def by_numpy(hash, value):
    hash.buckets.numpy()[:, 3] = value


def by_data(hash, value):
    hash.buckets.data[:, 3] = value


def by_dlpack(hash, value):
    torch.from_dlpack(hash.buckets)[:, 3] = value


def calls(hash, validate=True):
    """Functions of a hash, each asked about label 3."""
    hidden, weight, bias = torch.ones(2, H), torch.ones(R, H, B), torch.zeros(R, B)
    X = torch.ones(2), torch.tensor([0, 1]), torch.tensor([0, 1, 2])
    Y = torch.tensor([3, 4]), torch.tensor([0, 1, 2])
    labels, scores = torch.tensor([3, 4]), torch.zeros(2, R, B)
    return {
        "label_logits": lambda: F.label_logits(hidden, weight, bias, hash, labels, validate=validate),
        "linear_label_logits": lambda: F.linear_label_logits(
            *X, weight, bias, hash, labels, validate=validate
        ),
        "bucket_bce": lambda: F.bucket_bce(hidden, weight, bias, *Y, hash, validate=validate),
        "linear_bucket_bce": lambda: F.linear_bucket_bce(*X, weight, bias, *Y, hash, validate=validate),
        "merge_scores": lambda: F.merge_scores(scores, hash, labels, validate=validate),
    }


@pytest.mark.parametrize("value", [-1, B, *OUTSIDE])
@pytest.mark.parametrize("write", [by_numpy, by_data, by_dlpack])
def test_public_functions_say_what_is_wrong(generator, write, value):
    hash = random_hash(generator, L, B, R)
    write(hash, value)
    where = rf"buckets holds {value} for label 3 in repetition 0, outside \[0, 30\): it was changed in place"
    refusing = calls(hash) | {
        "label_index": hash.label_index,
        "merge_topk": lambda: F.merge_topk(torch.zeros(2, R, B), hash, k),
        "diagnostics": hash.diagnostics,
        "spread": lambda: hash.spread(np.ones(L), np.ones(L)),
        "check_contents": hash.check_contents,
    }
    for call in refusing.values():
        with pytest.raises(ValueError, match=where):
            call()
    for copied in (copy.deepcopy, lambda hash: pickle.loads(pickle.dumps(hash))):
        with pytest.raises(ValueError, match="out of range"):
            copied(hash)


QUESTIONS = {
    "integrated_gradients": lambda model, X, Y: explain.integrated_gradients(model, X[0], [3]),
    "votes": lambda model, X, Y: explain.votes(model, X[0], [3]),
    "collisions": lambda model, X, Y: explain.collisions(model, X[0], 3),
    "perturb": lambda model, X, Y: attack.FGSM(model).perturb(X, Y, 0.1),
    "certify": lambda model, X, Y: certify.certify(model, X, Y, [0.01]),
    "margin_bounds": lambda model, X, Y: certify.margin_bounds(model, X, [[3, 4]], 0.01),
    "fit": lambda model, X, Y: mach_ext.fit(model, X, Y, epochs=1, progress=False),
}


@pytest.mark.parametrize("value", [-1, B, *OUTSIDE])
@pytest.mark.parametrize("hidden_size", [0, 4])
@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_about_a_model_say_what_is_wrong(question, hidden_size, value):
    """Also once the index is built, from which predict answers: -1 would be the last bucket to PyTorch."""
    X, Y = (scipy.sparse.csr_matrix(([1.0], [3], [0, 1]), shape=(1, size)) for size in (10, L))
    model = mach_ext.MACH(10, L, R, B, hidden_size)
    model.predict(X.astype("float32"))
    by_numpy(model.hash, value)
    with pytest.raises(ValueError, match=f"buckets holds {value} for label 3 in repetition 0"):
        QUESTIONS[question](model, X.astype("float32"), Y)


def test_without_validation_answers_are_nan(generator):
    hash = random_hash(generator, L, B, R)
    by_numpy(hash, 2**30)
    for name, call in calls(hash, validate=False).items():
        out = call()
        assert (out if out.dim() == 0 else out[:, 0]).isnan().all(), name
        assert out.dim() == 0 or not out[:, 1].isnan().any(), name


def test_nan_of_other_causes_passes(generator):
    hash = random_hash(generator, L, B, R)
    scores = torch.full((2, R, B), torch.nan)
    assert F.merge_scores(scores, hash, torch.tensor([3])).isnan().all()


def test_an_index_that_was_built_before_answers_on(generator):
    hash = random_hash(generator, 100_000, B, R)
    scores = torch.randn(64, R, B, generator=generator)
    expected = F.merge_topk(scores, hash, k)
    by_numpy(hash, B)
    actual = F.merge_topk(scores, hash, k)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)) or 3 in expected[1]


# ------------------------------------------------------------------------------------------ at random


def between_guards(t):
    """The same values in memory where a step beyond the end is fatal."""
    page, size = mmap.PAGESIZE, t.nbytes
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (start, start + page + room):
        assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(guard), page, 0) == 0
    placed = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=page + room - size)
    return placed.view(t.shape).copy_(t)


def garbage(generator, t):
    """Over a few or all places, numbers of any size."""
    array = t.numpy().reshape(-1)
    kinds = np.iinfo(array.dtype)
    rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    near = np.clip(
        [0, 1, B - 1, B, B + 1, L - 1, L, L + 1, -1, -2, kinds.min, kinds.max], kinds.min, kinds.max
    )
    places = slice(None) if rng.random() < 0.3 else rng.integers(0, array.size, 1 + array.size // 20)
    size = array[places].shape
    far = rng.integers(kinds.min, kinds.max, size, endpoint=True)
    array[places] = np.where(rng.random(size) < 0.5, far, rng.choice(near, size)).astype(array.dtype)


def storm(seed, place=between_guards):
    """Every operator that takes buckets, codes or lists, with garbage in some of them."""
    generator = torch.Generator().manual_seed(seed)
    documents = (1, 5, 20)[seed % 3]
    dtype = FLOATS[seed // 7 % 2]
    table = torch.randint(B, (R, L), generator=generator, dtype=torch.int32)
    index = _reference.label_index(table, B)
    buckets, codes, starts, lists = tensors = [place(t) for t in (table, *index)]
    for t in tensors:
        if torch.rand((), generator=generator) < 0.6:
            garbage(generator, t)
    scores = torch.randn(documents, R, B, generator=generator)
    if seed % 2:
        scores[:, :, :3] += 9
    scores = place(scores.to(dtype))
    labels = place(torch.randint(-1, L + 1, (documents, m), generator=generator))
    hidden, weight = (place(uniform(generator, *s, dtype=dtype)) for s in ((documents, H), (R, H, B)))
    grad = place(uniform(generator, documents, m, R, dtype=dtype))
    _ops.label_logits(hidden, weight, None, buckets, labels)
    _ops.label_logits_grad_hidden(grad, hidden, weight, buckets, labels)
    _ops.label_logits_grad_weight(grad, hidden, weight, buckets, labels)
    pointers = place(torch.arange(documents + 1) * m)
    targets = (buckets, labels.view(-1), pointers, 0.1)
    _ops.bucket_bce(place(scores.clone()), None, *targets, None, place(torch.empty(R, B, dtype=dtype)))
    narrow = place(torch.ones(documents, 8).bfloat16()), place(torch.ones(R, B, 8).bfloat16()).mT
    _ops.bucket_forward_bce(*narrow, None, *targets)
    for merge in MERGES:
        _ops.merge_scores(scores, buckets, labels, merge)
        _ops.merge_scores_grad(place(grad[:, :, 0]), scores, buckets, labels, merge)
        for path in PATHS:
            for chosen in (None, (codes, starts, lists)):
                values, best = _ops.merge_topk(scores, buckets, chosen, k, merge, path)
                assert values.shape == best.shape == (documents, k)
                assert ((best >= 0) & (best < L)).all()
    inside = bool(((buckets >= 0) & (buckets < B)).all())
    refused = pytest.raises(RuntimeError, match=r"label_index: buckets must be in \[0, B=30\)")
    with contextlib.nullcontext() if inside else refused:
        _ops.label_index(buckets, B)
    D = 4
    X = torch.ones(documents, dtype=dtype), torch.zeros(documents, dtype=torch.int32)
    Y = labels.view(-1).clamp(0, L - 1), pointers
    solved = torch.zeros(D, 20, dtype=dtype), torch.zeros(20, dtype=dtype)
    _ops.bucket_svm(*X, torch.arange(documents + 1), buckets[0], *Y, 0, 1.0, 0.1, 3, None, *solved)


def public_storm(seed):
    """The functions of a hash into which garbage was written: an answer, or a ValueError."""
    generator = torch.Generator().manual_seed(seed)
    hash = random_hash(generator, L, B, R)
    if seed % 2:
        hash.label_index()
    for t in (hash.buckets, *hash._index.values()):
        if torch.rand((), generator=generator) < 0.7:
            garbage(generator, t)
    everything = {**calls(hash), **{f"{n} unchecked": c for n, c in calls(hash, validate=False).items()}}
    everything |= {
        f"merge_topk {merge}": lambda merge=merge: (
            F.merge_topk(torch.randn(3, R, B, generator=generator, requires_grad=True), hash, k, merge)[0]
            .sum()
            .backward()
        )
        for merge in MERGES
    }
    everything |= {
        "diagnostics": hash.diagnostics,
        "spread": lambda: hash.spread(np.ones(L), np.ones(L)),
        "labels_in": lambda: hash.labels_in(1, 2),
        "copy": lambda: copy.deepcopy(hash),
        "equal": lambda: hash == LabelHash(L, B, R),
        "fingerprint": hash.fingerprint,
    }
    refusals = []
    for call in everything.values():
        try:
            call()
        except ValueError as error:
            refusals.append(str(error))
    assert all("changed in place" in refusal for refusal in refusals), refusals


def test_garbage_makes_no_step_outside_an_array(device):
    """In a process of its own on CPU; the kernels of CUDA here, and under ASan (test_cuda_shim.py)."""
    if device.type == "cuda" or _ops._raw is not torch.ops.mach_ext:
        for seed in range(6):
            storm(seed, lambda t: t.clone().to(device))
        return
    code = (
        "import sys, warnings; sys.path[:0] = ['tests', 'tests/ops']; warnings.simplefilter('ignore')\n"
        "import test_written_hash as t\n"
        "for threads in (1, 2):\n"
        "  t.torch.set_num_threads(threads)\n"
        "  for seed in range(30 * threads, 30 * threads + 30): t.storm(seed); t.public_storm(seed)\n"
        "print('safe')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "safe"), done.stderr[-3000:]


def test_errors_of_operators_name_no_source_file():
    """Those of STD_TORCH_CHECK do."""
    with pytest.raises(RuntimeError, match=r"^merge_scores: scores must be float32 or float64, got Half$"):
        _ops.merge_scores(
            torch.zeros(1, R, B).half(),
            torch.zeros(R, L, dtype=torch.int32),
            torch.zeros(1, 1, dtype=torch.int64),
            "mean",
        )


# Whole models

ASKED = {
    "predict": lambda model, X, Y: model.predict(X, 3),
    "save": lambda model, X, Y: model.save("folder"),
    "fit": lambda model, X, Y: mach_ext.fit(model, X, Y, epochs=1, progress=False),
    "explain": lambda model, X, Y: mach_ext.explain.integrated_gradients(model, X[0], [3]),
    "votes": lambda model, X, Y: mach_ext.explain.votes(model, X[0], [3]),
    "collisions": lambda model, X, Y: mach_ext.explain.collisions(model, X[0], 3),
    "attack": lambda model, X, Y: mach_ext.attack.FGSM(model).perturb(X, Y, 0.1),
    "certify": lambda model, X, Y: mach_ext.certify.certify(model, X, Y, [0.1], k=1, progress=False),
}


@pytest.mark.parametrize("value", [-1, 8])
@pytest.mark.parametrize("name", ASKED)
def test_models_say_what_is_wrong(tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    X = scipy.sparse.random(6, 20, 0.4, "csr", np.float32, random_state=0)
    Y = scipy.sparse.csr_matrix(np.eye(6, 40, dtype=np.float32))
    table = LabelHash(40, 8, 8).buckets
    model = mach_ext.MACH(20, 40, 8, 8, hidden_size=0, hash=LabelHash.from_buckets(table, 8))
    model.hash.buckets.numpy()[2, 3] = value
    match = f"LabelHash: buckets holds {value} for label 3 in repetition 2, outside \\[0, 8\\)"
    with pytest.raises(ValueError, match=match):
        ASKED[name](model, X, Y)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_layouts_are_refused_in_words(layout):
    hash, hidden, weight = LabelHash(40, 8, 8), torch.rand(2, 3), torch.rand(8, 3, 8)
    kind = str(layout).removeprefix("torch.")
    with pytest.raises(TypeError, match=f"hidden must be a dense tensor, got one of layout {kind}"):
        F.bucket_logits(hidden.to_sparse(layout=layout), weight, None)
    with pytest.raises(TypeError, match="labels must be a dense tensor"):
        F.label_logits(hidden, weight, None, hash, torch.ones(2, 2).long().to_sparse(layout=layout))

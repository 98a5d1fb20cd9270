"""The MACH module: every architecture, label scores against the full forward, predict, the model folder."""

import copy
import doctest
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.utils.prune
from helpers import bitwise_equal
from torch.utils._python_dispatch import TorchDispatchMode

import mach_ext
from mach_ext import compression
from mach_ext import functional as F

D, L, R, B = 60, 90, 4, 32
ARCHITECTURES = {
    "linear": {"hidden_size": 0},
    "shared": {"hidden_size": 8},
    "independent": {"hidden_size": 8, "encoder": "independent"},
    "shared two layers": {"hidden_size": (8, 6)},
    "independent two layers": {"hidden_size": (8, 6), "encoder": "independent"},
}
MERGES = ("mean_logit", "mean_prob", "mean_logprob", "min_prob", "median_prob")


def build(name="shared", **changes):
    return mach_ext.MACH(D, L, R, B, **{**ARCHITECTURES[name], **changes})


def draw(n=7, seed=0, columns=D, density=0.15):
    X = scipy.sparse.random(n, columns, density=density, format="csr", dtype=np.float32, random_state=seed)
    X.sort_indices()
    return X


def tensors(X):
    return [torch.from_numpy(a) for a in (X.data, X.indices, X.indptr)]


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def model_of(name="shared", **changes):
    """Weights of a size that leaves units on both sides of their kinks."""
    model = randomise(build(name, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model.eval()


def dense_forward(model, X):
    """The definition, on a dense matrix: [N, R, B]."""
    x = X if isinstance(X, torch.Tensor) else torch.from_numpy(X.toarray())
    if model.is_linear:
        return torch.einsum("nd,rdb->nrb", x, model.bucket_weight) + model.bucket_bias
    hidden = (x @ model.encoder_weight + model.encoder_bias).relu()
    copies = R if model.encoder == "independent" else 1
    hidden = hidden.view(len(x), copies, -1)
    if len(model.hidden_sizes) == 2:
        hidden = (torch.einsum("nch,chk->nck", hidden, model.hidden_weight) + model.hidden_bias).relu()
    return torch.einsum("nrh,rhb->nrb", hidden.expand(-1, R, -1), model.bucket_weight) + model.bucket_bias


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forward_is_the_dense_definition(name):
    model, X = randomise(build(name)), draw()
    logits = model(*tensors(X))
    assert logits.shape == (7, R, B)
    torch.testing.assert_close(logits, dense_forward(model, X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_is_bce_of_the_forward_and_so_are_its_gradients(name):
    model, X, Y = randomise(build(name)).double(), draw(), draw(columns=L, density=0.05, seed=1)
    values, indices, indptr = tensors(X)
    values = values.double().requires_grad_()
    labels = [torch.from_numpy(a) for a in (Y.indices, Y.indptr)]
    targets = torch.zeros(7, R, B, dtype=torch.float64)
    for n, label in zip(*Y.nonzero(), strict=True):
        targets[n, torch.arange(R), model.hash.buckets[:, label].long()] = 1

    loss = model.loss(values, indices, indptr, *labels, sparse_grad=False)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        model(values, indices, indptr), targets, reduction="sum"
    ) / (7 * R)
    torch.testing.assert_close(loss, expected)
    inputs = [values, *model.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sparse_and_dense_gradients_of_the_loss_agree(name):
    model, X, Y = randomise(build(name)), draw(), draw(columns=L, density=0.05, seed=1)
    args = (*tensors(X), *(torch.from_numpy(a) for a in (Y.indices, Y.indptr)))
    first = model.bucket_weight if model.is_linear else model.encoder_weight
    (sparse,) = torch.autograd.grad(model.loss(*args, sparse_grad=True), first)
    (dense,) = torch.autograd.grad(model.loss(*args, sparse_grad=False), first)
    assert sparse.is_sparse
    torch.testing.assert_close(sparse.to_dense(), dense)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_label_scores_equal_the_merge_of_the_full_forward(name, merge):
    model, X = randomise(build(name, merge=merge)), tensors(draw())
    labels = torch.tensor([3, 0, 89])
    logits = model(*X)
    plain = F.merge_scores(logits, model.hash, labels)
    torch.testing.assert_close(model.label_scores(*X, labels), plain, rtol=1e-4, atol=1e-4)
    transform, op = {
        "mean_logit": (lambda z: z, "mean"),
        "mean_prob": (torch.sigmoid, "mean"),
        "mean_logprob": (torch.nn.functional.logsigmoid, "mean"),
        "min_prob": (torch.sigmoid, "min"),
        "median_prob": (torch.sigmoid, "median"),
    }[merge]
    own = F.merge_scores(transform(logits), model.hash, labels, op)
    per_document = labels.expand(7, 3).contiguous()
    torch.testing.assert_close(model.label_scores(*X, per_document, score="model"), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_label_scores_gradient_to_values(name):
    model, (values, indices, indptr) = randomise(build(name)).double(), tensors(draw(n=3))
    values = values.double().requires_grad_()
    labels = torch.tensor([5, 17])

    def score(v):
        return model.label_scores(v, indices, indptr, labels)

    assert torch.autograd.gradcheck(score, (values,))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_predict_in_batches_is_the_brute_force(name, merge):
    model, X = randomise(build(name, merge=merge)), draw(n=23)
    scores, labels = model.predict(X, k=6, batch_size=5)
    every = model.label_scores(*tensors(X), torch.arange(L), score="model").detach().numpy()
    order = np.argsort(-every, axis=1, kind="stable")[:, :6]
    expected = np.take_along_axis(every, order, axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(every, labels, axis=1), scores, rtol=1e-4, atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 6 for row in labels)


def test_predict_leaves_training_mode_and_the_matrix_alone():
    model, X = randomise(build(feature_dropout=0.5, hidden_dropout=0.5)), draw()
    X.indices[:2] = X.indices[[1, 0]]  # unsorted
    X.has_sorted_indices = X.has_canonical_format = False
    before = X.indices.copy()
    model.train()
    first, second = model.predict(X, k=3), model.predict(X, k=3)
    assert model.training
    assert (X.indices == before).all()
    for a, b in zip(first, second, strict=True):
        assert (a == b).all()  # no dropout


def test_out_of_memory_says_what_to_lower(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.")

    model = build()
    monkeypatch.setattr(model, "topk", full)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"MACH.predict: out of memory on cpu: lower batch_size .*B="
    ):
        model.predict(draw(), k=3)


@pytest.mark.parametrize("labels", [1, 2, 4, 5, 6])
def test_by_default_predict_gives_five_labels_or_all_of_fewer(labels):
    model = mach_ext.MACH(D, labels, num_repetitions=4, num_buckets=8, hidden_size=4)
    assert model.predict(draw(n=3))[1].shape == (3, min(5, labels))
    with pytest.raises(ValueError, match=rf"k must be in 0 \.\.\. L={labels}, got 7"):
        model.predict(draw(n=3), 7)


# ------------------------------------------------------------------------------- prediction in bfloat16


class Roundings(TorchDispatchMode):
    """Counts conversions of tensors of a shape to bfloat16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        conversion = func._schema.name in ("aten::_to_copy", "aten::to")  # the latter in inference mode
        if conversion and out.dtype == torch.bfloat16 != args[0].dtype:
            self.count += sorted(out.shape) == sorted(self.shape)  # The copy's buckets come before its units.
        return out


@pytest.mark.parametrize("merge", ["mean_logit", "mean_prob", "mean_logprob"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_predict_in_bfloat16_rounds_hidden_units_and_bucket_weights(name, merge):
    model, X = model_of(name, merge=merge), draw(n=7)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    scores, labels = model.predict(X, k=5, precision="bfloat16")
    batched = model.predict(X, k=5, batch_size=2, precision="bfloat16")
    weight, bias = model.bucket_weight.detach().bfloat16().float(), model.bucket_bias.detach()
    with torch.no_grad():
        if model.is_linear:
            logits = F.bucket_forward(*tensors(X), None, None, weight, bias)
        else:
            logits = F.bucket_logits(model.encode(*tensors(X)).bfloat16().float(), weight, bias)
        expected = mach_ext.nn.MODEL_MERGES[merge].topk(logits, model.hash, 5)
    assert (labels == expected[1].numpy()).all()
    np.testing.assert_allclose(scores, expected[0].numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batched[0], scores, rtol=1e-5, atol=1e-5)
    assert np.abs(scores - model.predict(X, k=5)[0]).max() > 1e-4
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.bucket_weight.dtype == torch.float32
    assert model.bucket_weight.requires_grad


def test_predict_in_bfloat16_rounds_the_weight_once():
    model, X = model_of(), draw(n=7)
    with Roundings(model.bucket_weight.shape) as roundings:
        model.predict(X, k=5, batch_size=2, precision="bfloat16")
    assert roundings.count == 1
    narrow = mach_ext.nn.rounded_model(model, "bfloat16")
    assert mach_ext.nn.rounded_model(narrow, "bfloat16") is narrow
    assert mach_ext.nn.rounded_model(model, "float32") is model
    assert narrow.encoder_weight is model.encoder_weight
    with Roundings(model.bucket_weight.shape) as roundings:
        again = narrow.predict(X, k=5, precision="bfloat16")
    assert roundings.count == 0
    for a, b in zip(again, model.predict(X, k=5, precision="bfloat16"), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("name", ["linear", "shared"])
@pytest.mark.parametrize("weight", ["bucket_weight", "bucket_bias"])
def test_bfloat16_is_for_pruned_and_parametrized_models_too(name, weight):
    class Doubled(torch.nn.Module):
        def forward(self, value):
            return 2 * value

    X, model, pruned = draw(n=7), model_of(name), model_of(name)
    with torch.no_grad():
        getattr(model, weight).mul_(2)
    expected = model.predict(X, k=5, precision="bfloat16")[0]
    parametrized = model_of(name)
    torch.nn.utils.parametrize.register_parametrization(parametrized.head, weight, Doubled())
    scores = parametrized.predict(X, k=5, precision="bfloat16")[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)

    torch.nn.utils.prune.identity(pruned.head, weight)
    expected = model_of(name).predict(X, k=5, precision="bfloat16")[0]
    scores = pruned.predict(X, k=5, precision="bfloat16")[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_predict_in_bfloat16_sees_changed_weights():
    model, X = model_of(), draw()
    first = model.predict(X, k=5, precision="bfloat16")[0]
    with torch.no_grad():
        model.bucket_weight.mul_(2)
    assert (model.predict(X, k=5, precision="bfloat16")[0] != first).any()


def test_what_bfloat16_is_not_for():
    model, X = model_of(), draw()
    for precision in ("half", "tf32"):
        with pytest.raises(
            ValueError, match=r"^MACH.predict: precision must be one of float32, bfloat16, int8, got"
        ):
            model.predict(X, precision=precision)
    with pytest.raises(TypeError, match=r"^MACH.predict: precision bfloat16 is for float32, got float64"):
        model_of().double().predict(X, precision="bfloat16")
    with pytest.raises(ValueError, match="precision bfloat16 has no gradient to bucket_weight without"):
        model_of("linear").topk(*tensors(X), 3, precision="bfloat16")
    labels = torch.zeros(0, dtype=torch.long), torch.zeros(8, dtype=torch.long)
    with pytest.raises(ValueError, match="MACH: precision is for bucket logits"):
        model(*tensors(X), *labels, precision="bfloat16")


def test_methods_of_former_subclasses_need_not_know_precisions():
    class Former(mach_ext.MACH):
        def forward(self, *X, validate=True, dropout=None):
            return super().forward(*X, validate=validate, dropout=dropout)

    model, X = model_of(), draw()
    expected = model.predict(X, k=5)
    model.__class__ = Former
    for a, b in zip(model.predict(X, k=5), expected, strict=True):
        assert (a == b).all()


def test_predict_edges():
    model = randomise(build())
    nothing = scipy.sparse.csr_matrix((0, D), dtype=np.float32)
    assert [a.shape for a in model.predict(nothing, k=3)] == [(0, 3), (0, 3)]
    empty_rows = scipy.sparse.csr_matrix((2, D), dtype=np.float32)
    _, labels = model.predict(empty_rows, k=L)
    assert (np.sort(labels, axis=1) == np.arange(L)).all()
    assert model.predict(draw(), k=0)[0].shape == (7, 0)
    once, twice = draw(), draw()
    doubled = scipy.sparse.coo_matrix(
        (
            np.r_[twice.data, twice.data] / 2,
            (np.r_[twice.nonzero()[0]].repeat(1).tolist() * 2, twice.nonzero()[1].tolist() * 2),
        ),
        shape=twice.shape,
    )
    np.testing.assert_allclose(model.predict(doubled, k=3)[0], model.predict(once, k=3)[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("X", "k", "error", "message"),
    [
        ([[0.0] * D], 3, TypeError, "X: must be a SciPy sparse matrix, .*, got list"),
        (draw(columns=D + 1), 3, ValueError, rf"X must have D={D} columns, got shape \(7, {D + 1}\)"),
        (
            scipy.sparse.csr_matrix(np.full((1, D), np.nan, np.float32)),
            3,
            ValueError,
            "X, row 0: values must be finite and fit float32, got nan",
        ),
        (draw(), L + 1, ValueError, f"k must be in 0 ... L={L}, got {L + 1}"),
        (draw(), -1, ValueError, f"k must be in 0 ... L={L}, got -1"),
    ],
)
def test_predict_refuses(X, k, error, message):
    with pytest.raises(error, match=message):
        build().predict(X, k=k)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": (1, 2, 3)}, "hidden_size must be 0"),
        ({"hidden_size": (0, 2)}, "hidden_size must be 0"),
        ({"hidden_size": -1}, "hidden_size must be 0"),
        ({"encoder": "both"}, "encoder must be one of shared, independent, got 'both'"),
        ({"merge": "mean"}, "merge must be one of mean_logit"),
        ({"feature_dropout": 1.0}, r"feature_dropout must be in \[0, 1\)"),
        ({"num_buckets": 1}, "num_buckets"),
        ({"num_repetitions": 0}, "num_repetitions"),
        ({"num_features": 0}, "num_features must be at least 1"),
    ],
)
def test_constructor_refuses(changes, message):
    arguments = {"num_features": D, "num_labels": L, "num_repetitions": R, "num_buckets": B, **changes}
    with pytest.raises(ValueError, match=message):
        mach_ext.MACH(**arguments)


def test_score_names_and_encode_of_linear():
    model, X = build("linear"), tensors(draw())
    with pytest.raises(ValueError, match="linear MACH"):
        model.encode(*X)
    with pytest.raises(ValueError, match='score must be "logit" or "model"'):
        model.label_scores(*X, torch.tensor([0]), score="prob")


def test_same_seed_same_weights_whatever_the_global_generator():
    torch.manual_seed(1)
    first = build(seed=5)
    torch.manual_seed(2)
    second, other = build(seed=5), build(seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.hash == second.hash
    assert not torch.equal(first.encoder_weight, other.encoder_weight)


def test_dropout_only_in_training():
    model, X = randomise(build(feature_dropout=0.5, hidden_dropout=0.5)), tensors(draw())
    torch.manual_seed(0)
    assert not torch.equal(model.train()(*X), model(*X))
    assert torch.equal(model.eval()(*X), model(*X))


# ------------------------------------------------------------------------------------------ model folder


COUNTS = np.array([1000, 300, 100, 30, 10, 3, 1, 0])


def small_model(**changes):
    return mach_ext.MACH(20, 8, **{"num_repetitions": 6, "num_buckets": 8, "hidden_size": 6, **changes})


def all_scores(model, X):
    X = [torch.from_numpy(a) for a in (X.data, X.indices, X.indptr)]
    return model.label_scores(*X, torch.arange(model.num_labels)).detach().numpy()


@pytest.mark.parametrize("hidden", [0, 6, (6, 5)])
def test_adjust_logits_moves_each_label_by_its_count(hidden):
    """R B = 48 for 8 labels: exact, but for what is the same for all labels."""
    model = small_model(hidden_size=hidden)
    X = scipy.sparse.random(5, 20, 0.3, "csr", np.float32, random_state=0)
    before, bias = all_scores(model, X), model.bucket_bias.detach().clone()
    for tau in (2.0, 0.3):  # the second replaces the first
        model.adjust_logits(COUNTS, tau)
        change = all_scores(model, X) - before + tau * np.log(COUNTS + 1.0)
        common = tau * np.average(np.log(COUNTS + 1.0), weights=COUNTS + 1)
        np.testing.assert_allclose(change, np.full(change.shape, common), atol=1e-4)
    torch.testing.assert_close(model.bucket_bias - model.logit_adjustment, bias)
    model.adjust_logits(COUNTS, 0)
    torch.testing.assert_close(model.bucket_bias.detach(), bias)
    assert not model.logit_adjustment.any()


def test_adjust_logits_of_one_label():
    model = mach_ext.MACH(20, 1, num_repetitions=2, num_buckets=4, hidden_size=6)
    for counts in ([3], [[3]], np.array([[3]])):
        model.adjust_logits(counts, 0.5)
        assert model.bucket_bias.isfinite().all()


@pytest.mark.parametrize("step", [None, 0.01])
def test_the_adjustment_is_kept_with_the_model(step, tmp_path):
    model = small_model().double()
    bias = model.bucket_bias.detach().clone()
    model.adjust_logits(COUNTS[None], 0.5)  # as Y.sum(0) comes, [1, L]
    model.save(tmp_path, quantization_step=step)
    loaded = mach_ext.load(tmp_path)
    torch.testing.assert_close(loaded.bucket_bias, model.bucket_bias, check_dtype=False)
    again = small_model()
    again.load_state_dict(loaded.state_dict())
    again.adjust_logits(COUNTS, 0.0)
    torch.testing.assert_close(again.bucket_bias, bias, check_dtype=False)

    again.adjust_logits(COUNTS, 0.5)
    part = {"encoder_weight": again.encoder_weight.detach().clone()}
    again.load_state_dict(part, strict=False)  # the bias stays, and so does what is known of it
    assert again.logit_adjustment.any()
    former = {k: v for k, v in loaded.state_dict().items() if k != "head.logit_adjustment"}
    again.load_state_dict(former)  # of before there was one
    assert not again.logit_adjustment.any()


@pytest.mark.parametrize(
    ("counts", "tau", "message"),
    [
        (COUNTS[1:], 1.0, r"label_counts must be \[L=8\], .* got shape \(7,\)"),
        (-COUNTS, 1.0, "not negative, got shape .* smallest -1000"),
        (COUNTS + np.nan, 1.0, "finite"),
        (COUNTS, np.inf, "tau must be within -100 and 100, got inf"),
        (COUNTS, 101, "tau must be within"),
    ],
)
def test_adjust_logits_refuses(counts, tau, message):
    with pytest.raises(ValueError, match=f"MACH.adjust_logits: .*{message}"):
        small_model().adjust_logits(counts, tau)
    other = small_model(merge="min_prob")
    with pytest.raises(ValueError, match="merge must be mean_logit, got min_prob"):
        other.adjust_logits(COUNTS, 1.0)
    other.adjust_logits(COUNTS, 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_save_and_load_round_trip(name, tmp_path):
    model, X = randomise(build(name, merge="median_prob")), draw()
    model.save(tmp_path / "model")
    loaded = mach_ext.load(tmp_path / "model")
    assert not loaded.training
    assert loaded.configuration() == model.configuration()
    for a, b in zip(model.predict(X, k=5), loaded.predict(X, k=5), strict=True):
        assert (a == b).all()


def test_learned_buckets_and_bfloat16_survive_the_folder(tmp_path):
    table = torch.randint(0, B, (R, L), generator=torch.Generator().manual_seed(0))
    table[0] = torch.arange(L) % B
    table[1] = torch.arange(L) // B
    model = randomise(build(hash=mach_ext.LabelHash.from_buckets(table, B))).to(torch.bfloat16)
    model.save(tmp_path)
    loaded = mach_ext.load(tmp_path)
    assert torch.equal(loaded.hash.buckets, table.int())
    assert loaded.bucket_weight.dtype == torch.bfloat16
    scores, labels = model.predict(draw(), k=5)
    assert (loaded.predict(draw(), k=5)[1] == labels).all()
    wide = model.float()
    np.testing.assert_allclose(wide.predict(draw(), k=5)[0], scores, rtol=1e-3, atol=1e-3)


def test_saving_again_replaces_and_keeps_other_files(tmp_path):
    for foreign in ("metrics.json", "weights-00001.safetensors"):
        (tmp_path / foreign).write_text("{}")
    randomise(build(), 1).save(tmp_path)
    second = randomise(build(), 2)
    second.save(tmp_path)
    assert torch.equal(mach_ext.load(tmp_path).bucket_weight, second.bucket_weight)
    assert sorted(p.name[:8] for p in tmp_path.iterdir()) == [
        "metrics.", "model.js", "weights-", "weights-",
    ]  # fmt: skip
    assert (tmp_path / "weights-00001.safetensors").exists()


STEP = 0.02


def compressed(model, folder, step=STEP):
    model.save(folder, quantization_step=step)
    return mach_ext.load(folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("step", [0.01, 1.0, 3.0])  # two bytes a weight, one or two, mostly zeros
def test_compressed_weights_are_the_nearest_multiples(name, step, tmp_path):
    model = randomise(build(name))
    loaded = compressed(model, tmp_path, step)
    first = "head.bucket_weight" if model.is_linear else "encoder_weight"
    for (weight, ours), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert ours.dtype == torch.float32
        if weight.endswith("bias"):
            assert torch.equal(ours, theirs)
            continue
        own = step if weight == first else step / 64
        assert (ours - theirs).abs().max() <= own / 2 + 1e-6
        codes = ours.double() / own
        torch.testing.assert_close(codes, codes.round(), rtol=1e-6, atol=1e-6)
        assert torch.equal(codes.round() == 0, ours == 0)
    assert not loaded.training
    assert loaded.configuration() == model.configuration()


def test_compressing_again_writes_the_same_bytes(tmp_path):
    model = randomise(build("independent two layers"))
    model.attachments["names.txt"] = b"a"
    compressed(compressed(model, tmp_path / "once"), tmp_path / "twice")
    model.save(tmp_path / "again", quantization_step=STEP)
    once, twice, again = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("once", "twice", "again")
    )
    assert once == twice == again


def test_linear_scores_move_within_the_bound_and_other_dtypes_become_float32(tmp_path):
    model, X = randomise(build("linear")), draw()
    every = torch.arange(L)
    with torch.no_grad():
        for source in (model, model.double(), model.bfloat16()):
            loaded = compressed(source, tmp_path)
            moved = loaded.label_scores(*tensors(X), every) - source.float().label_scores(*tensors(X), every)
            bound = torch.from_numpy(np.asarray(abs(X).sum(1))) * STEP / 2
            assert (moved.abs() <= bound + 1e-5).all()
            assert moved.abs().max() > 0


def test_compressed_files_are_small_and_keep_learned_buckets(tmp_path):
    """Rows of rare features, which a step rounds to 0, cost next to nothing."""
    table = torch.stack(
        [torch.arange(L) % B, torch.arange(L) // B, torch.arange(L) % 31, torch.arange(L) % 29]
    )
    model = mach_ext.MACH(4000, L, R, B, 64, hash=mach_ext.LabelHash.from_buckets(table, B))
    with torch.no_grad():
        model.encoder_weight[40:] *= 1e-3
    assert torch.equal(compressed(model, tmp_path).hash.buckets, table.int())
    (weights,) = tmp_path.glob("weights-*")
    assert weights.stat().st_size < 4 * 4000 * 64 / 30
    model.save(tmp_path)  # uncompressed again, in place
    assert torch.equal(mach_ext.load(tmp_path).encoder_weight, model.encoder_weight)
    assert len(list(tmp_path.glob("weights-*"))) == 1


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_blocks_and_zlib_streams(monkeypatch, block):
    monkeypatch.setattr(compression, "_BLOCK", block)
    weight = torch.randn(3, 7, 10, generator=torch.Generator().manual_seed(0))
    for step in (0.5, 0.001):
        stream = compression.encode(weight, step)
        torch.testing.assert_close(
            compression.decode(stream, weight.shape, step), torch.round(weight / step) * step, rtol=0, atol=0
        )
    for broken in (stream[:-1], stream[:5], stream[:0], torch.cat([stream[:40], stream[41:]])):
        with pytest.raises(ValueError, match=r"must be a zlib stream"):
            compression.decode(broken, weight.shape, step)
    for shape in ((3, 7, 9), (3, 7, 11)):
        with pytest.raises(
            ValueError, match=r"must be a zlib stream of weights \[3, 7, .*, got other contents"
        ):
            compression.decode(stream, shape, step)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (0, "quantization_step must be None or a finite number above 0, got 0"),
        (float("nan"), "quantization_step must be None or a finite number above 0, got nan"),
        ("0.5", "quantization_step must be None or a number, got str"),
        (True, "quantization_step must be None or a number, got bool"),
        (10**400, "quantization_step must be None or a finite number above 0, got 1000"),
        (1e3, "encoder_weight: weights must not all be rounded to 0, as they are by step 1000"),
        (1e-6, "encoder_weight: weights must be below 32,768 steps of 1e-06, got"),
    ],
)
def test_steps_that_are_refused_leave_nothing(step, message, tmp_path):
    error = TypeError if "or a number" in message else ValueError
    with pytest.raises(error, match=f"MACH.save: {message}"):
        randomise(build()).save(tmp_path / "new", quantization_step=step)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_compressed(value, tmp_path):
    model = randomise(build())
    with torch.no_grad():
        model.bucket_weight[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"MACH.save: bucket_weight: must be finite and fit float32"):
        model.save(tmp_path, quantization_step=STEP)


@pytest.mark.parametrize("broken", ["saving.save_tensors", "saving.write_json", "journal.write_json"])
def test_a_failed_save_leaves_the_former_model(tmp_path, monkeypatch, broken):
    former = randomise(build(), 1)
    former.save(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"mach_ext._model_folder.{broken}", fail)
    with pytest.raises(OSError, match="No space left"):
        randomise(build(), 2).save(tmp_path)
    assert torch.equal(mach_ext.load(tmp_path).bucket_weight, former.bucket_weight)
    assert not list(tmp_path.glob(".*"))


def edit_json(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def flip_last_byte(folder):
    (weights,) = folder.glob("weights-*")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def truncate(folder):
    (weights,) = folder.glob("weights-*")
    weights.write_bytes(weights.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "model.json").unlink(), "no model.json in the folder"),
        (lambda p: next(p.glob("weights-*")).unlink(), "a file that model.json names is missing"),
        (lambda p: next(p.glob("names-*")).unlink(), "a file that model.json names is missing"),
        (lambda p: next(p.glob("names-*")).write_text("b"), "truncated or edited"),
        (flip_last_byte, "truncated or edited"),
        (truncate, "truncated or edited"),
        (lambda p: (p / "model.json").write_text('{"format": 1'), "not a model record"),
        (lambda p: (p / "model.json").write_bytes(b"\xff\xfe"), "not a model record"),
        (
            lambda p: edit_json(p / "model.json", lambda r: r.pop("sha256")),
            "not a model record: sha256 is missing",
        ),
        (lambda p: edit_json(p / "model.json", lambda r: r.update(format=99)), "format must be 1 .* got 99"),
        (lambda p: edit_json(p / "model.json", lambda r: r["model"].update(num_labels=91)), "edited"),
        (lambda p: edit_json(p / "model.json", lambda r: r["model"].update(merge="min_prob")), "edited"),
        (lambda p: edit_json(p / "model.json", lambda r: r["hash"].update(seed=5)), "edited"),
    ],
)
@pytest.mark.parametrize("step", [None, STEP])
def test_load_names_what_is_wrong(tmp_path, damage, message, step):
    model = build()
    model.attachments["names.txt"] = b"a"
    model.save(tmp_path, step)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        mach_ext.load(tmp_path)


def test_load_of_no_folder():
    with pytest.raises(ValueError, match="/nowhere: not a mach_ext model: no such folder"):
        mach_ext.load(Path("/nowhere"))


def test_hash_moves_with_the_model_and_warns_of_collisions():
    assert build().to("cpu").hash.buckets.device.type == "cpu"
    with pytest.warns(mach_ext.CollisionWarning, match="label pairs"):
        mach_ext.MACH(D, 400, num_repetitions=2, num_buckets=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()


def test_attachments_travel_with_the_model(tmp_path):
    model = build()
    model.attachments = {"labels.json": b'["a\\tb"]', "run.json": b"{}"}
    model.save(tmp_path)
    assert mach_ext.load(tmp_path).attachments == model.attachments
    model.attachments.pop("run.json")
    model.save(tmp_path)
    assert mach_ext.load(tmp_path).attachments == model.attachments
    assert not list(tmp_path.glob("run-*"))


def test_state_dict_of_another_hash_is_refused():
    model, before = build(seed=7), build(seed=7)
    with pytest.raises(RuntimeError, match=r"weights are of label hash .* seed=0, this model has .* seed=7"):
        model.load_state_dict(build(seed=0).state_dict())
    assert torch.equal(model.encoder_weight, before.encoder_weight)  # nothing was copied
    build(seed=7).load_state_dict(build(seed=7).state_dict())


def test_a_seeded_hash_of_ones_own_keeps_both_seeds(tmp_path):
    model = build(seed=3, hash=mach_ext.LabelHash(L, B, R, seed=9))
    model.save(tmp_path)
    loaded = mach_ext.load(tmp_path)
    assert (loaded.seed, loaded.hash.seed) == (3, 9)
    assert loaded.hash == model.hash


def test_numpy_numbers_are_numbers(tmp_path):
    model = mach_ext.MACH(
        np.int64(D), np.int32(L), np.int64(R), np.int64(B), hidden_size=np.int64(8), seed=np.int64(3),
        hidden_dropout=np.float32(0.5),
    )  # fmt: skip
    model.save(tmp_path)
    assert mach_ext.load(tmp_path).configuration() == model.configuration()
    assert model.predict(draw(), np.int64(2))[1].shape == (7, 2)
    with pytest.raises(TypeError, match=r"MACH: num_features must be an int, got float"):
        mach_ext.MACH(20.0, L)
    with pytest.raises(TypeError, match=r"MACH.predict: k must be an int, got float"):
        model.predict(draw(), 2.0)


def test_float64_models_predict_and_autocast_changes_nothing():
    model, X = randomise(build()), draw()
    scores, labels = model.predict(X, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.predict(X, 5)
        Y = [torch.tensor([3]), torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])]
        model.loss(*tensors(X), *Y).backward()
    assert (inside[0] == scores).all()
    assert (inside[1] == labels).all()
    np.testing.assert_allclose(model.double().predict(X, 5)[0], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_second_derivatives_are_refused(name):
    """A gradient penalty must not silently do nothing."""
    model, X = randomise(build(name)), tensors(draw())
    values = X[0].requires_grad_()
    Y = [torch.tensor([3]), torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])]
    for scalar in (
        model.loss(values, *X[1:], *Y, sparse_grad=False),
        model(values, *X[1:]).sum(),
        model.topk(values, *X[1:], k=3)[0].sum(),
    ):
        with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
            torch.autograd.grad(scalar, values, create_graph=True)


def test_buckets_that_were_written_to_are_refused():
    hash = mach_ext.LabelHash(L, B, R)
    scores = torch.randn(2, R, B)
    F.merge_topk(scores, hash, 3)
    hash.buckets.fill_(10**8)
    with pytest.raises(ValueError, match="buckets was changed in place"):
        F.merge_topk(scores, hash, 3)


def test_attachment_names_are_plain_and_records_stay_in_their_folder(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    folder = tmp_path / "model"
    for name, content in (("../victim.txt", b""), ("LICENSE", b""), ("x.json.gz", b""), ("a.json", "text")):
        model = build()
        model.attachments[name] = content
        with pytest.raises(ValueError, match=r"an attachment must be bytes, named like labels.json"):
            model.save(folder)
    assert not folder.exists()
    folder.mkdir()
    (folder / "model.json").write_text(
        json.dumps({"weights": {"file": "w"}, "attachments": {"a": str(victim)}})
    )
    build().save(folder)
    assert victim.read_text() == "mine"


def test_copies_of_written_buckets_are_refused():
    hash = mach_ext.LabelHash(L, B, R)
    hash.buckets[0, 0] = 10**8
    with pytest.raises(ValueError, match="out of range"):
        copy.deepcopy(hash)


def test_meta_device_and_safetensors_of_the_state_dict(tmp_path):
    assert F.bucket_logits(torch.empty(2, 4, device="meta"), torch.empty(R, 4, B, device="meta"), None).shape
    assert all(isinstance(value, torch.Tensor) for value in build().state_dict().values())


def test_model_merges_are_pairs_and_can_be_called():
    hash = mach_ext.LabelHash(L, B, R)
    logits = torch.randn(3, R, B, generator=torch.Generator().manual_seed(0))
    for merge in mach_ext.nn.MODEL_MERGES.values():
        transform, reduction = merge
        changed = logits if transform is None else transform(logits)
        assert torch.equal(merge.transformed(logits), changed)
        assert (merge.transformed(logits) is logits) == (transform is None)
        votes = logits.transpose(1, 2).contiguous()  # of B labels, as it were
        expected = F.merge_repetitions(changed.transpose(1, 2).contiguous(), reduction)
        assert torch.equal(merge.label_scores(votes), expected)
        for mine, theirs in zip(
            merge.topk(logits, hash, 4), F.merge_topk(changed, hash, 4, reduction), strict=True
        ):
            assert torch.equal(mine, theirs)


def memory_orders(logits):
    """The same numbers as `bucket_logits` lays them out, contiguous, and not adjacent in memory."""
    yield logits.transpose(0, 1).contiguous().transpose(0, 1)
    yield logits.clone()
    yield torch.stack((logits, logits), 3)[..., 0]


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("part", [1000, 1 << 18], ids=["parts", "whole"])
def test_transforms_in_place_give_the_same_bits(monkeypatch, name, part):
    """Of an odd number of scores, with every kind of number, in the memory of the logits."""
    monkeypatch.setattr(mach_ext.merges, "_ON_CPU", part)
    merge = mach_ext.nn.MODEL_MERGES[name]
    logits = 9 * torch.randn(13, 5, 1001, generator=torch.Generator().manual_seed(0))
    logits[0, 0, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0])
    for each in memory_orders(logits):
        expected, adjacent = merge.transformed(each).clone(), each.stride(2) == 1
        out = merge.transform_in_place(each)
        assert bitwise_equal(out, expected)
        assert (out is each) == (adjacent or name != "mean_logprob")


def test_transforms_in_place_leave_recorded_logits_as_they_are():
    logits = torch.randn(3, R, B, generator=torch.Generator().manual_seed(0), requires_grad=True)
    former = logits.detach().clone()
    for merge in mach_ext.nn.MODEL_MERGES.values():
        scores = merge.transform_in_place(logits * 1)
        (gradient,) = torch.autograd.grad(scores.sum(), logits)
        (expected,) = torch.autograd.grad(merge.transformed(logits).sum(), logits)
        assert torch.equal(gradient, expected)
    assert torch.equal(logits.detach(), former)


@pytest.mark.parametrize("name", MERGES)
def test_only_the_models_own_logits_are_overwritten(name):
    model, X = model_of(merge=name), tensors(draw())
    with torch.inference_mode():
        logits = model(*X)
        kept, former, merge = logits.clone(), [], mach_ext.nn.MODEL_MERGES[name]
        expected = merge.topk(logits, model.hash, 5)
        assert torch.equal(logits, kept)
        assert all(map(torch.equal, model.topk(*X, 5), expected))
        own = merge.topk(logits, model.hash, 5, overwrite=True)
        assert all(map(torch.equal, own, expected))
        assert torch.equal(logits, merge.transformed(kept))

        class Cached(mach_ext.MACH):
            def forward(self, *args, **options):
                return former[0]

        hooks = [
            model.register_forward_hook(lambda *call: former.append(call[-1])),
            torch.nn.modules.module.register_module_forward_hook(lambda *call: former.append(call[-1])),
        ]
        for hook in hooks:  # They keep the logits: both hooks, then the second one alone.
            former.clear()
            assert all(map(torch.equal, model.topk(*X, 5), expected))
            assert former
            assert all(torch.equal(each, kept) for each in former)
            hook.remove()
        former[:] = [kept.clone()]
        model.forward = lambda *args, **options: former[0]
        assert all(map(torch.equal, model.topk(*X, 5), expected))
        del model.forward
        model.__class__ = Cached
        assert all(map(torch.equal, model.topk(*X, 5), expected))
        assert torch.equal(former[0], kept)


@pytest.mark.parametrize("name", MERGES)
def test_logits_that_cannot_be_overwritten_are_transformed_into_new_memory(name):
    merge = mach_ext.nn.MODEL_MERGES[name]
    logits = torch.randn(1, R, B, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        inference = logits.clone()
    for each in (logits.expand(3, R, B), inference):
        kept = each.clone()
        assert bitwise_equal(merge.transform_in_place(each), merge.transformed(kept))
        assert torch.equal(each, kept)


@pytest.mark.parametrize("name", MERGES)
def test_logits_are_not_overwritten_where_a_call_or_the_class_keeps_them(monkeypatch, name):
    X, former = tensors(draw()), []

    class Recording(mach_ext.MACH):
        def __call__(self, *args, **options):
            logits = super().__call__(*args, **options)
            former.append((logits, logits.clone()))
            return logits

    model = model_of(merge=name)
    model.__class__ = Recording
    with torch.no_grad():
        expected = model.topk(*X, 5)
        model.__class__ = mach_ext.MACH
        forward = mach_ext.MACH.forward

        def recorded(self, *args, **options):
            logits = forward(self, *args, **options)
            former.append((logits, logits.clone()))
            return logits

        monkeypatch.setattr(mach_ext.MACH, "forward", recorded)
        assert all(map(torch.equal, model.topk(*X, 5), expected))
    assert len(former) == 2
    assert all(torch.equal(logits, kept) for logits, kept in former)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_first_layer_views_give_the_pre_activations(name):
    model = randomise(build(name))
    weight, bias = mach_ext.nn.first_layer(model)
    X = draw()
    first = torch.from_numpy(X.toarray()) @ weight + bias.unsqueeze(1)  # [C, N, M]
    if model.is_linear:
        expected = model(*tensors(X)).transpose(0, 1)
        assert weight.data_ptr() == model.bucket_weight.data_ptr()
    else:
        expected = F.sparse_linear(*tensors(X), model.encoder_weight, model.encoder_bias)[None]
        assert weight.data_ptr() == model.encoder_weight.data_ptr()
        assert weight.shape == (1, D, 8 * (R if model.encoder == "independent" else 1))
    torch.testing.assert_close(first, expected)
    assert not weight.requires_grad
    assert not bias.requires_grad


def test_save_takes_the_step_by_its_former_name(tmp_path):
    model = model_of()
    model.save(tmp_path / "new", quantization_step=0.01)
    with pytest.warns(
        DeprecationWarning, match="MACH.save: argument step is now called quantization_step"
    ) as said:
        model.save(tmp_path / "old", step=0.01)
    assert said[0].filename == __file__
    new, old = (mach_ext.load(tmp_path / name).state_dict() for name in ("new", "old"))
    assert all(torch.equal(new[name], old[name]) for name in new)
    with pytest.raises(
        TypeError, match=r"MACH\.save: step is now quantization_step; pass only quantization_step"
    ):
        model.save(tmp_path / "old", step=0.01, quantization_step=0.01)


def test_examples_of_renamed_functions_are_still_run():
    names = {test.name for test in doctest.DocTestFinder().find(mach_ext.nn) if test.examples}
    assert "mach_ext.nn.MACH.save" in names

"""Models with dense features: center and scale, joined tensors, every method with `dense=`."""

import copy
import os
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import bitwise_equal

import mach_ext
from mach_ext import MACH
from mach_ext.data import HybridMatrix

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, E, L = 9, 12, 4, 15
SPARSE = scipy.sparse.random(N, D, 0.3, "csr", np.float32, rng=np.random.default_rng(1))
SPARSE.data[:3] = -1
SPARSE = scipy.sparse.csr_matrix(
    scipy.sparse.vstack([SPARSE[:4], scipy.sparse.csr_matrix((1, D)), SPARSE[5:]])
)
DENSE = (3 + np.random.default_rng(0).normal(size=(N, E))).astype(np.float32)
X = HybridMatrix(SPARSE, DENSE)
KINDS = {
    "hidden": {"hidden_size": 5},
    "linear": {"hidden_size": 0},
    "two layers": {"hidden_size": (5, 4)},
    "independent": {"hidden_size": 5, "encoder": "independent"},
}


def build(kind="hidden", num_dense=E, scaled=True, **options):
    options = {"merge": "mean_prob", **KINDS[kind], **options}
    model = MACH(D, L, num_repetitions=4, num_buckets=6, num_dense=num_dense, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 1, generator=torch.Generator().manual_seed(len(parameter)))
    if scaled and num_dense:
        model.scale_dense(DENSE)
    return model


def tensors(matrix, dtype=torch.float32, index=torch.int32, pointer=torch.int32):
    return (
        torch.from_numpy(matrix.data).to(dtype),
        torch.from_numpy(matrix.indices).to(index),
        torch.from_numpy(matrix.indptr).to(pointer),
    )


# --------------------------------------------------------------------------------------- center and scale


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("length", [1.0, 0.25])
def test_center_and_scale_against_float64(dtype, length):
    dense = (DENSE * 10).astype(dtype)
    exact = dense.astype(np.float64)
    model = build(scaled=False)
    model.scale_dense(dense, length)
    np.testing.assert_allclose(model.dense_center, exact.mean(0), rtol=1e-7)
    spread = np.sqrt(((exact - exact.mean(0)) ** 2).sum(1).mean())
    np.testing.assert_allclose(model.dense_scale, length / spread, rtol=1e-6)
    joined = model.join(HybridMatrix(SPARSE, dense)).toarray()[:, D:].astype(np.float64)
    np.testing.assert_allclose(joined.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.sqrt((joined**2).sum(1).mean()), length, rtol=1e-6)


@pytest.mark.parametrize(
    ("offset", "spread"), [(1e6, 1.0), (1e6, 0.05), (-3e30, 1e28), (0, 1e-30), (1e3, 1e-3)]
)
def test_a_huge_offset_does_not_cancel_the_spread(offset, spread):
    """Float64 numbers are rounded to float32 first, so a spread below float32's grid is that of the grid."""
    dense = offset + spread * np.random.default_rng(5).normal(size=(1000, E))
    rounded = dense.astype(np.float32).astype(np.float64)
    model = build(scaled=False)
    model.scale_dense(dense)
    expected = np.sqrt(((rounded - model.dense_center.double().numpy()) ** 2).sum(1).mean())
    np.testing.assert_allclose(model.dense_scale.double(), 1 / expected, rtol=1e-6)
    joined = model.join(HybridMatrix(scipy.sparse.csr_matrix((1000, D)), dense)).toarray()[:, D:]
    np.testing.assert_allclose(np.sqrt((joined.astype(np.float64) ** 2).sum(1).mean()), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "dense", [np.full((5, E), 0.1), np.zeros((5, E)), DENSE[:1], np.full((5, E), 1e6), np.full((3, E), 3e38)]
)
def test_rows_without_a_spread_join_as_zeros(dense):
    model = build(scaled=False)
    model.scale_dense(dense)
    assert model.is_scaled
    assert model.dense_scale.item() == 1
    sparse = scipy.sparse.csr_matrix((len(dense), D))
    assert not model.join(HybridMatrix(sparse, dense)).data.any()


def test_a_spread_too_small_for_a_float32_scale():
    model = build(scaled=False)
    model.scale_dense(np.array([[0.0] * E, [1e-42] * E]))
    assert model.dense_scale.item() == 1


def test_constant_columns_beside_others():
    dense = np.column_stack([np.full(N, 7.3), DENSE[:, 1:]])
    model = build(scaled=False)
    model.scale_dense(dense)
    joined = model.join(HybridMatrix(SPARSE, dense)).toarray()
    assert not joined[:, D].any()
    assert joined[:, D + 1 :].all()


def test_blocks_do_not_change_the_sums(monkeypatch):
    whole, parts = build(), build(scaled=False)
    monkeypatch.setattr("mach_ext.data.hybrid._BLOCK", 2 * E)
    parts.scale_dense(DENSE)
    np.testing.assert_allclose(parts.dense_center, whole.dense_center, rtol=1e-7)
    np.testing.assert_allclose(parts.dense_scale, whole.dense_scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ((DENSE[:, 1:],), ValueError, r"dense must have shape \[N, E=4\] with N at least 1, got \(9, 3\)"),
        ((DENSE[:0],), ValueError, r"with N at least 1, got \(0, 4\)"),
        ((DENSE, 0), ValueError, "length must be above 0 and finite, got 0"),
        ((DENSE, np.inf), ValueError, "length must be above 0 and finite, got inf"),
        ((DENSE, np.nan), ValueError, "length must be above 0"),
        (
            (np.where(DENSE > 3, DENSE, np.nan),),
            ValueError,
            "MACH.scale_dense: dense, row 0: numbers must be fin",
        ),
        ((SPARSE,), TypeError, "MACH.scale_dense: dense: must be a NumPy array or a dense tensor"),
    ],
)
def test_what_cannot_be_scaled(given, kind, message):
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=message):
        model.scale_dense(*given)
    assert all(
        bitwise_equal(before[name], value)
        for name, value in model.state_dict().items()
        if name != "head.hash._extra_state"
    )
    with pytest.raises(ValueError, match=r"the model takes no dense features \(num_dense=0\)"):
        build(num_dense=0).scale_dense(DENSE)


def test_a_model_scaled_by_centred_data_counts_as_scaled():
    dense = np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    model = build(scaled=False)
    assert not model.is_scaled
    model.scale_dense(dense)
    assert not model.dense_center.any()
    assert model.dense_scale.item() == 1
    assert model.is_scaled
    assert not build(num_dense=0).is_scaled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_center_keeps_its_bits_in_a_model_of_any_dtype(dtype):
    model = build(scaled=False)
    model.scale_dense(1e6 + 1e5 * DENSE)
    center, scale = model.dense_center.clone(), model.dense_scale.clone()
    moved = copy.deepcopy(model).to(dtype)
    assert moved.encoder_weight.dtype == moved.bucket_bias.dtype == dtype
    assert bitwise_equal(moved.dense_center, center)
    assert bitwise_equal(moved.dense_scale, scale)
    assert moved.is_scaled
    assert copy.deepcopy(model).to("meta").dense_center.is_meta
    assert model.half().float().dense_center.equal(center)


# ----------------------------------------------------------------------------------------------- documents


def test_a_hybrid_matrix_gives_what_its_joined_rows_give():
    for kind in KINDS:
        model = build(kind)
        scores, labels = model.predict(X, k=L)
        again = model.predict(model.join(X), k=L)
        assert bitwise_equal(torch.from_numpy(scores), torch.from_numpy(again[0]))
        np.testing.assert_array_equal(labels, again[1])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_against_float64(kind):
    model = build(kind)
    exact = copy.deepcopy(model).double()
    center = DENSE.astype(np.float64).mean(0)
    spread = np.sqrt(((DENSE - center) ** 2).sum(1).mean())
    joined = np.hstack([SPARSE.toarray(), (DENSE - center) / spread])
    plain = build(kind, num_dense=0)  # a model of D + E sparse features
    plain = MACH(**{**plain.configuration(), "num_features": D + E}).double().eval()
    plain.load_state_dict({name: v for name, v in exact.state_dict().items() if "dense_" not in name})
    csr = scipy.sparse.csr_matrix(joined)
    expected = plain(*tensors(csr, torch.float64)).detach()
    scores = model(*tensors(model.join(X))).detach()
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_batches_of_a_mapped_file(batch_size, tmp_path):
    np.save(tmp_path / "dense.npy", DENSE.astype(np.float16))
    dense = np.load(tmp_path / "dense.npy", mmap_mode="r")
    model = build()
    mapped = HybridMatrix(SPARSE, dense)
    scores, labels = model.predict(mapped, 3, batch_size)
    expected, best = model.predict(HybridMatrix(SPARSE, np.array(dense, np.float32)), 3, N)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_array_equal(labels, best)
    assert model.predict(mapped[:0], 3)[1].shape == (0, 3)


def test_predict_changes_nothing():
    model = build()
    sparse, dense = SPARSE.copy(), DENSE.copy()
    state = copy.deepcopy(model.state_dict())
    model.predict(HybridMatrix(sparse, dense), 3)
    model.join(HybridMatrix(sparse, dense))
    np.testing.assert_array_equal(dense, DENSE)
    assert (sparse != SPARSE).nnz == 0
    assert all(state[name].equal(value) for name, value in model.state_dict().items())


def test_documents_that_do_not_fit_the_model():
    model = build()
    with pytest.raises(
        ValueError, match=r"MACH.predict: X must have D=12 sparse and E=4 dense features, got 12 and 3"
    ):
        model.predict(HybridMatrix(SPARSE, DENSE[:, 1:]))
    with pytest.raises(ValueError, match="must have D=12 sparse and E=4 dense features, got 11 and 4"):
        model.predict(HybridMatrix(SPARSE[:, 1:], DENSE))
    with pytest.raises(
        ValueError, match=r"must be a mach_ext.data.HybridMatrix of D=12 sparse and E=4 dense"
    ) as error:
        model.predict(SPARSE)
    assert "D + E=16 columns as MACH.join returns it, with the dense features centred and scaled" in str(
        error.value
    )
    with pytest.raises(
        ValueError, match=r"takes no dense features \(num_dense=0\), got a HybridMatrix of 12 and 4"
    ):
        build(num_dense=0).predict(X)
    with pytest.raises(ValueError, match="num_dense must be at least 0, got -1"):
        MACH(D, L, num_dense=-1)
    with pytest.raises(TypeError, match="num_dense must be an int"):
        MACH(D, L, num_dense=1.0)


def test_an_overflow_in_predict_names_the_row():
    model = build(scaled=False)
    model.scale_dense(1e-20 * DENSE)
    dense = 1e-20 * DENSE
    dense[6, 2] = 1e20
    for batch_size in (2, 100):
        with pytest.raises(ValueError, match="row 6: centred and scaled numbers must fit float32"):
            model.predict(HybridMatrix(SPARSE, dense), 3, batch_size)


# ------------------------------------------------------------------------------------------ joined tensors


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("pointer", [torch.int32, torch.int64])
@pytest.mark.parametrize("rows", [slice(None), slice(0, 0), slice(4, 5), slice(3, 6)])
def test_joined_tensors_have_the_bits_of_the_joined_matrix(index, pointer, rows):
    model = build()
    part = X[rows]
    expected = model.join(part)
    joined = model.join_tensors(
        *tensors(part.sparse, index=index, pointer=pointer), torch.from_numpy(part.dense)
    )
    assert [t.dtype for t in joined] == [torch.float32, index, pointer]
    assert bitwise_equal(joined[0], torch.from_numpy(expected.data))
    assert joined[1].tolist() == expected.indices.tolist()
    assert joined[2].tolist() == expected.indptr.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dense_tensors_of_other_dtypes(dtype):
    model = build()
    dense = torch.from_numpy(DENSE).to(dtype)
    joined = model.join_tensors(*tensors(SPARSE), dense)[0]
    assert bitwise_equal(joined, torch.from_numpy(model.join(HybridMatrix(SPARSE, dense)).data))


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_takes_dense_features(kind):
    model = build(kind)
    documents, dense = tensors(SPARSE), torch.from_numpy(DENSE)
    joined = tensors(model.join(X))
    Y = torch.arange(N), torch.arange(N + 1)
    asked = torch.tensor([3, 8, 1])
    pairs = [
        (model(*documents, dense=dense), model(*joined)),
        (model(*documents, *Y, dense=dense), model(*joined, *Y)),
        (model.loss(*documents, *Y, dense=dense), model.loss(*joined, *Y)),
        (model.label_logits(*documents, asked, dense=dense), model.label_logits(*joined, asked)),
        (
            model.label_scores(*documents, asked, "model", dense=dense),
            model.label_scores(*joined, asked, "model"),
        ),
        (model.topk(*documents, 3, dense=dense)[0], model.topk(*joined, 3)[0]),
        (model.topk(*documents, 3, dense=dense)[1], model.topk(*joined, 3)[1]),
    ]  # fmt: skip
    if kind != "linear":
        pairs.append((model.encode(*documents, dense=dense), model.encode(*joined)))
        with torch.no_grad():
            low = model.topk(*documents, 3, dense=dense, precision="bfloat16")[0]
            assert bitwise_equal(low, model.topk(*joined, 3, precision="bfloat16")[0])
    assert all(bitwise_equal(given, expected) for given, expected in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_float64(kind):
    model = build(kind).double()
    values, indices, indptr = tensors(SPARSE, torch.float64)
    dense = torch.from_numpy(DENSE).double().requires_grad_()
    values.requires_grad_()
    Y = torch.arange(N), torch.arange(N + 1)

    def loss(values, dense):
        return model.loss(values, indices, indptr, *Y, dense=dense)

    assert torch.autograd.gradcheck(loss, (values, dense))
    parameter = model.bucket_weight if model.is_linear else model.encoder_weight
    gradient = torch.autograd.grad(loss(values, dense), parameter)[0]
    assert gradient.abs().sum(-1).flatten()[-E:].all()  # the dense rows learn


def test_float64_models_join_in_float64():
    model = build().double()
    dense = torch.from_numpy(DENSE).double() / 3
    joined = model.join_tensors(*tensors(SPARSE, torch.float64), dense)[0]
    expected = (dense - model.dense_center.double()) * model.dense_scale.double()
    torch.testing.assert_close(joined[-E:], expected[-1], rtol=1e-15, atol=0)


def test_bfloat16_models():
    exact, model = build(), build().bfloat16()
    scores, _ = model.predict(X, L)
    expected, _ = exact.predict(X, L)
    np.testing.assert_allclose(scores, expected, atol=0.05)
    with torch.no_grad():
        by_tensors = model.topk(*tensors(SPARSE), L, dense=torch.from_numpy(DENSE))[0]
    np.testing.assert_array_equal(by_tensors.numpy(), scores)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be:DeprecationWarning")
@pytest.mark.parametrize("kind", ["hidden", "linear"])
def test_compiled_and_traced(kind):
    model = build(kind)
    values, indices, indptr = tensors(SPARSE, index=torch.int64, pointer=torch.int64)
    dense = torch.from_numpy(DENSE).requires_grad_()
    compiled = torch.compile(
        lambda values, dense: model(values, indices, indptr, dense=dense), backend="aot_eager", fullgraph=True
    )
    out, expected = compiled(values, dense), model(values, indices, indptr, dense=dense)
    torch.testing.assert_close(out, expected)
    gradient = torch.autograd.grad(out.sum(), dense)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), dense)[0])


def test_on_meta():
    with torch.device("meta"):
        model = MACH(D, L, num_repetitions=4, num_buckets=6, hidden_size=5, num_dense=E)
    documents = (t.to("meta") for t in tensors(SPARSE))
    with torch.no_grad():
        logits = model(*documents, dense=torch.from_numpy(DENSE).to("meta"))
    assert logits.is_meta
    assert logits.shape == (N, 4, 6)


@pytest.mark.parametrize(
    ("dense", "kind", "message"),
    [
        (torch.ones(N, E - 1), ValueError, r"MACH: dense must have shape \[N=9, E=4\], got \[9, 3\]"),
        (torch.ones(N - 1, E), ValueError, r"got \[8, 4\]"),
        (torch.ones(E), ValueError, r"got \[4\]"),
        (torch.ones(N, E, dtype=torch.int64), TypeError, "must be a dense tensor of floating-point numbers"),
        (torch.ones(N, E).to_sparse(), TypeError, "must be a dense tensor of floating-point numbers"),
        (DENSE, TypeError, "must be a dense tensor of floating-point numbers, got ndarray"),
        (torch.ones(N, E, device="meta"), ValueError, "dense must be on cpu like values, got meta"),
        (torch.full((N, E), torch.nan), ValueError, "dense must be finite, got other numbers in row 0"),
        (torch.full((N, E), 1e39, dtype=torch.float64), ValueError, "values must be finite"),
    ],
)
def test_dense_tensors_that_are_refused(dense, kind, message):
    with pytest.raises(kind, match=message):
        build()(*tensors(SPARSE), dense=dense)


def test_sparse_tensors_that_are_refused_beside_dense_ones():
    model, dense = build(), torch.from_numpy(DENSE)
    values, indices, indptr = tensors(SPARSE)
    with pytest.raises(ValueError, match=r"MACH: indices\[.*\] .* must be in \[0, D=12\), got 12"):
        model(*tensors(model.join(X)), dense=dense)  # joined already
    with pytest.raises(ValueError, match="MACH: indptr must end at the number of non-zeros"):
        model(values, indices, indptr - (indptr == indptr[-1]).int(), dense=dense)
    with pytest.raises(TypeError, match=r"MACH: values must be a torch.Tensor, got list"):
        model(values.tolist(), indices, indptr, dense=dense)
    with pytest.raises(ValueError, match="MACH: values must be finite"):
        model(values * torch.inf, indices, indptr, dense=dense)
    with pytest.raises(ValueError, match=r"dense must be None, because the model takes no dense features"):
        build(num_dense=0)(values, indices, indptr, dense=dense)


# --------------------------------------------------------------------------------------------------- state


def test_copies_and_states():
    model = build()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict(X, 3)[0], model.predict(X, 3)[0])
    other = build(scaled=False)
    other.load_state_dict(model.state_dict())
    assert other.is_scaled
    np.testing.assert_array_equal(other.predict(X, 3)[0], model.predict(X, 3)[0])
    with pytest.raises(RuntimeError, match="dense_center"):
        build().load_state_dict(build(num_dense=0).state_dict())
    with pytest.raises(RuntimeError, match="dense_center"):
        build(num_dense=0).load_state_dict(build().state_dict())
    assert not [name for name in build(num_dense=0).state_dict() if "dense" in name]
    for name in ("dense_center", "dense_scale"):  # without it the model would answer by another center
        with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
            build(scaled=False).load_state_dict({n: t for n, t in model.state_dict().items() if n != name})


def test_configuration_and_repr():
    model = build()
    assert model.num_columns == D + E
    assert "num_features=12, num_dense=4, num_labels=15" in repr(model)
    assert MACH(**model.configuration()).num_dense == E
    assert "num_dense" not in build(num_dense=0).configuration()
    assert MACH(D, L, num_dense=np.int64(2)).configuration()["num_dense"] == 2


def test_the_weights_are_drawn_as_those_of_as_many_sparse_features():
    given = {"num_repetitions": 4, "num_buckets": 6, "hidden_size": 5}
    wide, model = MACH(D + E, L, **given), MACH(D, L, num_dense=E, **given)
    assert all(a.equal(b) for a, b in zip(wide.parameters(), model.parameters(), strict=True))


def test_a_model_on_its_default_dtype_keeps_a_float32_center():
    torch.set_default_dtype(torch.float64)
    try:
        model = MACH(D, L, num_repetitions=4, num_buckets=6, hidden_size=5, num_dense=E)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.encoder_weight.dtype == torch.float64
    assert model.dense_center.dtype == torch.float32


def on_rank(rank, folder):
    """The loss of a rank under DistributedDataParallel, and the state of the model in it."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = build()
    if rank:
        model.dense_center.zero_()  # Rank 0 has the center.
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    Y = torch.arange(N), torch.arange(N + 1)
    loss = ddp(*tensors(SPARSE), *Y, dense=torch.from_numpy(DENSE))
    loss.backward()
    gradient = model.encoder_weight.grad[-E:].abs().sum().item()
    torch.save((loss.item(), gradient, model.state_dict()), f"{folder}/result {rank}")
    torch.distributed.barrier()
    os._exit(0)  # Where PyTorch ends a group, it can wait for a thread that needs the GIL.


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_ranks_take_dense_features_and_the_center_of_rank_0(tmp_path):
    start = torch.multiprocessing.start_processes
    start(on_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    Y = torch.arange(N), torch.arange(N + 1)
    expected = build().loss(*tensors(SPARSE), *Y, dense=torch.from_numpy(DENSE)).item()
    for rank in range(2):
        loss, gradient, state = torch.load(tmp_path / f"result {rank}", weights_only=False)
        assert loss == pytest.approx(expected)
        assert gradient > 0
        model = build(scaled=False)
        model.load_state_dict(state)
        np.testing.assert_array_equal(model.predict(X, 3)[0], build().predict(X, 3)[0])


def test_save_and_load(tmp_path):
    for kind in KINDS:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            model = build(kind).to(dtype)
            folder = tmp_path / f"{kind}-{dtype}"
            model.save(folder)
            loaded = mach_ext.load(folder)
            assert all(loaded.state_dict()[name].equal(t) for name, t in model.state_dict().items())
            assert loaded.dense_center.dtype == torch.float32
            np.testing.assert_array_equal(loaded.predict(X, 3)[0], model.predict(X, 3)[0])
    unscaled = build(scaled=False)
    unscaled.save(tmp_path / "unscaled")
    assert not mach_ext.load(tmp_path / "unscaled").is_scaled

"""Models of 8 bits: what is rounded, what they predict, their folder, and what refuses them."""

import copy
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import bitwise_equal, num_threads

import mach_ext
from mach_ext import nn
from mach_ext._model_folder import parameter_shapes
from mach_ext.data import HybridMatrix
from mach_ext.quantized import QuantizedMACH, quantize, unpack

pytestmark = pytest.mark.usefixtures("one_thread")
D, L, R, B = 300, 500, 8, 70
X = scipy.sparse.random(40, D, density=0.05, format="csr", dtype=np.float32, random_state=0)
KINDS = {
    "shared": {"hidden_size": 24},
    "independent": {"hidden_size": 25, "encoder": "independent"},
    "two layers": {"hidden_size": (24, 10)},
    "two independent layers": {"hidden_size": (24, 11), "encoder": "independent"},
    "linear": {"hidden_size": 0, "merge": "mean_logprob"},
    "median": {"hidden_size": 9, "merge": "median_prob"},
    "dense": {"hidden_size": 24, "num_dense": 6},
    "linear and dense": {"hidden_size": 0, "num_dense": 6},
}
parametrize_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind, seed=0, **changes):
    model = mach_ext.MACH(D, L, num_repetitions=R, seed=seed, **({"num_buckets": B} | KINDS[kind] | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    if model.num_dense:
        model.scale_dense(dense())
    return model


def dense():
    return np.random.default_rng(0).normal(3.0, 2.0, (X.shape[0], 6)).astype(np.float32)


def documents(kind):
    return HybridMatrix(X, dense()) if "num_dense" in KINDS[kind] else X


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---------------------------------------------------------------------------------------------- rounding


@parametrize_kind
def test_a_weight_moves_by_half_a_step_at_most(kind):
    model = build(kind)
    small = quantize(model)
    again = nn.in_float32(small)
    for name, weight in model.named_parameters():
        error = (again.get_parameter(name) - weight).abs()
        plain = name.removeprefix("head.")
        if name.endswith("bias"):
            assert not error.any()
            continue
        takes_documents = plain == "encoder_weight" or small.is_linear
        scale = getattr(small, plain.replace("weight", "scale")).unsqueeze(-1 if takes_documents else -2)
        assert (error <= scale / 2 * (1 + 1e-5)).all()
        assert bitwise_equal(weight.abs().amax() / 127, scale.amax())


def test_rows_and_columns_of_zeros_stay_zeros():
    model = build("independent")
    with torch.no_grad():
        model.encoder_weight[7] = 0
        model.bucket_weight[3, :, 5] = 0
    again = nn.in_float32(quantize(model))
    assert not again.encoder_weight[7].any()
    assert not again.bucket_weight[3, :, 5].any()


def test_the_smallest_and_the_largest_weights():
    model = build("shared")
    with torch.no_grad():
        model.encoder_weight[0] = 1e-44
        model.encoder_weight[1] = 3e38
    again = nn.in_float32(quantize(model))
    assert again.encoder_weight[:2].isfinite().all()
    assert (again.encoder_weight[0] - model.encoder_weight[0]).abs().max() < 1e-38
    assert again.encoder_weight[1].allclose(model.encoder_weight[1])


def test_weights_are_rounded_in_blocks(monkeypatch):
    expected = quantize(build("independent"))
    monkeypatch.setattr("mach_ext.quantized._BLOCK", 1000)
    for name, tensor in quantize(build("independent")).state_dict().items():
        assert tensor.equal(expected.state_dict()[name])


def test_the_model_stays_as_it_is():
    model = build("dense")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.dim()}
    small = quantize(model)
    with torch.no_grad():
        model.bucket_bias.add_(1)
    assert small.bucket_bias.equal(before["head.bucket_bias"])
    assert all(model.state_dict()[name].equal(t) for name, t in before.items() if "bucket_bias" not in name)
    assert quantize(small) is small


@parametrize_kind
def test_nothing_is_shared_with_a_model_in_float32(kind):
    model = build(kind)
    if model.merge == "mean_logit":
        model.adjust_logits(np.arange(L), 0.4)
    small, given = quantize(model), documents(kind)
    before = {name: tensor.clone() for name, tensor in small.stored().items()}
    Y = scipy.sparse.random(X.shape[0], L, density=0.01, format="csr", random_state=1)
    Y.data[:] = 1
    again = nn.in_float32(small)
    for each in (model, again):
        if model.merge == "mean_logit":
            each.adjust_logits(np.arange(L), 0.0)
        if not (each.is_linear and each.merge != "mean_logit"):
            mach_ext.fit(each, given, Y, epochs=1, progress=False)
        with torch.no_grad():
            for tensor in each.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(1)
    assert all(tensor.equal(before[name]) for name, tensor in small.stored().items())


def test_conversions_leave_the_numbers_as_they_are(tmp_path):
    small = quantize(build("dense"))
    expected = small.predict(documents("dense"), k=5)
    for convert in (
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.cpu(),
        lambda m: m.share_memory(),
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
    ):
        assert same(convert(small).predict(documents("dense"), k=5), expected)
    small.half().save(tmp_path)
    assert same(mach_ext.load(tmp_path).predict(documents("dense"), k=5), expected)
    for device in ("meta", torch.device("meta")):
        with pytest.raises(ValueError, match="a quantized model predicts on the CPU, not on meta"):
            small.to(device)


def test_state_dicts_fit_with_and_without_an_adjustment():
    model = build("shared")
    plain = quantize(model)
    model.adjust_logits(np.arange(L), 0.4)
    adjusted = quantize(model)
    plain.load_state_dict(adjusted.state_dict())
    assert same(plain.predict(X, k=5), adjusted.predict(X, k=5))


# ------------------------------------------------------------------------------------------- predictions


def reference(small, X):
    """Bucket logits from the stored numbers alone, in float64 where sums are not exact."""
    tensors, configuration = small.stored(), small.configuration()
    shapes = parameter_shapes(configuration)
    dense_X = torch.from_numpy(X.toarray())
    if small.is_linear:
        weight = tensors["bucket_weight"].double() * tensors["bucket_scale"].double()[:, None]
        return torch.einsum("nd,rdb->nrb", dense_X.double(), weight) + tensors["bucket_bias"]
    units = (dense_X.double() * tensors["encoder_scale"]) @ tensors["encoder_weight"].double()
    units = (units + tensors["encoder_bias"]).relu().float()
    if configuration["encoder"] == "independent":
        units = units.unflatten(1, (R, -1))
    layers = ["hidden"] * (len(configuration["hidden_size"]) - 1) + ["bucket"]
    for layer in layers:
        weight = unpack(tensors[f"{layer}_weight"], shapes[f"{layer}_weight"])
        if units.dim() == 2:
            units = units[:, None].expand(-1, len(weight), -1)
        most = units.amax(-1, keepdim=True)
        q = torch.floor(units / most.where(most > 0, 1.0) * 127 + 0.5).double()
        z = torch.einsum("nrh,rhb->nrb", q, weight.double()) * (most / 127) * tensors[f"{layer}_scale"]
        z = z + tensors[f"{layer}_bias"]
        units = z.relu().float() if layer == "hidden" else z
        if layer == "hidden" and configuration["encoder"] == "shared":
            units = units.squeeze(1)
    return units


@parametrize_kind
def test_logits_are_those_of_the_stored_numbers(kind):
    """A hidden unit that is rounded to the other side moves a logit by a step."""
    model = build(kind)
    small, joined = quantize(model), model.join(documents(kind)) if model.num_dense else X
    tensors = [torch.from_numpy(a) for a in (joined.data, joined.indices, joined.indptr)]
    logits = small(*tensors)
    expected = reference(small, joined)
    assert logits.shape == expected.shape
    far = (logits - expected).abs() > 1e-4 * (1 + expected.abs())
    assert far.double().mean() < 0.05
    assert (logits - expected).abs().max() < 0.2


@parametrize_kind
def test_predictions_are_near_those_in_float32(kind):
    model, given = build(kind), documents(kind)
    scores, labels = quantize(model).predict(given, k=20)
    close = model.predict(given, k=20)[0]
    assert np.abs(scores - close).max() < 0.02 * np.abs(close).max()
    assert scores.dtype == np.float32
    assert labels.dtype == np.int64
    assert same(model.predict(given, k=20, precision="int8"), (scores, labels))


@parametrize_kind
def test_the_same_bits_for_any_batch_and_any_threads(kind):
    small, given = quantize(build(kind)), documents(kind)
    expected = small.predict(given, k=30)
    for size in (1, 3, 39, 1000):
        assert same(small.predict(given, k=30, batch_size=size), expected)
    rows = [small.predict(given[n : n + 1], k=30) for n in range(len(expected[0]))]
    assert same([np.concatenate(each) for each in zip(*rows, strict=True)], expected)
    with num_threads(2):
        assert same(small.predict(given, k=30), expected)


@pytest.mark.parametrize("merge", nn.MODEL_MERGES)
@pytest.mark.parametrize("hidden_size", [0, 37])
def test_the_same_bits_for_any_batch_with_every_merge(merge, hidden_size):
    """R * B is no multiple of a vector's width, so a document's scores begin anywhere in one."""
    model = mach_ext.MACH(D, L, num_repetitions=7, num_buckets=33, hidden_size=hidden_size, merge=merge)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    small = quantize(model)
    expected = small.predict(X, k=40)
    for size in (1, 3, 17):
        assert same(small.predict(X, k=40, batch_size=size), expected)
    close = model.predict(X, k=40)[0]
    assert np.abs(expected[0] - close).max() < 0.06 * np.abs(close).max()


ON_ANOTHER_CPU = """
import sys, pathlib, numpy as np, scipy.sparse, mach_ext
X = scipy.sparse.load_npz(sys.argv[1])
for folder in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    scores, labels = mach_ext.load(folder).predict(X, k=50, batch_size=7)
    np.savez(folder / "answers.npz", scores=scores, labels=labels)
"""


def test_the_same_bits_with_the_plainest_instructions(tmp_path):
    """Ours and PyTorch's are those that every CPU has, in a process of its own."""
    scipy.sparse.save_npz(tmp_path / "X.npz", X)
    expected = {}
    for number, merge in enumerate(nn.MODEL_MERGES):
        for kind in ("independent", "two layers", "linear"):
            small = quantize(build(kind, number, merge=merge, num_buckets=33))
            small.save(tmp_path / "models" / f"{kind} {merge}")
            expected[f"{kind} {merge}"] = small.predict(X, k=50)
    environment = {**os.environ, "MACH_CPU_ISA": "scalar", "ATEN_CPU_CAPABILITY": "default"}
    arguments = ["-c", ON_ANOTHER_CPU, tmp_path / "X.npz", tmp_path / "models"]
    subprocess.run([sys.executable, *arguments], env=environment, check=True)
    for name, answer in expected.items():
        with np.load(tmp_path / "models" / name / "answers.npz") as other:
            assert same((other["scores"], other["labels"]), answer), name


def test_logit_adjustment_is_kept():
    model = build("independent")
    model.adjust_logits(np.arange(L), 0.4)
    small = quantize(model)
    again = nn.in_float32(small)
    assert again.logit_adjustment.equal(model.logit_adjustment)
    again.set_logit_adjustment(0)
    plain = build("independent")
    assert (again.bucket_bias - plain.bucket_bias).abs().max() < 1e-5


def test_no_documents_no_features_and_no_labels():
    small = quantize(build("shared"))
    assert small.predict(X[:0], k=3)[1].shape == (0, 3)
    assert small.predict(X, k=0)[1].shape == (X.shape[0], 0)
    empty = scipy.sparse.csr_matrix((2, D), dtype=np.float32)
    assert same(small.predict(empty, k=4), [np.repeat(a[:1], 2, 0) for a in small.predict(empty, k=4)])


def test_bad_documents_are_refused():
    small = quantize(build("shared"))
    with pytest.raises(ValueError, match=r"MACH.predict: X must have D=300 columns"):
        small.predict(X[:, :9])
    with pytest.raises(ValueError, match=r"k must be in 0 \.\.\. L=500, got 501"):
        small.predict(X, k=501)
    with pytest.raises(ValueError, match="precision must be int8, because the model is quantized"):
        small.predict(X, precision="float32")
    values, start = torch.ones(1), torch.tensor([0, 1])
    for index in (-1, D):
        with pytest.raises(
            ValueError, match=r"QuantizedMACH: indices\[0\] \(row 0\) must be in \[0, D=300\)"
        ):
            small(values, torch.tensor([index]), start)
    for wrong in (values.half(), values.double(), values.int()):
        with pytest.raises(TypeError, match="QuantizedMACH: values must be"):
            small(wrong, torch.tensor([0]), start)
    for dtype in (torch.float32, torch.uint8, torch.bool):
        with pytest.raises(TypeError, match="QuantizedMACH: indices must be"):
            small.topk(values, torch.zeros(1, dtype=dtype), start, k=1)


def test_rows_that_need_no_check_and_rows_that_do():
    """A single canonical row is taken as it is. Every other form of it gives the same."""
    model, row = build("shared"), X[3]
    small = quantize(model)
    expected, plain = small.predict(row, k=5), model.predict(row, k=5)
    shuffled = scipy.sparse.csr_matrix((row.data[::-1], row.indices[::-1], row.indptr), row.shape)
    halves = np.tile(row.data / 2, 2), np.tile(row.indices, 2), 2 * row.indptr
    others = []
    for dtype in ("i8", "i2", ">i4", ">i8"):
        for names in (("indices",), ("indptr",), ("indices", "indptr")):
            other = row.copy()
            for name in names:
                setattr(other, name, getattr(other, name).astype(dtype))
            others.append(other)
    masked = row.copy()
    masked.data = np.ma.array(masked.data)
    forms = [
        row.toarray(), row.toarray()[0], row.astype(np.float64), row.tocoo(), row.tocsc(),
        scipy.sparse.csr_array(row), shuffled, scipy.sparse.csr_matrix(halves, row.shape), masked, *others,
    ]  # fmt: skip
    for form in forms:
        assert same(small.predict(form, k=5), expected)
        assert same(model.predict(form, k=5), plain)
    for change, message in (
        (lambda x: x.data.__setitem__(0, np.nan), "row 0: values must be finite"),
        (lambda x: x.indices.__setitem__(-1, D), "column index values must be <|indices must be <"),
        (lambda x: x.indices.__setitem__(0, -1), "must be >= 0|negative"),
        (lambda x: x.indptr.__setitem__(0, 1), "first element of index pointer|must be 0|index pointer"),
    ):
        bad = row.copy()
        change(bad)
        with pytest.raises(ValueError, match=message):
            small.predict(bad)


def test_models_that_are_refused():
    with pytest.raises(TypeError, match=r"quantize: model must be a mach_ext.MACH, got MACHHead"):
        quantize(mach_ext.MACHHead(4, 20))
    with pytest.raises(TypeError, match="quantize: int8 is for float32, got a model in float64"):
        quantize(build("shared").double())
    with pytest.raises(TypeError, match="quantize: int8 is for float32"):
        build("shared").double().predict(X.astype(np.float64), precision="int8")
    with pytest.raises(ValueError, match=r"hidden_size must be at most 65,536 in 8 bits, got \(65537,\)"):
        quantize(mach_ext.MACH(2, 3, num_repetitions=8, num_buckets=4, hidden_size=65_537))
    for name in ("encoder_weight", "bucket_weight", "encoder_bias", "bucket_bias"):
        model = build("shared")
        with torch.no_grad():
            getattr(model, name).flatten()[3] = torch.nan
        with pytest.raises(ValueError, match=f"quantize: the model's {name} must be finite, got 1 of"):
            quantize(model)


def test_a_model_in_bfloat16():
    model = build("shared")
    small = quantize(model.bfloat16())
    wide = quantize(model.float())
    assert small.encoder_weight.equal(wide.encoder_weight)
    assert same(small.predict(X, k=3), wide.predict(X, k=3))


def test_precision_of_a_call():
    model = build("shared")
    with pytest.raises(ValueError, match=r"precision must be one of float32, bfloat16, int8, got 'half'"):
        model.predict(X, precision="half")
    assert nn.PRECISIONS == ("float32", "bfloat16", "int8")


# ------------------------------------------------------------------------------------------------ folder


@parametrize_kind
def test_a_folder_gives_the_same_predictions(kind, tmp_path):
    model = build(kind)
    model.attachments["labels.json"] = json.dumps([f"label {i}" for i in range(L)]).encode()
    if model.merge == "mean_logit":
        model.adjust_logits(np.arange(L), 0.2)
    small = quantize(model)
    small.save(tmp_path)
    again = mach_ext.load(tmp_path)
    assert isinstance(again, QuantizedMACH)
    assert repr(again) == repr(small)
    assert again.attachments == small.attachments
    assert again.stored().keys() == small.stored().keys()
    assert all(tensor.equal(small.stored()[name]) for name, tensor in again.stored().items())
    assert same(again.predict(documents(kind), k=9), small.predict(documents(kind), k=9))
    (tmp_path / "copy").mkdir()
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy/model.json").read_text() == (tmp_path / "model.json").read_text()


def test_a_folder_takes_a_quarter(tmp_path):
    model = build("independent", hidden_size=64, num_buckets=128)
    model.save(tmp_path / "wide")
    quantize(model).save(tmp_path / "small")
    wide, small = (
        sum(f.stat().st_size for f in (tmp_path / name).glob("weights*")) for name in ("wide", "small")
    )
    assert small < 0.28 * wide


def test_a_folder_with_a_table_of_buckets(tmp_path):
    hash = mach_ext.LabelHash.from_buckets(np.random.default_rng(0).integers(0, B, (R, L)), B)
    small = quantize(build("shared", hash=hash))
    small.save(tmp_path)
    assert same(mach_ext.load(tmp_path).predict(X, k=5), small.predict(X, k=5))


def test_a_folder_is_replaced_whole(tmp_path):
    build("shared").save(tmp_path)
    quantize(build("shared")).save(tmp_path)
    assert len(list(tmp_path.glob("weights*"))) == 1
    assert nn.is_compressed(tmp_path)
    build("shared").save(tmp_path)
    assert isinstance(mach_ext.load(tmp_path), mach_ext.MACH)
    assert not nn.is_compressed(tmp_path)


def test_damaged_folders_are_refused(tmp_path):
    quantize(build("shared")).save(tmp_path)
    file = next(tmp_path.glob("weights*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or edited"):
        mach_ext.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder_scale"), "weights must have dtypes and shapes"),
        (
            lambda t: t.update(encoder_weight=t["encoder_weight"].float()),
            "weights must have dtypes and shapes",
        ),
        (lambda t: t.update(bucket_scale=t["bucket_scale"][:, :-1].clone()), "weights must have dtypes"),
        (lambda t: t.update(more=t["bucket_scale"].clone()), "weights must have dtypes and shapes"),
        (lambda t: t["bucket_scale"].fill_(torch.nan), "bucket_scale: must be finite"),
        (lambda t: t["bucket_scale"].fill_(0), "bucket_scale: must be above 0 and at most 2.68e"),
        (lambda t: t["encoder_scale"].fill_(-1), "encoder_scale: must be above 0"),
        (lambda t: t["encoder_scale"].fill_(3e38), "encoder_scale: must be above 0"),
    ],
)
def test_forged_folders_are_refused(change, message, tmp_path):
    from test_model_folder import forge

    quantize(build("shared")).save(tmp_path)
    forge(tmp_path, tensors=change)
    with pytest.raises(ValueError, match=message):
        mach_ext.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["weights"].update(steps={"bucket_weight": 0.5}),
        lambda record: record["weights"].update(precision="int4"),
        lambda record: record.update(format=6),
    ],
)
def test_forged_records_are_refused(change, tmp_path):
    from test_model_folder import forge

    quantize(build("shared")).save(tmp_path)
    forge(tmp_path, change)
    with pytest.raises(ValueError, match="not a model record"):
        mach_ext.load(tmp_path)


def test_no_gpu(tmp_path):
    quantize(build("shared")).save(tmp_path)
    with pytest.raises(ValueError, match="a quantized model predicts on the CPU, not on cuda"):
        mach_ext.load(tmp_path, device="cuda")


# ------------------------------------------------------------------------------- what needs float32 weights


def test_gradients_need_a_model_in_float32():
    small = quantize(build("shared"))
    for function in (
        lambda: mach_ext.explain.integrated_gradients(small, X[:1], 3),
        lambda: mach_ext.attack.FGSM(small),
        lambda: mach_ext.certify.certify(small, X, X, [0.1]),
    ):
        with pytest.raises(TypeError, match=r"QuantizedMACH; pass mach_ext.nn.in_float32\(model\)"):
            function()
    with pytest.raises(TypeError, match="QuantizedMACH"):
        mach_ext.fit(small, X, X)

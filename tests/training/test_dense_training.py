"""Training with dense features: the same bits apart or joined, center and scale kept, resumed, saved."""

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.svm import LinearSVC
from training_cases import same_bits, weights

import mach_ext
from mach_ext import training
from mach_ext.data import HybridMatrix
from mach_ext.training import memory
from mach_ext.training.run import TrainingRun

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, E, L = 120, 20, 6, 10
rng = np.random.default_rng(3)
LABELS = np.arange(N) % L
Y = scipy.sparse.csr_matrix(np.eye(L, dtype=np.float32)[LABELS])
WORDS = scipy.sparse.csr_matrix(
    (2 * np.eye(D)[LABELS % 5] + (rng.random((N, D)) < 0.1)).astype(np.float32)  # five words for ten labels
)
DENSE = (4 + np.eye(E)[LABELS // 5] + 0.1 * rng.normal(size=(N, E))).astype(np.float32)
X = HybridMatrix(WORDS, DENSE)
KINDS = {
    "hidden": {"hidden_size": 8},
    "linear": {"hidden_size": 0},
    "two layers": {"hidden_size": (8, 8)},
    "independent": {"hidden_size": 8, "encoder": "independent"},
}
OPTIONS = {"epochs": 3, "batch_size": 32, "progress": False}


def build(kind="hidden", **options):
    given = {"num_repetitions": 4, "num_buckets": 6, "num_dense": E, **KINDS[kind], **options}
    return mach_ext.MACH(D, L, **given)


def fitted(kind="hidden", documents=X, model=None, **options):
    model = model or build(kind)
    mach_ext.fit(model, documents, Y, **{**OPTIONS, **options})
    return model


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items() if "hash" not in name}


def killed(monkeypatch, after):
    """Makes a run fail after so many steps."""
    step, left = TrainingRun.step, iter(range(after))

    def stops(run, batch):
        if next(left, None) is None:
            raise RuntimeError("killed")
        step(run, batch)

    monkeypatch.setattr(TrainingRun, "step", stops)


# ---------------------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize("kind", KINDS)
def test_the_dense_features_tell_labels_apart(kind):
    model = fitted(kind, epochs=40, **({} if kind == "linear" else {"learning_rate": 0.02}))
    assert (model.predict(X, 1)[1].ravel() == LABELS).mean() > 0.95
    blind = HybridMatrix(WORDS, np.tile(model.dense_center, (N, 1)))
    assert (model.predict(blind, 1)[1].ravel() == LABELS).mean() < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_documents_joined_or_apart_or_on_disk(kind, tmp_path):
    """Joined rows go through the row operators and others through BLAS, so these differ by rounding."""
    apart, joined = fitted(kind), build(kind)
    joined.scale_dense(DENSE, training.typical_length(WORDS))
    fitted(model=joined, documents=joined.join(X))
    assert joined.dense_center.equal(apart.dense_center)
    assert joined.dense_scale.equal(apart.dense_scale)
    scores = apart.predict(X, L)[0]
    np.testing.assert_allclose(joined.predict(X, L)[0], scores, atol=2e-3 * np.abs(scores).max())
    np.save(tmp_path / "dense.npy", DENSE)
    mapped = HybridMatrix(WORDS, np.load(tmp_path / "dense.npy", mmap_mode="r"))
    assert same_bits(state(apart), state(fitted(kind, mapped)))


def test_a_float16_file_trains_as_its_float32_numbers(tmp_path):
    np.save(tmp_path / "dense.npy", DENSE.astype(np.float16))
    half = np.load(tmp_path / "dense.npy", mmap_mode="r")
    a = fitted(documents=HybridMatrix(WORDS, half))
    b = fitted(documents=HybridMatrix(WORDS, half.astype(np.float32)))
    assert same_bits(state(a), state(b))


def test_float64_models_train():
    model = fitted(model=build().double())
    assert model.dense_center.dtype == torch.float32
    np.testing.assert_allclose(model.dense_center, DENSE.mean(0), rtol=1e-6)
    assert model.encoder_weight.dtype == torch.float64


def test_a_fit_is_that_of_its_steps_by_autograd():
    """Up to rounding: a loop of `loss(dense=)` and the same optimiser."""
    model, loop = build(), build()
    settings = training.Hyperparameters.of(loop, epochs=1, batch_size=N, tau=0.0)
    run = TrainingRun(loop, settings, training.documents.TrainingData(X, Y))
    documents = [torch.from_numpy(a) for a in (WORDS.data, WORDS.indices, WORDS.indptr)]
    labels = [torch.from_numpy(a) for a in (Y.indices, Y.indptr)]
    run.schedule.set_rates(0)
    loop.loss(*documents, *labels, dense=torch.from_numpy(DENSE), sparse_grad=True).backward()
    run.optimizer.step()
    fitted(model=model, epochs=1, batch_size=N, tau=0.0)
    for name, expected in weights(loop).items():
        torch.testing.assert_close(weights(model)[name], expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- center and scale


@pytest.mark.parametrize("kind", KINDS)
def test_feature_dropout_drops_dense_features(kind):
    """A fit drops what `loss(dense=)` drops in training mode: of all features the same share."""
    model = build(kind, feature_dropout=0.75)
    settings = training.Hyperparameters.of(model, batch_size=N)
    run = TrainingRun(model, settings, training.documents.TrainingData(X, Y))
    (batch,) = run.batches()
    rows = run.model_step.dense_rows
    kept = rows.features(batch, torch.Generator().manual_seed(0))
    whole = rows.features(batch, False)
    assert (kept != 0).float().mean() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(kept[kept != 0], 4 * whole[kept != 0])


def test_the_length_of_the_dense_features():
    for words in (WORDS, 8 * WORDS):
        length = training.typical_length(words)
        for dense_length in (1.0, 0.25):
            model = fitted(documents=HybridMatrix(words, DENSE), epochs=1, dense_length=dense_length)
            dense = model.join(X).toarray()[:, D:]
            found = np.sqrt((dense.astype(np.float64) ** 2).sum(1).mean())
            assert found == pytest.approx(dense_length * length, rel=1e-5)
    for wrong in (0, -1, np.inf, np.nan, "1"):
        with pytest.raises(ValueError, match="dense_length must be finite and above 0"):
            fitted(dense_length=wrong)


def test_later_fits_keep_the_center():
    model = fitted()
    center = model.dense_center.clone()
    fitted(model=model, documents=HybridMatrix(WORDS, DENSE + 7))
    assert model.dense_center.equal(center)
    chosen = build()
    chosen.scale_dense(DENSE + 1, 3.0)
    scale = chosen.dense_scale.clone()
    fitted(model=chosen)
    assert chosen.dense_scale.equal(scale)


def test_centred_data_and_joined_matrices_are_a_choice_too():
    """Center 0 and scale 1 stay once weights were trained for them."""
    centred = np.tile([[2.0], [-2.0]], (N // 2, E)).astype(np.float32)  # length 2 sqrt(6)
    model = build()
    model.scale_dense(centred, 2 * np.sqrt(E))
    assert (model.dense_center.any().item(), model.dense_scale.item()) == (False, 1.0)
    fitted(model=model)
    assert (model.dense_center.any().item(), model.dense_scale.item()) == (False, 1.0)
    stacked = scipy.sparse.hstack([WORDS, scipy.sparse.csr_matrix(DENSE - 4)], format="csr")
    model = fitted(documents=stacked)
    assert model.is_scaled
    fitted(model=model)
    assert not model.dense_center.any()
    again = build("linear", merge="mean_logprob")
    mach_ext.fit_svm(again, stacked, Y, progress=False)
    assert again.is_scaled
    assert not again.dense_center.any()


# ------------------------------------------------------------------------------------------ runs and folders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [0, 5, 8])
def test_resume_after_a_kill_gives_the_same_bits(kind, after, tmp_path, monkeypatch):
    whole = fitted(kind)
    with monkeypatch.context() as patch:
        killed(patch, after)
        with pytest.raises(RuntimeError, match="killed"):
            fitted(kind, output=tmp_path, checkpoint_minutes=0)
    resumed = fitted(kind, output=tmp_path, resume=True)
    assert same_bits(state(whole), state(resumed))
    assert same_bits(state(whole), state(mach_ext.load(tmp_path)))


def test_resume_brings_the_center_of_a_model_that_had_one(tmp_path, monkeypatch):
    def scaled():
        model = build()
        model.scale_dense(DENSE[:7], 3.0)
        return model

    whole = fitted(model=scaled())
    killed(monkeypatch, 6)
    with pytest.raises(RuntimeError, match="killed"):
        fitted(model=scaled(), output=tmp_path)
    monkeypatch.undo()
    resumed = fitted(output=tmp_path, resume=True)  # a new model, which took its center from X
    assert same_bits(state(whole), state(resumed))


def test_a_checkpoint_refuses_other_dense_features(tmp_path, monkeypatch):
    killed(monkeypatch, 6)
    with pytest.raises(RuntimeError, match="killed"):
        fitted(output=tmp_path)
    monkeypatch.undo()
    other = DENSE.copy()
    other[3, 2] = np.nextafter(other[3, 2], 0)
    with pytest.raises(ValueError, match=r"resume needs the same settings and data; different: data.X was"):
        fitted(documents=HybridMatrix(WORDS, other), output=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"hyperparameters.dense_length was 1.0, now 0.5"):
        fitted(output=tmp_path, resume=True, dense_length=0.5)
    tensors = next(tmp_path.glob("checkpoint-*.safetensors"))
    tensors.write_bytes(tensors.read_bytes().replace(b"model.dense_center", b"model.dense_centre"))
    with pytest.raises(ValueError, match="not the tensors of a checkpoint"):
        fitted(output=tmp_path, resume=True)


def test_the_best_epoch_comes_with_its_center(tmp_path):
    for output in (None, tmp_path):
        model = build()
        record = mach_ext.fit(model, X, Y, X[::2], Y[::2], output=output, **OPTIONS)
        assert record.best_epoch
        assert model.is_scaled
        expected = training.evaluate_model(model, X[::2], Y[::2])
        assert record.history[record.best_epoch - 1]["dev"] == pytest.approx(expected)
    assert same_bits(state(mach_ext.load(tmp_path)), state(model))


def test_dev_documents_joined_beside_training_documents_apart():
    model = build()
    model.scale_dense(DENSE)
    record = mach_ext.fit(model, X, Y, model.join(X), Y, **OPTIONS)
    assert record.history[-1]["dev"] == training.evaluate_model(model, X, Y)


@pytest.mark.parametrize("together", [1, 2])
def test_repetitions_in_turn(together, tmp_path, monkeypatch):
    whole = fitted("linear")
    parts = fitted("linear", repetitions_at_a_time=together)
    assert same_bits(state(whole), state(parts))
    with monkeypatch.context() as patch:
        killed(patch, 15)
        with pytest.raises(RuntimeError, match="killed"):
            fitted("linear", repetitions_at_a_time=together, output=tmp_path, checkpoint_minutes=0)
    resumed = fitted("linear", repetitions_at_a_time=together, output=tmp_path, resume=True)
    assert same_bits(state(whole), state(resumed))
    assert same_bits(state(mach_ext.load(tmp_path)), state(whole))


# ------------------------------------------------------------------------------------------------------ SVMs


def test_svms_of_dense_features_are_those_of_the_stacked_matrix():
    """Those of scikit-learn, bucket by bucket, on the stacked matrix with centred and scaled columns."""
    model = build("linear", merge="mean_logprob")
    mach_ext.fit_svm(model, X, Y, tolerance=1e-4, max_passes=10_000, progress=False)
    assert (model.predict(X, 1)[1] == LABELS[:, None]).mean() > 0.95
    length = training.typical_length(WORDS)
    center = DENSE.mean(0, dtype=np.float64)
    spread = np.sqrt(((DENSE - center) ** 2).sum(1).mean())
    stacked = np.hstack([WORDS.toarray(), (DENSE - center) / spread * length]) / length
    for r in range(model.num_repetitions):
        for bucket in range(0, model.num_buckets, 2):
            holds = model.hash.buckets[r].numpy()[LABELS] == bucket
            if not holds.any():
                continue
            exact = LinearSVC(C=1.0, tol=1e-6, max_iter=100_000, dual=True, random_state=0).fit(
                stacked, holds
            )
            weight, bias = model.bucket_weight[r, :, bucket], model.bucket_bias[r, bucket]
            found = (stacked * length) @ weight.detach().double().numpy() + bias.item()
            np.testing.assert_allclose(found / 4, exact.decision_function(stacked), atol=2e-3)


def test_svms_of_documents_joined_or_apart_have_the_same_bits():
    apart, joined = build("linear", merge="mean_logprob"), build("linear", merge="mean_logprob")
    mach_ext.fit_svm(apart, X, Y, progress=False)
    joined.scale_dense(DENSE, training.typical_length(WORDS))
    mach_ext.fit_svm(joined, joined.join(X), Y, progress=False)
    assert same_bits(state(apart), state(joined))


# ----------------------------------------------------------------------------------------- folders of models


@pytest.mark.parametrize("kind", ["hidden", "linear"])
def test_compressed_weights_are_off_by_half_a_step(kind, tmp_path):
    model = fitted(kind, epochs=10)
    model.save(tmp_path, quantization_step=0.05)
    loaded = mach_ext.load(tmp_path)
    name = "encoder_weight" if kind == "hidden" else "bucket_weight"
    off = (getattr(loaded, name) - getattr(model, name)).abs()
    assert 0 < off[..., D:, :].max() <= 0.025 + 1e-6
    assert off[..., :D, :].max() <= 0.025 + 1e-6
    assert loaded.dense_center.equal(model.dense_center)
    assert loaded.dense_scale.equal(model.dense_scale)
    if kind == "linear":
        bound = 0.025 * np.abs(model.join(X)).sum(1)  # of each mean logit
        asked = torch.arange(L)
        tensors = [torch.from_numpy(a) for a in (WORDS.data, WORDS.indices, WORDS.indptr)]
        a, b = (
            m.label_scores(*tensors, asked, dense=torch.from_numpy(DENSE)).detach().numpy()
            for m in (model, loaded)
        )
        assert (np.abs(a - b) <= np.asarray(bound) + 1e-5).all()
    loaded.save(tmp_path / "again", quantization_step=0.05)
    files = [next(folder.glob("*.safetensors")) for folder in (tmp_path, tmp_path / "again")]
    assert files[0].name == files[1].name


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dense_center", torch.zeros(E + 1), "weights must have shapes"),
        ("dense_scale", torch.zeros(2), "weights must have shapes"),
        ("dense_is_scaled", None, "weights must have shapes"),
        ("dense_center", torch.full((E,), torch.nan), "dense_center: must be finite"),
        ("dense_scale", torch.full((1,), torch.inf), "dense_scale: must be finite"),
        ("dense_scale", torch.ones(1).half(), "must be F32"),
    ],
)
def test_damaged_centers_are_refused(name, value, message, tmp_path):
    from mach_ext._model_folder import read_tensors, save_tensors, tensors_digest
    from mach_ext.data import write_json
    from mach_ext.data.records import seal

    build().save(tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    tensors = read_tensors(tmp_path / record["weights"]["file"], "", lambda header: None, None)
    tensors = (
        {**tensors, name: value} if value is not None else {k: t for k, t in tensors.items() if k != name}
    )
    digest = tensors_digest(tensors)
    record["weights"] = {"file": f"weights-{digest[:12]}.safetensors", "sha256": digest}
    save_tensors(tmp_path / record["weights"]["file"], tensors)
    del record["sha256"]
    write_json(tmp_path / "model.json", seal(record))
    with pytest.raises(ValueError, match=message):
        mach_ext.load(tmp_path)


def test_a_record_that_claims_other_sizes(tmp_path):
    from mach_ext.data import write_json
    from mach_ext.data.records import seal

    build().save(tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    del record["sha256"]
    for claimed in (0, -1, 10**15, "6", None):
        write_json(
            tmp_path / "model.json", seal({**record, "model": {**record["model"], "num_dense": claimed}})
        )
        with pytest.raises(ValueError, match=r"model.json|weights must have shapes"):
            mach_ext.load(tmp_path)


def test_a_center_that_is_not_finite_is_not_saved(tmp_path):
    model = build()
    model.dense_center[0] = torch.nan
    with pytest.raises(ValueError, match=r"MACH\.save: dense_center: must be finite"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------- memory and defaults


@pytest.mark.parametrize("kind", KINDS)
def test_dense_features_count_in_the_memory_of_a_step(kind):
    wide = mach_ext.MACH(D + E, L, num_repetitions=4, num_buckets=6, **KINDS[kind])
    model = build(kind)
    width = 6 if model.is_linear else model.encoder_weight.shape[1]
    for device in ("cpu", "cuda"):
        given = training.expected_memory(model, 32, 10, device)
        bare = training.expected_memory(wide, 32, 10, device)
        assert given["training, peak"] - bare["training, peak"] == 4 * E * (3 * 32 + width)
        assert given["predicting, peak"] > bare["predicting, peak"]
        assert given["weights"] == training.expected_memory(wide)["weights"]


def test_the_features_of_documents_are_counted_once(monkeypatch):
    seen = []
    counted = memory.expected_memory
    monkeypatch.setattr(memory, "expected_memory", lambda *given: seen.append(given[2]) or counted(*given))
    model = fitted(epochs=1)
    fitted(model=model, documents=model.join(X), epochs=1)
    assert seen == 2 * [int(np.ceil(WORDS.nnz / N))]


def test_default_sizes_count_dense_columns():
    from mach_ext.data import Dataset, Split
    from mach_ext.runs.recipe import Recipe, default_sizes

    words = scipy.sparse.csr_matrix((20_000, 292_000), dtype=np.float32)
    Y = scipy.sparse.csr_matrix((20_000, 20_000), dtype=np.float32)
    bare = Dataset("d", "d", Split(words, Y))
    dense = Dataset("d", "d", Split(words, Y, dense=np.zeros((20_000, 1024), np.float16)))
    assert default_sizes(bare)["encoder"] == "independent"
    assert default_sizes(dense)["encoder"] == "shared"
    assert Recipe(num_buckets=2048, hidden_size=1).model(dense).num_dense == 1024

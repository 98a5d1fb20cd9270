"""Fine-tuning: gradients through the whole chain, layers' rates, the best epoch, checkpoints after a kill."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import tiny_bert
import torch

import mach_ext
from mach_ext.data import HybridMatrix
from mach_ext.training import EncoderSettings, finetune
from mach_ext.training.documents import check_training_data
from mach_ext.training.finetuning import FinetuningRun
from mach_ext.training.hyperparameters import Hyperparameters
from mach_ext.training.trained_encoder import TrainedEncoder

N, D, L = 48, 7, 6
WORDS = ["cat", "dog", "bird", "fish", "house", "red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert.write(tmp_path_factory.mktemp("encoder"), hidden_dropout_prob=0.1)


@pytest.fixture
def encoder(folder):
    from mach_ext.text_encoder import TextEncoder

    return TextEncoder.load(folder)


def corpus(encoder):
    """Texts whose label is their word, in texts of different lengths."""
    words = [WORDS[i % L] for i in range(N)]
    texts = [f"a {word}" + " the old house" * (i % 3) for i, word in enumerate(words)]
    Y = scipy.sparse.csr_matrix(np.eye(L, dtype=np.float32)[np.arange(N) % L])
    X = scipy.sparse.random(N, D, 0.3, "csr", np.float32, random_state=0)
    return texts, HybridMatrix(X, encoder.encode(texts, progress=False)), Y


def model_of(hidden_size=8, encoder="shared", **options):
    return mach_ext.MACH(
        D, L, 8, 5, hidden_size=hidden_size, encoder=encoder, num_dense=tiny_bert.HIDDEN, **options
    )


@pytest.mark.parametrize(
    ("hidden_size", "kind"), [(8, "shared"), (8, "independent"), ((8, 5), "shared"), (0, "shared")]
)
def test_gradient_reaches_the_encoder(encoder, hidden_size, kind):
    """A step hands over the gradient that autograd computes through model and encoder."""
    texts, X, Y = corpus(encoder)
    model = model_of(hidden_size, kind)
    model.scale_dense(X.dense)
    torch.nn.init.normal_(model.bucket_weight, std=0.3)  # linear MACH begins with zeros
    settings = Hyperparameters.of(model, epochs=1, batch_size=N)
    encoder.eval()
    data = check_training_data(model, X, Y)
    trained = TrainedEncoder(encoder, texts, EncoderSettings(), 0, "float32")
    run = FinetuningRun(model, settings, data, trained, None, None)
    (batch,) = run.batches()
    twin, twin_encoder = copy.deepcopy(model).double(), copy.deepcopy(encoder).double()
    tokens = twin_encoder.tokenize([texts[row] for row in batch.rows])
    dense = twin_encoder(tokens.input_ids, tokens.attention_mask)
    X_batch = (batch.values.double(), batch.indices, batch.indptr)
    loss = twin.loss(*X_batch, batch.label_indices, batch.label_indptr, dense=dense)
    loss.backward()

    trained.optimizer.step = lambda: None  # keep the gradients as they are
    trained.optimizer.zero_grad = lambda: None
    trained.settings = EncoderSettings(max_norm=1e9)
    trained.encoder.train = lambda mode=True: trained.encoder  # without dropout
    assert run.do_step(batch, None) == pytest.approx(loss.item(), rel=1e-5)
    expected = dict(twin_encoder.named_parameters())
    norm = max(p.grad.abs().max() for p in expected.values() if p.grad is not None)
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad.double() - expected[name].grad).abs().max() < 2e-5 * norm, name


def test_it_learns_what_the_frozen_encoder_does_not_say(encoder):
    """Both parts change, the loss falls, and most texts get their label."""
    texts, X, Y = corpus(encoder)
    X = HybridMatrix(scipy.sparse.csr_matrix((N, D), dtype=np.float32), X.dense)
    model, before = model_of(), copy.deepcopy(encoder.state_dict())
    record = finetune(
        model, encoder, texts, X, Y, texts, X, Y, epochs=8, batch_size=8, learning_rate=0.02,
        dense_learning_rate=0.02, encoder_eps=1e-8, progress=False,
        encoder_settings=EncoderSettings(learning_rate=3e-3),
    )  # fmt: skip
    assert any(not torch.equal(before[name], t) for name, t in encoder.state_dict().items())
    assert record.history[-1]["loss"] < record.history[0]["loss"] / 1.2
    now = HybridMatrix(X.sparse, encoder.encode(texts, progress=False))
    assert (model.predict(now, 1)[1][:, 0] == np.arange(N) % L).mean() > 0.5  # chance is a sixth
    assert not encoder.training
    assert not model.training


def test_the_best_epoch_of_both_is_kept(encoder):
    """Later epochs with a huge rate destroy both. They end as they were at the best epoch."""
    texts, X, Y = corpus(encoder)
    model = model_of()
    record = finetune(
        model, encoder, texts, X, Y, texts, X, Y, epochs=4, batch_size=8, schedule="constant",
        encoder_settings=EncoderSettings(learning_rate=1e-2), progress=False,
    )  # fmt: skip
    now = HybridMatrix(X.sparse, encoder.encode(texts, progress=False))
    best = record.history[record.best_epoch - 1]["dev"]
    assert mach_ext.training.evaluate_model(model, now, Y) == pytest.approx(best)


def test_layers_have_rates_of_their_own(encoder):
    """The last layer has the whole rate, each former one 0.9 of the next, the tokens' vectors the least."""
    trained = TrainedEncoder(encoder, [], EncoderSettings(learning_rate=1.0, layer_decay=0.5), 0, "float32")
    names = {id(p): name for name, p in encoder.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in trained.optimizer.param_groups for p in g["params"]}
    decays = {names[id(p)]: g["weight_decay"] for g in trained.optimizer.param_groups for p in g["params"]}
    assert len(rates) == len(names)
    for name, rate in rates.items():
        assert rate == (1.0 if "layer.1." in name else 0.5 if "layer.0." in name else 0.25), name
        assert (decays[name] == 0) == (name.endswith("bias") or "LayerNorm" in name), name


def test_rates_rise_and_fall(encoder):
    trained = TrainedEncoder(encoder, [], EncoderSettings(learning_rate=1.0, warmup=0.2), 0, "float32")
    shares = []
    for number in range(10):
        trained.set_step(number, 10)
        shares.append(trained.optimizer.param_groups[-1]["lr"] / trained.rates[-1])
    assert shares[:2] == [0.5, 1.0]
    assert shares[2:] == sorted(shares[2:], reverse=True)
    assert 0 < shares[-1] < 0.15


def test_accumulated_batches_are_one_large_batch(encoder):
    """AdamW makes a step after so many batches, and after the last one."""
    texts, X, Y = corpus(encoder)
    steps = []
    settings = EncoderSettings(accumulate=4)
    original = TrainedEncoder.__init__

    def counting(self, *args):
        original(self, *args)
        step = self.optimizer.step
        self.optimizer.step = lambda: (steps.append(self.number), step())

    TrainedEncoder.__init__ = counting
    try:
        finetune(
            model_of(), encoder, texts, X, Y, epochs=1, batch_size=8, encoder_settings=settings,
            progress=False,
        )  # fmt: skip
    finally:
        TrainedEncoder.__init__ = original
    assert steps == [3, 5]


SCRIPT = """
import os, signal, sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
import test_finetuning as t
from mach_ext.text_encoder import TextEncoder
from mach_ext.training import EncoderSettings, finetune
from mach_ext.training.trained_encoder import TrainedEncoder
encoder, out, kill = TextEncoder.load(sys.argv[1]), sys.argv[2], int(sys.argv[3])
texts, X, Y = t.corpus(encoder)
step, count = TrainedEncoder.step, [0]
def stepped(self, *args):
    step(self, *args)
    count[0] += 1
    if count[0] == kill:
        os.kill(os.getpid(), signal.SIGKILL)
TrainedEncoder.step = stepped
finetune(t.model_of(feature_dropout=0.1), encoder, texts, X, Y, texts, X, Y, epochs=2, batch_size=8,
         output=out, resume=True, checkpoint_minutes=0, progress=False,
         encoder_settings=EncoderSettings(accumulate=2))
"""


def test_resumes_with_the_same_bits(folder, tmp_path):
    """A run that is killed twice, once between the batches of a step, ends as one that is not."""
    from helpers import ROOT

    path = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "training")]

    def train(name, kill):
        script = SCRIPT.format(path=path)
        command = [sys.executable, "-c", script, str(folder), str(tmp_path / name), str(kill)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    whole = train("whole", 0)
    assert whole.returncode == 0, whole.stderr
    for kill in (3, 8):
        assert train("killed", kill).returncode == -9
    ended = train("killed", 0)
    assert ended.returncode == 0, ended.stderr
    names = [
        sorted(str(file.relative_to(tmp_path / run)) for file in (tmp_path / run).rglob("*.safetensors"))
        for run in ("whole", "killed")
    ]
    assert names[0] == names[1]  # names carry digests
    assert len(names[0]) == 2
    for name in names[0]:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": ["a cat"]}, "finetune: texts must be as many as the documents, 48, got 1"),
        ({"texts_dev": ["a cat"]}, "finetune: texts_dev must be as many as the documents, none, got 1"),
        ({"resume": True}, "finetune: resume needs the output folder"),
        ({"metric": "F1", "dev": True}, "finetune: metric must be one of"),
        ({"model": mach_ext.MACH(D, L, 8, 5, num_dense=5)}, "must have D=7 sparse and E=5 dense features"),
    ],
)
def test_bad_arguments(encoder, change, message):
    texts, X, Y = corpus(encoder)
    given = {"model": model_of(), "encoder": encoder, "texts": texts, "X": X, "Y": Y, "progress": False}
    if change.pop("dev", False):
        given |= {"texts_dev": texts, "X_dev": X, "Y_dev": Y}
    with pytest.raises(ValueError, match=message):
        finetune(**{**given, **change})


def test_validation_documents_joined_are_refused_before_the_work(encoder):
    """They would have no sparse part that the new embeddings could join."""
    texts, X, Y = corpus(encoder)
    model = model_of()
    joined = model.join(X)
    with pytest.raises(ValueError, match="finetune: X_dev must be a HybridMatrix like X, got csr_matrix"):
        finetune(model, encoder, texts, X, Y, texts, joined, Y, progress=False)


@pytest.mark.parametrize("texts", ["x" * N, [None] * N])
def test_texts_are_a_list_of_strings(encoder, texts):
    """A single string is not N texts of a letter."""
    _, X, Y = corpus(encoder)
    with pytest.raises(TypeError, match="finetune: texts must be a list of strings, got"):
        finetune(model_of(), encoder, texts, X, Y, progress=False)


def test_an_encoder_without_trainable_parameters_is_refused(encoder):
    texts, X, Y = corpus(encoder)
    encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="finetune: encoder must have parameters that require gradients"):
        finetune(model_of(), encoder, texts, X, Y, progress=False)


def test_a_failure_leaves_the_encoder_in_evaluation_mode(encoder, monkeypatch):
    """Otherwise its later embeddings would have dropout."""
    texts, X, Y = corpus(encoder)

    def fails(run, dense, gradient):
        assert run.encoder.training
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainedEncoder, "step", fails)
    with pytest.raises(KeyboardInterrupt):
        finetune(model_of(), encoder, texts, X, Y, progress=False, batch_size=8)
    assert not encoder.training


@pytest.mark.parametrize("hidden_size", [8, 0])
def test_gradient_to_dense_features_that_are_dropped(encoder, hidden_size):
    """It is that of autograd with the same features dropped."""
    texts, X, Y = corpus(encoder)
    model = model_of(hidden_size, feature_dropout=0.5)
    model.scale_dense(X.dense)
    torch.nn.init.normal_(model.bucket_weight, std=0.3)
    settings = Hyperparameters.of(model, epochs=1, batch_size=N)
    trained = TrainedEncoder(encoder, texts, EncoderSettings(), 0, "float32")
    run = FinetuningRun(model, settings, check_training_data(model, X, Y), trained, None, None)
    (batch,) = run.batches()
    twin, steps = copy.deepcopy(model).double().eval(), run.model_step
    generator = torch.Generator().manual_seed(5)
    values = model.drop_features(batch.values, dropout=generator).double()
    kept = model.drop_features(torch.ones_like(batch.dense), dropout=generator)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    dense = batch.dense.double().requires_grad_()
    center = twin.dense_center.double()
    dropped = center + (dense - center) * kept  # what the model centres to the dropped features
    labels = (batch.label_indices, batch.label_indptr)
    loss = twin.loss(values, batch.indices, batch.indptr, *labels, dense=dropped)
    loss.backward()
    assert steps(batch, torch.Generator().manual_seed(5)) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(steps.dense_rows.gradient.double(), dense.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "change", [{"learning_rate": -1}, {"warmup": 2}, {"accumulate": 0}, {"max_norm": "1"}]
)
def test_bad_encoder_settings(change):
    with pytest.raises(ValueError, match=f"finetune: encoder {next(iter(change))} must be"):
        EncoderSettings(**change)

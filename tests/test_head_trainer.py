"""MACH's head under the Trainer of Hugging Face: the example, its checkpoints, accumulated batches."""

import copy
import math
import runpy
import types

import pytest
import safetensors.torch
import torch
from helpers import ROOT
from test_docs_code import blocks

import mach_ext

pytest.importorskip("transformers", reason="Trainer is not installed: `pip install -e .[dev]`")
pytest.importorskip("accelerate", reason="Trainer is not installed: `pip install -e .[dev]`")
pytestmark = pytest.mark.usefixtures("one_thread")

OTHER_HASH = "weights are of label hash L=1000 B=256 R=8 seed=0, this model has L=1000 B=256 R=8 seed=1"
QUIET = {"disable_tqdm": True, "logging_strategy": "no"}


@pytest.fixture(scope="module")
def example():
    return types.SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "trainer_head.py")))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def short(example, folder, model, **settings):
    """A training of 12 steps, three epochs of 4."""
    settings = {"num_train_epochs": 3, "warmup_steps": 0, **QUIET, **settings}
    trainer = example.trainer(str(folder), model, **settings)
    trainer.train_dataset, trainer.eval_dataset = example.documents(512, 0), example.documents(50, 1)
    return trainer


@pytest.fixture(scope="module")
def trained(example, tmp_path_factory):
    """The folder of a short training whose best epoch is the first, and the weights at its end."""
    folder = tmp_path_factory.mktemp("trainer")
    torch.manual_seed(0)
    model = example.Tagger()
    short(example, folder, model, metric_for_best_model="loss", greater_is_better=True).train()
    return folder, weights(model)


def test_the_example_learns_the_planted_task(example, tmp_path):
    assert example.main(str(tmp_path), **QUIET)["eval_P@1"] >= 0.99


def test_the_best_model_is_loaded_at_the_end(example, trained):
    folder, at_end = trained
    state = safetensors.torch.load_file(folder / "checkpoint-4" / "model.safetensors")
    assert {*state} >= {"head.bucket_weight", "head.bucket_bias", "head.hash._extra_state"}
    assert all(torch.equal(state[name], weight) for name, weight in at_end.items())


def test_a_resumed_training_ends_with_the_same_bits(example, trained, tmp_path):
    settings = {"load_best_model_at_end": False}
    torch.manual_seed(0)
    whole, resumed = example.Tagger(), example.Tagger()
    short(example, tmp_path, whole, save_total_limit=3, **settings).train()
    short(example, tmp_path, resumed, **settings).train(resume_from_checkpoint=f"{tmp_path}/checkpoint-8")
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name


def test_weights_of_another_label_hash_are_refused(example, trained):
    folder, _ = trained
    file = folder / "checkpoint-4" / "model.safetensors"
    model = example.Tagger(seed=1)
    before = weights(model)
    with pytest.raises(RuntimeError, match=OTHER_HASH):
        model.load_state_dict(safetensors.torch.load_file(file))
    with pytest.raises(RuntimeError, match=OTHER_HASH):
        safetensors.torch.load_model(model, file)
    with pytest.raises(RuntimeError, match=OTHER_HASH):
        short(example, folder, model).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    head = {name: weight for name, weight in weights(model).items() if name.startswith("head.")}
    assert all(torch.equal(before[name], weight) for name, weight in head.items())


def first_step(example, folder, model, **settings):
    """The change of the weights by a step of SGD on 60 documents."""
    before = weights(model)
    settings = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0, "eval_strategy": "no", **settings}
    trainer = short(example, folder, model, save_strategy="no", load_best_model_at_end=False, **settings)
    trainer.train_dataset = example.documents(60, 0)
    trainer.train()
    return {name: weight - before[name] for name, weight in weights(model).items()}


def summed(example):
    """The example's model with a forward that takes **kwargs, as docs/how-to/any-encoder.md writes it."""

    class Summed(example.Tagger):
        def forward(self, input_ids, attention_mask, labels=None, num_items_in_batch=None, **kwargs):
            mask = attention_mask.unsqueeze(2)
            hidden = (self.encoder(input_ids, attention_mask).last_hidden_state * mask).sum(1) / mask.sum(1)
            return {"loss": self.head(hidden, labels, reduction="sum") / num_items_in_batch}

    return Summed()


@pytest.mark.parametrize(("kind", "size"), [("mean", 15), ("sum", 25)])
def test_accumulated_batches_are_as_one(example, tmp_path, kind, size):
    """Sums may also be over batches of unequal sizes: 25, 25 and 10."""
    torch.manual_seed(0)
    one = example.Tagger() if kind == "mean" else summed(example)
    parts = copy.deepcopy(one)
    steps = first_step(example, tmp_path, one, per_device_train_batch_size=60)
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": math.ceil(60 / size)}
    for name, step in first_step(example, tmp_path, parts, **settings).items():
        assert step.abs().max() > 0 or name.endswith("key.bias"), name
        torch.testing.assert_close(step, steps[name], rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------- a model of transformers


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """The class of docs/how-to/any-encoder.md, and the folder that the page saves one to."""
    page = (ROOT / "docs" / "how-to" / "any-encoder.md").read_text(encoding="utf-8")
    (block,) = (block for block in blocks(page) if "class BertTagger" in block.code)
    namespace, folder = {"__name__": "page", "mach_ext": mach_ext}, tmp_path_factory.mktemp("tagger")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(block.code, namespace)
    assert (folder / "tagger" / "model.safetensors").exists()
    return namespace["BertTagger"], folder / "tagger"


TOKENS = torch.tensor([[5, 7, 9], [11, 13, 15]])


def test_a_saved_model_answers_as_before(tagger, tmp_path):
    Tagger, folder = tagger
    model = Tagger.from_pretrained(folder)
    with torch.no_grad():
        model.head.bucket_weight.mul_(2)
        model.head.set_logit_adjustment(0.5)
    model.save_pretrained(tmp_path)
    loaded = Tagger.from_pretrained(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(TOKENS)["best"], model(TOKENS)["best"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_saved_model_of_another_label_hash_is_refused(tagger):
    Tagger, folder = tagger
    match = "the weights are of label hash L=50000 B=512 R=16 seed=0, this model has .* seed=1"
    with pytest.raises(ValueError, match=match):
        Tagger.from_pretrained(folder, hash_seed=1)


def test_a_head_that_the_checkpoint_lacks_is_drawn(tagger, tmp_path):
    Tagger, folder = tagger
    model = Tagger.from_pretrained(folder)
    model.encoder.save_pretrained(tmp_path)
    loaded = Tagger.from_pretrained(tmp_path, hashed_labels=100, hash_seed=3)
    expected = mach_ext.MACHHead(32, 100, seed=3)
    assert expected.state_dict().keys() == loaded.head.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, loaded.head.state_dict()[name]), name
    for name, tensor in model.encoder.named_parameters():
        assert torch.equal(tensor, loaded.encoder.get_parameter(name)), name


def test_a_head_stays_float32_in_a_narrow_model(tagger):
    Tagger, folder = tagger
    model = Tagger.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    assert {p.dtype for p in model.encoder.parameters()} == {torch.bfloat16}
    model(TOKENS, labels=torch.tensor([[7, -100], [3, 9]]))["loss"].backward()
    assert model.head.bucket_weight.grad.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.encoder.parameters())

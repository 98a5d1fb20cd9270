"""Where encoders are found, what their folders must hold, digests, and saving."""

import json
import os
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import tiny_bert
import torch
from helpers import ROOT, killed_at

from mach_ext.text_encoder import TextEncoder, _locating

TEXTS = ["a cat", "", "the big red dog barks in the house"]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny encoder's folder, to change."""
    return shutil.copytree(tiny_folder, tmp_path / "encoder")


def edit(file, **entries):
    """Changes entries of a JSON file. None removes an entry."""
    content = json.loads(file.read_text()) | entries
    kept = {key: value for key, value in content.items() if entries.get(key, 0) is not None}
    file.write_text(json.dumps(kept))


def change_weights(folder, change):
    """Changes the tensors of a folder."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def encode(encoder):
    return encoder.encode(TEXTS, progress=False)


# ------------------------------------------------------------------------------------------------ names


@pytest.fixture
def site(tiny_folder, tmp_path, monkeypatch):
    """A folder on Python's path with the package `tiny_encoder`, whose distribution is my-tiny."""
    package = tmp_path / "site" / "tiny_encoder"
    shutil.copytree(tiny_folder, package / "data" / "model")
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    info = tmp_path / "site" / "my_tiny-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tiny\nVersion: 1.0\n")
    (info / "RECORD").write_text("tiny_encoder/__init__.py,,\nmy_tiny-1.0.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return package


@pytest.mark.parametrize("name", ["tiny_encoder", "tiny-encoder", "my-tiny", "my_tiny", "My.Tiny"])
def test_package_is_found_and_not_imported(site, tiny, name):
    encoder = TextEncoder.load(name)
    assert (encoder.name, encoder.revision, encoder.digest) == (name, None, tiny.digest)
    assert "tiny_encoder" not in sys.modules


def test_package_with_several_encoders(site):
    shutil.copytree(site / "data" / "model", site / "other")
    message = "the package tiny_encoder has several encoders; give a folder"
    with pytest.raises(ValueError, match=f"{message}: .*model, .*other"):
        TextEncoder.load("tiny_encoder")


def test_packages_without_an_encoder():
    for name in ("json", "numpy", "__main__", "no-such-package", "a/b", "os.path", "sys"):
        assert _locating.package_folder(name) is None


@pytest.fixture
def hub(tiny_folder, tmp_path, monkeypatch):
    """The hub's cache with two commits of org/tiny: "a" 40 times has max_length 9, "b" 40 times is main."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--tiny"
    for letter in "ab":
        shutil.copytree(tiny_folder, repository / "snapshots" / (letter * 40))
    edit(repository / "snapshots" / ("a" * 40) / "sentence_bert_config.json", max_seq_length=9)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    return repository


def test_name_on_the_hub(hub, tiny):
    encoder = TextEncoder.load("org/tiny")
    assert (encoder.name, encoder.revision, encoder.digest) == ("org/tiny", "b" * 40, tiny.digest)
    older = TextEncoder.load("org/tiny", revision="a" * 40)
    assert (older.revision, older.max_length) == ("a" * 40, 9)
    again = TextEncoder.from_record(older.record())
    assert again.record() == older.record()


def test_name_that_nobody_knows(hub):
    for name in ("org/other", "tinny"):
        with pytest.raises(
            ValueError, match=f"TextEncoder.load: {name} is no folder and no installed package"
        ):
            TextEncoder.load(name)
    with pytest.raises(ValueError, match="the hub does not give it at revision v9: "):
        TextEncoder.load("org/tiny", revision="v9")


def test_paths(folder, tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    for path in ("encoder", "./encoder", folder, str(folder), tmp_path / "x" / ".." / "encoder"):
        (tmp_path / "x").mkdir(exist_ok=True)
        encoder = TextEncoder.load(path)
        assert (encoder.name, encoder.revision) == (str(folder.resolve()), None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TextEncoder.load("~/encoder").digest == tiny.digest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("./nothing", "./nothing: there is no such folder"),
        ("/no/such/folder", "/no/such/folder: there is no such folder"),
        ("~/nothing", "~/nothing: there is no such folder"),
        ("a/b/c", "a/b/c: there is no such folder"),
        ("encoder/config.json", "encoder/config.json: must be the folder of an encoder, got a file"),
        ("", "path_or_name must be a path or a name, got ''"),
    ],
)
def test_paths_that_lead_nowhere(folder, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"TextEncoder.load: {message}")):
        TextEncoder.load(given)


def test_revision_is_for_the_hub(folder, site):
    for name, what in ((folder, "a folder"), ("my-tiny", "an installed package")):
        with pytest.raises(ValueError, match=f"revision is for a name on the hub, but {name} is {what}"):
            TextEncoder.load(name, revision="main")


# ------------------------------------------------------------------------------------------ the folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.json"], "not the folder of a text encoder: config.json is missing"),
        (["model.safetensors"], r"the weights are missing \(model.safetensors\)"),
        (["tokenizer.json"], r"the tokenizer is missing \(tokenizer.json\)"),
        (["1_Pooling/config.json"], "1_Pooling/config.json: the file is missing, which modules.json names"),
    ],
)
def test_missing_files_are_named(folder, files, message):
    for name in files:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=message) as caught:
        TextEncoder.load(folder)
    assert str(folder) in str(caught.value)


class Boom:
    """Its pickle makes a file."""

    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_pickled_weights_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"a": Boom()}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"must be in model.safetensors, got pytorch_model.bin. A pickle can"
    ):
        TextEncoder.load(folder)
    assert not (tmp_path / "pwned").exists()


def test_code_of_a_model_is_never_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "own.py").write_text("import os\nos.mkdir('pwned')\nclass Own: pass\n")
    code = {name: "own.Own" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}
    for kind in ("bert", "my-own"):
        edit(folder / "config.json", auto_map=code, model_type=kind, architectures=["OwnBertModel"])
        edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
        with pytest.raises(ValueError, match="code that comes with a model is never run"):
            TextEncoder.load(folder)
    assert not (tmp_path / "pwned").exists()


def test_damaged_files_are_named(folder):
    weights = (folder / "model.safetensors").read_bytes()
    for name, content, message in [
        ("model.safetensors", weights[:-10], "must be a text encoder for transformers, got: "),
        ("model.safetensors", b"", "must be a text encoder for transformers, got: "),
        ("config.json", b"{", "config.json: must be JSON"),
        ("config.json", b"[]", "config.json: must be a JSON object, got"),
        ("tokenizer.json", b"{}", "must be a text encoder for transformers, got: "),
        ("modules.json", b"{}", "modules.json: must be a list of modules, got"),
        ("1_Pooling/config.json", b"\xff", "1_Pooling/config.json: must be JSON"),
        (
            "sentence_bert_config.json",
            b'{"max_seq_length": "9"}',
            "max_seq_length must be a number of tokens",
        ),
    ]:
        former = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            TextEncoder.load(folder)
        assert str(folder) in str(caught.value)
        (folder / name).write_bytes(former)


def test_weights_must_be_whole_and_finite(folder):
    name = "encoder.layer.1.output.dense.weight"
    rule = "the weights must be those of config.json, but not so"
    for change, message in [
        (lambda t: t[name].fill_(torch.nan), f"{name}.*(NaN|finite)"),
        (lambda t: t.update({name: torch.ones(32, 63)}), f"{rule}: {name}$"),
        (lambda t: t.pop(name), f"{rule}: {name}$"),
        (lambda t: [t.pop(other) for other in list(t) if "layer.1" in other], f"{rule}: .* and others$"),
    ]:
        change_weights(folder, change)
        with pytest.raises(ValueError, match=message):
            TextEncoder.load(folder)


def test_weights_without_a_pooler(folder, tiny):
    change_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    assert TextEncoder.load(folder).digest == tiny.digest


def test_weights_in_half_precision_and_in_parts(folder, tmp_path, tiny):
    change_weights(folder, lambda t: t.update({name: tensor.half() for name, tensor in t.items()}))
    encoder = TextEncoder.load(folder)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert 0 < np.abs(encode(encoder) - encode(tiny)).max() < 1e-2
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for part, some in enumerate((names[:9], names[9:])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        safetensors.torch.save_file({n: tensors[n] for n in some}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(some, file)
    tiny_bert.write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    edit(folder / "config.json", torch_dtype="float16", dtype=None)
    assert TextEncoder.load(folder).digest == encoder.digest
    encoder.save(tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert (config["dtype"], "torch_dtype" in config) == ("float32", False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "the model must be an encoder, such as BERT, in which .*, got 'gpt2'"),
        ({"model_type": "t5"}, "got 't5'"),
        ({"is_decoder": True}, "got bert with a decoder"),
        ({"is_encoder_decoder": True}, "got bert with a decoder"),
        ({"model_type": "vit"}, "got 'vit'"),
        ({"model_type": "no-such-model"}, "got 'no-such-model'"),
        ({"model_type": None, "architectures": None}, "must be a text encoder for transformers, got: "),
        ({"hidden_size": 33}, "must be a text encoder for transformers, got: "),
    ],
)
def test_models_that_are_no_encoder(folder, config, message):
    edit(folder / "config.json", **config)
    with pytest.raises(ValueError, match=message):
        TextEncoder.load(folder)


@pytest.mark.parametrize(
    ("pooling", "result"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "lasttoken"}, "got ['lasttoken']"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "got ['lasttoken']"),
        ({"pooling_mode_max_tokens": True}, "got ['max_tokens', 'mean_tokens']"),
        ({"pooling_mode_mean_tokens": False}, "got []"),
        ({"pooling_mode": [["mean"]]}, "got"),
    ],
)
def test_pooling(folder, pooling, result):
    edit(folder / "1_Pooling" / "config.json", **pooling)
    if not result.startswith("got"):
        assert TextEncoder.load(folder).pooling == result
        return
    with pytest.raises(ValueError, match=re.escape(f"pooling must be one of mean, cls, max, {result}")):
        TextEncoder.load(folder)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            ["Transformer", "Pooling", "Dense", "Normalize"],
            "modules must be Transformer, Pooling and perhaps",
        ),
        (["Pooling", "Transformer"], "in this order, got"),
        (["Transformer", "Normalize"], "modules must be"),
        (["Transformer", "Pooling", "Normalize", "Normalize"], "modules must be"),
        (["StaticEmbedding"], "modules must be"),
        ([], "modules must be"),
    ],
)
def test_modules(folder, kinds, message):
    modules = [{"path": "1_Pooling" if kind == "Pooling" else "", "type": f"x.{kind}"} for kind in kinds]
    tiny_bert.write_json(folder / "modules.json", modules)
    with pytest.raises(ValueError, match=f"modules.json: .*{message}"):
        TextEncoder.load(folder)


@pytest.mark.parametrize("path", ["..", "../x", "/etc", "a/../..", 3, None])
def test_modules_stand_beside_their_list(folder, path):
    modules = [{"path": path, "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    tiny_bert.write_json(folder / "modules.json", modules)
    with pytest.raises(ValueError, match="path must name a folder beside the file, got"):
        TextEncoder.load(folder)


def test_model_in_a_subfolder(folder, tiny):
    (folder / "0_Transformer").mkdir()
    for file in [file for file in folder.iterdir() if file.is_file() and file.name != "modules.json"]:
        file.rename(folder / "0_Transformer" / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    tiny_bert.write_json(folder / "modules.json", modules)
    encoder = TextEncoder.load(folder)
    assert encoder.digest == tiny.digest


def test_adapter_and_prompt_are_refused(folder):
    tiny_bert.write_json(folder / "adapter_config.json", {})
    with pytest.raises(ValueError, match="must be a whole model, got an adapter; merge it"):
        TextEncoder.load(folder)
    (folder / "adapter_config.json").unlink()
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    file = folder / "config_sentence_transformers.json"
    tiny_bert.write_json(file, prompts)
    TextEncoder.load(folder)
    tiny_bert.write_json(file, prompts | {"default_prompt_name": "query"})
    with pytest.raises(ValueError, match="a default prompt is not supported, got 'query: '; put it before"):
        TextEncoder.load(folder)


def test_lower_case_of_sentence_transformers(folder, tiny):
    """A tokenizer that tells cases apart gets lower case, and offsets are still those of the text."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = None
    tiny_bert.write_json(folder / "tokenizer.json", content)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", do_lower_case=None)
    cased = TextEncoder.load(folder)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    lower = TextEncoder.load(folder)
    assert cased.digest != lower.digest
    assert 1 in cased.tokenize(["CAT"]).input_ids[0]  # [UNK]
    tokens = lower.tokenize(["Big CAT"], offsets=True)
    assert torch.equal(tokens.input_ids, tiny.tokenize(["big cat"]).input_ids)
    assert tokens.offsets[0].tolist() == [[0, 0], [0, 3], [4, 7], [0, 0]]
    lower.save(folder.with_name("copy"))
    assert TextEncoder.load(folder.with_name("copy")).digest == lower.digest


# ------------------------------------------------------------------------------------------- tokenizers


def test_tokenizer_and_model_must_suit(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zebra"] = 5000
    tiny_bert.write_json(folder / "tokenizer.json", content)
    with pytest.raises(ValueError, match=f"token ids must be below {len(tiny_bert.VOCABULARY)}.* got 5000"):
        TextEncoder.load(folder)


def test_tokenizer_must_add_tokens(folder):
    content = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    tiny_bert.write_json(folder / "tokenizer.json", content)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(ValueError, match=r"must add special tokens, such as \[CLS\]"):
        TextEncoder.load(folder)


def test_padding_and_truncation_of_the_file_do_not_count(folder, tiny):
    """all-MiniLM-L6-v2 on the hub pads and cuts all texts to 128 tokens by its file."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {
        "strategy": {"Fixed": 20}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    tiny_bert.write_json(folder / "tokenizer.json", content)
    tokens = TextEncoder.load(folder).tokenize(TEXTS)
    assert torch.equal(tokens.input_ids, tiny.tokenize(TEXTS).input_ids)


def test_max_length(folder):
    assert TextEncoder.load(folder, 64).max_length == 64
    assert TextEncoder.load(folder, 3).tokenize(["a cat dog"]).input_ids.shape == (1, 3)
    rule = (
        "max_length must be above 2, the number of special tokens, and at most 64, the positions of the model"
    )
    for length in (65, 2, 0, -1):
        with pytest.raises(ValueError, match=f"{rule}, got {length}"):
            TextEncoder.load(folder, length)
    for length in (8.0, True, "8"):
        with pytest.raises(TypeError, match=f"max_length must be an integer, got {type(length).__name__}"):
            TextEncoder.load(folder, length)
    edit(folder / "sentence_bert_config.json", max_seq_length=1000)
    assert TextEncoder.load(folder).max_length == 64
    (folder / "sentence_bert_config.json").unlink()
    edit(folder / "tokenizer_config.json", model_max_length=17)
    assert TextEncoder.load(folder).max_length == 17


# ------------------------------------------------------------------------------------ other architectures


@pytest.mark.parametrize("kind", ["Roberta", "DistilBert", "ModernBert", "MPNet"])
def test_other_encoders(kind, tmp_path):
    """Padding changes nothing, positions are counted right, and gradients reach the embeddings of tokens."""
    transformers = tiny_bert.need_transformers()
    sizes = {
        "vocab_size": len(tiny_bert.VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2,
        "intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 40, "pad_token_id": 0,
        "initializer_range": 0.3,
    }  # fmt: skip
    other = {"DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}}.get(kind, {})
    if kind in ("Roberta", "MPNet"):
        sizes["pad_token_id"] = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**sizes | other, bos_token_id=2, eos_token_id=3)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    tiny_bert.write_tokenizer(tmp_path, "PreTrainedTokenizerFast")
    encoder = TextEncoder.load(tmp_path)
    assert encoder.max_length == {"Roberta": 38, "MPNet": 38}.get(kind, 40)
    texts = ["cat " * 60, "dog", "", "the big red dog"]
    together = encoder.encode(texts, progress=False)
    alone = np.concatenate([encoder.encode([text], progress=False) for text in texts])
    assert np.abs(together - alone).max() < 1e-5 * np.abs(together).max()
    ids, mask, *_ = encoder.tokenize(texts[1:])
    vectors = encoder.token_embeddings(ids).detach().requires_grad_()
    torch.testing.assert_close(encoder(None, mask, inputs_embeds=vectors), encoder(ids, mask))
    encoder(None, mask, inputs_embeds=vectors)[:, 0].sum().backward()
    assert (vectors.grad.abs().sum(-1) > 0).equal(mask > 0)
    encoder.save(tmp_path / "copy")
    assert np.array_equal(TextEncoder.load(tmp_path / "copy").encode(texts, progress=False), together)


# ------------------------------------------------------------------------------------- digest and record


def test_digest_is_of_all_that_counts(folder, tiny):
    def digest_after(change):
        kept = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        change()
        digest = TextEncoder.load(folder).digest
        for file, content in kept.items():
            file.write_bytes(content)
        return digest

    modules = json.loads((folder / "modules.json").read_text())
    pooling, sentence = folder / "1_Pooling" / "config.json", folder / "sentence_bert_config.json"
    bias, config = "encoder.layer.0.output.dense.bias", folder / "config.json"
    vocabulary = (folder / "tokenizer.json").read_text().replace('"fish"', '"fisk"')
    digests = [
        digest_after(change)
        for change in (
            lambda: None,
            lambda: change_weights(folder, lambda t: t[bias][3].add_(1e-6)),
            lambda: (folder / "tokenizer.json").write_text(vocabulary),
            lambda: edit(pooling, pooling_mode_mean_tokens=False, pooling_mode_cls_token=True),
            lambda: tiny_bert.write_json(folder / "modules.json", modules[:2]),
            lambda: edit(sentence, max_seq_length=31),
            lambda: edit(config, hidden_act="relu"),
            lambda: edit(config, num_attention_heads=2),
            lambda: edit(config, layer_norm_eps=1e-6),
        )
    ]
    assert digests[0] == tiny.digest
    assert len({*digests}) == len(digests)
    same = digest_after(
        lambda: edit(config, transformers_version="9.9", architectures=["X"], dtype="float16")
    )
    assert same == tiny.digest


def test_another_digest_is_refused(folder, tiny, tmp_path):
    change_weights(folder, lambda t: t["embeddings.word_embeddings.weight"].add_(1e-3))
    got = TextEncoder.load(folder).digest
    message = (
        f"TextEncoder.load: the encoder at {folder} has digest {got}, "
        f"the model was trained with {tiny.digest}; give its folder"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        TextEncoder.load(folder, digest=tiny.digest)
    with pytest.raises(ValueError, match=re.escape(message)):
        TextEncoder.from_record(tiny.record(), folder)


def test_record_leads_to_the_encoder_that_moved(folder, tmp_path):
    record = TextEncoder.load(folder, max_length=9).record()
    folder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="there is no such folder"):
        TextEncoder.from_record(record)
    again = TextEncoder.from_record(record, tmp_path / "moved")
    assert again.record() == record | {"name": str(tmp_path / "moved")}
    for change in ({"max_length": "9"}, {"digest": None}, {"name": 3}):
        with pytest.raises(ValueError, match=r"TextEncoder.from_record: not the record of an encoder: "):
            TextEncoder.from_record(record | change)


# ----------------------------------------------------------------------------------------------- saving


def test_a_trained_encoder_is_saved(folder, tmp_path):
    encoder = TextEncoder.load(folder).train()
    optimizer, before = torch.optim.AdamW(encoder.parameters(), lr=1e-2), encoder.digest
    encoder(*encoder.tokenize(TEXTS)[:2])[:, 0].sum().backward()
    optimizer.step()
    assert encoder.digest != before
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        encoder.save(tmp_path / name)
        saved = TextEncoder.load(tmp_path / name)
        assert saved.digest == encoder.digest
        assert np.array_equal(encode(saved), encode(encoder))
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "1_Pooling", "config.json", "model.safetensors", "modules.json", "sentence_bert_config.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"save: .*new: must not exist, or be an empty folder"):
        encoder.save(tmp_path / "new")


def test_an_encoder_of_another_dtype_is_saved_as_it_is_loaded(folder, tmp_path):
    encoder = TextEncoder.load(folder).bfloat16()
    encoder.save(tmp_path / "copy")
    assert TextEncoder.load(tmp_path / "copy").digest == encoder.digest


def test_killed_save_leaves_no_part(tiny, tmp_path):
    seen = []
    for step in (0, 3, 8, 14, 20, 26, 99):
        target = tmp_path / f"{step}" / "encoder"
        target.parent.mkdir()
        code = killed_at(step, lambda target=target: tiny.save(target))
        seen.append((code, target.exists()))
        if target.exists():
            assert TextEncoder.load(target).digest == tiny.digest
    assert seen[0] == (9, False)
    assert seen[-1] == (0, True)
    assert (9, True) not in seen[:4]
    tiny.save(tmp_path / "0" / "encoder")  # clears what the dead process left
    assert os.listdir(tmp_path / "0") == ["encoder"]
    assert TextEncoder.load(tmp_path / "0" / "encoder").digest == tiny.digest


# ------------------------------------------------------------------------------------------ transformers


def test_without_transformers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs the package transformers: pip install mach_ext\[text\]"):
        TextEncoder.load(folder)
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(__version__="4.57.1"))
    with pytest.raises(ImportError, match=r"needs transformers 5 or later, got 4.57.1: pip install"):
        TextEncoder.load(folder)


def test_transformers_is_quiet_and_stays_as_it_was(folder, capfd):
    from transformers.utils import logging

    change_weights(folder, lambda t: t.update(unknown=torch.ones(3)))
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    TextEncoder.load(folder)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


PROGRAM = """
import socket, sys
import mach_ext.text_encoder
assert not {"transformers", "tokenizers", "huggingface_hub", "sympy"} & {*sys.modules}

def refuse(*args, **kwargs):
    raise AssertionError("a connection")

socket.socket.connect = socket.getaddrinfo = refuse
encoder = mach_ext.text_encoder.TextEncoder.load(sys.argv[1])
encoder.embed(["a cat"], progress=False)
"""


def test_import_is_light_and_a_folder_needs_no_network(folder, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    program = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder)]
    run = subprocess.run(program, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

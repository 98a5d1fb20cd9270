"""Embeddings against transformers run by hand in float64, and how texts, tokens and devices are treated."""

import json

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

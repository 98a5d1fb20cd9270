"""A tiny sentence encoder with random weights, made on the spot: BERT of two layers, a vocabulary of words.

`write(folder)` needs no network and takes some hundredths of a second after the import of transformers.
"""

import functools
import json
import os
import string
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of huggingface_hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads and the forks of tests do not go together

WORDS = [
    "a", "cat", "dog", "bird", "fish", "purr", "bark", "sing", "swim", "big", "small", "red", "old", "in",
    "on", "the", "of", "to", "and", "with", "house",
]  # fmt: skip
PIECES = ["un", "##s", "##ing", "##ed", *(f"##{word}" for word in WORDS if len(word) > 2)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *WORDS, *PIECES, *string.ascii_lowercase[1:]]  # "a" is a word
FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
HIDDEN = 32


def need_transformers():
    """Skips a test where transformers is not installed."""
    return pytest.importorskip(
        "transformers", reason="transformers is not installed: `pip install -e .[dev]`"
    )


def write(folder, *, pooling="mean", normalize=True, max_length=32, seed=0, plain=False, **config):
    """Writes an encoder in the layout of sentence-transformers, or of transformers if `plain`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(seed, **config)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    if plain:
        return folder
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalize]
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": paths[kind], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    flags = {f"pooling_mode_{flag}": name == pooling for name, flag in FLAGS.items()}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, **flags})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    return folder


def make_model(seed=0, **config):
    """BERT of two layers with random weights, large enough that texts get different embeddings."""
    transformers = need_transformers()
    settings = {
        "vocab_size": len(VOCABULARY), "hidden_size": HIDDEN, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.BertModel(transformers.BertConfig(**settings | config)).eval()


def write_tokenizer(folder, name="BertTokenizer", length=512):
    """Writes the files of the tokenizer."""
    (folder / "tokenizer.json").write_text(_tokenizer())
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    config = {"tokenizer_class": name, "model_max_length": length, "do_lower_case": True, **special}
    write_json(folder / "tokenizer_config.json", config)


@functools.cache
def _tokenizer():
    """The content of tokenizer.json."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(word, numbers[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer.to_str()


def write_json(file, content):
    """Writes a JSON file."""
    file.write_text(json.dumps(content))

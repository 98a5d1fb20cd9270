"""The folder of an encoder: what its files say, before transformers reads any of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mach_ext.data.json_text import read_json
from mach_ext.data.parsing import quote

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
POOLINGS = ("mean", "cls", "max")
# The files that transformers reads a tokenizer from. One of the first group must be there.
VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)  # fmt: skip
TOKENIZER_FILES = (
    *VOCABULARIES, "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
)  # fmt: skip

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}  # pooling_mode_...
_MODULE_PATH = re.compile(r"(?!\.\.?$)[\w.-]*")


@dataclass(frozen=True)
class Layout:
    """What the files of an encoder say about it.

    Attributes:
        folder: The folder with the model and the tokenizer, which may be a subfolder.
        pooling: "mean", "cls" or "max".
        normalize: Whether embeddings have length 1.
        lower_case: Whether texts are turned into lower case before the tokenizer reads them.
        max_length: The length that texts are cut to, in tokens. None: the folder does not say it.
        config: The content of config.json.
    """

    folder: Path
    pooling: str
    normalize: bool
    lower_case: bool
    max_length: int | None
    config: dict[str, Any]


def read_layout(root: Path) -> Layout:
    """Reads the folder of an encoder in the layout of Hugging Face or of sentence-transformers.

    Raises:
        ValueError: A file is missing or damaged, the weights are pickled, or a part is not supported.
    """
    modules = _modules(root)
    folder = root / modules.get("Transformer", "")
    _check_files(folder)
    _refuse_prompt(root)
    sentence = _sentence_config(folder)
    return Layout(
        folder,
        _pooling(root / modules.get("Pooling", "1_Pooling") / "config.json", "Pooling" in modules),
        "Normalize" in modules,
        sentence.get("do_lower_case") is True,
        sentence.get("max_seq_length"),
        _object(folder / "config.json"),
    )


def _object(file: Path) -> dict[str, Any]:
    """Reads a JSON object from a file."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a JSON object, got {quote(content)}")
    return content


def _modules(root: Path) -> dict[str, str]:
    """Returns the path of each module that modules.json lists, by its kind. Empty: there is no such file."""
    file = root / "modules.json"
    if not file.exists():
        return {}
    listed, modules = read_json(file), {}
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError(f"{file}: must be a list of modules, got {quote(listed)}")
    for entry in listed:
        kind, path = str(entry.get("type")).rpartition(".")[2], entry.get("path")
        if not isinstance(path, str) or not _MODULE_PATH.fullmatch(path):
            raise ValueError(f"{file}: path must name a folder beside the file, got {quote(path)}")
        modules[kind] = path
    kinds = [*modules]
    if len(kinds) < len(listed) or kinds not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Normalize"],
    ):
        rule = "modules must be Transformer, Pooling and perhaps Normalize, in this order"
        raise ValueError(f"{file}: {rule}, got {quote([entry.get('type') for entry in listed])}")
    return modules


def _check_files(folder: Path) -> None:
    """Refuses a folder that lacks a part, and weights that are pickled."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder}: must be a whole model, got an adapter; merge it into its model first")
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder}: not the folder of a text encoder: config.json is missing")
    if not any((folder / name).exists() for name in WEIGHTS):
        if pickles := sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern)):
            raise ValueError(
                f"{folder}: weights must be in model.safetensors, got {', '.join(pickles[:3])}. A pickle can "
                "run any code, so it is not read; save the model with safetensors first"
            )
        raise ValueError(
            f"{folder}: not the folder of a text encoder: the weights are missing ({WEIGHTS[0]})"
        )
    if not any((folder / name).exists() for name in VOCABULARIES):
        what = f"the tokenizer is missing ({VOCABULARIES[0]})"
        raise ValueError(f"{folder}: not the folder of a text encoder: {what}")


def _pooling(file: Path, must_exist: bool) -> str:
    """Reads the rule by which the vectors of tokens become one vector. Without a file it is their mean."""
    if not file.exists():
        if must_exist:
            raise ValueError(f"{file}: the file is missing, which modules.json names")
        return "mean"
    config = _object(file)
    chosen = [key.removeprefix("pooling_mode_") for key in sorted(config) if config[key] is True]
    chosen = [name for name in chosen if f"pooling_mode_{name}" in config]
    if "pooling_mode" in config:
        chosen = [_FLAGS.get(str(name), str(name)) for name in _listed(config["pooling_mode"])]
    names = {flag: name for name, flag in _FLAGS.items()}
    if len(chosen) != 1 or chosen[0] not in names:
        raise ValueError(f"{file}: pooling must be one of {', '.join(POOLINGS)}, got {quote(chosen)}")
    return names[chosen[0]]


def _listed(value: Any) -> list[Any]:
    """Returns a value as a list."""
    return value if isinstance(value, list) else [value]


def _sentence_config(folder: Path) -> dict[str, Any]:
    """Reads what sentence-transformers keeps of a model: the length that texts are cut to, and lower case."""
    for file in sorted(folder.glob("sentence_*_config.json")):
        config = _object(file)
        length = config.get("max_seq_length")
        if length is not None and (type(length) is not int or length < 1):
            raise ValueError(f"{file}: max_seq_length must be a number of tokens, got {quote(length)}")
        return config
    return {}


def _refuse_prompt(root: Path) -> None:
    """Refuses an encoder that puts words before each text, because they would shift all offsets."""
    file = root / "config_sentence_transformers.json"
    if file.exists():
        name = (config := _object(file)).get("default_prompt_name")
        if name is not None:
            prompts = config.get("prompts")
            prompt = prompts.get(name) if isinstance(prompts, dict) else None
            raise ValueError(
                f"{file}: a default prompt is not supported, got {quote(prompt)}; put it before your texts "
                "yourself, and remove default_prompt_name from the file"
            )

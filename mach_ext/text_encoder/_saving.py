"""How an encoder is written: in the layout of sentence-transformers, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from mach_ext.data.atomic import atomic_write, new_folder
from mach_ext.data.files import PathLike
from mach_ext.text_encoder._loading import plain_weights

_KINDS = ("Transformer", "Pooling", "Normalize")
_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}


def save_encoder(
    op: str, folder: PathLike, weights: dict[str, Tensor], files: dict[str, bytes], settings: dict[str, Any]
) -> None:
    """Writes the folder of an encoder.

    Args:
        op: How messages call the function.
        folder: A folder that does not exist, or that is empty.
        weights: The weights of the model, by name.
        files: The files of the tokenizer, by name.
        settings: config, pooling, normalize, lower_case, max_length and num_dense.

    Raises:
        ValueError: The folder is not empty.
    """
    folder = Path(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    if folder.exists():
        raise ValueError(f"{op}: {folder}: must not exist, or be an empty folder")
    contents = {
        **files,
        **{name: json.dumps(content, indent=2).encode() for name, content in _records(settings).items()},
        "model.safetensors": save(plain_weights(weights), metadata={"format": "pt"}),
    }
    with new_folder(folder) as temporary:
        (temporary / "1_Pooling").mkdir()
        for name, content in contents.items():
            with atomic_write(temporary / name) as file:
                file.write(content)


def _records(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON files of an encoder, by name."""
    kinds = _KINDS if settings["normalize"] else _KINDS[:2]
    paths = dict(zip(_KINDS, ("", "1_Pooling", "2_Normalize"), strict=True))
    modules = [
        {"idx": i, "name": str(i), "path": paths[kind], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    pooling = {f"pooling_mode_{flag}": name == settings["pooling"] for name, flag in _FLAGS.items()}
    config = {key: value for key, value in settings["config"].items() if key != "torch_dtype"}
    return {
        "config.json": {**config, "dtype": "float32"},  # others may load the weights as it says
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": settings["num_dense"], **pooling},
        "sentence_bert_config.json": {
            "max_seq_length": settings["max_length"],
            "do_lower_case": settings["lower_case"],
        },
    }

"""How transformers makes a model and a tokenizer of a folder, and what is checked before they are used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mach_ext._memory import memory_shortage
from mach_ext._model_folder.tensors import check_finite, tensors_digest
from mach_ext.data.parsing import quote
from mach_ext.data.records import digest_of
from mach_ext.text_encoder._layout import TOKENIZER_FILES, Layout
from mach_ext.text_encoder._library import silence, transformers
from mach_ext.text_encoder._tokens import Tokenizer

_UNBOUNDED = 1 << 20  # transformers writes 1e30 where a tokenizer has no limit
# Entries of config.json that change no embedding.
_NO_MATTER = {
    "_name_or_path", "architectures", "dtype", "gradient_checkpointing", "id2label", "label2id",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


def load_model(layout: Layout) -> nn.Module:
    """Reads the model, in float32 on the CPU. Its pooler is left out, because no embedding depends on it.

    Raises:
        ValueError: It is no encoder, transformers does not know it, or a weight is missing or not finite.
    """
    library, folder = transformers(), layout.folder
    _check_kind(layout)
    config = _read(folder, lambda: library.AutoConfig.from_pretrained(folder, **_LOCAL))
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise ValueError(f"{folder}: {_ENCODER}, got {config.model_type} with a decoder")
    _check_code(layout)
    options = {"dtype": torch.float32, "use_safetensors": True}
    options["ignore_mismatched_sizes"] = True  # the report names them
    model, report = _read(
        folder,
        lambda: library.AutoModel.from_pretrained(
            folder, config=config, output_loading_info=True, **options, **_LOCAL
        ),
    )
    if hasattr(model, "pooler"):
        model.pooler = None
    needed = model.state_dict()
    absent = sorted(name for name in report["missing_keys"] if name in needed)
    absent += sorted(str(key[0]) for key in report["mismatched_keys"])
    if absent:
        names = ", ".join(absent[:3]) + (" and others" if len(absent) > 3 else "")
        raise ValueError(f"{folder}: the weights must be those of config.json, but not so: {names}")
    check_finite(str(folder), needed)
    module: nn.Module = model.eval()
    return module


_ENCODER = "the model must be an encoder, such as BERT, in which tokens see the tokens on both sides"
_NO_CODE = "the model must be one of transformers, because code that comes with a model is never run"
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def _read(folder: Path, function: Any) -> Any:
    """Calls transformers without its reports. What it raises names the folder."""
    try:
        with silence():
            return function()
    except Exception as error:  # libraries raise many kinds of exceptions for a damaged file
        if memory_shortage(error) is not None:
            raise
        cause = " ".join(str(error).split())[:300]
        kind = type(error).__name__
        raise ValueError(f"{folder}: must be a text encoder for transformers, got: {kind}: {cause}") from None


def _check_kind(layout: Layout) -> None:
    """Refuses all but the kinds of models that are trained as encoders."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    kind = layout.config.get("model_type")
    if isinstance(kind, str) and kind not in ENCODERS:
        if "auto_map" in layout.config:
            raise ValueError(f"{layout.folder}: {_NO_CODE}, got {quote(kind)}")
        raise ValueError(f"{layout.folder}: {_ENCODER}, got {quote(kind)}")


def _check_code(layout: Layout) -> None:
    """Refuses a model with code of its own that is no class of transformers."""
    code, classes = layout.config.get("auto_map"), layout.config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    if isinstance(code, dict) and "AutoModel" in code and not hasattr(transformers(), str(name)):
        raise ValueError(f"{layout.folder}: {_NO_CODE}, got {quote(name)}")


def load_tokenizer(layout: Layout, model: nn.Module, max_length: int | None) -> Tokenizer:
    """Reads the tokenizer, and decides to how many tokens texts are cut.

    Raises:
        ValueError: It does not suit the model, or `max_length` is out of range.
    """
    library, folder = transformers(), layout.folder
    loaded = _read(folder, lambda: library.AutoTokenizer.from_pretrained(folder, **_LOCAL))
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        kind = type(loaded).__name__
        raise ValueError(f"{folder}: the tokenizer must have a tokenizer.json, got {kind}, which has none")
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    if layout.lower_case:
        steps = [tokenizers.normalizers.Lowercase(), *filter(None, [backend.normalizer])]
        backend.normalizer = tokenizers.normalizers.Sequence(steps)
    special = backend.num_special_tokens_to_add(False)
    if special < 1:
        rule = "the tokenizer must add special tokens, such as [CLS], so that no text is without tokens"
        raise ValueError(f"{folder}: {rule}, got none")
    rows, ids = len(model.get_input_embeddings().weight), backend.get_vocab().values()  # type: ignore[operator]
    if max(ids) >= rows:
        raise ValueError(f"{folder}: token ids must be below {rows}, as the model has them, got {max(ids)}")
    limit = _limit(layout, model, loaded)
    if max_length is None:
        max_length = _default_length(layout, limit)
    _check_length(max_length, special, limit)
    return Tokenizer(backend, max_length, loaded.pad_token_id or 0)


def _limit(layout: Layout, model: nn.Module, tokenizer: Any) -> tuple[int | None, int | None]:
    """Returns how many tokens the model takes, and how many its tokenizer is meant to give it."""
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            positions = module.num_embeddings
            if module.padding_idx is not None:  # RoBERTa counts positions from behind the padding's
                positions -= module.padding_idx + 1
    positions = positions if isinstance(positions, int) and positions > 0 else None
    usual = tokenizer.model_max_length
    return positions, int(usual) if usual < _UNBOUNDED else None


def _default_length(layout: Layout, limit: tuple[int | None, int | None]) -> int:
    """Returns the length that the folder states, at most what the model takes."""
    positions, usual = limit
    stated = usual if layout.max_length is None else layout.max_length
    known = [length for length in (stated, positions) if length is not None]
    if not known:
        raise ValueError(
            f"{layout.folder}: max_length must be given, because no file of the encoder states it"
        )
    return min(known)


def _check_length(max_length: int, special: int, limit: tuple[int | None, int | None]) -> None:
    """Refuses a length that leaves no room for words, or that is above what the model takes."""
    if isinstance(max_length, bool) or not isinstance(max_length, int):
        raise TypeError(f"TextEncoder.load: max_length must be an integer, got {type(max_length).__name__}")
    most = limit[0]
    if max_length <= special or (most is not None and max_length > most):
        rule = f"max_length must be above {special}, the number of special tokens"
        rule += "" if most is None else f", and at most {most}, the positions of the model"
        raise ValueError(f"TextEncoder.load: {rule}, got {max_length}")


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of a tokenizer, by name."""
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).exists()}


def plain_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights as `load` makes them: on the CPU, and float32 whatever the encoder was turned into."""
    return {
        name: weight.detach().to("cpu", torch.float32 if weight.is_floating_point() else None).contiguous()
        for name, weight in weights.items()
    }


def encoder_digest(weights: dict[str, Tensor], files: dict[str, bytes], rest: dict[str, Any]) -> str:
    """Returns the SHA-256 of all that an embedding depends on.

    Args:
        weights: The weights of the model, by name.
        files: The files of the tokenizer, by name.
        rest: The content of config.json under "config", and the settings of the encoder.
    """
    config = {key: value for key, value in rest["config"].items() if key not in _NO_MATTER}
    record = {
        "weights": tensors_digest(plain_weights(weights)),
        "tokenizer": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    return digest_of({**rest, "config": config, **record})

"""A text encoder that is trained together with a model: its optimiser, and its tensors in a checkpoint."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext._memory import check_import
from mach_ext._model_folder import safetensors_dtype

FOLDER = "text_encoder"  # of the trained encoder in a run, followed by a part of its digest
TOGETHER = 32  # texts of about the same length that pass through the encoder at a time
_DEPTH = re.compile(r"\.(?:layer|layers|h|block)\.(\d+)\.")
_NO_DECAY = re.compile(r"bias$|norm", re.IGNORECASE)


@dataclass(frozen=True)
class EncoderSettings:
    """How the encoder is trained.

    Attributes:
        learning_rate: AdamW's rate for the encoder's last layer.
        layer_decay: The rate of each layer is that of the next one times this factor. The vectors of the
            tokens come before the first layer.
        weight_decay: AdamW's weight decay. Biases and the weights of normalisations have none.
        warmup: The share of all steps in which the rate rises from 0. It falls to 0 afterwards.
        accumulate: AdamW makes a step after so many batches.
        max_norm: The largest norm of the gradient of a step.

    Example:
        >>> from mach_ext.training import EncoderSettings
        >>> EncoderSettings().layer_decay
        0.9
    """

    learning_rate: float = 5e-5
    layer_decay: float = 0.9
    weight_decay: float = 0.01
    warmup: float = 0.1
    accumulate: int = 1
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        bounds = {
            "learning_rate": (0, math.inf), "layer_decay": (0, 1), "weight_decay": (0, math.inf),
            "warmup": (0, 1), "max_norm": (0, math.inf),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(
                    f"finetune: encoder {name} must be a number in [{low}, {high}], got {value!r}"
                )
        if type(self.accumulate) is not int or self.accumulate < 1:
            raise ValueError(
                f"finetune: encoder accumulate must be an int of at least 1, got {self.accumulate!r}"
            )


class TrainedEncoder:
    """A text encoder in training, with the texts of the training documents.

    Attributes:
        encoder: The encoder, a `mach_ext.text_encoder.TextEncoder`.
        optimizer: AdamW with a group of parameters for each layer.
    """

    def __init__(
        self, encoder: Any, texts: Sequence[str], settings: EncoderSettings, seed: int, precision: str
    ) -> None:
        check_import("torch._dynamo")  # PyTorch's optimisers import it.
        self.encoder, self.texts, self.settings, self.seed = encoder, texts, settings, seed
        self.device = next(encoder.parameters()).device
        self.narrow = precision == "bfloat16" and self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(_groups(encoder, settings), lr=settings.learning_rate)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.number, self.is_last = 0, False
        record = encoder.record()
        self.base = {name: record[name] for name in ("name", "revision", "digest")}

    def set_step(self, number: int, total: int) -> None:
        """Set the rates of a step, counted from 0, of so many steps."""
        rising = max(1, round(self.settings.warmup * total))
        share = min((number + 1) / rising, (total - number) / max(1, total - rising + 1))
        self.number, self.is_last = number, number + 1 == total
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def embed(self, rows: NDArray[np.int64]) -> Tensor:  # [n, E]
        """Return the embeddings of the texts of some documents, with their graph.

        Texts of about the same length go together, so that there is little padding.
        """
        texts = [self.texts[row] for row in rows.tolist()]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        with self._dropout_of_step(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow):
            for start in range(0, len(order), TOGETHER):
                chunk = [texts[i] for i in order[start : start + TOGETHER]]
                tokens = self.encoder.tokenize(chunk)
                ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
                parts.append(self.encoder(ids, mask))
        place = torch.empty(len(order), dtype=torch.int64)
        place[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts).float()[place.to(self.device)]

    def step(self, dense: Tensor, gradient: Tensor) -> None:
        """Go back through the encoder, and make a step if enough batches have come."""
        dense.backward(gradient / self.settings.accumulate)
        if (self.number + 1) % self.settings.accumulate and not self.is_last:
            return
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.settings.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @contextlib.contextmanager
    def _dropout_of_step(self) -> Iterator[None]:
        """Draw dropout from the seed and the number of the step alone."""
        drawn = np.random.SeedSequence([self.seed, self.number, 1]).generate_state(1, np.uint64)[0]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(drawn) >> 1)
            yield

    # -------------------------------------------------------------------------------------------- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Return the encoder's weights, AdamW's moments and gradients that wait for a step, by name."""
        tensors = {name: weight.cpu() for name, weight in self.weights().items()}
        for i, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            tensors |= {
                f"adamw.{i}.{key}": value.detach().cpu() for key, value in self.optimizer.state[p].items()
            }
            if p.grad is not None:
                tensors[f"adamw.{i}.grad"] = p.grad.cpu()
        return tensors

    def expected(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of everything that `tensors` may hold, by name."""
        expected = {name: (safetensors_dtype(w), tuple(w.shape)) for name, w in self.weights().items()}
        for i, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            entry = (safetensors_dtype(p), tuple(p.shape))
            expected |= {f"adamw.{i}.{key}": entry for key in ("exp_avg", "exp_avg_sq", "grad")}
            expected[f"adamw.{i}.step"] = ("F32", ())
        return expected

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors` returned."""
        self.load_weights(tensors)
        for i, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            state = {
                key: tensors[f"adamw.{i}.{key}"].to("cpu" if key == "step" else p.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adamw.{i}.{key}" in tensors
            }
            if state:
                self.optimizer.state[p] = state
            gradient = tensors.get(f"adamw.{i}.grad")
            p.grad = None if gradient is None else gradient.to(p.device)

    def weights(self) -> dict[str, Tensor]:
        """Return the encoder's weights by name."""
        return {f"encoder.{name}": p.detach() for name, p in self.encoder.named_parameters()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Give the encoder these weights."""
        for name, p in self.encoder.named_parameters():
            p.copy_(weights[f"encoder.{name}"])

    # -------------------------------------------------------------------------------------------- run folder

    def save(self, folder: Path, attachments: dict[str, bytes]) -> None:
        """Save the encoder into a folder of the run that is named after its digest."""
        record = self.encoder.record()
        name = f"{FOLDER}-{record['digest'][:12]}"
        if not (folder / name).exists():
            self.encoder.save(folder / name)
        kept = {**record, "name": name, "revision": None, "base": self.base}
        attachments[f"{FOLDER}.json"] = json.dumps(kept, indent=2).encode()

    def load_saved(self, folder: Path, attachments: dict[str, bytes]) -> None:
        """Take the weights of the encoder that the attachments name."""
        record = json.loads(attachments[f"{FOLDER}.json"])
        saved = type(self.encoder).from_record(record, folder / record["name"])
        self.encoder.load_state_dict(saved.state_dict())

    def delete_others(self, folder: Path, attachments: dict[str, bytes]) -> None:
        """Remove the encoders of former epochs."""
        name = json.loads(attachments[f"{FOLDER}.json"])["name"]
        for other in folder.glob(f"{FOLDER}-*"):
            if re.fullmatch(rf"{FOLDER}-[0-9a-f]{{12}}", other.name) and other.name != name:
                shutil.rmtree(other)


def _groups(encoder: torch.nn.Module, settings: EncoderSettings) -> list[dict[str, Any]]:
    """Return groups of parameters with a rate for each layer, and with or without weight decay."""
    named = [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]
    depths = [int(found[1]) + 1 if (found := _DEPTH.search(name)) else 0 for name, _ in named]
    last = max(depths, default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for (name, p), depth in zip(named, depths, strict=True):
        decays = p.dim() > 1 and not _NO_DECAY.search(name)
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "lr": settings.learning_rate * settings.layer_decay ** (last - depth),
                "weight_decay": settings.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(p)
    return list(groups.values())

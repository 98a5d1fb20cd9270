"""An encoder of the user's in front of a head: its inputs, its hidden units, its mode."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mach_ext import functional as F
from mach_ext.data import check_columns
from mach_ext.explain._arguments import values_dtype
from mach_ext.head import MACHHead
from mach_ext.nn import check_parameters

# Inputs that go through the encoder at a time. Its activations often take a hundred times as much.
INPUT_BYTES = 1 << 22
# Hidden units of the same input may differ by this share of their length. Half precision stays below it, and
# dropout far above.
_SAME = 0.02


class Encoder:
    """A callable from inputs [N, ...] to hidden units [N, H] of a head, or [N, R, H] if it has them apart."""

    def __init__(self, op: str, head: Any, encoder: Any) -> None:
        """Checks the head and the encoder.

        Raises:
            TypeError: The model is not a head, or the encoder is not callable.
        """
        if not isinstance(head, MACHHead):
            raise TypeError(
                f"{op}: model must be a mach_ext.MACHHead if encoder is given, got {type(head).__name__}"
            )
        if not callable(encoder):
            raise TypeError(
                f"{op}: encoder must be a callable such as a torch.nn.Module, got {type(encoder).__name__}"
            )
        check_parameters(op, head)
        self.op, self.head, self.encoder = op, head, encoder
        self.device = head.bucket_bias.device

    def __call__(self, X: Tensor) -> Tensor:  # [N, ...] -> [N, H] or [N, R, H]
        """Returns the hidden units of inputs, as the encoder gives them.

        Raises:
            TypeError: The encoder does not return floating-point numbers that the head takes.
            ValueError: It returns another shape, or numbers on another device.
        """
        op, head = self.op, self.head
        hidden = self.encoder(X.clone())  # it may overwrite its input
        if not isinstance(hidden, Tensor):
            raise TypeError(
                f"{op}: encoder must return hidden units as a torch.Tensor, got {type(hidden).__name__}"
            )
        N, R, H = len(X), head.num_repetitions, head.in_features
        if tuple(hidden.shape) != ((N, R, H) if head.per_repetition else (N, H)):
            shape = f"[N={N}, R={R}, H={H}]" if head.per_repetition else f"[N={N}, H={H}]"
            raise ValueError(f"{op}: encoder must return hidden units {shape}, got {list(hidden.shape)}")
        dtype = values_dtype(head)
        if hidden.dtype not in (dtype, torch.float16, torch.bfloat16):
            raise TypeError(
                f"{op}: encoder must return hidden units in {_name(dtype)} like the head, or in half "
                f"precision, got {_name(hidden.dtype)}"
            )
        if hidden.device != self.device:
            raise ValueError(
                f"{op}: encoder must return hidden units on {self.device} like the head, got {hidden.device}"
            )
        return hidden

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switches off dropout, autocast and compiled code, and restores all modes.

        It also leaves `torch.inference_mode()`.
        """
        module = _module_of(self.encoder)
        modes = [] if module is None else [(part, part.training) for part in module.modules()]
        try:
            if module is not None and any(training for _, training in modes):
                module.eval()
            with torch.inference_mode(False), F.own_precision(self.device), _uncompiled():
                yield
        finally:
            for part, training in modes:
                if part.training != training:
                    part.training = training

    def hidden(self, X: Tensor) -> Tensor:
        """Returns the hidden units of inputs without gradients.

        Raises:
            ValueError: A hidden unit is NaN or infinite. The encoder returns other hidden units if it is
                asked again, or if the batch is another.
        """
        with self.evaluating(), torch.no_grad():
            first = self(X[:1])
            hidden = torch.cat([self(part) for part in X.split(batch_size(X[0].numel()))])
            finite = hidden.isfinite()
            if not bool(finite.all()):
                raise ValueError(
                    f"{self.op}: encoder must return finite hidden units, got {int((~finite).sum())} of "
                    f"{finite.numel()} numbers NaN or infinite"
                )
            if float((hidden[:1] - first).double().norm()) > _SAME * float(first.double().norm()):
                raise ValueError(
                    f"{self.op}: encoder must return the same hidden units for an input each time, got "
                    "others the second time; call eval() on the modules that it uses, and let no input of a "
                    "batch depend on the others"
                )
        return hidden


def batch_size(numbers: int) -> int:
    """Returns how many inputs of so many numbers go through an encoder at a time."""
    return max(1, INPUT_BYTES // (4 * numbers))


def input_tensor(op: str, head: MACHHead, X: Any, name: str = "X") -> Tensor:  # [N, ...]
    """Returns checked inputs on the head's device. A NumPy array also gets the head's dtype.

    Raises:
        TypeError: The argument is not a dense tensor or array of floating-point numbers.
        ValueError: There is nothing in it, a number is not finite, or it is on another device.
    """
    device = head.bucket_bias.device
    if isinstance(X, np.ndarray) and X.dtype.kind == "f":
        with np.errstate(over="ignore"):
            X = torch.tensor(X.astype(f"f{values_dtype(head).itemsize}"), device=device)
    if not isinstance(X, (Tensor, np.ndarray)) or (isinstance(X, Tensor) and X.layout != torch.strided):
        got = _name(X.layout) if isinstance(X, Tensor) else type(X).__name__
        raise TypeError(f"{op}: {name} must be a dense torch.Tensor or a NumPy array, got {got}")
    if isinstance(X, np.ndarray) or not X.is_floating_point():
        raise TypeError(
            f"{op}: {name} must be floating-point numbers, got {_name(X.dtype)}; for token ids, pass their "
            "embeddings, and an encoder that starts from these"
        )
    if X.device != device:
        raise ValueError(f"{op}: {name} must be on {device} like the head, got {X.device}")
    if X.dim() < 2 and name == "X":
        raise ValueError(f"{op}: X must be [N, ...] with at least two dimensions, got shape {list(X.shape)}")
    if X.numel() == 0:
        raise ValueError(f"{op}: {name} must have at least one number, got shape {list(X.shape)}")
    finite = X.isfinite()
    if not bool(finite.all()):
        raise ValueError(
            f"{op}: {name} must be finite, got {int((~finite).sum())} of {X.numel()} numbers NaN or infinite"
        )
    inputs: Tensor = X.detach()
    return inputs


def one_input(op: str, head: MACHHead, X: Any) -> Tensor:  # [1, ...]
    """Returns a single checked input."""
    X = input_tensor(op, head, X)
    if len(X) != 1:
        raise ValueError(
            f"{op}: X must be one input [1, ...], got shape {list(X.shape)}; explain_topk takes many"
        )
    inputs: Tensor = X
    return inputs


def hidden_tensor(op: str, head: MACHHead, hidden: Any) -> Tensor:  # [N, H] or [N, R, H]
    """Returns checked hidden units as a dense tensor in the head's dtype."""
    R, H = head.num_repetitions, head.in_features
    if not head.per_repetition:
        hidden = check_columns(hidden, f"{op}: X", H, "H").toarray()
    X = input_tensor(op, head, hidden).to(values_dtype(head))
    if head.per_repetition and tuple(X.shape[1:]) != (R, H):
        raise ValueError(f"{op}: X must be hidden units [N, R={R}, H={H}], got shape {list(X.shape)}")
    return X


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Makes compiled modules run eagerly, because their backward pass may run only once."""
    if "torch._dynamo" not in sys.modules:  # Its import takes seconds, and nothing is compiled without it.
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _module_of(encoder: Callable[..., Any]) -> nn.Module | None:
    """Returns the module that an encoder is or is a method of. None: it is another function."""
    if isinstance(encoder, functools.partial):
        return _module_of(encoder.func)
    owner = getattr(encoder, "__self__", encoder)
    return owner if isinstance(owner, nn.Module) else None


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")

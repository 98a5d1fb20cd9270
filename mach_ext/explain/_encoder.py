"""An encoder of the user's in front of a head: its inputs, its hidden units, its mode."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach_ext import functional as F
from mach_ext._user_encoder import (
    check_encoder,
    check_finite_hidden,
    check_finite_inputs,
    check_hidden,
    check_inputs,
    in_eval_mode,
)
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
        check_encoder(op, head, encoder)
        check_parameters(op, head)
        self.op, self.head, self.encoder = op, head, encoder
        self.device = head.bucket_bias.device

    def __call__(self, X: Tensor) -> Tensor:  # [N, ...] -> [N, H] or [N, R, H]
        """Returns the hidden units of inputs, as the encoder gives them.

        Raises:
            TypeError: The encoder does not return floating-point numbers that the head takes.
            ValueError: It returns another shape, or numbers on another device.
        """
        hidden = self.encoder(X.clone())  # it may overwrite its input
        return check_hidden(self.op, self.head, hidden, len(X))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switches off dropout, autocast and compiled code, and restores all modes.

        It also leaves `torch.inference_mode()`.
        """
        own = F.own_precision(self.device)
        with in_eval_mode(self.encoder), torch.inference_mode(False), own, _uncompiled():
            yield

    def hidden(self, X: Tensor) -> Tensor:
        """Returns the hidden units of inputs without gradients.

        Raises:
            ValueError: A hidden unit is NaN or infinite. The encoder returns other hidden units if it is
                asked again, or if the batch is another.
        """
        with self.evaluating(), torch.no_grad():
            first = self(X[:1])
            hidden = torch.cat([self(part) for part in X.split(batch_size(X[0].numel()))])
            check_finite_hidden(self.op, hidden)
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
    X = check_inputs(op, X, name)
    if X.device != device:
        raise ValueError(f"{op}: {name} must be on {device} like the head, got {X.device}")
    if X.dim() < 2 and name == "X":
        raise ValueError(f"{op}: X must be [N, ...] with at least two dimensions, got shape {list(X.shape)}")
    if X.numel() == 0:
        raise ValueError(f"{op}: {name} must have at least one number, got shape {list(X.shape)}")
    check_finite_inputs(op, X, name)
    inputs: Tensor = X
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

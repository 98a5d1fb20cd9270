"""Optimisers whose steps touch only the rows that occurred in the batch.

Both take parameters with sparse gradients (`sparse_grad=True`) and with dense ones in one optimiser: dense
means that every row occurred. Rows that did not occur keep their value and their moments, bit for bit, and
cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mach_ext import _ops


class _RowOptimizer(torch.optim.Optimizer):
    """Walks the parameters; subclasses update rows [U] of a parameter viewed as [P, M]."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimisation step. `closure`, if given, recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step(parameter, group)
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if not parameter.is_contiguous():
            raise ValueError(
                f"{type(self).__name__}: parameters must be contiguous, got strides {parameter.stride()}"
            )
        gradient = parameter.grad
        assert gradient is not None
        if parameter.numel() == 0:
            return
        if gradient.dtype != parameter.dtype or parameter.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{type(self).__name__}: parameters and gradients must both be float32 or float64, "
                f"got {parameter.dtype} and {gradient.dtype}"
            )
        if gradient.is_sparse:
            rows, values = _unique_rows(gradient)
        else:
            rows, values = None, gradient.reshape(-1, _row_length(parameter, 1))
        self._step_rows(parameter, rows, values, group)
        # The raw op wrote behind autograd's back: a backward pass through older values must fail, not lie.
        torch.autograd.graph.increment_version(parameter)

    def _step_rows(
        self, parameter: Tensor, rows: Tensor | None, gradient: Tensor, group: dict[str, Any]
    ) -> None:
        raise NotImplementedError


def _row_length(parameter: Tensor, row_dims: int) -> int:
    """Elements behind the first `row_dims` dimensions."""
    length = 1
    for extent in parameter.shape[row_dims:]:
        length *= extent
    return length


def _unique_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending rows [U] and their gradients [U, M] of a sparse COO gradient.

    Ours arrive so. Several backward passes before a step, or a weight used twice, leave repeated rows, which
    are summed here; without this check they would be applied one after another.
    """
    sparse_dim = gradient.sparse_dim()
    for _ in range(2):
        indices, values = gradient._indices(), gradient._values()
        rows = indices[0]
        for dim in range(1, sparse_dim):
            rows = rows * gradient.shape[dim] + indices[dim]
        if bool((rows[1:] > rows[:-1]).all()):
            break
        gradient = gradient.coalesce()
    return rows, values.reshape(rows.shape[0], _row_length(gradient, sparse_dim))


def _as_rows(state: Tensor, gradient: Tensor) -> Tensor:
    return state.view(-1, gradient.shape[1])


def _check(optimizer: str, **bounds: tuple[float, float, float]) -> None:
    for name, (value, low, high) in bounds.items():
        if not low <= value < high:
            raise ValueError(f"{optimizer}: {name} must be in [{low}, {high}), got {value}")


class SparseAdam(_RowOptimizer):
    """Adam on the rows that occurred, as `torch.optim.SparseAdam`; dense gradients are welcome, too.

    Moments of a row decay only when it occurs; bias correction counts the parameter's steps.
    Source: Kingma & Ba, ICLR 2015 ("lazy" variant).

    Args:
        params: Parameters or parameter groups, float32 or float64, contiguous.
        lr: Learning rate.
        betas: Decay of the first and second moment.
        eps: Added to the root of the second moment.

    Example:
        >>> import torch, mach_ext
        >>> weight = torch.nn.Parameter(torch.zeros(3, 2))
        >>> X = torch.tensor([1.0]), torch.tensor([1]), torch.tensor([0, 1])
        >>> mach_ext.functional.sparse_linear(*X, weight, sparse_grad=True).sum().backward()
        >>> mach_ext.optim.SparseAdam([weight], lr=0.1).step()
        >>> weight.data
        tensor([[ 0.0000,  0.0000],
                [-0.1000, -0.1000],
                [ 0.0000,  0.0000]])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        inf = float("inf")
        _check(
            "SparseAdam", lr=(lr, 0, inf), eps=(eps, 0, inf), beta1=(betas[0], 0, 1), beta2=(betas[1], 0, 1)
        )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def _step_rows(
        self, parameter: Tensor, rows: Tensor | None, gradient: Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        _ops.sparse_adam(
            _as_rows(parameter, gradient),
            rows,
            gradient,
            _as_rows(state["exp_avg"], gradient),
            _as_rows(state["exp_avg_sq"], gradient),
            group["lr"] * correction2**0.5 / correction1,
            beta1,
            beta2,
            group["eps"],
        )


class SparseAdagrad(_RowOptimizer):
    """Adagrad on the rows that occurred, as `torch.optim.Adagrad`; sparse and dense gradients.

    A feature that occurs rarely keeps a large learning rate: what sparse documents want.
    Source: Duchi et al., JMLR 2011.

    Args:
        params: Parameters or parameter groups, float32 or float64, contiguous.
        lr: Learning rate.
        initial_accumulator_value: Start of the sum of squares.
        eps: Added to the root of the sum of squares.

    Example:
        >>> import torch, mach_ext
        >>> weight = torch.nn.Parameter(torch.zeros(3, 2))
        >>> X = torch.tensor([1.0]), torch.tensor([1]), torch.tensor([0, 1])
        >>> mach_ext.functional.sparse_linear(*X, weight, sparse_grad=True).sum().backward()
        >>> mach_ext.optim.SparseAdagrad([weight], lr=0.5).step()
        >>> weight.data
        tensor([[ 0.0000,  0.0000],
                [-0.5000, -0.5000],
                [ 0.0000,  0.0000]])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        inf = float("inf")
        _check(
            "SparseAdagrad",
            lr=(lr, 0, inf),
            eps=(eps, 0, inf),
            initial_accumulator_value=(initial_accumulator_value, 0, inf),
        )
        super().__init__(
            params, {"lr": lr, "initial_accumulator_value": initial_accumulator_value, "eps": eps}
        )

    def _step_rows(
        self, parameter: Tensor, rows: Tensor | None, gradient: Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["sum"] = torch.full_like(parameter, group["initial_accumulator_value"])
        _ops.sparse_adagrad(
            _as_rows(parameter, gradient),
            rows,
            gradient,
            _as_rows(state["sum"], gradient),
            group["lr"],
            group["eps"],
        )

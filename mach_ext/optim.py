"""Optimisers whose steps touch only the rows that occurred in the batch.

Each takes parameters with sparse gradients (`sparse_grad=True`) and with dense gradients in one optimiser. A
dense gradient means that every row occurred. Rows that did not occur keep their value and their moments, bit
for bit, and cost nothing.

Example:
    >>> import torch, mach_ext
    >>> model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
    >>> X = torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
    >>> Y = torch.tensor([7]), torch.tensor([0, 1])
    >>> optimizer = mach_ext.optim.SparseAdam(model.parameters(), lr=0.01)
    >>> before = model.loss(*X, *Y).item()
    >>> model.loss(*X, *Y, sparse_grad=True).backward()
    >>> optimizer.step()
    >>> model.loss(*X, *Y).item() < before
    True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext._memory import check_import, memory_errors

__all__ = ["SparseAdagrad", "SparseAdam", "clip_grad_norm_"]


@memory_errors("make a smaller model")
@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale gradients so that their norm is at most `max_norm`. Sparse gradients are allowed.

    This is `torch.nn.utils.clip_grad_norm_`, which takes only dense gradients. The norm is that of all
    gradients together, as if each were dense and they were a single vector. Rows that a sparse gradient has
    more than once are summed first.

    Args:
        parameters: A parameter or several. Their gradients are scaled in place. Parameters without a gradient
            are skipped.
        max_norm: The largest norm.
        norm_type: p of the p-norm, from 0 to infinity.
        error_if_nonfinite: Refuse a norm that is NaN or infinite.
        foreach: How the norms are computed, as in PyTorch's function.

    Returns:
        The norm before scaling, a scalar.

    Raises:
        ValueError: `norm_type` is negative or NaN.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is true.

    Example:
        >>> import torch, mach_ext
        >>> weight = torch.nn.Parameter(torch.zeros(3, 1))
        >>> X = torch.tensor([3.0, 4.0]), torch.tensor([0, 2]), torch.tensor([0, 2])
        >>> mach_ext.functional.sparse_linear(*X, weight, sparse_grad=True).sum().backward()
        >>> mach_ext.optim.clip_grad_norm_([weight], max_norm=1.0)
        tensor(5.)
        >>> weight.grad.to_dense()
        tensor([[0.6000],
                [0.0000],
                [0.8000]])
    """
    norm_type = float(norm_type)
    if not norm_type >= 0:
        raise ValueError(f"clip_grad_norm_: norm_type must be at least 0, got {norm_type}")
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    values = []
    for parameter in given:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = _with_unique_rows(parameter.grad)
            values.append(parameter.grad._values())
        else:
            values.append(parameter.grad)
    values = [each for each in values if each.numel()]  # PyTorch refuses the largest number of no numbers.
    norm: Tensor = torch.nn.utils.get_total_norm(values, norm_type, error_if_nonfinite, foreach)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for each in values:
        each.mul_(scale.to(each.device))
    return norm


class _RowOptimizer(torch.optim.Optimizer):
    """The base of optimisers that step rows.

    Subclasses name their moments, the operators that update them, and the numbers that these operators take.

    `step` takes the gradients that autograd computed. A training loop may also hand over gradients in pieces,
    so that no whole gradient ever exists. `mach_ext.fit` does this:

    ```python
    optimizer.begin_step()
    optimizer.step_sparse_linear(encoder_weight, None, grad_hidden, values, order)
    for r in range(R):
        optimizer.step_rows(bucket_weight, r, gradient_of_r)
    ```

    Each piece of a parameter comes once between two calls of `begin_step`, and `step` is not called beside
    them. The result is that of `step` with the whole gradient, to the bit.
    """

    _moments: tuple[str, ...]  # names in the state, tensors like the parameter
    _row_op: Any  # (parameter [P, M], rows, gradient, *moments, *numbers)
    _sparse_linear_op: Any  # (weight [R, D, M], *moments, grad, values, order, *numbers)

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        check_import("torch._dynamo")  # PyTorch's optimisers import it.
        super().__init__(params, defaults)

    @memory_errors("make a smaller model")
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make an optimisation step with the gradients that autograd computed.

        Args:
            closure: A function that recomputes the loss, or None.

        Returns:
            The loss that the closure returns, or None.

        Raises:
            ValueError: A parameter is not contiguous.
            TypeError: A parameter or a gradient is neither float32 nor float64.

        Example:
            >>> import torch, mach_ext
            >>> weight = torch.nn.Parameter(torch.ones(2))
            >>> weight.grad = torch.tensor([1.0, 0.0])
            >>> mach_ext.optim.SparseAdagrad([weight], lr=0.5).step()
            >>> weight.data
            tensor([0.5000, 1.0000])
        """
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

    @memory_errors("make a smaller model")
    @torch.no_grad()
    def begin_step(self) -> None:
        """Begin a step in pieces. This counts the step for every parameter that requires a gradient.

        Example:
            >>> import torch, mach_ext
            >>> weight = torch.nn.Parameter(torch.ones(2, 2))
            >>> optimizer = mach_ext.optim.SparseAdam([weight])
            >>> optimizer.begin_step()
            >>> optimizer.state[weight]["step"]
            1
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and parameter.numel():
                    self._count(self._state(parameter, group))

    @memory_errors("make a smaller model")
    @torch.no_grad()
    def step_rows(
        self, parameter: Tensor, at: int | slice | tuple[int, slice], gradient: Tensor, **options: float
    ) -> None:
        """Make the part of a step that updates `parameter[at]` by its dense gradient.

        Args:
            parameter: A parameter of this optimiser.
            at: An index or a slice of its first dimension, or an index with a slice of the second one.
            gradient: The gradient to `parameter[at]`.
            **options: Entries that take the place of those of the parameter's group, such as `lr`.

        Raises:
            ValueError: `begin_step` was not called, or the parameter is not among those of this optimiser.

        Example:
            >>> import torch, mach_ext
            >>> weight = torch.nn.Parameter(torch.ones(2, 2))
            >>> optimizer = mach_ext.optim.SparseAdagrad([weight], lr=0.5)
            >>> optimizer.begin_step()
            >>> optimizer.step_rows(weight, 1, torch.tensor([[1.0, 0.0]]))
            >>> weight.data
            tensor([[1.0000, 1.0000],
                    [0.5000, 1.0000]])
        """
        self._check(parameter, gradient)
        at = slice(at, at + 1) if isinstance(at, int) else at

        def rows(t: Tensor) -> Tensor:
            return t[at].reshape(-1, t.shape[-1])  # This is a view, because t is contiguous.

        group = {**self._group(parameter), **options}
        self._update(parameter, group, rows, None, gradient.reshape(-1, parameter.shape[-1]))

    @memory_errors("make a smaller model")
    @torch.no_grad()
    def step_sparse_linear(
        self,
        parameter: Tensor,  # [D, M] or [R, D, M]
        r: int | slice | None,
        grad: Tensor,  # [N, R, M] of the repetitions of r
        values: Tensor,  # [nnz]
        order: _ops.FeatureOrder,
    ) -> None:
        """Make the part of a step that updates the weight of a `sparse_linear`, one row at a time.

        Only the rows of features that occur are updated.

        Args:
            parameter: The weight.
            r: The only repetition to update, a slice of repetitions, or None for all.
            grad: Gradient of the loss to the result of `sparse_linear`, before its activation.
            values: Non-zeros of the batch.
            order: `feature_order` of the batch.

        Raises:
            ValueError: `begin_step` was not called, or the parameter is not among those of this optimiser.

        Example:
            >>> import torch, mach_ext
            >>> from mach_ext._ops import feature_order
            >>> weight = torch.nn.Parameter(torch.zeros(3, 2))
            >>> values, indices, indptr = torch.tensor([1.0]), torch.tensor([1]), torch.tensor([0, 1])
            >>> optimizer = mach_ext.optim.SparseAdagrad([weight], lr=0.5)
            >>> optimizer.begin_step()
            >>> order = feature_order(indices, indptr, num_features=3)
            >>> optimizer.step_sparse_linear(weight, None, torch.ones(1, 1, 2), values, order)
            >>> weight.data[1]
            tensor([-0.5000, -0.5000])
        """
        self._check(parameter, grad)
        group, state = self._group(parameter), self.state[parameter]
        at = slice(None) if r is None else r if isinstance(r, slice) else slice(r, r + 1)
        weight, *moments = (
            t.view(-1, *t.shape[-2:])[at] for t in (parameter, *(state[name] for name in self._moments))
        )
        self._sparse_linear_op(weight, *moments, grad, values, order, *self._numbers(group, state))
        torch.autograd.graph.increment_version(parameter)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        self._check(parameter, gradient)
        if parameter.numel() == 0:
            return
        self._count(self._state(parameter, group))
        rows = None
        if gradient.is_sparse:
            rows, gradient = _unique_rows(gradient)
        else:
            gradient = gradient.reshape(-1, gradient.shape[-1] if gradient.dim() else 1)
        length = gradient.shape[1]
        self._update(parameter, group, lambda t: t.view(-1, length), rows, gradient)

    def _update(
        self,
        parameter: Tensor,
        group: dict[str, Any],
        view: Callable[[Tensor], Tensor],  # of the parameter and its moments, as [P, M]
        rows: Tensor | None,  # [U]; None: all P
        gradient: Tensor,  # [U, M]
    ) -> None:
        state = self.state[parameter]
        moments = (view(state[name]) for name in self._moments)
        self._row_op(view(parameter), rows, gradient, *moments, *self._numbers(group, state))
        # Autograd does not see what the raw op writes. With a new version, a backward pass through the older
        # values fails, in place of using wrong numbers.
        torch.autograd.graph.increment_version(parameter)

    def _check(self, parameter: Tensor, gradient: Tensor) -> None:
        if not parameter.is_contiguous():
            raise ValueError(
                f"{type(self).__name__}: parameters must be contiguous, got strides {parameter.stride()}"
            )
        if gradient.dtype != parameter.dtype or parameter.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{type(self).__name__}: parameters and gradients must both be float32 or float64, "
                f"got {parameter.dtype} and {gradient.dtype}"
            )

    def _group(self, parameter: Tensor) -> dict[str, Any]:
        """Return the group of a parameter whose step has begun."""
        if parameter in self.state:
            for group in self.param_groups:
                if any(parameter is other for other in group["params"]):
                    return group
        raise ValueError(
            f"{type(self).__name__}: call begin_step() first, and pass parameters of this optimiser only"
        )

    def _state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Return the state of a parameter, which is made at its first step."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state.update(self._first_state(parameter, group))
        return state

    def _first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _count(self, state: dict[str, Any]) -> None:
        """Count a step of a parameter."""

    def _numbers(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[float, ...]:
        raise NotImplementedError


def _row_length(parameter: Tensor, row_dims: int) -> int:
    """Return the number of elements behind the first `row_dims` dimensions."""
    length = 1
    for extent in parameter.shape[row_dims:]:
        length *= extent
    return length


def _unique_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ascending rows [U] and their gradients [U, M] of a sparse COO gradient.

    Gradients of this package come in this form. Several backward passes before a step repeat rows, and so
    does a weight that is used twice. Such rows are summed here. Otherwise they would be applied one after
    another.
    """
    gradient = _with_unique_rows(gradient)
    rows = _row_numbers(gradient)
    return rows, gradient._values().reshape(rows.shape[0], _row_length(gradient, gradient.sparse_dim()))


def _with_unique_rows(gradient: Tensor) -> Tensor:
    """Return a sparse COO gradient whose rows ascend: the gradient itself, if its rows do."""
    rows = _row_numbers(gradient)
    return gradient if bool((rows[1:] > rows[:-1]).all()) else gradient.coalesce()


def _row_numbers(gradient: Tensor) -> Tensor:  # [U]
    indices = gradient._indices()
    rows = indices[0]
    for dim in range(1, gradient.sparse_dim()):
        rows = rows * gradient.shape[dim] + indices[dim]
    return rows


def _check_options(optimizer: str, **bounds: tuple[float, float, float]) -> None:
    for name, (value, low, high) in bounds.items():
        if not low <= value < high:
            raise ValueError(f"{optimizer}: {name} must be in [{low}, {high}), got {value}")


class SparseAdam(_RowOptimizer):
    """Adam on the rows that occurred, as `torch.optim.SparseAdam`. Dense gradients are allowed as well.

    The moments of a row decay only when the row occurs. Bias correction counts the parameter's steps. The
    source is Kingma and Ba, ICLR 2015, in the "lazy" variant.

    Args:
        params: Parameters or parameter groups, float32 or float64, contiguous.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.

    Raises:
        ValueError: An option is out of range.

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

    _moments = ("exp_avg", "exp_avg_sq")
    _row_op = staticmethod(_ops.sparse_adam)
    _sparse_linear_op = staticmethod(_ops.sparse_linear_adam)

    @memory_errors("make a smaller model")
    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        inf = float("inf")
        _check_options(
            "SparseAdam", lr=(lr, 0, inf), eps=(eps, 0, inf), beta1=(betas[0], 0, 1), beta2=(betas[1], 0, 1)
        )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def _first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {
            "step": 0,
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def _count(self, state: dict[str, Any]) -> None:
        state["step"] += 1

    def _numbers(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        return group["lr"] * correction2**0.5 / correction1, beta1, beta2, group["eps"]


class SparseAdagrad(_RowOptimizer):
    """Adagrad on the rows that occurred, as `torch.optim.Adagrad`, for sparse and dense gradients.

    A feature that occurs rarely keeps a large learning rate, which suits sparse documents. The source is
    Duchi et al., JMLR 2011.

    Args:
        params: Parameters or parameter groups, float32 or float64, contiguous.
        lr: Learning rate.
        initial_accumulator_value: Start of the sum of squares.
        eps: Added to the root of the sum of squares.

    Raises:
        ValueError: An option is out of range.

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

    _moments = ("sum",)
    _row_op = staticmethod(_ops.sparse_adagrad)
    _sparse_linear_op = staticmethod(_ops.sparse_linear_adagrad)

    @memory_errors("make a smaller model")
    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        inf = float("inf")
        _check_options(
            "SparseAdagrad",
            lr=(lr, 0, inf),
            eps=(eps, 0, inf),
            initial_accumulator_value=(initial_accumulator_value, 0, inf),
        )
        super().__init__(
            params, {"lr": lr, "initial_accumulator_value": initial_accumulator_value, "eps": eps}
        )

    def _first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"sum": torch.full_like(parameter, group["initial_accumulator_value"])}

    def _numbers(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[float, ...]:
        return group["lr"], group["eps"]

"""Training steps of one rank among several, as the layouts of scale.py make them, from the package's parts.

A rehearsal has the sizes, the operators and the traffic of a layout, so its time is that of the layout. It is
no training: nothing keeps the weights of the ranks equal beyond what the step itself does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from mach_ext import _ops
from mach_ext.functional._products import Group

Shape = dict[str, Any]
Training = Callable[[Shape], tuple[Any, Any]]


def by_unit(exchanged: str, shape: Shape, training: Training) -> Callable[[], None]:
    """A rank has R/G classifiers and H/G columns of the encoder.

    `exchanged` says how the gradient to the hidden units is summed. It is "gathered" whole from each rank, or
    each rank receives its own "columns" alone.
    """
    G, rank = distributed.get_world_size(), distributed.get_rank()
    classifiers, batches = training({**shape, "R": shape["R"] // G, "D": 16, "nnz": 4})
    encoder, documents = training({**shape, "R": 1, "B": 2, "H": shape["H"] // G})
    of_classifiers, weight = classifiers.model_step, encoder.model.encoder_weight
    columns = slice(rank * weight.shape[1], (rank + 1) * weight.shape[1])

    def step() -> None:
        batch, labels = next(documents), next(batches)
        order = _ops.feature_order(batch.indices, batch.indptr, shape["D"])
        X = batch.values, batch.indices, batch.indptr
        with torch.no_grad():
            mine = _ops.sparse_linear(*X, weight.detach(), encoder.model.encoder_bias, True, order)
            hidden = torch.cat(gathered(mine), 1)
            for run in (classifiers, encoder):
                run.optimizer.begin_step()
            _, grad = of_classifiers._step_classifiers(
                hidden, (labels.label_indices.long(), labels.label_indptr)
            )
            if exchanged == "gathered":
                total = summed(gathered(grad))[:, columns]
            else:
                sent = torch.stack(grad.chunk(G, 1))
                received = torch.empty_like(sent)
                distributed.all_to_all_single(received, sent)
                total = summed(list(received))
            of_rows = torch.where(mine > 0, total, 0).contiguous()
            encoder.model_step._step_encoder(of_rows, batch.values, order, weight.detach())

    return step


def data_parallel(shape: Shape, training: Training) -> Callable[[], None]:
    """A rank has the whole model and N/G documents of each batch."""
    G = distributed.get_world_size()
    run, batches = training({**shape, "N": shape["N"] // G})
    model, optimizer = run.model, run.optimizer
    weight, encoder = model.bucket_weight, model.encoder_weight
    grad_weight = torch.empty_like(weight)
    logits = torch.empty(shape["N"] // G, 1, shape["B"])

    def step() -> None:
        batch = next(batches)
        order = _ops.feature_order(batch.indices, batch.indptr, shape["D"])
        X, labels = (
            (batch.values, batch.indices, batch.indptr),
            (batch.label_indices.long(), batch.label_indptr),
        )
        with torch.no_grad():
            hidden = _ops.sparse_linear(*X, encoder.detach(), model.encoder_bias, True, order)
            grad_hidden = torch.zeros_like(hidden)
            optimizer.begin_step()
            for r in range(shape["R"]):
                group = Group(hidden, weight.detach()[r : r + 1])
                group.logits(logits)
                _ops.bucket_bce(logits, None, model.hash.buckets[r : r + 1], *labels, 1e-3)
                group.add_grad_hidden(logits, grad_hidden)
                group.write_grad_weight(logits, grad_weight[r : r + 1])
            distributed.all_reduce(grad_weight)
            optimizer.step_rows(weight, slice(None), grad_weight)
            grad_hidden = torch.where(hidden > 0, grad_hidden, 0).unsqueeze(1)
            rows, grads = _ops.sparse_linear_grad_rows(grad_hidden, *X, shape["D"], order)
            optimizer.zero_grad()
            encoder.grad = rows_of_all(rows, grads[0], encoder.shape)
            optimizer.step()

    return step


def rows_of_all(rows: Tensor, grads: Tensor, shape: torch.Size) -> Tensor:
    """The sum of the ranks' gradients, of the rows that occur on any of them."""
    counts = gathered(torch.tensor([len(rows)]))
    most = int(max(counts))
    numbers = gathered(torch.nn.functional.pad(rows, (0, most - len(rows))))
    values = gathered(torch.nn.functional.pad(grads, (0, 0, 0, most - len(grads))))
    of_all = [(n[:c], v[:c]) for n, v, c in zip(numbers, values, map(int, counts), strict=True)]
    indices, gradients = (torch.cat(parts) for parts in zip(*of_all, strict=True))
    return torch.sparse_coo_tensor(indices[None], gradients, shape, check_invariants=False).coalesce()


def gathered(mine: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, mine)
    return parts


def summed(parts: list[Tensor]) -> Tensor:
    """The sum in the order of the ranks."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def by_unit_gathered(shape: Shape, training: Training) -> Callable[[], None]:
    return by_unit("gathered", shape, training)


def by_unit_columns(shape: Shape, training: Training) -> Callable[[], None]:
    return by_unit("columns", shape, training)


WORDNET = {"encoder": "shared", "N": 256, "D": 28_000, "nnz": 11, "R": 16, "B": 2048, "H": 256}
LONG = {"encoder": "shared", "N": 256, "D": 56_000, "nnz": 245, "R": 16, "B": 512, "H": 256}
REHEARSED = [
    (name, layout, shape)
    for shape in (WORDNET, LONG)
    for name, layout in (
        ("by unit, gathered", by_unit_gathered),
        ("by unit, columns", by_unit_columns),
        ("data parallel", data_parallel),
    )
]

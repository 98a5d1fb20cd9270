"""Models under DistributedDataParallel: a single label hash on all ranks, and losses through the wrapper."""

from __future__ import annotations

import hashlib
import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from mach_ext.hashing import LabelHash

# The wrappers of this process, and those for which the warning was already given.
_WRAPPERS: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_WARNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def is_distributed() -> bool:
    """Return whether torch.distributed is in use."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _note_wrapper(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Remember a wrapper when it is made, because a wrapped module does not know its wrapper."""
    if isinstance(module, DistributedDataParallel) and submodule is not None:
        _WRAPPERS.add(module)
        _check_hashes_of_ranks(submodule, module.process_group)


def _check_hashes_of_ranks(module: nn.Module, group: Any) -> None:
    """Refuse label hashes that differ between ranks, because all ranks get the weights of rank 0.

    Every rank wraps its module. So all ranks call this function, and all of them raise.
    """
    fingerprints = [part.fingerprint() for part in module.modules() if isinstance(part, LabelHash)]
    if not fingerprints:
        return
    digest = torch.tensor(list(hashlib.sha256("\n".join(fingerprints).encode()).digest()), dtype=torch.int32)
    device = next(module.parameters()).device
    bytes_and_opposites = torch.cat((digest, -digest)).to(device)
    torch.distributed.all_reduce(bytes_and_opposites, torch.distributed.ReduceOp.MAX, group=group)
    largest, smallest = bytes_and_opposites[: len(digest)], -bytes_and_opposites[len(digest) :]
    if not torch.equal(largest, smallest):
        raise ValueError(
            "DistributedDataParallel: the label hash must be the same on every rank, got "
            f"{', '.join(fingerprints)} on rank {torch.distributed.get_rank(group)} and another one on "
            "another rank. Pass the same seed to MACH or LabelHash on every rank"
        )


register_module_module_registration_hook(_note_wrapper)


def check_wrapper(op: str, module: nn.Module, call: str, sparse_grad: bool = False) -> None:
    """Warn, once, of a loss that bypasses the wrapper, which would average its gradients.

    Args:
        op: The method that computes the loss.
        module: Its module.
        call: How the loss is computed through the wrapper.
        sparse_grad: Whether gradients are sparse, which a wrapper refuses.
    """
    if not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())):
        return
    wrappers = [wrapper for wrapper in _WRAPPERS if any(module is part for part in wrapper.modules())]
    if not wrappers:
        return
    if getattr(DistributedDataParallel, "_active_ddp_module", None) in wrappers:
        if sparse_grad:
            raise ValueError("MACH: DistributedDataParallel averages dense gradients, got sparse_grad=True")
    elif not any(wrapper in _WARNED for wrapper in wrappers):
        _WARNED.update(wrappers)
        warnings.warn(
            f"{op}: the model is wrapped by DistributedDataParallel, but this call bypasses the "
            "wrapper. Gradients are not averaged and the replicas drift apart. Call the wrapper, which "
            f"returns the loss: {call}",
            stacklevel=4,
        )


def check_sharding(op: str, weight: torch.Tensor) -> None:
    """Refuse weights that `fully_shard` keeps in shards, because a method was called outside `forward`."""
    if is_distributed() and isinstance(weight, DTensor):
        method = op.partition(".")[2] or "topk"
        raise ValueError(
            f"{op}: the weights are sharded by fully_shard; call the module itself, or register this method: "
            f'torch.distributed.fsdp.register_fsdp_forward_method(head, "{method}")'
        )

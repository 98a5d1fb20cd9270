"""Models on several ranks: one label hash on all of them, losses through wrappers, and weights in shards."""

from __future__ import annotations

import hashlib
import sys
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from mach_ext.hashing import LabelHash

# The wrappers of this process, and those for which the warning was already given.
_WRAPPERS: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_WARNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# Modules in shards whose label hash was already compared between the ranks.
_SHARDED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def is_distributed() -> bool:
    """Return whether torch.distributed is in use."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_sharded(t: Any) -> bool:
    """Return whether a tensor is a DTensor, as `fully_shard` makes parameters.

    The module of this class takes two seconds to import. Before it is imported, there is no such tensor.
    """
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def sharded_like(values: Tensor, weight: Tensor) -> Tensor:
    """Return values that all ranks have, in shards if the weight is in shards."""
    if not is_sharded(weight):
        return values
    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    distribute: Any = sys.modules["torch.distributed.tensor"].distribute_tensor
    sharded: Tensor = distribute(values, mesh, placements, src_data_rank=None)
    return sharded


def _note_wrapper(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Remember a wrapper when it is made, because a wrapped module does not know its wrapper."""
    if submodule is None:
        return
    if isinstance(module, DistributedDataParallel):
        _WRAPPERS.add(module)
        parameter = next(submodule.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        _check_hashes_of_ranks("DistributedDataParallel", submodule, device, [module.process_group])
    elif type(module).__name__ == "FullyShardedDataParallel":  # To import the class takes time.
        wrapper: Any = module
        groups = [wrapper.process_group]
        _check_hashes_of_ranks("FullyShardedDataParallel", submodule, wrapper.compute_device, groups)


def check_hash_of_shards(module: nn.Module, weight: Any) -> None:
    """Refuse label hashes that differ between ranks when `fully_shard` shards a weight of the module.

    All ranks of the mesh shard it at the same time. The check is made once.
    """
    if module in _SHARDED:
        return
    _SHARDED.add(module)
    mesh = weight.device_mesh
    groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]
    _check_hashes_of_ranks("fully_shard", module, torch.device(mesh.device_type), groups)


def _check_hashes_of_ranks(op: str, module: nn.Module, device: torch.device, groups: list[Any]) -> None:
    """Refuse label hashes that differ between ranks, because all ranks share their weights.

    Every rank wraps or shards its module. So all ranks call this function, and all of them raise.
    """
    fingerprints = [part.fingerprint() for part in module.modules() if isinstance(part, LabelHash)]
    if not fingerprints:
        return
    digest = hashlib.sha256("\n".join(fingerprints).encode()).digest()
    # The largest of each byte, and of its opposite, over all ranks. Of equal bytes they are opposites.
    extremes = torch.tensor([*digest, *(-byte for byte in digest)], dtype=torch.int32, device=device)
    for group in groups:
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX, group=group)
    if type(extremes) is not Tensor:  # A fake tensor has no contents.
        return
    largest, smallest = extremes[: len(digest)], -extremes[len(digest) :]
    if not torch.equal(largest, smallest):
        raise ValueError(
            f"{op}: the label hash must be the same on every rank, got "
            f"{', '.join(fingerprints)} on rank {torch.distributed.get_rank()} and another one on "
            "another rank. Pass the same seed to MACH, MACHHead or LabelHash on every rank"
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


def check_sharding(op: str, module: nn.Module, weight: Tensor) -> None:
    """Refuse weights in shards, because a method was called outside the `forward` that collects them."""
    if not is_distributed() or not (is_sharded(weight) or weight.dim() == 1):
        return
    if not is_sharded(weight):
        raise ValueError(
            f"{op}: the weights are sharded by FullyShardedDataParallel; call the wrapper, whose module may "
            "call this method in its forward"
        )
    name, _, method = op.partition(".")
    registered = f'register_fsdp_forward_method(head, "{method}") of torch.distributed.fsdp'
    if not hasattr(module, "set_reshard_after_forward"):  # a method of each unit
        remedy = "call the module that is sharded, or shard the head on its own first: fully_shard(head)"
        remedy += f", then {registered}" if method else ""
    elif method:
        remedy = f"call the module itself, or register the method: {registered}"
    else:
        remedy = f"call the {name} itself in place of its forward"
    raise ValueError(f"{op}: the weights are sharded by fully_shard; {remedy}")


def check_whole(op: str, weights: Iterable[Tensor]) -> None:
    """Refuse weights in shards, of which each rank has a part."""
    if any(map(is_sharded, weights)):
        raise ValueError(
            f"{op}: the weights are sharded by fully_shard; gather them first: get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict, "
            "whose result a model without shards loads"
        )

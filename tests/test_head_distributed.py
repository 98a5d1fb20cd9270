"""MACHHead on two ranks: DistributedDataParallel, fully_shard, FSDP1, states of shards, mixed precision."""

import contextlib
import os
import re
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from head_cases import build, csr_of
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

WIDTH, H, L, R, B, N = 4, 6, 20, 4, 8, 12
SIZES = {"in_features": H, "num_labels": L, "num_repetitions": R, "num_buckets": B}
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Network(nn.Module):
    """An encoder and a head. Training goes through `forward`, which calls the head or its `loss`."""

    def __init__(self, way="forward", **options):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, H), nn.Tanh())
        self.head = build(**SIZES, **options)
        self.way = way

    def forward(self, x, *labels):
        hidden = self.encoder(x)
        if self.way == "checkpoint":
            return checkpoint(self.head, hidden, labels, use_reentrant=False)
        return self.head(hidden, labels) if self.way == "forward" else self.head.loss(hidden, labels)


def batch(step, rank=None):
    """Documents and labels, of one rank every second."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(N, WIDTH, generator=generator)
    lists = [torch.randperm(L, generator=generator)[: n % 4].tolist() for n in range(N)]
    rows = slice(None) if rank is None else slice(rank, None, 2)
    return x[rows], *csr_of(lists[rows])


def whole(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t.detach().clone()


def weights(module):
    """Whole parameters by the names that a network without wrappers has."""
    return {
        name.removeprefix("module.").replace("_fsdp_wrapped_module.", ""): whole(parameter).detach()
        for name, parameter in module.named_parameters()
    }


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.02)


def train(module, rank=None, make=adamw):
    optimizer = make(module.parameters())
    for step in range(6):
        loss = module(*batch(step, rank))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
        assert whole(norm) > 0
    return module


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


# ------------------------------------------------------------------------------------------- two processes


def on_two_ranks(tmp_path, function, *arguments):
    """What a function of (rank, folder) returns on each of two ranks."""
    start = torch.multiprocessing.start_processes
    start(_rank, (function, str(tmp_path), *arguments), nprocs=2, start_method="fork")
    return [torch.load(tmp_path / f"result {rank}") for rank in range(2)]


def _rank(rank, function, folder, *arguments):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(function(rank, folder, *arguments), f"{folder}/result {rank}")
    with contextlib.suppress(RuntimeError):  # the other rank may have ended
        torch.distributed.barrier()
    os._exit(0)  # Where PyTorch ends a group, it can wait for a thread that needs the GIL.


def message_of(call):
    """The words of what a call raises, or an empty string."""
    try:
        call()
    except (ValueError, TypeError, RuntimeError, dcp.CheckpointException) as error:
        return f"{type(error).__name__}: {error}"
    return ""


# ------------------------------------------------------------------------------------------------ training


def sharded(way="forward", head=True, **options):
    """A network in shards. Its head is a unit of its own, or part of the whole."""
    network = Network(way)
    if head:
        fully_shard(network.head)
    return fully_shard(network, **options)


def with_registered_loss():
    network = sharded("loss")
    register_fsdp_forward_method(network.head, "loss")
    return network


def replicas_of_shards(module):
    """Shards of one rank, of which each rank has a replica."""
    return fully_shard(module, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))


def flat(**options):
    return FullyShardedDataParallel(Network("loss"), device_id=torch.device("cpu"), **options)


WRAPPED = {
    "DDP": lambda: DistributedDataParallel(Network("loss")),
    "DDP, forward of the head": lambda: DistributedDataParallel(Network()),
    "DDP, static_graph": lambda: DistributedDataParallel(Network("loss"), static_graph=True),
    "DDP, find_unused_parameters": lambda: DistributedDataParallel(
        Network("loss"), find_unused_parameters=True
    ),
    "DDP, gradient_as_bucket_view": lambda: DistributedDataParallel(
        Network("loss"), gradient_as_bucket_view=True
    ),
    "DDP, checkpointed head": lambda: DistributedDataParallel(Network("checkpoint")),
    "fully_shard": lambda: sharded("loss", head=False),
    "fully_shard of the head": sharded,
    "fully_shard of the head, registered loss": with_registered_loss,
    "fully_shard, checkpointed head": lambda: sharded("checkpoint"),
    "fully_shard, weights kept after forward": lambda: sharded(reshard_after_forward=False),
    "fully_shard, replicas of shards": lambda: replicas_of_shards(Network("loss")),
    "FSDP1": flat,
    "FSDP1, original parameters": lambda: flat(use_orig_params=True),
}


def train_each(rank, folder):
    found = {}
    for name, make in WRAPPED.items():
        module = train(make(), rank)
        if name.startswith("FSDP1"):
            with FullyShardedDataParallel.summon_full_params(module):
                found[name] = weights(module)
        else:
            found[name] = weights(module)
    return found


def test_two_ranks_train_as_one_process(tmp_path, say):
    """Each on half of every batch. The ranks end with the same bits."""
    ranks = on_two_ranks(tmp_path, train_each)
    alone = weights(train(Network()))
    for name in WRAPPED:
        first, second = (found[name] for found in ranks)
        assert largest_difference(first, second) == 0, name
        distance = largest_difference(first, alone)
        assert distance < 2e-5, name
        say(f"{name}: weights after 6 steps of AdamW at most {distance:.1e} from those of one process")


def accumulate(rank, folder):
    """Gradients of two micro-batches, of which the first are not exchanged."""
    replicas, shards = DistributedDataParallel(Network()), sharded()
    with replicas.no_sync():
        (replicas(*batch(0, rank)) / 2).backward()
    (replicas(*batch(1, rank)) / 2).backward()
    shards.set_requires_gradient_sync(False)
    (shards(*batch(0, rank)) / 2).backward()
    shards.set_requires_gradient_sync(True)
    (shards(*batch(1, rank)) / 2).backward()
    return [[whole(parameter.grad) for parameter in each.parameters()] for each in (replicas, shards)]


def test_accumulated_gradients(tmp_path):
    network = Network()
    for step in range(2):
        (network(*batch(step)) / 2).backward()
    for rank in on_two_ranks(tmp_path, accumulate):
        for found in rank:
            torch.testing.assert_close(found, [parameter.grad for parameter in network.parameters()])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.2)


def mix(rank, folder):
    """bfloat16 for all but the head, whose unit stays in float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    network = sharded(mp_policy=policy)
    dtypes = []
    network.head.register_forward_pre_hook(
        lambda module, inputs: dtypes.append((inputs[0].dtype, module.bucket_weight.dtype))
    )
    found = weights(train(network, rank, sgd))
    narrow = fully_shard(Network(), mp_policy=policy)
    return found, dtypes, message_of(lambda: narrow(*batch(0, rank)))


def test_mixed_precision_leaves_the_head_in_float32(tmp_path, say):
    alone = weights(train(Network(), make=sgd))
    for found, dtypes, message in on_two_ranks(tmp_path, mix):
        assert {*dtypes} == {(torch.bfloat16, torch.float32)}
        distance = largest_difference(found, alone)
        assert 0 < distance < 2e-3
        assert message == (
            "TypeError: bucket_bce: weight must be float32 or float64 to be trained (keep float32 master "
            "weights), got bfloat16"
        )
    say(f"encoder in bfloat16, head in float32: weights at most {distance:.1e} from those in float32")


# ------------------------------------------------------------------------------------------------- methods


LABELS = torch.tensor([3, 0, 19])
METHODS = {
    "loss": lambda head, h: head.loss(h, [[1], [2, 3], []]),
    "label_logits": lambda head, h: head.label_logits(h, LABELS),
    "label_scores": lambda head, h: head.label_scores(h, LABELS, "model"),
    "topk": lambda head, h: head.topk(h, 5)[1],
    "topk in bfloat16": lambda head, h: head.topk(h, 5, precision="bfloat16")[1],
}


def call_each(rank, folder):
    """Each method of a head that is a unit, registered. What is said if it is not, or is not registered."""
    h = torch.ones(3, H).cumsum(0)
    plain, found, said = Network().head, {}, {}
    for name, call in METHODS.items():
        with torch.no_grad():
            unit = sharded().head
            said[name] = message_of(lambda: call(unit, h))  # noqa: B023
            register_fsdp_forward_method(unit, name.partition(" ")[0])
            found[name] = torch.equal(call(unit, h), call(plain, h))
            part = sharded(head=False).head
            said[f"part, {name}"] = message_of(lambda: call(part, h))  # noqa: B023
    said["forward"] = message_of(lambda: unit.forward(h))
    one = flat(use_orig_params=True).module.head
    said["FSDP1"] = message_of(lambda: one.loss(h, [[1], [2], [3]]))
    return found, said


def test_methods_of_a_sharded_head(tmp_path):
    for found, said in on_two_ranks(tmp_path, call_each):
        assert found == dict.fromkeys(METHODS, True)
        assert said.pop("topk") == said.pop("topk in bfloat16") == ""  # They call the head.
        fully = "the weights are sharded by fully_shard;"
        own = "call the module that is sharded, or shard the head on its own first: fully_shard(head)"
        for name in METHODS:
            method = {"label_scores": "label_logits"}.get(name, name.partition(" ")[0])
            registered = f'register_fsdp_forward_method(head, "{method}") of torch.distributed.fsdp'
            op, then = f"MACHHead.{method}", f", then {registered}"
            if name == "topk":
                op, then = "MACHHead", ""
            assert said.pop(f"part, {name}") == f"ValueError: {op}: {fully} {own}{then}"
            if method != "topk":
                remedy = f"call the module itself, or register the method: {registered}"
                assert said.pop(name) == f"ValueError: {op}: {fully} {remedy}"
        in_place = "call the MACHHead itself in place of its forward"
        assert said.pop("forward") == f"ValueError: MACHHead: {fully} {in_place}"
        assert said == {
            "FSDP1": "ValueError: MACHHead.loss: the weights are sharded by FullyShardedDataParallel; call "
            "the wrapper, whose module may call this method in its forward"
        }


def change(rank, folder):
    """Adjust the logits of shards twice, draw the weights of shards, and save shards."""
    shards, plain = sharded().head, Network().head
    for head in (shards, plain):
        for tau in (0.5, 0.25):
            head.adjust_logits(range(L), tau)
    assert not hasattr(shards.logit_adjustment, "full_tensor")
    adjusted = torch.equal(whole(shards.bucket_bias), plain.bucket_bias)
    with torch.device("meta"):
        later = Network()
    fully_shard(later.head)
    fully_shard(later).to_empty(device="cpu")
    later.head.reset_parameters()
    drawn = [
        torch.equal(*map(whole, pair))
        for pair in zip(later.head.parameters(), Network().head.parameters(), strict=True)
    ]
    return adjusted, drawn, message_of(lambda: shards.save(f"{folder}/model"))


def test_adjusting_drawing_and_saving_shards(tmp_path):
    for adjusted, drawn, message in on_two_ranks(tmp_path, change):
        assert adjusted
        assert drawn == [True, True]
        assert message.startswith(
            "ValueError: MACHHead.save: the weights are sharded by fully_shard; gather them first: "
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
        )
    assert not (tmp_path / "model").exists()


def bypass(rank, folder):
    """A loss of a head that goes past its wrapper."""
    ddp = DistributedDataParallel(Network())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ddp.module.head.loss(torch.ones(2, H), [[1], [2]])
        ddp.module.head(torch.ones(2, H), [[1], [2]])
        with torch.no_grad():
            ddp.module.head.topk(torch.ones(2, H))
    return [str(warning.message) for warning in caught]


def test_a_loss_past_the_wrapper_is_warned_of_once(tmp_path):
    for (message,) in on_two_ranks(tmp_path, bypass):
        assert message.startswith(
            "MACHHead.loss: the model is wrapped by DistributedDataParallel, but this call bypasses the "
        )


# -------------------------------------------------------------------------------------------------- hashes


OTHER_HASHES = {
    "DistributedDataParallel": lambda seed: DistributedDataParallel(Network(seed=seed)),
    "FullyShardedDataParallel": lambda seed: FullyShardedDataParallel(
        Network(seed=seed), device_id=torch.device("cpu")
    ),
    "fully_shard": lambda seed: fully_shard(Network(seed=seed)),
    "fully_shard of the head": lambda seed: fully_shard(build(**SIZES, seed=seed)),
    "fully_shard on the meta device": lambda seed: fully_shard(build(**SIZES, seed=seed, device="meta")),
    "fully_shard of replicas": lambda seed: replicas_of_shards(build(**SIZES, seed=seed)),
}


def wrap_each(rank, folder):
    for make in OTHER_HASHES.values():
        make(7)
    return {name: message_of(lambda: make(rank)) for name, make in OTHER_HASHES.items()}  # noqa: B023


def test_ranks_of_different_hashes_are_refused(tmp_path):
    for rank, said in enumerate(on_two_ranks(tmp_path, wrap_each)):
        for name, message in said.items():
            op = name.partition(" ")[0]
            assert message == (
                f"ValueError: {op}: the label hash must be the same on every rank, got L={L} B={B} "
                f"R={R} seed={rank} on rank {rank} and another one on another rank. Pass the same seed to "
                "MACH, MACHHead or LabelHash on every rank"
            )


# -------------------------------------------------------------------------------------------------- states


def state_of(network, factor=1.0):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(factor)
    return network.state_dict()


def move_states(rank, folder):
    """States between plain and sharded networks, whole and in shards."""
    found = {}
    source = Network()
    state_of(source, 2.0)
    source.head.logit_adjustment.fill_(0.25)
    fully_shard(source.head)
    fully_shard(source)
    gathered = get_model_state_dict(source, options=FULL)
    if rank == 0:
        plain = Network()
        plain.load_state_dict(gathered)
        found["gathered"] = [*plain.state_dict().values()]
    target = sharded()
    set_model_state_dict(target, found_state(2.0), options=FULL)
    found["set"] = values_of(target)
    target = sharded()
    broadcast = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(target, found_state(2.0) if rank == 0 else {}, options=broadcast)
    found["broadcast"] = values_of(target)
    dcp.save({"model": get_model_state_dict(source)}, checkpoint_id=f"{folder}/dcp")
    for seed in (0, 9, 123):
        target = Network(seed=seed)
        fully_shard(target.head)
        fully_shard(target)
        state = {"model": get_model_state_dict(target)}

        def load(state=state, target=target):
            dcp.load(state, checkpoint_id=f"{folder}/dcp")
            set_model_state_dict(target, state["model"])

        found[f"dcp {seed}"] = message_of(load)
        if seed == 0:
            found["dcp"] = values_of(target)
    state = get_model_state_dict(source)
    del state["head.logit_adjustment"]
    target = sharded()
    target.head.logit_adjustment.fill_(1)
    target.load_state_dict(state)
    found["without an adjustment"] = target.head.logit_adjustment
    found["another hash"] = message_of(
        lambda: set_model_state_dict(sharded(), Network(seed=5).state_dict(), options=FULL)
    )
    return found


def found_state(factor):
    network = Network()
    state_of(network, factor)
    network.head.logit_adjustment.fill_(0.25)
    return network.state_dict()


def values_of(module):
    return [whole(value) for value in module.state_dict().values()]


def test_states_of_shards(tmp_path):
    ranks = on_two_ranks(tmp_path, move_states)
    expected = [*found_state(2.0).values()]
    for rank, found in enumerate(ranks):
        for name in ("set", "broadcast", "dcp", *(("gathered",) if rank == 0 else ())):
            assert all(map(torch.equal, found[name], expected)), name
        assert found["dcp 0"] == ""
        hashes = "the weights are of label hash L=20 B=8 R=4 seed={}, this model has L=20 B=8 R=4 seed={}"
        assert hashes.format(0, 9) in found["dcp 9"]
        assert re.search(r"Size mismatch .* for model\.head\.hash\._extra_state", found["dcp 123"])
        assert hashes.format(5, 0) in found["another hash"]
        assert torch.equal(found["without an adjustment"], torch.zeros(R, B))


def resume(rank, folder):
    """Three steps, a checkpoint with the optimiser, and three more in another network."""
    first, second = sharded(), sharded()
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.02) for each in (first, second)]

    def step(network, optimizer, number):
        optimizer.zero_grad()
        network(*batch(number, rank)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()

    for number in range(3):
        step(first, optimizers[0], number)
    model, optimizer = get_state_dict(first, optimizers[0])
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=f"{folder}/dcp")
    model, optimizer = get_state_dict(second, optimizers[1])
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=f"{folder}/dcp")
    set_state_dict(second, optimizers[1], model_state_dict=model, optim_state_dict=optimizer)
    for number in range(3, 6):
        step(first, optimizers[0], number)
        step(second, optimizers[1], number)
    return [weights(each) for each in (first, second)]


def test_training_goes_on_from_a_checkpoint_of_shards(tmp_path):
    for first, second in on_two_ranks(tmp_path, resume):
        assert largest_difference(first, second) == 0
        assert largest_difference(first, weights(train(Network()))) < 2e-5

"""The repetitions of a head shared among ranks: loss, gradients, training and decode of one process."""

import pytest
import torch
from distributed_cases import Threads, on_processes
from head_cases import build, csr_of, dense_loss, hidden_of, random_labels
from helpers import TOLERANCE, bitwise_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

import mach_ext
from mach_ext.distributed import Ranks
from mach_ext.distributed.head import HeadPart
from mach_ext.merges import MODEL_MERGES

WIDTH, H, L, R, B, N = 4, 6, 20, 4, 8, 12
SIZES = {"in_features": H, "num_labels": L, "num_repetitions": R, "num_buckets": B}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*label pairs? share:mach_ext.CollisionWarning"),
]


# ---------------------------------------------------------------------------------------- loss and gradients


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 4), more=st.integers(0, 3), per_repetition=st.booleans(), seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float32, torch.float64]), reduction=st.sampled_from(["mean", "sum"]),
    leading=st.sampled_from([(5,), (2, 3)]),
)  # fmt: skip
def test_loss_and_gradients_are_those_of_the_whole_head(
    size, more, per_repetition, seed, dtype, reduction, leading
):
    whole = build(
        in_features=H, num_repetitions=size + more, per_repetition=per_repetition, seed=seed, dtype=dtype
    )
    count = torch.Size(leading).numel()
    lists = random_labels(torch.Generator().manual_seed(seed), count)

    def on_a_rank(ranks):
        part = HeadPart(whole, ranks)
        hidden = hidden_of(whole, *leading, seed=seed)
        loss = part(hidden, csr_of(lists), reduction=reduction)
        (3 * loss).backward()
        return part, loss.detach(), hidden.grad

    each = Threads(size).on_each(on_a_rank)
    leaves = [hidden_of(whole, *leading, seed=seed), whole.bucket_weight, whole.bucket_bias]
    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = dense_loss(whole, *leaves, lists, reduction)
    (3 * expected).backward()
    for part, loss, grad in each:
        own = slice(part.repetitions.start, part.repetitions.stop)
        assert bitwise_equal(loss, each[0][1])
        assert bitwise_equal(grad, each[0][2])
        found = [loss, grad, part.head.bucket_weight.grad, part.head.bucket_bias.grad]
        wanted = [expected, leaves[0].grad, leaves[1].grad[own], leaves[2].grad[own]]
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double(), b.detach(), **TOLERANCE[dtype])


def test_gradients_of_half_precision_are_added_in_that_of_the_weights():
    """As in one process, they are rounded once."""
    whole = build(**SIZES)
    lists = random_labels(torch.Generator().manual_seed(0), N)
    hidden = hidden_of(whole, N, dtype=torch.bfloat16)
    whole.loss(hidden, lists).backward()

    def on_a_rank(ranks):
        own = hidden_of(whole, N, dtype=torch.bfloat16)
        HeadPart(whole, ranks).loss(own, lists).backward()
        return own.grad

    for grad in Threads(4).on_each(on_a_rank):
        assert grad.dtype == torch.bfloat16
        assert (grad != hidden.grad).float().mean() < 0.05  # sums in another order, rounded to 8 bits


def test_frozen_encoders_and_validation():
    whole = build(**SIZES)
    hidden, lists = hidden_of(whole, N).detach(), random_labels(torch.Generator().manual_seed(0), N)

    def on_a_rank(ranks):
        part = HeadPart(whole, ranks)
        part.loss(hidden, lists).backward()
        with torch.no_grad():
            return part.loss(hidden, lists), part.head.bucket_bias.grad

    for loss, grad in Threads(3).on_each(on_a_rank):
        torch.testing.assert_close(loss, whole.loss(hidden, lists).detach())
        assert grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------------- decoding


def exact(head):
    """Gives a head weights whose logits are exact, so that no product rounds in another way."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            drawn = torch.randint(-8, 9, parameter.shape, generator=generator)
            parameter.copy_(drawn / 4)
    return head


@pytest.mark.parametrize("merge", MODEL_MERGES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_topk_is_that_of_the_whole_head(merge, size):
    for options in ({}, {"per_repetition": True}, {"num_labels": 2}):
        whole = exact(build(**{**SIZES, **options}, merge=merge))
        hidden = hidden_of(whole, 3, 4).detach().mul(4).round()
        for k in (0, 1, None, whole.num_labels):
            expected = whole.topk(hidden, k)
            for found in Threads(size).on_each(
                lambda ranks, w=whole, h=hidden, k=k: HeadPart(w, ranks).topk(h, k)
            ):
                assert all(map(bitwise_equal, found, expected))
                assert not found[0].requires_grad


# ------------------------------------------------------------------------------------- whole heads and states


@pytest.mark.parametrize("given", [False, True])
def test_gathered_heads_are_whole(given, tmp_path):
    table = torch.arange(R * L).reshape(R, L) % B
    hash = mach_ext.LabelHash.from_buckets(table, B) if given else None
    whole = build(**SIZES, hash=hash, merge="min_prob", seed=5)
    whole.set_logit_adjustment(torch.arange(R * B).reshape(R, B) / 8)
    whole.attachments["notes.txt"] = b"notes"

    def on_a_rank(ranks):
        return HeadPart(whole, ranks).gather()

    for head in Threads(3).on_each(on_a_rank):
        assert head.configuration() == whole.configuration()
        assert head.hash == whole.hash
        assert head.hash.seed == whole.hash.seed
        assert head.attachments == whole.attachments
        for name, tensor in whole.state_dict().items():
            assert bitwise_equal(head.state_dict()[name], tensor)
    head.save(tmp_path / "head")
    assert mach_ext.load(tmp_path / "head").bucket_weight.equal(whole.bucket_weight)


def test_parts_are_copies_of_their_own_memory():
    whole = build(**SIZES)
    part = HeadPart(whole)
    part.head.bucket_weight.data.zero_()
    assert whole.bucket_weight.abs().sum() > 0
    assert part.extra_repr() == "rank=0 of 1, repetitions=range(0, 4) of 4, labels=range(0, 20)"
    assert part.head.hash == whole.hash
    (first, second) = Threads(2).on_each(lambda ranks: HeadPart(whole, ranks))
    assert [first.head.num_repetitions, second.head.num_repetitions] == [2, 2]
    assert first.head.bucket_weight.untyped_storage().nbytes() == first.head.bucket_weight.nbytes


def test_a_state_fits_the_same_part():
    whole = build(**SIZES)
    parts = Threads(2).on_each(lambda ranks: HeadPart(whole, ranks))
    again = Threads(2).on_each(lambda ranks: HeadPart(build(**SIZES), ranks))
    state = parts[1].state_dict()
    state["head.bucket_bias"] = state["head.bucket_bias"] + 1
    again[1].load_state_dict(state)
    assert again[1].head.bucket_bias.equal(parts[1].head.bucket_bias + 1)
    with pytest.raises(RuntimeError, match="the weights are of label hash"):
        again[0].load_state_dict(state)


# ------------------------------------------------------------------------------------------ wrong arguments


class Five:
    rank, size = 0, 5


WRONG = {
    "head": (lambda: HeadPart(nn.Linear(2, 2)), "TypeError: HeadPart: head must be a mach_ext.MACHHead, got"),
    "ranks": (
        lambda: HeadPart(build(**SIZES), Five()),
        "ValueError: HeadPart: R=4 must be at least the number of ranks, got 5",
    ),
    "meta": (
        lambda: HeadPart(build(**SIZES, device="meta")),
        "ValueError: HeadPart: the head must have weights, got one on the meta device",
    ),
    "hidden": (
        lambda: HeadPart(build(**SIZES)).loss([1.0], [[1]]),
        "TypeError: MACHHead.loss: hidden must be a torch.Tensor, got list",
    ),
    "hidden units of repetitions": (
        lambda: HeadPart(build(**SIZES, per_repetition=True)).loss(torch.zeros(2, 3, H), [[1], []]),
        "ValueError: HeadPart: hidden must be [..., R=4, H=6], got [2, 3, 6]",
    ),
    "width": (
        lambda: HeadPart(build(**SIZES)).loss(torch.zeros(2, 3), [[1], []]),
        "ValueError: MACHHead.loss: hidden must be [..., H=6], got [2, 3]",
    ),
    "k": (
        lambda: HeadPart(build(**SIZES)).topk(torch.zeros(2, H), 21),
        "ValueError: HeadPart.topk: k must be in 0 ... L=20, got 21",
    ),
    "reduction": (
        lambda: HeadPart(build(**SIZES))(torch.zeros(2, H), [[1], []], reduction="max"),
        "ValueError: MACHHead.loss: reduction must be one of mean, sum, got 'max'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    call, message = WRONG[name]
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    assert f"{type(raised.value).__name__}: {raised.value}".startswith(message)


# ------------------------------------------------------------------------------------------------- processes


class Network(nn.Module):
    """An encoder and a head, or its part of a rank."""

    def __init__(self, ranks=None):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, H), nn.Tanh())
        self.head = build(**SIZES)
        if ranks is not None:
            self.head = HeadPart(self.head, ranks)

    def forward(self, x, *labels):
        return self.head(self.encoder(x), labels)


def batch(step, rank=None):
    """Documents and labels, of one rank every second."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(N, WIDTH, generator=generator)
    lists = [torch.randperm(L, generator=generator)[: n % 4].tolist() for n in range(N)]
    rows = slice(None) if rank is None else slice(rank, None, 2)
    return x[rows], *csr_of(lists[rows])


def train(module, rank=None):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)
    for step in range(6):
        optimizer.zero_grad()
        module(*batch(step, rank)).backward()
        optimizer.step()
    return module


def whole(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t.detach().clone()


def weights(module):
    found = {
        name.removeprefix("module."): whole(parameter).detach()
        for name, parameter in module.named_parameters()
    }
    return {name.replace("head.head.", "head."): tensor for name, tensor in found.items()}


def alone():
    network = train(Network())
    return weights(network), network.head.topk(network.encoder(batch(9)[0]), 5)


def difference(found, expected, part):
    """The largest difference of the weights that one of two parts has."""
    own = slice(2 * part, 2 * part + 2)
    assert found.keys() == expected.keys()
    cut = {name: tensor[own] if name.startswith("head.") else tensor for name, tensor in expected.items()}
    return max(float((found[name] - cut[name]).abs().max()) for name in found)


def train_part(rank, folder):
    """The same documents on both ranks, which share the head."""
    network = train(Network(Ranks.of_group()))
    with torch.no_grad():
        found = network.head.topk(network.encoder(batch(9)[0]), 5)
    gathered = network.head.gather()
    return weights(network), found, gathered.state_dict()


def test_two_ranks_train_as_one_process(tmp_path, say):
    ranks = on_processes(tmp_path, 2, train_part)
    expected, (scores, labels) = alone()
    distance = max(difference(found, expected, rank) for rank, (found, *_) in enumerate(ranks))
    assert distance < 2e-5
    for found, best, gathered in ranks:
        torch.testing.assert_close(best[0], scores.detach(), rtol=1e-4, atol=1e-4)
        assert (best[1] == labels).float().mean() > 0.9  # near ties may change places
        assert all(map(bitwise_equal, best, ranks[0][1]))
        torch.testing.assert_close(
            gathered["bucket_weight"], expected["head.bucket_weight"], atol=2e-5, rtol=0
        )
        assert all(bitwise_equal(found[name], ranks[0][0][name]) for name in found if "encoder" in name)
    say(f"a head shared by two ranks: weights after 6 steps of AdamW at most {distance:.1e} from one process")


def three_ranks(rank, folder):
    """Shares of different sizes, by one gather of padded parts."""
    ranks = Ranks.of_group()
    sizes = [1, 3, 0]
    mine = torch.full((2, sizes[rank]), float(rank))
    part = HeadPart(build(**SIZES), ranks)
    hidden = hidden_of(part.head, N)
    loss = part.loss(hidden, random_labels(torch.Generator().manual_seed(0), N))
    loss.backward()
    return ranks.gather(mine, 1, sizes), loss.detach(), hidden.grad


def test_three_ranks_with_shares_of_different_sizes(tmp_path):
    head = build(**SIZES)
    hidden = hidden_of(head, N)
    loss = head.loss(hidden, random_labels(torch.Generator().manual_seed(0), N))
    loss.backward()
    for gathered, found, grad in on_processes(tmp_path, 3, three_ranks):
        assert gathered.tolist() == [[0.0, 1.0, 1.0, 1.0]] * 2
        torch.testing.assert_close(found, loss.detach())
        torch.testing.assert_close(grad, hidden.grad)


def sharded(network, mesh):
    fully_shard(network.head, mesh=mesh)
    register_fsdp_forward_method(network.head, "topk")
    return fully_shard(network, mesh=mesh)


WRAPPED = {
    "DDP": lambda network, mesh: DistributedDataParallel(network, process_group=mesh.get_group()),
    "fully_shard": sharded,
}


def train_on_a_mesh(rank, folder, way):
    """Two ranks share a head. Two such pairs take different documents."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "head"))
    network = Network(Ranks.of_group(mesh.get_group("head")))
    wrapped = train(WRAPPED[way](network, mesh["data"]), mesh["data"].get_local_rank())
    x = batch(9)[0]
    with torch.no_grad():
        hidden = x @ whole(network.encoder[0].weight).T + whole(network.encoder[0].bias)
        found = network.head.topk(hidden.tanh(), 5)
    return weights(wrapped), found, mesh["head"].get_local_rank()


@pytest.mark.parametrize("way", WRAPPED)
def test_a_mesh_of_four_ranks_trains_as_one_process(tmp_path, say, way):
    ranks = on_processes(tmp_path, 4, train_on_a_mesh, way)
    expected, (scores, _) = alone()
    distance = max(difference(found, expected, part) for found, _, part in ranks)
    assert distance < 2e-5
    for found, best, _ in ranks:
        torch.testing.assert_close(best[0], scores.detach(), rtol=1e-4, atol=1e-4)
        assert all(bitwise_equal(found[name], ranks[0][0][name]) for name in found if "encoder" in name)
    say(f"{way} of parts of a head: weights after 6 steps at most {distance:.1e} from one process")


def wrap_all(rank, folder):
    """All ranks of different repetitions in one wrapper, whose weights are not the same."""
    try:
        DistributedDataParallel(Network(Ranks.of_group()))
    except ValueError as error:
        return str(error)
    return ""


def test_a_wrapper_over_different_repetitions_is_refused(tmp_path):
    for message in on_processes(tmp_path, 2, wrap_all):
        assert message.startswith("DistributedDataParallel: the label hash must be the same on every rank")

"""What a head is to its owner: copies, state dicts, devices, parametrizations, and the names of a model."""

import copy
import io
import pickle

import pytest
import torch
from head_cases import SIZES, B, H, L, R, all_equal, build, hidden_of
from torch import nn
from torch.nn.utils import parametrize, prune

import mach_ext

LISTS = [[1, 2], [], [19], [0, 5, 7]]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::mach_ext.hashing.CollisionWarning"),
]


class Network(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.head = build(**options)
        self.encoder = nn.Linear(4, H)


def model(**options):
    return mach_ext.MACH(10, L, R, B, **{"hidden_size": H, **options})


def answers(head):
    hidden = hidden_of(head, 4).detach()
    return head.loss(hidden, LISTS), head(hidden), *head.topk(hidden, 5)


def with_random_weights(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(5))
    return module


def loaded(state):
    """A state as a file has it, without pickled code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("per_repetition", [False, True])
@pytest.mark.parametrize("make", ["deepcopy", "pickle", "state_dict"])
def test_copies(make, per_repetition):
    head = with_random_weights(build(per_repetition=per_repetition, merge="median_prob"))
    head.attachments["a.json"] = b"{}"
    other = {
        "deepcopy": lambda: copy.deepcopy(head),
        "pickle": lambda: pickle.loads(pickle.dumps(head)),
        "state_dict": lambda: build(per_repetition=per_repetition, merge="median_prob"),
    }[make]()
    if make == "state_dict":
        other.load_state_dict(loaded(head.state_dict()))
    else:
        assert other.attachments == head.attachments
    assert all_equal(answers(other), answers(head))
    before = answers(head)
    with torch.no_grad():
        other.bucket_weight.zero_()
    assert all_equal(answers(head), before)
    assert other.hash == head.hash


def test_a_head_that_two_models_share():
    head = build()
    first, second = (nn.Sequential(nn.Linear(width, H), head) for width in (4, 5))
    both = nn.ModuleList([first, second]).double()
    assert first[1] is second[1] is head
    assert len(list(both.parameters())) == 6
    assert head.bucket_weight.dtype == torch.float64
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
    x = torch.ones(4, 4, dtype=torch.float64), torch.ones(4, 5, dtype=torch.float64)
    losses = []
    for _ in range(20):
        loss = sum(each[1].loss(each[0](documents), LISTS) for each, documents in zip(both, x, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    state = both.state_dict()
    assert [name for name in state if ".hash." in name] == [f"{i}.1.hash._extra_state" for i in (0, 1)]
    both.load_state_dict(state)


def test_a_hash_that_two_heads_share():
    hash = build().hash
    heads = nn.ModuleList([build(hash=hash), build(hash=hash, seed=3)])
    heads.to(torch.float64).to("cpu")
    assert heads[0].hash is heads[1].hash is hash
    assert not heads[0].bucket_weight.equal(heads[1].bucket_weight)


# --------------------------------------------------------------------------------------------------- states


def test_the_state_of_a_head():
    state = build().state_dict()
    assert list(state) == ["bucket_weight", "bucket_bias", "logit_adjustment", "hash._extra_state"]
    assert bytes(state["hash._extra_state"].tolist()).decode() == "L=20 B=5 R=3 seed=0"


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_states_of_another_hash_leave_the_head_as_it_was(nested, strict, assign):
    """Inside another module, too, although PyTorch copies what belongs to its other parts."""
    ours, theirs = (with_random_weights(Network(seed=seed)) for seed in (0, 1))
    if not nested:
        ours, theirs = ours.head, theirs.head
    head = ours.head if nested else ours
    head.logit_adjustment.fill_(0.5)
    before, parameters = copy.deepcopy(head.state_dict()), list(head.parameters())
    theirs = {
        name: 2 * tensor if "bucket" in name else tensor for name, tensor in theirs.state_dict().items()
    }
    with pytest.raises(RuntimeError, match="L=20 B=5 R=3 seed=1, this model has L=20 B=5 R=3 seed=0"):
        ours.load_state_dict(theirs, strict=strict, assign=assign)
    assert all_equal([*head.state_dict().values()], [*before.values()])
    assert all(a is b for a, b in zip(parameters, head.parameters(), strict=True))


def test_states_that_lack_or_add_something():
    state = with_random_weights(build()).state_dict()
    without = {name: value for name, value in state.items() if name != "hash._extra_state"}
    head = build()
    head.load_state_dict(without)  # a state of before there were fingerprints
    assert head.bucket_weight.equal(state["bucket_weight"])
    head.logit_adjustment.fill_(3)
    del without["logit_adjustment"]
    head.load_state_dict(without)  # and of before there were adjustments
    assert not head.logit_adjustment.any()
    assert "logit_adjustment" not in without
    with pytest.raises(
        RuntimeError, match=r'Missing key\(s\) in state_dict: "bucket_bias", "logit_adjustment"'
    ):
        head.load_state_dict({"bucket_weight": state["bucket_weight"]})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "more", "hash.more"'):
        head.load_state_dict({**state, "more": torch.zeros(1), "hash.more": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"size mismatch for bucket_bias"):
        head.load_state_dict({**state, "bucket_bias": torch.zeros(2, 2)})
    with pytest.raises(RuntimeError, match="the weights are of label hash 'x', this model has"):
        head.load_state_dict({**state, "hash._extra_state": "x"})


def former(state, prefix="", fingerprint="hash.fingerprint"):
    """A model's state as it was before models had a head."""
    names = {name: name.replace("head.", "") for name in state}
    names["head.hash._extra_state"] = fingerprint
    return {prefix + names[name]: value for name, value in state.items()}


@pytest.mark.parametrize("fingerprint", ["hash.fingerprint", "hash_fingerprint"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"hidden_size": 0}, {"hidden_size": (4, H)}, {"encoder": "independent"}]
)
def test_states_of_models_without_a_head(options, wrapped, fingerprint):
    source = with_random_weights(model(**options))
    source.logit_adjustment.fill_(0.25)
    prefix = "0." if wrapped else ""
    state = former(source.state_dict(), prefix, fingerprint)
    for assign in (False, True):
        given = dict(state)
        target = nn.Sequential(model(**options)) if wrapped else model(**options)
        target.load_state_dict(loaded(state), assign=assign)
        values = target.state_dict().values()
        assert all_equal([*values], [*source.state_dict().values()])
        assert state.keys() == given.keys()
    other = nn.Sequential(model(**options, seed=1)) if wrapped else model(**options, seed=1)
    before = copy.deepcopy(other.state_dict())
    for strict in (False, True):
        with pytest.raises(RuntimeError, match="seed=0, this model has L=20 B=5 R=3 seed=1"):
            other.load_state_dict(state, strict=strict)
    assert all_equal([*other.state_dict().values()], [*before.values()])
    with pytest.raises(RuntimeError, match="Unexpected key"):
        target.load_state_dict({**state, f"{prefix}more": torch.zeros(1)})


def test_a_state_without_an_adjustment_of_a_model_without_a_head():
    source = with_random_weights(model())
    state = former(source.state_dict(), fingerprint="hash_fingerprint")
    del state["logit_adjustment"]
    target = model()
    target.logit_adjustment.fill_(1)
    target.load_state_dict(state)
    assert all_equal([*target.state_dict().values()], [*source.state_dict().values()])


# -------------------------------------------------------------------------------------- devices and dtypes


@pytest.mark.parametrize("per_repetition", [False, True])
def test_a_head_without_memory_gets_some_later(per_repetition):
    options = {**SIZES, "per_repetition": per_repetition}
    expected = build(**options).state_dict()
    with torch.device("meta"):
        among = mach_ext.MACHHead(**options)
    for head in (among, mach_ext.MACHHead(**options, device="meta")):
        assert head.bucket_weight.is_meta
        assert head.logit_adjustment.is_meta
        assert not head.hash.buckets.is_meta
        assert "in_features=6" in repr(head)
        shape = (4, R, H) if per_repetition else (4, H)
        assert head(torch.empty(shape, device="meta")).shape == (4, R, B)
        head.to_empty(device="cpu")
        head.logit_adjustment.fill_(7)  # as memory that is not initialised may be
        head.reset_parameters()
        assert all_equal([*head.state_dict().values()], [*expected.values()])
    head = mach_ext.MACHHead(**options, device="meta")
    head.load_state_dict({**expected}, assign=True)
    assert all_equal([*head.state_dict().values()], [*expected.values()])
    del expected["logit_adjustment"]
    head = mach_ext.MACHHead(**options, device="meta")
    head.load_state_dict(expected, assign=True)
    assert all_equal(answers(head), answers(build(**options)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_the_weights(dtype):
    head = mach_ext.MACHHead(**SIZES, dtype=dtype)
    assert {t.dtype for t in (head.bucket_weight, head.bucket_bias, head.logit_adjustment)} == {dtype}
    torch.set_default_dtype(dtype if dtype == torch.float64 else torch.float32)
    try:
        assert mach_ext.MACHHead(**SIZES).bucket_weight.dtype == torch.get_default_dtype()
    finally:
        torch.set_default_dtype(torch.float32)
    assert build().to(dtype).logit_adjustment.dtype == dtype


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(1)
    first = build(seed=7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert all_equal([*build(seed=7).state_dict().values()], [*first.state_dict().values()])
    assert torch.equal(torch.get_rng_state(), state)
    assert not build(seed=8).bucket_weight.equal(first.bucket_weight)
    assert first.bucket_weight.std().item() == pytest.approx(H**-0.5, rel=0.2)
    large = 2**70 + 7  # of which the generator takes 63 bits
    assert build(seed=large).bucket_weight.equal(build(seed=large % 2**63).bucket_weight)


# --------------------------------------------------------------------------- parametrizations and pruning


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


@pytest.mark.parametrize("name", ["bucket_weight", "bucket_bias"])
def test_parametrized_and_pruned_heads(name):
    plain = with_random_weights(build())
    expected = answers(plain)
    head = copy.deepcopy(plain)
    parametrize.register_parametrization(head, name, Doubled())
    assert all_equal(answers(head), expected)
    assert all_equal(answers(copy.deepcopy(head)), expected)
    head.loss(hidden_of(head, 4), LISTS).backward()
    plain.loss(hidden_of(plain, 4), LISTS).backward()
    original = head.parametrizations[name].original
    torch.testing.assert_close(original.grad, 2 * getattr(plain, name).grad)
    head.load_state_dict(loaded(head.state_dict()))
    assert head.double().bucket_weight.dtype == torch.float64

    pruned = copy.deepcopy(plain)
    prune.l1_unstructured(pruned, name, 0.5)
    weight = getattr(pruned, name)
    with torch.no_grad():
        getattr(plain, name).copy_(weight)
    assert all_equal(answers(pruned), answers(plain))
    pruned.loss(hidden_of(pruned, 4), LISTS).backward()
    assert not getattr(pruned, f"{name}_orig").grad[weight == 0].any()
    prune.remove(pruned, name)
    assert all_equal(answers(pruned), answers(plain))


# ------------------------------------------------------------------------------- a model's names of its head


def test_a_model_gives_its_head_what_is_the_heads():
    each = model()
    weight, bias = nn.Parameter(torch.zeros(R, H, B)), nn.Parameter(torch.ones(R, B))
    other = build(seed=3).hash
    adjustment = torch.full((R, B), 0.5)
    each.bucket_weight, each.bucket_bias, each.logit_adjustment = weight, bias, adjustment
    each.merge, each.hash = "min_prob", other
    head = each.head
    assert head.bucket_weight is weight is each.bucket_weight
    assert head.bucket_bias is bias is each.bucket_bias
    assert head.logit_adjustment is adjustment is each.logit_adjustment
    assert head.merge == "min_prob" == each.merge == each.configuration()["merge"]
    assert head.hash is other is each.hash
    names = ["encoder_weight", "encoder_bias", "head.bucket_weight", "head.bucket_bias"]
    assert [name for name, _ in each.named_parameters()] == names
    assert {"bucket_weight", "merge", "hash"}.isdisjoint({*each.__dict__, *each._parameters, *each._modules})
    assert [name for name, _ in each.named_buffers()] == ["head.logit_adjustment"]
    assert "seed=3" in bytes(each.hash_fingerprint.tolist()).decode()
    with pytest.raises(TypeError, match=r"cannot assign 'torch.FloatTensor' as parameter 'bucket_weight'"):
        each.bucket_weight = torch.zeros(3)
    with pytest.raises(TypeError, match="cannot assign 'int' as child module 'hash'"):
        each.hash = 3


def test_names_that_a_model_has_not():
    each = model()
    assert hasattr(each, "bucket_weight")
    assert not hasattr(each, "nothing")
    assert not hasattr(model(hidden_size=0), "encoder_weight")
    with pytest.raises(AttributeError, match=r"^'MACH' object has no attribute 'nothing'$"):
        each.nothing  # noqa: B018
    with pytest.raises(AttributeError, match=r"^'MACH' object has no attribute 'in_features'$"):
        each.in_features  # noqa: B018
    with pytest.raises(AttributeError, match="'MACH' object has no attribute 'head'"):
        mach_ext.MACH.__new__(mach_ext.MACH).bucket_weight  # noqa: B018
    with pytest.raises(AttributeError, match=r"^'MACHHead' object has no attribute 'nothing'$"):
        each.head.nothing  # noqa: B018


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_of_models(make):
    each = with_random_weights(model(merge="mean_prob"))
    other = make(each)
    assert (other.head is each.head) == (make is copy.copy)
    assert other.merge == "mean_prob"
    assert all_equal([*other.state_dict().values()], [*each.state_dict().values()])
    other.merge = "min_prob"
    assert (each.merge == "min_prob") == (make is copy.copy)
    assert all_equal(answers(other.head)[:2], answers(each.head)[:2])


def test_a_models_attributes_by_path():
    each = model()
    assert each.get_parameter("bucket_weight") is each.get_parameter("head.bucket_weight")
    assert each.get_submodule("head.hash") is each.hash
    with pytest.raises(KeyError, match="attribute 'bucket_weight' already exists"):
        each.register_parameter("bucket_weight", None)


def test_a_head_takes_the_place_of_another():
    each, head = model(), with_random_weights(build())
    each.head = head
    assert each.bucket_weight is head.bucket_weight
    csr = torch.ones(2), torch.tensor([0, 3]), torch.tensor([0, 2])
    assert torch.equal(each(*csr), head(each.encode(*csr)))
    linear = mach_ext.nn.linear_model(head)
    assert linear.head is head
    assert linear.merge == head.merge

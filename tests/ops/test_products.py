"""The products of a group of repetitions, for both orders of the weight's memory."""

import pytest
import torch
from helpers import bitwise_equal, random_hash, uniform
from torch._subclasses import fake_tensor

from mach_ext import functional as F
from mach_ext import hashing
from mach_ext.functional import _products, _repetitions
from mach_ext.functional._products import Group, Targets, bce_of_group, group_of
from mach_ext.functional._repetitions import GROUP_BYTES, group_size, groups, of_group

N, H, B, L, R = 5, 3, 7, 20, 4

parametrize_shared = pytest.mark.parametrize("shared", [True, False], ids=["shared", "independent"])
parametrize_order = pytest.mark.parametrize("bucket_major", [True, False], ids=["[R, B, H]", "[R, H, B]"])


def in_order(weight, bucket_major):
    return weight.mT.contiguous().mT if bucket_major else weight.contiguous()


@pytest.fixture
def group_of_three(monkeypatch):
    """Groups of three repetitions, as a GPU would have."""
    monkeypatch.setattr(_repetitions, "group_size", lambda *_: 3)
    for name in ("functional._bucket_bce", "training.steps", "attack._layer"):
        monkeypatch.setattr(f"mach_ext.{name}.group_size", lambda *_: 3)


@parametrize_shared
@parametrize_order
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_products_match_float64(generator, shared, bucket_major, size, dtype):
    """With bfloat16 factors the results are float32, and products on the CPU are rounded before."""
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    out_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    hidden = uniform(generator, *((N, H) if shared else (N, R, H))).to(dtype)
    weight = in_order(uniform(generator, R, H, B).to(dtype), bucket_major)
    each = hidden.double()[:, None].expand(-1, R, -1) if shared else hidden.double()
    grad_hidden = torch.ones_like(hidden, dtype=out_dtype)
    grad_weight = torch.full((R, H, B), torch.nan, dtype=out_dtype)
    logits, gradients = [], []
    memory = torch.empty(N * size * B, dtype=out_dtype)
    for at in groups(R, size):
        group = group_of(hidden, weight, at, dtype)
        assert group.shape == (N, at.stop - at.start, B)
        logits.append(group.logits(group.new_logits(out_dtype, memory)).clone())
        gradient = group.new_logits(dtype)
        gradients.append(gradient.copy_(uniform(generator, *group.shape)))
        group.add_grad_hidden(gradient, of_group(grad_hidden, at))
        group.write_grad_weight(gradient, grad_weight[at])
    z, g = torch.cat(logits, 1), torch.cat(gradients, 1).double()
    assert z.dtype == out_dtype
    expected = torch.einsum("nrh,rhb->nrb", each, weight.double())
    torch.testing.assert_close(z.double(), expected, **tolerance)
    expected = torch.einsum("nrh,nrb->rhb", each, g)
    torch.testing.assert_close(grad_weight.double(), expected, **tolerance)
    expected = torch.einsum("nrb,rhb->nrh", g, weight.double())
    expected = 1 + (expected.sum(1) if shared else expected)
    torch.testing.assert_close(grad_hidden.double(), expected, **tolerance)


def test_a_bucket_major_group_is_one_product():
    """Shared hidden units and [R, B, H] in memory: no batch, and no copy of the weight."""
    hidden, weight = torch.ones(N, H), in_order(torch.ones(R, H, B), True)
    group = Group(hidden, weight)
    assert group.is_one
    assert _products._as_one(weight).data_ptr() == weight.data_ptr()
    assert group.new_logits(torch.float32).is_contiguous()
    assert not Group(hidden, weight.contiguous()).is_one
    assert not Group(hidden[:, None].expand(-1, R, -1), weight).is_one


@parametrize_shared
@parametrize_order
def test_bucket_bce_in_groups(group_of_three, generator, shared, bucket_major):
    """The loss and its gradients are those of single repetitions; the last group is smaller."""
    hash = random_hash(generator, L, B, R)
    Y = torch.randint(L, (2 * N,), generator=generator), torch.arange(0, 2 * N + 1, 2)
    tensors = [
        uniform(generator, *((N, H) if shared else (N, R, H))),
        in_order(uniform(generator, R, H, B), bucket_major),
        uniform(generator, R, B),
    ]
    leaves = [t.requires_grad_() for t in tensors]
    loss = F.bucket_bce(*leaves, *Y, hash, validate=False)
    gradients = torch.autograd.grad(loss, leaves)
    expected = torch.zeros_like(tensors[0])
    total = 0
    for r in range(R):
        one = [t.detach()[r : r + 1] for t in leaves[1:]]
        h = F.of_repetition(leaves[0].detach(), r).contiguous().requires_grad_()
        single = [h, *(t.requires_grad_() for t in one)]
        with hashing.collisions_known():
            alone = hashing.LabelHash.from_buckets(hash.buckets[r : r + 1], B)
            part = F.bucket_bce(*single, *Y, alone, validate=False) / R
        total += part.detach()
        to_hidden, *others = torch.autograd.grad(part, single)
        F.of_repetition(expected, r).add_(to_hidden)
        for ours, theirs in zip(gradients[1:], others, strict=True):
            torch.testing.assert_close(ours[r : r + 1], theirs)
    torch.testing.assert_close(loss.detach(), total)
    torch.testing.assert_close(gradients[0], expected.detach())


def test_groups_cover_all_repetitions_in_order():
    assert list(groups(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(groups(2, 8)) == [slice(0, 2)]


def test_a_group_has_at_most_64_mebibytes_of_logits():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert group_size(256, 2000, 4, cuda) == 32
    assert group_size(2048, 2000, 4, cuda) == 4
    for documents in (1, 7, 256, 2048, 10**6):
        for buckets in (2, 1000, 70_001):
            size = group_size(documents, buckets, 4, cuda)
            assert size == 1 or size * documents * buckets * 4 <= GROUP_BYTES
            assert size >= 1
            assert (size + 1) * documents * buckets * 4 > GROUP_BYTES
    assert group_size(0, 2000, 4, cuda) >= 1
    assert [group_size(256, B, 4, cpu) for B in (64, 512, 2000)] == [8, 1, 1]  # 512 KiB


def test_gradient_takes_the_place_of_the_logits_or_is_narrow(generator):
    hash = random_hash(generator, L, B, R)
    targets = Targets(hash.buckets, torch.zeros(N, dtype=torch.int64), torch.arange(N + 1), 0.5)
    group = Group(torch.randn(N, H, generator=generator), torch.randn(R, H, B, generator=generator))
    logits, grad_bias = group.new_logits(torch.float32), torch.empty(R, B)
    gradient, losses = bce_of_group(group, None, targets, slice(0, R), logits, None, grad_bias)
    assert gradient is logits
    narrow = group.new_logits(torch.bfloat16)
    other, again = bce_of_group(group, None, targets, slice(0, R), group.new_logits(torch.float32), narrow)
    assert other is narrow
    assert bitwise_equal(losses, again)
    assert bitwise_equal(narrow, gradient.bfloat16())
    torch.testing.assert_close(grad_bias, gradient.sum(0))


@pytest.mark.parametrize("batch", [(), (3,)], ids=["mm", "bmm"])
def test_products_on_a_gpu_are_of_float32(batch):
    """A dry run: shapes, types and which operators there are, without a GPU."""
    with fake_tensor.FakeTensorMode():
        a = torch.empty(*batch, 8, 4, dtype=torch.bfloat16, device="cuda")
        b = torch.empty(*batch, 4, 6, dtype=torch.bfloat16, device="cuda")
        out = torch.empty(*batch, 8, 6, device="cuda")
        _products.product(a, b, out)
        _products.add_product(a, b, out)
        assert (out.dtype, out.shape, out.device.type) == (torch.float32, (*batch, 8, 6), "cuda")

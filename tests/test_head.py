"""MACHHead: its loss and gradients against a dense definition, and graphs that are used in every way."""

import itertools
import threading

import pytest
import torch
from head_cases import (
    B,
    L,
    R,
    all_equal,
    build,
    csr_of,
    dense_logits,
    dense_loss,
    gradients,
    hidden_of,
    leaves,
    random_labels,
)
from helpers import assert_matches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import mach_ext
from mach_ext import functional as F

LISTS = [[1, 2], [], [19], [0, 5, 7]]
MERGES = tuple(mach_ext.merges.MODEL_MERGES)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def head():
    return build(dtype=torch.float64)


@pytest.fixture
def hidden(head):
    return hidden_of(head, 4)


# ----------------------------------------------------------------------------------- the dense definition


LEADING = [(), (1,), (7,), (2, 3), (3, 1, 2)]


@pytest.mark.parametrize("per_repetition", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradients_are_those_of_the_dense_definition(per_repetition, dtype, say):
    worst = [0.0]

    @given(data=st.data())
    def check(data):
        sizes = {
            "in_features": data.draw(st.integers(1, 9)),
            "num_labels": data.draw(st.integers(1, 30)),
            "num_repetitions": data.draw(st.integers(1, 5)),
            "num_buckets": data.draw(st.integers(2, 9)),
        }
        seed = data.draw(st.integers(0, 2**31))
        head = build(**sizes, per_repetition=per_repetition, seed=seed, dtype=dtype)
        leading = data.draw(st.sampled_from(LEADING))
        hidden = hidden_of(head, *leading, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        lists = random_labels(generator, max(1, hidden[..., 0].numel() // (R_of(head))), head.num_labels)
        if data.draw(st.booleans()):
            lists = [[] for _ in lists]
        reduction = data.draw(st.sampled_from(["mean", "sum"]))
        loss = 3 * head.loss(hidden, csr_of(lists), reduction=reduction)
        twins = [leaf.detach().double().requires_grad_() for leaf in leaves(head, hidden)]
        expected = 3 * dense_loss(head, *twins, lists, reduction)
        assert loss.shape == ()
        assert loss.dtype == dtype
        assert_matches(loss, expected)
        for ours, twin in zip(
            gradients(loss, head, hidden), torch.autograd.grad(expected, twins), strict=True
        ):
            assert ours.dtype == dtype
            assert_matches(ours, twin)
            worst[0] = max(worst[0], float((ours - twin).abs().max()))

    check()
    say(f"head's gradients in {dtype}: at most {worst[0]:.1e} from the dense ones")


def R_of(head):
    return head.num_repetitions if head.per_repetition else 1


@pytest.mark.filterwarnings("ignore::mach_ext.hashing.CollisionWarning")
@pytest.mark.parametrize("per_repetition", [False, True])
def test_labels_that_share_a_bucket_count_once(per_repetition):
    """Labels 0, 1 and 2 share their bucket in every repetition, and so do labels 3 and 4."""
    hash = mach_ext.LabelHash.from_buckets([[1, 1, 1, 0, 0], [0, 0, 0, 2, 2]], num_buckets=3)
    sizes = {"num_labels": 5, "num_repetitions": 2, "num_buckets": 3}
    head = build(**sizes, hash=hash, per_repetition=per_repetition, dtype=torch.float64)
    hidden = hidden_of(head, 2)
    losses = [head.loss(hidden, lists) for lists in ([[0, 1, 2], [2, 3, 4]], [[1], [0, 3]])]
    assert torch.equal(*losses)
    assert_matches(losses[0], dense_loss(head, *leaves(head, hidden), [[0, 1, 2], [2, 3, 4]]))
    assert all_equal(*(gradients(loss, head, hidden) for loss in losses))


SMALL = {"in_features": 3, "num_labels": 7, "num_repetitions": 2, "num_buckets": 4, "dtype": torch.float64}
LABELS = torch.tensor([3, 0, 6])
CALLS = {
    "loss": lambda head, h: head.loss(h, [[1, 2], [], [6]]),
    "sum": lambda head, h: head.loss(h, [[1, 2], [], [6]], reduction="sum"),
    "forward": lambda head, h: head(h),
    "forward with labels": lambda head, h: head(h, [[1, 2], [], [6]]),
    "logit": lambda head, h: head.label_scores(h, LABELS),
    **{f"model {name}": lambda head, h: head.label_scores(h, LABELS, "model") for name in MERGES},
    **{f"topk {name}": lambda head, h: head.topk(h, 3)[0] for name in MERGES},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("per_repetition", [False, True])
def test_gradcheck(per_repetition, name):
    merge = name.partition(" ")[2]
    options = {"merge": merge} if merge in MERGES else {}
    head = build(**SMALL, **options, per_repetition=per_repetition)
    function = as_function(head, CALLS[name])
    given = leaves(head, hidden_of(head, 3, seed=5))
    assert torch.autograd.gradcheck(function, given)
    for i, leaf in enumerate(given):  # one at a time: no gradient is taken from another's work
        fixed = [t.detach() for t in given]

        def alone(t, i=i, fixed=fixed):
            return function(*fixed[:i], t, *fixed[i + 1 :])

        assert torch.autograd.gradcheck(alone, [leaf])


def as_function(head, call):
    """A call of a head as a function of the hidden units, the weight and the bias."""

    class Calling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, hidden):
            return call(head, hidden)

    module = Calling()

    def function(hidden, weight, bias):
        parameters = {"head.bucket_weight": weight, "head.bucket_bias": bias}
        return torch.func.functional_call(module, parameters, (hidden,))

    return function


@pytest.mark.parametrize("per_repetition", [False, True])
def test_forward_and_scores_are_those_of_the_dense_definition(per_repetition):
    for merge in MERGES:
        head = build(per_repetition=per_repetition, merge=merge, dtype=torch.float64)
        for leading in LEADING:
            hidden = hidden_of(head, *leading)
            logits = dense_logits(*leaves(head, hidden), per_repetition)
            assert_matches(head(hidden), logits.reshape(*leading, R, B))
            scores = mach_ext.merges.MODEL_MERGES[merge].transformed(logits)
            everything = F.merge_scores(
                scores, head.hash, torch.arange(L), mach_ext.merges.MODEL_MERGES[merge].reduction
            )
            everything = everything.reshape(*leading, L)
            assert_matches(head.label_scores(hidden, torch.arange(L), "model"), everything)
            each = torch.arange(L).expand(*leading, L)
            assert_matches(head.label_scores(hidden, each, "model"), everything)
            assert head.label_logits(hidden, each).shape == (*leading, L, R)
            values, labels = head.topk(hidden, L)
            assert values.shape == labels.shape == (*leading, L)
            assert_matches(values, everything.gather(-1, labels))
            assert_matches(values, everything.sort(descending=True).values)


# ---------------------------------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("per_repetition", [False, True])
def test_micro_batches_add_up_to_the_batch(per_repetition, say):
    head = build(per_repetition=per_repetition, dtype=torch.float64)
    hidden = hidden_of(head, 12)
    lists = random_labels(torch.Generator().manual_seed(3), 12)
    whole = gradients(head.loss(hidden, lists), head, hidden)
    worst = 0.0
    for bounds, reduction, factor in (
        ((0, 3, 6, 9, 12), "mean", 1 / 4),
        ((0, 1, 6, 7, 12), "sum", 1 / 12),
    ):
        sums = [torch.zeros_like(leaf) for leaf in leaves(head, hidden)]
        for first, last in itertools.pairwise(bounds):
            loss = head.loss(hidden[first:last], lists[first:last], reduction=reduction) * factor
            for total, part in zip(sums, gradients(loss, head, hidden), strict=True):
                total += part
        for total, expected in zip(sums, whole, strict=True):
            torch.testing.assert_close(total, expected, rtol=1e-13, atol=1e-15)
            worst = max(worst, float((total - expected).abs().max()))
    say(f"4 micro-batches, per_repetition={per_repetition}: at most {worst:.1e} from the batch")


# --------------------------------------------------------------------------- the graph, used in every way
# The backward pass gives the gradients away and computes them again if it is asked again.


def test_a_graph_that_is_kept_gives_the_same_gradients_each_time(head, hidden):
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    loss = head.loss(hidden, LISTS)
    for keep in (True, True, False):
        assert all_equal(gradients(loss, head, hidden, retain_graph=keep), expected)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        gradients(loss, head, hidden)


def test_gradients_of_some_inputs_at_a_time(head, hidden):
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    loss = head.loss(hidden, LISTS)
    for leaf, gradient in zip(leaves(head, hidden), expected, strict=True):
        assert torch.equal(torch.autograd.grad(loss, leaf, retain_graph=True)[0], gradient)
    loss.backward(inputs=[head.bucket_bias])
    assert hidden.grad is head.bucket_weight.grad is None
    assert torch.equal(head.bucket_bias.grad, expected[2])


def test_a_loss_that_is_used_twice(head, hidden):
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    loss = head.loss(hidden, LISTS)
    twice = gradients(2 * loss + 3 * loss, head, hidden, retain_graph=True)
    squared = gradients(loss * loss, head, hidden)
    for a, b, one in zip(twice, squared, expected, strict=True):
        torch.testing.assert_close(a, 5 * one)
        torch.testing.assert_close(b, 2 * loss.detach() * one)


def test_two_losses_of_the_same_hidden_units(head, hidden):
    other = [[3], [4, 5], [6], []]
    apart = [gradients(head.loss(hidden, lists), head, hidden) for lists in (LISTS, other)]
    first, second = head.loss(hidden, LISTS), head.loss(hidden, other)
    for total, a, b in zip(gradients(first + 2 * second, head, hidden), *apart, strict=True):
        torch.testing.assert_close(total, a + 2 * b)


def test_grad_that_accumulates_and_grad_that_was_taken_away(head, hidden):
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    loss = head.loss(hidden, LISTS)
    loss.backward(retain_graph=True)
    first = [leaf.grad for leaf in leaves(head, hidden)]
    for leaf in leaves(head, hidden):
        leaf.grad = None
    loss.backward(retain_graph=True)
    assert all_equal(first, expected)  # what was given away stays as it was
    assert all_equal([leaf.grad for leaf in leaves(head, hidden)], expected)
    loss.backward()
    assert all_equal([leaf.grad for leaf in leaves(head, hidden)], [2 * gradient for gradient in expected])
    assert all_equal(first, expected)


def test_hooks_that_keep_or_change_gradients(head, hidden):
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    kept = {}
    for i, leaf in enumerate(leaves(head, hidden)):
        leaf.register_hook(lambda gradient, i=i: kept.setdefault(i, []).append(gradient))
    loss = head.loss(hidden, LISTS)
    loss.retain_grad()
    (2 * loss).backward(retain_graph=True)
    (2 * loss).backward()
    for i, gradient in enumerate(expected):
        assert all(torch.equal(each, 2 * gradient) for each in kept[i])
    assert loss.grad == 4
    head.bucket_bias.register_hook(lambda gradient: 10 * gradient)
    head.zero_grad()
    head.loss(hidden, LISTS).backward()
    assert torch.equal(head.bucket_bias.grad, 10 * expected[2])


@pytest.mark.parametrize("needed", ["h", "w", "b", "hw", "hb", "wb", "hwb"])
@pytest.mark.parametrize("per_repetition", [False, True])
def test_frozen_inputs_get_no_gradient(per_repetition, needed):
    head = build(per_repetition=per_repetition, dtype=torch.float64)
    hidden = hidden_of(head, 4)
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    for leaf, letter in zip(leaves(head, hidden), "hwb", strict=True):
        leaf.requires_grad_(letter in needed)
    loss = head.loss(hidden, LISTS)
    for _ in range(2):
        loss.backward(retain_graph=True)
    for leaf, letter, gradient in zip(leaves(head, hidden), "hwb", expected, strict=True):
        assert (leaf.grad is None) == (letter not in needed)
        assert leaf.grad is None or torch.equal(leaf.grad, 2 * gradient)


def test_no_gradient_at_all(head, hidden):
    expected = head.loss(hidden, LISTS).detach()
    with torch.no_grad():
        loss = head.loss(hidden, LISTS)
    assert not loss.requires_grad
    with torch.inference_mode():
        inside = head.loss(hidden, LISTS)
    assert torch.equal(loss, expected)
    assert torch.equal(inside, expected)
    frozen = head.requires_grad_(False).loss(hidden.detach(), LISTS)
    assert not frozen.requires_grad
    assert torch.equal(frozen, expected)


def test_second_derivatives_are_refused_and_the_graph_stays(head, hidden):
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    loss = head.loss(hidden, LISTS)
    message = "mach_ext: second derivatives are not implemented; call backward without create_graph=True"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            gradients(loss, head, hidden, create_graph=True)
    assert all_equal(gradients(loss, head, hidden), expected)


def test_weights_that_change_between_the_passes(head, hidden):
    """The first pass has the gradients of the weights as they were. PyTorch refuses to compute others."""
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    loss = head.loss(hidden, LISTS)
    with torch.no_grad():
        head.bucket_weight.mul_(2)
    assert all_equal(gradients(loss, head, hidden, retain_graph=True), expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(loss, head, hidden)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_calls(head, hidden, use_reentrant):
    other = [[3], [4, 5], [6], []]

    def two(units):
        return head.loss(units, LISTS) + head(2 * units, other)

    expected = gradients(two(hidden), head, hidden)
    loss = checkpoint(two, hidden, use_reentrant=use_reentrant)
    loss.backward(retain_graph=True)
    assert all_equal([leaf.grad for leaf in leaves(head, hidden)], expected)
    loss.backward()
    assert all_equal([leaf.grad for leaf in leaves(head, hidden)], [2 * gradient for gradient in expected])


def test_batched_gradients(head, hidden):
    """Of several factors at a time, as `torch.autograd.functional.jacobian(vectorize=True)` asks for them."""
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    factors = torch.tensor([1.0, -2.0], dtype=torch.float64)
    loss = head.loss(hidden, LISTS)
    batched = gradients(loss, head, hidden, grad_outputs=factors, is_grads_batched=True, retain_graph=True)
    for both, one in zip(batched, expected, strict=True):
        torch.testing.assert_close(both, torch.stack((one, -2 * one)))
    assert all_equal(gradients(loss, head, hidden), expected)


def test_saved_tensors_may_lie_elsewhere(head, hidden):
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    with torch.autograd.graph.save_on_cpu():
        loss = head.loss(hidden, LISTS)
    for _ in range(2):
        assert all_equal(gradients(loss, head, hidden, retain_graph=True), expected)


def test_threads_share_a_graph(head, hidden):
    expected = gradients(head.loss(hidden, LISTS), head, hidden)
    loss, results = head.loss(hidden, LISTS), []

    def run():
        results.extend(gradients(loss, head, hidden, retain_graph=True) for _ in range(20))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert all(all_equal(result, expected) for result in results)


def test_what_torch_func_takes(head, hidden):
    """functional_call with other parameters, and vmap and grad not: PyTorch says so."""
    doubled = {name: 2 * parameter.detach() for name, parameter in head.named_parameters()}
    loss = torch.func.functional_call(head, doubled, (hidden, LISTS))
    assert_matches(
        loss, dense_loss(head, hidden, *(doubled[f"bucket_{n}"] for n in ("weight", "bias")), LISTS)
    )
    with pytest.raises(RuntimeError, match=r"autograd\.Function with functorch transforms"):
        torch.func.grad(lambda units: head.loss(units, LISTS))(hidden.detach())

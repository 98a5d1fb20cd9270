"""Decoding with the labels shared among ranks: the bits of one process, whatever the scores."""

import math

import pytest
import torch
from distributed_cases import Threads, on_processes
from helpers import FLOATS, bitwise_equal, random_hash
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import DISTRIBUTIONS, MERGES, layout

import mach_ext
from mach_ext import _reference
from mach_ext.distributed import Ranks
from mach_ext.distributed.decode import best_of, candidates, gather_logits, sharded_topk, share
from mach_ext.merges import MODEL_MERGES, Merge

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

NAMES = sorted(MODEL_MERGES)


def draws(N, R, B, seed, dtype=torch.float32, name="few values"):
    """Scores [N, R, B] of one of the distributions."""
    return DISTRIBUTIONS[name](torch.Generator().manual_seed(seed), (N, R, B), dtype)


def part_of(hash, ranks):
    """A rank's labels and their hash, or None."""
    labels = share(hash.num_labels, ranks.rank, ranks.size)
    return labels, hash.part(labels) if labels else None


def decoded(ranks, scores, hash, k, merge, **options):
    labels, part = part_of(hash, ranks)
    return sharded_topk(ranks, scores, part, labels.start, hash.num_labels, k, merge, **options)


def equal(found, expected):
    return all(map(bitwise_equal, found, expected))


# -------------------------------------------------------------------------------------------- one process


@st.composite
def problems(draw):
    """scores, hash, k, the number of ranks."""
    N, R, B = (draw(st.integers(*bounds)) for bounds in ((0, 4), (1, 5), (2, 9)))
    L = draw(st.one_of(st.integers(1, 6), st.integers(1, 200)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    distribution = DISTRIBUTIONS[draw(st.sampled_from(sorted(DISTRIBUTIONS)))]
    scores = distribution(generator, (N, R, B), draw(st.sampled_from(FLOATS)))
    scores = layout(scores, draw(st.sampled_from(["contiguous", "repetition-major", "strided"])))
    k = draw(st.one_of(st.sampled_from([0, 1, L]), st.integers(0, L)))
    return scores, random_hash(generator, L, B, R), k, draw(st.integers(1, 5))


@settings(deadline=None, max_examples=300)
@given(problem=problems(), name=st.sampled_from(NAMES), overwrite=st.booleans())
def test_ranks_decode_as_one_process(problem, name, overwrite):
    scores, hash, k, size = problem
    merge = MODEL_MERGES[name]
    expected = merge.topk(scores, hash, k)
    clones = [layout(scores.clone(), "contiguous") for _ in range(size)]
    for found in Threads(size).on_each(lambda ranks: decoded(ranks, scores, hash, k, merge)):
        assert equal(found, expected)
    if overwrite and scores.is_contiguous():
        each = Threads(size).on_each(
            lambda ranks: decoded(ranks, clones[ranks.rank], hash, k, merge, overwrite=True)
        )
        assert all(equal(found, expected) for found in each)


@settings(deadline=None, max_examples=200)
@given(problem=problems(), reduction=st.sampled_from(MERGES))
def test_best_of_candidates_is_the_definition(problem, reduction):
    """Against a search of all labels in plain PyTorch. Candidates come in any order of ranks."""
    scores, hash, k, size = problem
    expected = _reference.merge_topk(scores, hash.buckets, None, k, reduction)
    shares = [share(hash.num_labels, rank, size) for rank in reversed(range(size))]
    parts = [(labels, hash.part(labels) if labels else None) for labels in shares]
    merge = Merge(None, reduction)
    each = [candidates(scores, part, labels.start, k, merge) for labels, part in parts]
    found = best_of(*(torch.cat(tensors, dim=1) for tensors in zip(*each, strict=True)), k)
    assert equal(found, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_order_of_zeros_infinities_and_nan(dtype):
    """In the order of the definition, with the bits of each value."""
    values = torch.tensor([[math.nan, -0.0, math.inf, 0.0, -math.inf, -math.nan, -0.0, 1.0]], dtype=dtype)
    labels = torch.tensor([[5, 7, 9, 6, 0, 2, 1, 3]])
    best, order = best_of(values, labels, 8)
    assert order.tolist() == [[9, 3, 1, 6, 7, 0, 2, 5]]
    assert best.signbit()[0, :6].tolist() == [False, False, True, False, True, True]
    assert best[0, 6:].isnan().all()
    assert best_of(values, labels, 3)[1].tolist() == [[9, 3, 1]]


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32), N=st.integers(0, 5), size=st.integers(1, 5), R=st.integers(1, 7),
    B=st.integers(2, 40), name=st.sampled_from(NAMES), repetitions_first=st.booleans(),
)  # fmt: skip
def test_gathered_logits_keep_the_bits_of_a_transform(seed, N, size, R, B, name, repetitions_first):
    logits = draws(N, R, B, seed, name="normal")
    logits = layout(logits, "repetition-major" if repetitions_first else "contiguous")

    def gathered(ranks):
        own = share(R, ranks.rank, size)
        return gather_logits(ranks, logits[:, own.start : own.stop], R, repetitions_first)

    expected = MODEL_MERGES[name].transformed(logits)
    for whole in Threads(size).on_each(gathered):
        assert bitwise_equal(whole, logits)
        assert bitwise_equal(MODEL_MERGES[name].transformed(whole), expected)


def test_more_ranks_than_labels():
    hash, merge = random_hash(torch.Generator().manual_seed(0), 3, 4, 2), MODEL_MERGES["min_prob"]
    scores = draws(6, 2, 4, seed=1)
    assert [len(share(3, rank, 5)) for rank in range(5)] == [0, 1, 0, 1, 1]
    for k in range(4):
        for found in Threads(5).on_each(lambda ranks, k=k: decoded(ranks, scores, hash, k, merge)):
            assert equal(found, merge.topk(scores, hash, k))


def test_half_precision_is_widened_as_in_one_process():
    hash = random_hash(torch.Generator().manual_seed(0), 3, 4, 2)
    scores = draws(6, 2, 4, seed=1, name="normal").bfloat16()
    for name in NAMES:
        merge = MODEL_MERGES[name]
        for found in Threads(4).on_each(lambda ranks, merge=merge: decoded(ranks, scores, hash, 3, merge)):
            assert equal(found, merge.topk(scores, hash, 3))


def test_scores_have_no_gradient():
    hash = random_hash(torch.Generator().manual_seed(0), 9, 4, 2)
    scores = draws(6, 2, 4, seed=1).requires_grad_()
    merge = MODEL_MERGES["mean_prob"]
    (found,) = Threads(1).on_each(lambda ranks: decoded(ranks, scores, hash, 3, merge))
    assert not found[0].requires_grad
    assert candidates(scores, hash, 0, 3, merge)[0].requires_grad


def test_many_documents(say):
    """120,000 documents of few score values, so that most of them have ties between ranks."""
    hash = random_hash(torch.Generator().manual_seed(0), 60, 8, 3)
    count, size, k = 20_000, 3, 5
    documents = tied = 0
    for number, name in enumerate([*NAMES, "mean_logit"]):
        merge = MODEL_MERGES[name]
        kind = ["few values", "normal", "some NaN", "infinities", "peaky", "signed zeros"][number]
        scores = layout(draws(count, 3, 8, number, name=kind), "repetition-major")
        expected = values, _ = merge.topk(scores, hash, k)
        for found in Threads(size).on_each(lambda ranks, s=scores, m=merge: decoded(ranks, s, hash, k, m)):
            assert equal(found, expected)
        documents += count
        tied += int((values[:, 1:] == values[:, :-1]).any(1).sum())
    assert documents >= 100_000
    assert tied > documents / 3
    say(f"{documents} documents decoded by 3 ranks as by one process, {tied} of them with equal scores")


# ------------------------------------------------------------------------------------------ wrong arguments

SCORES, HASH = torch.zeros(2, 3, 4), random_hash(torch.Generator().manual_seed(0), 10, 4, 3)
LOGIT = MODEL_MERGES["mean_logit"]


class Alone:
    rank, size = 0, 1

    def gather(self, tensor, dim, sizes):
        return tensor


class First(Alone):
    size = 2


WRONG = {
    "k of sharded_topk": (
        lambda: sharded_topk(Alone(), SCORES, HASH, 0, 10, 11, LOGIT),
        "ValueError: sharded_topk: k must be in 0 ... L=10, got 11",
    ),
    "negative k of sharded_topk": (
        lambda: sharded_topk(Alone(), SCORES, HASH, 0, 10, -1, LOGIT),
        "ValueError: sharded_topk: k must be in 0 ... L=10, got -1",
    ),
    "a share of another rank": (
        lambda: sharded_topk(First(), SCORES, HASH.part(range(5)), 5, 10, 1, LOGIT),
        "ValueError: sharded_topk: labels of rank 0 must be its share range(0, 5), got range(5, 10)",
    ),
    "no share": (
        lambda: sharded_topk(First(), SCORES, None, 0, 10, 1, LOGIT),
        "ValueError: sharded_topk: labels of rank 0 must be its share range(0, 5), got range(0, 0)",
    ),
    "first_label": (
        lambda: candidates(SCORES, HASH, -1, 1, LOGIT),
        "ValueError: candidates: first_label must be at least 0, got -1",
    ),
    "k of candidates": (
        lambda: candidates(SCORES, HASH, 0, -1, LOGIT),
        "ValueError: candidates: k must be at least 0, got -1",
    ),
    "k of another type": (
        lambda: candidates(SCORES, HASH, 0, 1.0, LOGIT),
        "TypeError: candidates: k must be an int, got float",
    ),
    "scores of no labels": (
        lambda: candidates(SCORES[0], None, 0, 1, LOGIT),
        "ValueError: candidates: scores must have 3 dimension(s), got shape [3, 4]",
    ),
    "scores of another hash": (
        lambda: candidates(SCORES[:, :2], HASH, 0, 1, LOGIT),
        "ValueError: merge_topk: hash has R=3 repetitions and B=4 buckets, the scores or weights have R=2, "
        "B=4",
    ),
    "labels of other values": (
        lambda: best_of(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int64), 1),
        "ValueError: best_of: labels must be [2, 3] like values, got [2, 4]",
    ),
    "k of best_of": (
        lambda: best_of(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), 4),
        "ValueError: best_of: k must be in 0 ... C=3, got 4",
    ),
    "labels of another type": (
        lambda: best_of(torch.zeros(2, 3), torch.zeros(2, 3), 1),
        "TypeError: best_of: labels must be int64, got float32",
    ),
    "values of another type": (
        lambda: best_of([1.0], torch.zeros(1, 1, dtype=torch.int64), 1),
        "TypeError: best_of: values must be a torch.Tensor, got list",
    ),
    "logits of another share": (
        lambda: gather_logits(First(), SCORES, 3),
        "ValueError: gather_logits: logits must be [N, 1, B] on rank 0, got [2, 3, 4]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    call, message = WRONG[name]
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    assert f"{type(raised.value).__name__}: {raised.value}" == message


# ------------------------------------------------------------------------------------------------ processes

SIZES = (1000, 37, 5, 3)  # L, B, R, seed


def on_a_process(rank, folder):
    """A rank makes the hash of its labels alone, and logits of its repetitions alone."""
    ranks = Ranks.of_group()
    L, B, R, seed = SIZES
    labels, own = (share(count, ranks.rank, ranks.size) for count in (L, R))
    part = mach_ext.LabelHash.seeded_part(*SIZES, labels=labels)
    found = {}
    for name in NAMES:
        logits = draws(70, R, B, seed, name="some NaN")[:, own.start : own.stop]
        whole = gather_logits(ranks, logits, R)
        for k in (0, 1, 5, 400, L):
            found[name, k] = sharded_topk(ranks, whole, part, labels.start, L, k, MODEL_MERGES[name])
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_processes_decode_as_one(tmp_path, size):
    whole = mach_ext.LabelHash(*SIZES)
    _, B, R, seed = SIZES
    scores = layout(draws(70, R, B, seed, name="some NaN"), "repetition-major")
    for found in on_processes(tmp_path, size, on_a_process):
        assert len(found) == 25
        for (name, k), best in found.items():
            assert equal(best, MODEL_MERGES[name].topk(scores, whole, k)), (name, k)

"""merge_topk: the exact best k of all labels.

Decode promises the brute force's answer bit for bit, so nothing here has a tolerance.
"""

import warnings

import numpy as np
import pytest
import torch
from helpers import (
    FLOATS,
    assert_deterministic,
    bitwise_equal,
    num_threads,
    random_hash,
    to,
)
from hypothesis import HealthCheck, given, settings
from merge_cases import DISTRIBUTIONS, MERGES, PATHS, choice, decodes, normal

from mach_ext import CollisionWarning, LabelHash, _ops, _reference
from mach_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")


parametrize_merge = pytest.mark.parametrize("merge", MERGES)


parametrize_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def assert_is_brute_force(device, scores, hash, k, merge, path="auto"):
    """Through the public function; another path than "auto" is forced, and what was done is returned."""
    trace = None
    if path == "auto":
        values, labels = F.merge_topk(scores.to(device), hash.to(device), k, merge)
    else:
        trace = torch.empty(len(scores), 3, dtype=torch.int64, device=device)
        there = hash.to(device)
        args = (scores.to(device), there.buckets, there.label_index(), k, merge)
        values, labels = _ops.merge_topk(*args, path=path, trace=trace)
    expected_values, expected_labels = _reference.merge_topk(scores, hash.buckets, None, k, merge)
    assert torch.equal(labels.cpu(), expected_labels)
    assert bitwise_equal(values, expected_values)
    return trace


def test_topk_is_the_brute_force_on_100_000_documents(device, operators):
    """Every merge, dtype, distribution and layout; the number of documents is counted."""
    documents, share = 0, 20 if operators == "shim" else 1

    def run(max_examples, threads, **bounds):
        @settings(
            max_examples=max(3, max_examples // share),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(decodes(**bounds))
        def check(decode):
            nonlocal documents
            with num_threads(threads):
                assert_is_brute_force(device, *decode)
            documents += len(decode[0])

        check()

    small = {"num_labels": (1, 60), "num_repetitions": (1, 12), "num_buckets": (2, 30)}
    run(440, 1, num_documents=(230 // share, 300 // share), **small)
    run(40, 1, num_documents=(0, 40), num_labels=(1, 400), num_repetitions=(1, 40), num_buckets=(2, 200))
    # Several blocks of labels and, with fewer groups of documents than threads, several ranges of them.
    big = {"num_labels": (2000, 9000), "num_repetitions": (1, 9), "num_buckets": (2, 500)}
    run(60, 2, num_documents=(1, 8), **big)
    run(40, 5, num_documents=(1, 20), **big)
    assert documents >= 100_000 / share**2


@parametrize_merge
@pytest.mark.parametrize("R", [1, 2, 5, 40])
def test_topk_every_distribution(device, operators, R, merge):
    """Drawn above; here each of them once with every merge, R odd and even, all labels ranked."""
    generator = torch.Generator().manual_seed(R)
    hash = random_hash(generator, 50, 7, R)
    for distribution in DISTRIBUTIONS.values():
        for dtype in FLOATS:
            scores = distribution(generator, (2 if operators == "shim" else 20, R, 7), dtype)
            for k in (10, 50):
                assert_is_brute_force(device, scores, hash, k, merge)


def like_a_model(generator, hash, N):
    """Logits [N, R, B] in which a few labels stand out in nearly all of their buckets, as a model's do."""
    R, L = hash.buckets.shape
    scores = -7 + 1.2 * torch.randn(N, R, hash.num_buckets, generator=generator)
    for count, mean in ((40, -3.0), (5, 1.0)):
        at = hash.buckets.long()[:, torch.randint(L, (N, count), generator=generator)].transpose(0, 1)
        scores.scatter_(2, at, mean + 1.5 * torch.randn(at.shape, generator=generator))
    return scores


def with_one(value):
    """One bucket of repetition 1 set to the value in every document."""

    def change(scores):
        scores[:, 1, 2] = value
        return scores

    return change


OUTLIERS = {
    "none": lambda scores: scores,
    "one far above": with_one(1e6),
    "one far below": with_one(-1e6),
    "one -inf": with_one(-torch.inf),
    "a tenth -inf": lambda scores: scores.masked_fill(torch.arange(scores.shape[2]) % 10 == 3, -torch.inf),
    "repetitions apart": lambda scores: scores + 100 * torch.arange(scores.shape[1])[:, None],
}


@pytest.mark.parametrize("high", [1e-30, 1.0, 1e29, 1e34, 9e36, 1e38])
@pytest.mark.parametrize("R", [1, 2, 4])
def test_scores_as_far_apart_as_floats_go(device, R, high):
    """One label's bucket is one step above the least float, all others' at it: distances overflow."""
    least, high = torch.tensor(torch.finfo(torch.float32).min), high / R
    scores = torch.full((4, R, 20), least.item())
    scores[:, 1:] = high
    scores[:, 0, 19] = high
    scores[:, 0, 1] = torch.nextafter(least, torch.tensor(0.0))
    table = torch.full((R, 3000), 19)
    table[0] = 0
    table[0, 2500] = 1
    hash = label_hash_of(table, 20)
    for path in PATHS:
        assert_is_brute_force(device, scores, hash, 5, "mean", path)
    for merge in ("min", "median"):
        assert_is_brute_force(device, scores, hash, 5, merge, "scan")


def label_hash_of(table, num_buckets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollisionWarning)
        return LabelHash.from_buckets(table, num_buckets)


@pytest.mark.parametrize("outlier", OUTLIERS)
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("R", [16, 60], ids=lambda R: f"R{R}")
def test_paths_do_what_they_are_for(generator, device, operators, R, merge, outlier):
    """Same bits as the brute force; and the bounds are of use: most labels never get an exact key."""
    if operators != "cpu" and merge == "mean" and R > 16:
        pytest.skip("on a GPU the bounds are not good with many repetitions and outliers")
    if operators == "shim" and R > 16 and outlier not in ("none", "a tenth -inf"):
        pytest.skip("on fibers, of many repetitions only some: minutes")
    L, B, N = (3000, 200, 20) if operators != "shim" else (3000, 200, 5)
    hash = random_hash(generator, L, B, R)
    scores = OUTLIERS[outlier](like_a_model(generator, hash, N))
    for k, path in ((1, "scan"), (5, "scan"), (5, "lists")):
        trace = assert_is_brute_force(device, scores, hash, k, merge, path)
        if outlier == "none" or (merge == "mean" and outlier != "a tenth -inf"):
            taken, _, rescored = trace.unbind(1)
            lists = path == "lists" and merge == "mean"
            assert (taken == (2 if lists else 1)).float().mean() > 0.9
            assert rescored.float().mean() < L / 2


def test_path_is_chosen_by_cost():
    """Peaky scores over many labels: lists for one document, scan for many, direct where labels are few."""
    generator = torch.Generator().manual_seed(1)
    few, many = random_hash(generator, 500, 100, 4), random_hash(generator, 400_000, 4000, 16)
    chosen = {}
    for name, hash, N in (("few", few, 30), ("one", many, 1), ("batch", many, 64)):
        trace = torch.empty(N, 3, dtype=torch.int64)
        scores = like_a_model(generator, hash, N)
        _ops.merge_topk(scores, hash.buckets, hash.label_index(), 5, "mean", trace=trace)
        chosen[name] = trace[:, 0].float().mean().item()
    assert chosen["few"] == 0
    assert chosen["one"] == 2
    assert chosen["batch"] > 0


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("B", [4097, 20_000])
@pytest.mark.parametrize("N", [3, 17, 33])
def test_scan_of_more_buckets_than_shared_memory_holds(device, generator, N, B, merge):
    """On a GPU the table of so many buckets is read from global memory, in rows of 16 or 64 bytes."""
    hash = random_hash(generator, 700, B, 3)
    scores = torch.randn(N, 3, B, generator=generator)
    trace = assert_is_brute_force(device, scores, hash, 5, merge, "scan")
    assert (trace[:, 0] == 1).all()


def test_scan_of_several_chunks_of_documents(device, generator):
    """A GPU takes 256 at a time."""
    hash = random_hash(generator, 300, 40, 2)
    scores = choice([-1.0, 0.0, 0.5, 2.0])(generator, (270, 2, 40), torch.float32)
    assert_is_brute_force(device, scores, hash, 3, "mean", "scan")


def test_more_candidates_than_there_is_room_for(device, generator):
    """Half of the labels tie for the first place."""
    hash = random_hash(generator, 6000, 64, 1)
    scores = (torch.arange(64) < 32).float().expand(3, 1, 64)
    trace = assert_is_brute_force(device, scores, hash, 5, "mean", "scan")
    assert (trace[:, 2] > 3000).all()


def index_of(buckets, num_buckets):
    """The index of a table [R, L], L a multiple of 8, made by the CPU and laid out as a GPU wants it."""
    codes, starts, labels = torch.ops.mach_ext.label_index(buckets, num_buckets)
    return codes.t().contiguous().t(), starts, labels


@pytest.fixture
def gpu(device, operators):
    """The device, for what only the CUDA operators do."""
    if operators == "cpu":
        pytest.skip("of the CUDA operators")
    return device


@pytest.mark.parametrize("B", [500, 5000])  # the scan's table: in shared memory, and in rows of 16 bytes
def test_documents_of_one_batch_take_different_paths(gpu, B):
    """A document with few high buckets goes through lists, the others are scanned."""
    L, R, N = 1 << 15, 8, 20
    generator = torch.Generator().manual_seed(5)
    hash = random_hash(generator, L, B, R)
    index = index_of(hash.buckets, B)
    scores = like_a_model(generator, hash, N)
    scores[1::3] = normal(generator, scores[1::3].shape, torch.float32)
    scores[7, 2, 3] = float("nan")
    expected = _reference.merge_topk(scores, hash.buckets, None, 3, "mean")
    args = *to(gpu, (scores, hash.buckets)), to(gpu, index)
    trace = torch.empty(N, 3, dtype=torch.int64, device=gpu)
    values, labels = _ops.merge_topk(*args, 3, "mean", "lists", trace)
    assert torch.equal(labels.cpu(), expected[1])
    assert bitwise_equal(values, expected[0])
    path, postings, rescored = trace.cpu().unbind(1)
    peaky = torch.ones(N, dtype=torch.bool)
    peaky[1::3] = False
    assert path[7] == 0
    assert (path[peaky] == 2).float().mean() > 0.8
    assert (postings[path == 2] < L * R / 8).all()
    assert (rescored[path == 2] < L / 20).all()
    assert ((path[~peaky] == 1) | (torch.arange(N)[~peaky] == 7)).all()


def test_lists_are_chosen_by_what_they_cost(gpu):
    """By themselves, from a number of labels on; and not where no few buckets stand out."""
    L, R, B, N = 1 << 20, 16, 4000, 2
    generator = torch.Generator().manual_seed(6)
    hash = random_hash(generator, L, B, R)
    scores = torch.cat([like_a_model(generator, hash, N - 1), torch.rand(1, R, B, generator=generator)])
    expected = _reference.merge_topk(scores, hash.buckets, None, 5, "mean")
    args = *to(gpu, (scores, hash.buckets)), to(gpu, index_of(hash.buckets, B))
    trace = torch.empty(N, 3, dtype=torch.int64, device=gpu)
    values, labels = _ops.merge_topk(*args, 5, "mean", "auto", trace)
    assert torch.equal(labels.cpu(), expected[1])
    assert bitwise_equal(values, expected[0])
    path, postings, _ = trace.cpu().unbind(1)
    assert (path[:-1] == 2).float().mean() > 0.8
    assert ((postings[:-1] > 0) & (postings[:-1] < L * R / 50)).all()
    assert trace[-1, :2].tolist() == [1, 0]


def test_sums_of_lists_do_not_run_over(gpu):
    """Five labels that the lists path can't tell apart add up to more than 16 bits hold."""
    R, B, far, others = 250, 2000, 1 << 15, torch.arange(100, 164)
    best = torch.arange(5) * far
    L = 4 * far + 8
    table = torch.ones(L, dtype=torch.int32)
    table[best] = 0
    table[others] = 2
    scores = torch.zeros(1, R, B)
    scores[:, :, 0] = 1
    scores[:, :, 2] = 0.9
    codes, starts, labels = index_of(table[None], B)
    index = codes.t().expand(R, L).contiguous().t(), starts.repeat(R, 1), labels.repeat(R, 1)
    trace = torch.empty(1, 3, dtype=torch.int64, device=gpu)
    args = *to(gpu, (scores, table.expand(R, L))), to(gpu, index)
    values, labels = _ops.merge_topk(*args, 8, "mean", "lists", trace)
    assert labels.tolist() == [[*best.tolist(), 100, 101, 102]]
    assert values[0, :5].tolist() == [1] * 5
    assert trace[0, :2].tolist() == [2, R * (len(best) + len(others))]


def test_sums_of_lists_are_rounded_up(gpu):
    """The best label is almost two steps above the level in all repetitions, others 25 and a half in one."""
    R, B, L = 16, 2000, 4096
    level = 1 / 64  # of the way from the low score, 0, to the high one, 1: the lowest there is
    step = (1 - level) / 62
    table = torch.zeros(R, L, dtype=torch.int32)
    table[:, 1000] = 1
    table[:, 1:41] = 2
    table[0, 1:41] = 3
    scores = torch.zeros(1, R, B)
    scores[:, :, 1] = level + 1.99 * step
    scores[:, :, 2] = level
    scores[:, 0, 3] = level + 25.5 * step
    scores[:, :, 1500] = 1  # of no label
    trace = torch.empty(1, 3, dtype=torch.int64, device=gpu)
    args = *to(gpu, (scores, table)), to(gpu, index_of(table, B))
    _, labels = _ops.merge_topk(*args, 1, "mean", "lists", trace)
    assert labels.tolist() == [[1000]]
    assert trace.tolist() == [[2, R + 40, 41 + 1]]  # all of them got a key, then the candidate


def test_index_in_another_layout(device, operators, generator):
    hash = random_hash(generator, 300, 40, 3, device)
    codes, starts, labels = hash.label_index()
    scores = torch.randn(5, 3, 40, generator=generator).to(device)
    others = [codes.clone(memory_format=torch.contiguous_format)]
    if operators != "cpu":  # as a GPU wants them, but not at an address that loads of 16 bytes can have
        odd = torch.empty(3 * 304 + 1, dtype=torch.uint16, device=device)[1:].view(3, 304).t()[:300]
        others.append(odd.copy_(codes))
    for other in others:
        ours = _ops.merge_topk(scores, hash.buckets, (other, starts, labels), 7, "mean", "scan")
        for a, b in zip(ours, F.merge_topk(scores, hash, 7), strict=True):
            assert bitwise_equal(a, b)


def test_more_buckets_than_a_code_holds(device):
    generator = torch.Generator().manual_seed(2)
    hash = random_hash(generator, 3000, 65_537, 3)
    assert hash.label_index() is None
    assert_is_brute_force(device, torch.randn(2, 3, 65_537, generator=generator), hash, 7, "mean")


@parametrize_merge
@parametrize_dtype
def test_topk_of_200_000_labels(device, operators, merge, dtype):
    generator = torch.Generator().manual_seed(3)
    L = 10_000 if operators == "shim" else 200_000
    hash = random_hash(generator, L, 1000, 4)
    for distribution, k in (("normal", 100), ("few values", 5000), ("NaN and infinities", L)):
        scores = DISTRIBUTIONS[distribution](generator, (3, 4, 1000), dtype)
        assert_is_brute_force(device, scores, hash, k, merge)


def test_topk_by_hand(device):
    """Order: value descending, then label ascending; -0 equals +0; NaN last. A twin could share an error."""
    nan, inf = float("nan"), float("inf")
    keys = [0.0, nan, -0.0, 2.0, -inf, 0.0, 2.0, inf, nan, -1.0]
    hash = LabelHash.from_buckets([list(range(10))]).to(device)
    scores = torch.tensor([[keys]], device=device)
    for merge in MERGES:
        values, labels = F.merge_topk(scores, hash, 10, merge)
        assert labels.tolist() == [[7, 3, 6, 0, 2, 5, 9, 4, 1, 8]]
        assert bitwise_equal(values, torch.tensor([[inf, 2, 2, 0.0, -0.0, 0.0, -1, -inf, nan, nan]]))


@pytest.mark.parametrize(
    ("merge", "even", "odd"),
    [
        ("mean", [2.5, 2.25], [3.0, 1 / 3]),
        ("min", [1.0, -4.0], [1.0, -4.0]),
        ("median", [1.5, 2.5], [2.0, 1.0]),
    ],
)
def test_merges_by_hand(device, merge, even, odd):
    """Label l has the scores in column l, R = 4 and its first 3."""
    scores = torch.tensor([[[6.0, 1.0], [1.0, 4.0], [2.0, -4.0], [1.0, 8.0]]], device=device)
    labels = torch.tensor([0, 1], device=device)
    for R, expected in ((4, even), (3, odd)):
        hash = LabelHash.from_buckets([[0, 1]] * R).to(device)
        assert bitwise_equal(F.merge_scores(scores[:, :R], hash, labels, merge), torch.tensor([expected]))


def test_mean_is_summed_in_order_and_divided_once(device):
    """2^24 + 1 + 1 is 2^24 in this order of float32 and 2^24 + 2 in another; 3 is no power of two."""
    scores = torch.tensor([[[2.0**24], [1.0], [1.0]]], device=device).expand(1, 3, 2).contiguous()
    hash = LabelHash.from_buckets([[0]] * 3).to(device)
    expected = (np.float32(2**24) + np.float32(1) + np.float32(1)) / np.float32(3)
    values, _ = F.merge_topk(scores, hash, 1)
    assert values.item() == expected == np.float32(2**24) / np.float32(3)


@parametrize_merge
@parametrize_dtype
def test_topk_does_not_depend_on_batch_or_threads(generator, merge, dtype):
    hash = random_hash(generator, 5000, 40, 5)
    scores = choice([-1.0, 0.0, 0.5, 2.0])(generator, (19, 5, 40), dtype)
    assert_deterministic(lambda: F.merge_topk(scores, hash, 30, merge))
    if dtype == torch.float32:
        args = (scores, hash.buckets, hash.label_index(), 30, merge)
        for path in PATHS:
            assert_deterministic(lambda path=path: _ops.merge_topk(*args, path=path))
    together = F.merge_topk(scores, hash, 30, merge)
    for n in range(19):
        alone = F.merge_topk(scores[n : n + 1], hash, 30, merge)
        for a, b in zip(alone, together, strict=True):
            assert bitwise_equal(a[0], b[n])
    fewer = F.merge_topk(scores, hash, 7, merge)
    for a, b in zip(fewer, together, strict=True):
        assert bitwise_equal(a, b[:, :7])


def test_scores_past_2_to_the_31_elements():
    """Offsets between documents are 64 bits. The zeros are mapped, never touched."""
    try:
        base = torch.from_numpy(np.zeros(2**31 + 64, dtype=np.float32))
    except MemoryError:
        pytest.skip("8 GiB of address space are not to be had")
    base[2**31 :] = torch.arange(64.0)
    scores = base.as_strided((2, 2, 8), (2**31, 8, 1))
    hash = LabelHash.from_buckets([[0, 3, 7], [1, 1, 5]], num_buckets=8)
    values, labels = F.merge_topk(scores, hash, 2)
    assert labels.tolist() == [[0, 1], [2, 1]]
    assert values.tolist() == [[0, 0], [(7 + 13) / 2, (3 + 9) / 2]]

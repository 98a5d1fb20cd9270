"""The CUDA scan of merge_topk: which documents leave it, and who searches all labels of those.

Bits are compared with the brute force's, as in test_merge_topk.py.
"""

import warnings

import pytest
import torch
from helpers import SHIM_SEEDS, bitwise_equal, random_hash, to
from merge_cases import MERGES

from mach_ext import CollisionWarning, LabelHash, _ops, _reference

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def gpu(device, operators):
    """The device, for what only the CUDA operators do."""
    if operators == "cpu":
        pytest.skip("of the CUDA operators")
    return device


@pytest.fixture
def shim(device, operators, shim_ops):
    """The library that runs the kernels without a GPU."""
    if operators != "shim":
        pytest.skip("counted where kernels run on fibers")
    return shim_ops.library


def logits(generator, hash, N):
    return torch.randn(N, len(hash.buckets), hash.num_buckets, generator=generator)


def peaky(generator, hash, N):
    """Low logits, and 45 labels of each document that stand out in all of their buckets."""
    scores = 1.2 * logits(generator, hash, N) - 7
    at = torch.randint(hash.num_labels, (N, 45), generator=generator)
    at = hash.buckets.long()[:, at].transpose(0, 1)
    return scores.scatter_(2, at, 1.5 * torch.randn(at.shape, generator=generator) - 2)


def with_outliers(count, value):
    def draw(generator, hash, N):
        scores = logits(generator, hash, N)
        at = torch.rand(scores.shape, generator=generator).topk(count, 2).indices
        return scores.scatter_(2, at, value)

    return draw


KINDS = {
    "logits": logits,
    "peaky": peaky,
    "probabilities": lambda *args: peaky(*args).sigmoid(),
    "saturated probabilities": lambda *args: (20 * logits(*args) + 10).sigmoid(),
    "softmax": lambda *args: (3 * logits(*args)).softmax(2),
    "low outlier": with_outliers(1, -1e4),
    "three low outliers": with_outliers(3, -1e4),
    "one bucket of -inf": with_outliers(1, -torch.inf),
    "two values": lambda *args: (logits(*args) > 0.5).float(),
}


def index_of(hash):
    """The index as a GPU wants it, made by the CPU. L must be a multiple of 8."""
    codes, starts, labels = torch.ops.mach_ext.label_index(hash.buckets, hash.num_buckets)
    return codes.t().contiguous().t(), starts, labels


def scan(device, scores, hash, k, merge, compare=True):
    """The trace of a scan, whose result is the brute force's."""
    trace = torch.empty(len(scores), 3, dtype=torch.int64, device=device)
    args = *to(device, (scores, hash.buckets)), to(device, index_of(hash))
    values, labels = _ops.merge_topk(*args, k, merge, "scan", trace)
    if compare:
        expected = _reference.merge_topk(scores, hash.buckets, None, k, merge)
        assert torch.equal(labels.cpu(), expected[1])
        assert bitwise_equal(values, expected[0])
    return trace.cpu()


@pytest.mark.parametrize("B", [32, 48, 64, 96])
@pytest.mark.parametrize("kind", KINDS)
def test_few_buckets_are_scanned(gpu, kind, B):
    """A low score that is none makes all sums look alike, and all labels get an exact key."""
    L = 20_000
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        hash = random_hash(generator, L, B, 16)
        trace = scan(gpu, KINDS[kind](generator, hash, 4), hash, 5, "mean")
        assert (trace[:, 0] == 1).all()
        assert (trace[:, 2] < L / 5).all()


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    ("R", "B", "L", "k"),
    [
        (8, 16, 5000, 1),
        (64, 16, 20_000, 100),  # of 64 lists of 1250 labels, few labels are in none
        (64, 32, 20_000, 5),
        (33, 17, 8000, 20),
        (16, 128, 100_000, 100),
        (8, 500, 20_000, 10),
        (16, 513, 8000, 10),
        (16, 1000, 20_000, 5),
    ],
)
def test_ordinary_scores_are_scanned(gpu, R, B, L, k, merge):
    generator = torch.Generator().manual_seed(R + B)
    hash = random_hash(generator, L, B, R)
    outliers = 0 if merge == "min" and B < 20 * R else 1 if merge == "min" or B < 20 else 3
    kinds = [logits, peaky, lambda *args: peaky(*args).sigmoid()]
    kinds += [with_outliers(outliers, -1e4)] if outliers else []
    for kind in kinds:
        trace = scan(gpu, kind(generator, hash, 2), hash, k, merge)
        assert (trace[:, 0] == 1).all(), (kind, trace)


def degenerate(hash, N):
    """Documents whose labels a scan can't tell apart, of all sorts in turn; scores [N, R, B]."""
    R, L = hash.buckets.shape
    scores = logits(torch.Generator().manual_seed(N), hash, N)
    scores[0::6] = torch.nan
    scores[1::6, 0, hash.buckets[0, L // 2]] = torch.inf
    scores[2::6] = 0.5
    scores[3::6, R - 1, hash.buckets[R - 1, 0]] = torch.nan
    scores[4::6] = -torch.inf
    scores[5::6, :, :] = torch.tensor([0.0, -0.0]).repeat(hash.num_buckets)[: hash.num_buckets]
    return scores


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    ("N", "L", "k"),
    [(1, 20_000, 5), (6, 20_000, 300), (7, 2056, 1), (3, 4104, 1024), (2, 1032, 1024), (13, 6000, 700)],
)
def test_documents_that_leave_the_scan(gpu, merge, N, L, k):
    """NaN, infinities, ties: exact, in any number, alone in a batch or beside others."""
    hash = random_hash(torch.Generator().manual_seed(L), L, 24, 3)
    scores = degenerate(hash, N)
    trace = scan(gpu, scores, hash, k, merge)
    if merge == "mean":
        assert trace.tolist() == [[0, 0, L]] * N
    scores[N // 2] = logits(torch.Generator().manual_seed(1), hash, 1)[0]
    scan(gpu, scores, hash, k, merge)


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("k", [1, 1000])
def test_labels_of_ascending_keys_leave_the_scan(gpu, ascending, k):
    """Each label is better than all before it: what a block holds of its part overflows again and again."""
    L, B = 40_000, 5001
    table = (torch.arange(L) // 8).expand(1, L)
    scores = torch.arange(B, dtype=torch.float32) * (1 if ascending else -1)
    scores[-1] = torch.nan  # of no label
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollisionWarning)
        hash = LabelHash.from_buckets(table, B)
    trace = scan(gpu, scores.expand(3, 1, B), hash, k, "mean")
    assert trace.tolist() == [[0, 0, L]] * 3


def counts(shim):
    """{kernel: [launches, blocks, threads, switches, blocks that worked]} so far."""
    lines = shim.mach_shim_totals().decode().splitlines()
    return {name: [int(n) for n in numbers] for name, *numbers in map(str.split, lines)}


def counted(shim, call):
    before = counts(shim)
    call()
    none = [0] * 5
    differences = {
        name: [a - b for a, b in zip(numbers, before.get(name, none), strict=True)]
        for name, numbers in counts(shim).items()
    }
    return {name: numbers for name, numbers in differences.items() if numbers[0]}


def test_a_document_that_leaves_the_scan_is_shared_by_blocks(shim, gpu):
    """One block for each 2048 labels, where one leaves; and not a launch more than where none does."""
    L = 100_000
    hash = random_hash(torch.Generator().manual_seed(1), L, 64, 4)
    ordinary = logits(torch.Generator().manual_seed(2), hash, 3)
    one, all_three = ordinary.clone(), ordinary.clone()
    one[1, 2, 5] = torch.nan
    all_three[:, 2, 5] = torch.inf
    runs = {}
    for name, scores in (("ordinary", ordinary), ("one", one), ("all", all_three)):
        runs[name] = counted(shim, lambda scores=scores: scan(gpu, scores, hash, 5, "mean", compare=False))
    launched = [{name: n[:3] for name, n in run.items()} for run in runs.values()]
    assert launched[0] == launched[1] == launched[2]
    seeds = len(SHIM_SEEDS)
    assert sum(n[0] for n in runs["one"].values()) == 8 * seeds  # a chunk of documents: eight launches
    assert runs["ordinary"]["parts_kernel"][4] == 0
    assert runs["one"]["parts_kernel"][4] == L // 2048 * seeds
    assert runs["all"]["parts_kernel"][4] >= 3 * (L // 2048) * seeds
    # No block of another kernel is left with all labels: the last one sees 5 of each part.
    assert runs["one"]["merge_topk_kernel"][3] < 2 * runs["ordinary"]["merge_topk_kernel"][3]


def test_label_index_waits_when_all_is_written(shim, gpu):
    """The index is cached, and the first to read it may be on another stream."""
    hash = random_hash(torch.Generator().manual_seed(1), 3000, 64, 4)
    shim.mach_shim_events()
    _ops.label_index(hash.buckets, 64)
    events = shim.mach_shim_events().decode().split()
    calls = ["label_codes_kernel", *["label_lists_kernel"] * 4, "cudaStreamSynchronize"]
    assert events == calls * len(SHIM_SEEDS)


@pytest.mark.parametrize("order", ["ascending", "random"])
def test_a_block_goes_through_many_tiles(gpu, generator, order):
    """More than half as many documents as there are blocks: each has one, which fills its buffer anew."""
    N, L, B = 140, 9000, 300
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollisionWarning)
        hash = LabelHash.from_buckets((torch.arange(L) * B // L).repeat(2, 1), B)
    scores = logits(generator, hash, N)
    if order == "ascending":  # every tile has greater keys than all before
        scores = scores.sort(2).values
    scores[:, 0, 7] = torch.nan
    for k in (5, 1024):
        trace = scan(gpu, scores, hash, k, "mean")
        assert (trace[:, 2] == L).all()


def test_parts_find_room_for_their_labels(gpu, generator):
    """The first 1024 of every part are kept: there must not be more parts than have room."""
    L, B = 100_000, 1001
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollisionWarning)
        hash = LabelHash.from_buckets((torch.arange(L) * (B - 1) // L).expand(1, L), B)
    scores = logits(generator, hash, 2).sort(2).values  # the best labels are in the last part
    scores[:, :, -1] = torch.nan  # of no label
    assert scan(gpu, scores, hash, 1024, "mean")[:, 2].tolist() == [L, L]

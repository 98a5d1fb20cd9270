"""Decode (merge + exact top-k): ours beside two forms in PyTorch and the scheme of the original MACH.

`test_decode` is the list of promises, and `test_real` has the scores of trained models. The tests
`test_paths` compare our own ways. `test_grid` has some sixty shapes and score distributions. Before anything
is timed, all providers must agree.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from harness import Floor, Part, Target, original_mach, seconds
from inputs import KINDS, bucket_scores, label_hash, real_scores
from torch import Tensor

import mach_ext
from mach_ext import _ops
from mach_ext import functional as F

TopK = tuple[Tensor, Tensor]  # values, labels [N, k]


# ------------------------------------------------------------------------------------------------- baselines


def gather_topk(scores: Tensor, buckets: Tensor, k: int, documents: int) -> TopK:
    """PyTorch, gather + mean + topk, so many documents at a time: scores of documents x L labels are held."""
    R = scores.shape[1]
    best = []
    for block in scores.split(documents):
        total = block[:, 0].index_select(1, buckets[0])
        for r in range(1, R):
            total += block[:, r].index_select(1, buckets[r])
        best.append((total / R).topk(k))
    return torch.cat([v for v, _ in best]), torch.cat([i for _, i in best])


def embedding_bag_topk(scores: Tensor, codes: Tensor, k: int, documents: int, labels: int) -> TopK:
    """PyTorch, embedding_bag over the transposed scores: a label is a bag of R rows of [R * B, documents].

    codes [L, R]: bucket + r * B. Documents are taken a few at a time, so that their scores stay in the cache.
    Labels are taken so many at a time that the sums stay there. The k best of each piece meet in a last topk.
    """
    _, R, B = scores.shape
    blocks = []
    for block in scores.split(documents):
        weight = block.reshape(-1, R * B).t().contiguous()
        values, ids = [], []
        for first in range(0, codes.shape[0], labels):
            total = torch.nn.functional.embedding_bag(codes[first : first + labels], weight, mode="sum")
            v, i = total.t().contiguous().topk(min(k, total.shape[0]))
            values.append(v)
            ids.append(i + first)
        best, at = torch.cat(values, 1).topk(k)
        blocks.append((best / R, torch.cat(ids, 1).gather(1, at)))
    return torch.cat([v for v, _ in blocks]), torch.cat([i for _, i in blocks])


def original_topk(scores: Tensor, buckets: Tensor, k: int, buffer: Tensor) -> TopK:
    """The original scheme in C++ (original_mach.cpp). Its buffer [N, L] is allocated once."""
    N, R, B = scores.shape
    values, labels = torch.empty(N, k), torch.empty(N, k, dtype=torch.int64)
    original_mach().original_mach(
        *(t.data_ptr() for t in (scores, buckets)), N, R, B, buckets.shape[1], k,
        *(t.data_ptr() for t in (buffer, values, labels)), torch.get_num_threads(),
    )  # fmt: skip
    return values, labels


def agree(ours: TopK, theirs: TopK) -> None:
    """Values are the same. So are labels where the value is apart from its neighbours (and not the last)."""
    value, other = ours[0][: len(theirs[0])], theirs[0]
    torch.testing.assert_close(value, other, rtol=2e-5, atol=2e-5)
    apart = (other[:, :-1] - other[:, 1:]).abs() > 1e-4 * (1 + other[:, 1:].abs())
    yes = torch.ones(len(other), 1, dtype=torch.bool)
    alone = (torch.cat((yes, apart), 1) & torch.cat((apart, ~yes), 1)).nonzero(as_tuple=True)
    assert torch.equal(ours[1][: len(other)][alone], theirs[1][alone])


@functools.lru_cache(maxsize=1)
def codes(hash: mach_ext.LabelHash) -> Tensor:
    """[L, R] int32: rows of the transposed scores. Once for each hash, so outside of every timing."""
    offsets = torch.arange(hash.num_repetitions, dtype=torch.int32) * hash.num_buckets
    return (hash.buckets + offsets[:, None]).t().contiguous()


def baselines(
    scores: Tensor, hash: mach_ext.LabelHash, k: int, documents: int, original: bool
) -> dict[str, Callable[[], TopK] | Part]:
    """The providers beside ours, on the first `documents` documents, PyTorch's in their fastest blocking."""
    N, L = scores.shape[0], hash.num_labels
    part_scores, table, rows = scores[:documents].contiguous(), hash.buckets, codes(hash)
    sizes = [n for n in (1, 4) if n <= documents]
    at_a_time = fastest(sizes, lambda n: gather_topk(part_scores[:4], table, k, n))
    few = rows[: max(L // 32, 1 << 16)]
    blocks = [
        (n, max(k, held // n))
        for n in sorted({min(documents, n) for n in (8, 32, 128)})
        for held in (1 << 18, 1 << 22)  # sums held: 1 or 16 MB
    ]
    block = fastest(blocks, lambda b: embedding_bag_topk(part_scores, few, min(k, len(few)), *b))
    calls: dict[str, Callable[[], TopK]] = {
        "torch gather": lambda: gather_topk(part_scores, table, k, at_a_time),
        "torch embedding_bag": lambda: embedding_bag_topk(part_scores, rows, k, *block),
    }
    if original:
        buffer = torch.empty(documents, L)
        calls["original MACH"] = lambda: original_topk(part_scores, table, k, buffer)
    part = functools.partial(Part, scale=N / documents, what=f"{documents} of {N} documents")
    return {name: part(call) for name, call in calls.items()} if documents < N else dict(calls)


def fastest(choices: list[Any], call: Callable[[Any], Any]) -> Any:
    return min(choices, key=lambda choice: seconds(lambda: call(choice))) if len(choices) > 1 else choices[0]


# --------------------------------------------------------------------------------------------- the promises


class Case(NamedTuple):
    L: int
    R: int
    B: int
    N: int
    k: int
    kind: str = "peaky"
    logits: bool = False


def floor(case: Case) -> Floor:
    """The floor of a scan. What skips labels altogether can go below it, but must read the scores."""
    L, R, B, N, k = case[:5]
    return Floor(
        "of a scan: scores (4 B), codes (2 B) and answers once; for each 64 documents L x R table rows of "
        "64 B, 1.5 cycles each",
        bytes=4 * N * R * B + 2 * L * R + 12 * N * k,
        cycles=1.5 * L * R * math.ceil(N / 64) if N > 1 else 1.5 * L * R / 64,
    )


# work: shape, documents that the baselines decode, {baseline: ratio to reach}
CASES = {
    "670K k5": (Case(670_000, 16, 2000, 256, 5), 32, {"torch": 60, "original": 30}),
    "670K k100": (Case(670_000, 16, 2000, 256, 100), 32, {"torch": 35}),
    "670K flat": (Case(670_000, 16, 2000, 256, 5, "flat"), 32, {"torch": 35}),
    "31K R32": (Case(31_000, 32, 1000, 256, 5), 256, {"torch": 10}),
    "670K B20000": (Case(670_000, 32, 20_000, 256, 5), 32, {"torch": 30}),
    "10M": (Case(10_000_000, 16, 20_000, 16, 5), 4, {"original": 50, "torch": None}),
}


@pytest.mark.parametrize("work", CASES)
def test_decode(compare, work):
    case, documents, targets = CASES[work]
    scores = bucket_scores(case.kind, case.N, case.L, case.R, case.B, case.logits)
    run(compare, "decode", case, scores, label_hash(case.L, case.R, case.B), documents, targets)


def test_cost_a_document_is_constant(compare):
    """The baselines at 670K: all 256 documents beside 32 of them, scaled, as they are timed above."""
    case = CASES["670K k5"][0]
    scores = bucket_scores(case.kind, case.N, case.L, case.R, case.B)
    hash = label_hash(case.L, case.R, case.B)
    shorter, all_ = (baselines(scores, hash, case.k, n, original=True) for n in (32, case.N))
    compare(
        "baselines of decode, 32 documents scaled to 256",
        {name: p for n in shorter for name, p in ((f"{n}, 256", all_[n]), (f"{n}, 32", shorter[n]))},
        shape=case._asdict(),
        floor=floor(case),
        targets=[Target(f"{name}, 32", f"{name}, 256", None) for name in shorter],
        rounds=(2, 3),
    )


@pytest.mark.parametrize("k", [5, 100])
@pytest.mark.parametrize("name", ["wordnet", "eurlex57k"])
@pytest.mark.parametrize("logits", [True, False], ids=["logits", "probabilities"])
def test_real(compare, real_data, name, logits, k):
    scores, hash = real_scores(name, real_data, 256)
    if not logits:
        scores.sigmoid_()
    case = Case(hash.num_labels, hash.num_repetitions, hash.num_buckets, 256, k, name, logits)
    run(compare, "decode", case, scores, hash, 256, {"torch": None, "original": None})


def run(compare, work, case, scores, hash, documents, targets, best_only=False, **limits):
    """Checks that all agree, then compares. best_only: without those that are far behind the best one."""
    k = case.k
    others = baselines(scores, hash, k, documents, original="original" in targets)
    ours = F.merge_topk(scores, hash, k)
    took = {}
    for name, other in others.items():
        start = time.perf_counter()
        theirs = Part.of(other).call()
        took[name] = time.perf_counter() - start
        agree(ours, theirs)
    if best_only:
        others = {name: other for name, other in others.items() if took[name] < 2 * min(took.values())}
    compare(
        work,
        {"mach_ext": lambda: F.merge_topk(scores, hash, k), **others},
        shape=case._asdict(),
        floor=floor(case),
        targets=[Target("mach_ext", over, ratio) for over, ratio in targets.items()],
        **limits,
    )


# ------------------------------------------------------------------------------------------------- the paths

PATHS = ("direct", "scan", "lists")  # in the order of their numbers in a trace
TRAINED = [(name, logits) for name in ("wordnet", "eurlex57k") for logits in (True, False)]
SYNTHETIC = [
    (kind, *shape)
    for kind in ("peaky", "soft", "flat")
    for shape in ((31_000, 32, 1000), (670_000, 16, 2000))
]


@pytest.mark.parametrize("k", [5, 100])
@pytest.mark.parametrize("N", [1, 256])
@pytest.mark.parametrize(("name", "logits"), TRAINED)
def test_paths_trained(compare, real_data, name, logits, N, k):
    scores, hash = real_scores(name, real_data, 256)
    if not logits:
        scores.sigmoid_()
    case = Case(hash.num_labels, hash.num_repetitions, hash.num_buckets, N, k, name, logits)
    compare_paths(compare, case, scores, hash)


@pytest.mark.parametrize("k", [5, 100])
@pytest.mark.parametrize("N", [1, 64])
@pytest.mark.parametrize(("kind", "L", "R", "B"), SYNTHETIC)
def test_paths_synthetic(compare, kind, L, R, B, N, k):
    compare_paths(compare, Case(L, R, B, N, k, kind), bucket_scores(kind, 64, L, R, B), label_hash(L, R, B))


def compare_paths(compare: Callable[..., None], case: Case, scores: Tensor, hash: mach_ext.LabelHash) -> None:
    """What `auto` takes beside each path forced on all documents, and what each had to do (`trace`)."""
    N = case.N
    sample = scores[:: len(scores) // N][:N].contiguous()
    times = 20 if N * case.L * case.R < 1_000_000 else 1

    def decode(path: str, trace: Tensor | None = None) -> TopK:
        args = (sample, hash.buckets, hash.label_index(), case.k, "mean")
        return _ops.merge_topk(*args, path=path, trace=trace)

    def provider(path: str) -> Part:  # after calls of its own, so that what it needs is in the cache
        def warm() -> None:
            for _ in range(4 if N == 1 else 1):
                decode(path)

        def timed(_: None) -> None:
            for _ in range(times):
                decode(path)

        return Part(timed, 1 / times, before=warm)

    details = {}
    answer = decode("direct")
    for path in ("auto", *PATHS):
        trace = torch.empty(N, 3, dtype=torch.int64)
        for ours, direct in zip(decode(path, trace), answer, strict=True):
            assert torch.equal(ours, direct)
        taken, postings, exact = trace.unbind(1)
        details["mach_ext" if path == "auto" else f"path {path}"] = {
            "postings": postings.double().median().item(),
            "labels_scored": exact.double().median().item(),
            **{f"share_{name}": (taken == i).double().mean().item() for i, name in enumerate(PATHS)},
        }
    compare(
        "decode paths",
        {"mach_ext": provider("auto"), **{f"path {path}": provider(path) for path in PATHS}},
        shape=case._asdict(),
        floor=floor(case),
        targets=[Target("mach_ext", "path", 0.9)],
        budget=0.5,
        rounds=(5, 100),
        details=details,
    )


# -------------------------------------------------------------------------------------------------- the grid


def grid() -> list[Case]:
    """Sixty points: every L with every k, kind and N. R, B and the rest take turns, at prime strides.

    Bucket scores stay within 1 GB, N <= 16 at 10M, codes within 200M, and N * L * R within 3e9: seconds.
    """
    points = []
    for i in range(60):
        L = (4_000, 31_000, 131_000, 670_000, 3_000_000, 10_000_000)[i % 6]
        turn = i // 6 + i
        R, B = (4, 8, 16, 32, 64)[turn % 5], (100, 512, 1000, 4000, 20_000)[(turn + i // 30) // 2 % 5]
        while L * R > 200_000_000:
            R //= 2
        k = (1, 5, 10, 100, 1000)[i // 6 % 5]
        N = (1, 3, 16, 64, 100, 256, 1024)[i * 5 % 7]
        N = min(N, (1 << 28) // (R * B), 3_000_000_000 // (L * R), 16 if L == 10_000_000 else N)
        points.append(Case(L, R, B, N, k, list(KINDS)[(i + i // 5) % len(KINDS)], i % 3 == 0))
    return points


@pytest.mark.parametrize("case", grid(), ids=lambda c: "-".join(map(str, c)))
def test_grid(compare, case):
    scores = bucket_scores(case.kind, case.N, case.L, case.R, case.B, case.logits)
    # So many documents that a baseline takes about half a second; all of them where that is not long.
    documents = min(case.N, max(8, 500_000_000 // (case.L * case.R)))
    hash = label_hash(case.L, case.R, case.B)
    limits = {"budget": 0.3, "rounds": (3, 50)}
    run(compare, "decode grid", case, scores, hash, documents, {"torch": 0.95}, best_only=True, **limits)

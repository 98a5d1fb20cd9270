"""The label hash: its values for ever, its randomness, its diagnostics against brute force, its warnings."""

import copy
import doctest
import gc
import hashlib
import io
import itertools
import json
import math
import pickle
import re
import tracemalloc
import types
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import mach_ext
import mach_ext.hashing as hashing
from mach_ext import _hash_buckets, _hash_collisions, _hash_functions, _reference
from mach_ext.hashing import CollisionWarning, LabelHash

PRIME = 2**31 - 1


def quiet(make, *args, **kwargs):
    """Calls `make` with collision warnings off, for tests of something else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollisionWarning)
        return make(*args, **kwargs)


def bucket(seed, r, label, num_buckets):
    """The definition, in Python integers."""
    digest = hashlib.sha256(f"mach_ext.LabelHash/{seed}/{r}".encode()).digest()
    a, b, c, d = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8, 16, 24))
    return (a * label**3 + b * label**2 + c * label + d) % PRIME % num_buckets


def colliding_pairs(table):
    return [
        (i, j)
        for i, j in itertools.combinations(range(table.shape[1]), 2)
        if (table[:, i] == table[:, j]).all()
    ]


# The family


def test_golden_values():
    assert LabelHash(12, 1000, 2).buckets.tolist() == [
        [611, 971, 989, 757, 779, 147, 12, 819, 366, 451, 872, 74],
        [59, 280, 940, 417, 442, 99, 472, 292, 937, 844, 744, 368],
    ]
    assert LabelHash(12, 1000, 2, seed=12345678901234567890).buckets.tolist() == [
        [309, 177, 3, 881, 552, 110, 649, 557, 634, 915, 200, 877],
        [475, 865, 579, 31, 282, 99, 249, 440, 792, 719, 282, 248],
    ]
    assert LabelHash(300_000, PRIME, 3).buckets[:, -1].tolist() == [1158941364, 1760942883, 1239616458]


@pytest.mark.parametrize(("num_buckets", "seed"), [(2, 0), (1000, 7), (PRIME, 2**70)])
def test_equals_the_definition(num_buckets, seed):
    num_labels, num_repetitions = 100_003, 5  # several chunks, the last one not full
    table = quiet(LabelHash, num_labels, num_buckets, num_repetitions, seed).buckets
    chunk = _hash_functions._CHUNK
    labels = [0, 1, 2, chunk - 1, chunk, chunk + 1, num_labels - 1, *range(50, num_labels, 997)]
    for r in range(num_repetitions):
        assert table[r, labels].tolist() == [bucket(seed, r, label, num_buckets) for label in labels]


def test_highest_labels_and_the_value_p_itself(monkeypatch):
    # Coefficients (0, 0, p - 1, c) give c - label: 0 at label = c, which folding may leave as p.
    monkeypatch.setattr(_hash_functions, "_coefficients", lambda seed, r: [0, 0, PRIME - 1, 5 + r])
    table = _hash_functions.hash_labels(8, 1000, 2, 0).tolist()
    assert table == [[(c - label) % PRIME % 1000 for label in range(8)] for c in (5, 6)]
    # The largest label and coefficients there are: nothing may overflow.
    monkeypatch.setattr(_hash_functions, "_coefficients", lambda seed, r: [PRIME - 1] * 4)
    arange = np.arange
    top = PRIME - 2 - 63
    monkeypatch.setattr(np, "arange", lambda start, stop, **kw: arange(top + start, top + stop, **kw))
    expected = [-(x**3 + x**2 + x + 1) % PRIME for x in range(top, top + 64)]
    assert _hash_functions.hash_labels(64, PRIME, 1, 0).tolist() == [expected]


def test_table_and_attributes():
    hash = LabelHash(np.int64(500), np.int32(40), np.uint8(6), seed=np.int64(3))
    assert hash.buckets.shape == (6, 500)
    assert hash.buckets.dtype == torch.int32
    assert hash.buckets.is_contiguous()
    assert hash.buckets.device.type == "cpu"
    assert (hash.num_labels, hash.num_buckets, hash.num_repetitions, hash.seed) == (500, 40, 6, 3)
    assert all(type(value) is int for value in (hash.num_labels, hash.num_buckets, hash.seed))
    assert hash == LabelHash(500, 40, 6, 3)


def test_more_labels_or_repetitions_change_nothing():
    large = LabelHash(70_000, 512, 32, seed=5).buckets
    small = LabelHash(1_234, 512, 4, seed=5).buckets
    assert torch.equal(large[:4, :1_234], small)
    assert len({tuple(row.tolist()) for row in large[:, :100]}) == 32
    assert not torch.equal(LabelHash(1_234, 512, 4, seed=6).buckets, small)


def test_buckets_are_uniform():
    num_labels, num_buckets = 200_000, 97
    for codes in LabelHash(num_labels, num_buckets, 12).buckets:
        counts = torch.bincount(codes, minlength=num_buckets).double()
        mean = num_labels / num_buckets
        chi_square = ((counts - mean) ** 2 / mean).sum().item()
        # Too even is as wrong as too uneven: label mod B would give 0.
        assert abs(chi_square - (num_buckets - 1)) < 5 * math.sqrt(2 * (num_buckets - 1))


def test_every_pair_of_labels_collides_once_in_b():
    num_labels, num_buckets, num_repetitions = 40, 16, 4000
    codes = LabelHash(num_labels, num_buckets, num_repetitions).buckets.T
    first, second = np.triu_indices(num_labels, 1)
    rate = (codes[first] == codes[second]).double().mean(dim=1)
    std = math.sqrt((1 / num_buckets) * (1 - 1 / num_buckets) / num_repetitions)
    assert rate.max() < 1 / num_buckets + 5 * std
    assert rate.min() > 1 / num_buckets - 5 * std


def test_number_of_collisions_has_the_mean_and_variance_of_random_buckets():
    hashes = [quiet(LabelHash, 30_938, 100, 3, seed) for seed in range(20)]
    counts = np.array([quiet(hash.diagnostics).colliding_pairs for hash in hashes])
    expected = quiet(hashes[0].diagnostics).expected_colliding_pairs
    assert expected == pytest.approx(478.56, abs=0.01)
    assert abs(counts.mean() - expected) < 4 * math.sqrt(expected / 20)
    assert 0.5 < counts.std(ddof=1) / math.sqrt(expected) < 1.6  # a*x + b: lumps, several times this


# Wrong arguments


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((0, 10, 2), ValueError, r"LabelHash: num_labels must be from 1 to 2147483646, got 0"),
        ((2**31 - 1, 10, 2), ValueError, r"num_labels must be from 1 to 2147483646, got 2147483647"),
        ((10, 1, 2), ValueError, r"num_buckets must be from 2 to 2147483647, got 1"),
        ((10, 2**31, 2), ValueError, r"num_buckets must be from 2 to 2147483647, got 2147483648"),
        ((10, 10, 0), ValueError, r"num_repetitions must be at least 1, got 0"),
        ((10, 10, 2, -1), ValueError, r"seed must be at least 0, got -1"),
        ((True, 10, 2), TypeError, r"num_labels must be an integer, got True \(bool\)"),
        ((10, 10.0, 2), TypeError, r"num_buckets must be an integer, got 10.0 \(float\)"),
        ((10, 10, "2"), TypeError, r"num_repetitions must be an integer, got '2' \(str\)"),
        ((10, 10, 2, None), TypeError, r"seed must be an integer, got None \(NoneType\)"),
        ((10, 10, 2, np.bool_(True)), TypeError, r"seed must be an integer"),
    ],
)
def test_wrong_arguments(args, error, message):
    with pytest.raises(error, match=message):
        LabelHash(*args)


@pytest.mark.parametrize(
    ("table", "num_buckets", "error", "message"),
    [
        ([0, 1], None, ValueError, r"from_buckets: table must be \[R, L\] .* got shape \[2\]"),
        (np.zeros((2, 0), int), None, ValueError, r"got shape \[2, 0\]"),
        (torch.zeros(0, 3, dtype=torch.int32), None, ValueError, r"got shape \[0, 3\]"),
        ([[0.0, 1.0]], None, TypeError, r"table must hold integers, got float64"),
        (np.array([[True, False]]), None, TypeError, r"table must hold integers, got bool"),
        (torch.zeros(1, 2, dtype=torch.bfloat16), None, TypeError, r"integers, got torch.bfloat16"),
        (torch.zeros(1, 2, dtype=torch.bool), None, TypeError, r"integers, got torch.bool"),
        ([[0, 1, 2], [3, 9, 4]], 5, ValueError, r"repetition 1, label 1 has bucket 9, outside \[0, 5\)"),
        ([[0, 1, -2], [3, 9, 4]], None, ValueError, r"repetition 0, label 2 has bucket -2, outside \[0, 2"),
        ([[0, 2**31 - 1]], None, ValueError, r"label 1 has bucket 2147483647, outside \[0, 2147483647\)"),
        (np.array([[2**64 - 1]], np.uint64), None, ValueError, r"label 0 has bucket 18446744073709551615,"),
        ([[0, 0]], 1, ValueError, r"from_buckets: num_buckets must be from 2 to 2147483647, got 1"),
        ([[0, 0]], 2.5, TypeError, r"from_buckets: num_buckets must be an integer, got 2.5"),
    ],
)
def test_wrong_tables(table, num_buckets, error, message):
    with pytest.raises(error, match=message):
        LabelHash.from_buckets(table, num_buckets)


# Tables from elsewhere


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.int64, np.uint64])
def test_from_buckets_takes_any_integers(dtype):
    table = np.array([[0, 4, 2], [1, 0, 3]], dtype)
    for given_table in (table, torch.from_numpy(table), np.asfortranarray(table), table.tolist()):
        hash = LabelHash.from_buckets(given_table)
        assert hash.buckets.tolist() == [[0, 4, 2], [1, 0, 3]]
        assert hash.buckets.dtype == torch.int32
        assert hash.buckets.is_contiguous()
        assert (hash.num_labels, hash.num_buckets, hash.num_repetitions, hash.seed) == (3, 5, 2, None)
    assert LabelHash.from_buckets(table, num_buckets=9).num_buckets == 9


def test_from_buckets_has_two_buckets_at_least():
    assert LabelHash.from_buckets([[0]]).num_buckets == 2


@pytest.mark.parametrize("make", [lambda t: t, torch.from_numpy])
def test_from_buckets_copies(make):
    table = np.array([[0, 1, 2]], np.int32)
    hash = LabelHash.from_buckets(make(table))
    table[:] = 0
    assert hash.buckets.tolist() == [[0, 1, 2]]


# Diagnostics


def check_diagnostics(table, num_buckets):
    diagnostics = quiet(lambda: LabelHash.from_buckets(table, num_buckets).diagnostics())
    num_repetitions, num_labels = table.shape
    pairs = colliding_pairs(table)
    assert diagnostics.colliding_pairs == len(pairs)
    expected = math.comb(num_labels, 2) / num_buckets**num_repetitions
    assert diagnostics.expected_colliding_pairs == pytest.approx(expected)

    groups = {}
    for label in range(num_labels):
        groups.setdefault(tuple(table[:, label]), []).append(label)
    groups = [group for group in groups.values() if len(group) > 1]
    sizes = sorted(map(len, groups), reverse=True)
    assert [len(group) for group in diagnostics.colliding_groups] == [min(n, 10) for n in sizes[:10]]
    assert all(list(example) in [g[:10] for g in groups] for example in diagnostics.colliding_groups)
    assert len(set(diagnostics.colliding_groups)) == len(diagnostics.colliding_groups)

    for codes, load in zip(table, diagnostics.load, strict=True):
        if num_buckets < 1000:
            counts = np.bincount(codes, minlength=num_buckets)
            assert (load.min, load.max, load.empty) == (counts.min(), counts.max(), (counts == 0).sum())
            assert (load.mean, load.std) == pytest.approx((counts.mean(), counts.std()))


@st.composite
def tables(draw):
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 40)))
    num_buckets = draw(st.sampled_from([2, 3, 50, 2**16, PRIME]))
    # Few distinct values, so that labels collide however large B is.
    values = draw(st.lists(st.integers(0, num_buckets - 1), min_size=1, max_size=3))
    return draw(arrays(np.int64, shape, elements=st.sampled_from(values))), num_buckets


@settings(deadline=None)
@given(tables())
def test_diagnostics_against_brute_force(table_and_buckets):
    check_diagnostics(*table_and_buckets)


@pytest.mark.parametrize("num_buckets", [2, 300, 2**13, 2**21, PRIME])
@pytest.mark.parametrize("num_repetitions", [1, 2, 3, 5, 9, 70])
def test_diagnostics_when_one_repetition_tells_labels_apart(num_buckets, num_repetitions):
    """Labels that differ in one repetition only, first, last or between, however keys are packed."""
    rng = np.random.default_rng(0)
    table = np.repeat(rng.integers(0, num_buckets, (num_repetitions, 1)), 3 * num_repetitions + 2, axis=1)
    for r in range(num_repetitions):
        table[r, 3 * r] = (table[r, 3 * r] + num_buckets // 2) % num_buckets
    check_diagnostics(table, num_buckets)
    same = 2 * num_repetitions + 2  # of three labels one differs
    pairs = quiet(lambda: LabelHash.from_buckets(table, num_buckets).diagnostics()).colliding_pairs
    assert pairs == math.comb(same, 2)


def test_diagnostics_when_many_groups_go_on_to_the_next_key():
    table = np.zeros((124, 10), int)  # 62 repetitions fill a key; five pairs get past the first
    table[:3] = [[label // 2 >> bit & 1 for label in range(10)] for bit in (2, 1, 0)]
    check_diagnostics(table, 2)


def test_diagnostics_of_a_seeded_hash():
    hash = quiet(LabelHash, 300, 7, 3, seed=2)
    check_diagnostics(hash.buckets.numpy(), 7)
    diagnostics = quiet(hash.diagnostics)
    assert diagnostics.colliding_pairs == len(colliding_pairs(hash.buckets.numpy())) > 0
    assert (diagnostics.num_labels, diagnostics.num_buckets, diagnostics.num_repetitions) == (300, 7, 3)
    assert diagnostics.seed == 2
    assert diagnostics.bytes == {"buckets": 300 * 3 * 4, "everything": 300 * 3 * 4}


def test_diagnostics_of_one_label():
    diagnostics = LabelHash(1, 10, 2).diagnostics()
    assert (diagnostics.colliding_pairs, diagnostics.expected_colliding_pairs) == (0, 0.0)
    assert [(load.min, load.max, load.empty) for load in diagnostics.load] == [(0, 1, 9)] * 2


def peak_bytes(function, *args):
    gc.collect()
    tracemalloc.start()
    try:
        function(*args)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory():
    num_labels = 2**20
    table = num_labels * 4 * 4
    assert table < peak_bytes(LabelHash, num_labels, 50_000, 4) < table + 10 * 8 * _hash_functions._CHUNK
    hash = LabelHash(num_labels, 50_000, 4)
    assert peak_bytes(hash.diagnostics) < 60 * num_labels
    assert peak_bytes(_hash_collisions.bucket_load, np.array([0, PRIME - 1], np.int32), PRIME) < 100_000


def test_diagnostics_are_readable_and_json():
    diagnostics = quiet(lambda: LabelHash.from_buckets([[0, 1, 0, 3]] * 2).diagnostics())
    text = str(diagnostics)
    assert "4 labels, 4 buckets, 2 repetitions (given table), 32 bytes" in text
    assert "share all their buckets: 1 (random buckets: 0.375 expected)" in text
    assert "for example 0, 2" in text
    load = {"min": 0, "mean": 1.0, "max": 2, "std": math.sqrt(0.5), "empty": 1}
    assert json.loads(json.dumps(diagnostics.as_dict())) == {
        "num_labels": 4,
        "num_buckets": 4,
        "num_repetitions": 2,
        "seed": None,
        "load": [load, load],
        "expected_colliding_pairs": 0.375,
        "colliding_pairs": 1,
        "colliding_groups": [[0, 2]],
        "bytes": {"buckets": 32, "everything": 32},
    }
    assert "(seed 9)" in str(LabelHash(10, 5, 9, seed=9).diagnostics())


def test_diagnostics_are_cached(monkeypatch):
    hash = LabelHash(100, 50, 8)
    first = hash.diagnostics()
    monkeypatch.setattr(_hash_collisions, "_colliding_labels", None)
    monkeypatch.setattr(hashing, "bucket_load", None)
    assert hash.diagnostics() == first


# Warnings


def test_constructor_warns_of_collisions():
    with pytest.warns(CollisionWarning) as caught:
        hash = LabelHash(30_938, 100, 3)
    pairs = quiet(hash.diagnostics).colliding_pairs
    assert str(caught[0].message) == (
        f"{pairs} label pairs share their bucket in all 3 repetitions and can never be told apart "
        "(L=30938, B=100, R=3: 478.6 pairs expected of random buckets). R=6 at B=100, or B=3631 at R=3, "
        "expects fewer than 0.01 pairs; which labels: diagnostics()."
    )
    assert caught[0].filename == __file__
    assert math.comb(30_938, 2) / 3631**3 < 0.01 <= math.comb(30_938, 2) / 3630**3


def test_from_buckets_warns_of_collisions():
    with pytest.warns(CollisionWarning, match=r"^1 label pair shares its bucket in the only repetition and"):
        LabelHash.from_buckets([[5, 8, 5]])
    table = torch.arange(100).repeat(9, 1)  # none expected, one made
    table[:, 7] = 3
    with pytest.warns(
        CollisionWarning, match=r"^1 label pair shares its bucket in all 9 repetitions"
    ) as caught:
        LabelHash.from_buckets(table)
    assert caught[0].filename == __file__


def test_no_advice_that_cannot_be_followed():
    with pytest.warns(CollisionWarning, match=r"random buckets\). R=4 at B=1000 expects fewer"):
        LabelHash(30_938, 1000, 1)  # one repetition would take more than 2^31 buckets


@pytest.mark.parametrize("sizes", [(2, 2, 1), (3, 2, 5), (50, 7, 2), (10**6, 1000, 3), (10**8, 10**5, 4)])
def test_advice_is_the_smallest(sizes):
    num_labels, num_buckets, num_repetitions = sizes
    pairs = math.comb(num_labels, 2)
    repetitions, buckets = _hash_collisions._sizes_without_collisions(*sizes)
    assert 100 * pairs < num_buckets**repetitions
    assert 100 * pairs >= num_buckets ** (repetitions - 1)
    assert 100 * pairs < buckets**num_repetitions
    assert buckets == 2 or 100 * pairs >= (buckets - 1) ** num_repetitions
    assert _hash_collisions._sizes_without_collisions(1, 10, 3) == (1, 2)


def test_no_search_when_collisions_are_not_plausible(monkeypatch):
    monkeypatch.setattr(_hash_collisions, "_colliding_labels", None)
    LabelHash(100_000, 1000, 5)  # 5e-6 pairs expected
    with pytest.raises(TypeError):
        LabelHash(100_000, 1000, 3)  # 5 pairs expected


def test_no_warning_without_collisions():
    LabelHash.from_buckets([[0, 0, 1, 1], [0, 1, 0, 1]]).diagnostics()
    for seed in range(100):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hash = LabelHash(20, 10, 3, seed)  # 0.19 pairs expected: searched, most have none
            hash.diagnostics()
        assert len(caught) == (len(colliding_pairs(hash.buckets.numpy())) > 0)


def test_warns_once_for_each_hash():
    with pytest.warns(CollisionWarning) as caught:
        hash = LabelHash(1000, 10, 2)
    assert len(caught) == 1
    for same in (hash, hash, copy.deepcopy(hash), pickle.loads(pickle.dumps(hash))):
        assert same.diagnostics().colliding_pairs > 0  # warnings are errors here
    hash.to("meta").diagnostics()


def test_diagnostics_warns_where_the_constructor_did_not_look(monkeypatch):
    monkeypatch.setattr(hashing, "collisions_plausible", lambda *sizes: False)
    hash = LabelHash(1000, 10, 2)
    monkeypatch.undo()
    with pytest.warns(CollisionWarning, match=r"label pairs share their bucket in all 2 repetitions"):
        hash.diagnostics()
    hash.diagnostics()  # no second one


# A value like others


def test_equality_and_hash():
    hash = LabelHash(100, 50, 8, seed=1)
    same = [LabelHash(100, 50, 8, seed=1), LabelHash.from_buckets(hash.buckets, num_buckets=50)]
    others = [
        LabelHash(100, 50, 8, seed=2),
        LabelHash(100, 51, 8, seed=1),
        LabelHash(99, 50, 8, seed=1),
        LabelHash(100, 50, 7, seed=1),
        LabelHash.from_buckets(hash.buckets, num_buckets=51),
        LabelHash.from_buckets(hash.buckets.flip(0), num_buckets=50),
    ]
    assert others[-1] != same[-1]
    for twin in same:
        assert hash == twin
        assert twin == hash
        assert len({hash, twin}) == 1
    for other in others:
        assert hash != other
        assert len({hash, other}) == 2
    assert hash != "LabelHash"


def test_repr():
    hash = LabelHash(100, 50, 8, seed=1)
    assert eval(repr(hash)) == hash
    assert (
        repr(LabelHash.from_buckets(hash.buckets))
        == "LabelHash.from_buckets(<table [8, 100]>, num_buckets=50)"
    )


@pytest.mark.parametrize("make", [lambda: LabelHash(100, 50, 8), lambda: LabelHash.from_buckets([[1, 0, 2]])])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))])
def test_copies(make, duplicate):
    hash = make()
    twin = duplicate(hash)
    assert twin is not hash
    assert torch.equal(twin.buckets, hash.buckets)
    assert (twin, repr(twin), twin.seed) == (hash, repr(hash), hash.seed)
    assert twin.diagnostics() == hash.diagnostics()


def test_torch_save():
    hash, file = LabelHash(100, 50, 8), io.BytesIO()
    torch.save(hash, file)
    file.seek(0)
    assert torch.load(file, weights_only=False) == hash


def test_to():
    hash = LabelHash(100, 50, 8, seed=1)
    assert hash.to("cpu") is hash
    moved = hash.to("meta")
    assert moved.buckets.device.type == "meta"
    assert moved.buckets.shape == (8, 100)
    assert hash.buckets.device.type == "cpu"
    assert moved == hash
    assert moved.seed == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda():
    hash = LabelHash(100, 50, 8)
    moved = hash.to("cuda")
    assert moved.buckets.is_cuda
    assert moved.to("cuda") is moved
    assert moved.to("cpu") == moved == LabelHash.from_buckets(moved.buckets, num_buckets=50)
    assert moved.diagnostics() == hash.diagnostics()
    module = torch.nn.Sequential(hash, torch.nn.Linear(2, 2)).to("cuda")
    assert module[0] is hash
    assert hash.buckets.is_cuda


def test_made_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        hash = LabelHash(100, 50, 8)
        table = LabelHash.from_buckets([[0, 1]])
    assert hash.buckets.device.type == table.buckets.device.type == "cpu"
    assert torch.equal(hash.buckets, LabelHash(100, 50, 8).buckets)


def test_read_under_torch_compile():
    def codes(hash, labels):
        return hash.buckets[:, labels] + hash.num_buckets

    hash, labels = LabelHash(100, 50, 8), torch.tensor([3, 99, 0])
    compiled = torch.compile(codes, fullgraph=True, backend="eager")
    assert torch.equal(compiled(hash, labels), codes(hash, labels))


def test_examples_in_the_documentation():
    for module in (hashing, _hash_buckets):
        assert doctest.testmod(module).attempted > 0
        assert doctest.testmod(module).failed == 0


def test_label_index_lists_the_labels_of_each_bucket(device):
    hash = LabelHash(num_labels=301, num_buckets=17, num_repetitions=4, seed=3)
    codes, starts, labels = (t.cpu() for t in hash.to(device).label_index())
    assert codes.dtype == torch.uint16
    assert torch.equal(codes.int().T, hash.buckets)
    for r in range(4):
        for b in range(17):
            listed = labels[r, starts[r, b] : starts[r, b + 1]]
            assert torch.equal(listed, (hash.buckets[r] == b).nonzero().squeeze(1).int())
    for ours, reference in zip((starts, labels), _reference.label_index(hash.buckets, 17)[1:], strict=True):
        assert torch.equal(ours, reference)


def test_label_index_is_built_once_counted_and_never_copied():
    hash = LabelHash(num_labels=300, num_buckets=17, num_repetitions=4, seed=3)
    before = hash.diagnostics().bytes
    assert set(before) == {"buckets", "everything"}
    index = hash.label_index()
    assert all(a is b for a, b in zip(hash.label_index(), index, strict=True))
    after = hash.diagnostics().bytes
    assert after["codes"] == 2 * 4 * 300
    assert after["list_labels"] == 4 * 4 * 300
    assert after["everything"] == before["everything"] + sum(t.nbytes for t in index)
    assert hash.label_index_bytes() == sum(t.nbytes for t in index)
    for copied in (copy.deepcopy(hash), pickle.loads(pickle.dumps(hash))):
        assert set(copied.diagnostics().bytes) == {"buckets", "everything"}
        assert torch.equal(copied.label_index()[2], index[2])


def test_label_index_of_changed_buckets_is_refused():
    hash = LabelHash(num_labels=300, num_buckets=17, num_repetitions=4, seed=3)
    hash.buckets[0, 0] = 5
    with pytest.raises(ValueError, match="buckets was changed in place"):
        hash.label_index()


def test_labels_in_a_bucket_by_a_look_and_by_the_index():
    hash = LabelHash(30, 20, 3, seed=1)
    looked = [[hash.labels_in(r, b) for b in range(20)] for r in range(3)]
    hash.label_index()
    for r, buckets in enumerate(looked):
        for b, labels in enumerate(buckets):
            assert torch.equal(labels, (hash.buckets[r] == b).nonzero().flatten())
            assert torch.equal(labels, hash.labels_in(r, b))
    with pytest.raises(ValueError, match="bucket must be from 0 to 19, got 20"):
        hash.labels_in(0, 20)
    with pytest.raises(ValueError, match="repetition must be from 0 to 2, got 3"):
        hash.labels_in(3, 0)


@pytest.mark.filterwarnings("ignore::mach_ext.hashing.CollisionWarning")
@pytest.mark.parametrize(("L", "B", "R"), [(30, 40, 5), (2000, 40, 8), (150, 10, 5)])
def test_spread_is_weighted_least_squares(L, B, R):
    hash = LabelHash(L, B, R, seed=3)
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=L), rng.pareto(1.0, L)
    weights[:3] = 0
    found = hash.spread(values, weights)
    assert found.shape == (R, B)
    table = hash.buckets.numpy()
    dense = np.zeros((L, R * B))
    for r in range(R):
        dense[np.arange(L), r * B + table[r]] += 1 / R
    root = np.sqrt(weights)
    best = np.linalg.lstsq(dense * root[:, None], values * root, rcond=None)[0]

    def left(v):
        return float(np.sum(weights * (dense @ v - values) ** 2))

    assert left(found.ravel()) <= 1.02 * left(best) + 1e-6 * left(0 * best)
    assert np.array_equal(found, hash.spread(values, weights))


@pytest.mark.filterwarnings("ignore::mach_ext.hashing.CollisionWarning")
def test_spread_leaves_empty_buckets_at_zero_and_refuses():
    hash = LabelHash.from_buckets([[0, 0, 2], [1, 1, 1]], num_buckets=4)
    found = hash.spread([1, 1, 3], [1, 1, 1])
    assert not found[0, [1, 3]].any()
    assert not found[1, [0, 2, 3]].any()
    assert not hash.spread([1, 1, 3], [0, 0, 0]).any()
    for values, weights, message in (
        ([1, 1], [1, 1, 1], r"values must be \[3\] and finite, got shape \(2,\)"),
        ([1, 1, np.nan], [1, 1, 1], "values must be .* with NaN or infinities"),
        ([1, 1, 1], [[1, 1, 1]], "weights must be"),
        ([1, 1, 1], [1, -2, 1], "weights must not be negative, got -2.0"),
    ):
        with pytest.raises(ValueError, match=f"LabelHash.spread: {message}"):
            hash.spread(values, weights)


# Part of a module


class OwnModel(torch.nn.Module):
    def __init__(self, hash):
        super().__init__()
        self.hash = hash
        self.layer = torch.nn.Linear(3, hash.num_repetitions * hash.num_buckets)

    def forward(self, x):
        logits = self.layer(x).unflatten(1, (self.hash.num_repetitions, self.hash.num_buckets))
        return mach_ext.functional.merge_topk(logits, self.hash, 2)


TABLE = [[0, 1, 2, 2], [2, 1, 0, 1]]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LabelHash(100, 50, 8, seed=1), LabelHash(100, 50, 8, seed=0)),
        (LabelHash(100, 50, 8, seed=1), LabelHash(101, 50, 8, seed=1)),
        (LabelHash.from_buckets(TABLE), LabelHash.from_buckets(TABLE[::-1])),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_weights_of_another_hash_are_refused(ours, theirs, strict, assign):
    model = OwnModel(ours)
    nested, other = torch.nn.Sequential(model), torch.nn.Sequential(OwnModel(theirs))
    match = re.escape(
        f"0.hash.fingerprint: the weights are of label hash {theirs.fingerprint()}, "
        f"this model has {ours.fingerprint()}"
    )
    with pytest.raises(RuntimeError, match=match):
        nested.load_state_dict(other.state_dict(), strict=strict, assign=assign)
    nested.load_state_dict(torch.nn.Sequential(OwnModel(copy.deepcopy(ours))).state_dict(), strict=strict)


def test_state_passes_through_files(tmp_path):
    model, twin = OwnModel(LabelHash(100, 50, 8)), OwnModel(LabelHash(100, 50, 8))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert twin.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True)) == ([], [])
    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    assert safetensors.torch.load_model(twin, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(twin.layer.weight, model.layer.weight)
    with pytest.raises(RuntimeError, match="the weights are of label hash"):
        safetensors.torch.load_model(OwnModel(LabelHash(100, 50, 8, seed=5)), tmp_path / "model.safetensors")


def test_state_of_before_hashes_had_one_is_taken():
    model = OwnModel(LabelHash(100, 50, 8))
    former = {name: tensor for name, tensor in model.state_dict().items() if "_extra_state" not in name}
    assert OwnModel(LabelHash(100, 50, 8)).load_state_dict(former) == ([], [])
    model, wrong = mach_ext.MACH(9, 30, 8, 8, hidden_size=4), mach_ext.MACH(9, 30, 8, 8, 4, seed=1)
    former = dict(model.state_dict())
    former["hash_fingerprint"] = former.pop("head.hash._extra_state")
    mach_ext.MACH(9, 30, 8, 8, hidden_size=4).load_state_dict(former)
    before = copy.deepcopy(wrong.state_dict())
    with pytest.raises(RuntimeError, match="the weights are of label hash L=30 B=8 R=8 seed=0, this m"):
        wrong.load_state_dict(former)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrong.state_dict().items())


def test_state_of_a_hash_alone():
    hash = LabelHash(100, 50, 8)
    assert list(hash.state_dict()) == ["_extra_state"]
    hash.load_state_dict(hash.state_dict())
    with pytest.raises(RuntimeError, match=r'Unexpected key.* "weight"'):
        hash.load_state_dict({**hash.state_dict(), "weight": torch.ones(1)})


@pytest.mark.parametrize("key", ["_extra_state", "fingerprint"])
@pytest.mark.parametrize("state", ["text", torch.tensor(3.0), torch.full((70,), 255, dtype=torch.uint8)])
def test_damaged_state_is_refused(state, key):
    hash = LabelHash(100, 50, 8)
    with pytest.raises(RuntimeError, match="fingerprint: the weights are of label hash"):
        hash.load_state_dict({key: state})
    with pytest.raises(ValueError, match="LabelHash: the weights are of label hash"):
        hash.set_extra_state(state)


def test_the_former_name_of_a_fingerprint_is_known():
    hash, other = LabelHash(100, 50, 8), LabelHash(100, 50, 8, seed=5)
    hash.load_state_dict({"fingerprint": hash.get_extra_state()})
    with pytest.raises(RuntimeError, match="of label hash L=100 B=50 R=8 seed=5, this model has L=100"):
        hash.load_state_dict({"fingerprint": other.get_extra_state()})
    head, wrong = mach_ext.MACHHead(4, 100, 8, 50), mach_ext.MACHHead(4, 100, 8, 50, seed=5)
    former = dict(head.state_dict())
    former["hash.fingerprint"] = former.pop("hash._extra_state")
    head.load_state_dict(former)
    before = copy.deepcopy(wrong.state_dict())
    with pytest.raises(RuntimeError, match="of label hash L=100 B=50 R=8 seed=0, this model has L=100"):
        wrong.load_state_dict(former)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrong.state_dict().items())


def test_names_of_a_state_are_no_methods():
    """Libraries such as transformers look them up as attributes, but for PyTorch's own `_extra_state`."""
    model = torch.nn.Sequential(mach_ext.MACH(9, 30, 8, 8, hidden_size=4), mach_ext.MACHHead(4, 30, 8, 8))
    for name, tensor in model.state_dict().items():
        module, _, last = name.rpartition(".")
        found = getattr(model.get_submodule(module), last) if last != "_extra_state" else tensor
        assert isinstance(found, torch.Tensor), name


def test_holds_nothing_that_is_trained_sent_or_cast():
    hash = LabelHash(100, 50, 8)
    model = OwnModel(hash)
    assert not list(hash.parameters()) + list(hash.buffers())
    before = hash.buckets
    model.half().double().float().share_memory().train().eval()
    assert model.hash is hash
    assert hash.buckets is before
    model.to("meta").to_empty(device="cpu")
    assert torch.equal(hash.buckets, LabelHash(100, 50, 8).buckets)
    hash.check_buckets()
    assert repr(model).count("(hash): LabelHash(num_labels=100, num_buckets=50,") == 1


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.float16,), {}),
        ((torch.ones(1, dtype=torch.float64),), {}),
        (("cpu", torch.float16), {}),
        ((), {"device": "cpu", "dtype": torch.bfloat16, "non_blocking": True}),
        ((), {"dtype": torch.float16}),
    ],
)
def test_to_takes_what_other_modules_take_and_keeps_integers(args, kwargs):
    hash = LabelHash(30, 8, 8)
    assert hash.to(*args, **kwargs) is hash
    assert hash.to("meta", torch.float16).buckets.dtype == torch.int32
    with pytest.raises((TypeError, RuntimeError)):
        hash.to("no device")


class OnGpu(torch.Tensor):
    """A table that says it lies on a GPU."""

    is_cuda = True


class FromGpu(torch.Tensor):
    """A table whose copy arrives on a GPU."""

    def to(self, *args, **kwargs):
        return torch.tensor([[0, 1]], dtype=torch.int32).as_subclass(OnGpu)


@pytest.mark.parametrize(
    ("place", "move", "waits"),
    [
        ("cpu", lambda hash: hash.to("cpu"), 1),
        ("cpu", lambda hash: hash.to("cpu", non_blocking=True), 0),
        ("meta", lambda hash: hash._apply(lambda t: torch.empty(0)), 1),
    ],
    ids=["to", "non_blocking", "with a module"],
)
def test_a_table_that_arrives_on_a_gpu_is_waited_for(monkeypatch, place, move, waits):
    """The hash keeps it, and the stream that reads it first may be another one."""
    waited = []
    stream = types.SimpleNamespace(synchronize=lambda: waited.append(True))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    hash = LabelHash(30, 8, 8).to(place)
    hash._place(hash.buckets.as_subclass(FromGpu))
    assert move(hash).buckets.is_cuda
    assert len(waited) == waits


def test_buckets_of():
    hash = LabelHash.from_buckets([[1, 0, 1], [0, 1, 1]])
    assert torch.equal(hash.buckets_of(torch.tensor([2, 0])), torch.tensor([[1, 1], [1, 0]]).int())
    assert hash.buckets_of(torch.empty(0, dtype=torch.int64)).shape == (2, 0)
    for label in (-1, 3):
        with pytest.raises(ValueError, match=rf"buckets_of: labels must be in \[0, L=3\), got {label}"):
            hash.buckets_of(torch.tensor([0, label]))


def test_a_fingerprint_without_contents_is_none():
    """As a state_dict made on the meta device has it."""
    state = {name: t.to("meta") for name, t in OwnModel(LabelHash(30, 8, 8)).state_dict().items()}
    OwnModel(LabelHash(30, 8, 8)).load_state_dict(state, assign=True)


def test_models_may_share_a_hash():
    hash = LabelHash(30, 8, 8)
    first = mach_ext.MACH(9, 30, 8, 8, hidden_size=4, hash=hash)
    second = mach_ext.MACH(9, 30, 8, 8, hidden_size=4, hash=hash)
    first.to("meta")
    assert second.hash is hash
    assert hash.buckets.device.type == "cpu"


def test_pickles_of_before_it_was_a_module():
    hash = LabelHash(100, 50, 8)
    module = set(torch.nn.Module().__dict__)
    state = {name: value for name, value in hash.__dict__.items() if name not in module}
    state["_version"] = state.pop("_known_version")
    former = LabelHash.__new__(LabelHash)
    former.__setstate__(state)
    assert former == hash
    former.check_buckets()
    OwnModel(former).load_state_dict(OwnModel(hash).state_dict())

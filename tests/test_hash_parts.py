"""Parts of a label hash: the bits of the whole table, in memory for the part, without warnings."""

import tracemalloc
import warnings

import pytest
import torch
from helpers import random_hash
from hypothesis import given, settings
from hypothesis import strategies as st

from mach_ext import LabelHash, _hash_functions
from mach_ext.hashing import CollisionWarning


@st.composite
def parts(draw, size):
    """A range of at least one number below `size`."""
    first = draw(st.integers(0, size - 1))
    return range(first, draw(st.integers(first + 1, size)))


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**70), L=st.integers(1, 300), R=st.integers(1, 9))
def test_parts_have_the_bits_of_the_whole(data, seed, L, R):
    B = data.draw(st.integers(2, 1000))
    labels, repetitions = data.draw(parts(L)), data.draw(parts(R))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollisionWarning)
        whole = LabelHash(L, B, R, seed)
    expected = whole.buckets[repetitions.start : repetitions.stop, labels.start : labels.stop]
    made = LabelHash.seeded_part(L, B, R, seed, labels=labels, repetitions=repetitions)
    cut = whole.part(labels=labels, repetitions=repetitions)
    for part in (made, cut):
        assert part.buckets.equal(expected)
        assert part.buckets.is_contiguous()
        assert (part.num_labels, part.num_repetitions) == (len(labels), len(repetitions))
        assert part.num_buckets == B
        assert part.seed == (None if labels.start or repetitions.start else seed)
    assert made == cut
    assert made.fingerprint() == cut.fingerprint()


def test_a_part_from_the_start_is_a_seeded_hash():
    part = LabelHash.seeded_part(1000, 500, 8, 3, labels=range(700), repetitions=range(5))
    assert part == LabelHash(700, 500, 5, 3)
    assert repr(part) == repr(LabelHash(700, 500, 5, 3))
    assert LabelHash.seeded_part(1000, 500, 8, 3) == LabelHash(1000, 500, 8, 3)


def test_parts_of_given_tables(generator):
    whole = random_hash(generator, 30, 7, 4)
    part = whole.part(range(10, 11), range(1, 3))
    assert part.buckets.equal(whole.buckets[1:3, 10:11])
    part.buckets.zero_()
    whole.check_buckets()  # The part is a copy.
    assert whole.part() == whole


def test_parts_of_many_chunks_and_of_the_highest_labels():
    chunk = _hash_functions._CHUNK
    whole = torch.from_numpy(_hash_functions.hash_labels(3 * chunk + 5, 512, 3, 4))
    labels = range(chunk - 3, 3 * chunk + 2)
    part = LabelHash.seeded_part(3 * chunk + 5, 512, 3, 4, labels=labels).buckets
    assert part.equal(whole[:, labels.start : labels.stop])
    last = _hash_functions.MAX_LABELS - 1
    one = LabelHash.seeded_part(last + 1, 512, 3, 4, labels=range(last, last + 1)).buckets
    assert one.tolist() == [[_definition(4, r, last) % 512] for r in range(3)]


def _definition(seed, r, label):
    value = 0
    for coefficient in _hash_functions._coefficients(seed, r):
        value = (value * label + coefficient) % _hash_functions.PRIME
    return value


def test_a_part_takes_memory_for_itself():
    """A thousandth of 400 MB."""
    LabelHash.seeded_part(10, 1000, 2, 0)
    tracemalloc.start()
    LabelHash.seeded_part(10_000_000, 1000, 10, 0, labels=range(5_000_000, 5_010_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_parts_do_not_warn():
    """All labels of a repetition collide with others."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part = LabelHash.seeded_part(1000, 3, 8, repetitions=range(2, 3))
        assert part.diagnostics().colliding_pairs > 0
        assert LabelHash(100, 3, 16).part(repetitions=range(1)).diagnostics().colliding_pairs > 0


@pytest.mark.parametrize("name", ["labels", "repetitions"])
@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (range(3, 3), ValueError, "{} must be a range of at least one number in [0, {}) by step 1, got"),
        (range(-1, 3), ValueError, "got range(-1, 3)"),
        (range(0, 9), ValueError, "got range(0, 9)"),
        (range(0, 4, 2), ValueError, "got range(0, 4, 2)"),
        ([0, 1], TypeError, "{} must be a range, got list"),
        (slice(0, 1), TypeError, "{} must be a range, got slice"),
    ],
)
def test_wrong_parts(name, part, error, message):
    size = {"labels": 8, "repetitions": 7}[name]
    whole = LabelHash(8, 100, 7)
    for op, make in (
        ("seeded_part", lambda: LabelHash.seeded_part(8, 100, 7, **{name: part})),
        ("part", lambda: whole.part(**{name: part})),
    ):
        with pytest.raises(error) as raised:
            make()
        assert str(raised.value).startswith(f"LabelHash.{op}: ")
        assert message.format(name, size) in str(raised.value)


def test_wrong_sizes_and_changed_buckets():
    with pytest.raises(ValueError, match=r"^LabelHash\.seeded_part: num_buckets must be from 2"):
        LabelHash.seeded_part(10, 1, 2)
    whole = LabelHash(8, 100, 7)
    whole.buckets.zero_()
    with pytest.raises(ValueError, match="changed in place"):
        whole.part(range(2))


def test_parts_lie_where_the_whole_lies():
    if torch.cuda.is_available():
        assert LabelHash(100, 50, 8).to("cuda").part(range(5)).buckets.is_cuda
    assert LabelHash(100, 50, 8).part(range(5)).buckets.is_cpu

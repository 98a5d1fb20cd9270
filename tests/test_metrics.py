"""mach_ext.metrics against numbers worked out by hand, a naive pure-Python twin, and napkinXC."""

import doctest
import json
import math
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mach_ext import metrics

# Four documents, six labels, three predictions each. Hits are marked with *.
#   doc  true       predicted     q of its labels, descending
#   0    0, 1, 2    1*  3   0*    4, 2, 1
#   1    3          0   3*  none  1
#   2    none       0   1   2     -
#   3    4, 5       none 5* 4*    5, 3
TRUE = [[0, 1, 2], [3], [], [4, 5]]
PREDICTED = [[1, 3, 0], [0, 3, -1], [0, 1, 2], [-1, 5, 4]]
Q = [1.0, 2.0, 4.0, 1.0, 3.0, 5.0]
NUM_LABELS = 6


def csr(true, num_labels=NUM_LABELS):
    """Sparse [N, L] from lists of true labels."""
    rows = [row for row, labels in enumerate(true) for _ in labels]
    cols = [label for labels in true for label in labels]
    return sp.csr_array((np.ones(len(rows)), (rows, cols)), shape=(len(true), num_labels))


def filled(predicted, width):
    """Predictions [N, K] with columns of -1 up to a width: there are no more."""
    P = np.array(predicted)
    return np.pad(P, ((0, 0), (0, max(0, width - P.shape[1]))), constant_values=-1)


# ------------------------------------------------------------------------------------------------------------
# Numbers by hand. d_1 = 1, d_2 = 1 / log2(3) = 0.6309297536, d_3 = 1 / log2(4) = 0.5;
# Z_1 = 1, Z_2 = 1.6309297536, Z_3 = 2.1309297536.

BY_HAND = {
    # hits in the first k over the documents: k=1: 1+0+0+0; k=3: 2+1+0+2; k=5: the same, over 5
    "P@1": 1 / 4,
    "P@3": 5 / 12,
    "P@5": 5 / 20,
    # k=1: only document 0 hits; 1/4
    "nDCG@1": 1 / 4,
    # doc 0: (1 + .5) / Z_3 = 0.7039180890; doc 1: d_2 / Z_1 = 0.6309297536;
    # doc 3: (d_2 + .5) / Z_2 = 0.6934264036; sum 2.0282742462, over 4 documents
    "nDCG@3": 0.5070685616,
    "nDCG@5": 0.5070685616,
    # documents 0, 1 and 3 have labels: k=1: (1/3 + 0 + 0) / 3; k=3: (2/3 + 1 + 2/2) / 3
    "R@1": 1 / 9,
    "R@3": 8 / 9,
    "R@50": 8 / 9,
    # k=1: q_1 = 2 over 4 + 1 + 5; k=3: (2 + 1) + 1 + (5 + 3) = 12 over (4 + 2 + 1) + 1 + (5 + 3) = 16
    "PSP@1": 2 / 10,
    "PSP@3": 12 / 16,
    "PSP@5": 12 / 16,
    # k=1: as PSP@1, for all Z are 1
    "PSnDCG@1": 2 / 10,
    # reached: doc 0: (2 + .5) / Z_3 = 1.1731968151; doc 1: d_2 = 0.6309297536;
    #          doc 3: (5 d_2 + 3 * .5) / Z_2 = 2.8539848253; sum 4.6581113939
    # best:    doc 0: (4 + 2 d_2 + .5) / Z_3 = 2.7039180890; doc 1: 1; doc 3: (5 + 3 d_2) / Z_2 = 4.2262943855
    "PSnDCG@3": 0.5873879683,
    "PSnDCG@5": 0.5873879683,
}


def test_evaluate_by_hand():
    P = filled(PREDICTED, 6)
    found = metrics.evaluate(csr(TRUE), P, ks=(1, 3, 5), recall_ks=(1, 3, 50), inverse_propensity=Q)
    assert found == pytest.approx(BY_HAND, abs=1e-9)


@pytest.mark.parametrize("metric", BY_HAND)
def test_single_functions_by_hand(metric):
    name, k = metric.split("@")
    functions = {
        "P": metrics.precision_at_k,
        "nDCG": metrics.ndcg_at_k,
        "R": metrics.recall_at_k,
        "PSP": metrics.psp_at_k,
        "PSnDCG": metrics.psndcg_at_k,
    }
    weights = {"inverse_propensity": Q} if name.startswith("PS") else {}
    assert functions[name](csr(TRUE), PREDICTED, **weights, k=int(k)) == pytest.approx(
        BY_HAND[metric], abs=1e-9
    )


def test_evaluate_defaults_and_order_of_keys():
    plain = metrics.evaluate(csr(TRUE), filled(PREDICTED, 6))
    assert list(plain) == ["P@1", "P@3", "P@5", "nDCG@1", "nDCG@3", "nDCG@5", "R@10", "R@50"]
    weighted = metrics.evaluate(csr(TRUE), PREDICTED, ks=(1, 2), recall_ks=(), inverse_propensity=Q)
    assert list(weighted) == [
        "P@1", "P@2", "nDCG@1", "nDCG@2", "PSP@1", "PSP@2", "PSnDCG@1", "PSnDCG@2",
    ]  # fmt: skip
    assert json.loads(json.dumps(weighted)) == weighted  # Python floats, not NumPy's


def test_inverse_propensity_by_hand():
    # N = 4, counts 3, 1, 0; A = 1, B = 1: C = 2 (ln 4 - 1) = 0.7725887222, q = 1 + C / (N_l + 1)
    Y = csr([[0, 1], [0], [0], []], num_labels=3)
    q = metrics.inverse_propensity(Y, A=1.0, B=1.0)
    assert q.dtype == np.float64
    np.testing.assert_allclose(q, [1.1931471806, 1.3862943611, 1.7725887222], rtol=0, atol=1e-10)
    # defaults: C = 2.5^0.55 (ln 4 - 1) = 0.6394..., checked against the formula in plain Python
    C = (math.log(4) - 1) * 2.5**0.55
    expected = [1 + C * (count + 1.5) ** -0.55 for count in (3, 1, 0)]
    np.testing.assert_allclose(metrics.inverse_propensity(Y), expected, rtol=1e-14)


@pytest.mark.parametrize(("A", "B"), [(1e308, 1e308), (1e308, 1.5), (400.0, 10.0), (1.0, 1e-320)])
def test_an_inverse_propensity_beyond_float64(A, B):
    with pytest.raises(ValueError, match=r"inverse_propensity: A and B must be small enough for float64"):
        metrics.inverse_propensity_of_counts([0, 1], 10, A, B)


def test_inverse_propensity_counts_documents_not_values():
    Y = csr([[0, 1], [0], [0], []], num_labels=3)
    scaled = Y * 7.5
    scaled.data[1] = 0.0  # an explicit zero: document 0 loses label 1
    without = csr([[0], [0], [0], []], num_labels=3)
    assert np.array_equal(metrics.inverse_propensity(scaled), metrics.inverse_propensity(without))


# ------------------------------------------------------------------------------------------------------------
# Bands


def band_labels(bands):
    return {name: np.flatnonzero(mask).tolist() for name, mask in bands.items()}


def test_bands_by_hand():
    # counts: label 0 in 101 documents, 1 in 100, 2 in 6, 3 in 5, 4 in 0
    counts = [101, 100, 6, 5, 0]
    Y = sp.csc_array(np.arange(101)[:, None] < np.array(counts)).tocsr()
    assert band_labels(metrics.label_frequency_bands(Y)) == {"head": [0], "torso": [1, 2], "tail": [3, 4]}
    assert band_labels(metrics.label_frequency_bands(Y, tail_max=0, torso_max=5)) == {
        "head": [0, 1, 2],
        "torso": [3],
        "tail": [4],
    }


def test_evaluate_by_band_by_hand():
    bands = {"low": np.arange(6) < 3, "high": np.arange(6) >= 3, "none": np.zeros(6, bool)}
    found = metrics.evaluate_by_band(
        csr(TRUE), PREDICTED, bands, ks=(3,), recall_ks=(1, 3), inverse_propensity=Q
    )
    assert list(found) == ["low", "high", "none"]
    # low: true {0,1,2}, {}, {}, {}: only document 0 has labels, hits at ranks 1 and 3
    assert found["low"] == pytest.approx(
        {
            "P@3": 2 / 12,
            "nDCG@3": 0.7039180890 / 4,  # (1 + .5) / Z_3, over 4 documents
            "PSP@3": 3 / 7,  # (2 + 1) / (4 + 2 + 1)
            "PSnDCG@3": 2.5 / 5.7618595071,  # (2 + .5) / (4 + 2 d_2 + .5), the same Z_3 in both
            "R@1": 1 / 3,
            "R@3": 2 / 3,
        },
        abs=1e-9,
    )
    # high: true {}, {3}, {}, {4,5}
    assert found["high"] == pytest.approx(
        {
            "P@3": 3 / 12,
            "nDCG@3": (0.6309297536 + 0.6934264036) / 4,
            "PSP@3": 9 / 9,
            "PSnDCG@3": (0.6309297536 + 2.8539848253) / (1 + 4.2262943855),
            "R@1": 0.0,
            "R@3": 1.0,
        },
        abs=1e-9,
    )
    # no label: nothing can be right, and what averages over nothing is not a number
    nan = math.nan
    assert found["none"] == pytest.approx(
        {"P@3": 0.0, "nDCG@3": 0.0, "PSP@3": nan, "PSnDCG@3": nan, "R@1": nan, "R@3": nan}, nan_ok=True
    )


# ------------------------------------------------------------------------------------------------------------
# A naive twin: one document and one rank at a time, from the definitions.


def naive(true, predicted, q, ks, recall_ks):
    def hit(n, i):
        return i < len(predicted[n]) and predicted[n][i] in true[n]

    def discount(i):
        return 1 / math.log2(i + 2)

    def mean(values):
        return math.fsum(values) / len(values) if values else math.nan

    def ratio(above, below):
        return math.fsum(above) / math.fsum(below) if below else math.nan

    documents = range(len(true))
    labelled = [n for n in documents if true[n]]
    best = [sorted((q[label] for label in labels), reverse=True) for labels in true]
    result = {}
    for k in ks:
        norm = [sum(discount(i) for i in range(min(k, len(true[n])))) for n in documents]
        result[f"P@{k}"] = mean([sum(hit(n, i) for i in range(k)) / k for n in documents])
        result[f"nDCG@{k}"] = mean(
            [sum(discount(i) for i in range(k) if hit(n, i)) / norm[n] if true[n] else 0.0 for n in documents]
        )
        result[f"PSP@{k}"] = ratio(
            [q[predicted[n][i]] for n in documents for i in range(k) if hit(n, i)],
            [value for n in documents for value in best[n][:k]],
        )
        result[f"PSnDCG@{k}"] = ratio(
            [q[predicted[n][i]] * discount(i) / norm[n] for n in documents for i in range(k) if hit(n, i)],
            [value * discount(i) / norm[n] for n in documents for i, value in enumerate(best[n][:k])],
        )
    for k in recall_ks:
        result[f"R@{k}"] = mean([sum(hit(n, i) for i in range(k)) / len(true[n]) for n in labelled])
    return result


@st.composite
def problems(draw):
    """(true, predicted, q): up to 6 documents, 8 labels, 6 predictions with -1 anywhere; all may be empty."""
    num_labels = draw(st.integers(1, 8))
    num_documents = draw(st.integers(0, 6))
    width = draw(st.integers(0, 6))
    rows = st.lists(st.integers(0, num_labels - 1), unique=True, max_size=num_labels)
    ranking = st.lists(
        st.integers(-1, num_labels - 1),
        unique_by=lambda label: label if label >= 0 else object(),  # -1 may repeat, labels may not
        max_size=width,
    ).map(lambda labels: labels + [-1] * (width - len(labels)))
    true = draw(st.lists(rows, min_size=num_documents, max_size=num_documents))
    predicted = draw(st.lists(ranking, min_size=num_documents, max_size=num_documents))
    q = draw(st.lists(st.floats(1, 50), min_size=num_labels, max_size=num_labels))
    return true, predicted, q


def ids(predicted):
    """[N, K] also where N or K is 0."""
    width = len(predicted[0]) if predicted else 0
    return np.array(predicted, dtype=np.int64).reshape(len(predicted), width)


KS = (1, 2, 3, 5, 9)  # 9 is above the number of labels and of predictions


@settings(deadline=None)
@given(problems())
def test_evaluate_equals_naive(problem):
    true, predicted, q = problem
    P = filled(ids(predicted), max(KS))
    found = metrics.evaluate(csr(true, len(q)), P, ks=KS, recall_ks=KS, inverse_propensity=q)
    assert found == pytest.approx(naive(true, predicted, q, KS, KS), rel=1e-12, nan_ok=True)


@settings(deadline=None)
@given(problems(), st.data())
def test_evaluate_by_band_equals_naive_on_restricted_truth(problem, data):
    true, predicted, q = problem
    band_of = data.draw(st.lists(st.sampled_from("abc"), min_size=len(q), max_size=len(q)))
    bands = {name: np.array([b == name for b in band_of]) for name in "abc"}
    Y, P = csr(true, len(q)), filled(ids(predicted), max(KS))
    found = metrics.evaluate_by_band(Y, P, bands, ks=KS, recall_ks=KS, inverse_propensity=q)
    for name in bands:
        restricted = [[label for label in labels if band_of[label] == name] for labels in true]
        assert found[name] == pytest.approx(naive(restricted, predicted, q, KS, KS), rel=1e-12, nan_ok=True)
    # a band of every label is the whole; bands that partition the labels add up to the whole P@k
    whole = metrics.evaluate(Y, P, ks=KS, recall_ks=KS, inverse_propensity=q)
    everything = {"all": np.ones(len(q), bool)}
    found_all = metrics.evaluate_by_band(Y, P, everything, ks=KS, recall_ks=KS, inverse_propensity=q)["all"]
    assert found_all == pytest.approx(whole, rel=0, abs=0, nan_ok=True)
    for k in KS:
        parts = math.fsum(found[name][f"P@{k}"] for name in bands)
        assert parts == pytest.approx(whole[f"P@{k}"], rel=1e-12, nan_ok=True)


@settings(deadline=None)
@given(problems())
def test_best_ranking_scores_exactly_one(problem):
    true, _, q = problem
    true = [labels for labels in true if labels] or [[0]]
    width = max(map(len, true))
    best = [sorted(labels, key=lambda label: -q[label]) for labels in true]
    P = filled(ids([labels + [-1] * (width - len(labels)) for labels in best]), max(KS))
    found = metrics.evaluate(csr(true, len(q)), P, ks=KS, recall_ks=(width,), inverse_propensity=q)
    for name, value in found.items():
        if not name.startswith("P@"):
            assert value == 1.0, name
    assert found["P@1"] == 1.0


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=3, max_size=8), st.integers(0, 4))
def test_bands_partition_the_labels_by_count(rows, tail_max):
    Y = sp.csr_array(np.array(rows))
    bands = metrics.label_frequency_bands(Y, tail_max=tail_max, torso_max=tail_max + 2)
    for label, count in enumerate(sum(np.array(rows).astype(int))):
        expected = "tail" if count <= tail_max else "torso" if count <= tail_max + 2 else "head"
        assert [name for name, mask in bands.items() if mask[label]] == [expected]


def test_many_blocks_equal_naive():
    # 3,000 x 100 predictions are looked up in more than one block; L makes keys exceed 32 bits
    rng = np.random.default_rng(0)
    num_documents, width, num_labels = 3_000, 100, 3_000_000
    assert num_documents * width > metrics._BLOCK_CELLS
    P = rng.integers(0, num_labels // width, (num_documents, width)) * width + np.arange(
        width
    )  # distinct in rows
    P[rng.random(P.shape) < 0.05] = -1
    true = [
        sorted({*row[rng.random(width) < 0.1].tolist(), *rng.integers(0, num_labels, 3).tolist()} - {-1})
        for row in P
    ]
    Y = csr(true, num_labels)
    q = metrics.inverse_propensity(Y)
    found = metrics.evaluate(Y, P, ks=(5, 100), recall_ks=(50,), inverse_propensity=q)
    assert found == pytest.approx(naive(true, P.tolist(), q, (5, 100), (50,)), rel=1e-12)
    assert found["R@50"] > 0.1  # the comparison is not one of zeros


def test_memory_does_not_grow_with_the_number_of_labels():
    num_labels = 2_000_000_000  # one byte a label would be 2 GB
    Y = csr([[0, 1_999_999_999], [1_999_999_998]], num_labels)
    tracemalloc.start()
    found = metrics.evaluate(Y, [[1_999_999_999, 1], [0, 1_999_999_998]], ks=(1, 2), recall_ks=(2,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found["P@1"], found["P@2"], found["R@2"]) == (0.5, 0.5, 0.75)
    assert peak < 1_000_000


# ------------------------------------------------------------------------------------------------------------
# Edge cases and input forms


def test_no_documents():
    Y, P = sp.csr_array((0, 4)), np.empty((0, 5), np.int64)
    found = metrics.evaluate(Y, P, inverse_propensity=np.ones(4))
    assert len(found) == 14
    assert all(math.isnan(value) for value in found.values())


def test_documents_without_labels():
    found = metrics.evaluate(
        sp.csr_array((2, 4)), [[0, 1], [2, 3]], ks=(1,), recall_ks=(1,), inverse_propensity=[1] * 4
    )
    nan = math.nan
    expected = {"P@1": 0.0, "nDCG@1": 0.0, "PSP@1": nan, "PSnDCG@1": nan, "R@1": nan}
    assert found == pytest.approx(expected, nan_ok=True)


def test_no_predictions_count_as_misses():
    found = metrics.evaluate(csr(TRUE), np.full((4, 6), -1), inverse_propensity=Q)
    assert len(found) == 14
    assert set(found.values()) == {0.0}
    assert metrics.precision_at_k(csr(TRUE), np.empty((4, 0), np.int64), k=1) == 0.0


def test_k_above_the_number_of_predictions_and_labels():
    # P divides by k all the same; the others have nothing more to find
    Y, P = csr([[0, 1]]), [[0, 1]]
    assert metrics.precision_at_k(Y, P, k=1000) == 2 / 1000
    assert metrics.ndcg_at_k(Y, P, k=1000) == 1.0
    assert metrics.recall_at_k(Y, P, k=10**12) == 1.0


def test_minus_one_keeps_its_rank():
    Y = csr([[0]])
    assert metrics.ndcg_at_k(Y, [[-1, 0]], k=2) == pytest.approx(0.6309297536)
    assert metrics.precision_at_k(Y, [[-1, 0]], k=1) == 0.0


@pytest.mark.parametrize(
    "convert",
    [
        np.array,
        lambda p: np.array(p, np.int8),
        lambda p: np.asfortranarray(np.array(p, np.int32)),
        torch.tensor,
        lambda p: torch.tensor(p, dtype=torch.int32),
        lambda p: torch.tensor(p).t().contiguous().t(),
    ],
    ids=["int64", "int8", "int32 column-major", "torch int64", "torch int32", "torch strided"],
)
def test_forms_of_predictions(convert):
    found = metrics.evaluate(
        csr(TRUE), convert(PREDICTED), recall_ks=(3,), inverse_propensity=torch.tensor(Q)
    )
    assert found == metrics.evaluate(csr(TRUE), PREDICTED, recall_ks=(3,), inverse_propensity=Q)


def test_unsigned_predictions():
    P = np.array([[1, 3, 0], [0, 3, 1], [0, 1, 2], [0, 5, 4]])
    expected = metrics.evaluate(csr(TRUE), P)
    assert metrics.evaluate(csr(TRUE), P.astype(np.uint8)) == expected
    assert metrics.evaluate(csr(TRUE), P.astype(np.uint64)) == expected


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "bsr"])
@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_forms_of_truth(form, dtype):
    Y = sp.csr_matrix(csr(TRUE)).astype(dtype).asformat(form)
    assert metrics.evaluate(Y, PREDICTED) == metrics.evaluate(csr(TRUE), PREDICTED)


def test_unsorted_truth_with_duplicates_and_explicit_zeros_is_read_right_and_left_alone():
    # document 0: labels 2, 0, 1 out of order, 2 twice; label 5 stored as an explicit zero
    data = np.array([1, 1, 1, 1, 0, 1, 1, 1], np.uint8)
    indices, indptr = np.array([2, 0, 2, 1, 5, 3, 5, 4]), np.array([0, 5, 6, 6, 8])
    Y = sp.csr_array((data, indices, indptr), shape=(4, 6))
    P = filled(PREDICTED, 6)
    given = P.copy()
    found = metrics.evaluate(Y, P, recall_ks=(1, 3, 50), inverse_propensity=Q)
    assert found == pytest.approx(BY_HAND, abs=1e-9)
    metrics.evaluate_by_band(Y, P, {"all": np.ones(6, bool)})
    assert Y.indices.tolist() == [2, 0, 2, 1, 5, 3, 5, 4]
    assert Y.data.tolist() == [1, 1, 1, 1, 0, 1, 1, 1]
    assert (given == P).all()


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize(
    ("dtype", "values"),
    [(np.uint8, [128, 128]), (np.uint8, [1] * 256), (np.int8, [100, 100]), (np.uint16, [2**15] * 2)],
)
def test_duplicates_in_a_small_dtype_are_one_true_label(form, dtype, values):
    """Their sum wraps to 0 or below; duplicates of one entry, whatever they hold, say that it is true."""
    values, at = np.array(values, dtype), np.zeros(len(values), np.int32)
    arguments = (
        (values, (at, at)) if form == "coo" else (values, at, [0, *[len(values)] * (1 + (form == "csc"))])
    )
    Y = getattr(sp, f"{form}_array")(arguments, shape=(1, 2))
    assert Y.nnz == len(values)
    assert metrics.evaluate(Y, [[0]]) == {"P@1": 1.0, "nDCG@1": 1.0}
    assert metrics.recall_at_k(Y, [[1]], k=1) == 0.0
    many = sp.vstack([Y] * 3)
    assert (metrics.inverse_propensity(many) == metrics.inverse_propensity(csr([[0]] * 3, 2))).all()


def test_duplicates_that_cancel_are_refused_not_lost():
    Y = sp.coo_array(([1.0, -1.0], ([0, 0], [1, 1])), shape=(1, 2))
    with pytest.raises(ValueError, match=r"Y_true must not have negative or NaN entries, got -1.0"):
        metrics.precision_at_k(Y, [[1]], k=1)


def torch_coo(Y):
    Y = Y.tocoo()
    return torch.sparse_coo_tensor(np.stack((Y.row, Y.col)), Y.data, Y.shape, check_invariants=True)


def torch_csr(Y):
    return torch.sparse_csr_tensor(Y.indptr, Y.indices, Y.data, Y.shape, check_invariants=True)


@pytest.mark.parametrize(
    "convert",
    [
        lambda Y: Y.toarray(),
        lambda Y: Y.toarray().astype(bool),
        lambda Y: Y.toarray().astype(np.float16),
        lambda Y: np.asfortranarray(Y.toarray().astype(np.uint8)),
        lambda Y: torch.tensor(Y.toarray()),
        lambda Y: torch.tensor(Y.toarray(), dtype=torch.bfloat16, requires_grad=True),
        torch_coo,
        torch_csr,
        lambda Y: torch_csr(Y).half(),
        lambda Y: torch_csr(Y).to_sparse_csc(),
    ],
    ids=[
        "float64",
        "bool",
        "float16",
        "column-major",
        "torch",
        "bfloat16",
        "torch coo",
        "torch csr",
        "half csr",
        "torch csc",
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_dense_and_torch_truth(convert):
    Y, P = csr(TRUE), filled(PREDICTED, 6)
    q = metrics.inverse_propensity(Y)
    expected = metrics.evaluate(Y, P, inverse_propensity=q)
    assert (
        metrics.evaluate(convert(Y), P, inverse_propensity=metrics.inverse_propensity(convert(Y))) == expected
    )
    for name, mask in metrics.label_frequency_bands(convert(Y), 1, 2).items():
        assert (mask == metrics.label_frequency_bands(Y, 1, 2)[name]).all()


def test_torch_duplicates_are_one_true_label():
    at, values = [[0, 0], [1, 1]], torch.tensor([128, 128], dtype=torch.uint8)
    Y = torch.sparse_coo_tensor(at, values, (1, 2), check_invariants=True)
    assert metrics.recall_at_k(Y, [[1]], k=1) == 1.0


@pytest.mark.parametrize(
    "row",
    [
        csr([[0, 2]])[0],
        csr([[0, 2]]).toarray()[0],
        torch.tensor([1, 0, 1, 0, 0, 0]),
        csr([[0, 2]]).tocoo()[0],
    ],
    ids=["csr row", "dense row", "torch row", "coo row"],
)
def test_one_document(row):
    assert metrics.recall_at_k(row, [[2, 1]], k=2) == 0.5
    wraps = sp.coo_array((np.array([128, 128], np.uint8), ([2, 2],)), shape=(6,))
    assert metrics.recall_at_k(wraps, [[2]], k=1) == 1.0


# ------------------------------------------------------------------------------------------------------------
# What the columns of predictions can't carry is not reported


def test_only_what_the_predictions_carry_is_reported():
    Y = csr([[0, 1], [2]], num_labels=60)
    P = np.array([[0, 5, 1], [4, 2, 9]])
    assert list(metrics.evaluate(Y, P)) == ["P@1", "P@3", "nDCG@1", "nDCG@3"]
    assert list(metrics.evaluate(Y, P, recall_ks=(2, 3))) == ["P@1", "P@3", "nDCG@1", "nDCG@3", "R@2", "R@3"]
    assert list(metrics.evaluate(Y, P[:, :1], recall_ks=())) == ["P@1", "nDCG@1"]
    assert metrics.evaluate(Y, P[:, :0]) == {}
    weighted = metrics.evaluate(Y, filled(P, 10), inverse_propensity=np.ones(60))
    assert [name for name in weighted if name.startswith(("R", "PSP"))] == ["PSP@1", "PSP@3", "PSP@5", "R@10"]
    bands = metrics.evaluate_by_band(Y, P, {"low": np.arange(60) < 2})
    assert list(bands["low"]) == ["P@1", "P@3", "nDCG@1", "nDCG@3"]


def test_a_k_that_the_predictions_do_not_carry_is_refused():
    Y, P = csr([[0, 1], [2]], num_labels=60), [[0, 5, 1], [4, 2, 9]]
    for call in (metrics.evaluate, lambda *a, **o: metrics.evaluate_by_band(*a, {}, **o)):
        for asked in ({"ks": (1, 3, 5)}, {"ks": (k for k in (5,))}, {"recall_ks": [5]}):
            with pytest.raises(
                ValueError, match=r"ks must be at most K=3, the columns of predictions, got 5"
            ):
                call(Y, P, **asked)


def test_predictions_of_all_labels_carry_every_k():
    """Nothing is left that a longer ranking could show: P@5 of two labels is at most 2/5."""
    found = metrics.evaluate(csr([[0], [0, 1]], 2), [[0, 1], [1, 0]])
    assert found["P@5"] == 3 / 10
    assert found["R@50"] == 1.0
    with pytest.raises(ValueError, match="recall_ks must be at most K=1"):
        metrics.evaluate(csr([[0], [0, 1]], 2), [[0], [1]], recall_ks=(50,))


# ------------------------------------------------------------------------------------------------------------
# Errors: the function, the rule and what came

Y2 = csr([[0, 1], [2]])  # [2, 6]
P2 = [[0, 1], [2, 3]]


def broken_csr():
    Y = csr([[0, 1], [2]])
    Y.indices[0] = 6
    return Y


@pytest.mark.parametrize(
    ("Y", "P", "error", "message"),
    [
        (
            np.eye(2)[None],
            P2,
            ValueError,
            r"Y_true must have 2 dimensions \[N, L\], got shape \(1, 2, 2\)",
        ),
        (np.array(P2), P2, ValueError, r"Y_true, a dense .* must hold 0 and 1 \(not label ids\), got 3"),
        (torch.tensor(P2), P2, ValueError, r"Y_true, a dense .* must hold 0 and 1 \(not label ids\), got 3"),
        (np.array([["a"]]), P2, TypeError, r"Y_true must hold booleans, .* got dtype <U1"),
        (-np.eye(2), P2, ValueError, r"Y_true must not have negative or NaN entries, got -1.0"),
        ([[0, 1], [2]], P2, TypeError, r"Y_true must be a SciPy sparse matrix \[N, L\], got list"),
        (
            sp.coo_array(np.ones(6)),
            P2,
            ValueError,
            r"predictions must be \[N, K\] with one row for each of the 1 documents",
        ),
        (Y2.astype(complex), P2, TypeError, r"Y_true must hold booleans, .* got dtype complex128"),
        (Y2 * math.nan, P2, ValueError, r"Y_true must not have negative or NaN entries, got nan"),
        (Y2 * -1.0, P2, ValueError, r"Y_true must not have negative or NaN entries, got -1.0"),
        (broken_csr(), P2, ValueError, r"Y_true is not a valid csr matrix: .*6"),
        (
            Y2,
            [[0.0, 1.0], [2.0, 3.0]],
            TypeError,
            r"predictions must be integer label ids .* list of dtype float64",
        ),
        (Y2, np.zeros((2, 6), bool), TypeError, r"predictions must be integer label ids .* dtype bool"),
        (Y2, Y2, TypeError, r"predictions must be integer label ids .* csr_array of dtype object"),
        (Y2, [[0, 1], [2]], TypeError, r"predictions can't be read as a NumPy array: .*inhomogeneous"),
        (
            Y2,
            torch.zeros(2, 2, dtype=torch.int64, device="meta"),
            TypeError,
            r"predictions can't be read as a NumPy array: .*Tensor.cpu\(\)",
        ),
        (Y2, [0, 1], ValueError, r"predictions must be \[N, K\] .* 2 documents of Y_true, got shape \(2,\)"),
        (
            Y2,
            [[0, 1]],
            ValueError,
            r"predictions must be \[N, K\] .* 2 documents of Y_true, got shape \(1, 2\)",
        ),
        (
            Y2,
            [[0, 1], [2, 6]],
            ValueError,
            r"predictions must be label ids in \[0, 6\), or -1 for none, got 6 in row 1",
        ),
        (
            Y2,
            [[0, 1], [-2, 3]],
            ValueError,
            r"predictions must be label ids in \[0, 6\), or -1 for none, got -2 in row 1",
        ),
        (
            Y2,
            np.array([[0, 2**64 - 1], [1, 2]], np.uint64),
            ValueError,
            r"predictions must be label ids in \[0, 6\), or -1 for none, got 18446744073709551615 in row 0",
        ),
        (
            Y2,
            [[0, 1], [3, 3]],
            ValueError,
            r"predictions must not repeat a label within a row, got label 3 more than once in row 1",
        ),
    ],
)
def test_bad_truth_and_predictions(Y, P, error, message):
    bands = {"all": np.ones(6, bool)}
    calls = {
        "precision_at_k": lambda: metrics.precision_at_k(Y, P, 1),
        "ndcg_at_k": lambda: metrics.ndcg_at_k(Y, P, 1),
        "recall_at_k": lambda: metrics.recall_at_k(Y, P, 1),
        "psp_at_k": lambda: metrics.psp_at_k(Y, P, Q, 1),
        "psndcg_at_k": lambda: metrics.psndcg_at_k(Y, P, Q, 1),
        "evaluate": lambda: metrics.evaluate(Y, P),
        "evaluate_by_band": lambda: metrics.evaluate_by_band(Y, P, bands),
    }
    for name, call in calls.items():
        with pytest.raises(error, match=rf"^{name}: {message}"):
            call()


def test_repeated_label_is_found_in_a_later_block():
    num_documents = metrics._BLOCK_CELLS // 2 + 10
    P = np.tile([0, 1], (num_documents, 1))
    P[-1] = 4
    with pytest.raises(ValueError, match=f"got label 4 more than once in row {num_documents - 1}$"):
        metrics.evaluate(sp.csr_array((num_documents, 6)), P)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "must be at least 1, got 0"),
        (-3, ValueError, "must be at least 1, got -3"),
        (1.0, TypeError, "must be an integer, got 1.0"),
        (True, TypeError, "must be an integer, got True"),
        ("5", TypeError, "must be an integer, got '5'"),
    ],
)
def test_bad_k(k, error, message):
    bands = {"all": np.ones(6, bool)}
    calls = {
        "precision_at_k: k": lambda: metrics.precision_at_k(Y2, P2, k),
        "ndcg_at_k: k": lambda: metrics.ndcg_at_k(Y2, P2, k),
        "recall_at_k: k": lambda: metrics.recall_at_k(Y2, P2, k),
        "psp_at_k: k": lambda: metrics.psp_at_k(Y2, P2, Q, k),
        "psndcg_at_k: k": lambda: metrics.psndcg_at_k(Y2, P2, Q, k),
        "evaluate: ks": lambda: metrics.evaluate(Y2, P2, ks=(1, k)),
        "evaluate: recall_ks": lambda: metrics.evaluate(Y2, P2, recall_ks=(1, k)),
        "evaluate_by_band: ks": lambda: metrics.evaluate_by_band(Y2, P2, bands, ks=[k]),
        "evaluate_by_band: recall_ks": lambda: metrics.evaluate_by_band(Y2, P2, bands, recall_ks=[k]),
    }
    for place, call in calls.items():
        with pytest.raises(error, match=f"^{place} {message}$"):
            call()


def test_ks_that_is_one_number():
    with pytest.raises(TypeError, match=r"^evaluate: ks must be a sequence of integers, got 5$"):
        metrics.evaluate(Y2, P2, ks=5)


@pytest.mark.parametrize(
    ("q", "error", "message"),
    [
        ([1.0, 2.0], ValueError, r"must be \[L\] = \[6\], got shape \(2,\)"),
        (np.ones((6, 1)), ValueError, r"must be \[L\] = \[6\], got shape \(6, 1\)"),
        (
            [1, 2, math.nan, 1, 1, 1],
            ValueError,
            r"must be finite and >= 1 \(1/p, not p\), got nan for label 2",
        ),
        (
            [1, 2, 1, math.inf, 1, 1],
            ValueError,
            r"must be finite and >= 1 \(1/p, not p\), got inf for label 3",
        ),
        ([1, 0.25, 1, 1, 1, 1], ValueError, r"must be finite and >= 1 \(1/p, not p\), got 0.25 for label 1"),
        (["a"] * 6, TypeError, r"must be numbers \[L\], got dtype <U1"),
    ],
)
def test_bad_inverse_propensity(q, error, message):
    bands = {"all": np.ones(6, bool)}
    calls = {
        "psp_at_k": lambda: metrics.psp_at_k(Y2, P2, q, 1),
        "psndcg_at_k": lambda: metrics.psndcg_at_k(Y2, P2, q, 1),
        "evaluate": lambda: metrics.evaluate(Y2, P2, inverse_propensity=q),
        "evaluate_by_band": lambda: metrics.evaluate_by_band(Y2, P2, bands, inverse_propensity=q),
    }
    for name, call in calls.items():
        with pytest.raises(error, match=f"^{name}: inverse_propensity {message}"):
            call()


def test_psp_needs_an_inverse_propensity():
    with pytest.raises(
        TypeError, match=r"^psp_at_k: inverse_propensity must be numbers \[L\], got dtype object$"
    ):
        metrics.psp_at_k(Y2, P2, None, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"A": -0.1}, "A must be finite and >= 0, got -0.1"),
        ({"A": math.nan}, "A must be finite and >= 0, got nan"),
        ({"B": 0.0}, "B must be finite and > 0, got 0.0"),
        ({"B": math.inf}, "B must be finite and > 0, got inf"),
    ],
)
def test_bad_propensity_parameters(arguments, message):
    with pytest.raises(ValueError, match=f"^inverse_propensity: {message}$"):
        metrics.inverse_propensity(csr(TRUE), **arguments)


def test_bad_training_labels():
    # ln N - 1 is negative below e documents: weights below 1 would come out
    with pytest.raises(
        ValueError, match=r"^inverse_propensity: Y_train must have at least 3 documents, got 2$"
    ):
        metrics.inverse_propensity(Y2)
    assert metrics.inverse_propensity(csr([[0], [0], [0]])).min() > 1
    for function in (metrics.inverse_propensity, metrics.label_frequency_bands):
        with pytest.raises(TypeError, match=f"^{function.__name__}: Y_train must be a SciPy sparse matrix"):
            function([[1, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("cuts", "error", "message"),
    [
        ((-1, 5), ValueError, "tail_max must be at least 0, got -1"),
        ((5, 5), ValueError, "torso_max must be at least 6, got 5"),
        ((0.5, 5), TypeError, "tail_max must be an integer, got 0.5"),
        ((5, math.inf), TypeError, "torso_max must be an integer, got inf"),
    ],
)
def test_bad_cuts(cuts, error, message):
    with pytest.raises(error, match=f"^label_frequency_bands: {message}$"):
        metrics.label_frequency_bands(Y2, *cuts)


@pytest.mark.parametrize(
    ("bands", "error", "message"),
    [
        ([np.ones(6, bool)], TypeError, "bands must map names to masks, got list"),
        ({"tail": [0, 1]}, TypeError, r"band 'tail' must be booleans \[L\], got dtype int64"),
        ({"tail": np.ones(5, bool)}, ValueError, r"band 'tail' must be \[L\] = \[6\], got shape \(5,\)"),
    ],
)
def test_bad_bands(bands, error, message):
    with pytest.raises(error, match=f"^evaluate_by_band: {message}$"):
        metrics.evaluate_by_band(Y2, P2, bands)


def test_examples_in_docstrings():
    found = doctest.testmod(metrics)
    assert found.failed == 0
    assert found.attempted >= 2 * len(metrics.__all__)


# ------------------------------------------------------------------------------------------------------------
# napkinXC (napkinxc.metrics, 0.7): an implementation that others use, by other people.


@pytest.fixture
def napkin():
    return pytest.importorskip(
        "napkinxc.metrics", reason="napkinXC is not installed: no outside numbers to agree with"
    )


def random_problem(seed, share_without_labels):
    """(true, predicted [N, K], Y_train): 200 documents, 60 labels, a long tail, rankings cut at random."""
    rng = np.random.default_rng(seed)
    num_documents, num_labels, width = 200, 60, 12
    popularity = 1 / np.arange(1, num_labels + 1)
    scores = rng.random((2, num_documents, num_labels)) ** (1 / popularity)
    sizes = rng.integers(1, 8, (2, num_documents)) * (rng.random((2, num_documents)) >= share_without_labels)
    true, train = (
        [np.argsort(-row)[:size].tolist() for row, size in zip(part, part_sizes, strict=True)]
        for part, part_sizes in zip(scores, sizes, strict=True)
    )
    guesses = scores[0] + rng.normal(0, 0.3, scores[0].shape)
    P = np.argsort(-guesses, axis=1)[:, :width]
    P[np.arange(width) >= rng.integers(0, width + 1, num_documents)[:, None]] = -1
    return true, P, csr(train, num_labels)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share_without_labels", [0.0, 0.2])
def test_agrees_with_napkinxc(napkin, seed, share_without_labels):
    true, P, Y_train = random_problem(seed, share_without_labels)
    k, ks = 15, range(1, 16)  # beyond the 12 predictions
    q = metrics.inverse_propensity(Y_train)
    np.testing.assert_allclose(q, napkin.Jain_et_al_inverse_propensity(sp.csr_matrix(Y_train)), rtol=1e-12)

    found = metrics.evaluate(csr(true, len(q)), filled(P, k), ks=ks, recall_ks=ks, inverse_propensity=q)
    rankings = [[label for label in row if label >= 0] for row in P.tolist()]
    theirs = {
        "P": napkin.precision_at_k(true, rankings, k=k),
        "nDCG": napkin.ndcg_at_k(true, rankings, k=k),
        "PSP": napkin.psprecision_at_k(true, rankings, q, k=k),
        "PSnDCG": napkin.psndcg_at_k(true, rankings, q, k=k),
        # R differs by definition: napkinXC divides by all documents, so that one without labels has recall 0;
        # here the mean is over documents that have a label. Without such documents the two are the same.
        "R": napkin.recall_at_k(true, rankings, k=k) * len(true) / sum(bool(labels) for labels in true),
    }
    for name, values in theirs.items():
        np.testing.assert_allclose([found[f"{name}@{k}"] for k in ks], values, rtol=1e-12, err_msg=name)
        assert 0.05 < values[2] < 0.95, name  # neither perfect nor nothing: a wrong formula would show


def test_differs_from_napkinxc_where_a_document_has_no_labels(napkin):
    # one document found, one without labels: recall 1 over the documents that can have one, 1/2 over all
    true, P = [[0], []], [[0], [1]]
    assert metrics.recall_at_k(csr(true), P, k=1) == 1.0
    assert napkin.recall_at_k(true, P, k=1)[0] == 0.5


def test_differs_from_napkinxc_on_repeated_predictions(napkin):
    # napkinXC counts one true label twice, and nDCG exceeds 1; here the prediction is refused
    assert napkin.precision_at_k([[0]], [[0, 0]], k=2)[1] == 1.0
    assert napkin.ndcg_at_k([[0]], [[0, 0]], k=2)[1] > 1.0
    with pytest.raises(ValueError, match="must not repeat a label within a row"):
        metrics.precision_at_k(csr([[0]]), [[0, 0]], k=2)


def test_differs_from_napkinxc_on_values_other_than_one(napkin):
    # N_l is a number of documents; napkinXC adds up the entries of Y_train, whatever they are
    Y = csr(TRUE)
    theirs = napkin.Jain_et_al_inverse_propensity(sp.csr_matrix(Y * 3))
    assert np.array_equal(metrics.inverse_propensity(Y * 3), metrics.inverse_propensity(Y))
    assert (theirs < metrics.inverse_propensity(Y)).all()


# ------------------------------------------------------------------------------------------------------------
# by_document


def test_by_document_by_hand():
    out = metrics.by_document(csr(TRUE), filled(PREDICTED, 5), ks=(1, 3, 5), inverse_propensity=Q)
    assert out.ks == (1, 3, 5)
    np.testing.assert_allclose(
        out.precision, [[1, 2 / 3, 2 / 5], [0, 1 / 3, 1 / 5], [0, 0, 0], [0, 2 / 3, 2 / 5]]
    )
    np.testing.assert_allclose(out.ndcg[:, 1], [0.7039180890, 0.6309297536, 0, 0.6934264036], rtol=1e-9)
    np.testing.assert_array_equal(out.gain, [[2, 3, 3], [0, 1, 1], [0, 0, 0], [0, 8, 8]])
    np.testing.assert_array_equal(out.best_gain, [[4, 7, 7], [1, 1, 1], [0, 0, 0], [5, 8, 8]])
    np.testing.assert_array_equal(out.psp[:, 1], [3 / 7, 1, np.nan, 1])


def test_means_of_by_document_are_those_of_evaluate():
    rng = np.random.default_rng(0)
    Y = sp.random(1000, 50, density=0.08, format="csr", random_state=0)
    P = np.stack([rng.permutation(50)[:5] for _ in range(1000)])
    q = 1 + rng.random(50)
    out, whole = metrics.by_document(Y, P, inverse_propensity=q), metrics.evaluate(Y, P, inverse_propensity=q)
    for i, k in enumerate(out.ks):
        assert out.ndcg[:, i].mean() == whole[f"nDCG@{k}"]
        assert out.precision[:, i].mean() == pytest.approx(whole[f"P@{k}"], rel=1e-13)
        assert out.gain[:, i].sum() / out.best_gain[:, i].sum() == pytest.approx(whole[f"PSP@{k}"], rel=1e-13)


def test_by_document_without_propensities_documents_or_ks():
    out = metrics.by_document(csr(TRUE), PREDICTED)
    assert out.ks == (1, 3)
    assert (out.gain, out.best_gain, out.psp) == (None, None, None)
    empty = metrics.by_document(csr([]), np.empty((0, 5), int), inverse_propensity=Q)
    assert empty.precision.shape == empty.ndcg.shape == empty.psp.shape == (0, 3)
    assert metrics.by_document(csr(TRUE), PREDICTED, ks=()).precision.shape == (4, 0)
    with pytest.raises(
        ValueError, match="by_document: ks must be at most K=3, the columns of predictions, got 4"
    ):
        metrics.by_document(csr(TRUE), PREDICTED, ks=(4,))

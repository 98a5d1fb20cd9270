"""Other systems beside mach_ext: rankings with scores, and the column in which everyone is adjusted."""

import argparse

import frames
import numpy as np
import pytest
import scipy.sparse as sp
from studies import peers, rankings
from studies.rankings import Ranking
from tables import accuracy

from mach_ext import data, metrics

COUNTS = np.array([99, 9, 0])  # labels 0 to 2


def ranking(rows, k=3):
    return rankings.of_pairs(rows, k)


def test_a_ranking_has_places_for_labels_that_are_not_there():
    labels, scores = ranking([[(2, 0.5), (0, 0.25)], [], [(1, 1.0), (0, 0.0), (2, 0.0), (3, 0.0)]])
    assert labels.tolist() == [[2, 0, -1], [-1, -1, -1], [1, 0, 2]]
    assert np.allclose(scores[0, :2], np.log([0.5, 0.25]))
    assert np.isneginf(scores[0, 2])
    assert np.isneginf(scores[1]).all()
    assert scores[2, 0] == 0
    assert -100 < scores[2, 1] < -80


def test_best_takes_the_smaller_label_of_equal_ones():
    matrix = sp.csr_matrix(np.array([[0.5, 0.75, 0.5], [0, 0, 0.25]]))
    labels, scores = rankings.best(matrix, 2)
    assert labels.tolist() == [[1, 0], [2, -1]]
    assert np.allclose(scores[0], np.log([0.75, 0.5]))


def test_filled_rankings_have_k_places():
    two = ranking([[(0, 0.5), (1, 0.4)]], k=2)
    assert rankings.filled(two, 4).labels.tolist() == [[0, 1, -1, -1]]
    assert np.isneginf(rankings.filled(two, 4).scores[0, 2:]).all()
    assert rankings.filled(two, 1).labels.tolist() == [[0]]


def test_log_sigmoid_is_exact_far_out():
    assert np.allclose(rankings.log_sigmoid([0.0, -800.0, 800.0]), [-np.log(2), -800, 0])
    assert np.allclose(rankings.log_sigmoid([0.5], slope=2), rankings.log_sigmoid([1.0]))


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.3, 0.7])
def test_adjusted_ranks_by_log_p_minus_tau_log_count(tau):
    p = [0.5, 0.4, 0.2]
    expected = sorted(range(3), key=lambda label: -(np.log(p[label]) - tau * np.log(COUNTS[label] + 1)))
    rows = [list(enumerate(p)), [(1, 0.4), (2, 0.1)]]
    labels = rankings.adjusted(ranking(rows), COUNTS, tau)
    assert labels[0].tolist() == expected
    assert labels[1, 2] == -1  # "none" stays last, although the last label is the rarest


def test_adjusted_keeps_ties_and_orders_without_tau():
    tied = Ranking(np.array([[2, 0, 1]]), np.zeros((1, 3)))
    assert rankings.adjusted(tied, COUNTS, 0.0).tolist() == [[2, 0, 1]]
    assert rankings.adjusted(tied, np.array([5, 5, 5]), 0.7).tolist() == [[2, 0, 1]]


def test_tau_is_the_smallest_of_the_best():
    """0.4 / 0.5 beats log 10 apart: label 1 comes first from tau = log(1.25) / log(10) = 0.097 on."""
    two = ranking([[(0, 0.5), (1, 0.4)]], k=5)
    truth = {label: sp.csr_matrix(np.eye(3)[[label]]) for label in (0, 1)}
    assert rankings.choose_tau(truth[0], two, COUNTS) == 0
    assert rankings.choose_tau(truth[1], two, COUNTS) == 0.1


def test_tau_is_the_best_of_the_mean_of_the_precisions():
    random = np.random.default_rng(0)
    p, Y = random.random((50, 12)), sp.csr_matrix(random.random((50, 12)) < 0.3, dtype=np.float32)
    counts = random.integers(0, 200, 12)
    of = rankings.best(sp.csr_matrix(p), 12)
    scores = {
        tau: sum(metrics.precision_at_k(Y, rankings.adjusted(of, counts, tau), k) for k in (1, 3, 5))
        for tau in rankings.TAUS
    }
    assert len(set(scores.values())) > 5
    assert scores[rankings.choose_tau(Y, of, counts)] == max(scores.values())


# ------------------------------------------------------------------------------------------------- a run


def split(N, seed):
    """Documents of label 1 look like those of label 0, which is frequent. Label 2 is by itself."""
    random = np.random.default_rng(seed)
    X = sp.csr_matrix(random.random((N, 6)) < 0.5, dtype=np.float32)
    Y = sp.csr_matrix(np.eye(3, dtype=np.float32)[random.integers(0, 3, N)])
    return data.Split(X, Y)


def fixed(X, Y, folder, threads):
    """A system that always answers 0 with 0.5 and 1 with 0.4."""
    folder.mkdir()
    return lambda X, k: ranking([[(0, 0.5), (1, 0.4)]] * X.shape[0], k)


def only(label, N=4):
    return data.Split(sp.csr_matrix((N, 6), dtype=np.float32), sp.csr_matrix(np.eye(3)[[label] * N]))


TRAIN = data.Split(
    sp.csr_matrix((100, 6), dtype=np.float32), sp.csr_matrix(np.eye(3, dtype=np.float32)[[0] * 90 + [1] * 10])
)


def test_tau_is_chosen_on_dev_and_used_for_test():
    asked = {"test": only(0), "dev": only(1)}  # on test alone, tau would be 0
    results = peers.measure(peers.System("numpy", fixed), TRAIN, asked, 1, None, True)
    assert results["dev"]["tau"] == results["test"]["tau"] == pytest.approx(0.15)
    assert [results[name]["P@1"] for name in asked] == [1, 0]
    assert [results[name]["adjusted P@1"] for name in asked] == [0, 1]
    assert results["test"]["ms_batch"] >= 0
    assert results["test"]["ms_single"] >= 0


def test_without_dev_tau_is_the_kept_one_or_there_is_no_second_column():
    system, asked = peers.System("numpy", fixed), {"test": only(1)}
    kept = peers.measure(system, TRAIN, asked, 1, 0.3, False)["test"]
    assert kept["tau"] == 0.3
    assert kept["adjusted P@1"] == 1
    assert "ms_batch" not in kept
    none = peers.measure(system, TRAIN, asked, 1, None, False)["test"]
    assert none["P@1"] == 0
    assert "tau" not in none
    assert "adjusted P@1" not in none


@pytest.mark.parametrize(
    "name", ["popularity", "20 nearest neighbours", "scikit-learn one-vs-rest", "mach_ext (SVM)"]
)
def test_rankings_of_systems_are_log_probabilities_best_first(name, tmp_path):
    train, asked = split(200, 0), split(20, 1)
    system = peers.SYSTEMS[name]
    predict = system.train(train.X, train.Y, tmp_path / "model", 1, **system.settings)
    of = predict(asked.X, 2)
    assert of.labels.shape[1] == 2
    assert of.labels.shape == of.scores.shape
    assert (np.diff(of.scores) <= 0).all()
    three = predict(asked.X, 200)
    assert (three.labels[:, :2] == of.labels).all()
    assert three.labels.max() <= 2
    if "neighbours" not in name:
        assert (three.scores <= 0).all()


def test_margins_become_probabilities_as_squared_hinge_suggests(tmp_path):
    """Where one feature says all, p of the label is the share of its documents: margin = 2 p - 1."""
    X = sp.csr_matrix(np.ones((400, 1), np.float32))
    Y = sp.csr_matrix(np.eye(2, dtype=np.float32)[[0] * 300 + [1] * 100])
    predict = peers.one_vs_rest(X, Y, tmp_path / "model", 1)
    labels, scores = predict(X[:1], 2)
    assert labels.tolist() == [[0, 1]]
    assert np.allclose(np.exp(scores), [[0.73, 0.27]], atol=0.02)  # sigmoid(1) where p = 0.75


def test_a_run_keeps_the_times_of_the_former_row(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "FILE", tmp_path / "peers.csv")
    monkeypatch.setattr(peers, "RESULTS", tmp_path)
    monkeypatch.setitem(peers.SYSTEMS, "fixed", peers.System("numpy", fixed))
    dataset = data.Dataset("tiny", tmp_path, train=TRAIN, dev=only(1), test=None)
    args = argparse.Namespace(threads=1, keep_times=False)
    peers.run(dataset, {"dev": only(1)}, "fixed", args)
    before = peers.kept_row("tiny", "dev", "fixed")
    assert peers.kept_tau("tiny", "fixed") == pytest.approx(0.15)
    assert peers.kept_tau("tiny", "mach_ext") is None
    args.keep_times = True
    peers.run(dataset, {"dev": only(0)}, "fixed", args)
    after = peers.kept_row("tiny", "dev", "fixed")
    assert {name: after[name] for name in peers.TIMES} == {name: before[name] for name in peers.TIMES}
    assert (before["P@1"], after["P@1"], after["tau"]) == ("0", "1", "0")
    peers.run(dataset, {"test": only(1)}, "fixed", args)  # there is no former row: it is timed
    final = peers.kept_row("tiny", "test", "fixed")
    assert final["ms_batch"]
    assert final["tau"] == "0"
    assert final["adjusted P@1"] == "0"


# ----------------------------------------------------------------------------------------------- the table


def test_table_of_the_adjusted_has_those_with_tau_and_the_defaults(tmp_path):
    rows = frames.read("peers")
    rows = rows[rows["split"] == "test"].drop_duplicates(["dataset", "system"])
    rows = rows[(rows["dataset"] == "wordnet") & rows["system"].isin(["mach_ext", "mach_ext (R 4)"])]
    rows = rows.drop(columns=[name for name in rows if name.startswith("adjusted") or name == "tau"])
    added = rows.iloc[[0]].assign(system="Bonsai", tau=0.25, **{"P@1": 0.5})
    added = added.assign(**{f"adjusted P@{k}": 0.9 / k for k in (1, 3, 5)})
    frames.pd.concat([rows, added]).to_csv(tmp_path / "peers.csv", index=False)
    _, _, first, *others = accuracy.adjusted(tmp_path).splitlines()
    assert first.startswith("| wordnet | Bonsai | 50.00 / ")
    assert first.endswith(" | 90.00 / 30.00 / 18.00 | 0.25 |")
    assert len(others) == 1
    assert others[0].startswith("| wordnet | mach_ext | ")
    assert others[0].endswith(" |  |  |")

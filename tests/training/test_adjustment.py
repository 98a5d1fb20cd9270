"""The strength of the logit adjustment is chosen on dev, if dev can tell."""

import numpy as np
import pytest
import scipy.sparse as sp
from training_cases import same_bits, weights

import mach_ext
from mach_ext.training.adjustment import FEWEST, TAUS, choose_tau, is_ahead, precisions
from mach_ext.training.keeping import RunFolder
from mach_ext.training.run import TrainingRun


class Ranking:
    """Answers label 0 first to as large a share of the documents as its tau says. All have label 0.

    With another tau than the usual one, these are the last documents instead of the first.
    """

    num_labels = 6

    def __init__(self, right, usual):
        self.right, self.usual, self.tau = right, usual, None

    def adjust(self, tau):
        self.tau = tau

    def predict(self, X, k):
        documents = np.arange(X.shape[0])
        order = documents if self.tau == self.usual else documents[::-1]
        first = order < self.right[self.tau] * X.shape[0]
        ranks = np.where(first[:, None], np.arange(6), np.roll(np.arange(6), -1))
        return None, ranks[:, :k]


def choose(right, usual, documents=1000, filtered=None):
    ranking = Ranking(right, usual)
    X, Y = sp.csr_matrix((documents, 3)), sp.csr_matrix(np.eye(6)[np.zeros(documents, int)])
    return choose_tau(ranking, ranking.adjust, X, Y, filtered, usual)


def test_the_best_tau_is_chosen():
    right = dict.fromkeys(TAUS, 0.5) | {0.4: 0.8, 0.27: 0.5}
    assert choose(right, 0.27) == 0.4
    assert choose(right | {0.0: 0.9}, 0.27) == 0.0


def test_a_difference_within_chance_leaves_the_usual_tau():
    right = dict.fromkeys(TAUS, 0.5) | {0.4: 0.501, 0.27: 0.5}
    assert choose(right, 0.27) == 0.27
    assert choose(dict.fromkeys((*TAUS, 0.27), 0.5), 0.27) == 0.27


def test_few_documents_leave_the_usual_tau():
    right = dict.fromkeys(TAUS, 0.1) | {0.4: 1.0, 0.27: 0.1}
    assert choose(right, 0.27, FEWEST - 1) == 0.27
    assert choose(right, 0.27, FEWEST) == 0.4


def test_labels_that_must_not_be_answered_do_not_count():
    filtered = sp.csr_matrix(np.eye(6)[np.ones(1000, int)])  # Label 1 is what stands before label 0.
    right = dict.fromkeys(TAUS, 0.0) | {0.5: 1.0, 0.27: 0.0}
    assert choose(right, 0.27, filtered=filtered) == 0.5


def test_precisions_are_means_over_ks():
    Y = sp.csr_matrix([[1, 1, 0, 0, 0], [0, 0, 0, 0, 1]])
    labels = np.array([[0, 2, 1, 3, 4], [0, 1, 2, 3, 4]])
    expected = [(1 + 2 / 3 + 2 / 5) / 3, (0 + 0 + 1 / 5) / 3]
    np.testing.assert_allclose(precisions(Y, labels), expected)
    np.testing.assert_allclose(precisions(Y, labels[:, :2]), [1, 0])
    assert not is_ahead(np.ones(5), np.ones(5))
    assert is_ahead(np.ones(5), np.zeros(5))


def skewed(rng, documents):
    """Documents of a frequent label 0 and of 20 rare ones, which share most of their features with it."""
    labels = np.where(rng.random(documents) < 0.5, 0, rng.integers(1, 21, documents))
    X = sp.csr_matrix(np.eye(21, dtype=np.float32)[labels])
    noise = sp.random(documents, 30, 0.2, format="csr", dtype=np.float32, random_state=rng)
    return sp.hstack([0.4 * X, noise], format="csr"), sp.csr_matrix(np.eye(21)[labels])


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return *skewed(rng, 600), *skewed(rng, 400)


def model(**options):
    return mach_ext.MACH(51, 21, num_repetitions=8, num_buckets=16, hidden_size=16, **options)


FIT = {"epochs": 4, "batch_size": 32, "progress": False}


def test_fit_keeps_the_chosen_tau_and_a_resume_changes_no_bit(tmp_path, data):
    one, other = model(), model()
    record = mach_ext.fit(one, *data, output=tmp_path, **FIT)
    chosen = record.history[-1]["tau"]
    usual = min(0.5, 1 / np.sqrt(np.asarray(data[1].sum(0)).mean()))
    assert chosen in TAUS or chosen == pytest.approx(usual)
    assert same_bits(weights(one), weights(mach_ext.load(tmp_path)))
    again = mach_ext.fit(other, *data, output=tmp_path, resume=True, **FIT)
    assert again.history == record.history
    assert same_bits(weights(one), weights(other))
    assert same_bits(weights(one), weights(mach_ext.load(tmp_path)))


def test_the_choice_is_the_best_that_its_model_can_have(data):
    X, Y, X_dev, Y_dev = data
    one = model()
    record = mach_ext.fit(one, X, Y, X_dev, Y_dev, **FIT)
    counts, found = np.asarray(Y.sum(0)).ravel(), {}
    for tau in (*TAUS, record.history[-1]["tau"]):
        one.adjust_logits(counts, tau)
        found[tau] = precisions(Y_dev, one.predict(X_dev, 5)[1]).mean()
    best = max(found.values())
    assert best - found[record.history[-1]["tau"]] < 0.02  # a standard error of 400 documents


def test_a_given_tau_stays(data):
    one, other = model(), model()
    record = mach_ext.fit(one, *data, tau=0.3, **FIT)
    mach_ext.fit(other, *data[:2], tau=0.3, **FIT)
    assert "tau" not in record.history[-1]
    if record.best_epoch == 4:
        assert same_bits(weights(one), weights(other))


def test_without_dev_the_usual_tau_is_taken(data):
    one, other = model(), model()
    mach_ext.fit(one, *data[:2], **FIT)
    mach_ext.fit(other, *data[:2], tau=0.0, **FIT)
    other.adjust_logits(data[1].sum(0), min(0.5, 1 / np.sqrt(np.asarray(data[1].sum(0)).mean())))
    assert same_bits(weights(one), weights(other))


def test_repetitions_in_turn_choose_alike(tmp_path, data):
    whole, parts = (mach_ext.MACH(51, 21, 8, 16, hidden_size=0) for _ in range(2))
    options = {"epochs": 1, "batch_size": 32, "progress": False}
    first = mach_ext.fit(whole, *data, **options)
    second = mach_ext.fit(parts, *data, output=tmp_path, repetitions_at_a_time=2, **options)
    assert first.history[-1]["tau"] == second.history[-1]["tau"]
    assert same_bits(weights(whole), weights(parts))


class Killed(Exception):
    """The process would have ended here."""


@pytest.mark.parametrize("at", ["accept_any_model", "keep_model", "write_end"])
def test_a_kill_at_the_end_loses_nothing(tmp_path, monkeypatch, data, at):
    """The chosen tau changes the model in the folder, whose digest the checkpoint has."""
    whole, stopped, resumed = model(), model(), model()
    monkeypatch.setattr(TrainingRun, "choose_tau", choose_a_tau)
    mach_ext.fit(whole, *data, output=tmp_path / "whole", **FIT)

    real, at_the_end = getattr(RunFolder, at), []

    def kill(folder, *arguments):
        if at == "keep_model" and not at_the_end:
            return real(folder, *arguments)
        raise Killed

    real_accept = RunFolder.accept_any_model
    with monkeypatch.context() as patch:
        if at == "keep_model":
            patch.setattr(RunFolder, "accept_any_model", lambda f: (real_accept(f), at_the_end.append(1)))
        patch.setattr(RunFolder, at, kill)
        with pytest.raises(Killed):
            mach_ext.fit(stopped, *data, output=tmp_path / "run", **FIT)
    mach_ext.fit(resumed, *data, output=tmp_path / "run", resume=True, **FIT)
    assert same_bits(weights(whole), weights(resumed))
    assert same_bits(weights(whole), weights(mach_ext.load(tmp_path / "run")))


def choose_a_tau(run):
    """As if tau 0.7 were always the best on dev."""
    former = run.model.bucket_bias.detach().clone(), run.model.logit_adjustment.clone()
    run.adjust(0.7)
    if run.model.logit_adjustment.equal(former[1]):
        run._restore(*former)
        return False
    return True

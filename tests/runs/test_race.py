"""The race between ways to train: who runs, who wins, and what the run keeps of it."""

import dataclasses
import json
import logging
import os
import signal
import types

import numpy as np
import pytest
import scipy.sparse as sp

import mach_ext
from mach_ext import data, training
from mach_ext.runs import evaluation, trainer
from mach_ext.runs import race as races
from mach_ext.runs.contenders import Contender, contenders, svm_seconds
from mach_ext.runs.race import Problem, Result, run_race, table
from mach_ext.runs.recipe import Recipe


def dataset(documents=2400, labels=12, dense=0, seed=0):
    """Documents whose label is written in one of their features, with noise in the others."""
    rng = np.random.default_rng(seed)
    of = rng.integers(0, labels, documents)
    X = sp.hstack(
        [sp.csr_matrix(np.eye(labels)[of]), sp.random(documents, 20, 0.2, random_state=rng)],
        format="csr", dtype=np.float32,
    )  # fmt: skip
    given = {"dense": rng.normal(size=(documents, dense)).astype(np.float32)} if dense else {}
    return data.Dataset("made", "made", data.Split(X, sp.csr_matrix(np.eye(labels)[of]), **given))


SMALL = {"hidden_size": 8, "num_repetitions": 4, "hyperparameters": {"epochs": 2}}


def names(recipe, *, device="cpu", **shape):
    return [each.name for each in contenders(recipe, dataset(**shape), device)]


HIDDEN = [f"hidden layers, {step} steps" for step in ("usual", "coarse", "fine")]


def test_all_ways_run_where_nothing_is_given():
    assert names(Recipe()) == [*HIDDEN, "support vector machines"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"svm": True}, ["support vector machines"]),
        ({"svm": False}, HIDDEN),
        ({"hidden_size": 0}, ["linear model"]),
        ({"hidden_size": (0,)}, ["linear model"]),
        ({"hidden_size": 16}, HIDDEN),
        ({"encoder": "shared"}, HIDDEN),
        ({"hyperparameters": {"epochs": 3}}, HIDDEN),
        ({"hyperparameters": {"optimizer": "adagrad"}}, ["hidden layers"]),
        ({"hyperparameters": {"encoder_eps": 1e-6}}, HIDDEN[:1]),
        ({"hyperparameters": {"encoder_learning_rate": 0.1}}, HIDDEN[:1]),
        ({"hyperparameters": {"encoder_eps": None}}, [*HIDDEN, "support vector machines"]),
    ],
)
def test_what_is_given_does_not_run_against_itself(given, expected):
    assert names(Recipe(**given)) == expected


def test_support_vector_machines_need_documents_and_a_cpu():
    assert names(Recipe(), device="cuda:0") == HIDDEN
    assert names(Recipe(), documents=180) == HIDDEN  # 15 documents a label
    assert names(Recipe(), documents=3000, labels=40) != HIDDEN  # 60 features
    few = dataset(3000, labels=40)
    fewer = data.Split(few.train.X[:, :39], few.train.Y)
    assert [each.name for each in contenders(Recipe(), data.Dataset("f", "f", fewer), "cpu")] == HIDDEN


def test_a_contender_keeps_what_was_given():
    _, coarse, *_ = contenders(Recipe(hyperparameters={"epochs": 3}), dataset(dense=2), "cpu")
    chosen = coarse.applied(Recipe(hyperparameters={"epochs": 3, "tau": None}))
    rates = {"encoder_eps": 1e-3, "encoder_learning_rate": 3.0, "dense_learning_rate": 3.0}
    assert chosen.hyperparameters == {**rates, "epochs": 3}
    assert chosen.svm is False
    given = Recipe(hyperparameters={"encoder_eps": 1e-6})
    assert contenders(given, dataset(), "cpu")[0].applied(given).hyperparameters == {"encoder_eps": 1e-6}


def test_a_race_is_the_same_again():
    one, other = (run_race(Recipe(**SMALL), dataset(), "cpu", progress=False) for _ in range(2))
    for each in (one, other):
        assert each.documents == 2000  # of 2,160, for a training as short as this
        assert (each.held_out, each.groups) == (240, 12)
    assert [each.P for each in one.results] == [each.P for each in other.results]
    assert one.winner == other.winner
    record = one.record()
    assert json.loads(json.dumps(record)) == record
    assert sum(line.startswith("* ") for line in table(record)) == 1
    assert sum(line.endswith("must be 0.5 points ahead") for line in table(record)) == 1
    for entry in record["contenders"]:
        del entry["handicap"]  # as runs of before have it
    assert not any("points ahead" in line for line in table(record))


def test_another_seed_draws_another_sample():
    made = dataset(6000)
    dev = data.hold_out(made)
    drawn = [Problem.of(Recipe(seed=seed), dev, [Contender("a")] * 40) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 2000
    assert (drawn[0].X != drawn[1].X).nnz == 0
    assert (drawn[0].X != drawn[2].X).nnz > 0


def test_few_documents_or_one_way_are_no_race():
    assert run_race(Recipe(**SMALL), dataset(1900), "cpu", progress=False) is None
    assert run_race(Recipe(svm=True), dataset(), "cpu", progress=False) is None
    assert run_race(Recipe(C=2.0), dataset(), "cpu", progress=False) is None
    assert run_race(Recipe(hyperparameters={"encoder_eps": 1.0}), dataset(), "cpu", progress=False) is None


@pytest.mark.parametrize("seed", [1.5, "1", -1, None])
def test_a_bad_seed_is_named_before_any_work(seed, tmp_path):
    with pytest.raises((TypeError, ValueError), match="seed"):
        mach_ext.train(dataset(), output=tmp_path / "run", seed=seed, epochs=1, progress=False)


def test_a_race_on_two_labels_tells_only_what_two_labels_have():
    record = run_race(Recipe(**SMALL), dataset(labels=2), "cpu", progress=False).record()
    assert all(len(each["P"]) == 1 for each in record["contenders"])
    assert all("P@1 " in line and "/" not in line for line in table(record)[1:])


def test_labels_become_groups_and_no_document_loses_one():
    made = dataset(2400, 600)
    problem = Problem.of(Recipe(), data.hold_out(made), [Contender("a")])
    assert problem.groups == 512
    assert problem.Y.shape == (2160, 512)
    assert (problem.Y.getnnz(axis=1) == 1).all()
    assert set(problem.Y.data) == {1}
    assert len(np.unique(problem.Y.indices)) > 300


def result(name, mean, handicap=0.0, spread=0.0):
    scores = np.where(np.arange(400) % 2, mean + spread, mean - spread)
    return Result(Contender(name, handicap=handicap), [mean] * 3, scores, 400)


def test_the_usual_way_wins_unless_another_is_clearly_ahead():
    def winner(*results):
        return races._winner(list(results)).contender.name

    usual = result("usual", 0.5)
    assert winner(usual, result("other", 0.5)) == "usual"
    assert winner(usual, result("other", 0.51)) == "other"
    assert winner(usual, result("other", 0.51, spread=0.5)) == "usual"  # a standard error is 0.025
    assert winner(usual, result("other", 0.51), result("third", 0.52)) == "third"
    assert winner(usual, result("loud", 0.511, spread=0.5), result("other", 0.51)) == "other"
    assert winner(usual, result("late", 0.504, handicap=0.005)) == "usual"
    assert winner(usual, result("late", 0.506, handicap=0.005)) == "late"
    assert winner(usual, result("other", 0.51), result("late", 0.514, handicap=0.005)) == "other"


def settings_of(run):
    return json.loads(run.model.attachments["run.json"])["settings"]


def test_a_run_keeps_the_race_and_trains_the_winner(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(races, "_winner", lambda results: results[2])
    with caplog.at_level(logging.INFO, "mach_ext"):
        run = mach_ext.train(
            dataset(), output=tmp_path / "run", hidden_size=8, num_repetitions=4, epochs=2, progress=False
        )
    settings = settings_of(run)
    assert settings["choice"] == "race"
    assert settings["race"]["winner"] == "hidden layers, fine steps"
    assert settings["encoder_eps"] == 1e-5
    assert training.read_checkpoint(tmp_path / "run")["hyperparameters"]["encoder_learning_rate"] == 0.04
    assert "* hidden layers, fine steps" in caplog.text
    assert run.info()["race"] == settings["race"]
    assert run.seconds["race"] > 0


def test_a_resumed_run_keeps_its_choice(tmp_path, monkeypatch):
    options = {"output": tmp_path / "run", "hidden_size": 8, "num_repetitions": 4, "progress": False}
    first = mach_ext.train(dataset(), epochs=2, encoder_eps=1e-6, **options)
    monkeypatch.setattr(trainer, "run_race", lambda *_: pytest.fail("a second race"))
    again = mach_ext.train(dataset(), resume=True, **options)  # neither epochs nor eps are given
    assert settings_of(again)["epochs"] == 2
    assert settings_of(again)["encoder_eps"] == 1e-6
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert one.equal(other)


def test_hidden_units_do_not_continue_support_vector_machines():
    checkpoint = {"solver": {"C": 1.0}, "model": {"num_repetitions": 4, "hidden_size": 0}}
    for hidden_size, svm in ((None, True), (0, True), (8, False), ((8, 4), False)):
        assert Recipe(hidden_size=hidden_size).continued(checkpoint).svm is svm


def test_rules_can_choose_in_place_of_a_race(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "run_race", lambda *_: pytest.fail("a race"))
    options = {"hidden_size": 8, "num_repetitions": 4, "epochs": 1, "progress": False}
    run = mach_ext.train(dataset(), output=tmp_path / "run", choice="rule", **options)
    assert settings_of(run)["choice"] == "rule"
    assert "encoder_eps" not in settings_of(run)
    with pytest.raises(ValueError, match="choice must be one of race, rule, got 'luck'"):
        mach_ext.train(dataset(), choice="luck")


def test_too_few_documents_for_a_race_leave_the_rules(tmp_path):
    options = {"hidden_size": 8, "num_repetitions": 4, "epochs": 1, "progress": False}
    run = mach_ext.train(dataset(300), output=tmp_path / "run", **options)
    assert settings_of(run)["choice"] == "rule"


def test_the_expected_time_bounds_the_sample():
    made = data.hold_out(dataset(8000))
    sizes = []
    for share in (0.05, 0.2, 1.0):
        patched = types.SimpleNamespace(share=share)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(races, "SHARE", patched.share)
            patch.setattr(races, "SECONDS", 0.0)
            sizes.append(races._sample_size(Recipe(), made, [Contender("a"), Contender("b")]))
    assert sizes[0] < sizes[1] < sizes[2] <= 7200


def test_processes_that_share_a_training_have_a_shorter_race(monkeypatch):
    monkeypatch.setattr(races, "SECONDS", 0.0)
    made, field = data.hold_out(dataset(8000)), [Contender("a"), Contender("b")]
    shared = [races._sample_size(Recipe(), made, field, processes) for processes in (1, 2)]
    assert shared[1] < shared[0]


def test_a_training_that_skips_gradients_has_a_shorter_race(monkeypatch):
    monkeypatch.setattr(races, "SECONDS", 0.0)
    made, field = data.hold_out(dataset(8000)), [Contender("a"), Contender("b")]
    given = ({}, {"gradient_threshold": 0.0}, {"gradient_threshold": 0.003})
    sizes = [races._sample_size(Recipe(hyperparameters=each), made, field) for each in given]
    assert sizes[0] == sizes[1] > sizes[2]


def test_training_says_where_neighbors_help(tmp_path, caplog):
    """A model of no epochs knows nothing, and its neighbours know the labels."""
    options = {"hidden_size": 8, "num_repetitions": 4, "choice": "rule", "progress": False}
    with caplog.at_level(logging.INFO, "mach_ext"):
        mach_ext.train(data.hold_out(dataset()), output=tmp_path / "one", epochs=0, **options)
    assert "neighbors would make dev better: P@1/3/5 of 240 documents" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "mach_ext"):
        mach_ext.train(data.hold_out(dataset(1000)), output=tmp_path / "two", epochs=0, **options)
    assert "neighbors would" not in caplog.text  # 100 documents are too few to say


MODEL = {
    "num_repetitions": 8,
    "num_buckets": 64,
    "hidden_size": 0,
    "encoder": "shared",
    "merge": "mean_logprob",
}


def test_a_checkpoint_says_what_was_not_given():
    solved = {"solver": {"C": 2.0, "tolerance": 0.3, "max_passes": 100}, "model": MODEL}
    recipe = Recipe().continued(solved)
    assert (recipe.svm, recipe.C, recipe.num_buckets, recipe.merge) == (True, 2.0, 64, "mean_logprob")
    assert Recipe(C=0.5, num_buckets=32).continued(solved).C == 0.5
    assert Recipe(C=0.5, num_buckets=32).continued(solved).num_buckets == 32
    assert Recipe(svm=False).continued(solved).svm is False  # which fit_svm's checkpoint then refuses
    settings = {"epochs": 7, "tau": 0.2, "seed": 5, "encoder_eps": 1e-5}
    fitted = {"hyperparameters": settings, "model": {**MODEL, "hidden_size": [16]}}
    recipe = Recipe(hyperparameters={"epochs": 9}).continued(fitted)
    assert recipe.svm is False
    assert recipe.hidden_size == [16]
    assert recipe.hyperparameters == {"epochs": 9, "encoder_eps": 1e-5}
    assert (
        Recipe().continued({"hyperparameters": {**settings, "encoder": {}}, "model": MODEL}).hyperparameters
        == {}
    )


def test_an_interrupted_race_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    step = training.run.TrainingRun.step

    def interrupt(run, batch):
        os.kill(os.getpid(), signal.SIGINT)
        step(run, batch)

    monkeypatch.setattr(training.run.TrainingRun, "step", interrupt)
    with pytest.raises(
        training.TrainingInterrupted, match="stopped in the race; nothing is trained or saved"
    ):
        mach_ext.train(dataset(), output=tmp_path / "run", hidden_size=8, num_repetitions=4, progress=False)
    assert not (tmp_path / "run").exists()


def test_one_label_or_sizes_that_are_no_numbers_are_no_race():
    one = dataset(labels=1)
    assert run_race(Recipe(), one, "cpu", progress=False) is None
    for given in ({"hidden_size": "big"}, {"hidden_size": ("a",)}, {"hyperparameters": {"epochs": "ten"}}):
        assert run_race(Recipe(**given), dataset(), "cpu", progress=False) is None
    with pytest.raises(ValueError, match="epochs must be an int of at least 0, got 'ten'"):
        mach_ext.train(dataset(), epochs="ten", progress=False)


def test_a_race_has_no_more_repetitions_than_the_model():
    problem = Problem.of(Recipe(num_repetitions=2), data.hold_out(dataset()), [Contender("a")])
    assert problem._trained(Contender("a"), "cpu").num_repetitions == 2
    assert problem._trained(Contender("b", svm=True), "cpu").num_repetitions == 1


def test_support_vector_machines_too_large_for_memory_do_not_run():
    assert "support vector machines" in names(Recipe(num_buckets=64))
    assert names(Recipe(num_buckets=2**22)) == HIDDEN


def test_memory_too_short_for_a_race_leaves_the_rules(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr(Problem, "result", full)
    with caplog.at_level(logging.INFO, "mach_ext"):
        run = mach_ext.train(
            dataset(), output=tmp_path / "run", hidden_size=8, num_repetitions=4, epochs=1, progress=False
        )
    assert settings_of(run)["choice"] == "rule"
    assert "memory is too short for a race, so rules choose" in caplog.text


def test_a_remark_about_neighbors_costs_no_run(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr(evaluation, "Neighbors", full)
    options = {"hidden_size": 8, "num_repetitions": 4, "choice": "rule", "progress": False}
    run = mach_ext.train(data.hold_out(dataset()), output=tmp_path / "run", epochs=0, **options)
    assert "dev" in run.metrics


def test_few_dense_features_make_support_vector_machines_dearer():
    sparse = svm_seconds(20, 512, columns=50_000, documents=5000)
    assert svm_seconds(20, 512, columns=250, documents=5000) > 1.1 * sparse
    assert svm_seconds(1000, 512, columns=1000, documents=5000) > 10 * svm_seconds(
        1000, 512, columns=5000, documents=5000
    )


def test_support_vector_machines_in_a_small_file_are_those_of_compress(tmp_path):
    """The files and the metrics are those of a rounded copy."""
    given = {"svm": True, "num_repetitions": 4, "progress": False}
    run = mach_ext.train(data.hold_out(dataset()), output=tmp_path / "run", **given)
    copy = run.compress(tmp_path / "copy", quantization_step=0.8, split="dev")
    small = mach_ext.train(
        data.hold_out(dataset()), output=tmp_path / "small", quantization_step=0.8, **given
    )
    assert settings_of(small)["quantization_step"] == 0.8
    weights = [next(folder.glob("weights*.safetensors")).name for folder in (copy.folder, small.folder)]
    assert weights[0] == weights[1]
    loaded = mach_ext.load(small.folder)
    assert loaded.bucket_weight.equal(small.model.bucket_weight)
    assert small.metrics["dev"] == copy.metrics["dev"]
    with pytest.raises(
        ValueError, match="quantization_step is an option of support vector machines, see svm"
    ):
        mach_ext.train(dataset(200), output=tmp_path / "hidden", quantization_step=0.8, hidden_size=8)


def named():
    """2,400 documents of 240 labels, each the word that its label is called. Most labels are rare."""
    labels = np.concatenate([np.arange(1900) % 8, np.arange(500) % 240])
    names = [f"word{label}" for label in range(240)]
    Y = sp.csr_matrix(np.eye(240, dtype=np.float32)[labels])
    split = data.Split(Y, Y)
    return data.Dataset("made", "made", split, label_names=names, feature_names=names)


@pytest.mark.parametrize("given", [{}, {"svm": True}, {"hidden_size": 0}, {"hyperparameters": {"eps": 1e-6}}])
def test_names_of_labels_run_against_the_winner_without_them(monkeypatch, given):
    monkeypatch.setattr(races.data, "names_tell", lambda dataset: True)
    few = {"num_repetitions": 4, "hidden_size": 8, **given}
    if given.get("svm"):
        del few["hidden_size"]
    race = run_race(Recipe(**few), named(), "cpu", progress=False)
    assert race.names.contender == race.winner
    of_names = len(data.with_label_names(data.hold_out(named()))) - 2160  # of which a part is in the sample
    assert race.names.documents == race.documents + round(race.documents / 2160 * of_names) > race.documents
    without = next(each for each in race.results if each.contender == race.winner)
    assert race.label_names is bool(race.names.scores.mean() > without.scores.mean())
    record = race.record()
    assert record["names"]["help"] is race.label_names
    last = table(record)[-1]
    assert "the winner with names of labels" in last
    assert last.startswith("*") is race.label_names
    assert race.applied(Recipe(**few)).label_names is race.label_names


@pytest.mark.parametrize("help", [True, False])
def test_a_training_follows_the_race_on_names(monkeypatch, tmp_path, caplog, help):
    monkeypatch.setattr(races.data, "names_tell", lambda dataset: True)
    original = Problem.result

    def biased(problem, contender, device):
        made = original(problem, contender, device)
        of_names = len(problem) > 2160  # the documents that are not held out
        return dataclasses.replace(made, scores=made.scores + (2 * help - 1) * of_names)

    monkeypatch.setattr(Problem, "result", biased)
    with caplog.at_level(logging.INFO, "mach_ext"):
        run = mach_ext.train(named(), output=tmp_path / "run", encoder_eps=1e-4, epochs=1, progress=False)
    assert settings_of(run)["label_names"] is help
    assert settings_of(run)["race"]["names"]["help"] is help
    assert ("names of labels with few documents that are learnt from" in caplog.text) is help


def test_a_shortage_of_memory_with_names_leaves_the_race_without(monkeypatch):
    monkeypatch.setattr(races.data, "names_tell", lambda dataset: True)
    original = Problem.result

    def result(problem, contender, device):
        if len(problem) > 2160:
            raise MemoryError
        return original(problem, contender, device)

    monkeypatch.setattr(Problem, "result", result)
    assert run_race(Recipe(**SMALL), named(), "cpu", progress=False).names is None


def test_names_without_known_words_do_not_run(monkeypatch):
    monkeypatch.setattr(races.data, "names_tell", lambda dataset: True)
    unknown = dataclasses.replace(named(), label_names=["nothing"] * 240)
    assert run_race(Recipe(**SMALL), unknown, "cpu", progress=False).names is None


def test_names_of_labels_must_be_ahead():
    way, ahead, behind = (result("way", 0.5), result("way", 0.501, spread=0.5), result("way", 0.5))
    for names, helps in ((ahead, True), (behind, False), (None, None)):
        race = races.Race([way], way.contender, names, 400, 400, 12)
        assert race.label_names is helps
        assert race.applied(Recipe()).label_names is helps


def test_names_that_are_asked_for_or_not_to_be_learnt_do_not_run(monkeypatch):
    monkeypatch.setattr(races.data, "names_tell", lambda dataset: True)
    for asked in (True, False):
        race = run_race(Recipe(**SMALL, label_names=asked), named(), "cpu", progress=False)
        assert race.names is None
        assert race.applied(Recipe(label_names=asked)).label_names is asked

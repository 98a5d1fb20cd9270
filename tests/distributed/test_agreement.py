"""Processes that do not agree, a folder that another run has, and what users do around a training."""

import os
import signal
import time

import pytest
from command_cases import write_texts
from launch_cases import forked
from together_cases import Steps, corpus, train

import mach_ext
from mach_ext import cli, data, training
from mach_ext.distributed import together
from mach_ext.distributed.watch import Watch
from mach_ext.training.folder import lock_run

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
KIND = "independent"


def refused(rank, error, function, *arguments):
    """The exit code is 0 if this error is raised."""
    try:
        function(rank, *arguments)
    except ValueError as found:
        print(found, flush=True)
        return 0 if error in str(found) else 3
    return 2


def assert_refused(tmp_path, error, function, *arguments, codes=(0, 0)):
    ended = forked(2, refused, tmp_path, error, function, *arguments)
    assert [each.code for each in ended] == [*codes], [each.out + each.err for each in ended]


def train_with_own(rank, folder, name, values):
    train(KIND, folder / "run", **{name: values[rank]})


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("epochs", (1, 2), "got epochs 1 on rank 0, and epochs 2 on rank 1"),
        ("resume", (True, False), "got resume True on rank 0"),
        ("evaluate", (True, False), "got evaluate True on rank 0"),
    ],
)
def test_processes_with_other_arguments_are_refused(tmp_path, name, values, words):
    assert_refused(tmp_path, words, train_with_own, tmp_path, name, values)
    assert not (tmp_path / "run").exists()


def train_on_own_data(rank, folder, count):
    dataset = corpus()
    if rank == 1:
        X, Y = dataset.train.X[:count].copy(), dataset.train.Y[:count]
        X.data[0] = 2
        dataset = data.Dataset(
            "corpus", dataset.path, train=data.Split(X, Y), dev=dataset.dev, test=dataset.test
        )
    mach_ext.train(dataset, output=folder / "run", epochs=1, hidden_size=8, num_repetitions=4, progress=False)


@pytest.mark.parametrize(("count", "words"), [(300, "on rank 0, and data 'train 300"), (400, "got X [")])
def test_processes_with_other_documents_are_refused(tmp_path, count, words):
    assert_refused(tmp_path, words, train_on_own_data, tmp_path, count)


def train_at_home(rank, folder, resume):
    """Each process has a disk of its own."""
    home = folder / f"home {rank}"
    home.mkdir(exist_ok=True)
    os.chdir(home)
    train(KIND, "run", resume=resume)


@pytest.mark.parametrize(
    ("resume", "words"),
    [(False, "must be a folder that all processes share"), (True, "the checkpoint in run")],
)
def test_a_folder_that_is_not_shared_is_refused(tmp_path, resume, words):
    if resume:
        train(KIND, tmp_path / "home 0" / "run")
    assert_refused(tmp_path, words, train_at_home, tmp_path, resume)


def train_over(rank, folder):
    train(KIND, folder, overwrite=True)


def test_a_running_training_is_not_overwritten(tmp_path):
    run = tmp_path / "run"
    train(KIND, run, epochs=1)
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with lock_run(run):
        assert_refused(tmp_path / "streams", "run", train_over, run)
    after = {file.name: file.read_bytes() for file in run.iterdir()}
    assert after == before


def interrupt_twice():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


def train_and_interrupt(rank, folder):
    with Steps(3, interrupt_twice):
        try:
            train(KIND, folder, choice="rule")  # A race would be interrupted in place of the training.
        except training.TrainingInterrupted as error:
            return 0 if "holds a checkpoint" in str(error) else 3
    return 2


def test_a_signal_that_comes_twice_leaves_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    ended = forked(2, train_and_interrupt, tmp_path, run)
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    assert training.read_checkpoint(run)["progress"]["batch"] == 16


def train_and_measure(rank, texts, folder):
    """All methods of a run that several processes have trained."""
    sizes = {"hidden_size": 8, "num_repetitions": 4, "num_buckets": 8, "epochs": 2, "progress": False}
    run = mach_ext.train(texts, output=folder, **sizes)
    options = ({}, {"neighbors": True}, {"precision": "bfloat16"})
    found = [run.evaluate("test", save=False, **each)["P@1"] for each in options]
    with together():
        assert found == [run.evaluate("test", save=False, **each)["P@1"] for each in options]
    whole = mach_ext.Run.open(folder)
    assert found == [whole.evaluate("test", save=False, **each)["P@1"] for each in options]
    assert run.predict(["word"], k=2) == whole.predict(["word"], k=2)
    print(found)


def test_a_run_is_measured_within_and_outside_of_together(tmp_path):
    write_texts(tmp_path / "texts")
    ended = forked(2, train_and_measure, tmp_path, tmp_path / "texts", tmp_path / "run")
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    assert ended[0].out == ended[1].out != ""


def come_late(rank):
    mach_ext.distributed.ranks.NOTICE = 0.3
    time.sleep(1.5 * rank)
    with together():
        pass


def test_a_process_says_that_it_waits(tmp_path):
    ended = forked(2, come_late, tmp_path)
    line = "rank 0 of 2: it waits for the other processes, which must all call the same functions"
    assert [each.code for each in ended] == [0, 0]
    assert [each.said for each in ended] == [[f"mach-ext: {line}"], []]


def train_until_a_death(rank, texts, folder):
    """Rank 0 dies in a step. The watch of rank 1 is slower than the exchange that fails."""
    stops = Watch._stop
    Watch._stop = lambda watch: (time.sleep(0.5), stops(watch))
    sizes = ["--hidden-size", 8, "--encoder", "shared", "--hash-functions", 4, "--epochs", 2, "--quiet"]
    argv = ["train", "--dataset", texts, "--output", folder, *sizes]
    with Steps(2, lambda: os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else None):
        return cli.main([*map(str, argv)])


def test_a_death_is_told_even_if_an_exchange_notices_it_first(tmp_path):
    write_texts(tmp_path / "texts")
    ended = forked(2, train_until_a_death, tmp_path, tmp_path / "texts", tmp_path / "run")
    assert [each.code for each in ended] == [-signal.SIGKILL, 1]
    (line,) = ended[1].said
    assert line.startswith("mach-ext: rank 1 of 2 stops, because rank 0 ended before the work was done")

"""Training on several processes: the model of one, resumed by any number of them, whole after any death."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from command_cases import write_texts
from helpers import bitwise_equal, num_threads
from launch_cases import descendants, forked, on_forks, on_ranks, started
from together_cases import (
    EXACT,
    FINISHED,
    ROUNDED,
    STOPPED,
    count_moments,
    die,
    die_again,
    draw_plan,
    files_of,
    metrics_of,
    stop,
    train,
    weights_of,
)

import mach_ext
from mach_ext import cli, training
from mach_ext.distributed import together

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
SIZES = (2, 3)


def name_of(kind):
    return kind.replace(", ", "_").replace(" ", "_")


def same_bits(a, b):
    return a.keys() == b.keys() and all(bitwise_equal(a[key], b[key]) for key in a)


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[key].float() - b[key].float()).abs().max()) for key in a)


def assert_same_metrics(found, expected):
    """The loss is a sum over the ranks, which rounds in another order."""
    for entry, other in zip(found["history"], expected["history"], strict=True):
        assert entry.pop("loss", 0) == pytest.approx(other.pop("loss", 0), rel=1e-6)
    assert found == expected


# --------------------------------------------------------------------------------------------------- the bits


def train_all(stopped_by):
    """What a launch does: train all kinds, stop some, and resume those of other numbers of processes."""
    said = {}
    with together() as ranks:
        for kind in EXACT | ROUNDED:
            run = train(kind, f"whole/{name_of(kind)}")
            said[kind] = [entry["epoch"] for entry in run.history if "epoch" in entry]
        for kind in STOPPED:
            message = stop(kind, f"stopped/{name_of(kind)}", here=ranks.rank == 1)
            said[f"stopped {kind}"] = message
            if ranks.is_first:
                shutil.copytree(f"stopped/{name_of(kind)}", f"resumed by the same/{name_of(kind)}")
            ranks.barrier()
            train(kind, f"resumed by the same/{name_of(kind)}", resume=True)
            for folder in stopped_by:
                train(kind, f"{folder}/{name_of(kind)}", resume=True)
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def alone(home):
    """All kinds, trained by one process, and some stopped."""
    with num_threads(1):
        for kind in EXACT | ROUNDED:
            train(kind, home / "1" / "whole" / name_of(kind))
        for kind in STOPPED:
            stop(kind, home / "1" / "stopped" / name_of(kind))
    return home / "1"


@pytest.fixture(scope="module")
def by_two(home, alone):
    (home / "2").mkdir()
    shutil.copytree(alone / "stopped", home / "2" / "stopped by 1")
    return home / "2", on_ranks(2, train_all, home / "2", ["stopped by 1"])


@pytest.fixture(scope="module")
def by_three(home, by_two):
    (home / "3").mkdir()
    shutil.copytree(home / "2" / "stopped", home / "3" / "stopped by 2")
    return home / "3", on_forks(3, train_all, home / "3", ["stopped by 2"])


@pytest.fixture(params=SIZES)
def launched(request):
    """The folder of a launch of so many processes, and what they returned."""
    return request.getfixturevalue({2: "by_two", 3: "by_three"}[request.param])


@pytest.mark.parametrize("kind", EXACT)
def test_repetitions_that_share_nothing_have_the_bits_of_one_process(alone, launched, kind):
    folder, one = launched[0] / "whole" / name_of(kind), alone / "whole" / name_of(kind)
    size = int(launched[0].name)
    assert same_bits(weights_of(folder), weights_of(one))
    expected = metrics_of(one)
    assert_same_metrics(metrics_of(folder), expected)
    files = FINISHED - ({"checkpoint.json"} if kind == "SVM" else set())
    assert files_of(folder) == files
    assert len([*folder.glob("weights-*")]) == size
    assert expected["test"]["P@1"] > 0.4  # the task can be learned


@pytest.mark.parametrize("kind", ROUNDED)
def test_other_models_are_as_good(say, alone, launched, kind):
    folder, one = launched[0] / "whole" / name_of(kind), alone / "whole" / name_of(kind)
    difference = largest_difference(weights_of(folder), weights_of(one))
    found, expected = metrics_of(folder), metrics_of(one)
    points = [100 * abs(found[split]["P@1"] - expected[split]["P@1"]) for split in ("dev", "test")]
    say(
        f"{kind}, {launched[0].name} processes: weights at most {difference:.1e} from one process, "
        f"P@1 {100 * expected['test']['P@1']:.1f}, at most {max(points):.1f} points from it"
    )
    assert max(points) <= 0.2
    assert difference < 1e-3
    assert expected["test"]["P@1"] > 0.4
    for entry, other in zip(found["history"], expected["history"], strict=True):
        assert entry["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert entry["dev"] == pytest.approx(other["dev"], abs=2e-3)
    assert files_of(folder) == FINISHED


def test_all_ranks_return_the_same(launched):
    first, *others = launched[1]
    assert all(other == first for other in others)
    assert first["independent"][0] == 1
    for kind in STOPPED:
        assert first[f"stopped {kind}"] == (
            f"training stopped; stopped/{name_of(kind)} holds a checkpoint after epoch 1, step 16: "
            "continue with resume=True (--resume)"
        )


# --------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("kind", STOPPED)
def test_a_stopped_training_ends_with_the_same_bits(launched, kind):
    folder = launched[0]
    resumed, whole = folder / "resumed by the same" / name_of(kind), folder / "whole" / name_of(kind)
    assert same_bits(weights_of(resumed), weights_of(whole))
    assert_same_metrics(metrics_of(resumed), metrics_of(whole))
    assert files_of(resumed) == FINISHED
    assert len([*(folder / "stopped" / name_of(kind)).glob("checkpoint-*")]) == int(folder.name)


@pytest.mark.parametrize("kind", STOPPED)
@pytest.mark.parametrize(("written", "read"), [(1, 2), (2, 3), (2, 1), (3, 1)])
def test_any_number_of_processes_resumes(home, by_three, kind, written, read):
    whole = home / "1" / "whole" / name_of(kind)
    if read == 1:
        resumed = home / f"stopped by {written} resumed" / name_of(kind)
        shutil.copytree(home / str(written) / "stopped" / name_of(kind), resumed)
        train(kind, resumed, resume=True)
    else:
        resumed = home / str(read) / f"stopped by {written}" / name_of(kind)
    if kind in EXACT:
        assert same_bits(weights_of(resumed), weights_of(whole))
        assert_same_metrics(metrics_of(resumed), metrics_of(whole))
    else:
        assert largest_difference(weights_of(resumed), weights_of(whole)) < 1e-3
    assert files_of(resumed) == FINISHED
    assert len([*resumed.glob("weights-*")]) in (written, read)  # the best epoch may be the first


# ----------------------------------------------------------------------------------------------------- errors


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "texts")
    given = ["--epochs", "1", "--hidden-size", "4", "--quiet", "--output", str(folder / "kept")]
    assert cli.main(["train", "--dataset", str(folder / "texts"), *given]) == 0
    return folder


def command(rank, folder, argv):
    """The command with `folder` as the working folder."""
    os.chdir(folder)
    return cli.main([*map(str, argv)])


QUICK = ["--dataset", "texts", "--epochs", 2, "--hidden-size", 8, "--hash-functions", 4, "--buckets", 8]
RULE = "must be at least the number of processes, which each train a part, got 3 processes"
ERRORS = {
    "fewer repetitions than processes": (
        [*QUICK, "--hash-functions", 2], f"train: num_repetitions=2 {RULE}"
    ),
    "fewer units than processes": ([*QUICK, "--hidden-size", 2], f"train: hidden_size=2 {RULE}"),
    "repetitions in turn": (
        [*QUICK, "--hidden-size", 0, "--repetitions-at-a-time", 1],
        "fit: repetitions_at_a_time is for one process, got 3 processes, which share 4 repetitions",
    ),
    "no dataset": (["--dataset", "missing"], "missing"),
    "a model": ([*QUICK, "--output", "kept"], "kept"),
    "a loss that is not finite": ([*QUICK, "--learning-rate", 1e30, "--output", "bad"], "the loss became"),
}  # fmt: skip
REMARKS = tuple(f"mach-ext: {word}" for word in ("dataset ", "model: ", "only ", "best epoch ", "metrics: "))


def errors_of(ended):
    """The lines of all processes that are no remarks."""
    lines = [line for each in ended for line in each.err.splitlines()]
    return [line for line in lines if not line.startswith(REMARKS)]


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line_once(texts, tmp_path, name):
    argv, expected = ERRORS[name]
    before = {file: file.read_bytes() for file in texts.glob("kept/*")}
    ended = forked(3, command, tmp_path, texts, ["train", *argv, "--quiet"])
    (error,) = errors_of(ended)
    assert error.startswith("mach-ext: ")
    assert expected in error
    assert [each.code for each in ended] == [1, 1, 1]
    assert all(each.out == "" for each in ended)
    assert before == {file: file.read_bytes() for file in texts.glob("kept/*")}


def test_wrong_usage_is_told_once(texts, tmp_path):
    ended = forked(2, command, tmp_path, texts, ["train", "--hash-function", 4])
    assert [each.code for each in ended] == [2, 2]
    assert ended[1].err == ended[1].out == ""
    assert ended[0].err.count("--hash-function") >= 1


def test_finetuning_is_for_one_process(texts, tmp_path):
    tiny_bert = pytest.importorskip("tiny_bert")
    tiny_bert.need_transformers()
    encoder = tiny_bert.write(tmp_path / "bert")
    argv = ["train", *QUICK, "--text-encoder", encoder, "--finetune", "--output", tmp_path / "run", "--quiet"]
    ended = forked(2, command, tmp_path, texts, argv)
    (error,) = errors_of(ended)
    assert error.endswith("train: --finetune is for one process, got 2 processes")
    assert [each.code for each in ended] == [1, 1]


# ----------------------------------------------------------------------------------------------------- deaths


KIND = "independent, dropout"


@pytest.fixture(scope="module")
def num_moments(tmp_path_factory):
    """The least number of moments of the ranks of a whole run."""
    folder = tmp_path_factory.mktemp("moments")
    assert [each.code for each in forked(2, count_moments, folder, KIND, folder)] == [0, 0]
    return min(int((folder / f"moments {rank}").read_text()) for rank in range(2))


@pytest.mark.parametrize("seed", range(6))
def test_a_death_leaves_a_whole_folder(say, tmp_path, alone, num_moments, seed):
    ((victim, moment),) = draw_plan(seed, 1, 2, num_moments)
    ended = forked(2, die, tmp_path, KIND, tmp_path, victim, moment)
    assert ended[victim].code == -signal.SIGKILL
    survivor = ended[1 - victim]
    assert survivor.code == 1
    assert len(survivor.said) == 1
    assert f"because rank {victim} ended before the work was done" in survivor.said[0]
    run = tmp_path / "run"
    left = sorted(file.name for file in run.iterdir()) if run.exists() else []
    has_model, has_checkpoint = (run / "model.json").exists(), (run / "checkpoint.json").exists()
    say(f"rank {victim} of 2 died at moment {moment} of {num_moments}: {len(left)} files")
    if has_model:
        mach_ext.load(run)
    if has_checkpoint:
        training.read_checkpoint(run)
    train(KIND, run, resume=True)
    assert same_bits(weights_of(run), weights_of(alone / "whole" / name_of(KIND)))
    assert files_of(run) == FINISHED


def test_three_deaths_and_three_restarts(say, tmp_path, alone, num_moments):
    seed = random.randrange(10**6)
    plan = draw_plan(seed, 3, 2, num_moments // 4)  # so that the last attempt has something left to do
    started_at = time.monotonic()
    on_ranks(2, die_again, tmp_path, KIND, plan, restarts=3)
    said = (tmp_path / "err").read_text()
    say(f"seed {seed}: (rank, moment) {plan}; {time.monotonic() - started_at:.0f} s")
    assert len([*tmp_path.glob("found *")]) == 4
    assert same_bits(weights_of(tmp_path / "run"), weights_of(alone / "whole" / name_of(KIND)))
    assert files_of(tmp_path / "run") == FINISHED
    lines = [line for line in said.splitlines() if line.startswith("mach-ext: ") and "stops, because" in line]
    assert len(lines) == 3, said


def test_a_kill_from_outside_without_restarts(say, tmp_path, texts):
    argv = ["-m", "mach_ext", "train", *QUICK, "--epochs", 100_000, "--output", "run", "--quiet"]
    argv[argv.index("texts")] = texts / "texts"
    with started(2, *argv, folder=tmp_path) as process:
        until = time.monotonic() + 100
        while not (tmp_path / "run" / "model.json").exists():
            assert time.monotonic() < until
            assert process.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.05)
        workers = [pid for pid in descendants(process.pid) if "mach_ext" in command_of(pid)]
        assert len(workers) == 2
        victim = random.choice(workers)
        time.sleep(random.random())
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        assert process.wait(60) != 0
        seconds = time.monotonic() - killed
    said = [line for line in (tmp_path / "err").read_text().splitlines() if "stops, because" in line]
    say(f"a worker of torchrun killed: the launch ended after {seconds:.1f} s: {said[0]}")
    assert len(said) == 1
    assert said[0].startswith("mach-ext: rank ")
    assert seconds < 20
    mach_ext.load(tmp_path / "run")
    training.read_checkpoint(tmp_path / "run")


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""

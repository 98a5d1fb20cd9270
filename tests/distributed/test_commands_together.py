"""Commands on two processes: what they print and write is what one process prints and writes."""

import collections
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from command_cases import write_texts
from launch_cases import forked, on_forks, on_ranks, torchrun
from shard_cases import save_in_parts

import mach_ext
from mach_ext import cli
from mach_ext.distributed import together

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
TEXTS = ["word1 word2", "", "nothing that is known", "word6", "word3 word3"]
QUESTIONS = [argument for text in TEXTS for argument in ("--text", text)]
COMMANDS = {
    "info": ["info", "--model-path", "run"],
    "info, json": ["info", "--model-path", "run", "--json"],
    "evaluate": ["evaluate", "--model-path", "run"],
    "evaluate dev, neighbors": ["evaluate", "--model-path", "run", "--split", "dev", "--neighbors"],
    "predict, texts": ["predict", "--model-path", "run", *QUESTIONS],
    "predict, split": ["predict", "--model-path", "run", "--split", "test", "--format", "jsonl"],
    "predict, file": ["predict", "--model-path", "run", "--input", "asked.txt", "--input-format", "text"],
    "predict, standard input": ["predict", "--model-path", "run", "--k", "3", "--format", "jsonl"],
    "predict, dash": ["predict", "--model-path", "run", "--input", "-", "--k", "2"],
    "predict into a folder": ["predict", "--model-path", "run", "--split", "test", "--output", "answers"],
    "explain": ["explain", "--model-path", "run", "--text", "word1 word2", "--label", "plain"],
    "explain, page": [
        "explain", "--model-path", "run", "--split", "test", "--sample-id", "3", "--html", "page.html",
    ],
    "attack": ["attack", "--model-path", "run", "--sample", "6", "--report", "report.html"],
    "compress": ["compress", "--model-path", "run", "--output", "small", "--step", "0.1"],
    "predict by the compressed": ["predict", "--model-path", "small", *QUESTIONS, "--format", "tsv"],
    "evaluate the compressed": ["evaluate", "--model-path", "small", "--split", "test"],
}  # fmt: skip
REFUSED = {
    "k": ["predict", "--model-path", "run", "--text", "word1", "--k", "100"],
    "no model": ["evaluate", "--model-path", "missing"],
    "an alone command": ["explain", "--model-path", "missing", "--text", "word1"],
}


def run_commands(names):
    """Run commands, each with files in place of its streams. Return their codes, and what was written."""
    written, replace = collections.Counter(), os.replace

    def count(source, target, **options):
        if not str(target).endswith(".journal"):  # which has a random name
            written[os.path.relpath(target)] += 1
        return replace(source, target, **options)

    os.replace = count
    rank, codes = os.environ.get("RANK", "0"), {}
    Path("streams").mkdir(exist_ok=True)
    with together() as ranks:  # one launch for all commands
        for name in names:
            with files_as_streams(f"streams/{name} {rank}"):
                codes[name] = cli.main([*COMMANDS[name], "--quiet"])
            ranks.barrier()
    return codes, dict(written)


class files_as_streams:
    """Standard streams are files in a block."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        sys.stdout.flush(), sys.stderr.flush()
        self.former = [os.dup(i) for i in range(3)]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        new = [os.open("asked.txt", os.O_RDONLY)]
        new += [os.open(f"{self.name} {stream}", flags) for stream in ("out", "err")]
        self.stdin = sys.stdin
        for i, descriptor in enumerate(new):
            os.dup2(descriptor, i)
            os.close(descriptor)
        sys.stdin = os.fdopen(0, closefd=False)

    def __exit__(self, *_):
        sys.stdout.flush(), sys.stderr.flush()
        sys.stdin = self.stdin
        for i, descriptor in enumerate(self.former):
            os.dup2(descriptor, i)
            os.close(descriptor)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a dataset, a run in two shards, and questions."""
    home = tmp_path_factory.mktemp("commands") / "home"
    home.mkdir()
    write_texts(home / "texts")
    (home / "asked.txt").write_text("\n".join(TEXTS) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        sizes = ["--hidden-size", "8", "--hash-functions", "5", "--buckets", "8", "--epochs", "5"]
        argv = ["train", "--dataset", "texts", "--output", "run", "--quiet", "--no-svm", *sizes]
        assert cli.main(argv) == 0
    save_in_parts(mach_ext.load(home / "run"), home / "run", 2)
    return home


@pytest.fixture(scope="module")
def by_one(home):
    folder = Path(shutil.copytree(home, home.parent / "one"))
    return folder, on_forks(1, run_commands, folder, list(COMMANDS))


@pytest.fixture(scope="module")
def by_two(home):
    folder = Path(shutil.copytree(home, home.parent / "two"))
    return folder, on_ranks(2, run_commands, folder, list(COMMANDS))


def stream(folder, name, rank, which):
    text = (folder / "streams" / f"{name} {rank} {which}").read_text()
    return text.replace(str(folder), "HOME")


@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_print_what_one_prints(by_one, by_two, name):
    (one, ((codes, _),)), (two, results) = by_one, by_two
    assert codes[name] == 0, stream(one, name, 0, "err")
    assert [each[name] for each, _ in results] == [0, 0]
    expected = stream(one, name, 0, "out")
    assert stream(two, name, 0, "out") == expected
    assert expected or "--output" in COMMANDS[name]
    assert stream(two, name, 0, "err") == stream(one, name, 0, "err")
    assert stream(two, name, 1, "out") == stream(two, name, 1, "err") == ""


def test_files_are_written_once(by_one, by_two):
    (one, ((_, alone),)), (two, ((_, first), (_, second))) = by_one, by_two
    assert second == {}
    assert first == alone
    assert {"run/metrics.json", "answers/predictions.tsv", "page.html", "report.html"} <= first.keys()
    assert any(name.startswith("small/weights-") for name in first)
    for name in sorted(first):
        if not (one / name).exists():  # replaced later
            continue
        found, expected = ((folder / name).read_text(errors="replace") for folder in (two, one))
        if name.endswith(".json"):
            found, expected = (without_seconds(json.loads(text)) for text in (found, expected))
            assert found == expected
        else:
            assert found.replace(str(two), str(one)) == expected, name


def without_seconds(record):
    """Metrics without what differs from run to run."""
    if isinstance(record, dict):
        kept = record.items()
        return {key: without_seconds(value) for key, value in kept if key not in ("seconds", "path")}
    return record


@pytest.mark.parametrize("name", REFUSED)
def test_errors_are_told_once(home, tmp_path, name):
    argv = ["-m", "mach_ext", *REFUSED[name], "--quiet"]
    if name != "k":  # a launch takes seconds
        ended = forked(2, command, tmp_path, home, REFUSED[name])
        said, codes = [line for each in ended for line in each.said], [each.code for each in ended]
    else:
        shutil.copytree(home / "run", tmp_path / "run")
        ended = torchrun(2, *argv, folder=tmp_path)
        said, codes = ended.said, [ended.code]
    assert len(said) == 1, said
    assert 1 in codes


def command(rank, folder, argv):
    os.chdir(folder)
    return cli.main(argv)

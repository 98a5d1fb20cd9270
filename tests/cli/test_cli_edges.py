"""The command line at its edges: streams, signals, encodings, numbers, paths; with real file descriptors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_cases import NAMES, SHOWN, UNSAFE, write_texts

from mach_ext import _terminal, cli, data, nn, runs
from mach_ext.cli import info
from mach_ext.runs import opened


@pytest.fixture
def mach(trained, tmp_path):
    """Runs a command in a folder of its own that has a copy of the run."""
    folder, commands = trained
    shutil.copytree(folder / "runs", tmp_path / "runs")
    return lambda *argv, **options: commands(tmp_path, *argv, **options)


# --------------------------------------------------------------------------------------------- streams


def test_closed_streams(mach):
    code, out, err = mach("predict", "--model-path", "runs/texts", stdin=None)
    assert (code, out) == (1, "")
    assert err == ["mach-ext: standard input is closed; give --text, --input or --split"]
    code, out, err = mach("predict", "--model-path", "runs/texts", "--text", "word6", stdout=None)
    assert (code, out) == (1, "")
    assert err == ["mach-ext: standard output: it is closed"]
    code, out, _ = mach("predict", "--text", "word6", "--k", "1", stderr=None)  # which run it is, is not said
    assert code == 0
    assert out.startswith("plain\t")
    assert len(out.splitlines()) == 1
    assert mach("predict", "--text", "word6", stdin=None, stdout=None, stderr=None)[0] == 1
    assert mach("predict", "--text", "word6", "--output", "o", stdin=None, stdout=None, stderr=None)[0] == 0


def test_streams_of_a_new_interpreter(trained):
    folder, _ = trained
    line = f"{sys.executable} -m mach_ext predict --model-path runs/texts --text word6 --k 1"
    closed = subprocess.run(f"{line} <&- >&-", shell=True, cwd=folder, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (1, "mach-ext: standard output: it is closed\n")


@pytest.mark.parametrize(
    "argv",
    [["predict", "--text", "word6"], ["evaluate"], ["info"], ["explain", "--text", "word6"], ["data", "info"],
     ["--help"], ["train", "--help"], ["--version"], ["compress"]],
    ids=" ".join,
)  # fmt: skip
def test_standard_output_on_a_full_device(mach, argv):
    code, _, err = mach(*argv, stdout="/dev/full")
    assert code == 1
    assert err[-1] == "mach-ext: standard output: No space left on device"


def test_results_are_kept_where_they_cannot_be_shown(mach, tmp_path):
    metrics = tmp_path / "runs" / "texts" / "metrics.json"
    metrics.unlink()
    assert mach("evaluate", stdout="/dev/full")[0] == 1
    assert "P@1" in json.loads(metrics.read_text())["test"]
    assert mach("evaluate", stderr="/dev/full")[0] == 0  # no remark is worth a failure


def test_results_are_shown_where_they_cannot_be_kept(trained):
    folder, commands = trained
    run = folder / "runs" / "texts"
    run.chmod(0o555)
    try:
        (folder / "out").touch()
        (folder / "err").touch()
        code, out, err = commands(folder, "evaluate", user=65534 if os.geteuid() == 0 else None)
    finally:
        run.chmod(0o755)
    assert code == 1
    assert "P@1" in out
    assert err[-1] == "mach-ext: runs/texts/metrics.json can't be written: the file is read-only"


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "cp1252", "latin-1:strict", "utf-8:strict"])
def test_encodings_that_lack_letters(mach, encoding):
    text = "".join(f"word{i}\n" for i in range(7))
    env = {"PYTHONIOENCODING": encoding}
    code, out, err = mach("predict", "--k", "1", "--model-path", "runs/texts", text=text, env=env)
    assert (code, err) == (0, [])
    codec = encoding.partition(":")[0]
    assert [line.partition("\t")[0] for line in out.splitlines()] == [
        name.encode(codec, "backslashreplace").decode("utf-8", "surrogateescape") for name in SHOWN
    ]
    code, out, _ = mach("predict", "--k", "1", "--format", "jsonl", text=text, env=env)
    assert code == 0
    assert [json.loads(line)["labels"][0]["label"] for line in out.splitlines()] == NAMES
    code, out, _ = mach("explain", "--text", "word0 é", "--k", "7", env=env)
    assert code == 0
    assert ("########" in out) == (codec != "utf-8")
    code, _, err = mach("explain", "--text", "word0", "--label", "日", env=env)
    assert code == 1
    assert len(err) == 2  # one says which run


def test_names_do_not_steer_the_terminal(mach, tmp_path):
    code, out, err = mach(
        "explain", "--text", "word2 \x1b[2J word3 \u202e", "--k", "7", "--html", "page.html"
    )
    shown = "\n".join([out, *err, (tmp_path / "page.html").read_text()])
    assert code == 0
    for command in (
        ["predict", "--split", "test", "--k", "7"],
        ["predict", "--split", "test", "--k", "7", "--format", "jsonl"],
        ["explain", "--text", "word2", "--label", "red\x1b"],
        ["info", "--model-path", "no\x1b[31m\nwhere"],
        ["train", "--dataset", "\x1b[31m"],
        ["train", "--dataset", "x", "--buckets", "\x1b[31m"],
        ["train", "\x1b[31m"],
    ):
        _, out, err = mach(*command, env={"COLUMNS": "80"})
        shown += "\n".join([out, *err])
        assert err == [] or "Usage" in err[0] or len(err) <= 2
    for character in UNSAFE:
        assert character not in shown
    for name in SHOWN:
        assert name in shown


# ----------------------------------------------------------------------------------------------- stdin


def test_answers_come_as_the_lines_come(trained, tmp_path):
    folder, commands = trained
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    model = folder / "runs" / "texts"
    commands.start(tmp_path, "predict", "--model-path", model, "--k", "1", stdin="in")
    with open(tmp_path / "in", "w") as lines, open(tmp_path / "out") as answers:
        for i in (6, 0, 1):
            print(f"word{i}", file=lines, flush=True)
            assert answers.readline().startswith(NAMES[i])  # would wait for ever
        lines.write("word6")
        lines.close()
        assert answers.read().startswith("plain")
    assert commands.wait() == 0


def test_the_reader_of_the_answers_goes_away(trained, tmp_path):
    folder, commands = trained
    os.mkfifo(tmp_path / "out")
    (tmp_path / "in").write_text("word6\n" * 20_000)
    commands.start(tmp_path, "predict", "--model-path", folder / "runs" / "texts", stdin="in")
    with open(tmp_path / "out") as answers:
        assert answers.readline().startswith("plain")
    assert commands.wait() == 0
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.parametrize(
    "source", [[], ["--input", "-"], ["--input", "/dev/stdin", "--input-format", "text"]]
)
def test_a_blank_line_is_an_empty_document_of_text(mach, source):
    model = ["--model-path", "runs/texts", "--k", "1"]
    code, out, _ = mach("predict", *model, *source, text="\n\ufeffword0\r\n\nword6\n\n")
    assert code == 0
    assert [line.endswith("nan") for line in out.splitlines()] == [True, False, True, False, True]


def test_json_lines_on_standard_input(mach, tmp_path):
    model = ["--model-path", "runs/texts", "--k", "1"]
    text = '\ufeff\n{"text": "word6", "labels": ["x"]}\n\n{"text": "word0"}\n'
    code, out, _ = mach("predict", *model, text=text)
    assert code == 0
    assert [line.partition("\t")[0] for line in out.splitlines()] == ["plain", "tøpic"]
    (tmp_path / "x.jsonl").write_text(text)
    assert mach("predict", *model, "--input", "x.jsonl")[1] == out  # the rule is that of files
    code, lines, _ = mach("predict", *model, "--input-format", "text", text=text)
    assert code == 0
    assert len(lines.splitlines()) == 4
    code, out, err = mach("predict", *model, "--input-format", "jsonl", text='{"text": "word6"}\nword6\n')
    assert code == 1
    assert out.startswith("plain")
    assert err[0].startswith("mach-ext: standard input, line 2: a line must be a JSON object")
    code, out, _ = mach("predict", *model, text='{"body": "word6"}\n{"text": "word0"}\n')
    assert len(out.splitlines()) == 2  # the first line is no such object


def test_the_place_of_a_bad_byte(mach, tmp_path):
    model = ["--model-path", "runs/texts", "--k", "1"]
    bad = b"word0\nword6\nw\xc3\xb6rd\xff\nword1\n"
    code, out, err = mach("predict", *model, text=bad)
    assert (code, len(out.splitlines())) == (1, 2)  # what stands before is answered
    where = "line 3: text must be UTF-8, got byte 0xff, byte 6 of the line"
    assert err == [f"mach-ext: standard input, {where}"]
    (tmp_path / "bad.txt").write_bytes(bad)
    code, _, err = mach("predict", *model, "--input", "bad.txt", "--input-format", "text")
    assert err == [f"mach-ext: bad.txt, {where}"]
    with pytest.raises(ValueError, match=where):
        data.read_names(tmp_path / "bad.txt")
    (tmp_path / "bad.jsonl").write_bytes(b'\n{"text": "\xff"}\n')
    code, _, err = mach("predict", *model, "--input", "bad.jsonl")
    assert "bad.jsonl, line 2: a line must be a JSON object in UTF-8" in err[0]
    assert "byte 0xff in position 10" in err[0]


def test_a_stream_that_cannot_be_read():
    class Broken:
        def read1(self, size):
            raise OSError(5, "Input/output error")

    columns = data.Columns(2, 1, vectorizer=data.Vectorizer.fit(["cat dog", "cat dog"]))
    with pytest.raises(OSError, match="Input/output error: 'standard input'"):
        list(data.stream_documents(Broken(), columns))


# --------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_one_line_and_no_output(trained, tmp_path, number):
    folder, commands = trained
    os.mkfifo(tmp_path / "in")
    argv = ["predict", "--model-path", folder / "runs" / "texts", "--output", "o", "--quiet"]
    pid = commands.start(tmp_path, *argv, stdin="in")
    with open(tmp_path / "in", "w") as lines:
        print("word0", file=lines, flush=True)
        while not (tmp_path / "o").is_dir() or not list((tmp_path / "o").iterdir()):
            time.sleep(0.01)
        os.kill(pid, number)
        assert commands.wait() == 1
    assert (tmp_path / "err").read_text() == "mach-ext: interrupted\n"
    assert list((tmp_path / "o").iterdir()) == []


def test_a_file_that_ctrl_c_leaves_open_is_no_warning(monkeypatch, capsys):
    def stopped(*args, **kwargs):
        opened = [open(os.devnull)]  # noqa: SIM115
        del opened[:]  # which warns as the end of a function does that never got to its `with`
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "open", stopped)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == "mach-ext: interrupted\n"


def test_a_training_that_is_to_end_saves_itself(trained, tmp_path):
    folder, commands = trained
    argv = ["train", "--dataset", folder / "texts", "--epochs", "1000000", "--hidden-size", "8", "--quiet"]
    pid = commands.start(tmp_path, *argv, "--output", "r")
    while not (tmp_path / "r" / "checkpoint.json").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert commands.wait() == 1
    said = (tmp_path / "err").read_text().splitlines()
    assert said[-1].startswith("mach-ext: training stopped; r holds a checkpoint after epoch ")


def test_the_start_of_a_command_can_be_interrupted_quietly():
    code = (
        f"import sys; sys.argv = sys.argv[1:]; exec(open({_terminal.__file__!r}).read()); "
        "print(signal.getsignal(signal.SIGINT) == signal.SIG_DFL)"
    )
    for name, quiet in (("/usr/bin/mach-ext", "True"), ("train.py", "False")):
        run = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
        assert run.stdout.strip() == quiet


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("torn\napart"), AssertionError(), OverflowError("y")]
)
def test_no_error_is_a_traceback(monkeypatch, capsys, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(runs.Run, "open", fail)
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    assert cli.main(["info"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"mach-ext: internal error, {type(error).__name__}: ")
    assert "MACH_EXT_TRACEBACK=1 shows where" in said
    monkeypatch.setenv(cli.TRACEBACK, "1")
    assert cli.main(["info"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "in fail" in said


def test_an_error_of_the_system_has_words(monkeypatch, capsys):
    def fail(*args):
        Path("/nowhere/at all").read_bytes()

    monkeypatch.setattr(runs.Run, "open", fail)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == "mach-ext: /nowhere/at all: No such file or directory\n"


# ----------------------------------------------------------------------------------------------- usage

TRAIN, ATTACK, EXPLAIN = ["train", "--dataset", "x"], ["attack"], ["explain", "--text", "x"]
WHOLE = ["", "1.5", "1e3", "1_0", "٣", " 1", "0x1", "nan", "-1", "9" * 5000]
REAL = ["", "nan", "inf", "-inf", "1e400", "-1", "٣", "1_0", "0,1", "1e"]


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        *(([*TRAIN, flag], ["0", "2147483648", *WHOLE])
          for flag in ("--hash-functions", "--buckets", "--batch-size", "--patience",
                       "--repetitions-at-a-time")),
        *(([*TRAIN, flag], WHOLE) for flag in ("--epochs", "--seed", "--svmlight-base")),
        ([*TRAIN, "--threads"], ["0", "4097", *WHOLE]),
        ([*TRAIN, "--seed"], ["9223372036854775808"]),
        ([*TRAIN, "--hidden-size"], ["1,2,3", "1,", "0,1", "100000000000", *WHOLE]),
        *(([*TRAIN, flag], ["1", "1.0", *REAL])
          for flag in ("--dropout", "--feature-dropout", "--gradient-threshold", "--negligible-gradient")),
        *(([*TRAIN, flag], ["1e39", *REAL])
          for flag in ("--learning-rate", "--encoder-learning-rate", "--encoder-eps", "--eps")),
        ([*TRAIN, "--tau"], ["101", *REAL]),
        ([*TRAIN, "--C"], ["0", "1e7", *REAL]),
        ([*TRAIN, "--metric"], ["", "P@7"]),
        ([*TRAIN, "--propensity"], ["1", "1,0", "1,1,1", "nan,1", "1,inf", "", "-1,1", "٣,1"]),
        ([*TRAIN, "--output"], [""]),
        ([*ATTACK, "--eps"], ["1,", "1,nan", "1.1e17", "1e38", *(value for value in REAL if value != "0,1")]),
        ([*ATTACK, "--threat"], ["", "all", "insert(", "insert(-1)", "insert(٣)x"]),
        *(([*ATTACK, flag], ["0", *WHOLE]) for flag in ("--k", "--steps", "--sample")),
        *(([*ATTACK, flag], [""]) for flag in ("--report", "--transfer", "--dataset", "--model-path")),
        *(([*EXPLAIN, flag], ["0", *WHOLE]) for flag in ("--k", "--n-steps", "--show")),
        ([*EXPLAIN, "--n-steps"], ["65537"]),
        ([*EXPLAIN, "--html"], [""]),
        (["explain", "--sample-id"], WHOLE),
        (["predict", "--k"], WHOLE),
        (["predict", "--input"], [""]),
        (["compress", "--step"], ["0", "1e39", *REAL]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value[0].isalpha() else "",
)  # fmt: skip
def test_every_value_of_a_flag_is_checked(capsys, argv, wrong):
    for value in wrong:
        assert cli.main([*argv[:-1], f"{argv[-1]}={value}"]) == 2, value
        said = capsys.readouterr().err.splitlines()
        assert said[0].startswith(f"Usage: mach-ext {argv[0]} ")
        assert argv[-1] in said[-1]
        assert value[:50].rpartition(",")[2] in said[-1]
        assert len(said[-1]) < 250


def test_a_propensity_beyond_float64_is_refused_before_the_work(mach, trained, tmp_path):
    message = "inverse_propensity: A and B must be small enough for float64, got A=1e+200, B=1e+300"
    for command in (["train", "--output", "new"], ["evaluate", "--model-path", "runs/texts"]):
        options = ["--dataset", trained[0] / "texts", "--propensity", "1e200,1e300", "--quiet"]
        code, out, err = mach(*command, *options)
        assert (code, out, err[-1]) == (1, "", f"mach-ext: {message}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("argv", "usage", "message"),
    [
        (["trian"], "Usage: mach-ext [", "unknown command 'trian'; did you mean train?"),
        (["data", "ftch"], "Usage: mach-ext data [", "unknown command 'ftch'; did you mean fetch?"),
        (["data"], "Usage: mach-ext data [", "a command is required: info, fetch, convert"),
        ([*TRAIN, "--learnin-rat", "1"], "Usage: mach-ext train ", "did you mean --learning-rate?"),
        ([*TRAIN, "--hash_function=3"], "Usage: mach-ext train ", "did you mean --hash-functions?"),
        ([*TRAIN, "--epoch", "3"], "Usage: mach-ext train ", "did you mean --epochs?"),
        ([*TRAIN, "--epochs"], "Usage: mach-ext train ", "--epochs requires an argument"),
        (["attack", "--epsilon=0.1"], "Usage: mach-ext attack ", "unknown option '--epsilon'; did you mean"),
        (["evaluate", "x"], "Usage: mach-ext evaluate ", "unknown argument 'x'"),
        (["evaluate", "-x"], "Usage: mach-ext evaluate ", "unknown option '-x'"),
        (["data", "info", "--formt", "npz"], "Usage: mach-ext data info ", "unknown option '--formt'"),
        (["--modl"], "Usage: mach-ext [", "unknown option '--modl'"),
        (["attack", "--attack", "fgms"], "Usage: mach-ext attack ", "did you mean fgsm?"),
        (["explain"], "Usage: mach-ext explain ", "--text or --sample-id is required"),
        (["explain", "--text", "a", "--sample-id", "1"], "Usage: mach-ext explain ", "is not allowed with"),
    ],
)  # fmt: skip
def test_faults_are_reported_by_the_command_that_has_them(capsys, argv, usage, message):
    assert cli.main(argv) == 2
    first, hint, last = capsys.readouterr().err.splitlines()
    assert first.startswith(usage)
    assert hint.startswith(f"Try '{usage.removeprefix('Usage: ').strip(' [')} --help'")
    assert last.startswith("mach-ext: ")
    assert message in last


# ----------------------------------------------------------------------------------------------- paths


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    shutil.copytree(trained[0] / "runs", tmp_path / "runs")
    (tmp_path / "file").write_text("")
    (tmp_path / "loose").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--dataset", "nowhere", "--output", "file"], "must be a folder, got the file file"),
        (["train", "--dataset", "nowhere", "--output", "file/x"], "file/x can't be a folder: Not a dir"),
        (["train", "--dataset", "nowhere", "--output", "loose"], "must be a folder, got the file loose"),
        (["evaluate", "--output", "x" * 300], "can't be a folder: File name too long"),
        (["explain", "--text", "a", "--output", "/proc/x"], "--output: /proc can't be written to: "),
        (["explain", "--text", "a", "--html", "runs"], "--html must be a file, but runs is a folder"),
        (["explain", "--text", "a", "--html", "/dev/null"], "must be a file, but /dev/null is a device"),
        (["attack", "--report", "file/x.html"], "the folder of --report must be a folder"),
        (["attack", "--output", "file"], "--output must be a folder"),
        (["compress", "--output", "file"], "--output must be a folder"),
        (["predict", "--text", "a", "--output", "file"], "--output"),
        (["data", "convert", "--dataset", "nowhere", "--output", "file/x"], "--output"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:40],
)  # fmt: skip
def test_paths_are_checked_before_the_work(here, capsys, monkeypatch, argv, message):
    def fail(*args, **kwargs):
        raise AssertionError("work")

    for module, name in ((data, "load"), (opened, "load_dataset"), (nn.MACH, "predict")):
        monkeypatch.setattr(module, name, fail)
    before = sorted(here.rglob("*"))
    assert cli.main(argv) == 1
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert sorted(here.rglob("*")) == before


def test_output_where_the_input_is(here, trained, capsys):
    (here / "predictions.jsonl").write_text('{"text": "word6"}\n')
    assert cli.main(["predict", "--input", "predictions.jsonl", "--output", ".", "--format", "jsonl"]) == 1
    assert "--output must not be where --input is read from" in capsys.readouterr().err
    assert (here / "predictions.jsonl").read_text() == '{"text": "word6"}\n'
    write_texts(here / "texts")
    assert cli.main(["train", "--dataset", "texts", "--output", "texts/"]) == 1
    assert "--output must not be the folder of the dataset" in capsys.readouterr().err


def test_a_folder_of_data_that_was_moved(here, capsys):
    write_texts(here / "moved")
    record = here / "runs" / "texts"
    for argv in (["evaluate"], ["predict", "--split", "test"], ["explain", "--sample-id", "0"]):
        model = nn.load(record)
        run = json.loads(model.attachments["run.json"])
        model.attachments["run.json"] = json.dumps({**run, "dataset": str(here / "gone")}).encode()
        model.save(record)
        assert cli.main(argv) == 1
        assert "where nothing is now; --dataset says where it is" in capsys.readouterr().err
        (here / "gone").mkdir()
        assert cli.main(argv) == 1
        assert "--dataset names other data" in capsys.readouterr().err
        (here / "gone").rmdir()
        assert cli.main([*argv, "--dataset", "moved/"]) == 0
        capsys.readouterr()
    for flag, message in (("--dataset", "--dataset needs --split"), ("--input-format", "is for --input and")):
        assert cli.main(["predict", "--text", "a", flag, "text"]) == 1
        assert message in capsys.readouterr().err
    for path in ("nowhere", "file", "runs"):
        assert cli.main(["info", "--model-path", path]) == 1
        assert "--model-path names the folder of a run" in capsys.readouterr().err


def test_paths_of_any_bytes(trained, tmp_path):
    _, commands = trained
    odd = tmp_path / os.fsdecode(b"a b\nc\xff")
    write_texts(odd)
    argv = ["train", "--dataset", odd, "--epochs", "1", "--hidden-size", "4", "--quiet", "--output"]
    code, _, err = commands(tmp_path, *argv, "new\nline")
    assert code == 0
    assert err[0].startswith(f"mach-ext: dataset a b\\nc\\udcff from {tmp_path}/a b\\nc\\udcff: train 70")
    code, out, err = commands(tmp_path, "evaluate", "--model-path", "new\nline", "--output", odd)
    assert code == 0
    assert "P@1" in out
    assert err[-1].endswith("a b\\nc\\udcff/metrics.json")
    code, _, err = commands(tmp_path, *argv, odd / "model")
    assert (code, err[-1].count("the path of a model must be UTF-8")) == (1, 1)
    xmc = tmp_path / os.fsdecode(b"xmc\xff")
    assert commands(tmp_path, "data", "convert", "--dataset", odd, "--output", xmc, "--format", "xmc")[0] == 0
    assert data.load(xmc).num_labels == 7


def test_no_home(here, monkeypatch, capsys):
    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    write_texts(here / "texts")
    for name in ("HOME", "MACH_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    few = ["--epochs", "1", "--hidden-size", "4", "--quiet", "--output", "new"]
    assert cli.main(["train", "--dataset", "texts", *few]) == 0
    assert cli.main(["evaluate", "--model-path", "new"]) == 0
    capsys.readouterr()
    for argv in (
        ["data", "info"],
        ["data", "fetch", "--dataset", "wordnet"],
        ["train", "--dataset", "wiki10"],
    ):
        assert cli.main(argv) == 1
        said = capsys.readouterr().err
        assert "the user has no home folder; set $MACH_DATA" in said
        assert said.count("\n") == 1
    monkeypatch.undo()
    monkeypatch.chdir(here)
    for place in ("file", "file/x"):
        monkeypatch.setenv("MACH_DATA", place)
        assert cli.main(["data", "fetch", "--dataset", "wordnet"]) == 1
        said = capsys.readouterr().err
        assert "the data folder must be" in said
        assert "; set $MACH_DATA to" in said


def test_environments(mach):
    odd = {"TERM": "dumb", "TZ": "no/such", "TMPDIR": "/nowhere", "MACH_DATA": "", "NO_COLOR": "1"}
    for env in ({"COLUMNS": "0"}, {"COLUMNS": "-7"}, {"COLUMNS": "x"}, odd):
        code, out, err = mach("explain", "--text", "word6", "--output", "o", env=env)
        assert code == 0, err
        assert "\x1b" not in out
        assert mach("--help", env=env)[0] == 0


# --------------------------------------------------------------------------------------------- remarks


def test_svmlight(here, capsys):
    rows = ["-1 1:1", "+1 2:1 # a remark", "  1 3:1", "-1", "", "1.5 1:2 2:1"]
    write = here / "svm"
    write.mkdir()
    (write / "train.svm").write_text("".join(f"{i % 3} {i % 3 + 1}:1\n" for i in range(12)))
    few = ["--epochs", "1", "--hidden-size", "4", "--quiet", "--no-holdout", "--output", "run"]
    assert cli.main(["train", "--dataset", "svm", *few]) == 0
    capsys.readouterr()
    (here / "x.svm").write_text("\n".join(rows))
    (here / "y.svm").write_text("0 1:1\n0 2:1\n0 3:1\n0\n0 1:2 2:1\n")
    answers = []
    for file in ("x.svm", "y.svm"):
        assert cli.main(["predict", "--model-path", "run", "--input", file]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    (here / "bad.svm").write_text("-1 1:1\n+1 2:x\n")
    assert cli.main(["predict", "--model-path", "run", "--input", "bad.svm"]) == 1
    assert "bad.svm, line 2" in capsys.readouterr().err


def test_svmlight_base_without_such_a_file(here, capsys):
    write_texts(here / "texts")
    (here / "x.jsonl").write_text('{"text": "word6"}\n')
    for argv in (
        ["predict", "--text", "word6"],
        ["predict", "--input", "x.jsonl"],
        ["explain", "--text", "word6"],
        ["evaluate", "--dataset", "texts"],
        ["data", "info", "--dataset", "texts"],
    ):
        assert cli.main([*argv, "--svmlight-base", "1"]) == 0
        assert "--svmlight-base is ignored" in capsys.readouterr().err


def test_info_shows_the_chosen_tau():
    progress = {"epoch": 1, "seconds": 1.0, "history": [{"epoch": 1, "loss": 1.0, "tau": 0.3}]}
    record = {"progress": progress, "hyperparameters": {"epochs": 1, "tau": 0.1}}
    assert info._training_lines(record)[1] == "  tau 0.3 (chosen on dev)"
    del progress["history"][0]["tau"]
    assert info._training_lines(record)[1] == "  tau 0.1"


@pytest.mark.parametrize("content", ["[]", '{"progress": {}}', '{"progress": 1, "hyperparameters": {}}', "7"])
def test_info_shows_all_or_nothing(here, capsys, content):
    (here / "runs" / "texts" / "checkpoint.json").write_text(content)
    assert cli.main(["info", "--model-path", "runs/texts"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("mach-ext: runs/texts/checkpoint.json: not a checkpoint: ")

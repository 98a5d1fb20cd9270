"""What the command says of itself: --help, defaults, both spellings of an option, completion in a shell."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import typer
from command_cases import commands, help_texts
from helpers import ROOT
from typer import rich_utils

from mach_ext import cli, data, explain, nn, optim, runs, training
from mach_ext.cli import attack as attack_command
from mach_ext.cli import data as data_command
from mach_ext.cli import explain as explain_command
from mach_ext.cli import options, predict, train
from mach_ext.cli.values import Derived

COMMANDS = {name: command for name, command in commands() if not hasattr(command, "commands")}
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("GITHUB_ACTIONS", "FORCE_COLOR")},
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "80",
}


def help_of(name, monkeypatch, capsys):
    """The help of a command on one line, without the frame."""
    monkeypatch.setattr(rich_utils, "FORCE_TERMINAL", None)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*name.split()[1:], "--help"]) == 0
    return capsys.readouterr().out


def visible(command):
    return [option for option in command.params if not option.hidden]


# ------------------------------------------------------------------------------------------------- help


def test_every_command_is_there():
    names = ["train", "evaluate", "predict", "explain", "attack", "compress", "info", "bench"]
    data_names = ["data info", "data fetch", "data convert"]
    assert {*COMMANDS} >= {f"mach-ext {name}" for name in (*names, *data_names)}
    assert typer.main.get_command(cli.app).commands["data"].commands.keys() == {"info", "fetch", "convert"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_each_default(name, monkeypatch, capsys):
    page = help_of(name, monkeypatch, capsys)
    text = re.sub(r"[│\s]+", " ", page)
    assert max(map(len, page.splitlines())) <= 80
    assert "Example: mach-ext" in text
    for option in visible(COMMANDS[name]):
        assert any(flag in text for flag in option.opts), option.name
        if option.default not in (None, False) and not option.required:
            assert f"[default: {option.default}]" in text, option.name
    assert "[default: None]" not in text


def test_derived_defaults_are_none_when_read(monkeypatch):
    given = {}
    monkeypatch.setattr(runs.Run, "open", lambda *arguments: given.update(folder=arguments[0]) or 1 / 0)
    assert cli.main(["info"]) == 1
    assert given == {"folder": None}


def test_help_begins_with_what_the_program_does(monkeypatch, capsys):
    page = help_of("mach-ext", monkeypatch, capsys)
    assert page.split("[ARGS]...")[1].split()[:6] == ["Train,", "use,", "explain", "and", "attack", "models"]
    assert "Example: mach-ext train --dataset wordnet" in page


def test_examples_can_be_parsed(monkeypatch, tmp_path):
    """Each example of a help page is a call that the command takes."""
    for name, command in COMMANDS.items():
        example = command.epilog.removeprefix("Example: ").split("\n")[0]
        arguments = shlex.split(example)
        assert " ".join(arguments).startswith(name)
        context = command.make_context(name, arguments[len(name.split()) :])
        assert context.params


def test_help_texts_are_sentences():
    for place, text in help_texts():
        assert text.endswith("."), place
        assert text[0].isupper() or text.split()[0].strip(".:,") in ("fgsm", "untargeted", "npz"), place


def test_choices_are_those_of_the_library():
    assert options.DATASETS == data.NAMES
    assert options.PRECISIONS == nn.PRECISIONS
    assert train.ENCODERS == nn.ENCODERS
    assert tuple(nn.MODEL_MERGES) == train.MERGES
    assert train.OPTIMIZERS == training.OPTIMIZERS
    assert train.SCHEDULES == training.SCHEDULES
    assert train.PRECISIONS == training.PRECISIONS
    assert train.METRICS == training.METRICS
    assert predict.TEXT_FORMATS == data.TEXT_FORMATS
    assert explain_command.METHODS == explain.METHODS
    assert explain_command.SCORES == explain.SCORES
    assert runs.adversarial.METHODS == attack_command.METHODS
    assert attack_command.GOALS == runs.adversarial.GOALS
    assert data_command.FORMATS == ("npz", "xmc")


def test_defaults_are_those_of_the_library():
    defaults = {option.name: option.default for option in COMMANDS["mach-ext train"].params}
    settings = training.Hyperparameters()
    for name in ("batch_size", "encoder_learning_rate", "encoder_eps", "schedule", "precision", "metric"):
        assert str(defaults[name]) == str(getattr(settings, name))
    assert float(str(defaults["eps"])) == optim.SparseAdam([torch.zeros(1)]).defaults["eps"]
    assert str(defaults["optimizer"]).startswith(settings.optimizer)
    assert str(defaults["learning_rate"]).startswith(str(settings.learning_rate))
    steps = {option.name: option.default for option in COMMANDS["mach-ext compress"].params}
    assert str(steps["step"]) == f"{nn.STEP:g} in float32"
    neighbors = {option.name: option.help for option in COMMANDS["mach-ext evaluate"].params}["neighbors"]
    assert f" {runs.CANDIDATES} " in neighbors


# -------------------------------------------------------------------------------------------- spellings

UNDERSCORED = [
    (name, flag)
    for name, command in COMMANDS.items()
    for option in command.params
    for flag in (*option.opts, *option.secondary_opts)
    if "-" in flag.strip("-")
]


@pytest.mark.parametrize(("name", "flag"), UNDERSCORED, ids=" ".join)
def test_both_spellings_of_an_option_are_one(name, flag):
    command = COMMANDS[name]
    (option,) = [each for each in command.params if flag in (*each.opts, *each.secondary_opts)]
    value = {"DIR": "a_b", "0|1": "1", "H[,H2]": "3,4"}.get(option.metavar, "1")
    value = {"encoder": "shared", "input_format": "text"}.get(option.name, value)
    value = "0.5" if option.metavar in ("P", "RATE", "EPS") else value
    required = [part for each in command.params if each.required for part in (each.opts[0], "a_b")]
    root = typer.main.get_command(cli.app).make_context("mach-ext", [], resilient_parsing=True)
    read = []
    for spelling in (flag, "--" + flag.strip("-").replace("-", "_")):
        given = [spelling] if option.is_flag else [f"{spelling}={value}"]
        context = command.make_context(name, [*required, *given], parent=root)
        assert context.params[option.name] not in (None, option.default)
        read.append(context.params)
    assert read[0] == read[1]


def test_values_with_underscores_stay_as_they_are():
    command = COMMANDS["mach-ext train"]
    root = typer.main.get_command(cli.app).make_context("mach-ext", [], resilient_parsing=True)
    given = ["--dataset", "my_data", "--merge", "mean_prob", "--output=--hash_functions"]
    read = command.make_context("train", given, parent=root).params
    assert (read["dataset"], read["merge"], str(read["output"])) == (
        "my_data",
        "mean_prob",
        "--hash_functions",
    )


def test_the_former_flag_of_the_gradient_threshold_warns(monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(runs, "train", lambda dataset, **arguments: given.update(arguments) or 1 / 0)
    for flag in ("--negligible-gradient", "--negligible_gradient"):
        assert cli.main(["train", "--dataset", "x", flag, "0.25"]) == 1
        assert given.pop("gradient_threshold") == 0.25
        said = capsys.readouterr().err
        assert "warning: --negligible-gradient is now called --gradient-threshold" in said


def test_every_command_takes_the_common_options():
    for name, command in COMMANDS.items():
        taken = {option.name: option for option in command.params}
        assert {"output", "device", "threads", "seed", "quiet"} <= {*taken}, name
        assert not taken["threads"].hidden
        assert isinstance(taken["threads"].default, Derived)


# ------------------------------------------------------------------------------------------- completion


@pytest.fixture
def bash(tmp_path):
    """bash(words): what a shell with the completion installed offers for the last word."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    program = tmp_path / "bin" / "mach-ext"
    program.parent.mkdir()
    source = f"#!{sys.executable}\nimport sys\nfrom mach_ext.cli import main\nsys.exit(main())\n"
    program.write_text(source)
    program.chmod(0o755)
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "model.json").touch()
    (tmp_path / "runs" / "none").mkdir()
    script = """
        eval "$(mach-ext --show-completion bash)"
        set -- $(complete -p mach-ext)
        while [ "$1" != -F ]; do shift; done
        function=$2
        offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); $function mach-ext; echo "${COMPREPLY[@]}" END; }
    """

    def run(*lines):
        """The words offered for each line, whose last word is not complete."""
        calls = "\n".join(f"offer mach-ext {line}" for line in lines)
        environment = {**ENVIRONMENT, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        done = subprocess.run(
            ["bash", "--norc", "-c", script + calls],
            capture_output=True, text=True, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert done.stderr == ""
        return [block.split() for block in done.stdout.split("END\n")[:-1]]

    return run


def test_completion_in_bash(bash):
    commands, options_, choices, folders, names, actions = bash(
        "tr",
        "train --le",
        "train --encoder ''",
        "predict --model-path runs/",
        "train --dataset wiki",
        "data ''",
    )
    assert commands == ["train"]
    assert options_ == ["--learning-rate"]
    assert choices == ["shared", "independent"]
    assert folders == ["runs/first", "runs/second"]
    assert names == ["wiki10-31k", "wiki-500k"]
    assert actions == ["info", "fetch", "convert"]


def test_help_and_completion_do_not_import_torch(tmp_path):
    """So that they answer at once."""
    code = (
        "import sys; sys.argv[0] = 'mach-ext'; from mach_ext import cli; code = cli.main(sys.argv[1:])\n"
        "print(code, *sorted({'torch', 'numpy', 'scipy'} & {*sys.modules}), file=sys.stderr)"
    )
    for arguments in (["--version"], ["--help"], ["train", "--help"], ["data", "fly"]):
        run = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ENVIRONMENT
        )
        assert run.stderr.splitlines()[-1] == ("2" if arguments[-1] == "fly" else "0")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ("train", "--dataset", "x", "--output", "--overwrite"),
            "--output requires an argument, got the option '--overwrite'",
        ),
        (
            ("train", "--dataset", "x", "--hash_functions", "--hidden_size=3"),
            "--hash_functions requires an argument, got the option '--hidden_size=3'",
        ),
        (("predict", "--text", "--quiet"), "--text requires an argument, got the option '--quiet'"),
        (("predict", "--text", "-h"), "--text requires an argument, got the option '-h'"),
        (("predict", "--text", "--"), "--text requires an argument, got the option '--'"),
        (("train", "--dataset"), "--dataset requires an argument"),
        (("train", "--dataset", "x", "--quiet=1"), "--quiet does not take a value"),
        (("attack", "--threat", "foo"), "--threat must be one of"),
        (
            ("data", "convert", "--dataset", "x", "--output", "o", "--compression", "zip"),
            "--compression must be one of gz, xz, bz2; got 'zip'",
        ),
    ],
)
def test_a_value_that_is_missing_or_wrong_names_its_option(argv, said, capsys):
    assert cli.main(list(argv)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "recipes"], "unknown argument 'recipes'; did you mean --dataset 'recipes'?"),
        (["predict", "a dog"], "unknown argument 'a dog'; did you mean --text 'a dog'?"),
        (["info", "runs/x"], "unknown argument 'runs/x'"),
        (["train", "--no-such-option", "3"], "unknown option '--no-such-option'"),
        (["train", "--k", "3"], "unknown option '--k'\n"),
    ],
)
def test_arguments_without_an_option(argv, said, capsys):
    assert cli.main(argv) == 2
    assert said in capsys.readouterr().err


def test_values_that_look_like_options_can_be_given(tmp_path, monkeypatch, capsys):
    """After an equals sign, or where no option of the command has that name."""
    monkeypatch.chdir(tmp_path)
    for text in (["--text=--quiet"], ["--text", "-5"], ["--text", "--no-such-option"]):
        assert cli.main(["predict", *text]) == 1  # there is no run: the text was taken
        assert "runs" in capsys.readouterr().err


def test_short_help(capsys):
    assert cli.main(["train", "-h"]) == 0
    assert "--dataset" in capsys.readouterr().out

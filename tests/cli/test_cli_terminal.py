"""What the command shows on a terminal, a real one of the system, and that a pipe gets what it always got."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
import threading

import pytest
from command_cases import SHOWN, UNSAFE
from rich.cells import cell_len

STYLES = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A pseudo-terminal of so many columns, and what is written on it until it is closed."""

    def __init__(self, columns):
        self.own, self.other = pty.openpty()
        fcntl.ioctl(self.own, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.name, self.written = os.ttyname(self.other), b""
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        with contextlib.suppress(OSError):  # the other end is closed
            while block := os.read(self.own, 65536):
                self.written += block

    def close(self):
        os.close(self.other)
        self.reader.join()
        os.close(self.own)
        return self.written.decode().replace("\r\n", "\n")


@pytest.fixture
def on_terminal(trained):
    """on_terminal(arguments): the exit code, and what stands on a terminal."""
    folder, commands = trained

    def run(*argv, columns=80, env=None, stream="stdout"):
        terminal = Terminal(columns)
        where = {"TERM": "xterm-256color", "COLUMNS": "", "NO_COLOR": "", **(env or {})}
        commands.start(folder, *argv, env=where, **{stream: terminal.name})
        return commands.wait(), terminal.close()

    return run


PREDICT = ("predict", "--model-path", "runs/texts", "--k", "3")


def test_predict_shows_a_table(on_terminal):
    code, shown = on_terminal(*PREDICT, "--text", "word6 [bold]and[/bold] more", "--text", "word1")
    assert code == 0
    assert "\x1b[1m" in shown
    first, *rows = STYLES.sub("", shown).splitlines()
    assert first == "word6 [bold]and[/bold] more"
    assert [row.split()[0] for row in rows[:3]] == ["1", "2", "3"]
    assert rows[0].split()[1] == "plain"
    scores = [float(row.split()[-1]) for row in rows[:3]]
    assert scores == sorted(scores, reverse=True)
    assert rows[3] == "word1"
    assert rows[4].split()[:2] == ["1", "日本"]
    ends = {cell_len(row) for row in (*rows[:3], *rows[4:7])}
    assert len(ends) == 1  # the scores stand below each other, wide letters or not


def test_a_document_of_unknown_words_is_said_so(on_terminal):
    code, shown = on_terminal(*PREDICT, "--text", "quite unknown", "--text", "word6")
    assert code == 0
    lines = STYLES.sub("", shown).splitlines()
    assert lines[:3] == ["quite unknown", "  The model knows none of its words.", "word6"]
    assert "nan" not in shown


def test_documents_without_a_text_have_a_number(on_terminal, trained):
    (trained[0] / "lines.txt").write_text("word6\n\n")
    code, shown = on_terminal(*PREDICT, "--input", "lines.txt", "--input-format", "text")
    lines = STYLES.sub("", shown).splitlines()
    assert code == 0
    assert lines[0] == "document 0"
    assert lines[4:] == ["document 1", "  The model knows none of its features."]
    code, shown = on_terminal(*PREDICT, "--split", "test")
    assert STYLES.sub("", shown).startswith("word0\n")  # the dataset has the text


@pytest.mark.parametrize("columns", [1, 20, 40, 200])
def test_lines_fit_the_terminal(on_terminal, columns):
    text = "a long text of many words " * 20 + "word6"
    code, shown = on_terminal(*PREDICT, "--text", text, columns=columns)
    lines = STYLES.sub("", shown).splitlines()
    assert code == 0
    assert len(lines) >= 4
    if columns >= 20:
        assert max(map(cell_len, lines)) <= columns
    if columns >= 40:
        assert any(line.split()[:2] == ["1", "plain"] for line in lines)


@pytest.mark.parametrize("columns", ["0", "-7", "x"])
def test_columns_that_are_no_number(on_terminal, columns):
    code, shown = on_terminal(*PREDICT, "--text", "word6", env={"COLUMNS": columns})
    assert code == 0
    assert "plain" in shown
    code, shown = on_terminal("predict", "--help", env={"COLUMNS": columns})
    assert code == 0
    assert "--text" in STYLES.sub("", shown)


def test_names_do_not_steer_the_terminal(on_terminal):
    code, shown = on_terminal(
        "predict", "--model-path", "runs/texts", "--k", "7", "--text", "word2 \x1b[31m\u202e"
    )
    plain = STYLES.sub("", shown)
    assert code == 0
    for name in SHOWN:
        assert name in plain
    for character in UNSAFE:
        assert character not in plain


@pytest.mark.parametrize("format", ["tsv", "jsonl"])
def test_a_format_that_is_asked_for_is_given(on_terminal, trained, format):
    folder, commands = trained
    argv = (*PREDICT, "--text", "word6", "--format", format)
    assert on_terminal(*argv)[1] == commands(folder, *argv)[1]


def test_a_pipe_gets_lines_of_tabs(trained):
    folder, commands = trained
    argv = (*PREDICT, "--text", "word6", "--text", "unknown")
    code, out, _ = commands(folder, *argv, env={"TERM": "xterm-256color"})
    assert code == 0
    assert re.fullmatch(r"plain\t-?[\d.]+(\t[^\t\n]+\t-?[\d.e-]+){2}\n([^\t\n]+\tnan\t?){3}\n", out)
    assert commands(folder, *argv, "--format", "tsv")[1] == out
    code, table, _ = commands(folder, *argv, "--format", "table")
    assert code == 0
    assert table.startswith("word6\n")
    assert "\x1b" not in table
    code, _, err = commands(folder, *argv, "--format", "table", "--output", "o")
    assert (code, err) == (
        1,
        ["mach-ext: --format table is for the screen; with --output it must be tsv or jsonl"],
    )


def test_evaluate_shows_the_same_numbers(on_terminal, trained):
    folder, commands = trained
    argv = ("evaluate", "--model-path", "runs/texts")
    code, shown = on_terminal(*argv)
    assert code == 0
    assert STYLES.sub("", shown).split() == commands(folder, *argv)[1].split()


def test_errors_are_red_on_a_terminal(on_terminal, trained):
    argv = ("info", "--model-path", "nowhere")
    code, shown = on_terminal(*argv, stream="stderr")
    assert code == 1
    assert shown.startswith("\x1b[1;31mmach-ext:\x1b[0m nowhere: not a mach_ext model")
    assert on_terminal(*argv, stream="stderr", env={"NO_COLOR": "1"})[1] == STYLES.sub("", shown)
    assert trained[1](trained[0], *argv)[2] == STYLES.sub("", shown).splitlines()
    code, shown = on_terminal("info", "x", stream="stderr")
    assert (code, shown.splitlines()[-1]) == (2, "\x1b[1;31mmach-ext:\x1b[0m unknown argument 'x'")


def test_numbers_are_never_cut(capsys, monkeypatch):
    """Scores of tiny probabilities need twelve columns, and a rank may have five."""
    from mach_ext.cli import tables
    from mach_ext.runs import Answer, Prediction

    scores = [-1.23457e-05, 1.35307e-07, 0.000569176] + [0.5] * 10_000
    answer = Answer(1, tuple(Prediction(f"label {n}", score, n) for n, score in enumerate(scores)))
    for columns in (10, 20, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        tables.Predictions(lambda number: "").show([answer])
        shown = capsys.readouterr().out
        assert "(an empty text)" in shown
        assert "…" not in shown
        for score in ("-1.23457e-05", "1.35307e-07", "0.000569176", "10003 "):
            assert score in shown


@pytest.mark.parametrize("columns", [4, 30, 60])
def test_numbers_of_a_table_are_never_folded(columns, monkeypatch, capsys):
    from mach_ext.cli import tables

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    tables.show_table([["test", "all", "tail"], ["nDCG@1 of everything", "0.1333", "-12,345.6789"]], 20, 9)
    shown = capsys.readouterr().out
    assert "0.1333" in shown
    assert "-12,345.6789" in shown

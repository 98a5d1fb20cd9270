"""Figures of README and docs/: each is written from a kept result, or says on which day it was measured."""

import importlib
import re
import shutil
import sys
from random import Random

import pandas as pd
import pytest
from helpers import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    """prose.py, figures.py and table.py."""
    sys.path.insert(0, str(BENCHMARKS))
    yield tuple(map(importlib.import_module, ("prose", "figures", "table")))
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def prose(modules):
    return modules[0]


@pytest.fixture(scope="module")
def lines(modules):
    return modules[1].lines()


@pytest.fixture(scope="module")
def documents(prose):
    return {str(file.relative_to(prose.ROOT)): file.read_text(encoding="utf-8") for file in prose.documents()}


def changed(number):
    """The number with another last digit."""
    return number[:-1] + str((int(number[-1]) + 1) % 10)


def test_documents_are_found(documents):
    results = {f"docs/results/{name}.md" for name in ("accuracy", "performance", "robustness")}
    assert {"README.md", *results} <= documents.keys()


def test_a_changed_figure_of_a_document_is_a_fault(modules, documents, lines):
    """Some figures of each document, evenly spread, in prose, tables and blocks of figures measured once."""
    prose, _, table = modules
    code = re.compile(r"^```.*?^```|`[^`\n]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
    for name, text in documents.items():
        measured = prose.blank(prose.blank(text, code), prose.CONSTANTS)
        places = [figure.span() for figure in prose.FIGURE.finditer(measured)]
        for start, end in places[:: max(1, len(places) // 7)]:
            new = text[:start] + changed(text[start:end]) + text[end:]
            noticed = table.rewrite(new, lines) != new or any(prose.faults(new, lines))
            assert noticed, (name, text[start - 40 : end])


# Columns by whose values a result is looked up.
SETTINGS = {"epsilon", "seed", "gradient_threshold", "R", "B", "H", "threads", "id", "circumstances"}
SETTINGS |= {"gpus", "copies", "processes"}


def other(frame, random):
    """A frame with other numbers, but with the settings by which its rows are found."""
    for name in frame.columns.difference(SETTINGS):
        if pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = [value * random.uniform(2, 9) for value in frame[name]]
    if "shape" in frame:  # N=256 D=1000
        frame["shape"] = frame["shape"].str.replace(
            r"(?<==)\d+\b", lambda match: str(int(match[0]) * random.randint(2, 9)), regex=True
        )
    return frame


def test_every_figure_of_a_line_depends_on_the_results(modules, tmp_path, lines):
    """Where all numbers of the results are others, each figure is, in one of four draws. None was typed."""
    _, figures, _ = modules
    # Those of the plan are arithmetic on shapes, which tests/test_scale_plan.py holds.
    counted = {line[0] for line in figures.scale_figures.lines(figures.Results(figures.RESULTS))}
    draws = []
    for seed in range(4):
        for file in figures.RESULTS.glob("*.csv"):
            random = Random(f"{file.name} {seed}")  # whatever the other files hold
            other(pd.read_csv(file), random).to_csv(tmp_path / file.name, index=False)
        draws.append(figures.lines(tmp_path))
    for (piece, *old), *new in zip(lines, *draws, strict=True):
        if piece in counted:
            continue
        for figure, *others in zip(old, *(line[1:] for line in new), strict=True):
            assert set(others) != {figure}, piece


def test_a_changed_result_is_a_fault(modules, tmp_path, documents, lines):
    _, figures, table = modules
    for file in figures.RESULTS.glob("*.csv"):
        shutil.copy(file, tmp_path)
    results = pd.read_csv(tmp_path / "peers.csv")
    of = {"dataset": "bibtex", "split": "test", "system": "mach_ext (rows as given)"}
    (row,) = results.index[(results[list(of)] == pd.Series(of)).all(axis=1)]
    results.loc[row, "P@1"] -= 0.0036  # what it was before the logit adjustment
    results.to_csv(tmp_path / "peers.csv", index=False)
    new = figures.lines(tmp_path)
    assert [line for line in new if line not in lines] == [
        ("too large there: P@1 falls from {} to {}", "64.21", "63.02"),
        ("--no-holdout` has {} on the binary rows", "64.21 / 40.44 / 29.77"),
    ]
    faults = [fault for fault in table.faults(documents, new) if "no file" not in fault]
    assert len(faults) == 1
    assert re.match(r"docs/results/accuracy.md, line \d+: must be .*64\.21 to 63\.02", faults[0])


FIGURES = [
    ("P@1 is 64.57 here.", ["64.57"]),
    ("64.57 / 40.44 / 29.77", ["64.57", "40.44", "29.77"]),
    ("It takes 13 s, 4 ms, 2 us, 1 min or 5 minutes.", ["13", "4", "2", "1", "5"]),
    ("It falls from 482 to 26 MB.", ["482", "26"]),
    ("It falls 1,123 -> 87 GB.", ["1,123", "87"]),
    ("40 % of 30%, 1e-5, 9 times, 1.25 x, 3 points", ["40", "30", "1e-5", "9", "1.25", "3"]),
    ("35 GB/s and 780 TFLOP/s", ["35", "780"]),
    ("| data | 12 | 61.08 |", ["61.08"]),
    ("79,000 postings", ["79,000"]),
    ("in 4 x 16 buckets of 3 models", []),
    ("R=16, B = 2,048, k = 5, D = 1M, eps = 0.03", []),
    ("Python 3.10-3.13, torch >= 2.11, WordNet 3.0, on 2026-11-28, 0.1.0", []),
    ("`--eps 0.01`, [a link](docs/1.5.md), https://example.org/2.0 and <!-- 3.5 -->", []),
    ("```\nmach-ext attack --eps 0.01  # 3.5 s\n```", []),
    ("<!-- peers: written by `make bench-table` -->\n| 64.57 |\n<!-- /peers -->", []),
]


@pytest.mark.parametrize(("text", "figures"), FIGURES)
def test_figures_that_nothing_holds_are_faults(prose, text, figures):
    faults = list(prose.faults(f"# A page\n\n{text}\n", []))
    assert [fault.split(": ")[1].split(" ")[0] for fault in faults] == figures
    assert all(fault.startswith("line 3: ") for fault in faults)


def test_figures_are_written_however_the_lines_are_broken(prose):
    text = "The model\n  falls from 1 to\n2.5 MB, at 1.0 /\n2.0 / 3.0, in `x`. It falls from 7 to 8 KB."
    line = ("model falls from {} to {} MB, at {}, in `x`.", "482", "26", "92.03 / 82.46 / 69.31")
    new = prose.write_figures(text, [line])
    assert (
        new
        == "The model\n  falls from 482 to\n26 MB, at 92.03 / 82.46 / 69.31, in `x`. It falls from 7 to 8 KB."
    )
    assert prose.write_figures(new, [line]) == new
    assert [fault.split(": ")[1][:1] for fault in prose.faults(new, [line])] == ["7", "8"]


def test_the_text_of_a_line_may_hold_no_figure_itself(prose):
    (fault,) = prose.faults("It took 12.5 s and takes 3.5 s.", [("took 12.5 s and takes {} s", "3.5")])
    assert "12.5 must be in a generated table" in fault


def once(prose, text):
    return f"<!-- once: {prose.digest(text)} -->\n{text}<!-- /once -->\n"


def test_figures_measured_once_must_have_a_day_and_the_digest_of_their_numbers(prose):
    text = "On 2026-11-28 it took 12.5 s.\n\n| a | 7 |\n| --- | --- |\n"
    assert not list(prose.faults(once(prose, text), []))
    assert "must say on which day" in next(prose.faults(once(prose, "Once it took 12.5 s.\n"), []))
    for number in re.findall(r"\d+", text):
        wrong = once(prose, text).replace(f" {number}", f" {changed(number)}")
        assert wrong == once(prose, text) or "must have the digest" in next(prose.faults(wrong, []))
    assert "12.5 must be in" in next(prose.faults(once(prose, text).replace("<!-- /once -->", ""), []))


def test_a_figure_of_the_results_may_stand_among_figures_measured_once(prose):
    text = "On 2026-11-28 it took 12.5 s. Today it takes {} s.\n"
    block = once(prose, text.format("   "))
    for seconds in ("3.5", "4.5"):
        today = block.replace("takes     s", f"takes {seconds} s")
        assert not list(prose.faults(today, [("it takes {} s", seconds)]))


def test_lines_and_tables_that_no_file_has_are_faults(modules):
    table = modules[2]
    faults = list(table.faults({"a.md": "It takes 3.5 s.\n"}, [("takes {} s", "3.5"), ("took {} s", "4.5")]))
    assert "figures.py: no file has 'took {} s'" in faults
    assert "table.py: no file has the table 'peers'" in faults
    assert "charts: no file shows docs/images/peers.png" in faults
    wrong = list(table.faults({"a.md": "It\ntakes 2.5 s.\n"}, [("takes {} s", "3.5")]))
    assert wrong[0] == "a.md, line 2: must be 'takes 3.5 s.'; `make bench-table` writes it"


def test_handicaps_of_the_race_are_those_that_the_results_have_as_best():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        tables, frames = map(importlib.import_module, ("tables.race", "frames"))
    finally:
        sys.path.remove(str(BENCHMARKS))
    races = tables.by_race(frames.RESULTS).values()
    losses = [tables.expected_losses(rows) for rows in races if rows["dev_P@1"].notna().all()]
    assert tables.best_handicaps(losses) == pytest.approx(tables.OURS)

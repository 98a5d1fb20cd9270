"""What contributors and CI lean on: the workflow, the hooks, CONTRIBUTING and CITATION name what there is."""

import json
import re
import subprocess

import pytest
import torch
import yaml
from helpers import ROOT

import mach_ext

PROJECT = (ROOT / "pyproject.toml").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())

PHONY = {*re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()}
MAKE = re.compile(r"\bmake ([a-z][\w-]*)")
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
TEST_MATRIX = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]
CLASSIFIERS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)


def recipe(target):
    """The commands of a target of the Makefile, as `make` would print them."""
    match = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [line.strip().replace("$(BIN)", ".venv/bin").replace("$$", "$") for line in match[1].splitlines()]


# --------------------------------------------------------------------------------------------------- make


def test_targets_of_the_makefile_have_recipes():
    assert PHONY - {"broken"} == {*re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE)}


def test_make_test_is_lint_and_the_suite():
    prerequisites = re.search(r"^test:(.*)$", MAKEFILE, re.MULTILINE)[1].split()
    assert prerequisites[-2:] == ["lint", "suite"]


def test_coverage_runs_the_suite_and_prints_its_figure():
    (suite,) = recipe("suite")
    commands = recipe("coverage")
    workers = "--numprocesses=$(WORKERS) --dist=worksteal "
    assert suite == f"OMP_NUM_THREADS=1 .venv/bin/python -m pytest {workers}$(ARGS)"
    assert ".venv/bin/coverage run -m pytest $(ARGS)" in commands  # in one process: coverage sees them all
    assert commands[-1] == ".venv/bin/coverage report"


def test_programs_of_the_documentation_come_with_the_docs_extra():
    (mkdocs,) = recipe("docs")
    assert ".venv/bin/mkdocs build --strict" in mkdocs
    assert re.search(r'^docs = \["mkdocs-material[=>]', PROJECT, re.MULTILINE)
    assert '".[dev,docs]"' in MAKEFILE


@pytest.mark.parametrize("program", ["clang-format", "coverage", "mypy", "pre-commit", "pytest", "ruff"])
def test_programs_come_with_the_dev_extra(program):
    dev = re.search(r"^dev = \[(.*?)^\]", PROJECT, re.MULTILINE | re.DOTALL)[1]
    assert re.search(rf'"{program}[=>]', dev)


# ----------------------------------------------------------------------------------------------- workflow


def test_workflow_runs_targets_that_exist():
    commands = [step["run"] for step in STEPS if "run" in step]
    assert all(command.startswith("make ") for command in commands)
    assert (
        {MAKE.match(command)[1] for command in commands}
        == {"lint", "suite", "coverage", "abi", "docs"}
        <= PHONY
    )


def test_workflow_uses_two_actions_and_no_secret():
    actions = {step["uses"].partition("@")[0] for step in STEPS if "uses" in step}
    assert actions == {"actions/checkout", "actions/setup-python"}
    assert all("uses" in step or "run" in step for step in STEPS)
    assert "secrets" not in json.dumps(WORKFLOW)
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_workflow_names_files_that_exist():
    for step in STEPS:
        if path := step.get("with", {}).get("cache-dependency-path"):
            assert (ROOT / path).is_file()


def test_workflow_runs_on_changes_of_main():
    triggers = WORKFLOW[True]  # YAML 1.1 reads the key `on` so
    assert triggers.keys() == {"push", "pull_request", "workflow_dispatch"}


def test_python_versions_are_the_same_everywhere():
    versions = TEST_MATRIX["python"]
    assert all(isinstance(version, str) for version in versions)  # unquoted, 3.10 would be 3.1
    assert versions == CLASSIFIERS == ["3.10", "3.11", "3.12", "3.13"]
    assert f'requires-python = ">={versions[0]}"' in PROJECT
    assert f'target-version = "py{versions[0].replace(".", "")}"' in PROJECT
    first, last = versions[0], versions[-1]
    assert f"Python {first} to {last}" in " ".join(CONTRIBUTING.split())
    assert f"Python {first}-{last}" in (ROOT / "README.md").read_text()
    for job in WORKFLOW["jobs"].values():
        python = next(
            s["with"]["python-version"] for s in job["steps"] if "python-version" in s.get("with", {})
        )
        assert python == "${{ matrix.python }}" or python in versions


def test_torch_is_the_oldest_and_the_newest():
    oldest = re.search(r"^OLDEST_TORCH := (\S+)$", MAKEFILE, re.MULTILINE)[1]
    assert TEST_MATRIX["torch"] == [f"torch=={oldest}", "torch"]
    assert any('TORCH="${{ matrix.torch }}"' in step.get("run", "") for step in STEPS)


# ------------------------------------------------------------------------------------------------- hooks


def test_hooks_are_the_commands_of_make_lint():
    """Less the files, which pre-commit names."""
    (repository,) = HOOKS["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    entries = [hook["entry"] for hook in repository["hooks"]]
    commands = recipe("lint")
    assert len(entries) == len(commands)
    for entry, command in zip(entries, commands, strict=True):
        assert command.removeprefix(entry) in ("", " .") or command.startswith(f"{entry} $(find ")


def test_hooks_take_the_files_of_make_lint():
    hooks = {hook["id"]: hook for hook in HOOKS["repos"][0]["hooks"]}
    roots, *names = re.search(r"\$\(find ([\w ]+?) -name (.*)\)$", recipe("lint")[2]).groups()
    suffixes = [name.strip("'*") for name in names[0].split(" -o -name ")]
    files = [file for root in roots.split() for file in (ROOT / root).rglob("*") if file.is_file()]
    found = {str(f.relative_to(ROOT)) for f in files if any(s in f.suffix for s in suffixes if f.suffix)}
    taken = {str(f.relative_to(ROOT)) for f in files}
    taken = {name for name in taken if re.search(hooks["clang-format"]["files"], name)}
    assert taken == found
    assert len(taken) > 100
    for name in ("ruff", "ruff-format"):
        assert re.search(hooks[name]["files"], "setup.py")
        assert re.search(hooks[name]["files"], "mach_ext/_C.pyi")
    assert re.search(hooks["mypy"]["files"], "mach_ext/data/files.py")
    assert hooks["mypy"]["pass_filenames"] is False


# ------------------------------------------------------------------------------------------ CONTRIBUTING

# In backticks, with a slash or with the suffix of a file; blocks of commands left out.
CODE = re.findall(r"`([^`\s=]+)`", re.sub(r"^```.*?^```", "", CONTRIBUTING, flags=re.DOTALL | re.MULTILINE))
PATHS = sorted(
    {code for code in CODE if "/" in code or re.fullmatch(r"[\w-]+\.(py|cpp|md|txt)|LICENSE", code)}
)


def test_contributing_names_paths():
    assert len(PATHS) > 50


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_contributing_exist(path):
    """`<op>` stands for one operator, the same in all paths; `<command>` for any."""
    if "<op>" in path:
        known = {"benchmarks/bench_<op>.py": "parser"}
        assert (ROOT / path.replace("<op>", known.get(path, "signs"))).is_file()
    else:
        assert [*ROOT.glob(re.sub(r"<\w+>", "*", path).rstrip("/"))]
    assert path.endswith("/") == (ROOT / path).is_dir()


def test_contributing_has_every_package():
    packages = {f"mach_ext/{file.parent.name}/" for file in ROOT.glob("mach_ext/*/__init__.py")}
    assert packages <= {*PATHS}


def test_contributing_names_targets_that_exist():
    targets = {*re.findall(r"(?:`|^)make ([a-z][\w-]*)", CONTRIBUTING, re.MULTILINE)}
    assert {"build", "test", "lint", "coverage", "bench"} <= targets <= PHONY


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("mach_ext/data/registry.py", ["ARCHIVES", "_DOCUMENTS", "ALIASES"]),
        ("mach_ext/_metrics_propensity.py", ["propensity_constants"]),
        ("mach_ext/data/wordnet.py", ["prepare"]),
        ("mach_ext/cli/main.py", ["COMMANDS"]),
        ("mach_ext/cli/command.py", ["FLAGS"]),
        ("mach_ext/cli/info.py", ["EXAMPLE", "run"]),
        ("benchmarks/frames.py", ["MODULES"]),
        ("benchmarks/conftest.py", ["compare"]),
        ("benchmarks/harness/record.py", ["write_rows"]),
        ("mach_ext/runs/workload.py", ["WORKS"]),
        ("tests/conftest.py", ["device"]),
        ("csrc/ops.cpp", ["signs", "label_logits"]),
    ],
)
def test_names_of_contributing_stand_in_their_files(path, names):
    text = (ROOT / path).read_text()
    for name in names:
        assert f"`{name}`" in CONTRIBUTING
        assert re.search(rf"^\s*(def )?(m\.def\(\s*\")?{name}\b", text, re.MULTILINE), name


def test_the_error_of_contributing_is_a_real_one():
    indptr, weight = torch.tensor([0, 1]), torch.ones(3, 2, dtype=torch.float16)
    with pytest.raises(TypeError) as caught:
        mach_ext.functional.sparse_linear(torch.ones(1), torch.tensor([0]), indptr, weight)
    assert f"`{caught.value}`" in CONTRIBUTING


def sentences(text):
    """Sentences of the prose: no code, no tables, no headings."""
    text = re.sub(r"^```.*?^```|^#.*?$|^\|.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", text)
    paragraphs = re.split(r"\n\s*\n|^\s*\d+\. ", text, flags=re.MULTILINE)
    for paragraph in paragraphs:
        yield from (s for s in re.split(r"(?<=[.?!:])\**\s+", " ".join(paragraph.split())) if s)


def test_sentences_of_contributing_are_short():
    lengths = {sentence: len(sentence.split()) for sentence in sentences(CONTRIBUTING)}
    assert len(lengths) > 60
    assert {sentence: n for sentence, n in lengths.items() if n > 25} == {}
    assert sum(lengths.values()) / len(lengths) <= 15


# ---------------------------------------------------------------------------------------------- CITATION


def test_citation_is_of_this_version():
    assert CITATION["version"] == mach_ext.__version__
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["title"] == mach_ext.__name__
    assert CITATION["type"] == "software"
    assert CITATION["authors"] == [{"name": "the mach_ext authors"}]
    assert f'license = "{CITATION["license"]}"' in PROJECT
    assert {"message", "title", "authors"} <= CITATION.keys()  # what CFF demands


def test_citation_refers_to_the_method():
    (paper,) = CITATION["references"]
    assert paper["title"].startswith("Extreme Classification in Log Memory using Count-Min Sketch")
    assert [a["family-names"] for a in paper["authors"]] == [
        "Medini",
        "Huang",
        "Wang",
        "Mohan",
        "Shrivastava",
    ]
    assert (paper["type"], paper["year"]) == ("conference-paper", 2019)


# --------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "name",
    [".github/workflows/ci.yml", ".github/CONTRIBUTING.md", ".pre-commit-config.yaml", "CITATION.cff"],
)
def test_files_are_tracked_where_there_is_git(name):
    """.gitignore hides none of them."""
    git = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, capture_output=True)
    assert git.returncode != 0

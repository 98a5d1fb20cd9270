"""The code of the pages in docs/ runs, page by page, in the order in which it stands.

What an author needs to know:

* Each page has an empty folder of its own, which is the working directory, and one Python namespace, which
  starts with `mach_ext` alone.
* A ```python block runs. An output that is shown as a comment is not checked.
* A ```pycon block holds `>>>` lines, and its outputs are checked as those of a doctest. `...` stands for any
  text.
* In a ```console block a line that starts with `$ ` is a command, which must succeed. A trailing backslash
  goes on in the next line. All other lines are output that is shown and not checked. `$ mach-ext ...` runs in
  the process of the test, with what stands before a pipe as its input, and `>` sends its output to a file:
  `$ cat texts.txt | mach-ext predict > out.tsv`. Other commands (`$ head -2 out.tsv`) run in a shell.
* A block of any language with a title is written to the file of that name, and is not run:
  ```json title="animals/train.jsonl".
* `<!-- setup` on a line of its own, then Python code, then `-->`, is hidden from the reader and runs like a
  block. Use it to put small data or a small run where the page expects a large one. It may import
  `docs_cases`, which stands beside this file: `docs_cases.animals("animals")` writes a dataset of texts.
* `<!-- not run: reason -->` on the line above a block leaves that block out. There must be a reason: it takes
  minutes, it needs a GPU, it installs something.
* Blocks of other languages, and blocks of no language, are shown only.
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import ROOT

import mach_ext
from mach_ext import cli

PAGES = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: *(?P<reason>.*?) *-->\s*\n(?P=indent))?"
    r"(?:```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$|"
    r"<!-- setup\n(?P<setup>.*?)-->)",
    re.DOTALL | re.MULTILINE,
)
TITLE = re.compile(r'\btitle="([^"]+)"')
RUN = {"python", "pycon", "console", "setup"}


class Block(NamedTuple):
    """A block of code of a page: its language, text, the file it goes to, its line, why it is not run."""

    language: str
    code: str
    title: str | None
    line: int
    reason: str | None

    @property
    def runs(self):
        return self.language in RUN and self.reason is None and self.title is None


def blocks(text):
    """The blocks of code of a page, the hidden ones too."""
    for match in BLOCK.finditer(text):
        hidden = match["setup"] is not None
        title = TITLE.search(match["options"] or "")
        code = textwrap.dedent(match["setup"] if hidden else match["code"])
        line = text.count("\n", 0, match.start("setup" if hidden else "code")) + 1
        language = "setup" if hidden else match["language"]
        yield Block(language, code, title and title[1], line, match["reason"])


def commands(text):
    """The commands of a console block, those of several lines joined."""
    for match in re.finditer(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE):
        yield re.sub(r"\\\n\s*", "", match[1])


def run_command(command):
    """Runs a command: `mach-ext` in this process, anything else in a shell."""
    words = shlex.split(command, comments=True)
    if "mach-ext" not in words:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        code = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": path, "PYTHONPATH": code})
        return
    before, _, after = command.partition("mach-ext ")
    given = b""
    if "|" in before:
        given = subprocess.run(before.rpartition("|")[0], shell=True, check=True, capture_output=True).stdout
    words = shlex.split(after, comments=True)
    target = words[words.index(">") + 1] if ">" in words else os.devnull
    arguments = words[: words.index(">")] if ">" in words else words
    errors = io.StringIO()
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(given), encoding="utf-8")
    try:
        with (
            open(target, "w", encoding="utf-8") as output,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            code = cli.main(arguments)
    finally:
        sys.stdin = stdin
    assert code == 0, f"{command}: exit code {code}\n{errors.getvalue()}"


def run_block(block, place, namespace):
    """Runs a block of a page."""
    if block.language == "console":
        for command in commands(block.code):
            run_command(command)
    elif block.language == "pycon":
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        test = doctest.DocTestParser().get_doctest(block.code, namespace, place, place, block.line)
        shown = []
        doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=shown.append, clear_globs=False)
        assert not shown, "".join(shown)
        namespace.update(test.globs)
    else:  # the empty lines before it make the line numbers of tracebacks those of the page
        exec(compile("\n" * (block.line - 1) + block.code, place, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MACH_DATA", os.environ.get("MACH_DATA", ""))  # a page may set it for itself
    torch.manual_seed(0)
    namespace = {"__name__": "page", "mach_ext": mach_ext}
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        if block.title and block.reason is None:
            (tmp_path / block.title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.title).write_text(block.code, encoding="utf-8")
        elif block.runs:
            run_block(block, str(ROOT / page), namespace)


def test_blocks_that_are_not_run_say_why_and_are_few():
    everywhere = {page: [*blocks((ROOT / page).read_text(encoding="utf-8"))] for page in PAGES}
    runnable = [b for found in everywhere.values() for b in found if b.language in RUN]
    left_out = [b for b in runnable if b.reason is not None]
    assert all(len(b.reason.split()) >= 2 for b in left_out)
    print(f"{len(runnable) - len(left_out)} blocks of code run, {len(left_out)} do not")
    assert len(left_out) <= len(runnable) / 3


# What reads the pages, on pages of its own.

PAGE = """
<!-- setup
one = 1
-->

1. A step:

    ```python
    two = one + 1
    ```

```json title="a/b.json"
{}
```

<!-- not run: takes minutes -->
```console
$ make demo
```

```console
$ mach-ext info \\
    --json
{"some": "output"}
$ ls
```

```
shown
```
"""


def test_blocks_of_a_page():
    setup, python, title, left_out, console, shown = blocks(PAGE)
    assert (setup.language, setup.code, setup.line, setup.runs) == ("setup", "one = 1\n", 3, True)
    assert (python.language, python.code, python.line, python.runs) == ("python", "two = one + 1\n", 9, True)
    assert (title.title, title.code, title.runs) == ("a/b.json", "{}\n", False)
    assert (left_out.reason, left_out.runs) == ("takes minutes", False)
    assert [*commands(console.code)] == ["mach-ext info --json", "ls"]
    assert (shown.language, shown.code, shown.runs) == ("", "shown\n", False)


def test_code_that_fails_is_noticed():
    with pytest.raises(ZeroDivisionError) as caught:
        run_block(Block("python", "\n1 / 0\n", None, 7, None), "page.md", {})
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == ("page.md", 8)
    with pytest.raises(AssertionError, match="Expected:"):
        run_block(Block("pycon", ">>> 1 + 1\n3\n", None, 1, None), "page.md", {})
    with pytest.raises(AssertionError, match="exit code"):
        run_block(Block("console", "$ mach-ext info --model-path nowhere\n", None, 1, None), "page.md", {})
    with pytest.raises(subprocess.CalledProcessError):
        run_block(Block("console", "$ false\n", None, 1, None), "page.md", {})


def test_names_go_from_block_to_block():
    namespace = {"a": 1}
    run_block(Block("pycon", ">>> b = a + 1\n>>> b\n2\n", None, 1, None), "page.md", namespace)
    run_block(Block("python", "c = b + 1\n", None, 1, None), "page.md", namespace)
    assert namespace["c"] == 3

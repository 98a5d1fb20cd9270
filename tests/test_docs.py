"""The documentation: it builds without a warning, its links lead somewhere, its reference is complete."""

import importlib
import importlib.util
import os
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from helpers import ROOT

import mach_ext
from mach_ext.cli import main as cli_main

pytest.importorskip("mkdocs", reason="the documentation was not built: `pip install -e .[docs]`")
GENERATE = ROOT / "docs" / "generate"
CLI = sys.modules[cli_main.__module__]
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


def generator(name):
    """A module of docs/generate/."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", GENERATE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference, commands = generator("reference"), generator("commands")


class Page(HTMLParser):
    """What a built page has: the names that a link can lead to, its links, the files that it loads."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loads, self.images = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img":
            self.images.append(given)
        if given.get(LOADED.get(tag)) and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built documentation."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": path}
    build = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """The built pages by their addresses, as "explanation/mach/index.html"."""
    files = [file for file in site.rglob("*.html") if file.name != "404.html"]
    return {file.relative_to(site).as_posix(): Page(file.read_text(encoding="utf-8")) for file in files}


def broken(pages, files):
    """Links of pages that lead nowhere: no such file, or no such place in the page."""
    for address, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(address), unquote(parts.path)))
            target = address if not parts.path else target
            if target not in files:
                target = posixpath.normpath(posixpath.join(target, "index.html"))
            anchor, page_there = unquote(parts.fragment), pages.get(target)
            if target not in files or (anchor and page_there and anchor not in page_there.anchors):
                yield address, link


def test_every_link_leads_somewhere(site, pages):
    files = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()}
    assert len(pages) > 20
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert [*broken(pages, files)] == []


def test_pages_load_nothing_from_elsewhere(site, pages):
    assert {load for page in pages.values() for load in page.loads if re.match(r"https?:|//", load)} == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_pictures_have_a_text(pages):
    assert [image for page in pages.values() for image in page.images if not image.get("alt")] == []


@pytest.mark.parametrize("module", ["mach_ext", *reference.modules()])
def test_every_public_name_has_an_entry(pages, module):
    address = "index" if module == "mach_ext" else module.removeprefix("mach_ext.")
    address = "reference/index.html" if address == "index" else f"reference/{address}/index.html"
    names = reference.public_names(importlib.import_module(module))
    assert names or module == "mach_ext.cli"
    assert [name for name in names if f"{module}.{name}" not in pages[address].anchors] == []


def test_reference_has_every_public_module():
    listed = {name for name in mach_ext.__all__ if hasattr(getattr(mach_ext, name), "__path__")}
    assert {f"mach_ext.{name}" for name in listed} <= {*reference.modules()}


def test_every_command_has_an_entry(pages):
    if not hasattr(CLI, "app"):
        pytest.skip("mach_ext.cli.main has no `app` of Typer")
    group = importlib.import_module("typer.main").get_command(CLI.app)
    found = dict(commands.leaves(group, group.context_class(group, info_name="mach-ext")))
    anchors = {commands.anchor(context) for context in found.values()}
    assert {"mach-ext-train", "mach-ext-predict"} <= anchors
    assert anchors <= pages["reference/command-line/index.html"].anchors


def leaves(nav):
    """The pages of a navigation."""
    for item in nav:
        value = item if isinstance(item, str) else next(iter(item.values()))
        yield from [value] if isinstance(value, str) else leaves(value)


def test_every_page_stands_in_the_navigation_once():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = [*leaves(yaml.safe_load(text)["nav"]), *map(reference.path, reference.modules())]
    there = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert there <= {*listed}
    assert len(listed) == len({*listed})


# What makes and checks the pages, on pages of its own.


def test_broken_links_are_noticed():
    pages = {
        "index.html": Page('<a href="a/#x">1</a><a href="a/#y">2</a><a href="#z">3</a><img src="b.png">'),
        "a/index.html": Page('<h1 id="x"></h1><a href="..">1</a><a href="../b.svg">2</a><a href="c/">3</a>'),
    }
    found = [*broken(pages, {*pages, "b.svg"})]
    assert found == [
        ("index.html", "a/#y"),
        ("index.html", "#z"),
        ("index.html", "b.png"),
        ("a/index.html", "c/"),
    ]


def test_commands_page_of_a_group_of_click():
    click = pytest.importorskip("click")

    @click.group()
    def program():
        """Does things."""

    @program.command()
    @click.argument("name")
    @click.option("--k", default=5, show_default=True, help="Labels | a document.")
    @click.option("--secret", hidden=True)
    def predict(name, k, secret):
        """Predicts labels.

        More of it.
        """

    @program.group()
    def data():
        """Datasets."""

    @data.command(name="info")
    def data_info():
        """Says what is there."""

    text = commands.page(program, "mach-ext")
    assert "| [`mach-ext predict`](#mach-ext-predict) | Predicts labels. |" in text
    assert "## mach-ext data info {#mach-ext-data-info}" in text
    assert "Usage: mach-ext predict [OPTIONS] NAME" in text
    assert "| `--k INTEGER` | Labels \\| a document. \\[default: 5] |" in text
    assert "More of it." in text
    assert "secret" not in text


def test_commands_page_of_a_group_of_typer():
    typer = pytest.importorskip("typer")
    app = typer.Typer(help="Does things.")

    @app.command()
    def predict(name: str, k: int = typer.Option(5, help="Labels a document.", rich_help_panel="Answers")):
        """Predicts labels."""

    @app.command()
    def info():
        """Says what is there."""

    text = commands.page(importlib.import_module("typer.main").get_command(app), "mach-ext")
    assert "## mach-ext predict {#mach-ext-predict}" in text
    assert "| Answers | |" in text
    assert re.search(r"\| `--k .*` \| Labels a document\. .*\[default: 5\] \|", text)


def test_figures_are_drawn_by_code():
    """The kept files are those of docs/figures/, where each file draws one."""
    code = "import _style, importlib, sys; print(_style.svg(importlib.import_module(sys.argv[1]).draw))"
    figures = ROOT / "docs" / "figures"
    names = sorted(file.stem for file in figures.glob("[!_]*.py"))
    assert names == sorted(file.stem for file in (ROOT / "docs" / "images").glob("*.svg"))
    drawn = subprocess.run(
        [sys.executable, "-c", code, names[0]], cwd=figures, capture_output=True, text=True
    )
    assert drawn.stdout.startswith("<?xml"), drawn.stderr

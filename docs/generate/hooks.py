"""Pages that are made when the site is built: mkdocs calls these functions.

* The page of each public module: a title, the module's docstring and the entries of its names. If docs/ has a
  page for the module, that page comes first in place of the title and docstring.
* The page of the command line, from its commands.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import commands
import reference

# Remarks for the tests and the tools that keep figures.
REMARK = r"setup\n.*?|not run: .*?|once: .*?|/once|\w+: written by .*?|/\w+"
NO_LETTER = r"(?:[^<a-zA-Z]|</?strong>)*"
NUMBERS = re.compile(rf"<td( style=[^>]*)?>(?={NO_LETTER}\d{NO_LETTER}</td>)")
HIDDEN = re.compile(rf"^ *<!-- (?:{REMARK}) ?-->\n?", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages of the modules to the section Reference."""
    (section,) = (item["Reference"] for item in config.nav or [] if "Reference" in item)
    section += [{module: reference.path(module)} for module in reference.modules()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that docs/ does not have."""
    for module in reference.modules():
        if files.get_file_from_path(reference.path(module)) is None:
            files.append(File.generated(config, reference.path(module), content=reference.head(module)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Adds what is generated to a page of the reference, and takes remarks for the tests out of all pages."""
    markdown = HIDDEN.sub("", markdown)
    path = page.file.src_uri
    if path == "reference/index.md":
        return markdown + "\n" + reference.overview()
    if path == "reference/command-line.md":
        return markdown + "\n" + command_line()
    for module in reference.modules():
        if path == reference.path(module):
            return markdown + "\n" + reference.entries(module)
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Marks the cells of tables that hold numbers alone, which must not break at the end of a line."""
    return NUMBERS.sub(r'<td class="number"\1>', html)


def command_line() -> str:
    """The commands, where the package has them in the form of click."""
    main = importlib.import_module("mach_ext.cli.main")
    if not hasattr(main, "app"):
        return ""
    return commands.page(importlib.import_module("typer.main").get_command(main.app))

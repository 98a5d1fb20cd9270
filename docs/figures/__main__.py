"""Draws the figures of the explanation pages into docs/images/: `python docs/figures`, or `make bench-table`.

The files are kept in the repository, so that its pages show them without a build.
"""

import importlib
from pathlib import Path

import _style

FOLDER = Path(__file__).parent

for file in sorted(FOLDER.glob("[!_]*.py")):
    svg = _style.svg(importlib.import_module(file.stem).draw)
    (FOLDER.parent / "images" / f"{file.stem}.svg").write_text(svg, encoding="utf-8")

"""The charts of the documents, each drawn from the kept results: name -> figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from frames import RESULTS
from prose import ROOT

from charts import accuracy, faithfulness, robustness, speed
from charts.style import styled, write

FOLDER = ROOT / "docs" / "images"

CHARTS: dict[str, Callable[[Path], Any]] = {
    "accuracy": accuracy.accuracy,
    "certified": robustness.certified,
    "decode": speed.decode,
    "faithfulness": faithfulness.faithfulness,
    "peers": accuracy.peers,
    "robustness": robustness.robustness,
    "sparse_linear": speed.sparse_linear,
    "speed": speed.speed,
    "threats": robustness.threats,
}


def draw(folder: Path = FOLDER, results: Path = RESULTS) -> None:
    """Draws every chart into a folder."""
    for name, chart in CHARTS.items():
        with styled():
            write(chart(results), folder / f"{name}.png")

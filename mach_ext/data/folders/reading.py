"""The input of a single reading of a folder, and what is learned while reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mach_ext.data.dataset import Columns
from mach_ext.data.formats.names import Names
from mach_ext.data.text import Vectorizer


@dataclass
class Reading:
    """A single reading of the files of a folder.

    The readers of the formats add names, first ids and remarks while they read.
    """

    folder: Path
    columns: Columns | None  # of the model that the data are read for; None: the data define the columns
    given_base: int | Literal["auto"] | None
    num_threads: int
    documents_only: bool = False  # ignore labels and files of names
    svmlight_base: int | None = None
    svmlight_label_base: int | None = None
    labels: Names | None = None  # names from the folder's files
    features: Names | None = None
    vectorizer: Vectorizer | None = None
    remarks: list[str] = field(default_factory=list)

"""What one reading of a folder is asked for, and what it learns on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mach_ext.data.dataset import Columns
from mach_ext.data.formats.names import Names
from mach_ext.data.text import Vectorizer


@dataclass
class Reading:
    """One reading of the files of a folder.

    The readers of the formats add names, bases and remarks as they come upon them.
    """

    folder: Path
    columns: Columns | None  # of the model that the data are for; None: these data give the columns
    given_base: int | Literal["auto"] | None
    num_threads: int
    documents_only: bool = False  # no labels, and no names beside the documents
    svmlight_base: int | None = None
    svmlight_label_base: int | None = None
    labels: Names | None = None  # from the folder's files
    features: Names | None = None
    vectorizer: Vectorizer | None = None
    remarks: list[str] = field(default_factory=list)

"""svmlight files of a folder: where their ids start, and how many columns they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mach_ext.data.dataset import Split
from mach_ext.data.folders.files import SplitFiles
from mach_ext.data.folders.reading import Reading
from mach_ext.data.formats.names import Names
from mach_ext.data.formats.svmlight import counts_from_one, parse_svmlight, shift_svmlight
from mach_ext.data.matrices import Csr, widen


def read_svmlight_files(reading: Reading, files: dict[str, SplitFiles]) -> dict[str, Split]:
    """Reads all splits. All files count ids from the same number."""
    path = next(iter(files.values())).X  # messages name the first file for all
    columns, with_labels = reading.columns, not reading.documents_only
    known = _known_feature_base(reading, path)
    bound = None if columns is None or known is None else columns.num_features + known
    raw = {
        split: parse_svmlight(
            each.X, num_features=bound, num_threads=reading.num_threads, with_labels=with_labels
        )
        for split, each in files.items()
    }
    base = _shown_feature_base(reading, path, raw) if known is None else known
    label_base = _label_base(reading, path, raw) if with_labels else 0
    reading.svmlight_base, reading.svmlight_label_base = base, label_base
    splits = {
        split: shift_svmlight(files[split].X, data, base, label_base, "ids count from 1")
        for split, data in raw.items()
    }
    # The files do not state the number of columns. It is the number of names or of used columns, the larger.
    D = max(len(reading.features.names) if reading.features else 0, *(d.X.shape[1] for d in splits.values()))
    L = max(len(reading.labels.names) if reading.labels else 0, *(d.Y.shape[1] for d in splits.values()))
    return {split: Split(widen(data.X, D), widen(data.Y, L)) for split, data in splits.items()}


def _known_feature_base(reading: Reading, path: Path) -> int | None:
    """Returns the first feature's number that the model, the caller or the names state, or None."""
    kept = None if reading.columns is None else reading.columns.svmlight_base
    given = None if reading.given_base == "auto" else reading.given_base
    return _agreed_base(path, "features", kept, given, reading.features)


def _shown_feature_base(reading: Reading, path: Path, raw: dict[str, Split]) -> int:
    """Returns the first feature's number according to the ids in the files.

    Raises:
        ValueError: The ids do not tell, and data that are read for a model must not guess.
    """
    base = first_id([data.X for data in raw.values()], reading.features)
    if base is None:
        if reading.columns is not None and reading.given_base != "auto":
            raise ValueError(
                f"{path}: has no feature 0, so say whether features count from 0 or 1: --svmlight-base"
            )
        base = 1
    reading.remarks.append(f"{path}: features are taken to count from {base} (--svmlight-base)")
    return base


def _label_base(reading: Reading, path: Path, raw: dict[str, Split]) -> int:
    """Returns the first label's number as the model, the names or the ids show it. Otherwise it is 0."""
    kept = None if reading.columns is None else reading.columns.svmlight_label_base
    base = _agreed_base(path, "labels", kept, None, reading.labels)
    if base is None:
        base = first_id([data.Y for data in raw.values()], reading.labels)
    if base is None:
        base = 0
        reading.remarks.append(f"{path}: no file has a label 0; labels are taken to count from 0")
    return base


def _agreed_base(
    path: Path, what: str, kept: int | None, given: int | None, names: Names | None
) -> int | None:
    """Returns the first id that all sources state. None: no source states it.

    Raises:
        ValueError: The sources disagree.
    """
    numbered = None if names is None else names.first
    said = {
        "the model's svmlight files": kept,
        "--svmlight-base": given,
        "" if names is None else names.path.name: numbered,
    }
    said = {who: first for who, first in said.items() if first is not None}
    if len(set(said.values())) > 1:
        told = ", ".join(f"{first} ({who})" for who, first in said.items())
        raise ValueError(f"{path}: all must agree on where {what} count from, got {told}")
    return next(iter(said.values()), None)


def first_id(matrices: Sequence[Csr], names: Names | None) -> int | None:
    """Returns the number of the first column that the ids in svmlight files show, or None.

    Args:
        matrices: Features or labels with ids as they are written.
        names: Names of the columns. Their number tells whether ids count from 0 or 1. None: there are no
            names.

    Returns:
        0 or 1. None: the ids do not tell.

    Example:
        >>> from pathlib import Path
        >>> from scipy import sparse
        >>> from mach_ext.data.folders import first_id
        >>> from mach_ext.data.formats import Names
        >>> first_id([sparse.csr_matrix([[0.0, 0.5, 1.0]])], Names(Path("features.txt"), ["a", "b"], None))
        1
    """
    if not counts_from_one(matrices):
        return 0
    if names is None:
        return None
    largest = max(matrix.shape[1] for matrix in matrices) - 1
    return {largest: 1, largest + 1: 0}.get(len(names.names))

"""Reads the files of a folder into splits, in any format."""

from __future__ import annotations

from mach_ext.data.dataset import Split
from mach_ext.data.folders.columns import fit_columns
from mach_ext.data.folders.dense import add_dense
from mach_ext.data.folders.files import SplitFiles
from mach_ext.data.folders.names import check_model_names, check_names, find_names
from mach_ext.data.folders.reading import Reading
from mach_ext.data.folders.svmlight import read_svmlight_files
from mach_ext.data.folders.texts import read_json_lines, read_text_lines
from mach_ext.data.folders.vectors import read_matrices
from mach_ext.data.formats.xmc import read_xmc


def read_splits(reading: Reading, files: dict[str, SplitFiles]) -> dict[str, Split]:
    """Reads all splits, which have the same format, with D and L columns each."""
    (kind,) = {each.kind for each in files.values()}
    if not reading.documents_only:
        find_names(reading)
    if kind == "xmc":
        splits = {split: read_xmc(each.X, num_threads=reading.num_threads) for split, each in files.items()}
    elif kind == "svmlight":
        splits = read_svmlight_files(reading, files)
    elif kind == "npz":
        splits = {split: read_matrices(reading, each) for split, each in files.items()}
    elif kind == "text lines":
        splits = read_text_lines(reading, files)
    else:
        splits = read_json_lines(reading, files)
    if reading.columns is not None:
        by_number = reading.labels is None and kind != "jsonl" and not reading.documents_only
        if by_number and reading.columns.label_names is not None:
            reading.remarks.append(
                f"{reading.folder}: has no label names, so label j is taken as the model's label j"
            )
        D, L = reading.columns.num_features, reading.columns.num_labels
        check_model_names(reading, reading.columns, kind)
    else:
        D, L = splits["train"].X.shape[1], splits["train"].Y.shape[1]
        check_names(reading, D, L)
    splits = {split: fit_columns(reading, data, files[split], D, L) for split, data in splits.items()}
    return splits if reading.documents_only else add_dense(reading, splits, files)

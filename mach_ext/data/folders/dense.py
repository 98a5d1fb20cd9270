"""The dense features of the splits of a folder: from files beside the documents, or from a text encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from mach_ext.data.dataset import Split
from mach_ext.data.dense import dense_file_of, missing_dense, read_dense
from mach_ext.data.embeddings import TextEmbeddings
from mach_ext.data.folders.files import SplitFiles
from mach_ext.data.folders.reading import Reading


def add_dense(reading: Reading, splits: dict[str, Split], files: dict[str, SplitFiles]) -> dict[str, Split]:
    """Returns the splits with their dense features, as train or the model has them.

    Raises:
        FileNotFoundError: A split lacks its file, which other splits or the model have.
        ValueError: A file is bad, or its shape does not fit.
    """
    columns = reading.columns
    if columns is not None and not columns.num_dense:
        reading.remarks += [
            f"{each.dense}: is left out, because the model takes no dense features"
            for each in files.values()
            if each.dense is not None
        ]
        return splits
    if columns is None and all(each.dense is None for each in files.values()):
        return splits
    width = None if columns is None else columns.num_dense
    dense: dict[str, Any] = {}
    for name, split in splits.items():
        dense[name] = _dense_of(reading, split, files, name, width)
        width = int(dense[name].shape[1])
    return {name: replace(split, dense=dense[name]) for name, split in splits.items()}


def _dense_of(
    reading: Reading, split: Split, files: dict[str, SplitFiles], name: str, width: int | None
) -> NDArray[Any] | TextEmbeddings:
    """Returns the dense features of a split. They have `width` columns, if that is known."""
    own, columns = files[name], reading.columns
    if columns is not None and columns.text_encoder is not None and split.texts is not None:
        if own.dense is not None:
            remark = "is left out, because the run's text encoder makes the dense features of the texts"
            reading.remarks.append(f"{own.dense}: {remark}")
        return TextEmbeddings(columns.text_encoder, split.texts)
    if own.dense is not None:
        return read_dense(own.dense, len(split), width)
    expected = dense_file_of(own.X)
    if columns is not None:
        raise FileNotFoundError(missing_dense(expected, own.X, columns))
    there = next(each.dense for each in files.values() if each.dense is not None)
    raise FileNotFoundError(
        f"{expected}: the file is missing; all splits must have dense features, because there is {there.name}"
    )

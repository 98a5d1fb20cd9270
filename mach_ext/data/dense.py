"""Files of dense features, such as embeddings: how they are named, opened, and joined to documents."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mach_ext._memory import memory_errors
from mach_ext.data.files import COMPRESSIONS, PathLike
from mach_ext.data.hybrid import HybridMatrix, check_dense
from mach_ext.data.matrices import Csr
from mach_ext.data.sources import check_regular

if TYPE_CHECKING:
    from mach_ext.data.dataset import Columns

DENSE = ".dense.npy"
_ENDINGS = (".npz", ".txt", ".svm", ".svmlight", ".libsvm", ".jsonl")


def dense_file_of(documents: PathLike) -> Path:
    """Returns where the dense features of a file of documents stand: beside it, under its name.

    The endings of a format and of a compression are replaced by `.dense.npy`.

    Args:
        documents: The file of documents.

    Example:
        >>> from mach_ext.data import dense_file_of
        >>> print(dense_file_of("data/X.trn.npz"), dense_file_of("test.svm.gz"))
        data/X.trn.dense.npy test.dense.npy
    """
    path = Path(documents)
    name = path.name
    for endings in (COMPRESSIONS, _ENDINGS):
        name = next((name.removesuffix(end) for end in endings if name.endswith(end)), name)
    return path.with_name(name + DENSE)


@memory_errors("free memory first", "data.read_dense")
def read_dense(path: PathLike, rows: int | None = None, columns: int | None = None) -> NDArray[Any]:
    """Opens a matrix of dense features that `numpy.save` wrote. It stays on the disk and is memory-mapped.

    Every number is read once, to check it. Only the rows that are used are in memory later.

    Args:
        path: The file, which ends in .npy and is not compressed.
        rows: The number of rows that it must have. None: any.
        columns: The number of columns that it must have. None: any.

    Returns:
        [N, E], a memory-mapped array of real numbers.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is compressed, is no npy file, or holds pickled objects.
        ValueError: The array has another shape, or a number is NaN or infinite. The message gives the row.

    Example:
        >>> import numpy as np
        >>> from mach_ext.data import read_dense
        >>> np.save("X.trn.dense.npy", np.ones((3, 2), np.float32))
        >>> read_dense("X.trn.dense.npy", rows=3).shape
        (3, 2)
    """
    path = Path(path)
    if path.suffix in COMPRESSIONS:
        raise ValueError(f"{path}: must not be compressed, because it is read in parts; unpack it first")
    check_regular(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: must be a whole npy file of numbers, as numpy.save writes it, got: {str(error)[:200]}"
        ) from None
    try:
        check_dense(array, str(path))
    except TypeError as error:  # here the dtype is the fault of a file
        raise ValueError(str(error)) from None
    check_dense_shape(str(path), array.shape, rows, columns)
    return array


def check_dense_shape(name: str, shape: Sequence[int], rows: int | None, columns: int | None) -> None:
    """Refuses dense features of another shape than [rows, columns]. None stands for any number.

    Raises:
        ValueError: The shape is another. The message begins with the name.
    """
    if rows is not None and shape[0] != rows:
        raise ValueError(f"{name}: must have {rows} rows, one a document, got shape {tuple(shape)}")
    if columns is not None and shape[1] != columns:
        raise ValueError(f"{name}: must have E={columns} columns, got shape {tuple(shape)}")


class DenseRows:
    """The dense features of documents that are read block by block for a model.

    They come from `dense` if it is given, or else from the model's text encoder, or else from the file beside
    the documents.

    Args:
        columns: The model's columns.
        source: How messages call the documents.
        dense: A matrix [N, E], or the path of a npy file. None: as above.
        beside: The file of the documents, if they come from a file.
        remarks: A list that a sentence about an unused file is appended to.

    Raises:
        FileNotFoundError: The file is missing. The message names it.
        ValueError: There is no source of dense features, or the model takes none.
    """

    def __init__(
        self,
        columns: Columns,
        source: PathLike,
        dense: Any = None,
        beside: PathLike | None = None,
        remarks: list[str] | None = None,
    ) -> None:
        self._columns, self._source, self._next = columns, source, 0
        self._beside = None if beside is None else dense_file_of(beside)
        self._remarks = remarks
        self._name, self._array = "dense", None
        if not columns.num_dense:
            if dense is not None:
                raise ValueError(f"{source}: the model takes no dense features, so dense must not be given")
            self._leave_out("the model takes no dense features")
        elif isinstance(dense, (str, os.PathLike)):
            self._open(Path(dense))
        elif dense is not None:
            self._array = check_dense(dense)
            check_dense_shape(self._name, self._array.shape, None, columns.num_dense)

    def _leave_out(self, reason: str) -> None:
        """Adds a remark if there is a file beside the documents that is not used."""
        if self._remarks is not None and self._beside is not None and self._beside.exists():
            self._remarks.append(f"{self._beside}: is left out, because {reason}")
            self._remarks = None  # once is enough

    def _open(self, path: Path) -> None:
        """Opens a file of dense features."""
        self._name, self._array = str(path), read_dense(path, columns=self._columns.num_dense)

    def beside(self, X: Csr, texts: Sequence[str] | None = None) -> Csr | HybridMatrix:
        """Returns the next documents with their dense features.

        Args:
            X: Their sparse features [n, D].
            texts: Their texts, if there are any.
        """
        columns = self._columns
        if not columns.num_dense:
            return X
        if self._array is None and texts is not None and columns.text_encoder is not None:
            self._leave_out("the run's text encoder makes the dense features of the texts")
            return HybridMatrix(X, columns.text_encoder.encode(texts))
        if self._array is None:
            self._open(self._file())
        assert self._array is not None
        rows = slice(self._next, self._next + X.shape[0])
        self._next = rows.stop
        if self._next > len(self._array):
            raise ValueError(
                f"{self._name}: has {len(self._array)} rows, but {self._source} has more documents"
            )
        return HybridMatrix(X, self._array[rows])

    def _file(self) -> Path:
        """Returns the file beside the documents."""
        E = self._columns.num_dense
        if self._beside is None:
            raise ValueError(
                f"{self._source}: the model takes E={E} dense features, and it has no text encoder that "
                "makes them of texts; predict(dense=...) and predict --dense take them as a matrix"
            )
        if not self._beside.exists():
            raise FileNotFoundError(missing_dense(self._beside, self._source, self._columns))
        return self._beside

    def check_end(self) -> None:
        """Refuses dense features of more documents than there are."""
        if self._array is not None and self._next < len(self._array):
            raise ValueError(
                f"{self._name}: has {len(self._array)} rows, but {self._source} has {self._next} documents"
            )


def missing_dense(file: PathLike, documents: PathLike, columns: Columns) -> str:
    """Returns the message about a missing file of dense features."""
    texts = "" if columns.text_encoder is None else ", which have no texts for the run's text encoder"
    return (
        f"{file}: the file is missing; the model takes E={columns.num_dense} dense features of each of the "
        f"documents in {documents}{texts}"
    )

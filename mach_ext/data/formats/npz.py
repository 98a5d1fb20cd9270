"""Sparse matrices in SciPy's npz files. The sizes that a file states are not trusted."""

from __future__ import annotations

import errno
import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from mach_ext._memory import memory_errors, memory_shortage
from mach_ext.data.atomic import atomic_write
from mach_ext.data.dataset import Split
from mach_ext.data.files import COMPRESSIONS, PathLike
from mach_ext.data.matrices import Csr, check_csr, check_labels, check_rows
from mach_ext.data.parsing import quote
from mach_ext.data.sources import FREE_BYTES, MAX_EXPANSION, check_regular, read_input, shortage_advice


def load_npz(path: PathLike) -> Any:
    """Loads a file that `scipy.sparse.save_npz` wrote, in any sparse format, without checking the matrix.

    Args:
        path: The file, plain or compressed once more as .gz, .xz or .bz2.

    Returns:
        A SciPy sparse matrix or array in the format of the file.

    Raises:
        ValueError: The file is of another kind, is damaged, or expands too far.
        MemoryError: The matrix does not fit in memory.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data.formats import load_npz
        >>> sparse.save_npz("X.npz", sparse.eye(3, format="csc"))
        >>> load_npz("X.npz").format
        'csc'
    """
    check_regular(path)
    compressed = Path(path).suffix in COMPRESSIONS  # a zip file is read from its end, so it is unpacked first
    with shortage_advice(path), io.BytesIO(read_input(path)) if compressed else open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _matrix_of(archive)
        except MemoryError:
            raise
        except Exception as error:  # SciPy, NumPy and zipfile raise many kinds of exceptions for damage
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # an error of the disk
                raise
            if memory_shortage(error) is not None:
                raise
            problem = f"{error}"[:200] or type(error).__name__
    raise ValueError(f"{path}: must be a whole scipy.sparse.save_npz file, got: {problem}")


def _matrix_of(archive: zipfile.ZipFile) -> Any:
    """Makes a matrix of the arrays that save_npz writes.

    SciPy's own reader is not used, because it rounds indices and lacks some dtypes.
    """

    def indices(name: str) -> NDArray[Any]:
        ids = _array(archive, name)
        if ids.ndim != 1 + (name == "coords"):
            raise ValueError(f"{name} must be one row of numbers, got shape {ids.shape}")
        if ids.dtype.kind not in "iu" or (ids.size and not -(2**63) <= ids.min() <= ids.max() < 2**63):
            raise ValueError(f"{name} must be integers below 2^63, got dtype {ids.dtype}")
        return ids.astype(np.int64)

    _check_members(archive)
    kind = _array(archive, "format").item()
    kind = kind.decode() if isinstance(kind, bytes) else kind
    shape = tuple(indices("shape").tolist())
    if kind != "csr" and shape and 4 * shape[0] > _limit(archive):  # CSR needs at least 4 bytes a row
        raise ValueError(f"a {quote(kind)} matrix so sparse must have fewer rows, got {shape[0]}")
    values = _array(archive, "data")
    if values.dtype.kind not in "fiub":
        raise ValueError(f"data must be real numbers, got dtype {values.dtype}")
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if kind in ("csr", "csc", "bsr"):
        compressed = {
            "csr": scipy.sparse.csr_matrix,
            "csc": scipy.sparse.csc_matrix,
            "bsr": scipy.sparse.bsr_matrix,
        }[kind]
        return compressed((values, indices("indices"), indices("indptr")), shape=shape)
    if kind == "coo":
        one_array = "coords.npy" in archive.namelist()
        at = indices("coords") if one_array else (indices("row"), indices("col"))
        return scipy.sparse.coo_array((values, tuple(at)), shape=shape)
    if kind == "dia":
        offsets = indices("offsets")
        if values.ndim != 2:  # SciPy would turn a single number into a row
            raise ValueError(f"data must be diagonals, got shape {values.shape}")
        if (np.abs(offsets.astype(np.float64)) >= 2**31).any():  # SciPy would let them overflow
            raise ValueError("offsets of diagonals must be below 2^31")
        return scipy.sparse.dia_matrix((values, offsets), shape=shape)
    raise ValueError(f"format must be csr, csc, bsr, coo or dia, got {quote(kind)}")


def _limit(archive: zipfile.ZipFile) -> int:
    """Returns how many bytes the arrays of a zip file may have, by the rule for compressed files."""
    packed = sum(member.compress_size for member in archive.infolist())
    return max(FREE_BYTES, MAX_EXPANSION * packed)


def _check_members(archive: zipfile.ZipFile) -> None:
    """Refuses a zip file with repeated names, unusual compression or too large arrays."""
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("each array must occur only once, got an array twice")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"arrays must be stored or deflated, got compression {member.compress_type}")
    if (size := sum(member.file_size for member in members)) > _limit(archive):
        raise ValueError(
            f"arrays must not unpack to more than {MAX_EXPANSION} times their size, got {size} bytes"
        )


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Reads an array. Its member is read to the end, because only there the checksum is compared."""
    with archive.open(f"{name}.npy") as member:
        array = read_array(member, archive.getinfo(f"{name}.npy").file_size)
        while member.read(1 << 20):
            pass
    return array


def read_array(file: Any, size: int) -> NDArray[Any]:
    """Reads an npy file and returns its array in native byte order.

    Args:
        file: The open file. It must allow seeking.
        size: The size of the file in bytes.

    Raises:
        ValueError: The file is of another kind, promises more bytes than it has, or holds pickled objects.

    Example:
        >>> import io
        >>> import numpy as np
        >>> from mach_ext.data.formats import read_array
        >>> file = io.BytesIO()
        >>> np.save(file, np.arange(3))
        >>> size = file.tell()
        >>> _ = file.seek(0)
        >>> read_array(file, size)
        array([0, 1, 2])
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"an array must be of npy version 1.0 or 2.0, got {version}")
    shape, _, dtype = readers[version](file)
    promised = file.tell() + math.prod(shape) * dtype.itemsize
    if promised > size and not dtype.hasobject:  # NumPy has its own message for objects
        raise ValueError(f"an array of shape {quote(shape)}, {dtype} must have {promised} bytes, got {size}")
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


@memory_errors("free memory first, or split the data", "data.read_matrix")
def read_matrix(path: PathLike) -> Csr:
    """Reads a sparse matrix of real numbers that `scipy.sparse.save_npz` wrote, and checks it completely.

    Args:
        path: The file, plain or compressed once more as .gz, .xz or .bz2.

    Returns:
        The matrix as canonical float32 CSR.

    Raises:
        ValueError: The file is damaged, the structure is broken, or a value is NaN or infinite.
        MemoryError: The matrix does not fit in memory.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import read_matrix
        >>> sparse.save_npz("X.npz", sparse.csc_matrix([[0.0, 0.5], [1.0, 0.0]]))
        >>> read_matrix("X.npz").toarray()
        array([[0. , 0.5],
               [1. , 0. ]], dtype=float32)
    """
    with shortage_advice(path):
        return check_csr(load_npz(path), str(path))


@memory_errors("free memory first, or split the data", "data.read_npz")
def read_npz(X_path: PathLike, Y_path: PathLike) -> Split:
    """Reads the features and the labels of documents from two files of `scipy.sparse.save_npz`.

    Args:
        X_path: The file of the features [N, D].
        Y_path: The file of the labels [N, L].

    Raises:
        ValueError: A file is damaged or broken, a value is NaN or infinite, or the numbers of rows differ.
        MemoryError: A matrix does not fit in memory.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import read_npz, write_npz
        >>> write_npz("X.trn.npz", sparse.eye(3, 5))
        >>> write_npz("Y.trn.npz", sparse.eye(3))
        >>> split = read_npz("X.trn.npz", "Y.trn.npz")
        >>> split.X.shape, split.Y.shape
        ((3, 5), (3, 3))
    """
    X = read_matrix(X_path)
    with shortage_advice(Y_path):
        Y = check_labels(load_npz(Y_path), str(Y_path), allow_weights=False)
    check_rows(X, Y, X_path, Y_path)
    return Split(X, Y)


@memory_errors("free memory first, or split the data", "data.write_npz")
def write_npz(path: PathLike, matrix: Any) -> None:
    """Writes a sparse matrix as a compressed npz file. The file appears whole or not at all.

    Args:
        path: The file to write.
        matrix: Real numbers in any form that `check_csr` accepts.

    Raises:
        TypeError: As `check_csr`.
        ValueError: As `check_csr`.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import read_matrix, write_npz
        >>> write_npz("X.npz", sparse.eye(3))
        >>> read_matrix("X.npz").nnz
        3
    """
    with atomic_write(path) as file:
        scipy.sparse.save_npz(file, check_csr(matrix))

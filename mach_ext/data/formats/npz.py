"""Sparse matrices as SciPy's npz files, read without trust in what they say of their sizes."""

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
    """What scipy.sparse.save_npz wrote, in any sparse format; the matrix itself is not checked.

    Raises:
        ValueError: not such a file, damaged, or one that expands beyond all bounds.
        MemoryError: the matrix does not fit.
    """
    check_regular(path)
    compressed = Path(path).suffix in COMPRESSIONS  # a zip file is read from its end: unpack all of it first
    with shortage_advice(path), io.BytesIO(read_input(path)) if compressed else open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _matrix_of(archive)
        except MemoryError:
            raise
        except Exception as error:  # SciPy, NumPy and zipfile stumble over damage in many ways
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a disk's error
                raise
            if memory_shortage(error) is not None:
                raise
            problem = f"{error}"[:200] or type(error).__name__
    raise ValueError(f"{path}: must be a whole scipy.sparse.save_npz file, got: {problem}")


def _matrix_of(archive: zipfile.ZipFile) -> Any:
    """The matrix of the arrays that save_npz writes; SciPy's own reader rounds indices and lacks dtypes."""

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
    if kind != "csr" and shape and 4 * shape[0] > _limit(archive):  # as CSR it takes a number a row
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
        if values.ndim != 2:  # SciPy would make a row of a single number
            raise ValueError(f"data must be diagonals, got shape {values.shape}")
        if (np.abs(offsets.astype(np.float64)) >= 2**31).any():  # SciPy would wrap them around
            raise ValueError("offsets of diagonals must be below 2^31")
        return scipy.sparse.dia_matrix((values, offsets), shape=shape)
    raise ValueError(f"format must be csr, csc, bsr, coo or dia, got {quote(kind)}")


def _limit(archive: zipfile.ZipFile) -> int:
    """Bytes that the arrays of a zip file may have: as for compressed files of other kinds."""
    packed = sum(member.compress_size for member in archive.infolist())
    return max(FREE_BYTES, MAX_EXPANSION * packed)


def _check_members(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("each array must be there once, got one twice")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"arrays must be stored or deflated, got compression {member.compress_type}")
    if (size := sum(member.file_size for member in members)) > _limit(archive):
        raise ValueError(
            f"arrays must not unpack to more than {MAX_EXPANSION} times their size, got {size} bytes"
        )


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array, its member read to the end: only there the checksum is compared."""
    with archive.open(f"{name}.npy") as member:
        array = read_array(member, archive.getinfo(f"{name}.npy").file_size)
        while member.read(1 << 20):
            pass
    return array


def read_array(file: Any, size: int) -> NDArray[Any]:
    """The array of an npy file that has so many bytes, in native byte order. `file` can be rewound.

    Raises:
        ValueError: no such file; a header that promises more bytes; pickled objects.
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
    if promised > size and not dtype.hasobject:  # of which NumPy speaks itself
        raise ValueError(f"an array of shape {quote(shape)}, {dtype} must have {promised} bytes, got {size}")
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


@memory_errors("free memory first, or split the data", "data.read_matrix")
def read_matrix(path: PathLike) -> Csr:
    """Reads one sparse matrix of real numbers as scipy.sparse.save_npz writes it, checked in full."""
    with shortage_advice(path):
        return check_csr(load_npz(path), str(path))


@memory_errors("free memory first, or split the data", "data.read_npz")
def read_npz(X_path: PathLike, Y_path: PathLike) -> Split:
    """Reads a pair of files as scipy.sparse.save_npz writes them.

    Raises:
        ValueError: damaged file, broken structure, NaN or infinity, different numbers of rows.
    """
    X = read_matrix(X_path)
    with shortage_advice(Y_path):
        Y = check_labels(load_npz(Y_path), str(Y_path), allow_weights=False)
    check_rows(X, Y, X_path, Y_path)
    return Split(X, Y)


@memory_errors("free memory first, or split the data", "data.write_npz")
def write_npz(path: PathLike, matrix: Any) -> None:
    """Writes one sparse matrix as a compressed npz file, atomically."""
    with atomic_write(path) as file:
        scipy.sparse.save_npz(file, check_csr(matrix))

"""SciPy's npz files in plain Python: zip members, npy headers, numbers byte by byte, then five layouts.

The zip container is Python's; every member is read to its end, so every checksum is checked. NumPy says only
what the name of a type means. A number becomes a double first; numbers at one place are summed in the file's
order, and the sum is rounded to float32 once.
"""

from __future__ import annotations

import ast
import io
import itertools
import math
import struct
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from . import MAX, Refused, Table, unpack
from .numbers import float32_bits

FORMATS = ("csr", "csc", "coo", "bsr", "dia")
FLOATS = {2: "e", 4: "f", 8: "d"}


class Damaged(Exception):
    pass


class Array(NamedTuple):
    """Numbers in C order: int or float; Fraction, inf or nan for long doubles. `kind` as in NumPy."""

    kind: str
    shape: tuple[int, ...]
    items: list[Any]


def need(condition: Any) -> None:
    if not condition:
        raise Damaged


# ------------------------------------------------------------------------------------------- arrays


def long_double(data: bytes) -> Any:
    """The 80-bit format of x86: 64 bits of mantissa with its leading 1, 15 of exponent, a sign."""
    mantissa, high = struct.unpack("<QH", data[:10])
    sign, exponent = -1 if high >> 15 else 1, high & 0x7FFF
    if exponent == 0x7FFF:
        return sign * math.inf if mantissa == 1 << 63 else math.nan
    if exponent > 0 and mantissa < 1 << 63:
        return math.nan  # an encoding that the processor does not take
    if mantissa == 0:
        return sign * 0.0
    return sign * Fraction(mantissa) * Fraction(2) ** (max(exponent, 1) - 16383 - 63)


def item(data: bytes, kind: str, order: str) -> Any:
    if kind in "iu":
        return int.from_bytes(data, order, signed=kind == "i")
    if kind == "b":
        return int(data != b"\0")
    if kind == "f" and len(data) == 16:
        return long_double(data if order == "little" else data[::-1])
    if kind == "f":
        return struct.unpack(("<" if order == "little" else ">") + FLOATS[len(data)], data)[0]
    if kind == "U":
        step = [data[i : i + 4] for i in range(0, len(data), 4)]
        return "".join(chr(int.from_bytes(character, order)) for character in step).rstrip("\0")
    return data.rstrip(b"\0").decode("ascii")


def read_array(data: bytes) -> Array:
    """The bytes of one .npy file."""
    need(data[:6] == b"\x93NUMPY" and data[6:8] in (b"\1\0", b"\2\0"))
    size = 2 if data[6] == 1 else 4
    start = 8 + size + int.from_bytes(data[8 : 8 + size], "little")
    need(len(data) >= start and start - 8 - size <= 10_000)
    fields = ast.literal_eval(data[8 + size : start].decode("latin-1"))
    need(isinstance(fields, dict) and set(fields) == {"descr", "fortran_order", "shape"})
    shape, fortran = fields["shape"], fields["fortran_order"]
    need(isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape))
    need(isinstance(fortran, bool) and isinstance(fields["descr"], str))
    dtype, count = np.dtype(fields["descr"]), math.prod(shape)
    dtype = dtype if count else dtype.base  # "8i4" is a type, too: where there is no item, as good as "i4"
    need(dtype.kind in "fiubSU")
    order = "big" if dtype.byteorder == ">" else "little"
    need(start + count * dtype.itemsize <= len(data))
    places = [start + i * dtype.itemsize for i in range(count)]
    items = [item(data[at : at + dtype.itemsize], dtype.kind, order) for at in places]
    if fortran:  # the first index runs fastest
        strides = [math.prod(shape[:axis]) for axis in range(len(shape))]
        every = itertools.product(*map(range, shape))
        items = [items[sum(i * stride for i, stride in zip(index, strides, strict=True))] for index in every]
    return Array(dtype.kind, shape, items)


def numbers(array: Array, dimensions: int) -> Array:
    need(array.kind in "fiub" and len(array.shape) == dimensions)
    return array


def integers(array: Array, dimensions: int = 1) -> list[int]:
    need(array.kind in "iu")
    return numbers(array, dimensions).items


# ------------------------------------------------------------------------------------------- matrices


def compressed(
    arrays: dict[str, Array], rows: int, columns: int, data: list[Any]
) -> Iterator[tuple[int, int, Any]]:
    """(row, column, item) of CSR; data may hold more than the last row needs."""
    indptr, indices = integers(arrays["indptr"]), integers(arrays["indices"])
    need(len(indptr) == rows + 1 and indptr[0] == 0 and indptr == sorted(indptr))
    need(len(indices) == len(data) and indptr[-1] <= len(indices))
    need(all(0 <= column < columns for column in indices[: indptr[-1]]))
    for row in range(rows):
        for i in range(indptr[row], indptr[row + 1]):
            yield row, indices[i], data[i]


def entries(arrays: dict[str, Array], form: str, rows: int, columns: int) -> Iterator[tuple[int, int, Any]]:
    """(row, column, number) of every stored entry."""
    dimensions = {"bsr": 3, "dia": 2}.get(form, 1)
    _, shape, items = numbers(arrays["data"], dimensions)
    if form == "csr":
        yield from compressed(arrays, rows, columns, items)
    elif form == "csc":
        yield from ((row, column, x) for column, row, x in compressed(arrays, columns, rows, items))
    elif form == "coo":
        row, column = integers(arrays["row"]), integers(arrays["col"])
        need(len(row) == len(column) == len(items))
        need(all(0 <= i < rows for i in row) and all(0 <= j < columns for j in column))
        yield from zip(row, column, items, strict=True)
    elif form == "bsr":
        _, height, width = shape
        need(height > 0 and width > 0 and rows % height == 0 and columns % width == 0)
        size = height * width
        blocks = [items[i * size : (i + 1) * size] for i in range(shape[0])]
        for row, column, block in compressed(arrays, rows // height, columns // width, blocks):
            for i, x in enumerate(block):
                yield row * height + i // width, column * width + i % width, x
    else:
        offsets = integers(arrays["offsets"])
        need(len(offsets) == shape[0] and len(set(offsets)) == len(offsets))
        need(all(abs(offset) <= MAX for offset in offsets))
        for k, offset in enumerate(offsets):
            for column in range(min(shape[1], columns)):
                x = items[k * shape[1] + column]
                if 0 <= column - offset < rows and x != 0:  # the zeros fill up a diagonal
                    yield column - offset, column, x


def read_matrix(data: bytes, labels: bool) -> tuple[list[dict[int, int]], int]:
    """Rows of {column: float32 bits}, and the number of columns. Labels must be stored as whole numbers."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        need(len(set(archive.namelist())) == len(archive.namelist()))
        infos = archive.infolist()
        need(all(info.compress_type in (0, 8) for info in infos))  # stored, deflated
        packed, unpacked = sum(info.compress_size for info in infos), sum(info.file_size for info in infos)
        need(unpacked <= max(2**26, 200 * packed))  # by what it says, whatever there is
        members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    kind, _, items = read_array(members["format"])
    need(kind in "SU" and len(items) == 1)
    form = items[0]
    need(form in FORMATS)
    names = {"coo": ("row", "col"), "dia": ("offsets",)}.get(form, ("indices", "indptr"))
    arrays = {name: read_array(members[name]) for name in ("data", "shape", *names)}
    shape = integers(arrays["shape"])
    need(len(shape) == 2 and all(0 <= size <= MAX for size in shape))
    sums: dict[tuple[int, int], float] = {}
    for row, column, x in entries(arrays, form, *shape):
        need(math.isfinite(x) and (not labels or (x >= 0 and x == int(x))))
        value = float(x)  # of an integer or a fraction: the nearest
        sums[row, column] = sums[row, column] + value if (row, column) in sums else value
    rows: list[dict[int, int]] = [{} for _ in range(shape[0])]
    for (row, column), value in sums.items():
        bits = float32_bits(value)
        need(bits is not None and bits & 0x7F800000 != 0x7F800000)
        if value != 0 or not labels:
            rows[row][column] = bits
    return rows, shape[1]


def read_npz(files: dict[str, bytes]) -> Table:
    """The pair of files: X, then Y."""
    read = []
    for name, data in files.items():
        try:
            read.append(read_matrix(unpack(name, data), labels=bool(read)))
        except MemoryError:
            raise
        except Exception:  # the many ways in which a zip file or a header can be damaged
            raise Refused(None, files=(name,)) from None
    (rows, columns), (labels, num_labels) = read
    if len(rows) != len(labels):
        raise Refused(None, files=tuple(files))
    return Table(rows, [set(row) for row in labels], columns, num_labels)

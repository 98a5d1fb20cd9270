"""Matrices as npz files, valid or damaged: in the matrix, in one array, in one header, or in the zip file."""

from __future__ import annotations

import io
import random
import zipfile
from typing import Any

import numpy as np
from scipy import sparse

from . import mutate

DTYPES = (
    "f2",
    "f4",
    "f4",
    "f4",
    "f8",
    "f8",
    "g",
    "?",
    "i1",
    "u1",
    "i2",
    "u2",
    "i4",
    "u4",
    "i8",
    "u8",
    ">f4",
    ">f8",
    ">i2",
)
BAD_DTYPES = ("c8", "c16", "S3", "U2", "M8[s]", "m8[s]", "O", "V4", "f4,i4")
INDEX_DTYPES = ("i4", "i4", "i8", "i8", "i2", "u1", "u4", "u8", ">i4", "f8", "f4", "?", "S4", "O", "c8")
VALUES = (
    0,
    1,
    2,
    -1,
    127,
    128,
    255,
    300,
    0.5,
    -0.0,
    1e-46,
    1e38,
    3.5e38,
    1e39,
    1e300,
    1e308,
    2**53 + 1,
    2**60 + 2**36 + 1,
)
VALUES = (*VALUES, np.nan, np.inf, -np.inf, 2**63, 2**64 - 1, 16777217, 0.1, 1 + 1e-12, 65504, 65520)
INDICES = (-1, 0, 1, 2, 5, 2**15, 2**31 - 1, 2**31, 2**32, 2**32 + 1, -(2**31), 2**63 - 1, -(2**63), -2)
SIZES = (0, 1, 2, 3, 5, 9, -1, 2**31, 2**32 + 3, 2**63 - 1, -(2**63))

Arrays = dict[str, Any]


class Exploding:
    """Unpickling it would write a file; no reader may do that."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("unpickled", "w"))


def cast(values: Any, dtype: str) -> Any:
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(dtype)


def arrays_of(rng: random.Random, rows: int, columns: int, labels: bool) -> Arrays:
    """A valid matrix in one of five layouts, often with duplicates and unsorted indices."""
    count = rng.randint(0, 3 * rows)
    numbers = (1,) if labels else (0.5, 1, 2, 3, -1, 200, 100.25, 1e-3, rng.gauss(0, 1))
    row = np.array([rng.randrange(rows) for _ in range(count)], "i4")
    column = np.array([rng.randrange(columns) for _ in range(count)], "i4")
    data = np.array([rng.choice(numbers) for _ in range(count)], "f8")
    form = rng.choice(sparse_formats)
    if form in ("csr", "csc") and rng.random() < 0.6:  # duplicates stay
        if form == "csc":
            row, column = column, row
        order = np.argsort(row, kind="stable")
        indptr = np.searchsorted(row[order], np.arange((rows if form == "csr" else columns) + 1)).astype("i4")
        arrays: Arrays = {"indices": column[order], "indptr": indptr, "data": data[order]}
    elif form == "coo":
        arrays = {"row": row, "col": column, "data": data}
    else:
        matrix = sparse.coo_matrix((data, (row, column)), shape=(rows, columns)).asformat(form)
        if labels:
            matrix.data = (matrix.data > 0).astype("f8")
        fields = {
            "csr": ("indices", "indptr"),
            "csc": ("indices", "indptr"),
            "bsr": ("indices", "indptr"),
            "dia": ("offsets",),
        }
        arrays = {name: getattr(matrix, name) for name in (*fields[form], "data")}
    arrays |= {"format": np.array(form.encode()), "shape": np.array([rows, columns])}
    arrays["data"] = cast(arrays["data"], rng.choice(DTYPES))
    if rng.random() < 0.3:
        for name in set(arrays) & {"indices", "indptr", "row", "col", "offsets"}:
            arrays[name] = cast(arrays[name], rng.choice(INDEX_DTYPES[:9]))
    if rng.random() < 0.2:
        arrays["_is_array"] = np.array(True)
    return arrays


sparse_formats = ("csr", "csr", "csr", "csc", "coo", "bsr", "dia")


# ------------------------------------------------------------------------------------------- arrays


def put_item(rng: random.Random, array: Any, choices: tuple) -> Any:
    if array.size == 0 or array.dtype.kind not in "fiub":
        return array
    array = array.copy()
    value = rng.choice(choices)
    with np.errstate(all="ignore"):
        array.flat[rng.randrange(array.size)] = np.array([value]).astype(array.dtype)[0]
    return array


def reshape(rng: random.Random, array: Any) -> Any:
    kind = rng.choice(("shorter", "longer", "2-D", "column", "0-D", "empty", "Fortran", "repeat"))
    if kind == "shorter":
        return array[:-1] if array.ndim else array
    if kind == "longer":
        return np.concatenate([array, array[-1:]]) if array.ndim and array.size else np.zeros(1, array.dtype)
    if kind == "repeat":
        return np.concatenate([array, array]) if array.ndim else array
    if kind == "Fortran":
        return np.asfortranarray(array)
    shaped = (
        {"2-D": array[None], "column": array[..., None], "0-D": array.reshape(-1)[:1].reshape(())}
        if array.size
        else {}
    )
    return shaped.get(kind, array[:0] if array.ndim else array)


def damage_arrays(rng: random.Random, arrays: Arrays) -> None:
    name = rng.choice([*arrays, "data", "data"])
    array = arrays[name]
    kind = rng.choice(
        ("item", "item", "item", "item", "dtype", "dtype", "shape", "missing", "object", "form", "size")
    )
    if kind == "size":
        rows_must_fit = arrays["format"] in (b"csr", b"bsr")  # else 2^31 - 1 rows would be many gigabytes
        arrays["shape"] = put_item(rng, arrays["shape"], (*SIZES, *[2**31 - 1] * rows_must_fit))
    elif kind == "form":
        forms = (
            "csr",
            "csc",
            "coo",
            "bsr",
            "dia",
            "lil",
            "dok",
            "",
            "CSR",
            "csr_matrix",
            "\xe9",
            "linalg",
            "csr ",
        )
        arrays["format"] = np.array(rng.choice((*(form.encode() for form in forms), *forms, 7, 1.5)))
        if rng.random() < 0.1:
            arrays["format"] = np.array([b"csr", b"csr"][: rng.randint(0, 2)], "S3")
    elif kind == "missing":
        del arrays[name]
    elif kind == "object":
        arrays[name] = np.array([Exploding()] * max(1, array.size), object)
    elif kind == "shape":
        arrays[name] = reshape(rng, array)
    elif kind == "dtype" and name == "data":
        arrays[name] = (
            np.zeros(array.shape, bad)
            if (bad := rng.choice(BAD_DTYPES)) and rng.random() < 0.3
            else cast(array, rng.choice(DTYPES))
        )
    elif kind == "dtype" and array.dtype.kind in "iu":
        arrays[name] = cast(array, rng.choice(INDEX_DTYPES))
        if arrays[name].dtype.kind == "f" and rng.random() < 0.5:
            arrays[name] = arrays[name] + 0.5
    elif kind == "item":
        choices = VALUES if name == "data" else INDICES
        arrays[name] = put_item(
            rng, array.astype("i8") if choices is INDICES and array.dtype.kind in "iu" else array, choices
        )


# ------------------------------------------------------------------------------------------- files


def damage_header(rng: random.Random, member: bytes) -> bytes:
    """The bytes of one .npy file; the zip file around it will be whole."""
    kind = rng.choice(("flip", "flip", "count", "truncate", "longer", "version", "order"))
    if kind == "count":
        sizes = (
            b"(1000000000000000,)",
            b"(0,)",
            b"(2,)",
            b"(-1,)",
            b"3",
            b"(2.0,)",
            b"(True,)",
            b"()",
            b"[2]",
            b"(2,1)",
        )
        return mutate.on_token(rb"\([0-9, ]*\)", sizes, rng, member)
    if kind == "order":
        return member.replace(b"False", rng.choice((b"True ", b"1    ", b"None ")), 1)
    if kind == "version":
        return mutate.put(member, 6, 7, bytes([rng.choice((0, 2, 3, 4, 255))]))
    if kind == "longer":
        return member + b"\0" * 8
    if kind == "truncate":
        return mutate.truncate(rng, member)
    at = rng.randrange(min(len(member), 80))
    return mutate.put(member, at, at + 1, bytes([member[at] ^ 1 << rng.randrange(8)]))


def pack(rng: random.Random, arrays: Arrays, damage: str) -> bytes:
    members = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asanyarray(array), allow_pickle=True)
        members[name] = buffer.getvalue()
    if damage == "header":
        name = rng.choice(list(members))
        members[name] = damage_header(rng, members[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member, archive.compression)
    data = buffer.getvalue()
    if damage == "zip":
        steps = (
            mutate.flip_bit,
            mutate.flip_bit,
            mutate.flip_bit,
            mutate.set_byte,
            mutate.delete_bytes,
            mutate.truncate,
        )
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = rng.choice((*steps, mutate.repeat_bytes, mutate.insert_token))(rng, data or b"\0")
    return data


def pair(rng: random.Random) -> dict[str, bytes]:
    """X.trn.npz and Y.trn.npz, mostly with one of them damaged."""
    rows, columns, num_labels = rng.randint(1, 6), rng.randint(1, 20), rng.randint(1, 9)
    files = {"X.trn.npz": (columns, False), "Y.trn.npz": (num_labels, True)}
    bad = rng.choice(list(files))
    packed = {}
    for name, (width, labels) in files.items():
        arrays = arrays_of(rng, rows + (rng.random() < 0.02), width, labels)
        damage = (
            rng.choice(("none", "arrays", "arrays", "arrays", "header", "zip", "zip"))
            if name == bad
            else "none"
        )
        for _ in range(rng.choice((1, 1, 1, 2)) if damage == "arrays" else 0):
            if arrays.keys() >= {"data", "shape", "format"}:
                damage_arrays(rng, arrays)
        packed[name] = pack(rng, arrays, damage)
    return packed

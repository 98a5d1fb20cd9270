"""Matrices as npz files, valid or damaged: in an array, in an array's header, or in the zip file."""

from __future__ import annotations

import io
import random
import re
import warnings
import zipfile
from typing import Any

import numpy as np
from scipy import sparse

from . import mutate

NAMES = {  # of each layout's arrays beside data, shape and format
    "csr": ("indices", "indptr"),
    "csc": ("indices", "indptr"),
    "bsr": ("indices", "indptr"),
    "coo": ("row", "col"),
    "dia": ("offsets",),
}
DTYPES = (
    "f2",
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
    ">i8",
)
BAD_DTYPES = ("c8", "c16", "S3", "U2", "M8[s]", "m8[s]", "O", "V4", "f4,i4")
INDEX_DTYPES = ("i4", "i4", "i8", "i8", "i2", "u1", "u4", "u8", ">i4")
BAD_INDEX_DTYPES = ("f8", "f4", "?", "S4", "O", "c8")
VALUES = (0, 1, 2, -1, 127, 128, 255, 300, 0.5, -0.0, 0.1, 65504, 65520, 16777217, 1 + 1e-12, 1e-46)
VALUES += (1e38, 3.5e38, 1e39, 1e300, 1e308, np.nan, np.inf, -np.inf, 2**53 + 1, 2**60 + 2**36 + 1, 2**63)
INDICES = (-2, -1, 0, 1, 2, 5, 2**15, 2**31 - 1, 2**31, 2**32, 2**32 + 1, -(2**31), 2**63 - 1, -(2**63))
SIZES = (0, 1, 2, 3, 5, 9, -1, 2**31, 2**32 + 3, 2**63 - 1, -(2**63))
FORMATS = ("csr", "csc", "coo", "bsr", "dia", "lil", "dok", "", "CSR", "csr_matrix", "\xe9", "linalg", "csr ")
SHAPES = tuple(b"(1000000000000000,) (0,) (2,) (-1,) 3 (2.0,) (True,) () [2] (2,1)".split())

Arrays = dict[str, Any]


class Exploding:
    """Unpickling it would write a file; no reader may do that."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("unpickled", "w"))


def cast(values: Any, dtype: str) -> Any:
    """To another type, whatever becomes of the values."""
    with np.errstate(all="ignore"):
        return values.astype(dtype)


# ------------------------------------------------------------------------------------------- valid


def valid(rng: random.Random, rows: int, columns: int, labels: bool) -> Arrays:
    """A matrix in one of five layouts, often with duplicates and unsorted indices."""
    form = rng.choice(("csr", "csr", "csr", *NAMES) if rows < 100 else ("csr", "csc", "coo"))
    count = rng.randint(0, 3 * rows)
    row = np.array([rng.randrange(rows) for _ in range(count)], "i4")
    column = np.array([rng.randrange(columns) for _ in range(count)], "i4")
    numbers = (1,) if labels else (0.5, 1, 2, 3, -1, 200, 100.25, 1e-3, rng.gauss(0, 1))
    data = np.array([rng.choice(numbers) for _ in range(count)], "f8")
    if form == "coo":
        arrays: Arrays = {"row": row, "col": column, "data": data}
    elif form in ("csr", "csc") and rng.random() < 0.6:  # by hand, so that duplicates stay
        outer, inner, size = (row, column, rows) if form == "csr" else (column, row, columns)
        order = np.argsort(outer, kind="stable")
        indptr = np.searchsorted(outer[order], np.arange(size + 1)).astype("i4")
        arrays = {"indices": inner[order], "indptr": indptr, "data": data[order]}
    else:
        matrix = sparse.coo_matrix((data, (row, column)), shape=(rows, columns)).asformat(form)
        arrays = {name: getattr(matrix, name) for name in (*NAMES[form], "data")}
        if labels:
            arrays["data"] = np.minimum(arrays["data"], 1)
    arrays["data"] = cast(arrays["data"], rng.choice(DTYPES))
    if rng.random() < 0.3 and form != "dia":  # whose offsets may be negative
        for name in NAMES[form]:
            arrays[name] = cast(arrays[name], rng.choice(INDEX_DTYPES))
    return arrays | {"format": np.array(form.encode()), "shape": np.array([rows, columns])}


# ------------------------------------------------------------------------------------------- arrays


def with_item(rng: random.Random, array: Any, values: tuple[Any, ...]) -> Any:
    if array.size == 0 or array.dtype.kind not in "fiub":
        return array
    array = array.copy()
    array.flat[rng.randrange(array.size)] = cast(np.array([rng.choice(values)]), array.dtype)[0]
    return array


def change_value(rng: random.Random, name: str, arrays: Arrays) -> None:
    arrays["data"] = with_item(rng, arrays["data"], VALUES)


def change_index(rng: random.Random, name: str, arrays: Arrays) -> None:
    if name not in ("data", "shape", "format"):
        wide = arrays[name].astype("i8") if arrays[name].dtype.kind in "iu" else arrays[name]
        arrays[name] = with_item(rng, wide, INDICES)


def change_size(rng: random.Random, name: str, arrays: Arrays) -> None:
    if rng.random() < 0.1 and arrays["shape"].shape == (2,):
        arrays["shape"][1] = 2**31 - 1  # so many rows would fill the memory
    else:
        arrays["shape"] = with_item(rng, arrays["shape"], SIZES)


def change_format(rng: random.Random, name: str, arrays: Arrays) -> None:
    text = rng.choice(FORMATS)
    arrays["format"] = np.array(
        rng.choice((text, text.encode(), text.encode(), [text], [text] * 2, [], 7, 1.5))
    )


def change_dtype(rng: random.Random, name: str, arrays: Arrays) -> None:
    good, bad = (DTYPES, BAD_DTYPES) if name == "data" else (INDEX_DTYPES, BAD_INDEX_DTYPES)
    if rng.random() < 0.3:
        arrays[name] = np.zeros(arrays[name].shape, rng.choice(bad))
    elif arrays[name].dtype.kind in "fiub":
        arrays[name] = cast(arrays[name], rng.choice((*good, "f8")))
        if arrays[name].dtype.kind == "f" and name != "data" and rng.random() < 0.5:
            arrays[name] += 0.5


def change_shape(rng: random.Random, name: str, arrays: Arrays) -> None:
    array = np.atleast_1d(arrays[name])
    arrays[name] = rng.choice(
        (
            *(array[:-1], array[:0], np.concatenate([array, array[-1:]]), np.concatenate([array, array])),
            *(array[None], array[..., None], array[..., :0], array[..., :-1], np.asfortranarray(array)),
            np.asfortranarray(np.stack([array, array])),
        )
    )
    if array.size and rng.random() < 0.1:
        arrays[name] = array.flat[0]


def pickle(rng: random.Random, name: str, arrays: Arrays) -> None:
    arrays[name] = np.array([Exploding()] * max(1, arrays[name].size), object)


def leave_out(rng: random.Random, name: str, arrays: Arrays) -> None:
    del arrays[name]


STEPS = (change_value, change_value, change_value, change_index, change_index, change_dtype, change_dtype)
STEPS += (change_size, change_format, change_shape, pickle, leave_out)


# ------------------------------------------------------------------------------------------- files


def damaged_header(rng: random.Random, member: bytes) -> bytes:
    """The bytes of one .npy file; the zip file around it will be whole."""
    at = rng.randrange(min(len(member), 80))
    return rng.choice(
        (
            *(mutate.put(member, at, at + 1, bytes([member[at] ^ 1 << bit])) for bit in range(8)),
            *[mutate.on_token(rb"\([0-9, ]*\)", SHAPES, rng, member)] * 4,
            *(member.replace(b"False", order, 1) for order in (b"True ", b"1    ", b"None ")),
            *(mutate.put(member, 6, 7, bytes([version])) for version in (0, 2, 3, 4, 255)),
            *(member + b"\0" * 8, mutate.truncate(rng, member)),
        )
    )


def flip_header_bit(rng: random.Random, data: bytes) -> bytes:
    """In the header of an array that is not compressed: its checksum is still that of before."""
    found = [match.end() for match in re.finditer(b"NUMPY", data)]
    at = min(rng.choice(found or [0]) + rng.randrange(70), len(data) - 1)
    return mutate.put(data, at, at + 1, bytes([data[at] ^ 1 << rng.randrange(8)]))


def halve_type(rng: random.Random, data: bytes) -> bytes:
    """As many items of half the size: the reader of an array then stops before its end."""
    return mutate.on_token(rb"(?<=descr': '[<>][iuf])8", (b"4", b"2"), rng, data)


def damaged_zip(rng: random.Random, data: bytes) -> bytes:
    """Its first bytes stay: whether more may stand before them is a matter of taste."""
    steps = (
        *[mutate.flip_bit, flip_header_bit, halve_type] * 2,
        mutate.set_byte,
        mutate.delete_bytes,
        mutate.truncate,
    )
    for _ in range(rng.choice((1, 1, 2, 3))):
        step = rng.choice((*steps, mutate.repeat_bytes, mutate.insert_token))
        data = data[:4] + step(rng, data[4:] or b"\0")
    return data


def pack(arrays: Arrays) -> dict[str, bytes]:
    members = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asanyarray(array), allow_pickle=True)
        members[f"{name}.npy"] = buffer.getvalue()
    return members


def zipped(rng: random.Random, members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name), member, archive.compression)  # with a fixed date
    return buffer.getvalue()


def odd_member(rng: random.Random, members: dict[str, bytes]) -> bytes:
    """A whole zip file in which a member is there twice, or packed as save_npz never does."""
    buffer, odd = io.BytesIO(), rng.choice(list(members))
    method = rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, None))
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, member in members.items():
            if name == odd and method is None:
                archive.writestr(zipfile.ZipInfo(name), rng.choice((member, members["data.npy"])))
            archive.writestr(zipfile.ZipInfo(name), member, method if name == odd else None)
    return buffer.getvalue()


def npz(rng: random.Random, arrays: Arrays, damage: str) -> bytes:
    if damage == "arrays":
        for _ in range(rng.choice((1, 1, 1, 2))):
            if arrays.keys() >= {"data", "shape", "format"}:
                rng.choice(STEPS)(rng, rng.choice(list(arrays)), arrays)
    if damage in ("none", "arrays") and rng.random() < 0.2:
        arrays["_is_array"] = np.array(True)
    members = pack(arrays)
    if damage == "header":
        name = rng.choice(list(members))
        members[name] = damaged_header(rng, members[name])
    if damage == "member":
        return odd_member(rng, members)
    data = zipped(rng, members)
    return damaged_zip(rng, data) if damage == "zip" else data


def counts(rng: random.Random, labels: int) -> dict[str, bytes]:
    """label_counts.npy as a run keeps it, or damaged."""
    array = np.array([rng.choice((0, 1, 7, 300, 2**31 - 1)) for _ in range(labels)], "i4")
    damage = rng.choice(("none", "value", "dtype", "shape", "header", "bytes"))
    if damage == "value":
        array = array.astype("i8")
        array[rng.randrange(labels)] = rng.choice((-1, -(2**31), 2**31, 2**63 - 1, -(2**63)))
    elif damage == "dtype":
        array = cast(array, rng.choice((*INDEX_DTYPES, *BAD_INDEX_DTYPES)))
    elif damage == "shape":
        array = rng.choice(
            (array[:-1], np.append(array, 1), array[None], array[:, None], array[:0], array[0])
        )
    member = pack({"counts": array})["counts.npy"]
    if damage == "header":
        member = damaged_header(rng, member)
    elif damage == "bytes":
        member = mutate.text(rng, member, (mutate.flip_bit, mutate.delete_bytes, mutate.truncate))
    return {"label_counts.npy": member}


def pair(rng: random.Random) -> dict[str, bytes]:
    """X.trn.npz and Y.trn.npz; one of them may be damaged."""
    rows = rng.randint(1, 6) if rng.random() < 0.95 else 800  # readers take long arrays in blocks
    widths = {"X.trn.npz": rng.randint(1, 20), "Y.trn.npz": rng.randint(1, 9)}
    damage = dict.fromkeys(widths, "none")
    damage[rng.choice(list(widths))] = rng.choice(
        ("none", *["arrays"] * 8, "header", "header", *["zip"] * 4, "member")
    )
    return {
        name: npz(rng, valid(rng, rows + (rng.random() < 0.02), width, name[0] == "Y"), damage[name])
        for name, width in widths.items()
    }

"""Files out of tar archives that nobody has to trust."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from mach_ext.data.files import PathLike
from mach_ext.data.sources import check_regular

MAX_MEMBERS = 10_000  # of an archive; the known ones have tens
MAX_BLOCK = 1 << 24  # bytes that tarfile may ask for at once, for a member's long name or its other headers


def extract(
    archive: PathLike, names: Mapping[str, str], folder: PathLike, *, max_bytes: int | None = None
) -> None:
    """Takes files out of a tar archive, under names of our own: what paths it claims can do no harm.

    Args:
        archive: the archive, plain or .gz, .bz2, .xz by its content.
        names: end of a regular file's path in the archive -> its name in ``folder``. The first one counts.
        folder: an existing folder.
        max_bytes: what the archive must not exceed when it is unpacked; None: anything.

    Raises:
        ValueError: damaged archive, or one that unpacks to too much.
    """
    check_regular(archive)
    try:
        with _open_archive(archive) as file, _open_tar(_Limited(file, max_bytes)) as tar:
            for count, member in enumerate(tar, start=1):
                if count > MAX_MEMBERS:
                    raise tarfile.ReadError(f"more than {MAX_MEMBERS} files in it")
                for end, name in names.items():
                    target = Path(folder) / name
                    plain = member.isreg() and not member.issparse()  # a hole takes no bytes in an archive
                    if plain and f"/{member.name}".endswith(f"/{end}") and not target.exists():
                        _write_member(tar, member, target)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        problem = str(error).partition("\n")[0][:200]
        raise ValueError(f"{archive}: the archive must be whole and undamaged, got: {problem}") from None


# What tarfile and the decompressors stumble with over a damaged archive.
_DAMAGE: tuple[type[Exception], ...] = (tarfile.TarError, zlib.error, lzma.LZMAError, OSError, EOFError)
_DAMAGE += (ValueError, OverflowError, RecursionError)


def _open_tar(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:")


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # a regular file
    with source, open(target, "wb") as file:
        while block := source.read(1 << 20):
            file.write(block)


def _open_archive(archive: PathLike) -> BinaryIO:
    """The archive's bytes, decompressed by what it begins with."""
    with open(archive, "rb") as file:
        first = file.read(6)
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if first.startswith(magic):
            return cast(BinaryIO, module.open(archive, "rb"))
    return open(archive, "rb")


class _Limited:
    """A file that does not go beyond a limit, nor give more at once than an honest archive is asked for.

    tarfile takes a header's word for how long a name or another header is, and reads it whole.
    """

    def __init__(self, file: BinaryIO, max_bytes: int | None) -> None:
        self._file, self._max = file, max_bytes
        self.tell, self.close = file.tell, file.close

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_BLOCK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        if offset < 0:
            raise tarfile.ReadError("a header of negative size")
        self._check(offset)
        return self._file.seek(offset)

    def _check(self, end: int) -> None:
        if self._max is not None and end > self._max:
            raise tarfile.ReadError(f"it unpacks to more than {self._max} bytes")

"""Extracting files from tar archives whose origin is not trusted."""

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

MAX_MEMBERS = 10_000  # files in an archive; the archives of known datasets have tens
MAX_BLOCK = 1 << 24  # bytes that tarfile may read at once, for a member's long name or another header


def extract(
    archive: PathLike, names: Mapping[str, str], folder: PathLike, *, max_bytes: int | None = None
) -> None:
    """Extracts files from a tar archive under names that the caller chooses.

    Paths in the archive are only compared with `names`. No path of the archive is ever written to, so a
    malicious path does no harm.

    Args:
        archive: The archive. Its content tells whether it is plain or compressed as .gz, .bz2 or .xz.
        names: Maps the end of a regular file's path in the archive to the file's name in `folder`. If several
            files match, the first is taken.
        folder: An existing folder.
        max_bytes: The largest size of the unpacked archive in bytes. None: no limit.

    Raises:
        ValueError: The archive is damaged or unpacks to more than `max_bytes`.
    """
    check_regular(archive)
    try:
        with _open_archive(archive) as file, _open_tar(_Limited(file, max_bytes)) as tar:
            for count, member in enumerate(tar, start=1):
                if count > MAX_MEMBERS:
                    raise tarfile.ReadError(f"more than {MAX_MEMBERS} files in it")
                for end, name in names.items():
                    target = Path(folder) / name
                    # A sparse file can unpack to any size, because its holes take no bytes in the archive.
                    plain = member.isreg() and not member.issparse()
                    if plain and f"/{member.name}".endswith(f"/{end}") and not target.exists():
                        _write_member(tar, member, target)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        problem = str(error).partition("\n")[0][:200]
        raise ValueError(f"{archive}: the archive must be whole and undamaged, got: {problem}") from None


# The exceptions that tarfile and the decompressors raise for a damaged archive.
_DAMAGE: tuple[type[Exception], ...] = (tarfile.TarError, zlib.error, lzma.LZMAError, OSError, EOFError)
_DAMAGE += (ValueError, OverflowError, RecursionError)


def _open_tar(file: Any) -> tarfile.TarFile:
    """Opens an uncompressed tar file for reading."""
    return tarfile.open(fileobj=file, mode="r:")


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Writes one regular file of an archive to `target`."""
    source = tar.extractfile(member)
    assert source is not None  # a regular file
    with source, open(target, "wb") as file:
        while block := source.read(1 << 20):
            file.write(block)


def _open_archive(archive: PathLike) -> BinaryIO:
    """Opens an archive and decompresses it according to its first bytes."""
    with open(archive, "rb") as file:
        first = file.read(6)
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if first.startswith(magic):
            return cast(BinaryIO, module.open(archive, "rb"))
    return open(archive, "rb")


class _Limited:
    """A file that ends in an error when too many bytes are read from it.

    tarfile believes a header that states how long a name or another header is, and reads all of it at once.
    So the size of a single read is limited, too.
    """

    def __init__(self, file: BinaryIO, max_bytes: int | None) -> None:
        """Wraps `file`. None as `max_bytes` means no limit of the total size."""
        self._file, self._max = file, max_bytes
        self.tell, self.close = file.tell, file.close

    def read(self, size: int) -> bytes:
        """Reads `size` bytes.

        Raises:
            tarfile.ReadError: The size is larger than an honest archive needs, or the total limit is passed.
        """
        if not 0 <= size <= MAX_BLOCK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        """Moves to a place in the file.

        Raises:
            tarfile.ReadError: The offset is negative or beyond the total limit.
        """
        if offset < 0:
            raise tarfile.ReadError("a header of negative size")
        self._check(offset)
        return self._file.seek(offset)

    def _check(self, end: int) -> None:
        """Refuses a position beyond the limit."""
        if self._max is not None and end > self._max:
            raise tarfile.ReadError(f"it unpacks to more than {self._max} bytes")

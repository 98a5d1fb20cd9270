"""Downloads that continue where an earlier attempt stopped."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mach_ext.data.files import PathLike
from mach_ext.data.parsing import quote


def download(
    url: str,
    path: PathLike,
    *,
    sha256: str | None = None,
    progress: bool = True,
    max_bytes: int | None = None,
) -> None:
    """Downloads a file. An interrupted download continues from the partial file `path` + `.part`.

    Args:
        url: The address.
        path: The file to write. It appears whole or not at all.
        sha256: The expected SHA-256 of the file. None: the content is not checked.
        progress: Show a progress bar.
        max_bytes: The largest accepted size in bytes, whatever the server announces. None: no limit.

    Raises:
        ConnectionError: There is no connection, or the server refuses or answers nonsense.
        ValueError: The SHA-256 differs, or the file is too large. The file is deleted.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import download
        >>> _ = Path("original.txt").write_text("hello")
        >>> download(Path("original.txt").absolute().as_uri(), "copy.txt", progress=False)
        >>> Path("copy.txt").read_text()
        'hello'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    while True:
        start = part.stat().st_size if part.exists() else 0
        try:
            whole = _download_rest(url, part, start, progress, max_bytes)
            problem = "the connection ended early"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
            ssl.SSLError,
        ) as error:
            whole, problem = False, str(error)
        if whole:
            break
        if not part.exists() or part.stat().st_size <= start:  # no progress, so another attempt is useless
            raise ConnectionError(f"{url}: could not be downloaded ({problem})")
    if sha256 is not None and (got := sha256_of(part)) != sha256:
        part.unlink()
        raise ValueError(f"{url}: the download must have sha256 {sha256}, got {got}; it was deleted")
    part.replace(path)


def _download_rest(url: str, part: Path, start: int, progress: bool, max_bytes: int | None) -> bool:
    """Appends the bytes from `start` on to `part`. Returns True if the file is then complete."""
    from mach_ext._progress import tqdm

    request = urllib.request.Request(url, headers={"User-Agent": "mach_ext"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # the server has no such bytes: `part` is complete, or the file has changed
                if error.headers.get("Content-Range", "") == f"bytes */{start}":
                    return True
                part.unlink()
        raise
    with response:
        if response.status != 206:
            start = 0  # the server sends all of it
        place = response.headers.get("Content-Range", f"bytes {start}-")
        if start and not place.startswith(f"bytes {start}-"):
            part.unlink()
            raise http.client.HTTPException(f"asked for bytes from {start} on, got {quote(place)}")
        total = _total(response, start)
        if max_bytes is not None and total is not None and total > max_bytes:
            raise ValueError(f"{url}: must have at most {max_bytes} bytes, got {total}")
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress
            ) as bar,
        ):
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
                if max_bytes is not None and file.tell() > max_bytes:
                    part.unlink()
                    raise ValueError(f"{url}: must have at most {max_bytes} bytes, got more; it was deleted")
    return total is None or part.stat().st_size == total


def _total(response: Any, start: int) -> int | None:
    """Returns the size of the whole file in bytes, as the server announces it. None: it announces none."""
    length = response.headers.get("Content-Length")
    if length is None:
        return None
    if not (length.isascii() and length.isdigit()):
        raise http.client.HTTPException(f"Content-Length must be a number, got {quote(length)}")
    return start + int(length[:19])


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

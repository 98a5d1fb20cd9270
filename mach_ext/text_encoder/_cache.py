"""The embedding cache: files of embeddings that are found by what they were computed from.

An entry is a folder, named by the digest of the encoder, the precision and the texts:

* `embeddings.npy` has the embeddings [N, E], float32. `embeddings.json` has their SHA-256. It is written
  last, so an entry is whole only with both.
* `blocks.partial` is there while the entry is filled. It begins with a digest of the plan, which is the sizes
  of blocks and batches. Then each block has its vectors, and in 32 bytes the SHA-256 of its number and
  vectors. Blocks are only ever appended, and each is on the disk before the next begins. After a kill, a
  power cut or a full disk the blocks up to the first damaged one still count. The rest is cut off.

The blocks hold distinct texts, longest first, so that a block and its batches are the same in every run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext._memory import size_in_words
from mach_ext.data.atomic import atomic_path
from mach_ext.data.downloads import sha256_of
from mach_ext.data.files import PathLike, delete_file
from mach_ext.data.home import lock_home
from mach_ext.data.json_text import write_json
from mach_ext.data.records import ANY, digest_of, read_record, seal
from mach_ext.data.temporaries import clear_temporaries

BLOCK_TOKENS = 1 << 15  # A block has so many tokens or more: some seconds of a small encoder on a core.
_SUM = 32  # bytes of a SHA-256
_TOGETHER = 4096  # rows of the final file that are written at a time
_SCHEMA = {
    "format": {1},
    "num_texts": range(2**62),
    "num_dense": range(2**31),
    "truncated": range(2**62),
    "embeddings_sha256": str,
    "encoder": {"*": ANY},
    "sha256": str,
}

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]


def corpus_key(encoder_digest: str, precision: str, texts: Sequence[str]) -> str:
    """Returns the SHA-256 of what embeddings are computed from. Each part has its length before it."""
    digest = hashlib.sha256(f"mach_ext embeddings 1 {encoder_digest} {precision} {len(texts)}\n".encode())
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def block_stops(lengths: Ints, batches: Sequence[slice]) -> Ints:
    """Returns where blocks of texts end. A block is whole batches with at least `BLOCK_TOKENS` in all.

    Args:
        lengths: Tokens of each text [U].
        batches: All batches in their order.
    """
    stops, tokens = [], 0
    for batch in batches:
        tokens += int(lengths[batch].sum())
        if tokens >= BLOCK_TOKENS or batch.stop == len(lengths):
            stops.append(batch.stop)
            tokens = 0
    return np.array(stops, np.int64)


class Blocks:
    """The file of blocks, open to go on.

    Args:
        path: The file.
        plan: What the embeddings are computed from and how. If the file has another plan, it begins anew.
        stops: Where each block of texts ends.
        num_dense: Entries of a vector.

    Attributes:
        done: The number of whole blocks in the file.
    """

    def __init__(self, path: Path, plan: str, stops: Ints, num_dense: int) -> None:
        self.path, self.stops, self.num_dense, self.done = path, stops, num_dense, 0
        self._plan = hashlib.sha256(f"{plan} {num_dense} {stops.tolist()}".encode()).digest()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._find_whole()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def texts_done(self) -> int:
        """How many texts the whole blocks hold."""
        return int(self.stops[self.done - 1]) if self.done else 0

    def append(self, vectors: Vectors) -> None:
        """Adds the next block [n, E], and waits until the disk has it."""
        content = np.ascontiguousarray(vectors, "<f4").tobytes()
        self._write(content + self._sum(self.done, content))
        self.done += 1

    def rows(self, texts: Ints) -> Vectors:
        """Returns the vectors of texts [n, E], all of them in whole blocks."""
        numbers = np.memmap(self.path, "<f4", "r")
        block = np.searchsorted(self.stops, texts, side="right")
        starts = _SUM // 4 * (1 + block) + texts * self.num_dense
        rows: Vectors = numbers[starts[:, None] + np.arange(self.num_dense)]
        return rows

    def _find_whole(self) -> None:
        """Counts the whole blocks, and cuts off what follows them."""
        end = 0
        with open(os.dup(self._descriptor), "rb") as file:
            if file.read(_SUM) == self._plan:
                end = _SUM
                for number, size in enumerate(np.diff(self.stops, prepend=0).tolist()):
                    content = file.read(4 * self.num_dense * size)
                    if file.read(_SUM) != self._sum(number, content):
                        break
                    self.done, end = number + 1, end + len(content) + _SUM
        os.ftruncate(self._descriptor, end)
        os.lseek(self._descriptor, end, os.SEEK_SET)
        if not end:
            self._write(self._plan)
            sync_folder(self.path.parent)

    @staticmethod
    def _sum(number: int, content: bytes) -> bytes:
        """Returns the SHA-256 of a block."""
        return hashlib.sha256(number.to_bytes(8, "little") + content).digest()

    def _write(self, content: bytes) -> None:
        """Writes all of the content at the end of the file, and waits until the disk has it."""
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as error:
            error.filename = str(self.path)
            raise


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the names of a folder's files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class EmbeddingCache:
    """The entry of some texts in the cache.

    Args:
        home: The folder of all entries.
        key: What the embeddings are computed from.
        shape: (N, E).
    """

    def __init__(self, home: PathLike, key: str, shape: tuple[int, int]) -> None:
        self.folder, self.key, self.shape = Path(home) / key, key, shape
        self._file, self._record = self.folder / "embeddings.npy", self.folder / "embeddings.json"
        self._blocks = self.folder / "blocks.partial"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Waits until no other process works on the entry, and locks it."""
        with lock_home(self.folder):
            self.folder.mkdir(exist_ok=True)
            clear_temporaries(self.folder)
            yield

    def read(self) -> tuple[Vectors, int] | None:
        """Returns the embeddings, mapped from their file, and how many texts were cut.

        Returns:
            None if there are none, or if they are damaged.
        """
        try:
            record = read_record(self._record, "a record of embeddings", _SCHEMA)
            is_whole = record["sha256"] == digest_of(record)
            is_whole = is_whole and (record["num_texts"], record["num_dense"]) == self.shape
            if not is_whole or sha256_of(self._file) != record["embeddings_sha256"]:
                return None
        except (FileNotFoundError, ValueError):
            return None
        delete_file(self._blocks)  # a kill may have left them beside the whole file
        return np.load(self._file, mmap_mode="r", allow_pickle=False), record["truncated"]

    def blocks(self, lengths: Ints, batches: Sequence[slice]) -> Blocks:
        """Opens the file of blocks, after a look at the room on the disk.

        Args:
            lengths: Tokens of each text in the blocks [U].
            batches: The batches that are embedded, in their order.

        Raises:
            OSError: There is too little room.
        """
        stops = block_stops(lengths, batches)
        row = 4 * self.shape[1]
        there = self._blocks.stat().st_size if self._blocks.exists() else 0
        needed = max(0, row * int(stops[-1]) - there) + row * self.shape[0]
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            sizes = f"the embeddings take {size_in_words(needed)}, and {size_in_words(free)} are free"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {sizes}", str(self.folder))
        plan = f"blocks 1 {self.key} {[batch.stop for batch in batches]}"
        return Blocks(self._blocks, plan, stops, self.shape[1])

    def finish(self, blocks: Blocks, rows: Ints, truncated: int, encoder: dict[str, Any]) -> None:
        """Makes the final files of the whole blocks.

        Args:
            blocks: The file of blocks, all of them whole.
            rows: The text in the blocks for each row of the embeddings [N].
            truncated: How many texts were cut.
            encoder: The record of the encoder, for people who look into the folder.
        """
        with atomic_path(self._file) as temporary:
            with open(temporary, "wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(rows), _TOGETHER):
                    file.write(blocks.rows(rows[start : start + _TOGETHER]).tobytes())
            digest = sha256_of(temporary)
        record = {
            "format": 1,
            "num_texts": self.shape[0],
            "num_dense": self.shape[1],
            "truncated": truncated,
            "embeddings_sha256": digest,
            "encoder": encoder,
        }
        write_json(self._record, seal(record))
        sync_folder(self.folder)
        delete_file(self._blocks)

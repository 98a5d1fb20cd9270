"""Reads documents that a model will predict labels for, block by block."""

from __future__ import annotations

import io
import itertools
import re
import select
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mach_ext._deprecation import renamed_names
from mach_ext._memory import memory_errors
from mach_ext.data.dataset import Columns
from mach_ext.data.dense import DenseRows
from mach_ext.data.files import PathLike, suffix_of
from mach_ext.data.folders.columns import fit_features
from mach_ext.data.folders.files import SVMLIGHT
from mach_ext.data.folders.read import read_svmlight_documents
from mach_ext.data.folders.vectors import read_features
from mach_ext.data.formats.jsonl import iter_jsonl, json_document
from mach_ext.data.formats.lines import decode_line, read_lines
from mach_ext.data.formats.xmc import iter_xmc
from mach_ext.data.hybrid import HybridMatrix
from mach_ext.data.matrices import Csr
from mach_ext.data.sources import BYTE_ORDER_MARK, MAX_LINE, check_line, open_input
from mach_ext.data.text import Vectorizer

TEXT_FORMATS = ("text", "jsonl")  # formats with one document a line, as text

# Names of files that `read_folder` reads as lines of text.
_TEXT_LINES = re.compile(r"X\.\w+\.txt|\w+_X\.txt")


@memory_errors("free memory first, or split the data", "data.iter_documents")
def iter_documents(
    path: PathLike,
    columns: Columns,
    *,
    svmlight_base: int | None = None,
    remarks: list[str] | None = None,
    block: int = 1024,
    format: str | None = None,
    dense: Any = None,
) -> Iterator[Csr | HybridMatrix]:
    r"""Reads the documents of a file as rows for a model, block by block. Labels in the file are ignored.

    A blank line is an empty document in XMC text and in lines of text. In JSON lines and in svmlight files
    blank lines are ignored, as in training.

    A name that ends in `.txt` can mean three formats. `_X_Xf.txt` at the end means the text format of
    deepxml. `X.tst.txt` or `tst_X.txt` means lines of text if the model takes texts. Every other name means
    XMC text.

    Args:
        path: A file that ends in `.jsonl` (texts), `.npz`, `.svm` or `.txt`. Each may be compressed as .gz,
            .xz or .bz2.
        columns: The model's columns. A file may have fewer features, and the others count as 0. A file with
            more features is refused.
        svmlight_base: Number of the first feature in svmlight files, if the model does not keep it.
        remarks: A list that the reader appends sentences for the user to.
        block: Number of texts at a time.
        format: One of `TEXT_FORMATS`, for a file of any name. None: the name decides.
        dense: The dense features [N, E] of the documents, a matrix or the path of a npy file. None: the text
            encoder of the model makes them of texts. Without one they are in the file that `dense_file_of`
            names.

    Yields:
        Rows [n, D], CSR float32. A model with dense features gets a `HybridMatrix`.

    Raises:
        FileNotFoundError: The model takes dense features, and there is no file of them.
        ValueError: The suffix is unknown, the file is bad, or it has more features than the model. The
            message gives the line.
        ValueError: The dense features do not have as many rows as there are documents.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import Columns, iter_documents
        >>> _ = Path("three.svm").write_text("0 1:0.5 3:1\n")
        >>> columns = Columns(num_features=4, num_labels=2, svmlight_base=1)
        >>> [X.toarray().tolist() for X in iter_documents("three.svm", columns)]
        [[[0.5, 0.0, 1.0, 0.0]]]
    """
    path, remarks, kind = Path(path), [] if remarks is None else remarks, suffix_of(path)
    if svmlight_base is not None and (format is not None or kind not in SVMLIGHT):
        remarks.append(f"{path}: is not an svmlight file; --svmlight-base is ignored")
    rows = DenseRows(columns, path, dense, path, remarks)
    if format is not None:
        with open_input(path) as file:
            yield from _of_stream(file, columns, rows, format, path, block)
    elif kind == ".jsonl":
        yield from _of_texts((text for text, _ in iter_jsonl(path)), columns, rows, block, path)
    elif kind == ".txt" and columns.vectorizer is not None and _TEXT_LINES.match(path.name):
        yield from _of_texts(read_lines(path), columns, rows, block, path)
    else:
        for X in _vectors(path, columns, svmlight_base, remarks):
            yield rows.beside(X)
    rows.check_end()


def _vectors(path: Path, columns: Columns, svmlight_base: int | None, remarks: list[str]) -> Iterator[Csr]:
    """Reads the vectors of a file, block by block."""
    kind = suffix_of(path)
    if kind == ".npz" or (kind == ".txt" and "_X_Xf.txt" in path.name):
        yield fit_features(read_features(path), columns.num_features, path, remarks)
    elif kind == ".txt":
        said: list[str] = []  # each block repeats the same remarks
        for split in iter_xmc(path):
            yield fit_features(split.X, columns.num_features, path, said)
        remarks += said[:1]
    elif kind in SVMLIGHT:
        yield read_svmlight_documents(path, columns, svmlight_base=svmlight_base)
    else:
        raise ValueError(
            f"{path}: must end in .jsonl, .txt, .svm or .npz (also .gz, .xz, .bz2), got {kind!r}"
        )


@memory_errors("free memory first, or split the data", "data.iter_vectors")
def iter_vectors(
    texts: Iterable[str],
    columns: Columns,
    block: int = 1024,
    source: PathLike = "text",
    dense: Any = None,
) -> Iterator[Csr | HybridMatrix]:
    """Turns texts into rows for a model, block by block.

    Args:
        texts: The documents.
        columns: The model's columns, with a vectorizer.
        block: Number of texts at a time.
        source: How messages call the texts.
        dense: The dense features [N, E] of the texts, a matrix or the path of a npy file. None: the text
            encoder of the model makes them.

    Yields:
        Rows [n, D], CSR float32. A model with dense features gets a `HybridMatrix`.

    Raises:
        ValueError: The model has no vectorizer, or there is no source of the dense features that it takes.

    Example:
        >>> from mach_ext.data import Columns, Vectorizer, iter_vectors
        >>> columns = Columns(2, 1, vectorizer=Vectorizer.fit(["cat dog", "cat dog"]))
        >>> [X.nnz for X in iter_vectors(["a dog", "dog, cat"], columns, block=1)]
        [1, 2]
    """
    _vectorizer(columns, source)  # refuses texts before anything else
    rows = DenseRows(columns, source, dense)
    yield from _of_texts(texts, columns, rows, block, source)
    rows.check_end()


def _of_texts(
    texts: Iterable[str], columns: Columns, rows: DenseRows, block: int, source: PathLike
) -> Iterator[Csr | HybridMatrix]:
    """Turns texts into rows, block by block."""
    vectorizer, texts = _vectorizer(columns, source), iter(texts)
    while chunk := list(itertools.islice(texts, block)):
        yield rows.beside(vectorizer.transform(chunk), chunk)


def _vectorizer(columns: Columns, source: PathLike) -> Vectorizer:
    """Returns the model's vectorizer.

    Raises:
        ValueError: The model has no vectorizer.
    """
    if columns.vectorizer is None:
        raise ValueError(
            f"{source}: the model was trained on vectors, not on text; predict --input takes files of "
            "vectors, explain --sample-id a document of the dataset"
        )
    return columns.vectorizer


def stream_documents(
    stream: Any,
    columns: Columns,
    *,
    format: str | None = None,
    source: PathLike = "standard input",
    block: int = 1024,
    dense: Any = None,
) -> Iterator[Csr | HybridMatrix]:
    r"""Reads the texts of a stream as rows for a model.

    A block holds as many lines as have arrived. So a document never waits for later documents.

    A line ends at a line feed. A carriage return before the line feed is removed. A blank line is an empty
    document in "text" and is ignored in "jsonl".

    Args:
        stream: A buffered binary stream.
        columns: The model's columns, with a vectorizer.
        format: One of `TEXT_FORMATS`. None: "jsonl" if the first line that is not blank is a JSON object
            whose "text" is a string, and "text" otherwise.
        source: How messages call the stream.
        block: Maximum number of lines at a time.
        dense: The dense features [N, E] of the documents, as in `iter_vectors`.

    Yields:
        Rows [n, D], CSR float32. A model with dense features gets a `HybridMatrix`.

    Raises:
        ValueError: A line is bad, the model has no vectorizer, or there is no source of the dense features
            that it takes. Documents before a bad line are yielded first.

    Example:
        >>> import io
        >>> from mach_ext.data import Columns, Vectorizer, stream_documents
        >>> columns = Columns(2, 1, vectorizer=Vectorizer.fit(["cat dog", "cat dog"]))
        >>> [X.getnnz(axis=1).tolist() for X in stream_documents(io.BytesIO(b"a cat\n\ndog, cat"), columns)]
        [[1, 0, 2]]
    """
    _vectorizer(columns, source)  # refuses texts before anything else
    rows = DenseRows(columns, source, dense)
    yield from _of_stream(stream, columns, rows, format, source, block)
    rows.check_end()


def _of_stream(
    stream: Any, columns: Columns, rows: DenseRows, format: str | None, source: PathLike, block: int
) -> Iterator[Csr | HybridMatrix]:
    """Turns the lines of a stream into rows, as many at a time as have arrived."""
    vectorizer, blocks, number = _vectorizer(columns, source), _blocks_of_lines(stream, block, source), 0
    if format is None:
        format, blocks = _format_of(blocks)
    for lines in blocks:
        texts, problem = [], None
        for line in lines:
            number += 1
            try:
                check_line(source, number, len(line))
                if format == "text":
                    texts.append(decode_line(line, f"{source}, line {number}"))
                elif line.strip():
                    texts.append(json_document(line, f"{source}, line {number}")[0])
            except ValueError as error:
                problem = error
                break
        if texts:
            yield rows.beside(vectorizer.transform(texts), texts)
        if problem is not None:
            raise problem


def _blocks_of_lines(stream: Any, max_lines: int, source: PathLike) -> Iterator[list[bytes]]:
    """Yields lines without their ends, at most `max_lines` at a time.

    A block is shorter if the next line has not arrived yet. If a line grows beyond the limit, the part that
    was read is the last line.
    """
    lines: list[bytes] = []
    parts, length = [b""], 0  # the pieces of a line whose end has not arrived
    first = True
    while True:
        try:
            piece = stream.read1(1 << 16)
        except OSError as error:
            if error.errno is None:  # raised by a decompressor, with a message of its own
                raise
            raise OSError(error.errno, error.strerror, str(source)) from None
        *ended, rest = piece.split(b"\n")
        if ended:
            ended[0] = b"".join([*parts, ended[0]])
            parts, length = [], 0
        parts.append(rest)
        length += len(rest)
        lines += ended
        is_last = not piece or length > MAX_LINE
        if is_last and (last := b"".join(parts)):
            lines.append(last)
        while len(lines) >= max_lines or (lines and (is_last or not _has_more(stream))):
            if first:
                lines[0], first = lines[0].removeprefix(BYTE_ORDER_MARK), False
            yield [line.removesuffix(b"\r") for line in lines[:max_lines]]
            lines = lines[max_lines:]
        if is_last:
            return


def _has_more(stream: Any) -> bool:
    """Returns whether a read would return at once."""
    try:
        return bool(select.select([stream], [], [], 0)[0])
    except (OSError, ValueError, TypeError, io.UnsupportedOperation):  # a stream in memory never waits
        return True


def _format_of(blocks: Iterator[list[bytes]]) -> tuple[str, Iterator[list[bytes]]]:
    """Finds the format from the first line that is not blank.

    Returns:
        The format, and all blocks including those that were looked at.
    """
    seen: list[bytes] = []
    for lines in blocks:
        seen += lines
        for line in lines:
            if line.strip():
                return "jsonl" if _is_json_document(line) else "text", itertools.chain([seen], blocks)
    return "text", iter([seen])


def _is_json_document(line: bytes) -> bool:
    """Returns whether a line is a JSON object with a document."""
    try:
        json_document(line, "")
    except ValueError:
        return False
    return True


__getattr__ = renamed_names(__name__, vectorised="mach_ext.data.documents.iter_vectors")

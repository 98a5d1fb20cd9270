"""Files of vectors with labels: npz, or deepxml's text."""

from __future__ import annotations

from pathlib import Path

from mach_ext.data.dataset import Split
from mach_ext.data.files import suffix_of
from mach_ext.data.folders.files import SplitFiles
from mach_ext.data.folders.reading import Reading
from mach_ext.data.formats.lines import read_lines
from mach_ext.data.formats.npz import load_npz, read_matrix
from mach_ext.data.formats.sparse_text import read_sparse_text
from mach_ext.data.matrices import Csr, check_labels, check_rows


def read_matrices(reading: Reading, files: SplitFiles) -> Split:
    """Reads a split of features and labels, and of texts if there are any."""
    X, Y = read_features(files.X, num_threads=reading.num_threads), read_labels(reading, files)
    check_rows(X, Y, files.X, files.Y or "")
    return Split(X, Y, None if files.texts is None else read_texts(files.texts, X.shape[0]))


def read_labels(reading: Reading, files: SplitFiles) -> Csr:
    """Reads the label matrix of a split."""
    assert files.Y is not None
    stored = (
        load_npz(files.Y) if is_npz(files.Y) else read_sparse_text(files.Y, num_threads=reading.num_threads)
    )
    Y = check_labels(stored, str(files.Y), allow_weights=False)
    if Y.nnz and stored.data.max() > 1:
        rule = "has numbers above 1 in place of labels; each label counts once"
        reading.remarks.append(f"{files.Y}: {rule}")
    return Y


def is_npz(path: Path) -> bool:
    """Returns whether a file's name says that it is npz."""
    return suffix_of(path) == ".npz"


def read_features(path: Path, *, num_threads: int = 0) -> Csr:
    r"""Reads documents without labels from an npz file or from deepxml's text.

    Args:
        path: The file. A name that ends in .npz says that it is npz.
        num_threads: Threads of the text parser. 0: all cores.

    Returns:
        Features [N, D], canonical float32 CSR.

    Raises:
        ValueError: The file is bad.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data.folders import read_features
        >>> _ = Path("tst_X_Xf.txt").write_text("1 3\n0:0.5 2:1\n")
        >>> read_features(Path("tst_X_Xf.txt")).toarray()
        array([[0.5, 0. , 1. ]], dtype=float32)
    """
    return read_matrix(path) if is_npz(path) else read_sparse_text(path, num_threads=num_threads)


def read_texts(path: Path, rows: int) -> list[str]:
    """Reads the texts of a split. There must be `rows` lines."""
    texts = read_lines(path)
    if len(texts) != rows:
        raise ValueError(f"{path}: must have {rows} lines, one a document, got {len(texts)}")
    return texts

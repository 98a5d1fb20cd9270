"""Documents that a model is asked about: read by the model's columns, block by block."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from .._memory import memory_errors
from .dataset import Columns
from .files import PathLike, suffix_of
from .folders import SVMLIGHT, fit_features, read_features, read_svmlight_documents
from .formats import iter_jsonl, iter_xmc, read_lines
from .matrices import Csr

_TEXT_LINES = re.compile(r"X\.\w+\.txt|\w+_X\.txt")  # names that `read_folder` takes for lines of text


@memory_errors("free memory first, or split the data", "data.iter_documents")
def iter_documents(
    path: PathLike,
    columns: Columns,
    *,
    svmlight_base: int | None = None,
    remarks: list[str] | None = None,
    block: int = 1024,
) -> Iterator[Csr]:
    """Documents of a file as rows for a model, block by block; labels in the file are passed over.

    Args:
        path: ``.jsonl`` (texts), ``.npz``, ``.svm`` or ``.txt``, each also .gz, .xz, .bz2. ``.txt`` is XMC
            text; deepxml's where it ends in ``_X_Xf.txt``; lines of text where it is called as such
            (``X.tst.txt``, ``tst_X.txt``) and the model takes texts.
        columns: of the model. A file may have fewer features, the others count as 0, but not more.
        svmlight_base: number of the first feature in svmlight files, where the model does not keep it.
        remarks: takes what a reader has to say, in sentences.
        block: texts at a time.

    Raises:
        ValueError: another suffix; a bad file, with the line; more features than the model has.

    Example:
        >>> from pathlib import Path
        >>> from mach_ext.data import Columns, iter_documents
        >>> _ = Path("three.svm").write_text("0 1:0.5 3:1\\n")
        >>> columns = Columns(num_features=4, num_labels=2, svmlight_base=1)
        >>> [X.toarray().tolist() for X in iter_documents("three.svm", columns)]
        [[[0.5, 0.0, 1.0, 0.0]]]
    """
    path, remarks, kind = Path(path), [] if remarks is None else remarks, suffix_of(path)
    if kind == ".jsonl":
        yield from vectorised((text for text, _ in iter_jsonl(path)), columns, block, path)
    elif kind == ".npz" or (kind == ".txt" and "_X_Xf.txt" in path.name):
        yield fit_features(read_features(path), columns.num_features, path, remarks)
    elif kind == ".txt" and columns.vectorizer is not None and _TEXT_LINES.match(path.name):
        yield from vectorised(read_lines(path), columns, block, path)
    elif kind == ".txt":
        said: list[str] = []  # the same of each block
        for split in iter_xmc(path):
            yield fit_features(split.X, columns.num_features, path, said)
        remarks += said[:1]
    elif kind in SVMLIGHT:
        yield read_svmlight_documents(path, columns, svmlight_base=svmlight_base)
    else:
        raise ValueError(
            f"{path}: must end in .jsonl, .txt, .svm or .npz (also .gz, .xz, .bz2), got {kind!r}"
        )


@memory_errors("free memory first, or split the data", "data.vectorised")
def vectorised(
    texts: Iterable[str], columns: Columns, block: int = 1024, source: PathLike = "text"
) -> Iterator[Csr]:
    """Texts as rows for a model, block by block.

    Raises:
        ValueError: the model has no vectorizer.
    """
    if columns.vectorizer is None:
        raise ValueError(
            f"{source}: the model was trained on vectors, not on text; predict --input takes files of "
            "vectors, explain --sample-id a document of the dataset"
        )
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, block)):
        yield columns.vectorizer.transform(chunk)

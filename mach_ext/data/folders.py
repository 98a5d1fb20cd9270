"""Folders of files: which of them make a dataset.

| format | files of a folder (each also .gz, .xz or .bz2) | says |
|---|---|---|
| XMC text | ``train.txt`` | ``N D L`` line, then ``l1,l2 idx:value ...`` lines, 0-based |
| svmlight | ``train.svm`` (``.svmlight``, ``.libsvm``) | the same without header; 0- or 1-based |
| SciPy npz | ``X.trn.npz`` + ``Y.trn.npz`` (the PECOS layout) | two CSR matrices |
| JSON lines | ``train.jsonl`` | ``{"text": "...", "labels": ["name", ...]}`` a line |

``dev`` and ``test`` (``dev``/``tst`` in npz names) go beside ``train``. Optional: ``labels.txt`` and
``features.txt``, one name a line in id order (``name`` or ``id TAB name``); for npz also the texts,
``X.trn.txt``; ``vectorizer.json`` (see :class:`mach_ext.data.Vectorizer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .dataset import Dataset, Split
from .files import COMPRESSIONS, PathLike, new_folder, read_bytes
from .formats import (
    label_matrix,
    read_jsonl,
    read_lines,
    read_names,
    read_npz,
    read_svmlight,
    read_xmc,
    write_npz,
    write_xmc,
)
from .text import Vectorizer

_SVMLIGHT = (".svm", ".svmlight", ".libsvm")
_NPZ_NAMES = {"train": ("trn", "train"), "dev": ("dev", "val"), "test": ("tst", "test")}


def _find(folder: Path, *names: str) -> Path | None:
    """The one file of these names, plain or compressed."""
    found = [folder / (name + end) for name in names for end in ("", *COMPRESSIONS)]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder}: must have one of these, got {', '.join(path.name for path in found)}")
    return found[0] if found else None


def _find_npz(folder: Path, letter: str, split: str) -> Path | None:
    names = [f"{letter}.{name}.npz" for name in _NPZ_NAMES[split]]
    return _find(folder, *names) or _find(folder / "tfidf-attnxml", *names)


def read_folder(folder: PathLike, *, name: str | None = None, num_threads: int = 0) -> Dataset:
    """Reads a folder as described at the top of this module; ``dev`` and ``test`` may be missing.

    JSON lines become features through a :class:`Vectorizer` fitted on train; their labels are those of
    ``labels.txt``, else all that occur, sorted.

    Args:
        folder: the folder.
        name: the dataset's name; default: the folder's.
        num_threads: as in :func:`read_xmc`.

    Raises:
        FileNotFoundError: no train file.
        ValueError: files of two formats, sizes that disagree, or a bad file.
    """
    folder = Path(folder)
    found: dict[str, dict[str, Path]] = {}
    for split in _NPZ_NAMES:
        for kind, path in {
            "npz": _find_npz(folder, "X", split),
            "xmc": _find(folder, f"{split}.txt"),
            "svmlight": _find(folder, *(split + suffix for suffix in _SVMLIGHT)),
            "jsonl": _find(folder, f"{split}.jsonl"),
        }.items():
            if path is not None:
                found.setdefault(kind, {})[split] = path
    found = {kind: files for kind, files in found.items() if "train" in files}
    if not found:
        there = sorted(path.name for path in folder.iterdir())[:20]
        raise FileNotFoundError(
            f"{folder}: must have train.txt (XMC), train.svm, train.jsonl, or X.trn.npz with Y.trn.npz, also "
            f"as .gz, .xz or .bz2, got {there}"
        )
    if len(found) > 1:
        raise ValueError(f"{folder}: train must be there in one format, got {', '.join(sorted(found))}")
    (kind, files), *_ = found.items()
    vectorizer, label_names = None, None
    if (path := _find(folder, "vectorizer.json")) is not None:
        vectorizer = Vectorizer.from_json(read_bytes(path), source=str(path))
    labels_path = _find(folder, "labels.txt", "output-items.txt")

    splits: dict[str, Split] = {}
    if kind == "xmc":
        splits = {split: read_xmc(path, num_threads=num_threads) for split, path in files.items()}
    elif kind == "svmlight":
        read = read_svmlight(list(files.values()), num_threads=num_threads)
        splits = dict(zip(files, read, strict=True))
    elif kind == "npz":
        for split, path in files.items():
            Y_path = _find_npz(folder, "Y", split)
            if Y_path is None:
                raise FileNotFoundError(f"{folder}: {path.name} must come with Y.{_NPZ_NAMES[split][0]}.npz")
            splits[split] = read_npz(path, Y_path)
            text_path = _find(folder, *(f"X.{part}.txt" for part in _NPZ_NAMES[split]))
            if text_path is not None:
                texts = read_lines(text_path)
                if len(texts) != len(splits[split]):
                    rule = f"{text_path}: must have {len(splits[split])} lines, one a document"
                    raise ValueError(f"{rule}, got {len(texts)}")
                splits[split] = Split(splits[split].X, splits[split].Y, texts)
    else:
        documents = {split: read_jsonl(path) for split, path in files.items()}
        if labels_path is not None:
            label_names = read_names(labels_path)
        else:
            label_names = sorted({x for _, rows in documents.values() for names in rows for x in names})
        vectorizer = vectorizer or Vectorizer.fit(documents["train"][0])
        for split, (texts, labels) in documents.items():
            Y = label_matrix(labels, label_names, files[split])
            splits[split] = Split(vectorizer.transform(texts), Y, texts)

    D, L = splits["train"].X.shape[1], splits["train"].Y.shape[1]
    for split, data in splits.items():
        if (data.X.shape[1], data.Y.shape[1]) != (D, L):
            raise ValueError(
                f"{files[split]}: D and L must be those of train, {D} and {L}, got {data.X.shape[1]} and "
                f"{data.Y.shape[1]}"
            )
    if label_names is None and labels_path is not None:
        label_names = read_names(labels_path, L)
    features_path = _find(folder, "features.txt")
    if features_path is not None:
        feature_names: Sequence[str] | None = read_names(features_path, D)
    else:
        feature_names = vectorizer.vocabulary if vectorizer else None
    if vectorizer and len(vectorizer.vocabulary) != D:
        raise ValueError(
            f"{folder / 'vectorizer.json'}: must have D = {D} words, got {len(vectorizer.vocabulary)}"
        )
    dev_rule = f"the file {files['dev'].name}" if "dev" in files else "none"
    return Dataset(
        name=name or folder.resolve().name,
        path=folder,
        label_names=label_names,
        feature_names=feature_names,
        vectorizer=vectorizer,
        dev_rule=dev_rule,
        **splits,
    )


def write_folder(folder: PathLike, dataset: Dataset, *, format: str = "npz", compression: str = "") -> None:
    """Writes a dataset as a folder that :func:`read_folder` reads; the folder appears whole or not at all.

    Args:
        folder: the folder to create; it must not exist.
        dataset: what to write. A ``dev`` that was held out of train is written as a file of its own.
        format: "npz" (with the texts, each on one line) or "xmc"; both keep every value exactly.
        compression: for "xmc": "", ".gz", ".xz" or ".bz2".

    Raises:
        FileExistsError: the folder exists.
        ValueError: unknown format or compression.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scipy import sparse
        >>> from mach_ext.data import Dataset, Split, read_folder, write_folder
        >>> folder = Path(tempfile.mkdtemp()) / "eye"
        >>> write_folder(folder, Dataset("eye", folder, train=Split(sparse.eye(4), sparse.eye(4))))
        >>> read_folder(folder).num_labels
        4
    """
    folder = Path(folder)
    if format not in ("npz", "xmc"):
        raise ValueError(f"write_folder: format must be npz or xmc, got {format!r}")
    if compression not in ("", *COMPRESSIONS):
        raise ValueError(
            f"write_folder: compression must be one of {list(COMPRESSIONS)}, got {compression!r}"
        )
    if folder.exists():
        raise FileExistsError(f"{folder}: must not exist yet")
    with new_folder(folder) as temporary:
        for split, data in dataset.splits.items():
            if format == "xmc":
                write_xmc(temporary / f"{split}.txt{compression}", data.X, data.Y)
                continue
            part = _NPZ_NAMES[split][0]
            write_npz(temporary / f"X.{part}.npz", data.X)
            write_npz(temporary / f"Y.{part}.npz", data.Y)
            if data.texts is not None:
                _write_lines(temporary / f"X.{part}.txt", data.texts)
        if dataset.label_names is not None:
            _write_lines(temporary / "labels.txt", dataset.label_names)
        if dataset.feature_names is not None:
            _write_lines(temporary / "features.txt", dataset.feature_names)
        if dataset.vectorizer is not None:
            (temporary / "vectorizer.json").write_text(dataset.vectorizer.to_json(), encoding="utf-8")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(" ".join(line.split()) + "\n" for line in lines), encoding="utf-8", newline="\n")

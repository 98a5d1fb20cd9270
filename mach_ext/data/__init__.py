"""Data in: file formats, datasets by name, raw text, mini-batches.

:func:`load` takes a name or a folder and returns a :class:`Dataset` of checked SciPy CSR matrices.
"""

from .batching import Batch, iter_batches, iter_on_device
from .dataset import Dataset, Split
from .files import atomic_path, atomic_write, write_json
from .folders import read_folder, write_folder
from .formats import (
    iter_jsonl,
    iter_xmc,
    label_matrix,
    read_jsonl,
    read_matrix,
    read_names,
    read_npz,
    read_svmlight,
    read_xmc,
    write_npz,
    write_xmc,
)
from .matrices import check_csr, check_labels, row_features, row_lengths
from .registry import NAMES, data_home, download, fetch, load
from .text import Vectorizer, json_line

__all__ = [
    "NAMES",
    "Batch",
    "Dataset",
    "Split",
    "Vectorizer",
    "atomic_path",
    "atomic_write",
    "check_csr",
    "check_labels",
    "data_home",
    "download",
    "fetch",
    "iter_batches",
    "iter_jsonl",
    "iter_on_device",
    "iter_xmc",
    "json_line",
    "label_matrix",
    "load",
    "read_folder",
    "read_jsonl",
    "read_matrix",
    "read_names",
    "read_npz",
    "read_svmlight",
    "read_xmc",
    "row_features",
    "row_lengths",
    "write_folder",
    "write_json",
    "write_npz",
    "write_xmc",
]

"""Data in: file formats, datasets by name, raw text, mini-batches.

:func:`load` takes a name or a folder and returns a :class:`Dataset` of checked SciPy CSR matrices.
"""

from .batching import Batch, iter_batches, iter_on_device
from .dataset import HOLDOUT_RULE, Columns, Dataset, Split
from .documents import TEXT_FORMATS, iter_documents, stream_documents, vectorised
from .files import atomic_path, atomic_write, write_json
from .folders import read_file, read_folder, write_folder
from .formats import (
    decode_line,
    iter_jsonl,
    iter_xmc,
    label_matrix,
    name_key,
    read_jsonl,
    read_matrix,
    read_names,
    read_npz,
    read_svmlight,
    read_xmc,
    write_npz,
    write_xmc,
)
from .matrices import as_scipy, check_columns, check_csr, check_labels, row_features, row_lengths
from .registry import NAMES, data_home, download, fetch, hold_out, is_registered, known_name, load, locate
from .text import Vectorizer, json_line

__all__ = [
    "HOLDOUT_RULE",
    "NAMES",
    "TEXT_FORMATS",
    "Batch",
    "Columns",
    "Dataset",
    "Split",
    "Vectorizer",
    "as_scipy",
    "atomic_path",
    "atomic_write",
    "check_columns",
    "check_csr",
    "check_labels",
    "data_home",
    "decode_line",
    "download",
    "fetch",
    "hold_out",
    "is_registered",
    "iter_batches",
    "iter_documents",
    "iter_jsonl",
    "iter_on_device",
    "iter_xmc",
    "json_line",
    "known_name",
    "label_matrix",
    "load",
    "locate",
    "name_key",
    "read_file",
    "read_folder",
    "read_jsonl",
    "read_matrix",
    "read_names",
    "read_npz",
    "read_svmlight",
    "read_xmc",
    "row_features",
    "row_lengths",
    "stream_documents",
    "vectorised",
    "write_folder",
    "write_json",
    "write_npz",
    "write_xmc",
]

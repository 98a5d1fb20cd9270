r"""Everything between a file and a mini-batch: file formats, named datasets, raw text, batches.

`load` takes a dataset's name or a folder. It returns a `Dataset` whose SciPy CSR matrices have been checked.

Example:
    >>> from pathlib import Path
    >>> from mach_ext.data import load
    >>> Path("tiny").mkdir()
    >>> _ = Path("tiny/train.txt").write_text("2 5 3\n0,2 1:0.5 4:2\n1 0:1\n")
    >>> data = load("tiny")
    >>> data.num_labels, data.num_features, len(data.train)
    (3, 5, 2)

Constants state which names and formats the functions accept, and which documents are held out.

    >>> from mach_ext.data import HOLDOUT_RULE, NAMES, TEXT_FORMATS, hold_out
    >>> NAMES[:3], TEXT_FORMATS  # names of datasets, and formats with a text on each line
    (('wordnet', 'eurlex-4k', 'wiki10-31k'), ('text', 'jsonl'))
    >>> _ = Path("tiny/train.txt").write_text("20 5 3\n" + 20 * "0,2 1:0.5 4:2\n")
    >>> data = hold_out(load("tiny"))
    >>> len(data.dev), data.dev_rule == HOLDOUT_RULE
    (2, True)
"""

from mach_ext._deprecation import renamed_names
from mach_ext.data.atomic import atomic_path, atomic_write
from mach_ext.data.batching import Batch, iter_batches, iter_on_device
from mach_ext.data.dataset import HOLDOUT_RULE, Columns, Dataset, Split, hold_out
from mach_ext.data.dense import dense_file_of, read_dense
from mach_ext.data.documents import TEXT_FORMATS, iter_documents, iter_vectors, stream_documents
from mach_ext.data.downloads import download
from mach_ext.data.embeddings import TextEmbeddings
from mach_ext.data.folders.read import read_file, read_folder
from mach_ext.data.folders.write import write_folder
from mach_ext.data.formats.jsonl import iter_jsonl, read_jsonl
from mach_ext.data.formats.lines import decode_line
from mach_ext.data.formats.names import label_matrix, name_key, read_names
from mach_ext.data.formats.npz import read_matrix, read_npz, write_npz
from mach_ext.data.formats.svmlight import read_svmlight
from mach_ext.data.formats.xmc import iter_xmc, read_xmc, write_xmc
from mach_ext.data.home import data_home
from mach_ext.data.hybrid import HybridMatrix, check_dense, row_features
from mach_ext.data.json_text import json_line, write_json
from mach_ext.data.label_names import names_tell, with_label_names
from mach_ext.data.matrices import as_scipy, check_columns, check_csr, check_labels, row_lengths
from mach_ext.data.registry import NAMES, fetch, is_registered, known_name, load, locate
from mach_ext.data.text import Vectorizer

__all__ = [
    "HOLDOUT_RULE",
    "NAMES",
    "TEXT_FORMATS",
    "Batch",
    "Columns",
    "Dataset",
    "HybridMatrix",
    "Split",
    "TextEmbeddings",
    "Vectorizer",
    "as_scipy",
    "atomic_path",
    "atomic_write",
    "check_columns",
    "check_csr",
    "check_dense",
    "check_labels",
    "data_home",
    "decode_line",
    "dense_file_of",
    "download",
    "fetch",
    "hold_out",
    "is_registered",
    "iter_batches",
    "iter_documents",
    "iter_jsonl",
    "iter_on_device",
    "iter_vectors",
    "iter_xmc",
    "json_line",
    "known_name",
    "label_matrix",
    "load",
    "locate",
    "name_key",
    "names_tell",
    "read_dense",
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
    "with_label_names",
    "write_folder",
    "write_json",
    "write_npz",
    "write_xmc",
]

__getattr__ = renamed_names(__name__, vectorised="mach_ext.data.iter_vectors")

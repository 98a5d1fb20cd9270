r"""Readers and writers of single files: XMC text, svmlight, SciPy npz, JSON lines and lists of names.

A reader checks a file completely. So matrices have sorted, unique indices and finite values. A file that
breaks a rule raises a ValueError with the file, the line, the rule and what stands there.

Example:
    >>> from pathlib import Path
    >>> from mach_ext.data.formats import read_xmc
    >>> _ = Path("train.txt").write_text("2 5 3\n0,2 1:0.5 4:2\n1 0:1\n")
    >>> documents = read_xmc("train.txt")
    >>> documents.X.shape, documents.Y.shape
    ((2, 5), (2, 3))
    >>> _ = Path("broken.txt").write_text("2 5 3\n0,2 1:0.5 4:2\n1 9:1\n")
    >>> try:
    ...     read_xmc("broken.txt")
    ... except ValueError as error:
    ...     print(error)
    broken.txt, line 3: a feature must be below D = 5, got '9:1'
"""

from mach_ext.data.formats.jsonl import iter_jsonl, json_document, read_jsonl
from mach_ext.data.formats.lines import decode_line, read_lines
from mach_ext.data.formats.names import Names, label_matrix, name_key, read_names, read_numbered_names
from mach_ext.data.formats.npz import load_npz, read_array, read_matrix, read_npz, write_npz
from mach_ext.data.formats.sparse_text import read_pairs, read_sparse_text
from mach_ext.data.formats.svmlight import counts_from_one, parse_svmlight, read_svmlight, shift_svmlight
from mach_ext.data.formats.xmc import iter_xmc, read_xmc, write_xmc

__all__ = [
    "Names",
    "counts_from_one",
    "decode_line",
    "iter_jsonl",
    "iter_xmc",
    "json_document",
    "label_matrix",
    "load_npz",
    "name_key",
    "parse_svmlight",
    "read_array",
    "read_jsonl",
    "read_lines",
    "read_matrix",
    "read_names",
    "read_npz",
    "read_numbered_names",
    "read_pairs",
    "read_sparse_text",
    "read_svmlight",
    "read_xmc",
    "shift_svmlight",
    "write_npz",
    "write_xmc",
]

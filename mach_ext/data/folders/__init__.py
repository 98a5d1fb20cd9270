r"""Folders of files that make a dataset.

| format | files of a folder (each also .gz, .xz or .bz2) | content |
|---|---|---|
| XMC text | `train.txt` | `N D L` line, then `l1,l2 idx:value ...` lines, 0-based |
| svmlight | `train.svm` (`.svmlight`, `.libsvm`) | the same without header; 0- or 1-based |
| SciPy npz | `X.trn.npz` + `Y.trn.npz` (the PECOS layout) | two CSR matrices |
| deepxml's | `trn_X_Xf.txt` + `trn_X_Y.txt` | `N C` line, then `column:value ...` lines, 0-based |
| text lines | `X.trn.txt` or `trn_X.txt`, with labels as in the two rows above | a text on each line |
| JSON lines | `train.jsonl` | `{"text": "...", "labels": ["name", ...]}` on each line |

Files of `dev` and `test` stand beside those of `train`. Names that have `trn` for train have `dev` and `tst`
for the others. These files are optional.

* `labels.txt` and `features.txt` hold the names of columns. Each line is `name` or `id TAB name`, in the
  order of ids. `labels.json` and `features.json` hold lists of names instead.
* `X.trn.txt` beside matrices holds the documents' texts.
* `X.trn.dense.npy` or `train.dense.npy` holds dense features of the documents, such as embeddings [N, E]. It
  may also have the name of the documents' file, as `dense_file_of` gives it. All splits have such a file, or
  none. It is memory-mapped, so it must not be compressed.
* `vectorizer.json` holds a `mach_ext.data.Vectorizer`.
* `filter_labels_test.txt` holds pairs `document label` that a metric must not count as answers.

A file may have fewer columns than train or the model. The missing columns are empty. A file with more
features is refused. Labels that a model does not know are kept apart and count as misses.

Example:
    >>> from pathlib import Path
    >>> from mach_ext.data.folders import SVMLIGHT, read_folder, write_folder
    >>> SVMLIGHT  # endings of svmlight files
    ('.svm', '.svmlight', '.libsvm')
    >>> Path("tiny").mkdir()
    >>> for split in ("train", "test"):
    ...     _ = Path("tiny", split + SVMLIGHT[0]).write_text("0,2 1:0.5 4:2\n1 2:1\n")
    >>> data = read_folder("tiny")
    >>> {name: split.X.shape for name, split in data.splits.items()}
    {'train': (2, 4), 'test': (2, 4)}
    >>> write_folder("copy", data, format="xmc")
    >>> sorted(file.name for file in Path("copy").iterdir())
    ['test.txt', 'train.txt']
"""

from mach_ext.data.folders.columns import fit_features
from mach_ext.data.folders.files import SVMLIGHT
from mach_ext.data.folders.read import read_file, read_folder, read_svmlight_documents
from mach_ext.data.folders.svmlight import first_id
from mach_ext.data.folders.vectors import read_features
from mach_ext.data.folders.write import write_folder

__all__ = [
    "SVMLIGHT",
    "first_id",
    "fit_features",
    "read_features",
    "read_file",
    "read_folder",
    "read_svmlight_documents",
    "write_folder",
]

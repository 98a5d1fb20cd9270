"""Folders of files: which of them make a dataset.

| format | files of a folder (each also .gz, .xz or .bz2) | says |
|---|---|---|
| XMC text | ``train.txt`` | ``N D L`` line, then ``l1,l2 idx:value ...`` lines, 0-based |
| svmlight | ``train.svm`` (``.svmlight``, ``.libsvm``) | the same without header; 0- or 1-based |
| SciPy npz | ``X.trn.npz`` + ``Y.trn.npz`` (the PECOS layout) | two CSR matrices |
| deepxml's | ``trn_X_Xf.txt`` + ``trn_X_Y.txt`` | ``N C`` line, then ``column:value ...`` lines, 0-based |
| text lines | ``X.trn.txt`` or ``trn_X.txt``, with labels as in the two rows above | one text a line |
| JSON lines | ``train.jsonl`` | ``{"text": "...", "labels": ["name", ...]}`` a line |

``dev`` and ``test`` (``dev``/``tst`` in the names with ``trn``) go beside ``train``. Optional: ``labels.txt``
and ``features.txt``, one name a line in id order (``name`` or ``id TAB name``), or JSON lists of names,
``labels.json`` and ``features.json``; for matrices also the texts, ``X.trn.txt``; ``vectorizer.json`` (see
:class:`mach_ext.data.Vectorizer`); ``filter_labels_test.txt``, pairs ``document label`` that a metric must
not count as answers.

A file may have fewer columns than train, or than the model it is read for: the others are empty. It may not
have more features. Labels that a model does not know are kept apart, as misses.
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

"""Extreme multi-label classification with MACH: operators, hashing, models and metrics.

Start with `mach_ext.train` and `mach_ext.Run`, which do what the command `mach-ext` does. A training loop of
your own uses `mach_ext.LabelHash`, `mach_ext.MACH` and `mach_ext.functional`. README.md gives an overview.

Example:
    >>> import numpy as np, scipy.sparse, mach_ext
    >>> X = scipy.sparse.csr_matrix(np.eye(4, dtype=np.float32))  # 4 documents; document n has label n
    >>> model = mach_ext.MACH(4, 4, 8, 4, hidden_size=0, merge="mean_logprob")
    >>> mach_ext.fit_svm(model, X, X, progress=False)
    >>> scores, labels = model.predict(X, k=1)
    >>> mach_ext.metrics.precision_at_k(X, labels, k=1)
    1.0
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from mach_ext import _terminal as _terminal  # first, because Ctrl-C can come during the imports
from mach_ext._version import __version__ as __version__

# The command imports what it needs, when it needs it, so that --help and completion answer at once.
if TYPE_CHECKING or not _terminal.is_command():
    # isort: split
    from mach_ext import _ops as _ops  # first, because its error says how to build missing libraries

    # isort: split
    from mach_ext import data, functional, metrics, optim
    from mach_ext.hashing import CollisionWarning, LabelHash
    from mach_ext.head import MACHHead
    from mach_ext.neighbors import Neighbors
    from mach_ext.nn import MACH, load
    from mach_ext.quantized import QuantizedMACH, quantize
    from mach_ext.svm import fit_svm
    from mach_ext.training import fit

if TYPE_CHECKING:
    from mach_ext import attack, certify, explain, runs
    from mach_ext.runs import Run, train

__all__ = [
    "MACH",
    "CollisionWarning",
    "LabelHash",
    "MACHHead",
    "Neighbors",
    "QuantizedMACH",
    "Run",
    "attack",
    "certify",
    "data",
    "explain",
    "fit",
    "fit_svm",
    "functional",
    "load",
    "metrics",
    "optim",
    "quantize",
    "runs",
    "train",
]


_MODULES = (
    "attack", "certify", "compression", "data", "distributed", "explain", "functional", "hashing", "head",
    "merges", "metrics", "neighbors", "nn", "optim", "quantized", "runs", "sklearn", "svm", "text_encoder",
    "training",
)  # fmt: skip
_PLACES = {
    "CollisionWarning": "hashing",
    "LabelHash": "hashing",
    "MACH": "nn",
    "MACHHead": "head",
    "Neighbors": "neighbors",
    "QuantizedMACH": "quantized",
    "Run": "runs",
    "fit": "training",
    "fit_svm": "svm",
    "load": "nn",
    "quantize": "quantized",
    "train": "runs",
}


def __getattr__(name: str) -> Any:
    """Import on first use the modules that few programs need, which saves 50 ms."""
    if name in _MODULES:
        return _import_module(f"mach_ext.{name}")
    if name in _PLACES:
        return getattr(_import_module(f"mach_ext.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'mach_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

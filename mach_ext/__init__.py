"""Extreme multi-label classification with MACH: operators, hashing, models, metrics.

Start with `mach_ext.LabelHash`, `mach_ext.MACH` and `mach_ext.functional`; README.md has the tour.
"""

from importlib.metadata import version as _version

from mach_ext import attack, certify, data, explain, functional, metrics, optim
from mach_ext.hashing import CollisionWarning, LabelHash
from mach_ext.neighbors import Neighbors
from mach_ext.nn import MACH, load
from mach_ext.svm import fit_svm
from mach_ext.training import fit

__version__ = _version("mach-ext")
__all__ = [
    "MACH",
    "CollisionWarning",
    "LabelHash",
    "Neighbors",
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
]

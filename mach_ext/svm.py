"""Linear MACH trained by a solver: `fit_svm`, whose code is in `mach_ext.training.svm`.

Example:
    >>> from mach_ext.svm import SLOPE
    >>> SLOPE  # the logit of a margin of 1
    4.0
"""

from mach_ext._deprecation import renamed_names
from mach_ext.training.defaults import default_svm_sizes, prefer_svm
from mach_ext.training.svm import SLOPE, ConvergenceWarning, fit_svm

__all__ = ["SLOPE", "ConvergenceWarning", "default_svm_sizes", "fit_svm", "prefer_svm"]

__getattr__ = renamed_names(
    __name__, suggested="mach_ext.svm.default_svm_sizes", worthwhile="mach_ext.svm.prefer_svm"
)

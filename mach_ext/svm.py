"""Linear MACH by a solver: `fit_svm`, whose code is in `mach_ext.training.svm`."""

from mach_ext.training.svm import SLOPE, ConvergenceWarning, fit_svm, suggested, worthwhile

__all__ = ["SLOPE", "ConvergenceWarning", "fit_svm", "suggested", "worthwhile"]

"""Plots and HTML pages of explanations and attacks.

A page is a single self-contained file without scripts from elsewhere. It shows the document with its words
shaded. Blue words add to a label's score, and orange words take from it. It also shows a switch between
labels, the votes of the repetitions, the collision check and the delta. Colour-blind readers can tell the two
colours apart.

Example:
    >>> from mach_ext.report import AGAINST, FOR
    >>> FOR, AGAINST
    ('#2166ac', '#c8571b')
"""

from mach_ext._page import AGAINST, FOR, chance, percent, shortened
from mach_ext.attack._report import attack_page, plot_attack
from mach_ext.explain._charts import attribution_lines, plot_attributions, sparkline
from mach_ext.explain._report import explanation_page

__all__ = [
    "AGAINST",
    "FOR",
    "attack_page",
    "attribution_lines",
    "chance",
    "explanation_page",
    "percent",
    "plot_attack",
    "plot_attributions",
    "shortened",
    "sparkline",
]

"""Plots and HTML: what explanations and attacks look like.

A page is one self-contained file, without scripts from elsewhere: the document with its words shaded by what
they add to (blue) or take from (orange) a label's score, a switch between labels, the votes of the
repetitions, the collision check, the delta. Colours are a pair that colour-blind readers can tell apart.
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

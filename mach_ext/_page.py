"""What pages of explanations and attacks share: colours, numbers in words, letters and templates."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mach_ext._terminal import UNSAFE, one_line

FOR, AGAINST = "#2166ac", "#c8571b"
NO_GLYPH = "\ufffd"


def percent(share: float) -> str:
    """Write a share of counted things in percent.

    0 and 100 % always mean none and all. A number that would be rounded to them is written as < 0.1 % or >
    99.9 %.

    Args:
        share: From 0 to 1.

    Example:
        >>> from mach_ext.report import percent
        >>> percent(1.0), percent(0.9996), percent(0.5), percent(0.0004)
        ('100.0 %', '> 99.9 %', '50.0 %', '< 0.1 %')
    """
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def chance(probability: float) -> str:
    """Write a probability in percent. An estimate is never written as 0 or 100 %.

    Args:
        probability: From 0 to 1.

    Example:
        >>> from mach_ext.report import chance
        >>> chance(1.0), chance(0.0)
        ('> 99.9 %', '< 0.1 %')
    """
    return percent(min(max(probability, 1e-9), 1 - 1e-9))


def shortened(text: str, width: int) -> str:
    """Cut a text to a number of terminal columns, on one line, and never between a letter and its marks.

    Args:
        text: Any text.
        width: The largest number of columns.

    Example:
        >>> from mach_ext.report import shortened
        >>> shortened("a rather long title", 8)
        'a rathe…'
    """
    text = one_line(text)
    columns = end = 0
    for i, c in enumerate(text):
        columns += text_width(c)
        if columns > width:
            return text[:end] + "…"
        if columns < width:
            end = i + 1
    return text


def text_width(text: str) -> int:
    """Return the columns that a text takes in a terminal: two for a wide letter, none for a mark."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Mc", "Me", "Cf")
        else 2 if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )  # fmt: skip


def match_fonts(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the texts and fonts that have their letters.

    A letter that is in none of the fonts becomes U+FFFD.
    """
    from matplotlib import font_manager, rcParams

    files: dict[str, Any] = {
        name: font_manager.findfont(font_manager.FontProperties(family=[name]))
        for name in rcParams["font.family"]
    }
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name):
        plain = (font.style, font.weight) == ("normal", 400) and "Last Resort" not in font.name
        if plain and Path(font.fname).exists():  # matplotlib keeps its list of fonts from run to run
            files.setdefault(font.name, font.fname)
    missing, fonts = set("".join(texts)), []
    for name, file in files.items():
        letters = set(map(chr, font_manager.get_font(file).get_charmap()))
        if missing & letters:
            missing -= letters
            fonts.append(name)
        if not missing:
            break
    shown = str.maketrans(dict.fromkeys(missing, NO_GLYPH))
    return [text.translate(shown) for text in texts], fonts


def render(package: str, template: str, **content: Any) -> str:
    """Return the page.

    U+FFFD stands for controls, overrides of the writing direction, and characters that UTF-8 can't encode.
    """
    page: str = _template(package, template).render(FOR=FOR, AGAINST=AGAINST, **content)
    return UNSAFE.sub(lambda match: match[0] if match[0] in "\t\n\r" else "\ufffd", page)


@functools.cache
def _template(package: str, name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shortened"] = shortened
    return environment.get_template(name)

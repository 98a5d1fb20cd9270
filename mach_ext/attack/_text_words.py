"""The words of a text, and the text without some of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mach_ext.data.words import folded_words

Span = tuple[int, int]  # start and end in the text


def words_of(text: str) -> list[Span]:
    """Returns where the words of a text stand, in order. They do not overlap.

    What a word is, `mach_ext.data.words` says. In scripts without spaces each letter is a word.
    """
    spans: list[Span] = []
    for start, end, _ in folded_words(text):
        # A pair of letters starts with its first letter, and ends with the next word.
        if not spans or start >= spans[-1][1]:
            spans.append((start, end))
    return spans


def without(text: str, spans: Sequence[Span], removed: Collection[int]) -> tuple[str, list[Span]]:
    """Returns the text without some words, and where the other words stand in it.

    A space after a removed word is removed, too, if there is another space or nothing before the word. So are
    the spaces before a word at the end.

    Args:
        text: The text.
        spans: Its words.
        removed: Numbers of the words to remove.

    Returns:
        The text, and the words that are left. A word that is removed is (0, 0).
    """
    gone, parts, places = set(removed), [""], []
    length = at = 0
    for number, (start, end) in enumerate(spans):
        kept = text[at:start]
        parts.append(kept)
        length, at = length + len(kept), start
        if number in gone:
            at = end
            before = next((part[-1] for part in reversed(parts) if part), " ")
            if before.isspace() and text[at : at + 1].isspace():
                at += 1
            places.append((0, 0))
        else:
            places.append((length, length + end - start))
            parts.append(text[start:end])
            length, at = length + end - start, end
    parts.append(text[at:])
    shorter = "".join(parts)
    # No space is left behind when the end of the text is removed.
    return (shorter.rstrip() if at == len(text) and len(spans) - 1 in gone else shorter), places

"""Words on a figure: what its font can show, short enough, and never read as mathematics."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font

FAMILY = "DejaVu Sans"
"""The font that comes with matplotlib: figures look the same on every machine."""
UNKNOWN = "\u25a1"
"""Stands for a character that the font lacks, in a sentence."""
ELLIPSIS = "\u2026"
WHITESPACE = {" ": "\u2423", "\n": "\u21b5", "\r": "\u240d", "\t": "\u21e5", "\u00a0": "\u237d"}
"""How white space at the ends of a token is shown."""


@cache
def _glyphs() -> frozenset[int]:
    """Code points that the font has."""
    font = FT2Font(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"))
    return frozenset(font.get_charmap())


def _is_shown(character: str) -> bool:
    return ord(character) in _glyphs() and character.isprintable()


def plain(text: str) -> str:
    """Return a sentence in characters that the font has, on one line: white space becomes spaces, others boxes.

    Args:
        text: Any text.

    Returns:
        The same words.
    """
    return "".join(character if _is_shown(character) else UNKNOWN for character in " ".join(text.split()))


def token_label(token: str, most: int = 14) -> str:
    """Return a token as it is named in a figure: its white space visible, unknown characters by their code.

    Args:
        token: Text of the token.
        most: Characters at most.

    Returns:
        Such as `\u2423the`, `U+6708`, or a comma in quotation marks.
    """
    signs = []
    for character in token:
        shown = WHITESPACE.get(character, character)
        signs.append(shown if _is_shown(shown) else f"U+{ord(character):04X}")
    if not any(character.isalnum() for character in token):
        signs = ["\u201c", *signs, "\u201d"]  # a lone comma is not seen
    separator = " " if any(len(sign) > 1 for sign in signs) else ""
    return shorten(separator.join(signs), most)


def shorten(text: str, most: int) -> str:
    """Return a text of at most `most` characters, its middle left out where it is longer.

    More of the end is kept than of the beginning: it is where a causal model answers.

    Args:
        text: Any text.
        most: Characters at most, at least 3.

    Returns:
        The text, or its two ends about an ellipsis.
    """
    if len(text) <= most:
        return text
    end = (most - 1) * 3 // 5
    return text[: most - 1 - end] + ELLIPSIS + text[len(text) - end :]


def wrapped(text: str, width: int, num_lines: int) -> str:
    """Return a text on a few lines of at most `width` characters, shortened in the middle where it does not fit.

    Args:
        text: Any text on one line.
        width: Characters of a line.
        num_lines: Lines at most.

    Returns:
        The lines, joined by newlines.
    """
    text = shorten(text, width * num_lines - 8 * (num_lines - 1))
    lines: list[str] = []
    while text:
        cut = len(text) if len(text) <= width else text.rfind(" ", 0, width + 1)
        cut = width if cut <= 0 else cut
        lines.append(text[:cut])
        text = text[cut:].lstrip()
    return "\n".join(lines)

"""Texts in pieces, as the page shows them: what is read of them is told apart from what stands between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

HEAD, TAIL = 150, 500
"""Letters of a long text between tokens that are kept, at its beginning and its end."""
GAP = " \u2026 "


def pieces(text: str, spans: Sequence[Sequence[int]], tokens: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield a text in pieces, each with the token that it is, or -1 between them.

    A token without a place in the text is shown by its own name; of tokens that share letters (the bytes of an emoji)
    the first has them, and the others are empty.

    Args:
        text: The sentence.
        spans: [token], first letter and one past the last; -1 where they are not known.
        tokens: [token], their names.
    """
    done = 0
    for index, ((start, end), token) in enumerate(zip(spans, tokens, strict=True)):
        if start < 0:
            yield token, index
            continue
        if start > done:
            yield shortened(text[done:start], keeps_end=True), -1
        yield text[max(start, done) : end], index
        done = max(done, end)
    if done < len(text):
        yield shortened(text[done:], keeps_end=False), -1


def shortened(text: str, *, keeps_end: bool) -> str:
    """Leave out the middle of a long text; or its end, where no token follows."""
    if len(text) <= HEAD + TAIL + len(GAP):
        return text
    return text[:HEAD] + GAP + text[-TAIL:] if keeps_end else text[:TAIL] + GAP

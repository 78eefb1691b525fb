"""What could not be found, and why."""

from __future__ import annotations

from typing import Any

REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model may raise that needs more than text, or was not made to be run."""


class NotFound(Exception):  # noqa: N818 - it is an answer
    """What could not be found, in words that follow "its parts cannot be found: "."""


def kind_of(module: Any) -> str:
    """Return the name of a module's class."""
    return type(module).__name__

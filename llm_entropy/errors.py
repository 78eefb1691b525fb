"""What a user is told. Only these errors are printed as one line; any other exception is a fault of the program."""

from __future__ import annotations

NOTES = "__notes__"
"""Attribute of an exception for what is added to it later (PEP 678); Python prints it below the traceback."""


class ReportedError(ValueError):
    """Something that the user gave is wrong. The message names it, says what was expected, and what to do."""


class RunIncompleteError(RuntimeError):
    """The run could not be finished. What was done is kept, and the message has the command that resumes it."""


def add_note(error: BaseException, note: str) -> None:
    """Add a sentence to an exception, as `BaseException.add_note` does from Python 3.11 on."""
    setattr(error, NOTES, [*getattr(error, NOTES, ()), note])

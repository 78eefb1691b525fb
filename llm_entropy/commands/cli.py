"""The command line: finds the command and runs it, and ends as it ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import NoReturn, Optional

from llm_entropy.commands.table import COMMANDS, DEFAULT, FAULT, INCOMPLETE, INTERRUPTED, USAGE_ERROR, Command
from llm_entropy.commands.terminal import patient_terminal
from llm_entropy.errors import NOTES, ReportedError, RunIncompleteError
from llm_entropy.settings.fields import nearest_known

PROGRAM = "llm-entropy"
LIKENESS = 0.6
"""How like a known command an unknown one must be to be taken for it: `steering` is not meant for `extract`."""


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command line.

    Args:
        arguments: Without the program's name; None: those of the process.
    """
    # Lightning imports matplotlib, which would look for the backend of a notebook that has started this program.
    os.environ["MPLBACKEND"] = "Agg"
    with patient_terminal():
        _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(given: list[str]) -> None:
    """Run the command that was given, and end as it ends."""
    try:
        if given[:1] in (["--help"], ["-h"], ["--version"]):
            _program().parse_args(given[:1])  # prints, and ends
        command, arguments = _command(given)
        module = import_module(command.module)
        if status := module.run(module.parser(f"{PROGRAM} {command.name}").read(arguments)):
            raise SystemExit(status)
    except ReportedError as error:
        fail(_one_line(error))
    except RunIncompleteError as error:
        fail(_one_line(error), INCOMPLETE)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if not (notes := getattr(error, NOTES, ())):
            raise  # there is no log that could hold the traceback
        fail(f"a fault of the program, {type(error).__name__}: {_one_line(error)[:300]}; {notes[-1]}", FAULT)


def _command(given: list[str]) -> tuple[Command, list[str]]:
    """Return the command that the first word names, and its arguments."""
    if not given or given[0].startswith("-"):
        return DEFAULT, given
    named = {command.name: command for command in COMMANDS}
    if given[0] not in named:
        hint = nearest_known(given[0], named, "command", LIKENESS)
        raise ReportedError(f"got the command {given[0]!r}, which is not known; {hint}")
    return named[given[0]], given[1:]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def fail(message: str, status: int = USAGE_ERROR) -> NoReturn:
    """Print one line of error and end with `status`."""
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def _program() -> argparse.ArgumentParser:
    """Return the parser of what is no command's: help and version."""
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="What a language model believes at every layer, over a corpus, and what steering changes.",
        epilog=f"{PROGRAM} COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {metadata.version('llm_entropy')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        commands.add_parser(command.name, help=command.help)
    return parser

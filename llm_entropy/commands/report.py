"""`llm-entropy report`: a run's report.html, from its shards."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from llm_entropy.commands.table import DONE, OPEN, RUN_DIR
from llm_entropy.settings.configuration import CommandParser


def parser(program: str) -> CommandParser:
    """Return the parser of the command's arguments."""
    report = CommandParser(
        prog=program,
        description="Make the report.html of a complete run again, from its shards. No other file is written.",
        allow_abbrev=False,
    )
    report.add_argument("run_dir", type=Path, help=RUN_DIR)
    report.add_argument("--open", action="store_true", help=OPEN)
    return report


def run(chosen: Namespace) -> int:
    """Do what was chosen, and return the exit status."""
    from llm_entropy.outputs.making import report_run
    from llm_entropy.store.log import run_log

    with run_log(quiet=False):
        path = report_run(chosen.run_dir)
    print(path)
    if chosen.open:
        show(path)
    return DONE


def show(path: Path) -> None:
    """Open a page in the user's browser; say where it is if there is none."""
    import sys
    import webbrowser

    if not webbrowser.open(path.absolute().as_uri()):
        print(f"--open: found no browser; open it yourself: {path.absolute()}", file=sys.stderr)

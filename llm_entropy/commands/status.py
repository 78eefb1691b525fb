"""`llm-entropy status`: what of a run is missing."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from llm_entropy.commands.table import DONE, INCOMPLETE, RUN_DIR
from llm_entropy.settings.configuration import CommandParser


def parser(program: str) -> CommandParser:
    """Return the parser of the command's arguments."""
    status = CommandParser(
        prog=program,
        description="Show which records of a run are missing, and how to compute them. Any missing: exit status 1.",
        allow_abbrev=False,
    )
    status.add_argument("run_dir", type=Path, help=RUN_DIR)
    status.add_argument(
        "--missing",
        action="store_true",
        help="Print only the numbers of the incomplete tasks, as --array takes them.",
    )
    return status


def run(chosen: Namespace) -> int:
    """Do what was chosen, and return the exit status."""
    from llm_entropy.store.status import print_status, run_status

    status = run_status(chosen.run_dir)
    print_status(status, missing_only=chosen.missing)
    return DONE if status.is_complete else INCOMPLETE

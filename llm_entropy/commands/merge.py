"""`llm-entropy merge`: the tables and plots of a run, from its shards."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from llm_entropy.commands.table import DONE, QUIET, RUN_DIR
from llm_entropy.settings.configuration import CommandParser


def parser(program: str) -> CommandParser:
    """Return the parser of the command's arguments."""
    merge = CommandParser(
        prog=program,
        description="Make the tables and plots of a run, from the shards of all its tasks.",
        allow_abbrev=False,
    )
    merge.add_argument("run_dir", type=Path, help=RUN_DIR)
    merge.add_argument("--quiet", action="store_true", help=QUIET)
    return merge


def run(chosen: Namespace) -> int:
    """Do what was chosen, and return the exit status."""
    from llm_entropy.commands.summary import print_summary
    from llm_entropy.outputs.extraction.making import merge_vectors
    from llm_entropy.outputs.making import merge_run
    from llm_entropy.store.manifest import read_manifest

    if read_manifest(chosen.run_dir).get("mode") == "extract":
        print(merge_vectors(chosen.run_dir, quiet=chosen.quiet).run_dir)
        return DONE
    print_summary(merge_run(chosen.run_dir, quiet=chosen.quiet), quiet=chosen.quiet)
    return DONE

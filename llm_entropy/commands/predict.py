"""`llm-entropy predict`: a run."""

from __future__ import annotations

import os
import sys

from jsonargparse import Namespace

from llm_entropy.commands.table import DONE, OPEN, QUIET
from llm_entropy.errors import ReportedError
from llm_entropy.settings import RANKS, Settings
from llm_entropy.settings.configuration import SHORT_NAMES, SettingsParser, settings_parser, to_settings

MOST_NAMES = 6
"""Most conditions that the first line lists."""
RESUME = "Continue the run output.run_name if it exists: compute only what is missing."


def parser(program: str) -> SettingsParser:
    """Return the parser of the command's arguments."""
    names = ", ".join(f"{short} for {long}" for short, long in SHORT_NAMES.items())
    predict = settings_parser(
        prog=program,
        description="Run the models over the corpus and write tables, plots and predictions.",
        epilog=f"Short names: {names}. Any key of a configuration file can be given as an option.",
    )
    predict.add_argument("--quiet", action="store_true", help=QUIET)
    predict.add_argument("--resume", action="store_true", help=RESUME)
    predict.add_argument("--open", action="store_true", help=OPEN)
    return predict


def run(chosen: Namespace) -> int:
    """Do what was chosen, and return the exit status."""
    settings = to_settings(chosen)
    check_ranks()
    if chosen.open and not settings.output.report:
        raise ReportedError(
            "--open: got output.report: false, so that there is no report to open; leave one of them out"
        )
    if not chosen.quiet and all(os.environ.get(name, "0") == "0" for name in RANKS):
        print(announcement(settings), file=sys.stderr, flush=True)
    from llm_entropy.commands.report import show
    from llm_entropy.commands.summary import print_summary
    from llm_entropy.runs import run

    result = run.run(settings, quiet=chosen.quiet, resume=chosen.resume)
    if result.is_global_zero:
        print_summary(result, quiet=chosen.quiet)
        if chosen.open and result.report is not None:  # a task of an array leaves it to the merge
            show(result.report.path)
    return DONE


def announcement(settings: Settings) -> str:
    """Return what a run will do, in a line that is there at once: libraries and models take seconds to load."""
    conditions = settings.analysis.run_conditions
    shown = [condition.name for condition in conditions if condition.keeps_tokens]
    num_placebos = len(conditions) - len(shown)
    under = ", ".join(shown[:MOST_NAMES]) + (f", ... ({len(shown)} in all)" if len(shown) > MOST_NAMES else "")
    if num_placebos:
        under += f" and {num_placebos} placebo{'' if num_placebos == 1 else 's'}"
    output = settings.output
    where = f"{output.dir}/{output.run_name}" if output.run_name else f"a new folder in {output.dir}"
    corpus = settings.data.path or "the built-in sentences"
    return f"measuring {', '.join(settings.models)} on {corpus}: {under}; output: {where}; loading ..."


def check_ranks() -> None:
    """Refuse what Lightning would stumble over when it is imported."""
    for name in RANKS:
        value = os.environ.get(name, "0")
        if not value.isdecimal():
            raise ReportedError(
                f"{name}: got {value!r} in the environment; expected the number of this process; unset {name}, or "
                "start with torchrun or srun, which set it"
            )

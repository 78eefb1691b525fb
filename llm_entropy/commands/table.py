"""The commands of the program: a row for each, and its module, which is imported when the command runs.

The module has `parser(program)`, which returns the command's `CommandParser`, and `run(chosen)`, which does what was
chosen and returns the exit status. What takes long to import is imported inside of `run`, so that help and errors are
quick.
"""

from __future__ import annotations

from typing import NamedTuple

DONE = 0
"""Exit status of a command that has done all there was."""
INCOMPLETE = 1
"""Exit status of a run that is not complete."""
FAULT = 1
"""Exit status of a fault of the program's."""
USAGE_ERROR = 2
"""Exit status of an error of the user's."""
INTERRUPTED = 130
"""Exit status after SIGINT, as shells have it."""

QUIET = "Show only warnings and errors, and print only the run's folder."
OPEN = "Open the report in the browser at the end."
RUN_DIR = "Folder of the run, as analysis_outputs/run_..."


class Command(NamedTuple):
    """One of the words that may follow the program's name."""

    name: str
    help: str
    """One line."""
    module: str


COMMANDS = (
    Command("predict", "run the models over the corpus (the default command)", "llm_entropy.commands.predict"),
    Command("plan", "estimate the cost of a run, without reading weights", "llm_entropy.commands.plan"),
    Command("merge", "make a run's tables and plots, from the shards of all its tasks", "llm_entropy.commands.merge"),
    Command("report", "make a run's report.html again; --open opens it", "llm_entropy.commands.report"),
    Command("status", "show what is missing of a run, and how to compute it", "llm_entropy.commands.status"),
    Command(
        "extract",
        "make control vectors from contrastive pairs, and test them on left-out pairs",
        "llm_entropy.commands.extract",
    ),
    Command(
        "convert-vector", "write a control vector in another program's format", "llm_entropy.commands.convert_vector"
    ),
)
DEFAULT = COMMANDS[0]
"""What runs where no command is given."""

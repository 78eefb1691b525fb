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

QUIET = "Show warnings and errors alone; standard output is the run's folder."
OPEN = "Open the report in the browser when it is there."
RUN_DIR = "Folder of the run, as analysis_outputs/run_..."


class Command(NamedTuple):
    """One of the words that may follow the program's name."""

    name: str
    help: str
    """One line."""
    module: str


COMMANDS = (
    Command("predict", "run the models over the corpus (the default command)", "llm_entropy.commands.predict"),
    Command("plan", "say what a run will take, before any weight is read", "llm_entropy.commands.plan"),
    Command("merge", "make a run's tables and plots, from the shards of all its tasks", "llm_entropy.commands.merge"),
    Command("report", "make a run's report.html anew, and open it with --open", "llm_entropy.commands.report"),
    Command("status", "say what of a run is missing, and how to run just that", "llm_entropy.commands.status"),
    Command("extract", "make control vectors from contrastive pairs, and judge them", "llm_entropy.commands.extract"),
    Command(
        "convert-vector", "write a control vector in another program's format", "llm_entropy.commands.convert_vector"
    ),
)
DEFAULT = COMMANDS[0]
"""What runs where no command is given."""

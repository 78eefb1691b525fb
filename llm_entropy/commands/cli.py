"""The command line: `llm-entropy predict`, `merge`, `status`. Heavy imports wait until a command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn, Optional

from jsonargparse import Namespace

from llm_entropy.commands.terminal import patient_terminal
from llm_entropy.errors import NOTES, ReportedError, RunIncompleteError
from llm_entropy.settings import RANKS
from llm_entropy.settings.configuration import SettingsParser, settings_parser, to_settings

PROGRAM = "llm-entropy"
RUN_DIR = "Folder of the run, as analysis_outputs/run_..."
RESUME = "Go on with the run output.run_name, if it has been begun: compute only what is missing."
QUIET = "Show warnings and errors alone; standard output is the run's folder."
USAGE_ERROR = 2
"""Exit status of an error of the user's."""
INCOMPLETE = 1
"""Exit status of a run that is not complete."""
FAULT = 1
"""Exit status of a fault of the program's."""
INTERRUPTED = 130
"""Exit status after SIGINT, as shells have it."""

SHORT_NAMES = {
    "--num-sentences": "--analysis.num_sentences",
    "--temperature": "--analysis.temperature",
    "--use-sampling": "--analysis.use_sampling",
    "--compare-control": "--analysis.compare_control",
    "--control-vector": "--analysis.control.control_vector",
}
"""Short names of keys that are typed often."""
SWITCHES = frozenset({"--use-sampling", "--compare-control"})
"""Short names that may stand alone, for true."""


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
        parser, commands = _parsers()
        if not given or given[0] not in (*commands, "--help", "-h", "--version"):
            given.insert(0, "predict")
        chosen = parser.parse_args(_long_names(given))
        if chosen.command == "merge":
            _merge(chosen.merge)
        elif chosen.command == "status":
            _status(chosen.status)
        else:
            _predict(commands["predict"], chosen.predict)
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def fail(message: str, status: int = USAGE_ERROR) -> NoReturn:
    """Print one line of error and end with `status`."""
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def _parsers() -> tuple[SettingsParser, dict[str, SettingsParser]]:
    """Return the parser of the program, and those of its commands."""
    parser = SettingsParser(
        prog=PROGRAM,
        description="What a language model believes at every layer, over a corpus, and what steering changes.",
        allow_abbrev=False,
        version=metadata.version("llm_entropy"),
    )
    names = ", ".join(f"{short} for {long}" for short, long in SHORT_NAMES.items())
    predict = settings_parser(
        description="Run the models over the corpus and write tables, plots and predictions.",
        epilog=f"Short names: {names}. Any key of a configuration file can be given as an option.",
    )
    predict.add_argument("--quiet", action="store_true", help=QUIET)
    predict.add_argument("--resume", action="store_true", help=RESUME)
    merge = SettingsParser(
        description="Make the tables and plots of a run, from the shards of all its tasks.", allow_abbrev=False
    )
    merge.add_argument("run_dir", type=Path, help=RUN_DIR)
    merge.add_argument("--quiet", action="store_true", help=QUIET)
    status = SettingsParser(
        description="Say what of a run is missing, and how to run just that. Ends with status 1 where anything is.",
        allow_abbrev=False,
    )
    status.add_argument("run_dir", type=Path, help=RUN_DIR)
    status.add_argument(
        "--missing",
        action="store_true",
        help="Print nothing but the tasks that are not complete, as --array takes them.",
    )
    subcommands = parser.add_subcommands(required=True, dest="command")
    subcommands.add_subcommand("predict", predict, help="run the models over the corpus (the default command)")
    subcommands.add_subcommand("merge", merge, help="make a run's tables and plots, from the shards of all its tasks")
    subcommands.add_subcommand("status", status, help="say what of a run is missing, and how to run just that")
    return parser, {"predict": predict, "merge": merge, "status": status}


def _predict(parser: SettingsParser, chosen: Namespace) -> None:
    settings = to_settings(parser, chosen)
    _check_ranks()
    from llm_entropy.commands.summary import print_summary
    from llm_entropy.runs.run import run

    result = run(settings, quiet=chosen.quiet, resume=chosen.resume)
    if result.is_global_zero:
        print_summary(result, quiet=chosen.quiet)


def _check_ranks() -> None:
    """Refuse what Lightning would stumble over when it is imported."""
    for name in RANKS:
        value = os.environ.get(name, "0")
        if not value.isdecimal():
            raise ReportedError(
                f"{name}: got {value!r} in the environment; expected the number of this process; unset {name}, or "
                "start with torchrun or srun, which set it"
            )


def _merge(chosen: Namespace) -> None:
    from llm_entropy.commands.summary import print_summary
    from llm_entropy.outputs.making import merge_run

    print_summary(merge_run(chosen.run_dir, quiet=chosen.quiet), quiet=chosen.quiet)


def _status(chosen: Namespace) -> None:
    from llm_entropy.store.status import print_status, run_status

    status = run_status(chosen.run_dir)
    print_status(status, missing_only=chosen.missing)
    if not status.is_complete:
        raise SystemExit(INCOMPLETE)


def _long_names(arguments: list[str]) -> list[str]:
    """Replace short names by the keys they stand for."""
    long: list[str] = []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        long.append(SHORT_NAMES.get(name, name) + equals + value)
        if name in SWITCHES and not equals and arguments[index + 1 : index + 2] not in (["true"], ["false"]):
            long.append("true")
    return long

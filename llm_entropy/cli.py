"""The command line: `llm-entropy predict`, `llm-entropy merge`. Heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn, Optional

from jsonargparse import Namespace

from llm_entropy.configuration import SettingsParser, settings_parser, to_settings

PROGRAM = "llm-entropy"
QUIET = "Show warnings and errors alone; standard output is the run's folder."
USAGE_ERROR = 2
"""Exit status of an error of the user's."""

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
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser, commands = _parsers()
        if not given or given[0] not in (*commands, "--help", "-h", "--version"):
            given.insert(0, "predict")
        chosen = parser.parse_args(_long_names(given))
        if chosen.command == "merge":
            _merge(chosen.merge)
        else:
            _predict(commands["predict"], chosen.predict)
    except ValueError as error:
        fail(" ".join(str(error).split()))


def fail(message: str) -> NoReturn:
    """Print one line of error and end with status 2."""
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


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
    merge = SettingsParser(description="Make the tables and plots of a run again, from its shards.", allow_abbrev=False)
    merge.add_argument("run_dir", type=Path, help="Folder of the run, as analysis_outputs/run_...")
    merge.add_argument("--quiet", action="store_true", help=QUIET)
    subcommands = parser.add_subcommands(required=True, dest="command")
    subcommands.add_subcommand("predict", predict, help="run the models over the corpus (the default command)")
    subcommands.add_subcommand("merge", merge, help="make a run's tables and plots again, from its shards")
    return parser, {"predict": predict, "merge": merge}


def _predict(parser: SettingsParser, chosen: Namespace) -> None:
    settings = to_settings(parser, chosen)
    from llm_entropy.run import run
    from llm_entropy.summary import print_summary

    result = run(settings, quiet=chosen.quiet)
    if result.is_global_zero:
        print_summary(result, quiet=chosen.quiet)


def _merge(chosen: Namespace) -> None:
    from llm_entropy.run import merge_run
    from llm_entropy.summary import print_summary

    print_summary(merge_run(chosen.run_dir, quiet=chosen.quiet), quiet=chosen.quiet)


def _long_names(arguments: list[str]) -> list[str]:
    """Replace short names by the keys they stand for."""
    long: list[str] = []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        long.append(SHORT_NAMES.get(name, name) + equals + value)
        if name in SWITCHES and not equals and arguments[index + 1 : index + 2] not in (["true"], ["false"]):
            long.append("true")
    return long

"""`llm-entropy extract`: vectors from contrastive pairs, with their quality."""

from __future__ import annotations

from jsonargparse import Namespace

from llm_entropy.commands.predict import RESUME, check_ranks
from llm_entropy.commands.table import DONE, QUIET
from llm_entropy.settings import ExtractionSettings
from llm_entropy.settings.configuration import SettingsParser, settings_parser, to_settings


def parser(program: str) -> SettingsParser:
    """Return the parser of the command's arguments."""
    extract = settings_parser(
        ExtractionSettings,
        prog=program,
        description="Make control vectors from contrastive pairs (columns positive and negative, or text and label), "
        "and judge them on pairs that are left out.",
        epilog="Any key of a configuration file can be given as an option.",
    )
    extract.add_argument("--quiet", action="store_true", help=QUIET)
    extract.add_argument("--resume", action="store_true", help=RESUME)
    return extract


def run(chosen: Namespace) -> int:
    """Do what was chosen, and return the exit status."""
    settings = to_settings(chosen, ExtractionSettings)
    assert isinstance(settings, ExtractionSettings)
    check_ranks()
    from llm_entropy.runs.extract import run_extraction

    result = run_extraction(settings, quiet=chosen.quiet, resume=chosen.resume)
    if result.is_global_zero:
        if chosen.quiet or not result.models:  # a task of an array has nothing to show
            print(result.run_dir)
        else:
            print(f"Vectors and their quality: {result.run_dir / 'vectors'}")
            print(f"Steer with them: --control-vector '{result.run_dir}/vectors/{{model}}.safetensors'")
    return DONE

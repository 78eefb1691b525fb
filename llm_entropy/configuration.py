"""Reading settings: YAML files, and the parser behind the command line, with errors of one line."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, Optional

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from llm_entropy.settings import Settings


class SettingsParser(ArgumentParser):
    """Raises a ValueError of one line that names the nearest known key, instead of ending the program."""

    def error(self, message: str, ex: Optional[Exception] = None) -> NoReturn:
        """Raise what is wrong."""
        raise ValueError(_with_suggestion(" ".join(message.split()), _option_names(self))) from ex


def settings_parser(**about: Any) -> SettingsParser:
    """Return a parser of every key of the settings.

    Args:
        about: Further arguments of `jsonargparse.ArgumentParser`.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = SettingsParser(allow_abbrev=False, **about)
    parser.add_argument("--config", action="config", help="A YAML file with any of the keys below.")
    parser.add_class_arguments(Settings)
    return parser


def to_settings(parser: ArgumentParser, chosen: Namespace) -> Settings:
    """Return the settings that a parser of `settings_parser` has read."""
    values = vars(parser.instantiate(chosen))
    return Settings(**{item.name: values[item.name] for item in fields(Settings)})


def read_config(path: Path) -> Settings:
    """Read a configuration file; keys that it leaves out have their defaults.

    Raises:
        ValueError: There is no such file, or it is not a configuration.
    """
    parser = settings_parser()
    return to_settings(parser, parser.parse_args(["--config", str(path)]))


def known_keys(settings: Any = Settings, prefix: str = "") -> list[str]:
    """Return the dotted keys of a settings class."""
    keys: list[str] = []
    for item in fields(settings):
        keys.append(prefix + item.name)
        if isinstance(item.type, type) and is_dataclass(item.type):
            keys += known_keys(item.type, f"{prefix}{item.name}.")
    return keys


def _option_names(parser: ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


def _with_suggestion(message: str, options: list[str]) -> str:
    """Name the known key that is nearest to the unknown one that a message complains of."""
    unknown = re.search(r"unrecognized arguments: (?P<option>\S+)|option '(?P<key>[^']+)'", message, re.IGNORECASE)
    if unknown is None:
        return message
    if unknown["option"]:
        wrong, known = unknown["option"].partition("=")[0], options
    else:
        wrong, known = unknown["key"], sorted({part for key in known_keys() for part in key.split(".")})
    nearest = difflib.get_close_matches(wrong, known, n=1, cutoff=0.4)
    return f"{message}; the nearest known key is {nearest[0]!r}" if nearest else message

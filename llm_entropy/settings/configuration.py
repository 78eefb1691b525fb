"""Reading settings: YAML files, and the parser behind the command line, with errors of one line."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, Optional

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from llm_entropy.errors import ReportedError
from llm_entropy.settings import ControlVectors, ModelSettings, Settings, default_models, to_plain


class SettingsParser(ArgumentParser):
    """Raises a ReportedError of one line that names the nearest known key, instead of ending the program."""

    def error(self, message: str, ex: Optional[Exception] = None) -> NoReturn:
        """Raise what is wrong."""
        raise ReportedError(_with_suggestion(_plainly(" ".join(message.split())), _option_names(self))) from ex


def settings_parser(**about: Any) -> SettingsParser:
    """Return a parser of every key of the settings.

    Args:
        about: Further arguments of `jsonargparse.ArgumentParser`.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = SettingsParser(allow_abbrev=False, **about)
    parser.add_argument("--config", action="config", help="A YAML file with any of the keys below.")
    parser.add_class_arguments(Settings)
    # As plain values: what is an instance can neither be printed nor changed key by key.
    parser.set_defaults({"models": to_plain(default_models())})
    return parser


def to_settings(parser: ArgumentParser, chosen: Namespace) -> Settings:
    """Return the settings that a parser of `settings_parser` has read."""
    for path in chosen.config or ():
        _check_sections(yaml.safe_load(Path(path.absolute).read_text(encoding="utf-8")))
    values = vars(parser.instantiate(chosen))
    return Settings(**{item.name: values[item.name] for item in fields(Settings)})


def read_config(path: Path) -> Settings:
    """Read a configuration file; keys that it leaves out have their defaults.

    Raises:
        ReportedError: There is no such file, or it is not a configuration.
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


def _check_sections(config: dict[str, Any], section: Any = Settings, prefix: str = "") -> None:
    """Refuse a section that is a list or a word, which jsonargparse takes for one without keys."""
    for item in fields(section):
        if not is_dataclass(item.type):
            continue
        key, below = prefix + item.name, config.get(item.name)
        if not isinstance(below, (dict, type(None))):
            raise ReportedError(f"{key}: got {below!r}; expected a section with keys below it")
        _check_sections(below or {}, item.type, f"{key}.")


def _option_names(parser: ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


_INNER = re.compile(
    r"- (?P<what>Option '\S+' is not accepted.*?|the following arguments are required: .*?|\S+: got .*?)"
    r" (?:- Expected a|Given value type:)"
)


def _plainly(message: str) -> str:
    """Say what jsonargparse says of a value that does not fit as the other errors do: key, got, expected."""
    message = re.sub(r"^Unexpected config: ?(.*)", r"config: got '\1'; expected keys with values below them", message)
    message = re.sub(r'^Problems parsing (config.*) in "<unicode string>"', r"\1 in the file", message)
    complaint = re.match(r'Parser key "(?P<key>[^"]+)": (?P<rest>.*)', message)
    if complaint is None:
        return message
    key, rest = complaint["key"], complaint["rest"]
    # A section inside of a union, such as one model's settings: what is wrong there says more than the union does.
    inner = _INNER.search(rest)
    if inner is not None:
        return f"{key}: {inner['what']}"
    expected = re.search(r"Subtypes: \[(?P<union>.*?)\] Errors:|Expected a (?P<one>.*?)\.? (?:Got|Given) value", rest)
    got = re.search(r".*(?:Got|Given) value: (?P<value>.*)", rest)
    if expected is None or got is None:
        return f"{key}: {rest}"
    names = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected["union"] or expected["one"])
    names = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", names).replace("NoneType", "null")
    return f"{key}: got {got['value']}; expected {names}"


def _with_suggestion(message: str, options: list[str]) -> str:
    """Name the known key that is nearest to the unknown one that a message complains of."""
    unknown = re.search(r"unrecognized arguments: (?P<option>--\S+)|option '(?P<key>[^']+)'", message, re.IGNORECASE)
    if unknown is None or "nearest known key" in message:
        return message
    if unknown["option"]:
        wrong, known = unknown["option"].partition("=")[0], options
    else:
        keys = [*known_keys(), *known_keys(ControlVectors), *known_keys(ModelSettings)]
        wrong, known = unknown["key"], keys if "." in unknown["key"] else [key.rpartition(".")[2] for key in keys]
    nearest = difflib.get_close_matches(wrong, known, n=1, cutoff=0.4)
    return f"{message}; the nearest known key is {nearest[0]!r}" if nearest else message

"""Reading settings: YAML files, and the parsers behind the command line, with errors of one line.

What files and options hold is checked here, by the types of the settings. jsonargparse knows the options, writes the
help, puts defaults, files and options together, and prints the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, Optional

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_parsing_settings

from llm_entropy.errors import ReportedError
from llm_entropy.settings import ExtractionSettings, Settings, default_models, to_plain
from llm_entropy.settings.fields import SHOWN, is_single, nearest_known, plain_value, type_below

CONFIG = "--config"
PRINT_CONFIG = "--print_config"
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
LIKENESS = 0.6
"""How like a known option an unknown one must be to be taken for it."""


class CommandParser(ArgumentParser):
    """The parser of a command. It raises a ReportedError of one line, instead of ending the program."""

    def read(self, arguments: Sequence[str]) -> Namespace:
        """Return what the arguments of a command say.

        Raises:
            ReportedError: One is wrong.
        """
        return self.parse_args(self._checked(arguments))

    def error(self, message: str, ex: Optional[Exception] = None) -> NoReturn:
        """Raise what argparse finds wrong: words that are missing, or too many."""
        if message.startswith("unrecognized arguments"):
            message += "; an option begins with --, as in --data.path FILE"
        raise ReportedError(" ".join(message.split())) from ex

    def _checked(self, arguments: Sequence[str]) -> list[str]:
        """Return the arguments, each option and its value as one, after a check of both."""
        checked: list[str] = []
        rest = list(arguments)
        while rest and rest[0] not in ("--", "--help", "-h"):
            word = rest.pop(0)
            if not word.startswith("--"):
                checked.append(word)
                continue
            name, equals, value = word.partition("=")
            self._check_option(name)
            if self._takes_value(name) and not equals:
                if not rest or rest[0].startswith("--"):
                    return [*checked, word, *rest]  # argparse says that a value is missing
                value = rest.pop(0)
            checked.append(f"{name}={self._checked_value(name, value)}" if self._takes_value(name) else word)
        return [*checked, *rest]

    def _takes_value(self, name: str) -> bool:
        action = self._option_string_actions.get(name)
        return name != PRINT_CONFIG and (action is None or action.nargs != 0)

    def _check_option(self, name: str) -> None:
        """Refuse an option that is not known."""
        if name not in self._option_string_actions:
            _refuse_option(name, self._option_string_actions)

    def _checked_value(self, name: str, value: str) -> str:
        """Return the value of an option as the parser takes it."""
        return value


class SettingsParser(CommandParser):
    """A parser of every key of the settings, in files and as options."""

    kind: type[Settings] = Settings
    """Which settings."""

    def validate(self, *namespace: Any, **how: Any) -> None:
        """Leave it to the settings, which check the same when they are made, and say it better."""

    def _checked(self, arguments: Sequence[str]) -> list[str]:
        return super()._checked(_long_names(arguments, self._short_names()))

    def _short_names(self) -> dict[str, str]:
        """Return the short names of keys that these settings have."""
        return {name: long for name, long in SHORT_NAMES.items() if long in self._option_string_actions}

    def _check_option(self, name: str) -> None:
        """Refuse an option that is not known: no key, and nothing below a key that holds mappings or settings."""
        known = self._option_string_actions
        above = name
        while above and above not in known:
            above = above.rpartition(".")[0]
        if not above or (above != name and (is_dataclass(self._type_of(above)) or self._type_of(name) is None)):
            _refuse_option(name, [*self._short_names(), *known])

    def _checked_value(self, name: str, value: str) -> str:
        if name == CONFIG:
            return self._checked_file(value)
        if name.endswith("+"):
            return value  # appended to a list by the parser, which alone knows what is in it
        declared, key = self._type_of(name), name.removeprefix("--")
        read = _read_word(value)
        if is_dataclass(declared) and isinstance(read, str):  # the parser takes a section from a file, too
            read = _read_file(value, key)
        if isinstance(read, Mapping):
            _refuse_doubles(value, key)
        is_whole = isinstance(read, (Mapping, list)) and not is_single(declared)
        plain = plain_value(read if is_whole else value, declared, key, _read_word)
        # As plain as it is: the parser takes no single word for a list, and a pipe can be read only once.
        return _to_yaml(plain) if isinstance(plain, (dict, list)) else value

    def _checked_file(self, path: str) -> str:
        """Return what a configuration file holds, as text for the parser."""
        config = _read_file(path, "config", refuse_doubles=True)
        switches = {action.dest for action in self._actions if action.const is True}  # --print_config prints them too
        own = {name: plain_value(config.pop(name), bool, name, _read_word) for name in switches & set(config)}
        return _to_yaml({**plain_value(config, self.kind, "", _read_word), **own})

    def _type_of(self, option: str) -> Any:
        """Return the type of the settings that an option stands for; None where there are none."""
        declared: Any = self.kind
        place = ""
        for name in option.removeprefix("--").split("."):
            declared = type_below(declared, name, place)
            place = f"{place}.{name}" if place else name
        return declared


def settings_parser(kind: type[Settings] = Settings, **about: Any) -> SettingsParser:
    """Return a parser of every key of the settings.

    Args:
        kind: Which settings.
        about: Further arguments of `jsonargparse.ArgumentParser`.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = SettingsParser(allow_abbrev=False, **about)
    parser.kind = kind
    parser.add_argument(CONFIG, action="config", help="A YAML file with any of the keys below.")
    parser.add_class_arguments(kind)
    # As plain values: what is an instance can neither be printed nor changed key by key.
    parser.set_defaults({"models": to_plain(default_models())})
    return parser


def to_settings(chosen: Namespace, kind: type[Settings] = Settings) -> Settings:
    """Return the settings that a parser of `settings_parser` has read.

    Args:
        chosen: By the parser.
        kind: Which settings it reads.

    Raises:
        ReportedError: They do not go together.
    """
    values = chosen.as_dict()
    return kind(**{item.name: values[item.name] for item in fields(kind)})


def read_config(path: Path) -> Settings:
    """Read a configuration file; keys that it leaves out have their defaults. One with `extract` is an extraction's.

    Raises:
        ReportedError: There is no such file, or it is not a configuration.
    """
    config = _read_file(str(path), "config")
    kind = ExtractionSettings if "extract" in config else Settings
    return kind(**plain_value(config, kind, "", _read_word))


def _long_names(arguments: Sequence[str], short_names: Mapping[str, str]) -> list[str]:
    """Replace short names by the keys they stand for."""
    long: list[str] = []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        long.append(short_names.get(name, name) + equals + value)
        if (
            name in SWITCHES & set(short_names)
            and not equals
            and list(arguments[index + 1 : index + 2]) not in (["true"], ["false"])
        ):
            long.append("true")
    return long


def _refuse_option(name: str, known: Iterable[str]) -> NoReturn:
    hint = nearest_known(name, known, "option", LIKENESS)
    if hint.startswith("the known"):  # far too many to list
        hint = "--help lists the options"
    raise ReportedError(f"got the option {name}, which is not known; {hint}")


def _read_word(text: str) -> Any:
    """Return what YAML makes of a word; the word itself where it is not YAML."""
    try:
        return get_loader("yaml")(text)  # the parser's own, which knows 1e-3 for a number
    except (yaml.YAMLError, TypeError):  # jsonargparse's loader does not take keys that are numbers, as in 5:
        return text


def _read_file(path: str, key: str, *, refuse_doubles: bool = False) -> dict[Any, Any]:
    """Return the keys and values of a YAML file.

    Args:
        path: Of the file.
        key: What it is for, for messages.
        refuse_doubles: Whether a key that stands there twice is refused. What a program wrote has none, and is long.

    Raises:
        ReportedError: It cannot be read, or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        config = get_loader("yaml")(text)
        if refuse_doubles:
            _refuse_doubles(text, f"{key}: {path}")
    except ReportedError:
        raise
    except UnicodeDecodeError as error:
        raise ReportedError(f"{key}: {path}: is not UTF-8 text; expected a YAML file") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ReportedError(f"{key}: got {path!r}; expected a YAML file that can be read: {why}") from error
    except yaml.YAMLError as error:
        raise ReportedError(f"{key}: {path}: is not YAML: {_fault_of(error)}") from error
    if not isinstance(config, dict):
        held = "nothing" if config is None else repr(config)[:SHOWN]
        raise ReportedError(f"{key}: {path}: holds {held}; expected keys and values, as  analysis: {{top_k: 5}}")
    return config


def _refuse_doubles(text: str, where: str) -> None:
    """Refuse YAML in which a key stands twice in one section: YAML would take the last one without a word."""
    nodes: list[Any] = [yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
    for node in nodes:
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for name, value in node.value:
            word, line = str(name.value), name.start_mark.line + 1
            if word in lines:
                places = f", in lines {lines[word]} and {line}" if line > lines[word] else ""
                raise ReportedError(f"{where}: got the key {word!r} twice{places}; keep one of them")
            lines[word] = line
            if not any(value is known for known in nodes):  # an alias is the same node once more
                nodes.append(value)


def _fault_of(error: yaml.YAMLError) -> str:
    """Return what is wrong with a YAML file, with the line where an editor finds it."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None)}"


def _to_yaml(plain: Any) -> str:
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)

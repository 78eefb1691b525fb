"""Settings in files and options: what is taken, and that both ways to read them give the same."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

import pytest

from llm_entropy.errors import ReportedError
from llm_entropy.settings import ControlSettings, ModelSettings, Settings
from llm_entropy.settings.configuration import read_config, settings_parser, to_settings
from llm_entropy.settings.fields import plain_value, type_below

WRITTEN = """
seed: "3"
analysis:
  temperature: 1e-1
  metrics: entropy
  control: {control_vector: [.5, 1], strength: 2, layer_weights: [1e-1, -.inf, 3]}
models: {m: gpt2, n: {name: bert, dtype: float16}}
data:
  # nothing yet
output: {run_name: 2024-01-01}
"""


def by_options(*arguments: str) -> Settings:
    return to_settings(settings_parser().read(arguments))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(WRITTEN.replace("-.inf", "2"), encoding="utf-8-sig")
    return path


def test_a_file_says_the_same_to_the_parser_as_by_itself(config: Path):
    settings = read_config(config)
    assert by_options("--config", str(config)) == settings
    assert settings == Settings(
        seed=3,
        analysis={  # type: ignore[arg-type]
            "temperature": 0.1,
            "metrics": ["entropy"],
            "control": ControlSettings(control_vector=[0.5, 1.0], strength=2.0, layer_weights=[0.1, 2.0, 3.0]),
        },
        models={"m": "gpt2", "n": ModelSettings("bert", dtype="float16")},
        output={"run_name": "2024-01-01"},  # type: ignore[arg-type]
    )


def test_numbers_that_are_infinite_reach_the_settings_which_refuse_them(config: Path):
    config.write_text(WRITTEN)
    for read in (read_config, lambda path: by_options("--config", str(path))):
        with pytest.raises(ReportedError, match=r"layer_weights: got \[0\.1, -inf, 3\.0\]; expected finite numbers"):
            read(config)


def test_options_go_before_files_and_later_ones_before_earlier_ones(config: Path, tmp_path: Path):
    (tmp_path / "more.yaml").write_text("analysis: {top_k: 7, control: {strength: 4}}")
    files = ("--config", str(config), "--config", str(tmp_path / "more.yaml"))
    analysis = by_options("--seed=9", *files, "--temperature", "2", "--analysis.top_k", "8").analysis
    assert (analysis.temperature, analysis.top_k, analysis.control.strength) == (2.0, 8, 4.0)
    assert analysis.control.control_vector == [0.5, 1.0]


def test_a_configuration_may_come_from_a_pipe_which_can_be_read_only_once():
    reader, writer = os.pipe()
    os.write(writer, b"seed: 5")
    os.close(writer)
    assert by_options("--config", f"/dev/fd/{reader}").seed == 5
    os.close(reader)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--analysis.metrics", "entropy"), ["entropy"]),
        (("--analysis.metrics", "[margin, entropy]"), ["entropy", "margin"]),
        (("--analysis.metrics=entropy", "--analysis.metrics+=margin"), ["entropy", "margin"]),
        (("--analysis", "{metrics: entropy}"), ["entropy"]),
    ],
)
def test_one_metric_needs_no_brackets(arguments: tuple[str, ...], expected: list[str]):
    assert by_options(*arguments).analysis.metrics == expected


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--data.path", "[a].csv", "[a].csv"),
        ("--data.path", "[a]", "[a]"),
        ("--data.path", "-x", "-x"),
        ("--data.path", "null", None),
        ("--data.text_column", "2024", "2024"),
    ],
)
def test_text_is_taken_as_it_is(option: str, value: str, expected: Optional[str]):
    assert getattr(by_options(option, value).data, option.rpartition(".")[2]) == expected


@dataclass
class Inner:
    """A nested section."""

    number: int = 0


@dataclass
class Steered:
    """Settings that a mapping holds by name."""

    strength: float = 1.0
    inner: Inner = field(default_factory=Inner)
    pair: Optional[Inner] = None


NAMED = Optional[dict[str, Union[str, Steered]]]


def test_mappings_of_settings_and_what_is_nested_in_them_are_checked_by_their_place():
    written = {"a": {"strength": "1e-1", "inner": {"number": 2}, "pair": None}, "b": "file", "c": {"inner": None}}
    assert plain_value(written, NAMED, "named", float) == {
        "a": {"strength": 0.1, "inner": {"number": 2}, "pair": None},
        "b": "file",
        "c": {},
    }


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"a": {"inner": {"numbr": 1}}}, "named.a.inner: got the key 'numbr', which is not known; the nearest known"),
        ({"a": {"inner": {"number": 0.5}}}, "named.a.inner.number: got 0.5; expected a whole number"),
        ({"a": {"inner": [1]}}, "named.a.inner: got [1]; expected a section with keys below it"),
        ({"a": {"pair": True}}, "named.a.pair: got true; expected a section with keys below it or null"),
        ({"a": None}, "named.a: got null; expected text or a section with keys below it"),
        ([1], "named: got [1]; expected a mapping, as {key: value} or null"),
    ],
)
def test_what_is_wrong_deep_in_a_file_is_named_by_its_place(written: Any, message: str):
    with pytest.raises(ReportedError) as caught:
        plain_value(written, NAMED, "named", lambda word: word)
    assert str(caught.value).startswith(message)


def test_the_type_of_a_key_is_found_through_mappings_and_sections():
    steered = type_below(NAMED, "any", "named")
    inner = type_below(steered, "inner", "named.any")
    assert inner is Inner
    assert type_below(inner, "number", "named.any.inner") is int
    assert type_below(int, "more", "named.any.inner.number") is None
    with pytest.raises(ReportedError, match=r"^named\.any: got the key 'iner', which .*'inner'$"):
        type_below(steered, "iner", "named.any")


@pytest.mark.parametrize(
    ("words", "blocks", "tokens"),
    [
        (["--analysis.control.blocks", "8:12"], "8:12", "all"),
        (["--analysis.control.blocks=[1, 2]"], [1, 2], "all"),
        (["--analysis.control.tokens", "5:"], None, "5:"),
        (["--analysis.control.tokens=-3:"], None, "-3:"),
        (["--analysis.control.tokens", "last"], None, "last"),
    ],
)
def test_slices_of_blocks_and_tokens_are_taken_as_they_are_written(words: list[str], blocks: Any, tokens: str) -> None:
    control = to_settings(settings_parser(prog="x").read(words)).analysis.control
    assert (control.blocks, control.tokens) == (blocks, tokens)

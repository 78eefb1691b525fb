"""The conditions of a run: their names, folders and order, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from llm_entropy.errors import ReportedError
from llm_entropy.settings import AnalysisSettings, Condition, ControlSettings, Settings, compared, to_plain

VECTOR = {"control_vector": [0.1]}


def conditions_of(**analysis: Any) -> tuple[Condition, ...]:
    return AnalysisSettings(**analysis).run_conditions


def names(**analysis: Any) -> list[str]:
    return [condition.name for condition in conditions_of(**analysis)]


@pytest.mark.parametrize(
    ("analysis", "mode", "expected"),
    [
        ({}, "standard", ["standard"]),
        ({"control": VECTOR}, "control", ["control"]),
        ({"control": {**VECTOR, "enabled": False}}, "standard", ["standard"]),
        ({"control": VECTOR, "compare_control": True}, "comparative", ["standard", "control"]),
        ({"conditions": {"bible": VECTOR}}, "control", ["bible"]),
        ({"conditions": {"bible": VECTOR, "tense": {**VECTOR, "enabled": False}}}, "control", ["bible"]),
        ({"control": VECTOR, "conditions": {"a": VECTOR, "B": VECTOR}}, "control", ["control", "a", "B"]),
        ({"conditions": {"control": VECTOR}, "compare_control": True}, "comparative", ["standard", "control"]),
    ],
)
def test_the_mode_follows_from_what_is_steered(analysis: dict[str, Any], mode: str, expected: list[str]) -> None:
    assert names(**analysis) == expected
    assert AnalysisSettings(**analysis).mode == mode


def test_each_of_several_strengths_is_a_condition_in_the_order_of_the_settings() -> None:
    control = {**VECTOR, "strengths": [2, -2, 0, 0.5, 1e-3, -0.0625]}
    found = conditions_of(control=control)
    expected = ["control_+2", "control_-2", "control_+0", "control_+0.5", "control_+0.001", "control_-0.0625"]
    assert [condition.name for condition in found] == expected
    assert [condition.steering.strength for condition in found if condition.steering] == control["strengths"]
    assert names(control={**VECTOR, "strengths": [3]}) == ["control"]
    assert names(control={**VECTOR, "strengths": [-0.0, 1]}) == ["control_+0", "control_+1"]


def test_a_strength_of_0_has_no_plots_unless_it_is_all_there_is() -> None:
    several = conditions_of(compare_control=True, control={**VECTOR, "strengths": [-1, 0, 1], "placebo": {"random": 1}})
    assert [one.name for one in several if one.has_plots] == ["standard", "control_-1", "control_+1"]
    assert [one.has_plots for one in conditions_of(compare_control=True, control={**VECTOR, "strength": 0})] == [
        True
    ] * 2


def test_placebos_come_last_at_the_largest_strength() -> None:
    found = conditions_of(
        compare_control=True,
        control={**VECTOR, "strengths": [1, -3, 2], "placebo": {"random": 2, "orthogonal": 1}},
        conditions={"bible": {**VECTOR, "strengths": [-2, 2], "placebo": {"random": 1}}},
    )
    placebos = [condition for condition in found if condition.role == "placebo"]
    assert list(found[-4:]) == placebos
    assert [(condition.name, condition.steering and condition.steering.strength) for condition in placebos] == [
        ("control_random_1", -3),
        ("control_random_2", -3),
        ("control_orthogonal_1", -3),
        ("bible_random_1", 2),
    ]
    assert [condition.keeps_tokens for condition in found] == [True] * 6 + [False] * 4


def test_one_condition_called_control_has_the_folders_of_old_and_several_have_their_own() -> None:
    (_, control, _) = conditions_of(compare_control=True, control={**VECTOR, "placebo": {"random": 1}})
    assert (control.folder, control.comparison_folder) == ("control", "comparative")
    standard, *others = conditions_of(compare_control=True, control={**VECTOR, "strengths": [-1, 1]})
    assert standard.folder == "standard"
    assert [one.folder for one in others] == ["control/control_-1", "control/control_+1"]
    assert [one.comparison_folder for one in others] == ["comparative/control_-1", "comparative/control_+1"]
    (bible,) = conditions_of(conditions={"bible": VECTOR})
    assert bible.folder == "control/bible"


def test_each_condition_is_compared_with_the_standard_one_where_that_is_run() -> None:
    found = conditions_of(compare_control=True, control={**VECTOR, "strengths": [-1, 1], "placebo": {"random": 1}})
    assert [(pair.baseline, pair.other) for pair in compared(found)] == [(found[0], other) for other in found[1:]]
    assert compared(conditions_of(control={**VECTOR, "strengths": [-1, 1]})) == []


@pytest.mark.parametrize(
    ("analysis", "message"),
    [
        ({"conditions": {"a/b": VECTOR}}, r"analysis\.conditions: got the key 'a/b', which names folders; expected"),
        ({"conditions": {"": VECTOR}}, r"analysis\.conditions: got the key ''"),
        ({"conditions": {"x" * 101: VECTOR}}, r"got a key of 101 bytes, which names folders; expected at most 100"),
        ({"conditions": {".a": VECTOR}}, r"analysis\.conditions: got the key '\.a'"),
        (
            {"conditions": {"Standard": VECTOR}},
            r"analysis\.conditions: got the key 'Standard'.*none of standard",
        ),
        (
            {"conditions": {"a": {}}},
            r"analysis\.conditions\.a: got no vector; expected control_vector or",
        ),
        (
            {"conditions": {"a": {"strenght": 1}}},
            r"analysis\.conditions\.a: got the key 'strenght'.*'strength'",
        ),
        (
            {"conditions": {"a": {**VECTOR, "strength": float("nan")}}},
            r"^analysis.conditions.a.strength: got \[nan\]",
        ),
        (
            {"conditions": {"a": {**VECTOR, "strengths": []}}},
            r"^analysis\.conditions\.a\.strengths: got \[\]",
        ),
        (
            {"conditions": {"a": {**VECTOR, "placebo": {"random": -1}}}},
            r"^analysis\.conditions\.a\.placebo\.random: got -1; expected at least 0",
        ),
        ({"conditions": {"a": VECTOR, "A": VECTOR}}, r"analysis\.conditions\.A: the condition A has the name of a of"),
        (
            {"control": {**VECTOR, "strengths": [1, 2]}, "conditions": {"control_+1": VECTOR}},
            r"conditions\.control_\+1: the condition control_\+1 has the name of control_\+1 of analysis\.control;",
        ),
        (
            {"control": VECTOR, "conditions": {"control": VECTOR}},
            r"got the key 'control', which is the name of",
        ),
        (
            {"control": {**VECTOR, "strengths": [1, 1.0]}},
            r"strengths: got \[1\.0, 1\.0\], of which two make",
        ),
        (
            {"control": {**VECTOR, "strengths": [1, "x"]}},
            r"control\.strengths: got \[1, 'x'\].*list of numbers",
        ),
        (
            {"control": {**VECTOR, "strengths": [1], "strength": 2}},
            r"strengths: got \[1\.0\] beside .*strength 2;",
        ),
        (
            {"control": {**VECTOR, "placebo": {"random": 1}}},
            r"control\.placebo: placebos are compared with",
        ),
        ({"control": {**VECTOR, "placebo": {"rotated": 1}}}, r"analysis\.control\.placebo: got the key 'rotated'"),
        ({"compare_control": True}, r"compare_control is true, but there is no"),
        ({"compare_control": True, "control": {**VECTOR, "enabled": False}}, r"control.enabled is false"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_a_condition_is_one_line_of_error(analysis: dict[str, Any], message: str) -> None:
    with pytest.raises(ReportedError, match=message) as error:
        AnalysisSettings(**analysis)
    assert "\n" not in str(error.value)


def test_settings_of_many_conditions_survive_being_written() -> None:
    analysis = AnalysisSettings(
        compare_control=True,
        control=ControlSettings(**VECTOR, strengths=[-1, 1], placebo={"random": 3}),
        conditions={"bible": {**VECTOR, "token_weights": [1, 2]}},
    )
    plain = to_plain(Settings(analysis=analysis))
    assert Settings(**plain) == Settings(analysis=analysis)
    assert plain["analysis"]["conditions"]["bible"]["token_weights"] == [1.0, 2.0]

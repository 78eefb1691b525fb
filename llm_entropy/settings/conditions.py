"""The conditions of a run: the model as it is, and each way of steering it. This file alone says what a condition is.

They are made once, from the settings, in one order; everything else iterates over them. No name is special.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal, NamedTuple, Optional

from llm_entropy.errors import ReportedError
from llm_entropy.settings.control import ControlSettings

STANDARD: Final = "standard"
"""Name of the condition without steering."""
CONTROL: Final = "control"
"""Name of the steered condition of `analysis.control`; folder of the steered ones; a mode."""
COMPARATIVE: Final = "comparative"
"""Folder in which a condition is compared with the standard one; a mode."""

Role = Literal["standard", "control", "placebo"]
Mode = Literal["standard", "control", "comparative"]

RESERVED = (STANDARD, COMPARATIVE, "data", "plots", "predictions", "difference", "percent_change")
"""Names of other folders, and of other lines of a comparison."""
MOST_BYTES = 100
"""Of a condition's name; file systems take 255, and a strength may follow."""
MARKS = "-_.+"
"""What a condition's name may hold beside letters and digits."""


class Placebo(NamedTuple):
    """Which of the placebos of a vector it is."""

    kind: str
    """A field of `PlaceboSettings`."""
    number: int
    """From 1 on."""


@dataclass(frozen=True, eq=False)
class Steering:
    """What steers a condition."""

    source: str
    """`control`, or a key of `analysis.conditions`: whose vector, weights and direction act."""
    control: ControlSettings
    """The settings of that source."""
    strength: float
    """Factor on every vector."""
    placebo: Optional[Placebo] = None
    """What acts instead of the vector."""

    @property
    def key(self) -> str:
        """Where the source stands in the configuration, for messages."""
        return _key_of(self.source)


@dataclass(frozen=True, eq=False)
class Condition:
    """One way of running a model."""

    name: str
    """Names columns, and folders where there are several steered conditions."""
    role: Role
    steering: Optional[Steering] = None
    """None: the model as it is."""
    is_only_control: bool = False
    """Whether it is the one steered condition of the run, called `control`: its folders have no level of their own."""

    @property
    def keeps_tokens(self) -> bool:
        """Whether its records name tokens, and it has tables and plots of its own; a placebo's are metrics alone."""
        return self.role != "placebo"

    @property
    def has_plots(self) -> bool:
        """Whether it has plots of its own: those of strength 0, one of several, would only show the standard run."""
        repeats = self.steering is not None and self.steering.strength == 0 and not self.is_only_control
        return self.keeps_tokens and not repeats

    @property
    def folder(self) -> str:
        """Where in a run its tables and plots are."""
        return self.name if self.role == STANDARD or self.is_only_control else f"{CONTROL}/{self.name}"

    @property
    def comparison_folder(self) -> str:
        """Where in a run it is compared with the standard condition."""
        return COMPARATIVE if self.is_only_control else f"{COMPARATIVE}/{self.name}"


class Comparison(NamedTuple):
    """Two conditions that are compared."""

    baseline: Condition
    other: Condition


def make_conditions(
    control: ControlSettings, named: Mapping[str, ControlSettings], *, compares: bool
) -> tuple[Condition, ...]:
    """Return the conditions of a run: the standard one, the steered ones in the order of the settings, placebos last.

    Args:
        control: `analysis.control`.
        named: `analysis.conditions`.
        compares: Whether the standard condition is run beside the steered ones.

    Raises:
        ReportedError: There is nothing to compare with, a name cannot be a folder or is there twice, or placebos have
            nothing to be compared with.
    """
    sources = _sources(control, named, compares)
    steered = [
        Condition(_name_of(source, strength, settings), CONTROL, Steering(source, settings, strength))
        for source, settings in sources.items()
        for strength in settings.all_strengths
    ]
    placebos = [condition for source, settings in sources.items() for condition in _placebos(source, settings)]
    if placebos and not compares:
        source = next(condition.steering.source for condition in placebos if condition.steering is not None)
        raise ReportedError(
            f"{_key_of(source)}.placebo: placebos are compared with the standard run, but analysis.compare_control is "
            "false; set it to true"
        )
    _refuse_doubles([*steered, *placebos])
    if len(steered) == 1 and steered[0].name == CONTROL:
        steered = [Condition(CONTROL, CONTROL, steered[0].steering, is_only_control=True)]
    first = [Condition(STANDARD, STANDARD)] if compares or not steered else []
    return (*first, *steered, *placebos)


def compared(conditions: Sequence[Condition]) -> list[Comparison]:
    """Return what is compared: every other condition with the standard one, if that is run."""
    baseline = next((condition for condition in conditions if condition.role == STANDARD), None)
    if baseline is None:
        return []
    return [Comparison(baseline, condition) for condition in conditions if condition is not baseline]


def mode_of(conditions: Sequence[Condition]) -> Mode:
    """Return what a run writes: `comparative`, or `standard` or `control` alone."""
    if compared(conditions):
        return "comparative"
    return "standard" if conditions[0].role == STANDARD else "control"


def _sources(
    control: ControlSettings, named: Mapping[str, ControlSettings], compares: bool
) -> dict[str, ControlSettings]:
    """Return the settings that steer, by name."""
    for name in named:
        _check_name(name)
    if CONTROL in named and control.has_vector:
        raise ReportedError(
            "analysis.conditions: got the key 'control', which is the name of analysis.control; choose another name"
        )
    everything = named if CONTROL in named else {CONTROL: control, **named}
    sources = {name: settings for name, settings in everything.items() if settings.is_enabled}
    if compares and not sources:
        if control.enabled is False:
            raise ReportedError("analysis.compare_control is true, but analysis.control.enabled is false; change one")
        raise _without_vector("compare_control")
    for name, settings in sources.items():
        if not settings.has_vector:
            raise (
                _without_vector("control.enabled")
                if name == CONTROL
                else ReportedError(f"{_key_of(name)}: got no vector; expected control_vector or control_vectors")
            )
    for name, settings in named.items():
        if settings.enabled is None and not settings.has_vector:
            raise ReportedError(f"{_key_of(name)}: got no vector; expected control_vector or control_vectors")
    return sources


def _without_vector(key: str) -> ReportedError:
    return ReportedError(
        f"analysis.{key} is true, but there is no control vector; give analysis.control.control_vector "
        "(--control-vector FILE) or analysis.control.control_vectors"
    )


def _name_of(source: str, strength: float, settings: ControlSettings) -> str:
    """Return what a condition is called: as its vector, with the strength where there are several."""
    return source if len(settings.all_strengths) == 1 else f"{source}_{strength + 0.0:+g}"  # -0.0 + 0.0 is 0.0


def _placebos(source: str, settings: ControlSettings) -> list[Condition]:
    """Return the placebos of a vector, at the largest of its strengths; of -s and s that is s."""
    strength = max(settings.all_strengths, key=lambda one: (abs(one), one))
    return [
        Condition(
            f"{source}_{item.name}_{number}",
            "placebo",
            Steering(source, settings, strength, Placebo(item.name, number)),
        )
        for item in fields(settings.placebo)
        for number in range(1, getattr(settings.placebo, item.name) + 1)
    ]


def _check_name(name: str) -> None:
    is_folder = bool(name) and not name.startswith(".") and all(letter.isalnum() or letter in MARKS for letter in name)
    if len(name.encode()) > MOST_BYTES:
        raise ReportedError(
            f"analysis.conditions: got a key of {len(name.encode())} bytes, which names folders; expected at most "
            f"{MOST_BYTES}: {name[:30]}..."
        )
    if not is_folder or name.casefold() in RESERVED:
        taken = f", and none of {', '.join(RESERVED)}"
        raise ReportedError(
            f"analysis.conditions: got the key {name!r}, which names folders; expected letters, digits and "
            f"{' '.join(MARKS)}, not beginning with a dot{taken}"
        )


def _refuse_doubles(conditions: Sequence[Condition]) -> None:
    """Refuse two conditions of one name; some file systems take capitals for small letters."""
    seen: dict[str, Condition] = {}
    for condition in conditions:
        other = seen.setdefault(condition.name.casefold(), condition)
        assert condition.steering is not None
        assert other.steering is not None
        if other is condition:
            continue
        here, there = condition.steering.key, other.steering.key
        if here == there:
            strengths = condition.steering.control.all_strengths
            raise ReportedError(
                f"{here}.strengths: got {strengths}, of which two make the condition {condition.name}; give each once"
            )
        raise ReportedError(
            f"{here}: the condition {condition.name} has the name of {other.name} of {there}; choose another name"
        )


def _key_of(source: str) -> str:
    return "analysis.control" if source == CONTROL else f"analysis.conditions.{source}"

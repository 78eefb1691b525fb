r"""What MkDocs does with a page before it is made: the settings' own docstrings become a table, formulas become MathML.

A page that says `<!-- settings -->` gets the reference of all settings there. A formula stands between \( and \).
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_origin

import yaml

from llm_entropy.settings import Settings, to_plain

SETTINGS = "<!-- settings -->"
FORMULA = r"\\\((.+?)\\\)"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the text of a page as it is made into HTML; MkDocs calls it."""
    if SETTINGS in markdown:
        markdown = markdown.replace(SETTINGS, "\n".join(reference(Settings, "")))
    if formulas := set(re.findall(FORMULA, markdown)):
        from latex2mathml.converter import convert

        # Markdown takes `<math>` at the beginning of a line for a block of its own.
        made = {formula: f"<span>{convert(formula)}</span>" for formula in formulas}
        markdown = re.sub(FORMULA, lambda found: made[found[1]], markdown)
    return markdown


def reference(section: type, key: str) -> Iterator[str]:
    """Yield the Markdown lines of a section of the settings, then those of the sections in it.

    Args:
        section: A dataclass, each field of which has a docstring.
        key: Its place in the configuration.
    """
    told = docstrings(section)
    below = [(item, inner) for item in fields(section) if (inner := section_of(item.type)) is not None]
    plain = [item for item in fields(section) if item.name not in {one.name for one, _ in below}]
    if key:
        yield from (f"## `{key}`", "", inspect.cleandoc(section.__doc__ or ""), "")
    if plain:
        yield from ("| key | type | default | |", "|---|---|---|---|")
    for item in plain:
        yield f"| `{item.name}` | {written(item.type)} | {default_of(item)} | {escaped(told.get(item.name, ''))} |"
    yield ""
    for item, inner in below:
        place = f"{key}.{item.name}" if key else item.name
        if get_origin(item.type) is not dict:
            yield from reference(inner, place)
        elif inner.__name__ == "ModelSettings":
            yield from reference(inner, f"{place}.NAME")
        else:
            yield from (f"## `{place}.NAME`", "", escaped(told.get(item.name, "")), "")


def docstrings(section: type) -> dict[str, str]:
    """Return the sentence below each field of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    told = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and is_text:
            told[before.target.id] = " ".join(str(after.value.value).split())
    return told


def section_of(declared: Any) -> Any:
    """Return the dataclass that a field holds, alone or by name; None where it holds plain values."""
    if is_dataclass(declared):
        return declared
    return next((inner for one in get_args(declared) if (inner := section_of(one)) is not None), None)


def written(declared: Any) -> str:
    """Return a type as a user would say it."""
    if get_args(declared) and str(get_origin(declared)).startswith("typing.Literal"):
        return ", ".join(f"`{choice}`" for choice in get_args(declared))
    if get_origin(declared) is list:
        return f"list of {written(get_args(declared)[0])}"
    if get_args(declared):
        return " or ".join(dict.fromkeys(written(one) for one in get_args(declared)))
    names = {"NoneType": "null", "str": "text", "int": "whole number", "float": "number", "bool": "true, false"}
    name = getattr(declared, "__name__", str(declared))
    return names.get(name, name)


def default_of(item: Field[Any]) -> str:
    """Return the default of a field as YAML has it."""
    if item.default is MISSING and item.default_factory is MISSING:
        return "must be given"
    value = item.default if item.default is not MISSING else item.default_factory()  # type: ignore[misc]
    text = yaml.safe_dump(to_plain(value), default_flow_style=True, width=10_000).replace("\n...", "").strip()
    return f"`{text}`"


def escaped(text: str) -> str:
    """Return a text that fits into a cell."""
    return text.replace("|", "\\|")

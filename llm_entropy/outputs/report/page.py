"""The page: its text, style and program from the package, and its data, in one file that asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from llm_entropy.outputs.report.content import content
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import Settings
from llm_entropy.store.files import write_text

REPORT = "report.html"
PROGRAM = (
    *("elements", "format", "facts", "looks", "tip", "charts", "meanings"),
    *(
        "verdict",
        "summary",
        "curves",
        "impact",
        "placebos",
        "doses",
        "answers",
        "groups",
        "generated",
        "sample",
        "grid",
    ),
    *("sentences", "words", "run", "main"),
)
"""The files of the program, in `program/`, in the order in which they stand on the page."""
SENTENCE_BYTES = 1_000_000
"""What the sentences of all models may need on the page, before their texts are escaped."""
HEIGHT = 900
"""Pixels of the page in a notebook."""


@dataclass(frozen=True)
class ReportPage:
    """The report of a run; a notebook shows the page itself."""

    path: Path
    """Where it is."""

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, which may run its program and nothing else."""
        text = html.escape(self.path.read_text(encoding="utf-8"))
        return (
            f'<iframe srcdoc="{text}" sandbox="allow-scripts" width="100%" height="{HEIGHT}" title="Report"></iframe>'
        )


def write_report(run_dir: Path, settings: Settings, about: Mapping[str, Any], tables: Sequence[ModelTables]) -> Path:
    """Write `report.html`: the same bytes whenever it is made of the same run.

    Args:
        run_dir: The run's folder, with all other outputs in it.
        settings: Of the run.
        about: What `run.json` says of the complete run.
        tables: What the merge made of each model.

    Returns:
        The file.
    """
    path = run_dir / REPORT
    write_text(path, page_of(content(run_dir, settings, about, tables), str(about["run"])))
    return path


def page_of(data: Any, name: str) -> str:
    """Return the page.

    What users wrote is data, never markup: it stands in JSON in which no `<` is left, and in an escaped title. The
    page forbids itself every connection, and every program and style but its own, which it knows by their hashes.

    Args:
        data: What `content` returns.
        name: The run's.
    """
    template, style, program = _own("page.html"), _own("page.css"), _program()
    parts = {
        "title": html.escape(f"{name} \u00b7 llm_entropy"),
        "policy": f"default-src 'none'; script-src '{_hash(program)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "program": program,
    }
    pieces = template.split("{{")
    filled = [parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:])]
    return pieces[0] + "".join(filled)


def _program() -> str:
    """Return the program in one piece: its files share their names, and nothing of them is seen outside."""
    return '\n"use strict";\n(() => {\n' + "\n".join(_own(f"program/{name}.js") for name in PROGRAM) + "})();\n"


def _own(name: str) -> str:
    """Return a file of this folder."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what a content security policy calls a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

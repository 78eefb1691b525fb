"""Tables of measurements, and what they were measured on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "lightning", "datasets", "pyarrow")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    Args:
        header: Its columns.
        rows: Its rows.
    """
    lines = [header, ["---:"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def conditions(dtype: str = "float32") -> str:
    """Return what the measurements were made on, in one paragraph.

    Args:
        dtype: Type of the numbers.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return f"{time.strftime('%Y-%m-%d')}; {device}; {dtype}; Python {platform.python_version()}, {versions}.\n"


def save(name: str, text: str) -> Path:
    """Write a report among the results, and return where it is.

    Args:
        name: What was measured.
        text: The report.
    """
    device = "gpu" if torch.cuda.is_available() else "cpu"
    path = RESULTS / f"{name}-{device}-{time.strftime('%Y-%m-%d')}.md"
    path.write_text(text, encoding="utf-8")
    return path

"""The tutorial as a notebook: MkDocs runs it, and makes a page of it with all that it puts out.

The notebook is kept without outputs. A cell that fails is an error of the build.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NOTEBOOK, PAGE, OUTPUTS = "tutorial.ipynb", "notebook.md", "notebook_files"
LARGEST_INLINE = 100_000
"""Characters of HTML that stand in the page itself; what is longer, as a report, is a file in a frame."""
SECONDS = 600
"""A cell may take so long."""


def on_files(files: Any, config: Any) -> Any:
    """Add the page and the files that it shows; MkDocs calls it."""
    from mkdocs.structure.files import File

    text, outputs = page_of(executed((Path(config.docs_dir) / NOTEBOOK).read_text(encoding="utf-8")))
    files.append(File.generated(config, PAGE, content=text))
    for name, content in outputs.items():
        files.append(File.generated(config, f"{OUTPUTS}/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have other pages link to the page, not to the notebook, which browsers do not show; MkDocs calls it."""
    return markdown if page.file.src_uri == PAGE else markdown.replace(f"]({NOTEBOOK})", f"]({PAGE})")


@lru_cache(maxsize=1)  # `mkdocs serve` builds again with every change of any page
def executed(text: str) -> Mapping[str, Any]:
    """Return a notebook with the outputs of its cells, which run in a folder that is removed.

    Args:
        text: The notebook's file.

    Raises:
        CellExecutionError: A cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.reads(text, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}).execute()
    return dict(notebook)


def page_of(notebook: Mapping[str, Any]) -> tuple[str, dict[str, str | bytes]]:
    """Return a notebook's page in Markdown, and the files that it shows, by name."""
    parts: list[str] = []
    files: dict[str, str | bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(fenced(source, "python"))
        # Warnings on stderr are of the machine that builds, and may name its folders.
        parts += [shown(output, files) for output in cell["outputs"] if output.get("name") != "stderr"]
    return "\n\n".join(parts) + "\n", files


def shown(output: Mapping[str, Any], files: dict[str, str | bytes]) -> str:
    """Return an output of a cell in Markdown.

    Args:
        output: As a notebook holds it.
        files: Gets what is not text.
    """
    if output["output_type"] == "stream":
        return fenced("".join(output["text"]), "text")
    data = output["data"]
    if "image/png" in data:
        name = f"{len(files) + 1}.png"
        files[name] = base64.b64decode("".join(data["image/png"]))
        return f"![The figure of this cell]({OUTPUTS}/{name})"
    html = "".join(data.get("text/html", ""))
    if len(html) > LARGEST_INLINE:
        name = f"{len(files) + 1}.html"
        files[name] = f"<!DOCTYPE html><meta charset='utf-8'>{html}"
        return f'<iframe src="{OUTPUTS}/{name}" width="100%" height="820" title="The report of this run"></iframe>'
    if html:
        return f'<div class="output">{" ".join(html.split())}</div>'
    return fenced("".join(data["text/plain"]), "text")


def fenced(text: str, language: str) -> str:
    """Return a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"

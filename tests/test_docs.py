"""The README and the documentation: every command and option in them exists, every link leads somewhere."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shlex
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import get_origin

import pytest

from llm_entropy.commands.table import COMMANDS
from llm_entropy.settings import ModelSettings, Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = {command.name: command.module for command in COMMANDS}
PLACES = {"RUN_DIR": "analysis_outputs", "RUN_DIR/config.yaml": "configs/default.yaml"}
"""What stands for a folder or a file of the reader's."""
MOST_LINES, MOST_BYTES = 130, 1_500_000


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """Return each line of each block of commands with its page; a backslash at the end joins the next."""
    return [
        (page.name, line)
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def read(words: list[str]) -> None:
    """Have the command line read the words behind `llm-entropy`, up to where it would begin to work."""
    name, *arguments = words
    import_module(NAMED[name]).parser(f"llm-entropy {name}").read([PLACES.get(word, word) for word in arguments])


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_one_that_the_program_takes(page: str, line: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(line, comments=True)
    if program == "llm-entropy":
        read(words)
    elif program == "make":
        assert re.search(rf"^{words[0]}:.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif program == "sbatch":
        place = next(k for k, word in enumerate(words) if word.endswith(".sbatch"))
        assert (ROOT / words[place]).is_file()
        read(["predict", *words[place + 1 :]])
    elif program.startswith("slurm/"):
        assert (ROOT / program).is_file()
        read(["predict", *words[words.index("--") + 1 :]])
    elif program == "pip":
        assert words == ["install", "--constraint", "constraints.txt", "--editable", "."]
        assert (ROOT / "constraints.txt").is_file()
    else:
        assert line.strip() in ("source .venv/bin/activate", "python3 -m venv .venv")


def test_an_option_that_is_gone_would_be_found():
    with pytest.raises(ValueError, match=r"--data\.paths, which is not known"):
        read(["predict", "--data.paths", "corpus.csv"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_is_python_and_links_lead_to_files(page: Path):
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_python_of_the_readme_runs_and_gives_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    code = code.replace("compare_control=True,", 'compare_control=True, output={"plots": False}, quiet=True,')
    names: dict[str, object] = {}
    exec(code, names)
    result = names["result"]
    assert repr(result).startswith("<RunResult comparative, in analysis_outputs/run_")
    assert result["gpt2"]["standard"]["entropy"].shape == (20, 6)
    assert len(result["gpt2"].summary) == 5 * 6 + 5 + 2 * 6


def test_the_readme_is_short_and_the_pictures_are_small():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg")]
    assert sum(path.stat().st_size for path in pictures) < MOST_BYTES
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.name for path in pictures if path.name not in shown] == []


def test_every_page_is_in_the_table_of_contents():
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.name != "README.md"]
    assert [page for page in pages if f": {page}\n" not in contents] == []


def hooks(name: str = "docs_hooks") -> ModuleType:
    about = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert about is not None
    assert about.loader is not None
    module = importlib.util.module_from_spec(about)
    about.loader.exec_module(module)
    return module


def test_the_reference_of_the_settings_has_every_key_with_its_sentence():
    made = hooks().on_page_markdown("<!-- settings -->")

    def check(section: type, key: str) -> None:
        told = hooks().docstrings(section)
        for item in fields(section):
            inner = hooks().section_of(item.type)
            if inner is not None and get_origin(item.type) is not dict:
                check(inner, f"{key}.{item.name}".lstrip("."))
            elif item.name != "models":
                assert told.get(item.name), f"{key}.{item.name} has no docstring"
                assert f"| `{item.name}` |" in made or f"## `{key}.{item.name}.NAME`" in made

    check(Settings, "")
    check(ModelSettings, "models.NAME")
    assert "| `top_k` | whole number | `5` | How many tokens of the final layer the predictions list. |" in made
    assert "## `models.NAME`" in made


def test_the_notebook_is_kept_without_outputs_and_its_code_is_python():
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 10
    for cell in cells:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        compile("".join(cell["source"]), "tutorial.ipynb", "exec")


def test_the_page_of_a_notebook_shows_each_kind_of_output():
    figure, report = b"the bytes of a picture", f"<p>{'long ' * 30_000}</p>"
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "1 of 2\n"},
        {"output_type": "stream", "name": "stderr", "text": "a warning of this machine"},
        {
            "output_type": "display_data",
            "data": {"image/png": base64.b64encode(figure).decode(), "text/plain": "Figure"},
        },
        {"output_type": "execute_result", "data": {"text/html": "<table>\n\n<td>3</td></table>", "text/plain": "3"}},
        {"output_type": "execute_result", "data": {"text/html": report, "text/plain": "page"}},
        {"output_type": "execute_result", "data": {"text/plain": "4.5"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text"]},
        {"cell_type": "code", "source": "work()", "outputs": outputs},
    ]
    text, files = hooks("docs_notebook").page_of({"cells": cells})
    assert text.split("\n\n") == [
        "# Title\nText",
        "```python\nwork()\n```",
        "```text\n1 of 2\n```",
        "![The figure of this cell](notebook_files/1.png)",
        '<div class="output"><table> <td>3</td></table></div>',
        '<iframe src="notebook_files/2.html" width="100%" height="820" title="The report of this run"></iframe>',
        "```text\n4.5\n```\n",
    ]
    assert files == {"1.png": figure, "2.html": f"<!DOCTYPE html><meta charset='utf-8'>{report}"}

"""What stands around the package agrees with it: configurations, version, dependencies, no trace of one machine."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from published import PUBLISHED

import llm_entropy
from llm_entropy.settings import ExtractionSettings, ExtractSettings, Settings

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))


def build(kind: Any, value: Any, key: str = "") -> Any:
    """Make the settings that plain YAML stands for, by the annotations of the schema."""
    if get_origin(kind) is dict:
        return {name: build(get_args(kind)[1], item, f"{key}.{name}") for name, item in value.items()}
    if not isinstance(value, dict):
        return value
    (kind,) = [choice for choice in (kind, *get_args(kind)) if is_dataclass(choice)]
    unknown = set(value) - {field.name for field in fields(kind)}
    assert not unknown, f"{key}: {kind.__name__} does not know {', '.join(sorted(unknown))}"
    hints = get_type_hints(kind)
    return kind(**{name: build(hints[name], item, f"{key}.{name}") for name, item in value.items()})


def project_list(name: str) -> set[str]:
    """Return the names of one list of requirements of pyproject.toml, in small letters, without extras and bounds."""
    match = re.search(rf"^{name} = \[(.*?)\]$", PYPROJECT, flags=re.DOTALL | re.MULTILINE)
    assert match, f"pyproject.toml holds no list {name!r}"
    return {requirement.lower() for requirement in re.findall(r'"([A-Za-z0-9_.-]+)', match[1])}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_holds_only_settings_that_exist(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "extract":
        assert build(ExtractionSettings, config).extract == ExtractSettings(), "it spells out the defaults"
        return
    settings = build(Settings, config)
    expected = {"default": "standard", "control": "control", "comparative": "comparative"}
    assert settings.analysis.mode == expected.get(path.stem, "comparative")


def test_an_unknown_key_of_a_configuration_is_found() -> None:
    with pytest.raises(AssertionError, match="does not know strenght"):
        build(Settings, {"analysis": {"control": {"strenght": 1.0}}})


def test_the_comparative_configuration_is_the_published_one() -> None:
    assert load("comparative") == yaml.safe_load(PUBLISHED)


def test_the_default_configuration_spells_out_the_defaults() -> None:
    assert build(Settings, load("default")) == Settings()


def test_the_control_configuration_differs_from_the_comparative_one_in_the_mode_alone() -> None:
    comparative = load("comparative")
    comparative["analysis"]["compare_control"] = False
    assert load("control") == comparative


def test_the_quickstart_needs_no_network() -> None:
    settings = build(Settings, load("quickstart"))
    assert settings.data.path is None
    assert [model.name for model in settings.models.values()] == ["builtin:tiny-gpt2", "builtin:tiny-bert"]


def test_every_key_of_a_shipped_configuration_is_explained() -> None:
    for path in CONFIGS:
        silent = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if re.match(r" +\w+: [^{\[]", line) and "#" not in line
        ]
        assert not silent, f"{path.name}: no comment on {silent}"


def test_the_version_stands_in_one_place() -> None:
    match = re.search(r'^version = "(.+)"$', PYPROJECT, flags=re.MULTILINE)
    assert match
    assert llm_entropy.__version__ == match[1]
    written = [
        path
        for path in (ROOT / "llm_entropy").rglob("*.py")
        if re.search(rf"""["']{re.escape(match[1])}["']""", path.read_text(encoding="utf-8"))
    ]
    assert not written, f"the version is also written in {written}; read it with importlib.metadata"


def test_the_dependencies_are_the_packages_that_are_imported() -> None:
    called = {"yaml": "pyyaml", "PIL": "pillow", "huggingface_hub": "huggingface-hub"}
    imported = set()
    for path in (ROOT / "llm_entropy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.split(".")[0])
    imported = {called.get(name, name) for name in imported - sys.stdlib_module_names - {"llm_entropy", "triton"}}
    assert imported - project_list("gguf") - project_list("peft") - project_list("zstd") == project_list("dependencies")


def test_no_tracked_file_names_a_machine_or_a_package_index() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    traces = r"/(root|home|work|opt)/[a-z]|\.\./shared|index-url|find-links"
    found = subprocess.run(
        [git, "-c", "safe.directory=*", "grep", "-nIE", traces, "--", ".", ":!tests/test_project.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode in (0, 1), found.stderr
    assert not found.stdout


def test_the_floors_that_contributors_read_are_those_that_are_held() -> None:
    layers = re.search(r"^layers = \[(.*?)^\]$", PYPROJECT, flags=re.DOTALL | re.MULTILINE)
    assert layers
    held = [set(floor.split(" | ")) for floor in re.findall(r'"(.+?)"', layers[1])]
    pages = ("CONTRIBUTING", "docs/architecture")
    contributing, architecture = ((ROOT / f"{name}.md").read_text(encoding="utf-8") for name in pages)
    rows = re.findall(r"^\| \d \| (.+) \|$", contributing, flags=re.MULTILINE)
    assert [set(re.findall("`(.+?)`", part)) for row in rows for part in row.split("below")] == held
    rows = re.findall(r"^\| \d \|(.*?)\|", architecture, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)(?:/|\.py)`", "".join(rows))) == set().union(*held, {"__init__"})


def test_no_wing_has_the_name_of_a_public_function() -> None:
    """Importing such a wing would put a module where the function stood."""
    wings = {place.name for place in (ROOT / "llm_entropy").iterdir() if (place / "__init__.py").is_file()}
    assert not wings & set(llm_entropy.__all__)
    assert all(hasattr(llm_entropy, name) for name in llm_entropy.__all__)

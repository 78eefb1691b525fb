"""Folders of models that are broken, or hold something else: which file, what is wrong with it, and what to do."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import make_model, make_tokenizer, save_model

from llm_entropy.errors import ReportedError
from llm_entropy.models.checkpoints import quick_fault, thorough_fault, weight_files
from llm_entropy.models.finding import find_model
from llm_entropy.models.loading import load_model
from llm_entropy.settings import ModelSettings

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model as safetensors, in shards, and as PyTorch has written it, today and before."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("whole", "shards", "bin", "bin_shards", "legacy")}
    save_model("gpt2", folders["whole"])
    model = make_model("gpt2")
    model.save_pretrained(folders["shards"], max_shard_size="40KB")
    weights = model.state_dict()
    half = len(weights) // 2
    for name in ("bin", "bin_shards", "legacy"):
        shutil.copy(folders["whole"] / "config.json", folders[name])
    torch.save(weights, folders["bin"] / "pytorch_model.bin")
    torch.save(weights, folders["legacy"] / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    parts = {"a.bin": dict(list(weights.items())[:half]), "b.bin": dict(list(weights.items())[half:])}
    for name, part in parts.items():
        torch.save(part, folders["bin_shards"] / name)
    index = {"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}}
    (folders["bin_shards"] / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for folder in folders.values():
        make_tokenizer("causal").save_pretrained(folder)
    return folders


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(saved[name], tmp_path / "the model"))


def find(name: object):
    return find_model("mine", ModelSettings(str(name)))


def load(name: object) -> None:
    load_model(find(name), precision="32-true", needs_attention=False)


def torch_file(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["whole", "shards", "bin", "bin_shards", "legacy"])
def test_a_whole_folder_is_read_and_nothing_is_found_against_it(saved: dict[str, Path], name: str):
    assert quick_fault(saved[name]) is None
    assert thorough_fault(saved[name]) is None
    load(saved[name])


def test_the_files_of_weights_are_those_that_transformers_reads(copy: Callable[[str], Path]):
    folder = copy("shards")
    index, *shards = weight_files(folder)
    assert index.name == "model.safetensors.index.json"
    assert shards == sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 3
    shutil.copy(shards[0], folder / "model.safetensors")
    assert weight_files(folder) == [folder / "model.safetensors"]


def test_a_broken_file_that_is_not_read_does_not_matter(copy: Callable[[str], Path]):
    folder = copy("whole")
    for name in ("pytorch_model.bin", "model.gguf", "tf_model.h5", "training.json", "picture.png"):
        (folder / name).write_bytes(POINTER)
    load(folder)


# --- found before anything is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "file", "change", "expected"),
    [
        ("whole", "model.safetensors", lambda old: POINTER, r"git-lfs pointer in place of a file of 548105171 bytes"),
        ("whole", "model.safetensors", lambda old: b"", r"is empty"),
        ("whole", "model.safetensors", lambda old: old[:6], r"is cut off at 6 bytes"),
        ("whole", "model.safetensors", lambda old: old[:100], r"is cut off at 100 bytes"),
        ("whole", "model.safetensors", lambda old: old[:-1], r"is cut off: it has [\d,]+ bytes, and [\d,]+ by its"),
        ("whole", "model.safetensors", lambda old: old + b"0", r"is damaged: it has"),
        ("whole", "model.safetensors", lambda old: b"<!DOCTYPE html><p>Sign in", r"is a web page"),
        ("whole", "model.safetensors", lambda old: bytes(300), r"is damaged, or no safetensors"),
        ("whole", "model.safetensors", lambda old: old[:9] + b"}" + old[10:], r"is damaged: its header"),
        ("whole", "tokenizer.json", lambda old: POINTER, r"git-lfs pointer"),
        ("whole", "config.json", lambda old: POINTER, r"git-lfs pointer"),
        ("shards", "model-00002-of-*.safetensors", lambda old: old[:2000], r"is cut off"),
        ("shards", "model-00003-of-*.safetensors", None, r"is missing, though the index names it"),
        ("shards", "model.safetensors.index.json", lambda old: old[:50], r"is no valid JSON"),
        ("shards", "model.safetensors.index.json", lambda old: b'{"weight_map": {}}', r"has no 'metadata'"),
        ("bin", "pytorch_model.bin", lambda old: POINTER, r"git-lfs pointer"),
        ("bin", "pytorch_model.bin", lambda old: old[: len(old) // 2], r"is cut off, its end is missing"),
        ("bin", "pytorch_model.bin", lambda old: b"\n<html>", r"is a web page"),
        ("bin_shards", "b.bin", lambda old: old[:-1000], r"is cut off"),
        ("bin_shards", "a.bin", None, r"is missing"),
        ("bin_shards", "pytorch_model.bin.index.json", lambda old: b"[]", r"holds a list where a JSON object"),
    ],
)
def test_a_broken_file_is_named_before_anything_is_read(
    copy: Callable[[str], Path], kind: str, file: str, change: Callable[[bytes], bytes] | None, expected: str
):
    folder = copy(kind)
    (path,) = folder.glob(file)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ReportedError, match=expected) as caught:
        find(folder)
    assert f"models.mine: {folder} cannot be read: {path}" in str(caught.value)
    assert "download it again" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- found when transformers cannot read it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.json", b"", r"config\.json is no valid JSON"),
        ("config.json", b"null", r"config\.json holds a NoneType where a JSON object"),
        ("config.json", b"\xff\xfe{\0", r"config\.json is no valid JSON"),
        ("tokenizer.json", b'{"version": "1.0", ', r"tokenizer\.json is no valid JSON"),
        ("tokenizer.json", b"[]", r"tokenizer\.json holds a list"),
        ("tokenizer.json", b"{}", r"tokenizer\.json has no 'model'"),
        ("tokenizer.json", b'{"model": {}, "added_tokens": []}', r"did not match any variant|[Mm]odel"),
        ("tokenizer_config.json", b"[]", r"tokenizer_config\.json holds a list"),
        ("special_tokens_map.json", b"{", r"special_tokens_map\.json is no valid JSON"),
    ],
)
def test_a_broken_text_file_is_named(copy: Callable[[str], Path], file: str, content: bytes, expected: str):
    folder = copy("whole")
    (folder / file).write_bytes(content)
    with pytest.raises(ReportedError, match=rf"cannot load the model .*{expected}") as caught:
        find(folder)
    assert "\n" not in str(caught.value)
    assert "network" not in str(caught.value), "the files are here"


class _Code:
    def __reduce__(self):
        return (print, ("this must never be run",))


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("legacy", lambda old: old[:1], r"is damaged \(IndexError\)"),
        ("legacy", lambda old: old[:100], r"is damaged \(EOFError\)"),
        ("legacy", lambda old: old[:-1], r"is damaged \(RuntimeError\)"),
        ("legacy", lambda old: b"neither of them", r"is damaged, or holds code"),
        ("bin", lambda old: torch_file({"a": _Code()}), r"is damaged, or holds code, which is never run"),
        ("bin", lambda old: torch_file([1, 2]), r"holds a list where a dict of tensors"),
    ],
)
def test_weights_that_cannot_be_opened_are_named(
    copy: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    kind: str,
    change: Callable[[bytes], bytes],
    expected: str,
):
    path = copy(kind) / "pytorch_model.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ReportedError, match=rf"pytorch_model\.bin {expected}") as caught:
        load(path.parent)
    assert "\n" not in str(caught.value)
    assert "never be run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n_embd": "32"}, r"Validation error for field 'n_embd'.*expected int, got str"),
        ({"n_layer": None}, r"field 'n_layer'"),
        ({"activation_function": "nonsense"}, r"KeyError 'nonsense'"),
        ({"n_head": 5}, r"divisible by num_heads"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(copy: Callable[[str], Path], change: dict, expected: str):
    path = copy("whole") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ReportedError, match=rf"cannot load the model .*{expected}.*Correct its files"):
        load(path.parent)


def test_a_fault_of_a_program_keeps_its_traceback(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **options: object) -> None:
        raise TypeError("a mistake in a program")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(TypeError, match="a mistake"):
        load(saved["whole"])


# --- adapters ----------------------------------------------------------------------------------------------------


def add_adapter(folder: Path, **about: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(about))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_an_adapter_is_no_model(tmp_path: Path):
    folder = add_adapter(tmp_path / "a", peft_type="LORA", base_model_name_or_path="some/base")
    with pytest.raises(
        ReportedError,
        match=r"a holds a PEFT adapter \(LORA, of some/base, adapter_config\.json\).*give its base, and the adapter",
    ):
        find(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ReportedError, match=r"a PEFT adapter \(adapter_config\.json\)"):
        find(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ReportedError, match=r"a PEFT adapter \(adapter_model\.safetensors\)"):
        find(folder)


def test_an_adapter_with_a_configuration_of_its_base_is_no_model(saved: dict[str, Path], tmp_path: Path):
    folder = add_adapter(tmp_path / "a", peft_type="IA3")
    shutil.copy(saved["whole"] / "config.json", folder)
    with pytest.raises(
        ReportedError,
        match=r"PEFT adapter \(IA3, adapter_config\.json\), which is not applied here; give its base, and",
    ):
        find(folder)


def test_a_whole_model_with_an_adapter_beside_it_is_refused_whether_peft_is_there_or_not(copy: Callable[[str], Path]):
    folder = add_adapter(copy("shards"), peft_type="LORA")
    with pytest.raises(
        ReportedError, match=r"\(LORA, adapter_config\.json\).*give a copy without adapter_config\.json"
    ):
        find(folder)
    (folder / "adapter_config.json").unlink()
    load(folder)  # nobody applies weights without their configuration


def test_an_adapter_from_the_hub_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repository = tmp_path / "models--some--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    add_adapter(repository / "snapshots" / ("a" * 40), peft_type="LORA", base_model_name_or_path="some/base")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ReportedError, match=r"some/adapter holds a PEFT adapter \(LORA, of some/base,"):
        find("some/adapter")

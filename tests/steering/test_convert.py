"""Vectors in other formats: each gives the same steered logits, and the other programs' own way of reading it too."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plans import plan_of
from safetensors import safe_open
from test_hooks import BLOCKS_OF, LENGTHS, assert_close, logits_of, sentences, tiny
from tiny_models import HIDDEN
from torch import Tensor

from llm_entropy.errors import ReportedError
from llm_entropy.settings import ControlSettings
from llm_entropy.steering import files
from llm_entropy.steering.convert import FORMATS_OUT, Target, convert_vector
from llm_entropy.steering.hooks import steer
from llm_entropy.steering.vectors import resolve_vector

BLOCKS = 3
GPT2 = Target(BLOCKS, HIDDEN, "gpt2", "h")
ONE = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3))
ROWS = torch.arange(BLOCKS)[:, None] * ONE
PATHS = {"safetensors": "v.safetensors", "npy": "v.npy", "gguf": "v.gguf", "lm-eval": "v.pt"}


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def resolve(path: Path) -> Tensor:
    return resolve_vector(path, key="k", model="gpt2", num_blocks=BLOCKS, hidden_size=HIDDEN)


def steered_logits(path: Path) -> Tensor:
    model, (ids, mask) = tiny("gpt2"), sentences()
    plan = plan_of(ControlSettings(), resolve(path), num_blocks=BLOCKS)
    with steer(BLOCKS_OF["gpt2"](model), plan, mask):
        return logits_of(model, ids, mask)


def needs(name: str) -> None:
    if name == "gguf":
        pytest.importorskip("gguf")


@pytest.mark.parametrize("name", FORMATS_OUT)
@pytest.mark.parametrize("content", [ONE, ROWS, {2: ONE, 1: -ONE}, torch.cat([torch.zeros(1, HIDDEN), ROWS])])
def test_a_round_trip_through_a_format_gives_the_same_steered_logits(
    tmp_path: Path, name: str, content: Any, caplog: pytest.LogCaptureFixture
) -> None:
    needs(name)
    source = save(tmp_path / "source.pt", content)
    target = convert_vector(source, tmp_path / PATHS[name], model=GPT2)
    expected = steered_logits(source)
    assert torch.equal(steered_logits(target), expected)
    assert not torch.equal(expected, logits_of(tiny("gpt2"), *sentences()))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"source.pt", PATHS[name]})
    # And back, by the same door.
    again = convert_vector(target, tmp_path / "again.safetensors", model=GPT2)
    assert torch.equal(steered_logits(again), expected)
    refused = [message for message in caplog.messages if "llama.cpp refuses a file that has it" in message]
    assert len(refused) == (name == "gguf" and content is ONE)


def test_lm_eval_finds_the_modules_that_the_file_names_and_adds_the_same(tmp_path: Path) -> None:
    model, (ids, mask) = tiny("gpt2"), sentences()
    points = torch.load(
        convert_vector(save(tmp_path / "source.pt", ROWS), tmp_path / "v.pt", model=GPT2), weights_only=True
    )
    assert list(points) == ["h.1", "h.2"], "rows of zeros are not hooked"
    with ExitStack() as handles:
        for name, about in points.items():
            assert (about["action"], about["bias"]) == ("add", None)
            added = about["steering_coefficient"] * about["steering_vector"]
            module = model.base_model.get_submodule(name)
            handle = module.register_forward_hook(lambda _m, _a, output, added=added: output + added)
            handles.callback(handle.remove)
        plain = logits_of(model, ids, mask)
    steered = steered_logits(tmp_path / "v.pt")
    for row, length in enumerate(LENGTHS):
        assert_close(steered[row, :length], plain[row, :length], 1e-5)


def test_a_gguf_file_has_what_repeng_and_llama_cpp_ask_for(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(convert_vector(save(tmp_path / "source.pt", ROWS), tmp_path / "v.gguf", model=GPT2))
    entries = {name: field.contents() for name, field in reader.fields.items()}
    assert entries["general.architecture"] == "controlvector"
    assert entries["controlvector.model_hint"] == "gpt2"
    assert entries["controlvector.layer_count"] == 2
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"], (
        "no direction.0 for a row of zeros"
    )
    for tensor, row in zip(reader.tensors, ROWS[1:], strict=True):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_array_equal(tensor.data, row.numpy())


def test_tensors_are_written_with_their_shape_and_say_where_they_come_from(tmp_path: Path) -> None:
    folder = tmp_path / "caa"
    folder.mkdir()
    save(folder / "vec_layer_1_a.pt", ONE.half())
    with safe_open(convert_vector(folder, tmp_path / "v.safetensors", model=Target(BLOCKS)), "pt") as file:
        assert file.metadata()["source"] == "caa"
        vector = file.get_tensor("vector")
    assert torch.equal(vector, torch.stack([0 * ONE, ONE, 0 * ONE]).half().float())
    convert_vector(tmp_path / "v.safetensors", tmp_path / "v.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vector.numpy())


@pytest.mark.parametrize(
    ("content", "name", "model", "message"),
    [
        (
            {1: ONE},
            "v.npy",
            Target(),
            r"got vectors for blocks 1, which do not tell how many the model has; give --model, or",
        ),
        (
            ONE,
            "v.pt",
            Target(),
            r"got one vector for all blocks: it does not tell how many blocks the model has; give --m",
        ),
        (
            ROWS,
            "v.pt",
            Target(),
            r"got 3 rows, of which the first may be for the embeddings: it does not tell how many bl",
        ),
        (ROWS, "v.npy", Target(7), r"got 3 rows; expected 7, one for each block, or 8, the first for the embeddings"),
        (ROWS, "v.npy", Target(3, 5), r"got width 32; expected 5, the hidden size of the model"),
        ({1: ONE}, "v.pt", Target(None, 5), r"got width 32; expected 5, the hidden size of the model"),
        ({3: ONE}, "v.pt", Target(3), r"got a vector for block 3 \(3\); expected one each for blocks 0 to 2"),
        (ROWS + 1, "v.pt", Target(2), r"got a vector for the embeddings, for which this format has no place"),
        (
            {"blocks.0.hook_resid_pre": ONE},
            "v.pt",
            Target(),
            r"got a vector for the embeddings, for which this format has",
        ),
        (0 * ROWS, "v.pt", GPT2, r"got zeros alone; expected a vector that steers"),
    ],
)
def test_what_a_format_cannot_hold_or_the_source_does_not_tell_is_refused(
    tmp_path: Path, content: Any, name: str, model: Target, message: str
) -> None:
    source = save(tmp_path / "source.pt", content)
    with pytest.raises(ReportedError, match=rf"source\.pt: {message}"):
        convert_vector(source, tmp_path / name, model=model)
    assert list(tmp_path.iterdir()) == [source]


def test_a_target_that_is_there_or_is_of_no_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, there = save(tmp_path / "source.pt", ROWS), tmp_path / "v.npy"
    there.write_bytes(b"mine")
    with pytest.raises(
        ReportedError, match=r"v\.npy: is there already; choose another name, or replace it with --force"
    ):
        convert_vector(source, there)
    assert there.read_bytes() == b"mine"
    convert_vector(source, there, overwrite=True)
    np.testing.assert_array_equal(np.load(there), ROWS.numpy())
    for target, to, message in (
        (
            tmp_path / "v.txt",
            None,
            r"got the suffix '\.txt'; expected one of \.safetensors \(safetensors\), .*\.pt/\.pth \(lm-",
        ),
        (tmp_path / "v.txt", "gguf", r"got the suffix '\.txt' for gguf; expected \.gguf, by which it is read"),
        (tmp_path / "v.npy", "onnx", r"--to: got 'onnx'; expected one of safetensors, npy, gguf, lm-eval"),
        (tmp_path / "none" / "v.npy", None, r"got the folder .*none, which is not there; make it first"),
        (tmp_path / "d.npy", None, r"d\.npy: is there already; choose another name$"),
    ):
        (tmp_path / "d.npy").mkdir(exist_ok=True)
        with pytest.raises(ReportedError, match=message):
            convert_vector(source, target, to=to, overwrite=True)
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ReportedError, match=r"w\.npy: cannot be written: No space left on device"):
        convert_vector(source, tmp_path / "w.npy")
    assert not (tmp_path / "w.npy").exists()


def test_a_missing_gguf_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ReportedError, match="pip install gguf"):
        convert_vector(save(tmp_path / "source.pt", ROWS), tmp_path / "v.gguf", model=GPT2)
    assert not (tmp_path / "v.gguf").exists()
    assert ".gguf" in files.FORMATS


@pytest.mark.parametrize("name", FORMATS_OUT)
@pytest.mark.parametrize("content", [ONE, ROWS + 1, {0: ONE, 2: 2 * ONE}, torch.stack([ONE] * (BLOCKS + 1))])
def test_blocks_that_are_not_chosen_lose_their_vectors(
    tmp_path: Path, name: str, content: Any, caplog: pytest.LogCaptureFixture
) -> None:
    needs(name)
    source = save(tmp_path / "source.pt", content)
    target = convert_vector(source, tmp_path / PATHS[name], model=GPT2, blocks="1:")
    plans = [
        plan_of(control, resolve(path), num_blocks=BLOCKS)
        for control, path in ((ControlSettings(blocks="1:"), source), (ControlSettings(), target))
    ]
    assert torch.equal(plans[0].addends, plans[1].addends)
    assert not any("direction.0" in message for message in caplog.messages)
    for blocks, model, message in (
        ([3], GPT2, r"source\.pt: blocks: got \[3\], block 3, but the model has 3 blocks"),
        ("1:", Target(), r"source\.pt: got blocks '1:', but not how many the model has; give --model, or --num-blocks"),
    ):
        with pytest.raises(ReportedError, match=message):
            convert_vector(source, tmp_path / PATHS[name], model=model, blocks=blocks, overwrite=True)

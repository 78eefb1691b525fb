"""Vector files, lists and tensors: what is read, what it means, and what is refused."""

from __future__ import annotations

import logging
import os
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llm_entropy import builtin
from llm_entropy.errors import ReportedError
from llm_entropy.settings import ControlSettings, ControlVectors
from llm_entropy.steering.vectors import choose_vector, read_vector, resolve_vector

HIDDEN, BLOCKS = 6, 4
KEY = "analysis.control.control_vector"
VECTOR = torch.linspace(-1, 1, HIDDEN)


def resolve(value: Any) -> Tensor:
    return resolve_vector(value, key=KEY, model="gpt2", num_blocks=BLOCKS, hidden_size=HIDDEN)


def write(path: Path, content: Any) -> Path:
    """Write a tensor, or a mapping of names to tensors, in the format of the suffix."""
    named = content if isinstance(content, dict) else {"vector": content}
    if path.suffix in {".pt", ".pth", ".bin"}:
        torch.save(content, path)
    elif path.suffix == ".safetensors":
        # What is no tensor is metadata, which safetensors hold as text.
        tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
        save_file(tensors, path, {name: str(value) for name, value in named.items() if name not in tensors} or None)
    elif path.suffix == ".npy":
        np.save(path, content.numpy())
    else:
        np.savez(path, **{str(name): np.asarray(value) for name, value in named.items()})
    return path


def write_gguf(
    path: Path, tensors: dict[str, np.ndarray], architecture: str = "controlvector", **entries: str | float
) -> Path:
    """Write a file with the fields that repeng writes, unless others are given; `__` in a name stands for a dot."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    if architecture == "controlvector":
        writer.add_string("controlvector.model_hint", "gpt2")
        writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, value in entries.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(name.replace("__", "."), value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Evil:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".npy", ".npz", ".PT"])
@pytest.mark.parametrize("shape", [(HIDDEN,), (BLOCKS, HIDDEN), (BLOCKS + 1, HIDDEN)])
def test_a_single_tensor_is_taken_as_it_is(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    path = write(tmp_path / f"v{suffix.lower()}", tensor).rename(tmp_path / f"w{suffix}")
    assert torch.equal(read_vector(path, num_blocks=BLOCKS), tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    path = write(tmp_path / "v.safetensors", VECTOR.to(dtype))
    vector = read_vector(path, num_blocks=BLOCKS)
    assert vector.dtype == torch.float32
    assert torch.equal(vector, VECTOR.to(dtype).float())


def test_a_big_endian_array_and_a_parameter_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTOR.numpy().astype(">f8"))
    assert torch.equal(read_vector(tmp_path / "v.npy", num_blocks=BLOCKS), VECTOR)
    torch.save({"direction": torch.nn.Parameter(VECTOR)}, tmp_path / "v.pt")
    vector = read_vector(tmp_path / "v.pt", num_blocks=BLOCKS)
    assert torch.equal(vector, VECTOR)
    assert not vector.requires_grad


@pytest.mark.parametrize(
    "name", ["{}", "layer.{}", "layer_{}", "layers.{}", "direction.{}", "layer_activations.{}", "block.{}"]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_named_blocks_get_their_rows_and_the_others_zero(tmp_path: Path, suffix: str, name: str) -> None:
    path = write(tmp_path / f"v{suffix}", {name.format(3): VECTOR, name.format(1): 2 * VECTOR})
    zero = torch.zeros(HIDDEN)
    assert torch.equal(read_vector(path, num_blocks=BLOCKS), torch.stack([zero, 2 * VECTOR, zero, VECTOR]))


def test_the_state_of_steering_vectors_is_a_mapping_of_blocks(tmp_path: Path) -> None:
    torch.save({"layer_activations": {2: VECTOR}, "layer_type": "decoder_block"}, tmp_path / "v.pt")
    vectors = read_vector(tmp_path / "v.pt", num_blocks=BLOCKS)
    assert torch.equal(vectors[2], VECTOR)
    assert vectors.any(dim=1).tolist() == [False, False, True, False]


def test_vectors_that_were_made_elsewhere_than_in_the_residual_stream_are_refused(tmp_path: Path) -> None:
    torch.save({"layer_activations": {2: VECTOR}, "layer_type": "self_attn"}, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=r"v\.pt: got layer_type 'self_attn'; expected 'decoder_block'"):
        read_vector(tmp_path / "v.pt", num_blocks=BLOCKS)


def test_a_control_vector_of_repeng_acts_at_the_block_that_it_numbers(tmp_path: Path) -> None:
    directions = {f"direction.{k}": np.full(HIDDEN, k, np.float32) for k in (3, 2, 1)}
    directions["direction.3"] = directions["direction.3"].astype(np.float16)
    path = write_gguf(tmp_path / "v.gguf", directions)
    vectors = read_vector(path, num_blocks=BLOCKS)
    path.unlink()
    assert torch.equal(vectors, torch.arange(4.0)[:, None].expand(BLOCKS, HIDDEN))


@pytest.mark.parametrize(
    ("architecture", "entries", "message"),
    [
        (
            "llama",
            {"general__type": "adapter", "adapter__type": "lora"},
            "got general.architecture 'llama', general.type 'adapter', adapter.type 'lora'; expected 'controlvector'",
        ),
        ("gpt2", {}, "got general.architecture 'gpt2'; expected 'controlvector'"),
        ("controlvector", {"glp__mode": "project"}, "got glp.mode 'project': directions that are made to be projected"),
        ("controlvector", {"glp__hook_point": "ffn_out_pre_residual"}, "got a vector for glp.hook_point 'ffn_out_pre"),
    ],
)
def test_a_gguf_file_that_is_no_control_vector_is_refused_by_what_it_is(
    tmp_path: Path, architecture: str, entries: dict[str, str], message: str
) -> None:
    path = write_gguf(tmp_path / "v.gguf", {"direction.1": VECTOR.numpy()}, architecture, **entries)
    with pytest.raises(ReportedError, match=rf"v\.gguf: {re.escape(message)}"):
        read_vector(path, num_blocks=BLOCKS)


def test_a_control_vector_for_the_residual_stream_is_read_and_its_factor_is_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries: dict[str, str | float] = {
        "glp__mode": "add",
        "glp__hook_point": "residual_stream_post_layer",
        "glp__alpha_default": 3.0,
    }
    path = write_gguf(tmp_path / "v.gguf", {"direction.2": VECTOR.numpy()}, **entries)
    assert torch.equal(read_vector(path, num_blocks=BLOCKS), at_block(2))
    assert caplog.messages == [
        f"{path}: glp.alpha_default 3.0 is not read; the factor on a vector is the setting strength"
    ]


def test_a_missing_gguf_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ValueError, match="pip install gguf"):
        read_vector(tmp_path / "v.gguf", num_blocks=BLOCKS)


# --- which block a file names ------------------------------------------------------------------------------------


def at_block(block: int) -> Tensor:
    """The rows of a vector that acts at one block alone; -1 are the embeddings."""
    first = min(block, 0)
    rows = torch.zeros(BLOCKS - first, HIDDEN)
    rows[block - first] = VECTOR
    return rows


@pytest.mark.parametrize(
    ("content", "block"),
    [
        ({"vector": VECTOR, "layer": 2}, 2),
        ({"vector": VECTOR, "layer_idx": torch.tensor(2), "history": [0.5]}, 2),
        ({"vector": VECTOR, "meta": {"steer_layer": 1, "last_n": 3, "num_layers": 4}}, 1),
        ({"vector": VECTOR, "config": '{"layer": 3, "n_layer": 4}'}, 3),
        ({"vector": VECTOR, "hook_name": "blocks.2.hook_resid_post", "layer": 2}, 2),
        ({"vector": VECTOR, "hook_name": "blocks.2.hook_resid_pre", "layer": 2}, 1),
        ({"vector": VECTOR, "layer": 2, "act_name": "resid_pre"}, 1),
        ({"vector": VECTOR, "layer": "model.layers.1"}, 1),
        ({"model.layers.2": VECTOR}, 2),
        ({"model.layers[3]": VECTOR}, 3),
        ({"bert.encoder.layer.1": VECTOR}, 1),
        ({"transformer.h.0": VECTOR}, 0),
        ({"layer2": VECTOR}, 2),
        ({"L2": VECTOR}, 2),
        ({"steering_layer_1": VECTOR}, 1),
        ({"resid_post_2": VECTOR}, 2),
        ({("resid_pre", 2): VECTOR}, 1),
        ({"hidden_states.2": VECTOR}, 1),
        ({"blocks.2.hook_resid_post": VECTOR, "layer": 2}, 2),
        ({"blocks.2.hook_resid_pre": VECTOR, "layer": 2}, 1),
        ({"blocks.0.hook_resid_pre": VECTOR}, -1),
    ],
)
def test_a_vector_acts_at_the_one_block_that_its_file_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: dict[Any, Any], block: int
) -> None:
    torch.save(content, tmp_path / "v.pt")
    with caplog.at_level(logging.INFO, "llm_entropy"):
        assert torch.equal(resolve(tmp_path / "v.pt"), at_block(block))
    where = "at the embeddings" if block < 0 else f"at the output of block {block}"
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'v.pt'}: acts {where} alone, as ")
    assert message.endswith(" says; blocks are counted from 0")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_metadata_of_every_format_name_a_block(tmp_path: Path, suffix: str) -> None:
    content = {"vector": VECTOR, "layer": "2" if suffix == ".safetensors" else 2, "model": "gpt2"}
    assert torch.equal(read_vector(write(tmp_path / f"v{suffix}", content), num_blocks=BLOCKS), at_block(2))


def test_hooks_of_several_blocks_give_a_row_each_and_the_first_may_be_the_embeddings(tmp_path: Path) -> None:
    hooks = {f"blocks.{block}.hook_resid_pre": (block + 1) * VECTOR for block in (0, 2)}
    torch.save(hooks, tmp_path / "v.pt")
    zero = torch.zeros(HIDDEN)
    expected = torch.stack([VECTOR, zero, 3 * VECTOR, zero, zero])
    assert torch.equal(read_vector(tmp_path / "v.pt", num_blocks=BLOCKS), expected)


@pytest.mark.parametrize(
    "content",
    [
        {"steering_vector": VECTOR},
        {"vec_2": VECTOR},
        {"l2_normalized": VECTOR, "layer": None},
        {"vector": VECTOR, "num_layers": 4, "block_size": 8, "layer_count": 4, "activation": "gelu", "prompts": ["2"]},
    ],
)
def test_a_file_that_names_no_block_gives_its_vector_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: dict[str, Any]
) -> None:
    torch.save(content, tmp_path / "v.pt")
    with caplog.at_level(logging.INFO, "llm_entropy"):
        assert torch.equal(read_vector(tmp_path / "v.pt", num_blocks=BLOCKS), VECTOR)
    assert not caplog.messages


@pytest.mark.parametrize("name", ["vec_layer_13_Llama-2.pt", "task_vector_layer-2.pt", "opinion.L7.pt", "vecBlock3.pt"])
def test_a_layer_in_the_name_of_a_file_is_only_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    torch.save(VECTOR, tmp_path / name)
    assert torch.equal(read_vector(tmp_path / name, num_blocks=BLOCKS), VECTOR)
    (message,) = caplog.messages
    assert "its name speaks of layer" in message
    assert "acts at every block whose weight in layer_weights is not 0" in message


def test_a_name_of_a_file_that_differs_from_its_content_is_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("layer_2.pt", "layer_3.pt", "Player7.pt"):
        torch.save({"vector": VECTOR, "layer": 2}, tmp_path / name)
        assert torch.equal(read_vector(tmp_path / name, num_blocks=BLOCKS), at_block(2))
    assert caplog.messages == [
        f"{tmp_path / 'layer_3.pt'}: its name speaks of layer 3, which is not read; it acts at the output of block 2"
    ]


# --- what others write -------------------------------------------------------------------------------------------

ROWS = torch.arange(1.0, BLOCKS + 1)[:, None] * VECTOR
EACH = VECTOR.expand(BLOCKS, HIDDEN)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (VECTOR[None], VECTOR),
        (VECTOR[None, None], VECTOR),
        (ROWS[:, None], ROWS),
        (ROWS[None], ROWS),
        ([VECTOR], VECTOR),
        ([VECTOR[None]] * BLOCKS, EACH),
        ({"vector": VECTOR[None, None]}, VECTOR),
        ({2: VECTOR[None]}, at_block(2)),
        ({"layer_2": VECTOR[None, None]}, at_block(2)),
        ({"2": VECTOR.requires_grad_(False).clone().requires_grad_()}, at_block(2)),
        ({"transformer.h.2": VECTOR}, at_block(2)),
        ({"gpt_neox.layers.2": VECTOR}, at_block(2)),
        ({"bert.encoder.layer.2": VECTOR}, at_block(2)),
        ({"model.decoder.layers.2": VECTOR}, at_block(2)),
    ],
)
def test_axes_of_one_are_left_out_wherever_a_vector_is_kept(tmp_path: Path, content: Any, expected: Tensor) -> None:
    torch.save(content, tmp_path / "v.pt")
    vector = resolve(tmp_path / "v.pt")
    assert torch.equal(vector, expected)
    assert not vector.requires_grad
    if isinstance(content, Tensor):
        assert torch.equal(resolve(content), expected)
        np.save(tmp_path / "v.npy", content.numpy())
        assert torch.equal(resolve(tmp_path / "v.npy"), expected)


def test_one_row_of_a_model_with_one_block_is_its_row() -> None:
    assert resolve_vector(VECTOR[None], key=KEY, model="m", num_blocks=1, hidden_size=HIDDEN).shape == (1, HIDDEN)


def test_the_assistant_axis_is_told_from_what_it_was_made_of(tmp_path: Path) -> None:
    made_from = {"default_mean": 3 * ROWS, "role_mean": 2 * ROWS, "n_default": 1, "n_roles": 275}
    torch.save({"axis": ROWS, **made_from}, tmp_path / "axis.pt")
    assert torch.equal(resolve(tmp_path / "axis.pt"), ROWS)
    torch.save({"vector": ROWS.bfloat16(), "type": "pos_3", "role": "pirate"}, tmp_path / "pirate.pt")
    assert torch.equal(resolve(tmp_path / "pirate.pt"), ROWS.bfloat16().float())
    torch.save({"axis": ROWS, "default_mean": ROWS}, tmp_path / "axis.pt")
    with pytest.raises(ReportedError, match=r"got 2 tensors, among them axis, default_mean; expected a single tensor"):
        resolve(tmp_path / "axis.pt")


def hook_point(vector: Any = VECTOR, **about: Any) -> dict[str, Any]:
    return {"steering_vector": vector, "steering_coefficient": 2.0, "action": "add", "bias": None, **about}


def test_hook_points_of_lm_eval_are_vectors_times_their_coefficients(tmp_path: Path) -> None:
    expected = 2 * at_block(2) - 0.5 * at_block(1)
    points = {"layers.2": hook_point(bias=VECTOR), "h.1": hook_point(VECTOR[None], steering_coefficient=-0.5)}
    for content in (points, [{"hookpoint": name, **about} for name, about in points.items()]):
        torch.save(content, tmp_path / "steer.pt")
        assert torch.equal(resolve(tmp_path / "steer.pt"), expected)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (
            {"layers.2": hook_point(action="clamp")},
            r"layers\.2: got action 'clamp', .*; expected 'add'; .* operator: project",
        ),
        (
            {"layers.2": hook_point(steering_coefficient="much")},
            r"layers\.2: got steering_coefficient much; expected a num",
        ),
        ({"layers.2": hook_point(torch.ones(2, 6))}, r"layers\.2: got shape \[2, 6\]; expected \[hidden\]"),
        ({"layers.2.mlp": hook_point()}, r"got a vector for layers\.2\.mlp, which is not known as the residual stream"),
        ({"layers.9": hook_point()}, r"got a vector for block 9 \(layers\.9\); expected one each for blocks 0 to 3"),
    ],
)
def test_hook_points_at_which_nothing_is_added_are_refused(tmp_path: Path, point: Any, message: str) -> None:
    torch.save(point, tmp_path / "steer.pt")
    with pytest.raises(ReportedError, match=rf"steer\.pt: {message}"):
        resolve(tmp_path / "steer.pt")


def saved_whole(path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **entries: Any) -> Path:
    """Write an object of a class of another package, which is not there when the file is read."""
    package, _, _ = name.partition(".")
    module = ModuleType(name.rpartition(".")[0])
    kind = type(name.rpartition(".")[2], (), {"__module__": module.__name__})
    setattr(module, kind.__name__, kind)
    saved = kind()
    vars(saved).update(entries)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package, ModuleType(package))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(saved, path)
    return path


def test_an_object_of_steering_vectors_is_read_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "steering_vectors.steering_vector.SteeringVector"
    entries = {"layer_activations": {2: VECTOR}, "layer_type": "decoder_block"}
    path = saved_whole(tmp_path / "v.pt", monkeypatch, name, **entries)
    assert torch.equal(resolve(path), at_block(2))
    path = saved_whole(tmp_path / "v.pt", monkeypatch, name, **{**entries, "layer_type": "mlp"})
    with pytest.raises(ReportedError, match=r"got layer_type 'mlp'; expected 'decoder_block'"):
        resolve(path)
    # What it holds is held to the same rules, and so are all other classes.
    trace = tmp_path / "trace"
    for other, more in ((name, {"extra": Evil(trace)}), ("other_vectors.steering_vector.SteeringVector", {})):
        path = saved_whole(tmp_path / "v.pt", monkeypatch, other, **entries, **more)
        with pytest.raises(ReportedError, match="pickled code or objects beside them, which are refused and never run"):
            resolve(path)
    assert not trace.exists()


# --- a folder with a file for each block -------------------------------------------------------------------------


def test_a_folder_with_a_file_for_each_block_is_read_by_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(VECTOR, tmp_path / "vec_layer_1_Llama-2-7b-chat-hf.pt")
    torch.save({"vector": 2 * VECTOR[None], "layer": 3}, tmp_path / "vec_layer_3_Llama-2-7b-chat-hf.pt")
    np.save(tmp_path / "2.npy", VECTOR.numpy())
    (tmp_path / "readme.md").write_text("of layer 0")
    with caplog.at_level(logging.INFO, "llm_entropy"):
        vector = resolve(tmp_path)
    assert torch.equal(vector, at_block(1) + at_block(2) + 2 * at_block(3))
    assert caplog.messages == [f"{tmp_path}: a file each for blocks 1, 2, 3, as their names say"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"vec_layer_1_a.pt": VECTOR, "vec_layer_1_b.pt": VECTOR},
            r": got a second vector, beside that of vec_layer_1_a",
        ),
        ({"vec_layer_1.pt": VECTOR, "mean.pt": VECTOR}, r"mean\.pt: got a name that numbers no block, in a folder"),
        (
            {"vec_layer_9.pt": VECTOR},
            r": got a vector for block 9 \(vec_layer_9\.pt\); expected one each for blocks 0 to 3",
        ),
        ({"vec_layer_1.pt": ROWS}, r"vec_layer_1\.pt: got shape \[4, 6\]; expected \[hidden\]"),
        ({"vec_layer_1.pt": {3: VECTOR}}, r"vec_layer_1\.pt: got a vector for 3 inside; expected one for block 1"),
        (
            {"vec_layer_1.pt": VECTOR, "vec_layer_2.pt": VECTOR[:5]},
            r"widths 5 \(vec_layer_2\.pt\), 6 \(vec_layer_1\.pt\)",
        ),
        ({"attn_out_2.pt": VECTOR}, r"attn_out_2\.pt: got a vector for attn_out_2, which is not known"),
    ],
)
def test_a_folder_that_is_not_one_vector_is_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    with pytest.raises(ReportedError, match=message):
        resolve(tmp_path)


def test_directions_that_are_made_to_be_projected_out_are_read_for_that(tmp_path: Path) -> None:
    torch.save({"vector": VECTOR, "mode": "project_out"}, tmp_path / "v.pt")
    sizes = {"key": KEY, "model": "gpt2", "num_blocks": BLOCKS, "hidden_size": HIDDEN}
    for operator in ("project_out", "cap"):
        assert torch.equal(resolve_vector(tmp_path / "v.pt", **sizes, operator=operator), VECTOR)
    with pytest.raises(
        ReportedError, match=r"got mode 'project_out': .*; expected vectors that are added, or operator"
    ):
        resolve_vector(tmp_path / "v.pt", **sizes)


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".npy", ".npz"])
def test_pickled_code_is_refused_and_never_run(tmp_path: Path, suffix: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"v{suffix}"
    path.write_bytes(pickle.dumps({"vector": Evil(trace)}))
    with pytest.raises(ValueError, match="refused and never run") as caught:
        resolve(path)
    assert str(caught.value).startswith(f"{KEY}: {path}: ")
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    if suffix not in {".npy", ".npz"}:
        torch.save({"vector": Evil(trace)}, path)
        with pytest.raises(ValueError, match="refused and never run"):
            read_vector(path, num_blocks=BLOCKS)
        assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists(), "the pickle would have run, had it been loaded"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_object_arrays_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, np.array([Evil(tmp_path / "trace")], dtype=object))
    with pytest.raises(ValueError, match="refused and never run"):
        read_vector(path, num_blocks=BLOCKS)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".npy", ".npz", ".gguf"])
@pytest.mark.parametrize("content", [b"", b"hello, this is a text", bytes(range(256))])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"v{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="got a file that cannot be read as") as caught:
        read_vector(path, num_blocks=BLOCKS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors", ".npy", ".npz"):
        path = write(tmp_path / f"v{suffix}", VECTOR)
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match="cannot be read"):
            read_vector(path, num_blocks=BLOCKS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.tensor([1, 2, 3]), "type torch.int64; expected floating-point"),
        (torch.tensor(1.0), r"shape \[\]; expected \[hidden\]"),
        (torch.randn(2, 3, 4), r"shape \[2, 3, 4\]; expected \[hidden\]"),
        (torch.empty(0), r"shape \[0\].*not empty"),
        (torch.tensor([1.0, float("nan")]), "NaN or infinity in 1 of 2 numbers"),
        (torch.tensor([float("-inf")]), "NaN or infinity in 1 of 1"),
        (torch.tensor([1e300], dtype=torch.float64), "NaN or infinity in 1 of 1"),
        ([1.0, 2.0], "got list; expected a tensor"),
        ({}, "got no tensor"),
        ({"note": "nothing"}, "got no tensor"),
        ({"a": VECTOR, "b": VECTOR}, "got 2 tensors, among them a, b; expected a single tensor"),
        ({"layer.1": VECTOR, "mean": VECTOR}, "among them mean"),
        ({4: VECTOR}, r"a vector for block 4 \(4\); expected one each for blocks 0 to 3"),
        ({-1: VECTOR}, "a vector for block -1"),
        ({1: VECTOR, "1": VECTOR}, r"a second vector, beside that of 1, for block 1 \(1\)"),
        ({1: VECTOR, 2: torch.ones(5)}, r"widths 5 \(2\), 6 \(1\); expected one width"),
        ({1: torch.ones(2, 6)}, r"1: got shape \[2, 6\]; expected \[hidden\]"),
        ({"layer.3": VECTOR * float("nan")}, r"layer\.3: got NaN or infinity in 6 of 6 numbers"),
        ({"vector": torch.tensor(1.0)}, "got no tensor"),
        ({"vector": VECTOR, "extra": {"bias": VECTOR}}, r"tensors inside of extra\.bias"),
        ({"steering_vector": [VECTOR, VECTOR]}, "tensors inside of steering_vector"),
        ({"vector": VECTOR, "layer": 4}, r"a vector for block 4 \(layer 4\); expected one each for blocks 0 to 3"),
        ({"vector": VECTOR, "layers": [1, 2]}, r"layers \[1, 2\] for a single vector; expected one number"),
        ({"vector": VECTOR, "layer": "10-20"}, "layer '10-20' for a single vector; expected one number"),
        ({"vector": torch.ones(BLOCKS, HIDDEN), "layer": 2}, r"vector: got shape \[4, 6\]; expected \[hidden\]"),
        ({"layer.2": VECTOR, "layer": 3}, r"layer 3 beside a vector for layer\.2; expected one word"),
        ({"vector": VECTOR, "meta": {"layer": 1, "target_layer": 2}}, r"meta.target_layer 2 beside .* meta.layer 1"),
        ({"blocks.2.hook_resid_mid": VECTOR}, r"a vector for blocks\.2\.hook_resid_mid, which is not known"),
        ({"model.layers[2].mlp.down_proj": VECTOR}, r"a vector for model\.layers\[2\]\.mlp"),
        ({"attn_out_2": VECTOR}, "a vector for attn_out_2"),
        ({"hidden_states.4": VECTOR}, r"a vector for block 4 \(hidden_states\.4\)"),
        ({"hook_embed": VECTOR}, "a vector for hook_embed"),
        ({"vector": VECTOR, "layer": 2, "component": "mlp"}, "a vector for component 'mlp'"),
    ],
)
def test_content_that_is_no_vector_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=rf"^{KEY}: .*v\.pt: (.*got )?.*{message.removeprefix('got ')}"):
        resolve(tmp_path / "v.pt")


def test_a_missing_file_an_unknown_suffix_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pt: no such file; give the path of a vector file"):
        resolve(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"got the suffix '\.txt'; expected one of \.pt, \.pth, .*\.gguf"):
        resolve(tmp_path / "v.txt")
    (tmp_path / "v.pt").mkdir()
    with pytest.raises(ValueError, match=r"v\.pt: got a folder without vector files; expected \.pt, \.pth, .*\.gguf"):
        resolve(tmp_path / "v.pt")


# --- against the model -------------------------------------------------------------------------------------------


def test_a_path_takes_the_models_key_and_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2").mkdir()
    write(tmp_path / "gpt2" / "gpt2.pt", VECTOR)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(resolve("{model}/{model}.pt"), VECTOR)
    assert torch.equal(resolve(Path("{model}") / "gpt2.pt"), VECTOR)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(resolve("~/gpt2/gpt2.pt"), VECTOR)


@pytest.mark.parametrize(
    "value",
    [
        VECTOR.to(torch.bfloat16),
        VECTOR.clone().requires_grad_(),
        VECTOR.flip(0).numpy()[::-1],
        VECTOR.numpy().astype(">f4"),
        VECTOR.numpy().astype(np.longdouble),
        pd.Series(VECTOR.numpy(), index=range(9, 3, -1)),
        VECTOR.to_sparse(),
        list(map(np.float32, VECTOR.tolist())),
        list(VECTOR),
    ],
    ids=["bfloat16", "gradient", "strides", "bytes", "longdouble", "series", "sparse", "scalars", "tensors"],
)
def test_a_vector_of_python_is_taken_whatever_holds_its_numbers(value: Any) -> None:
    control = ControlSettings(control_vector=value)
    vector = resolve(control.control_vector)
    expected = VECTOR.to(torch.bfloat16).float() if getattr(value, "dtype", None) == torch.bfloat16 else VECTOR
    assert torch.equal(vector, expected)
    assert not vector.requires_grad


def test_a_list_of_tensors_or_arrays_has_a_row_for_each_block(tmp_path: Path) -> None:
    rows = torch.randn(BLOCKS, HIDDEN)
    torch.save(list(rows), tmp_path / "v.pt")
    for value in (list(rows), tuple(rows.numpy()), [rows[0], rows[1].numpy(), *rows[2:].double()], tmp_path / "v.pt"):
        assert torch.equal(resolve(value), rows)


@pytest.mark.parametrize("rows", [None, BLOCKS, BLOCKS + 1])
def test_tensors_arrays_and_full_lists_are_taken_without_a_word(
    rows: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    vector = VECTOR if rows is None else torch.randn(rows, HIDDEN)
    for value in (vector, vector.numpy(), vector.double(), vector.tolist()):
        assert torch.equal(resolve(value), vector)
    assert not caplog.records


def test_a_short_list_is_repeated_with_a_warning_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llm_entropy"):
        vector = resolve_vector([0.1, 0.2, 0.3], key=KEY, model="bert", num_blocks=2, hidden_size=192)
    assert torch.equal(vector, torch.tensor([0.1, 0.2, 0.3]).repeat(64))
    assert caplog.messages == [f"{KEY}: 3 numbers repeated to fill the hidden size of bert, 192"]
    assert resolve([1, 2, 3, 4]).tolist() == [1, 2, 3, 4, 1, 2]
    rows = resolve([[float(k)] for k in range(BLOCKS)])
    assert torch.equal(rows, torch.arange(4.0)[:, None].expand(BLOCKS, HIDDEN))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(5), "width 5; expected width 6, the hidden size of gpt2"),
        (np.ones(3), "width 3; expected width 6"),
        ([1.0] * 7, "width 7; expected width 6"),
        (torch.ones(3, HIDDEN), "3 rows; expected 4, one for each block of gpt2, or 5"),
        (torch.ones(6, HIDDEN), "6 rows; expected 4"),
        ([[1.0, 2.0]] * 3, "3 rows; expected 4"),
        ([], r"shape \[0\].*not empty"),
        ([[]], r"shape \[1, 0\].*not empty"),
        ([[1.0], [1.0, 2.0]], "lists of different lengths"),
        (["1.0", "2.0"], "expected numbers"),
        ([True, False], "expected numbers"),
        ([1.0, None], "expected numbers"),
        ([1.0, float("nan")], "NaN or infinity in 1 of 2"),
        (torch.full((HIDDEN,), float("inf")), "NaN or infinity in 6 of 6"),
        (torch.ones(HIDDEN, dtype=torch.long), "type torch.int64"),
        ([VECTOR, VECTOR[:5]], r"a list of tensors of the shapes \[\[5\], \[6\]\]; expected \[hidden\] for each"),
        ([torch.ones(2, HIDDEN)] * BLOCKS, r"got shape \[2, 6\]; expected \[hidden\]"),
        ([VECTOR, 1.0], "got float; expected a tensor"),
        (np.array(["a"] * HIDDEN), "type <U1; expected floating-point"),
        (torch.ones(HIDDEN, dtype=torch.complex64), "type torch.complex64; expected floating-point"),
        (torch.ones(HIDDEN, device="meta"), "meta device, which holds no numbers"),
        (np.ma.masked_equal(VECTOR.numpy(), -1.0), "NaN or infinity in 1 of 6"),
        (1.0, "got float; expected a file"),
        (None, "got NoneType; expected a file"),
    ],
)
def test_a_value_that_does_not_fit_the_model_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{KEY}: .*{message}"):
        resolve(value)


# --- which one acts ----------------------------------------------------------------------------------------------


def test_a_single_vector_goes_before_the_pair_and_negative_turns_it() -> None:
    pair = ControlVectors(positive="up.pt", negative="down.pt")
    chosen = choose_vector(ControlSettings(control_vector="v.pt", control_vectors=pair), "analysis.control")
    assert chosen == (KEY, "v.pt", 1)
    chosen = choose_vector(ControlSettings(control_vector="v.pt", direction="negative"), "analysis.control")
    assert chosen == (KEY, "v.pt", -1)


def test_direction_picks_from_the_pair_without_turning_it() -> None:
    pair = ControlVectors(positive=[0.1, 0.2], negative=[-0.5, 0.2])
    chosen = choose_vector(ControlSettings(control_vectors=pair), "analysis.control")
    assert chosen == ("analysis.control.control_vectors.positive", [0.1, 0.2], 1)
    chosen = choose_vector(ControlSettings(control_vectors=pair, direction="negative"), "analysis.control")
    assert chosen == ("analysis.control.control_vectors.negative", [-0.5, 0.2], 1)


def test_a_missing_direction_is_refused() -> None:
    pair = ControlVectors(positive=[0.1])
    with pytest.raises(ValueError, match=r"control_vectors\.negative: got no vector, but .*direction is negative"):
        choose_vector(ControlSettings(control_vectors=pair, direction="negative"), "analysis.control")
    with pytest.raises(ValueError, match=r"analysis\.control: got no vector"):
        choose_vector(ControlSettings(), "analysis.control")


def test_a_chosen_tensor_is_handed_on() -> None:
    chosen = choose_vector(ControlSettings(control_vector=VECTOR), "analysis.control")
    assert chosen.value is VECTOR


@pytest.mark.parametrize("model", builtin.BUILTIN_MODELS)
def test_a_builtin_vector_has_a_row_for_each_block_of_its_model(model: str) -> None:
    vector = resolve_vector(
        "builtin:{model}/" + builtin.CONTROL_VECTOR, key="key", model=model, num_blocks=5, hidden_size=192
    )
    assert vector.shape == (5, 192)
    assert vector.norm(dim=1).min() > 0

"""Vector files, lists and tensors: what is read, what it means, and what is refused."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llm_entropy import builtin
from llm_entropy.settings import ControlSettings, ControlVectors
from llm_entropy.vectors import choose_vector, read_vector, resolve_vector

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
        save_file({str(name): tensor for name, tensor in named.items()}, path)
    elif path.suffix == ".npy":
        np.save(path, content.numpy())
    else:
        np.savez(path, **{str(name): tensor.numpy() for name, tensor in named.items()})
    return path


def write_gguf(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write a control vector with the fields that repeng writes."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "gpt2")
    writer.add_uint32("controlvector.layer_count", len(tensors))
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
    with pytest.raises(ValueError, match=r"v\.pt: got vectors for 'self_attn'; expected 'decoder_block'"):
        read_vector(tmp_path / "v.pt", num_blocks=BLOCKS)


def test_a_control_vector_of_repeng_acts_at_the_block_that_it_numbers(tmp_path: Path) -> None:
    directions = {f"direction.{k}": np.full(HIDDEN, k, np.float32) for k in (3, 2, 1)}
    directions["direction.3"] = directions["direction.3"].astype(np.float16)
    path = write_gguf(tmp_path / "v.gguf", directions)
    vectors = read_vector(path, num_blocks=BLOCKS)
    path.unlink()
    assert torch.equal(vectors, torch.arange(4.0)[:, None].expand(BLOCKS, HIDDEN))


def test_a_missing_gguf_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ValueError, match="pip install gguf"):
        read_vector(tmp_path / "v.gguf", num_blocks=BLOCKS)


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
        ({1: VECTOR, "1": VECTOR}, "a second vector for block 1"),
        ({1: VECTOR, 2: torch.ones(5)}, r"widths \[5, 6\]"),
        ({1: torch.ones(2, 6)}, r"shape \[2, 6\] for block 1"),
    ],
)
def test_content_that_is_no_vector_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=rf"^{KEY}: .*v\.pt: got .*{message.removeprefix('got ')}"):
        resolve(tmp_path / "v.pt")


def test_a_missing_file_an_unknown_suffix_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pt: got no such file; expected a vector file"):
        resolve(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"got the suffix '\.txt'; expected one of \.pt, \.pth, .*\.gguf"):
        resolve(tmp_path / "v.txt")
    (tmp_path / "v.pt").mkdir()
    with pytest.raises(ValueError, match="got no such file"):
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
    chosen = choose_vector(ControlSettings(control_vector="v.pt", control_vectors=pair))
    assert chosen == (KEY, "v.pt", 1)
    assert choose_vector(ControlSettings(control_vector="v.pt", direction="negative")) == (KEY, "v.pt", -1)


def test_direction_picks_from_the_pair_without_turning_it() -> None:
    pair = ControlVectors(positive=[0.1, 0.2], negative=[-0.5, 0.2])
    chosen = choose_vector(ControlSettings(control_vectors=pair))
    assert chosen == ("analysis.control.control_vectors.positive", [0.1, 0.2], 1)
    chosen = choose_vector(ControlSettings(control_vectors=pair, direction="negative"))
    assert chosen == ("analysis.control.control_vectors.negative", [-0.5, 0.2], 1)


def test_a_missing_direction_is_refused() -> None:
    pair = ControlVectors(positive=[0.1])
    with pytest.raises(ValueError, match=r"control_vectors\.negative: got no vector, but .*direction is negative"):
        choose_vector(ControlSettings(control_vectors=pair, direction="negative"))
    with pytest.raises(ValueError, match=r"analysis\.control: got no vector"):
        choose_vector(ControlSettings())


def test_a_chosen_tensor_is_handed_on() -> None:
    chosen = choose_vector(ControlSettings(control_vector=VECTOR))
    assert chosen.value is VECTOR


@pytest.mark.parametrize("model", builtin.BUILTIN_MODELS)
def test_a_builtin_vector_has_a_row_for_each_block_of_its_model(model: str) -> None:
    vector = resolve_vector(
        "builtin:{model}/" + builtin.CONTROL_VECTOR, key="key", model=model, num_blocks=5, hidden_size=192
    )
    assert vector.shape == (5, 192)
    assert vector.norm(dim=1).min() > 0

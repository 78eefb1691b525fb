"""`llm-entropy convert-vector`: its arguments, what it prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llm_entropy.commands.cli import main

ROWS = torch.arange(12.0).reshape(3, 4)


def convert(*arguments: object) -> None:
    main(["convert-vector", *map(str, arguments)])


def test_the_path_that_was_written_is_printed_and_the_model_gives_the_sizes_and_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "steer.pt"
    convert("builtin:tiny-gpt2/bible.safetensors", target, "--model", "builtin:tiny-gpt2")
    assert capsys.readouterr().out == f"{target}\n"
    points = torch.load(target, weights_only=True)
    assert points
    assert all(name.startswith("h.") for name in points)


def test_sizes_and_the_format_may_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(ROWS, tmp_path / "v.pt")
    convert(tmp_path / "v.pt", tmp_path / "w.pth", "--to", "lm-eval", "--num-blocks", 3, "--hidden-size", 4)
    assert list(torch.load(tmp_path / "w.pth", weights_only=True)) == ["layers.0", "layers.1", "layers.2"]
    for blocks, names in (("1:", ["layers.1", "layers.2"]), ("0,2", ["layers.0", "layers.2"])):
        convert(tmp_path / "v.pt", tmp_path / "w.pt", "--num-blocks", 3, "--blocks", blocks, "--force")
        assert list(torch.load(tmp_path / "w.pt", weights_only=True)) == names
    convert(tmp_path / "v.pt", tmp_path / "w.npy")
    convert(tmp_path / "v.pt", tmp_path / "w.npy", "--force")
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), ROWS.numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-blocks", 0], "--num-blocks: got 0; expected at least 1"),
        (["--num-blocks", "many"], "many"),
        (["--model", "builtin:tiny-gpt2", "--num-blocks", 3], "got --model beside --num-blocks or --hidden-size"),
        (["--model", "builtin:tiny-bert"], "got width 4; expected"),
        (["--model", "nowhere/at-all"], "nowhere"),
        (["--blocks", "first"], "--blocks: got 'first'; expected a slice as 1:, or numbers as 3,5"),
        (["--to", "onnx"], "--to: got 'onnx'; expected one of safetensors, npy, gguf, lm-eval"),
    ],
)
def test_what_is_wrong_is_one_line(
    options: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(ROWS[0], tmp_path / "v.pt")
    with pytest.raises(SystemExit) as end:
        convert(tmp_path / "v.pt", tmp_path / "w.npy", *options)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("llm-entropy: error: ")
    assert message in line
    assert not (tmp_path / "w.npy").exists()

"""`run_analysis`: what people pass in a notebook, and the settings and sentences that it becomes."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from tiny_models import HIDDEN, SENTENCES, make_model, make_tokenizer, save_model
from torch import Tensor

from llm_entropy import run_analysis
from llm_entropy.analysis import predicting
from llm_entropy.errors import ReportedError
from llm_entropy.settings import (
    ControlSettings,
    ControlVectors,
    DataSettings,
    ModelSettings,
    OutputSettings,
    Settings,
    TrainerSettings,
)
from llm_entropy.store.manifest import CONFIG


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run_analysis` passes on, in the place of a run."""
    words: dict[str, Any] = {}

    def run(settings: Settings, **others: Any) -> None:
        words.update(others, settings=settings)

    monkeypatch.setattr(predicting, "run", run)
    return words


def settings_of(passed: dict[str, Any], *args: Any, **words: Any) -> Settings:
    run_analysis(*args, **words)
    settings: Settings = passed["settings"]
    return settings


@pytest.mark.parametrize(
    ("models", "by_key"),
    [
        ("gpt2", {"gpt2": "gpt2"}),
        ("google-bert/bert-base-uncased", {"bert-base-uncased": "google-bert/bert-base-uncased"}),
        (Path("runs/my model+1"), {"my-model-1": "runs/my model+1"}),
        ("builtin:tiny-gpt2", {"tiny-gpt2": "builtin:tiny-gpt2"}),
        (["a/gpt2", Path("b/GPT2"), "c/gpt2/"], {"gpt2": "a/gpt2", "GPT2-2": "b/GPT2", "gpt2-3": "c/gpt2/"}),
        (ModelSettings("a/b", dtype="float16"), {"b": ModelSettings("a/b", dtype="float16")}),
        ([{"name": Path("a/b")}], {"b": ModelSettings("a/b")}),
        ({"m": {"name": "a/b", "dtype": "float16"}}, {"m": ModelSettings("a/b", dtype="float16")}),
    ],
)
def test_models_without_a_key_get_the_last_part_of_their_name(
    passed: dict[str, Any], models: Any, by_key: dict[str, Any]
) -> None:
    assert settings_of(passed, models).models == by_key


def test_the_folder_that_one_works_in_is_a_model_too(
    passed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_of(passed, Path(".")).models == {tmp_path.name: "."}


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: [model], lambda model: {"m": model}])
def test_a_model_that_is_loaded_needs_a_tokenizer(passed: dict[str, Any], wrap: Any) -> None:
    model, tokenizer = make_model("gpt2"), make_tokenizer("causal")
    with pytest.raises(ReportedError, match=r"got GPT2LMHeadModel without a tokenizer; expected \(model, tokenizer\)"):
        run_analysis(wrap(model))
    assert not passed
    run_analysis(wrap((model, tokenizer)))
    ((key, source),) = passed["loaded"].items()
    assert key in ("m", "GPT2LMHeadModel")
    assert (source.loaded, source.tokenizer) == (model, tokenizer)
    assert passed["settings"].models == {key: ModelSettings("loaded:GPT2LMHeadModel", dtype="float32")}


def test_settings_themselves_hold_no_loaded_model() -> None:
    with pytest.raises(ReportedError, match=r"models\.m: got GPT2LMHeadModel; .* with save_pretrained\(FOLDER\)"):
        Settings(models={"m": make_model("gpt2")})


def test_sections_are_taken_as_paths_mappings_and_settings(passed: dict[str, Any]) -> None:
    for data in ("c.txt", Path("c.txt"), {"path": Path("c.txt")}, DataSettings(path="c.txt")):
        assert settings_of(passed, data=data).data == DataSettings(path="c.txt")
    for output in ("out", Path("out"), {"dir": Path("out")}, OutputSettings(dir="out")):
        assert settings_of(passed, output=output).output == OutputSettings(dir="out")
    assert settings_of(passed, trainer={"devices": np.int64(1)}).trainer == TrainerSettings(devices=1)
    with pytest.raises(
        ReportedError, match="data: got the key 'pth', which is not known; the nearest known key is 'path'"
    ):
        run_analysis(data={"pth": "c.txt"})
    with pytest.raises(ReportedError, match=r"data: got Dataset; .*; what is in memory is given as sentences"):
        run_analysis(data=Dataset.from_dict({"text": ["a"]}))  # type: ignore[arg-type]


def test_metrics_are_a_name_or_names_in_whatever_order(passed: dict[str, Any]) -> None:
    assert settings_of(passed, metrics="margin").analysis.metrics == ["margin"]
    assert settings_of(passed, metrics={"margin", "entropy"}).analysis.metrics == ["entropy", "margin"]
    with pytest.raises(ReportedError, match=r"analysis\.metrics: got 'entrpy'"):
        run_analysis(metrics="entrpy")


def test_vectors_in_memory_are_checked_before_anything_else(passed: dict[str, Any]) -> None:
    rows = [np.ones(3, np.float16), torch.ones(3)]
    vector: Any = settings_of(passed, control_vector=rows).analysis.control.control_vector
    assert torch.equal(vector, torch.ones(2, 3))
    for pair in ({"positive": rows[0][::-1]}, ControlVectors(positive=rows[0][::-1])):
        vectors = settings_of(passed, control_vectors=pair).analysis.control.control_vectors
        assert vectors is not None
        assert isinstance(vectors.positive, Tensor)
    passed.clear()
    with pytest.raises(ReportedError, match=r"analysis\.control\.control_vectors\.negative: got numbers of type int64"):
        run_analysis(control_vectors={"negative": np.ones(3, np.int64)})
    with pytest.raises(ReportedError, match=r"analysis\.control\.control_vectors: got the key 'up'"):
        run_analysis(control_vectors={"up": [1.0]})
    assert not passed


def test_an_iterator_of_sentences_is_read_once_and_data_beside_it_is_refused(passed: dict[str, Any]) -> None:
    run_analysis(sentences=(text for text in SENTENCES))
    assert passed["sentences"] == list(SENTENCES)
    assert passed["settings"].analysis.num_sentences == "auto"
    run_analysis(sentences={"a": ["x"], "b": ["y"]}, data={"text_column": "b"}, num_sentences=np.int64(1))
    assert passed["sentences"] == ["y"]
    with pytest.raises(ReportedError, match=r"data\.path: got 'c\.txt' beside sentences that are given"):
        run_analysis(sentences=["x"], data="c.txt")


def test_numbers_and_arrays_of_a_notebook_leave_a_configuration_that_is_plain(tmp_path: Path) -> None:
    model = save_model("gpt2", tmp_path / "tiny")
    result = run_analysis(
        model,
        sentences=np.array(SENTENCES[:3]),
        num_sentences=torch.tensor(2),
        metrics="entropy",
        control_vector=np.linspace(-1, 1, HIDDEN, dtype=">f4")[::-1],
        strength=np.linspace(-2, 2, 5)[1],
        layer_weights=torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
        output=OutputSettings(dir=tmp_path / "runs", plots=False, csv=False),  # type: ignore[arg-type]
        quiet=True,
    )
    assert len(result["tiny"]["control"].records) == 2
    config = yaml.safe_load((result.run_dir / CONFIG).read_text(encoding="utf-8"))
    control = config["analysis"]["control"]
    assert config["models"] == {"tiny": str(model)}
    assert (config["analysis"]["num_sentences"], control["strength"], control["layer_weights"]) == (2, -1.0, [1.0, 1.0])
    assert control["control_vector"] == str(result.run_dir / "control_vector.safetensors")


def test_every_setting_of_a_vector_is_an_argument(passed: dict[str, Any]) -> None:
    chosen = {"operator": "cap", "cap": np.float32(0.5), "blocks": np.array([1, 2]), "tokens": "5:"}
    control = settings_of(passed, control_vector=[0.1], **chosen).analysis.control
    assert (control.operator, control.cap, control.blocks, control.tokens) == ("cap", 0.5, [1, 2], "5:")
    names = {item.name for item in fields(ControlSettings)} - {"enabled", "found_strengths"}
    assert names <= set(inspect.signature(run_analysis).parameters)

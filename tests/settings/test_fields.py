"""Settings made in Python: what their fields take, what they make of it, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from llm_entropy.errors import ReportedError
from llm_entropy.settings import (
    AnalysisSettings,
    ControlSettings,
    ControlVectors,
    DataSettings,
    ModelSettings,
    OutputSettings,
    Settings,
    TrainerSettings,
    to_plain,
)
from llm_entropy.settings.configuration import read_config


@pytest.mark.parametrize(
    "number",
    [np.linspace(-2, 2, 5)[1], np.float32(-1), np.longdouble(-1), np.array(-1.0), torch.tensor(-1), np.int64(-1), -1],
)
def test_any_single_number_is_a_plain_one(number: Any) -> None:
    strength = ControlSettings(strength=number).strength
    assert type(strength) is float
    assert strength == -1.0


@pytest.mark.parametrize(
    "weights",
    [
        torch.arange(3, 0, -1, dtype=torch.bfloat16).requires_grad_(),
        np.arange(1.0, 4.0)[::-1],
        np.array([3, 2, 1], ">i4"),
        np.array([3, 2, 1], np.longdouble),
        pd.Series([3.0, 2.0, 1.0], index=[5, 6, 7]),
        (np.float16(3), torch.tensor(2.0), 1),
        iter([3, 2, 1]),
    ],
    ids=["bfloat16", "strides", "bytes", "longdouble", "series", "scalars", "iterator"],
)
def test_weights_are_plain_numbers_whatever_holds_them(weights: Any) -> None:
    control = ControlSettings(layer_weights=weights)
    assert control.layer_weights == [3.0, 2.0, 1.0]
    assert all(type(weight) is float for weight in control.layer_weights)


def test_settings_of_numpy_torch_paths_and_mappings_are_written_and_read_again(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "seed": np.uint8(3),
        "models": {np.str_("m"): tmp_path, "n": {"name": tmp_path, "trust_remote_code": np.bool_(False)}},
        "analysis": {
            "num_sentences": torch.tensor(5),
            "temperature": np.float32(0.5),
            "metrics": "entropy",
            "lens_path": Path("lens"),
            "control": {"control_vectors": {"positive": Path("up.pt"), "negative": [np.float64(0.5), torch.tensor(2)]}},
        },
        "data": {"path": Path("corpus.csv"), "max_length": np.int32(9)},
        "trainer": {"devices": np.array([0, 1])},
        "output": OutputSettings(dir=Path("out")),  # type: ignore[arg-type]
    }
    settings = Settings(**given)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(settings)), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == settings
    plain = Settings(
        seed=3,
        models={"m": str(tmp_path), "n": ModelSettings(str(tmp_path))},
        analysis=AnalysisSettings(
            num_sentences=5,
            temperature=0.5,
            metrics=["entropy"],
            lens_path="lens",
            control=ControlSettings(control_vectors=ControlVectors("up.pt", [0.5, 2.0])),
        ),
        data=DataSettings(path="corpus.csv", max_length=9),
        trainer=TrainerSettings(devices=[0, 1]),
        output=OutputSettings(dir="out"),
    )
    assert settings == plain


def test_values_that_were_set_after_the_settings_were_made_are_made_plain_too() -> None:
    data = DataSettings()
    data.num_workers, data.path = np.int64(2), Path("corpus.csv")  # type: ignore[assignment]
    assert to_plain(Settings(data=data))["data"]["num_workers"] == 2
    assert type(data.num_workers) is int
    assert data.path == "corpus.csv"


@pytest.mark.parametrize("vector", [torch.ones(3), np.ones(3), [torch.ones(3), torch.ones(3)], pd.Series([1.0])])
def test_a_vector_stays_the_tensor_or_array_that_it_is(vector: Any) -> None:
    assert ControlSettings(control_vector=vector).control_vector is vector
    assert ControlVectors(negative=vector).negative is vector


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnalysisSettings(renyi_order="2"), "analysis.renyi_order: got '2' (str); expected a number"),
        (lambda: AnalysisSettings(temperature="1"), "analysis.temperature: got '1' (str); expected a number"),
        (lambda: AnalysisSettings(top_k=2.0), "analysis.top_k: got 2.0 (float); expected a whole number"),
        (lambda: AnalysisSettings(use_sampling=1), "analysis.use_sampling: got 1 (int); expected true or false"),
        (
            lambda: AnalysisSettings(positions="lst"),
            "analysis.positions: got 'lst' (str); expected one of 'last', 'all'",
        ),
        (
            lambda: AnalysisSettings(metrics=["entropy", 3]),
            "analysis.metrics: got ['entropy', 3] (list); expected a list",
        ),
        (lambda: ControlSettings(strength=True), "analysis.control.strength: got True (bool); expected a number"),
        (lambda: ControlSettings(strength=np.array([1.0])), "analysis.control.strength: got array([1.]) (ndarray)"),
        (lambda: ControlSettings(strength=1j), "analysis.control.strength: got 1j (complex); expected a number"),
        (lambda: ControlSettings(strength=np.inf), "analysis.control.strength: got [inf]; expected finite numbers"),
        (
            lambda: ControlSettings(token_weights=[1.0, np.nan]),
            "analysis.control.token_weights: got [1.0, nan]; expected",
        ),
        (lambda: ControlSettings(layer_weights=np.ones((2, 2))), "analysis.control.layer_weights: got array([[1., 1.]"),
        (lambda: ControlSettings(layer_weights={1.0, 2.0}), "analysis.control.layer_weights: got {1.0, 2.0} (set)"),
        (
            lambda: ControlSettings(control_vector=[0.5, None]),
            "analysis.control.control_vector: got [0.5, None] (list)",
        ),
        (lambda: ControlVectors(positive=1.0), "analysis.control.control_vectors.positive: got 1.0 (float)"),
        (lambda: DataSettings(path=5), "data.path: got 5 (int); expected text or null"),
        (lambda: OutputSettings(dir=None), "output.dir: got None (NoneType); expected text"),
        (lambda: TrainerSettings(devices=[True]), "trainer.devices: got [True] (list); expected a whole number or"),
        (
            lambda: ModelSettings("m", dtype=torch.float16),
            "ModelSettings.dtype: got torch.float16 (dtype); expected one",
        ),
        (lambda: Settings(seed="1"), "seed: got '1' (str); expected a whole number"),
        (lambda: Settings(models=["m"]), "models: got ['m'] (list); expected a mapping"),
        (lambda: Settings(models={1: "m"}), "models: got 1 (int); expected text"),
        (lambda: Settings(models={"m": {"dtype": "float16"}}), "models.m: got no name; expected models.m.name, text"),
        (
            lambda: Settings(models={"m": torch.nn.Linear(1, 1)}),
            "models.m: got Linear; expected a hub name, a folder, or",
        ),
        (
            lambda: Settings(trainer={"device": 1}),
            "trainer: got the key 'device', which is not known; the nearest known",
        ),
        (lambda: Settings(trainer=None), "trainer: got None (NoneType); expected settings (TrainerSettings)"),
        (
            lambda: AnalysisSettings(control={"control_vectors": {"postive": [1.0]}}),
            "analysis.control.control_vectors: got the key 'postive', which is not known; the nearest known key is "
            "'positive'",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_key(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ReportedError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)

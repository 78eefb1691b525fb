"""What a run will take: against what a run took, without reading a weight."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_model

from llm_entropy.commands.cli import main
from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.picking import corpus_of_sentences
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.generated import measuring_module
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import hooks_on_applications
from llm_entropy.runs import estimate as estimate_file
from llm_entropy.runs.estimate import Estimate, device_rate, duration, estimate, forecast_run, scaled
from llm_entropy.runs.opening import open_model
from llm_entropy.runs.plan import plan_model
from llm_entropy.runs.run import run
from llm_entropy.settings import AnalysisSettings, Settings

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "it", "was", "and", "not", "very", "old"]
SENTENCES = [" ".join(random.Random(number).choices(WORDS, k=5 + number * 7 % 19)) for number in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model("gpt2", tmp_path_factory.mktemp("model")))


def settings_of(folder: str, **analysis: Any) -> Settings:
    return Settings(analysis=AnalysisSettings(**analysis), models={"gpt2": folder})


def estimated(settings: Settings) -> Estimate:
    plan = plan_model("gpt2", settings.models["gpt2"], settings)
    return estimate(plan, settings.analysis, corpus_of_sentences(SENTENCES, None, 0))


MANY = {
    "compare_control": True,
    "control": {"control_vector": [1.0], "strengths": [-1, 0, 1], "placebo": {"random": 2}},
    "conditions": {"late": {"control_vector": [1.0], "layer_weights": [0.0, 0.0, 1.0]}},
}


def test_blocks_and_layers_are_counted_as_they_run(folder: str) -> None:
    found = estimated(settings_of(folder, positions="all", **MANY))
    assert [condition.name for condition in found.conditions][4] == "late"
    # three blocks, four layers: all of the standard run; from block 1 on for four others; nothing for the last block's
    # vector and for strength 0
    assert found.num_forwards == pytest.approx((3 + 4 * 2 + 0 + 0) / 3)
    assert found.num_lenses == 4 + 4 * 3 + 1 + 0
    assert found.num_placebos == 2
    module, num_runs = run_once(folder, settings_of(folder, positions="all", **MANY))
    assert num_runs == round(found.num_forwards * 3)
    assert len(module.slots.layers) == found.num_lenses


def test_each_text_is_written_and_read_under_its_own_condition_and_under_the_standard_one(folder: str) -> None:
    found = estimated(settings_of(folder, positions="generated", max_new_tokens=1, **MANY))
    # as above, and for each of seven conditions a pass that writes, for six of them one more of the standard model
    assert found.num_forwards == pytest.approx((3 + 4 * 2 + 7 * 3 + 6 * 3) / 3)
    assert found.num_lenses == 4 + 4 * 3 + 1 + 7 + 6 * 4
    _, num_runs = run_once(folder, settings_of(folder, positions="generated", max_new_tokens=1, **MANY))
    assert num_runs == round(found.num_forwards * 3)
    longer = estimated(settings_of(folder, positions="generated", max_new_tokens=3, **MANY))
    assert longer.num_records == 3 * found.num_records
    assert longer.num_tokens == found.num_tokens + 2 * len(SENTENCES)


def run_once(folder: str, settings: Settings) -> tuple[EntropyModule, int]:
    """Run one sentence under all conditions; return the module, and how often a block ran."""
    view = open_model(plan_model("gpt2", folder, settings), settings.analysis).view
    runs: list[int] = []
    with hooks_on_applications(view.attentions, torch.nn.Module.register_forward_hook, lambda *_: runs.append(1)):
        plan = plan_model("gpt2", folder, settings)
        examples = [encoded.example for encoded in plan.encoder.examples([0], SENTENCES[:1])]
        module = measuring_module(view, Lens(view), Asked(settings.analysis, plan.steering))
        module.predict_step(collate(examples, 0, 0))
    return module, len(runs)


def test_tokens_positions_and_bytes_are_those_of_the_run(folder: str, tmp_path: Path) -> None:
    settings = settings_of(folder, positions="all", **MANY)
    settings.output.dir = str(tmp_path)
    settings.output.plots = False
    found = estimated(settings)
    result = run(settings, quiet=True, sentences=SENTENCES)
    records = result["gpt2"]["standard"].records
    assert (found.num_sentences, found.num_records) == (len(SENTENCES), len(records))
    assert found.num_tokens == len(records), "every token is a position"
    written = sum(path.stat().st_size for path in result.run_dir.glob("shards/**/*.parquet"))
    assert 0.6 < found.shard_bytes / written < 1.6
    assert "gpt2: 7 conditions, 2 of them placebos; 120 sentences" in (result.run_dir / "run.log").read_text()


def test_a_sample_is_scaled_to_the_corpus(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimated(settings_of(folder))
    monkeypatch.setattr(estimate_file, "SAMPLE", 24)
    sample = estimated(settings_of(folder))
    assert sample.num_records == whole.num_records == len(SENTENCES)
    assert sample.num_tokens == pytest.approx(whole.num_tokens, rel=0.1)
    assert sample.operations == pytest.approx(whole.operations, rel=0.1)


def test_the_operations_of_a_run_are_those_of_its_weights(folder: str) -> None:
    found = estimated(settings_of(folder, metrics=["entropy"]))
    view = open_model(plan_model("gpt2", folder, settings_of(folder)), AnalysisSettings(metrics=["entropy"])).view
    weights = sum(own.numel() for block in view.blocks for own in block.parameters() if own.ndim > 1)
    least = 2 * weights * found.num_tokens + 2 * view.decoder.weight.numel() * 4 * len(SENTENCES)
    assert least < found.operations < 1.5 * least, "the attention is small beside them"


def test_no_weight_is_read_unless_it_is_to_be_measured(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES), encoding="utf-8")
    given = ["plan", "--models", f"{{gpt2: {folder}}}", "--data.path", str(corpus), "--control-vector", "[1.0]"]
    given += ["--compare-control", "--analysis.control.strengths", "[-1, 1]", "--analysis.control.placebo.random", "3"]
    main([*given, "--measure"])
    words = capsys.readouterr().out
    assert "6 conditions: standard, control_-1, control_+1, 3 random placebos of control" in words
    assert "measured" in words.split("\n")[2]
    (row,) = [line.split() for line in words.split("\n") if line.startswith(" gpt2")]
    assert row[1] == "120"

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a weight is read")

    monkeypatch.setattr("llm_entropy.runs.opening.load_model", refuse)
    monkeypatch.setattr("safetensors.safe_open", refuse)
    main(given)
    assert "measured" not in capsys.readouterr().out
    assert not list(tmp_path.glob("analysis_outputs"))


def test_of_a_stream_it_is_for_a_thousand_sentences(folder: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES), encoding="utf-8")
    settings = settings_of(folder, num_sentences=None)
    settings.data.path, settings.data.streaming = str(corpus), True
    (found,) = forecast_run(settings)
    assert found.work.num_sentences is None
    assert found.work.num_records == 1000
    assert found.row()["sentences"] == "each 1,000"


def test_words_for_numbers_and_times() -> None:
    assert [scaled(number) for number in (0, 999, 1234, 5.6e12)] == ["0 ", "999 ", "1.23 k", "5.6 T"]
    assert [duration(seconds) for seconds in (0.021, 90, 150, 9000, 1e6)] == [
        "0.021 s",
        "90 s",
        "2.5 min",
        "2.5 h",
        "11.6 days",
    ]
    assert device_rate(torch.device("cpu"), torch.float32, 64) > 1e8

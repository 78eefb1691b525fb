"""A run from end to end, on tiny models in local folders: what it writes, what the numbers are, what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from launcher import TORCHRUN, Launcher
from lightning.fabric.utilities.rank_zero import rank_zero_only
from tiny_models import CAUSAL_VOCAB, FAMILIES, HIDDEN, SENTENCES, make_model, make_tokenizer, save_model

import llm_entropy
from llm_entropy import merge_run, run_analysis
from llm_entropy.commands.cli import main
from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.encoding import Encoder
from llm_entropy.errors import ReportedError
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import view_model
from llm_entropy.models.loading import load_model
from llm_entropy.outputs.making import report_run
from llm_entropy.outputs.results import RunResult
from llm_entropy.runs.run import plan_model, run
from llm_entropy.settings import (
    COMPARISON_METRICS,
    CONTROL,
    KL_FROM_STANDARD,
    STANDARD,
    AnalysisSettings,
    ControlSettings,
    DataSettings,
    ModelSettings,
    OutputSettings,
    Settings,
    TrainerSettings,
)
from llm_entropy.settings.configuration import read_config

BATCHING = 2e-6
"""Largest relative difference between a sentence in a batch and the same sentence alone, in float32."""
MODELS = ("gpt2", "bert")
LONG = " ".join(["the ship left the harbour before dawn and nobody waved to the crew"] * 8)
"""Longer than either model takes."""
ROWS = (*SENTENCES[:4], "", *SENTENCES[4:], " \t ", LONG)
"""A corpus with blank rows and a sentence that is cut."""
READ = [text for text in ROWS if text.strip()]
METRICS = ["entropy", "surprisal", "attention_entropy"]
STEERING = ControlSettings(
    control_vector=[0.4, -0.9, 0.7], strength=1.5, layer_weights=[1.0, 0.2], token_weights=[1.0, 0.5, 2.0]
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The models, by key."""
    root = tmp_path_factory.mktemp("models")
    return {family: str(save_model(family, root / family)) for family in MODELS}


@pytest.fixture(scope="module")
def gpt2(folders: dict[str, str]) -> dict[str, str]:
    return {"gpt2": folders["gpt2"]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "corpus.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in ROWS)])
    return str(path)


@pytest.fixture(scope="module")
def compared(folders: dict[str, str], corpus: str, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A causal and a masked model, standard and control, with everything that a run can leave."""
    settings = Settings(
        analysis=AnalysisSettings(num_sentences=None, compare_control=True, metrics=METRICS, control=STEERING),
        models=dict(folders),
        data=DataSettings(path=corpus, tokens_per_batch=150),
        output=OutputSettings(dir=str(tmp_path_factory.mktemp("compared")), run_name="both"),
    )
    return run(settings, quiet=True)


def analyse(models: dict[str, str], output: Path, *, plots: Any = False, parquet: bool = False, **words: Any) -> Any:
    """Run over the tiny sentences, entropy alone and without plots unless asked otherwise."""
    words.setdefault("where", OutputSettings(dir=str(output / "runs"), plots=plots, parquet=parquet))
    words = {"metrics": ["entropy"], "output": words.pop("where"), **words}
    if "data" not in words:
        words.setdefault("sentences", SENTENCES)
    return run_analysis(models, quiet=True, **words)


def files_of(run_dir: Path) -> set[str]:
    return {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}


def expected_files(mode: str, models: Iterable[str], metrics: list[str]) -> set[str]:
    """Return what section 7 of the design lists, for one process."""
    folders = {"comparative": (STANDARD, CONTROL), "control": (CONTROL,), "standard": (STANDARD,)}[mode]
    names = {"config.yaml", "run.json", "run.log", "report.html"}
    names |= {f".locks/{name}.lock" for name in ("create", "merge", "task-00000-of-00001.rank-0000")}
    for model in models:
        names.add(f"shards/{model}/model.json")
        names |= {f"shards/{model}/task-00000-of-00001/rank-0000/part-000000{end}" for end in (".parquet", ".json")}
        for folder in folders:
            names |= {f"{folder}/data/{model}_{metric}.csv" for metric in (*metrics, "token_probabilities")}
            names |= {f"{folder}/plots/{model}_{metric}.png" for metric in (*metrics, "token_probabilities")}
            names |= {f"{folder}/data/{model}.parquet", f"{folder}/predictions/{model}_predictions.csv"}
        if mode == "comparative":
            names |= {f"comparative/data/{model}_{metric}_comparative.csv" for metric in metrics}
            names |= {f"comparative/plots/{model}_{metric}_comparison.png" for metric in metrics}
            names |= {f"comparative/plots/{model}_{metric}_differences.png" for metric in metrics}
            names |= {
                f"comparative/plots/{model}_{name}.png" for name in ("layer_impact", *COMPARISON_METRICS, "summary")
            }
            names |= {f"comparative/data/{model}_{name}.csv" for name in COMPARISON_METRICS}
            names |= {f"comparative/data/{model}.parquet", f"comparative/data/{model}_summary.csv"}
            names.add(f"comparative/predictions/{model}_comparative_predictions.csv")
    return names | {f"{folders[0]}/plots/models_{metric}.png" for metric in metrics}


def tables_of(run_dir: Path, suffix: str = ".csv") -> dict[str, str]:
    """Return a hash of every table, by its path."""
    paths = [path for path in run_dir.rglob(f"*{suffix}") if "shards" not in path.parts]
    assert paths
    return {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def manifest_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))


def one_by_one(key: str, folder: str, settings: Settings) -> dict[str, dict[str, np.ndarray]]:
    """Return each condition's metrics [sentence, layer], every sentence in a batch of its own."""
    plan = plan_model(key, folder, settings)
    view = view_model(load_model(plan.source, precision="32-true", needs_attention=True))
    module = EntropyModule(view, Lens(view), Asked(settings.analysis, plan.steering))
    kind = FAMILIES[key].kind
    encode = Encoder(plan.source.tokenizer, kind, seed=settings.seed, max_length=plan.max_length)
    ids = [row for row, text in enumerate(ROWS) if text.strip()]
    rows: dict[str, dict[str, list[np.ndarray]]] = {}
    for example, _ in encode(ids, READ):
        records = module.predict_step(collate([example], 0, settings.seed))
        for condition, own in records.conditions.items():
            for metric, values in own.metrics.items():
                values = values.mean(-1) if metric == "attention_entropy" else values
                rows.setdefault(condition, {}).setdefault(metric, []).append(values[0].numpy())
    return {condition: {name: np.stack(value) for name, value in own.items()} for condition, own in rows.items()}


# --- what a run leaves, and what it says -------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_comparative_run_leaves_the_files_of_the_design_and_no_other(compared: RunResult):
    assert compared.mode == "comparative"
    assert files_of(compared.run_dir) == expected_files("comparative", MODELS, METRICS)


@pytest.mark.parametrize("model", MODELS)
def test_rows_are_what_the_module_gives_for_each_sentence_alone_in_corpus_order(
    compared: RunResult, folders: dict[str, str], model: str
):
    settings = read_config(compared.run_dir / "config.yaml")
    alone = one_by_one(model, folders[model], settings)
    assert list(alone) == [STANDARD, CONTROL]
    for condition, metrics in alone.items():
        for metric in METRICS:
            table = compared[model][condition][metric]
            assert list(table.index) == READ
            np.testing.assert_allclose(table.to_numpy(), metrics[metric], rtol=BATCHING, atol=1e-6)
    assert np.abs(alone[CONTROL]["entropy"] - alone[STANDARD]["entropy"])[:, -1].min() > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
def test_a_comparative_table_is_control_minus_standard(compared: RunResult, model: str):
    result = compared[model]
    for metric in METRICS:
        both = result["comparative"][metric]
        standard, control = result[STANDARD][metric].to_numpy(), result[CONTROL][metric].to_numpy()
        assert list(both.xs("difference", level="quantity").index) == READ
        np.testing.assert_array_equal(both.xs("standard", level="quantity").to_numpy(), standard)
        np.testing.assert_array_equal(both.xs("control", level="quantity").to_numpy(), control)
        difference = both.xs("difference", level="quantity").to_numpy()
        np.testing.assert_allclose(difference, control - standard, rtol=1e-5, atol=1e-6)
        percent = both.xs("percent_change", level="quantity").to_numpy()
        known = np.abs(standard) > 1e-3
        np.testing.assert_allclose(percent[known], (100 * difference / np.where(known, standard, 1))[known], rtol=1e-4)
    kl = result["comparative"][KL_FROM_STANDARD].to_numpy()
    assert (kl[:, 0] == 0).all()
    assert (kl[:, -1] > 0).all()


def test_the_result_lists_what_was_run(compared: RunResult):
    assert list(compared) == list(MODELS)
    assert list(compared["bert"]) == [STANDARD, CONTROL, "comparative"]
    assert list(compared["bert"]["comparative"]) == [*METRICS, *COMPARISON_METRICS]
    assert len(compared) == 2
    assert len(compared["gpt2"][STANDARD]) == len(METRICS)
    with pytest.raises(KeyError, match="gpt2, bert"):
        compared["gpt3"]
    with pytest.raises(KeyError, match="standard, control, comparative"):
        compared["gpt2"]["steered"]
    with pytest.raises(KeyError, match="entropy, surprisal"):
        compared["gpt2"][STANDARD]["margin"]


def test_predictions_list_the_five_likeliest_tokens_of_each_sentence(compared: RunResult):
    predictions = compared["gpt2"][STANDARD].predictions
    assert list(predictions.columns) == ["Sentence", "Token", "Probability", "Analysis"]
    assert list(predictions["Sentence"]) == [text for text in READ for _ in range(5)]
    probabilities = predictions["Probability"].to_numpy().reshape(-1, 5)
    assert (np.diff(probabilities) <= 0).all()
    assert (probabilities > 0).all()
    both = compared["gpt2"]["comparative"].predictions
    assert len(both) == 2 * len(predictions)


def test_every_record_is_there_as_parquet_with_units(compared: RunResult):
    records = compared["bert"][STANDARD].records
    assert len(records) == len(READ)
    assert list(records["sentence"]) == READ
    schema = pq.read_schema(compared.run_dir / STANDARD / "data" / "bert.parquet")
    assert schema.field("entropy").metadata[b"unit"] == b"nats"
    heads = np.stack(records["attention_entropy"]).reshape(len(READ), 3, 4)
    np.testing.assert_allclose(heads.mean(-1), compared["bert"][STANDARD]["attention_entropy"], rtol=1e-5)


def test_the_manifest_counts_rows_that_were_skipped_and_sentences_that_were_cut(compared: RunResult):
    manifest = manifest_of(compared.run_dir)
    assert manifest["status"] == "complete"
    corpus = manifest["corpus"]
    assert (corpus["num_rows"], corpus["num_sentences"], corpus["num_skipped"]) == (len(ROWS), len(READ), 2)
    assert corpus["skipped"] == [{"row": 4, "reason": "blank"}, {"row": 9, "reason": "blank"}]
    for model in MODELS:
        about = manifest["models"][model]
        assert (about["num_cut"], about["num_unread"], about["num_examples"]) == (1, 0, len(READ))
        assert about["max_length"] == 60
        assert about["steering"]["control"]["first_layer"] == 1
        assert len(about["steering"]["control"]["added_norms"]) == about["shape"]["num_blocks"] + 1
        assert 0 <= about["lens_error_logits"] < 1e-4 < about["lens_allowed_logits"]
        assert 0 <= about["attention_error_nats"] < about["attention_allowed_nats"] == 1e-4
        (process,) = about["processes"]
        assert process["num_records"] == about["num_records"] == len(READ)
        assert process["tokens_per_second"] > 0
        assert process["peak_memory_bytes"] > 2**20
        assert (process["task"], process["rank"], process["host"]) == ([0, 1], [0, 1], platform.node())
        assert [row["metric"] for row in about["summary"]] == METRICS
    assert set(manifest["versions"]) >= {"torch", "transformers", "llm_entropy"}


def test_the_log_holds_warnings_and_times(compared: RunResult):
    lines = (compared.run_dir / "run.log").read_text(encoding="utf-8").splitlines()
    warned = [line for line in lines if " WARNING " in line and "llm_entropy:" in line]
    assert any("3 numbers repeated to fill the hidden size of gpt2, 32" in line for line in warned)
    assert any("bert: 1 sentences were cut at 60 tokens" in line for line in warned)
    assert any("9 of 11 rows, 2 without text skipped" in line for line in lines)
    pd.to_datetime([line[:23] for line in lines if " llm_entropy: " in line], format="%Y-%m-%d %H:%M:%S,%f")


def test_texts_that_begin_with_what_the_tokenizer_adds_are_counted_and_reported_once(
    folders: dict[str, str], tmp_path: Path
):
    texts = ["[CLS] the cat [SEP]", "the cat", "[CLS] rain fell", "rain fell"]
    result = analyse({"bert": folders["bert"]}, tmp_path, num_sentences=None, sentences=texts)
    entropy = result["bert"][STANDARD]["entropy"].to_numpy()
    np.testing.assert_allclose(entropy[[0, 2]], entropy[[1, 3]], rtol=1e-6)
    assert manifest_of(result.run_dir)["models"]["bert"]["num_own_start"] == 2
    lines = (result.run_dir / "run.log").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if "2 sentences begin with the special token (BOS)" in line]) == 1


@pytest.mark.parametrize("mode", ["standard", "control"])
def test_one_condition_leaves_its_own_folder_alone(mode: str, gpt2: dict[str, str], corpus: str, tmp_path: Path):
    steering = {"control_vector": [0.1], "layer_weights": [1.0]} if mode == "control" else {}
    result = analyse(gpt2, tmp_path, data=corpus, num_sentences=3, plots=True, parquet=True, **steering)
    assert result.mode == mode
    assert files_of(result.run_dir) == expected_files(mode, gpt2, ["entropy"])
    assert list(result["gpt2"]) == [mode]


def test_the_report_is_made_anew_with_the_same_bytes_and_nothing_else_is_touched(
    compared: RunResult, capsys: pytest.CaptureFixture[str]
):
    run_dir = compared.run_dir
    names = files_of(run_dir)
    before = {name: (run_dir / name).read_bytes() for name in names}
    path = run_dir / "report.html"
    path.unlink()
    main(["report", str(run_dir)])
    assert capsys.readouterr().out == f"{path}\n"
    assert {name: (run_dir / name).read_bytes() for name in files_of(run_dir)} == before
    assert compared.report is not None
    assert compared.report.path == path
    assert READ[0] in path.read_text(encoding="utf-8")


def test_a_run_can_do_without_a_report(gpt2: dict[str, str], tmp_path: Path):
    result = analyse(gpt2, tmp_path, where=OutputSettings(dir=str(tmp_path), plots=False, csv=False, report=False))
    assert result.report is None
    assert manifest_of(result.run_dir)["output"]["report"] is False


def test_a_report_of_a_run_that_is_not_complete_is_refused(compared: RunResult, tmp_path: Path):
    run_dir = tmp_path / "half"
    shutil.copytree(compared.run_dir, run_dir)
    (run_dir / "run.json").write_text(json.dumps({**manifest_of(run_dir), "status": "stopped"}), encoding="utf-8")
    before = (run_dir / "report.html").read_bytes()
    with pytest.raises(ReportedError, match=r"half: is not complete \(run.json says stopped\); .* llm-entropy merge"):
        report_run(run_dir)
    assert (run_dir / "report.html").read_bytes() == before


def test_without_plots_and_parquet_only_csv_files_are_written(gpt2: dict[str, str], tmp_path: Path):
    result = analyse(gpt2, tmp_path)
    everything = expected_files("standard", gpt2, ["entropy"])
    wanted = {name for name in everything if not name.endswith(".png") and name != "standard/data/gpt2.parquet"}
    assert files_of(result.run_dir) == wanted | {"sentences.jsonl"}
    assert result.run_dir.name.startswith("run_")


def test_metrics_give_the_files_that_they_name(gpt2: dict[str, str], tmp_path: Path):
    names = ["target_rank", "varentropy", "kl_to_final"]
    result = analyse(gpt2, tmp_path, metrics=names)
    found = {path.stem.removeprefix("gpt2_") for path in (result.run_dir / STANDARD / "data").iterdir()}
    assert found == {*names, "token_probabilities"}
    assert (result["gpt2"][STANDARD]["target_rank"].iloc[:, -1] == 0).all()
    np.testing.assert_allclose(result["gpt2"][STANDARD]["kl_to_final"].iloc[:, -1], 0, atol=1e-6)


# --- settings that change what is read ---------------------------------------------------------------------------


@pytest.mark.gpu
def test_all_positions_give_the_mean_over_the_tokens_of_a_sentence(gpt2: dict[str, str], tmp_path: Path):
    result = analyse(gpt2, tmp_path, positions="all", parquet=True)
    records = result["gpt2"][STANDARD].records
    lengths = [len(ids) for ids in make_tokenizer("causal")(list(SENTENCES)).input_ids]
    assert records.groupby("sentence_id").size().tolist() == lengths
    means = records.groupby("sentence_id")["entropy"].apply(lambda rows: np.stack(rows).mean(0))
    np.testing.assert_allclose(np.stack(means), result["gpt2"][STANDARD]["entropy"], rtol=1e-5)


def test_top_k_sets_how_many_tokens_are_listed(gpt2: dict[str, str], tmp_path: Path):
    predictions = analyse(gpt2, tmp_path, top_k=2)["gpt2"][STANDARD].predictions
    assert len(predictions) == 2 * len(SENTENCES)
    with pytest.raises(ValueError, match=rf"analysis\.top_k: got {CAUSAL_VOCAB + 1}.*{CAUSAL_VOCAB} tokens"):
        analyse(gpt2, tmp_path, top_k=CAUSAL_VOCAB + 1)


def test_num_sentences_picks_by_seed_and_keeps_corpus_order(gpt2: dict[str, str], tmp_path: Path):
    picks = [
        list(analyse(gpt2, tmp_path, num_sentences=4, seed=seed)["gpt2"][STANDARD]["entropy"].index)
        for seed in (1, 1, 2)
    ]
    assert picks[0] == picks[1] != picks[2]
    for pick in picks:
        assert pick == [text for text in SENTENCES if text in pick]
        assert len(pick) == 4


@pytest.mark.gpu
def test_sampling_depends_on_the_seed_and_not_on_the_batches(gpt2: dict[str, str], corpus: str, tmp_path: Path):
    def sampled(seed: int, tokens_per_batch: int) -> list[str]:
        data = DataSettings(path=corpus, tokens_per_batch=tokens_per_batch)
        words = {"num_sentences": None, "use_sampling": True, "positions": "all", "parquet": True}
        result = analyse(gpt2, tmp_path, data=data, seed=seed, temperature=2.0, **words)
        assert len(result["gpt2"][STANDARD].predictions) == len(READ)
        return [str(tokens[0]) for tokens in result["gpt2"][STANDARD].records["top_tokens"]]

    one_by_one = sampled(5, 1)
    assert one_by_one == sampled(5, 4096) != sampled(6, 4096)


def test_which_token_is_masked_at_random_depends_on_the_seed(folders: dict[str, str], tmp_path: Path):
    def masked(seed: int) -> list[int]:
        words = {"mask_strategy": "random", "seed": seed, "parquet": True}
        return analyse({"bert": folders["bert"]}, tmp_path, **words)["bert"][STANDARD].records["position"].tolist()

    assert masked(0) == masked(0) != masked(1)


@pytest.mark.gpu
def test_a_zero_vector_gives_the_standard_run(folders: dict[str, str], tmp_path: Path):
    result = analyse(folders, tmp_path, metrics=METRICS, compare_control=True, control_vector=torch.zeros(HIDDEN))
    for model in MODELS:
        for metric in METRICS:
            standard, control = (result[model][condition][metric] for condition in (STANDARD, CONTROL))
            pd.testing.assert_frame_equal(standard, control, check_exact=True)
        assert (result[model]["comparative"][KL_FROM_STANDARD].to_numpy() == 0).all()


@pytest.mark.gpu
def test_two_strengths_in_one_run_have_the_bytes_of_two_runs_with_one_each(folders: dict[str, str], tmp_path: Path):
    control = {"control_vector": [0.4, -0.9, 0.7], "layer_weights": [0.0, 1.0, 0.5], "token_weights": [1.0, 2.0]}
    options = {"metrics": METRICS, "compare_control": True, "positions": "all", "parquet": True}
    # every plot of one metric: what the conditions beside it change would show in each
    options["plots"] = ["attention_entropy", "token_probabilities", *COMPARISON_METRICS]
    conditions = {"dose": {**control, "strengths": [-1, 1]}}
    both = analyse(folders, tmp_path, conditions=conditions, **options).run_dir
    for name, strength in (("dose_-1", -1), ("dose_+1", 1)):
        alone = analyse(folders, tmp_path, conditions={name: {**control, "strength": strength}}, **options).run_dir
        for suffix in (".csv", ".parquet", ".png"):
            found = tables_of(alone, suffix)
            # what is corrected over all conditions of a run, or shows that
            found = {path: content for path, content in found.items() if not re.search("summary|impact", path)}
            assert any(path.startswith(f"comparative/{name}/") for path in found)
            assert any(path.startswith(f"control/{name}/") for path in found)
            assert found.items() <= tables_of(both, suffix).items()


def test_several_conditions_are_there_in_python_by_their_names(gpt2: dict[str, str], tmp_path: Path):
    result = analyse(
        gpt2,
        tmp_path,
        compare_control=True,
        control_vector=np.full(32, 0.3, np.float32),
        strengths=[-1, 0, 1],
        placebo={"random": 2},
        conditions={"mood": {"control_vector": torch.full((3, 32), 0.1), "strength": 2}},
    )["gpt2"]
    steered = ["control_-1", "control_+0", "control_+1", "mood"]
    assert list(result) == ["standard", *steered, *(f"comparative/{name}" for name in steered)]
    standard = result["standard"]["entropy"]
    pd.testing.assert_frame_equal(result["control_+0"]["entropy"], standard)
    for name in steered:
        compared = result[f"comparative/{name}"]["entropy"].xs("difference", level="quantity")
        np.testing.assert_allclose(compared, result[name]["entropy"] - standard, rtol=1e-5, atol=1e-6)
    assert set(result.placebos["condition"]) == {"control_random_1", "control_random_2"}
    again = analyse(gpt2, tmp_path, **asked_again(result.run_dir))
    assert tables_of(again.run_dir) == tables_of(result.run_dir)


def asked_again(run_dir: Path) -> dict[str, Any]:
    """Return the vectors and conditions that a run's config.yaml holds, as arguments."""
    analysis = read_config(run_dir / "config.yaml").analysis
    control = vars(analysis.control)
    names = ("control_vector", "strengths", "placebo")
    return {"compare_control": True, "conditions": analysis.conditions, **{name: control[name] for name in names}}


@pytest.mark.gpu
def test_bfloat16_runs_with_statistics_in_float32(gpt2: dict[str, str], tmp_path: Path):
    half = analyse(gpt2, tmp_path, trainer=TrainerSettings(precision="bf16-true"))
    full = analyse(gpt2, tmp_path)
    assert manifest_of(half.run_dir)["models"]["gpt2"]["dtype"] == "bfloat16"
    error = (half["gpt2"][STANDARD]["entropy"] - full["gpt2"][STANDARD]["entropy"]).abs().to_numpy()
    assert 0 < error.max() < 0.05 * math.log(CAUSAL_VOCAB)


def test_a_model_can_have_a_dtype_of_its_own(gpt2: dict[str, str], tmp_path: Path):
    models = {"gpt2": ModelSettings(gpt2["gpt2"], dtype="float16")}
    assert manifest_of(analyse(models, tmp_path).run_dir)["models"]["gpt2"]["dtype"] == "float16"


# --- the same again ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_tensors(gpt2: dict[str, str], corpus: str, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The Python call of section 6, at the width of the tiny model."""
    generator = torch.Generator().manual_seed(2)
    return run_analysis(
        gpt2,
        num_sentences=6,
        temperature=0.8,
        use_sampling=True,
        compare_control=True,
        control_vector=torch.randn(HIDDEN, generator=generator),
        layer_weights=torch.ones(3),
        token_weights=torch.ones(50),
        data=corpus,
        output=OutputSettings(dir=str(tmp_path_factory.mktemp("tensors")), plots=False),
        quiet=True,
    )


def test_a_vector_in_memory_is_stored_and_its_configuration_gives_the_same_bytes(
    from_tensors: RunResult, tmp_path: Path
):
    settings = read_config(from_tensors.run_dir / "config.yaml")
    assert settings.analysis.control.control_vector == str(from_tensors.run_dir / "control_vector.safetensors")
    assert settings.analysis.control.layer_weights == [1.0, 1.0, 1.0]
    again = run(dataclasses.replace(settings, output=OutputSettings(dir=str(tmp_path), plots=False)), quiet=True)
    assert again.run_dir != from_tensors.run_dir
    assert tables_of(again.run_dir) == tables_of(from_tensors.run_dir)


def test_a_pair_of_vectors_in_memory_is_stored_too(gpt2: dict[str, str], corpus: str, tmp_path: Path):
    up = np.linspace(-1, 1, HIDDEN, dtype=np.float32)
    words = {"data": corpus, "num_sentences": 3, "layer_weights": np.ones(3)}
    pair = analyse(
        gpt2, tmp_path, control_vectors={"positive": up, "negative": torch.tensor(-up)}, direction="negative", **words
    )
    single = analyse(gpt2, tmp_path, control_vector=-up, **words)
    assert tables_of(pair.run_dir) == tables_of(single.run_dir)
    again = read_config(pair.run_dir / "config.yaml")
    again = run(dataclasses.replace(again, output=OutputSettings(dir=str(tmp_path / "again"), plots=False)), quiet=True)
    assert tables_of(again.run_dir) == tables_of(pair.run_dir)


def test_sentences_in_memory_are_stored_and_can_be_run_again(gpt2: dict[str, str], tmp_path: Path):
    texts = ["12", "a\nb", "", "the cat", "月亮 😀"]
    first = analyse(gpt2, tmp_path, sentences=texts)
    assert list(first["gpt2"][STANDARD]["entropy"].index) == ["12", "a\nb", "the cat", "月亮 😀"]
    assert manifest_of(first.run_dir)["corpus"]["skipped"] == [{"row": 2, "reason": "blank"}]
    settings = read_config(first.run_dir / "config.yaml")
    again = run(dataclasses.replace(settings, output=OutputSettings(dir=str(tmp_path / "b"), plots=False)), quiet=True)
    assert tables_of(again.run_dir) == tables_of(first.run_dir)


@pytest.mark.gpu
def test_merging_makes_the_same_bytes_from_the_shards(gpt2: dict[str, str], tmp_path: Path):
    first = analyse(gpt2, tmp_path, plots=True, parquet=True, compare_control=True, control_vector=[0.3])
    before = {suffix: tables_of(first.run_dir, suffix) for suffix in (".csv", ".parquet", ".png")}
    for folder in (STANDARD, CONTROL, "comparative"):
        shutil.rmtree(first.run_dir / folder)
    again = merge_run(first.run_dir, quiet=True)
    assert {suffix: tables_of(first.run_dir, suffix) for suffix in before} == before
    pd.testing.assert_frame_equal(again["gpt2"][CONTROL]["entropy"], first["gpt2"][CONTROL]["entropy"])


def test_shards_of_an_earlier_version_are_left_to_it(gpt2: dict[str, str], tmp_path: Path):
    run_dir = analyse(gpt2, tmp_path, compare_control=True, control_vector=[0.3]).run_dir
    before = tables_of(run_dir)
    (about,) = run_dir.glob("shards/*/model.json")
    model = json.loads(about.read_text())
    del model["steering"]
    about.write_text(json.dumps(model))
    version = llm_entropy.__version__
    with pytest.raises(
        ReportedError, match=f"an earlier llm_entropy and lack columns.*the version that wrote them, {version}"
    ):
        merge_run(run_dir, quiet=True)
    assert tables_of(run_dir) == before


def start_anew(launch: Launcher, words: list[str], num_processes: int) -> str:
    """Let Lightning start all but the first process, each in an interpreter of its own; return what they say."""
    command = [sys.executable, "-m", "llm_entropy", *words]
    done = subprocess.run(command, env=launch.environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start_by_lightning(launch: Launcher, words: list[str], num_processes: int) -> str:
    """As `start_anew`, but each process is a fork."""
    ended = launch(words, num_copies=num_processes - 1)
    assert ended.status == 0, ended.said
    return ended.said


def start_by_torchrun(launch: Launcher, words: list[str], num_processes: int) -> str:
    """Let torchrun start the processes, each a fork."""
    torchrun = ["--standalone", f"--nproc_per_node={num_processes}", "-m", "llm_entropy"]
    ended = launch([*torchrun, *words], program=TORCHRUN, num_copies=num_processes)
    assert ended.status == 0, ended.said
    return ended.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "start", "tokens_per_batch", "num_sentences", "positions"),
    [
        pytest.param(2, start_anew, 40, None, "all", id="2 processes"),
        pytest.param(3, start_by_lightning, 40, None, "generated", id="3 processes, generated text"),
        pytest.param(2, start_by_torchrun, 40, None, "all", id="2 by torchrun"),
        pytest.param(3, start_by_torchrun, 1, None, "all", id="3 by torchrun, a sentence to a batch"),
        pytest.param(2, start_by_lightning, 40, 1, "all", id="2 processes, one without batches"),
        pytest.param(3, start_by_torchrun, 40, 1, "all", id="3 by torchrun, two without batches"),
    ],
)
def test_many_processes_give_the_bytes_of_one(
    folders: dict[str, str],
    corpus: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    launcher: Launcher,
    num_processes: int,
    start: Callable[[Launcher, list[str], int], str],
    tokens_per_batch: int,
    num_sentences: int | None,
    positions: str,
):
    models = ["gpt2"] if positions == "generated" else MODELS  # masked models write nothing
    options = {
        "models": {model: folders[model] for model in models},
        "data": {"path": corpus, "tokens_per_batch": tokens_per_batch},
        "analysis": {
            "num_sentences": num_sentences,
            "metrics": ["entropy", "attention_entropy"],
            "positions": positions,
            "use_sampling": True,
            "compare_control": True,
            "control": {"control_vector": [0.3, -0.2], "strengths": [-1, 1], "placebo": {"random": 1}},
            "conditions": {"mood": {"control_vector": [0.5], "layer_weights": [0, 1], "strengths": [0.5, 2]}},
        },
        "trainer": {"accelerator": "cpu"},
        "output": {"dir": str(tmp_path), "run_name": "one", "plots": False},
    }
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(options), encoding="utf-8")
    one = run(dataclasses.replace(read_config(config), trainer=TrainerSettings("cpu", 1)), quiet=True).run_dir
    # torchrun's count is the count
    devices = [] if start is start_by_torchrun else [f"--trainer.devices={num_processes}"]
    words = ["predict", f"--config={config}", *devices, "--output.run_name=many"]
    said = start(launcher.at(tmp_path_factory.mktemp("many")), words, num_processes)
    assert said.count("Tables and plots:") == 1
    many = tmp_path / "many"
    assert tables_of(one) == tables_of(many)
    assert tables_of(one, ".parquet") == tables_of(many, ".parquet")
    assert {f"comparative/data/{model}_placebos.parquet" for model in models} < set(tables_of(one, ".parquet"))
    busy = 1 if num_sentences == 1 else num_processes
    for model in models:
        shards = sorted((many / "shards" / model).rglob("*.parquet"))
        assert [path.parent.name for path in shards] == [f"rank-{rank:04d}" for rank in range(busy)]
        assert len(manifest_of(many)["models"][model]["processes"]) == busy
    log = (many / "run.log").read_text(encoding="utf-8")
    assert "py.warnings" not in log, "a warning that users can do nothing about"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "many", "one"]


# --- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that looks like BERT until its weights are read: there is no language-model head in it."""
    folder = tmp_path_factory.mktemp("headless")
    whole = make_model("bert")
    transformers.BertModel(whole.config, add_pooling_layer=True).save_pretrained(folder)
    make_tokenizer("masked").save_pretrained(folder)
    return str(folder)


def test_a_rank_that_is_left_over_in_the_environment_changes_nothing(
    gpt2: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(rank_zero_only, "rank", 3, raising=False)  # what Lightning makes of it when it is imported
    result = analyse(gpt2, tmp_path, num_sentences=2)
    assert manifest_of(result.run_dir)["models"]["gpt2"]["num_sentences"] == 2
    assert "RANK is 3, but neither torchrun nor srun" in (result.run_dir / "run.log").read_text()


def test_a_second_model_that_fails_leaves_what_the_first_one_gave(gpt2: dict[str, str], headless: str, tmp_path: Path):
    output = OutputSettings(dir=str(tmp_path), run_name="broken", plots=False)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a masked language model"):
        analyse({**gpt2, "bert": headless}, tmp_path, where=output)
    run_dir = tmp_path / "broken"
    manifest = manifest_of(run_dir)
    assert manifest["status"] == "failed"
    assert list((run_dir / "shards" / "gpt2").rglob("*.parquet"))
    assert "the run stopped: ReportedError" in (run_dir / "run.log").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="is not complete: bert lacks window 0"):
        merge_run(run_dir, quiet=True)


@pytest.mark.parametrize("output", ["runs", "deep/er/runs"])
def test_an_error_before_any_record_leaves_nothing_behind(
    output: str, gpt2: dict[str, str], headless: str, tmp_path: Path
):
    for models, words in (
        ({"bert": headless}, {}),
        (gpt2, {"trainer": TrainerSettings(accelerator="cpu", devices=0)}),
        (gpt2, {"control_vector": torch.zeros(HIDDEN + 1)}),
        (gpt2, {"num_sentences": 99}),
    ):
        with pytest.raises(ValueError, match=r"lacks|devices|width|num_sentences"):
            analyse(models, tmp_path, where=OutputSettings(dir=str(tmp_path / output)), **words)
        assert list(tmp_path.iterdir()) == []


def test_a_fault_of_the_program_keeps_its_traceback_and_says_where_it_lies(
    gpt2: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def faulty(module: EntropyModule, batch: Any, batch_idx: int = 0) -> None:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(EntropyModule, "predict_step", faulty)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": gpt2, "output": {"dir": str(tmp_path / "runs"), "run_name": "one"}}))
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--config", str(config)])
    log = tmp_path / "runs" / "one" / "run.log"
    last = capsys.readouterr().err.split("\n")[-2]  # a line of its own, and not behind the progress bar
    assert ended.value.code == 1
    assert last.startswith("llm-entropy: error: a fault of the program, ValueError: operands could not be broadcast")
    assert str(log) in last
    assert "Traceback (most recent call last)" in log.read_text()
    assert "in faulty" in log.read_text()
    assert json.loads(log.with_name("run.json").read_text())["status"] == "failed"


def test_a_fault_of_a_merge_keeps_its_traceback_too(
    gpt2: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_dir = analyse(gpt2, tmp_path, num_sentences=2).run_dir

    def faulty(*arguments: Any, **options: Any) -> None:
        raise TypeError("no such thing")

    monkeypatch.setattr("llm_entropy.outputs.making.merge_model", faulty)
    with pytest.raises(TypeError) as caught:
        merge_run(run_dir)
    assert str(run_dir / "run.log") in caught.value.__notes__[-1]
    assert "in faulty" in (run_dir / "run.log").read_text()


def test_a_folder_of_runs_that_was_there_stays(gpt2: dict[str, str], tmp_path: Path):
    with pytest.raises(ValueError, match="num_sentences"):
        analyse(gpt2, tmp_path, num_sentences=99, where=str(tmp_path))
    assert tmp_path.is_dir()


def test_a_run_name_that_exists_is_refused_and_left_alone(gpt2: dict[str, str], tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"output\.run_name: .*mine exists already"):
        analyse(gpt2, tmp_path, where=OutputSettings(dir=str(tmp_path), run_name="mine"))
    assert files_of(tmp_path) == {"mine/notes.txt"}


def test_merging_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no run\.json"):
        merge_run(tmp_path, quiet=True)


def test_a_merge_without_all_shards_is_refused_and_changes_nothing(gpt2: dict[str, str], tmp_path: Path):
    result = analyse(gpt2, tmp_path, where=OutputSettings(dir=str(tmp_path), run_name="whole", plots=False))
    before = tables_of(result.run_dir)
    marker = next((result.run_dir / "shards").rglob("part-*.json"))
    marker.unlink()
    with pytest.raises(
        ValueError, match=r"is not complete: gpt2 lacks window 0\. run what is missing with: .* --resume"
    ):
        merge_run(result.run_dir, quiet=True)
    assert tables_of(result.run_dir) == before

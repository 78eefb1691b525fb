"""`target_kl`: the strength is found for each model, written down, and kept to by whoever takes part in the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from launcher import Launcher
from tiny_models import SENTENCES, save_model

from llm_entropy import merge_run, run_analysis
from llm_entropy.commands.cli import main
from llm_entropy.corpus.picking import corpus_of_sentences
from llm_entropy.corpus.sample import sample_sentences
from llm_entropy.errors import ReportedError
from llm_entropy.outputs.results import RunResult
from llm_entropy.runs import strengths
from llm_entropy.runs.run import run
from llm_entropy.settings import AnalysisSettings, ControlSettings, DataSettings, OutputSettings, Settings, to_plain
from llm_entropy.settings.configuration import read_config
from llm_entropy.store import windows

BUILTIN = {"tiny-gpt2": "builtin:tiny-gpt2", "tiny-bert": "builtin:tiny-bert"}
KL, LOG = "kl_from_standard", "run.log"


def percentile(result: RunResult, model: str, condition: str = "control") -> float:
    """Return the 95th percentile of KL at the last layer, as the records have it."""
    name = "comparative" if condition == "control" else f"comparative/{condition}"
    records = result[model][name].records
    return float(pd.DataFrame(records[KL].tolist()).iloc[:, -1].quantile(0.95))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Both built-in models, over as many sentences as the search looks at."""
    return run_analysis(
        BUILTIN,
        num_sentences=strengths.SENTENCES,
        compare_control=True,
        control_vector="builtin:{model}/bible.safetensors",
        strengths=[-1, 1, 2],
        target_kl=1.0,
        placebo={"random": 1},
        metrics="entropy",
        output=OutputSettings(dir=str(tmp_path_factory.mktemp("found")), plots=False, csv=False, run_name="one"),  # type: ignore[arg-type]
        quiet=True,
    )


def test_both_built_in_models_get_the_budget_within_five_percent(found: RunResult) -> None:
    for model in BUILTIN:
        assert percentile(found, model, "control_+1") == pytest.approx(1.0, rel=0.05)
        assert percentile(found, model, "control_+2") > 1.5
    about = json.loads((found.run_dir / "run.json").read_text())
    own = {model: about["found_strengths"][model]["control"] for model in BUILTIN}
    assert len(set(own.values())) == 2, "each model has a strength of its own"
    control = read_config(found.run_dir / "config.yaml").analysis.control
    assert (control.target_kl, control.found_strengths) == (1.0, own)
    words = (found.run_dir / LOG).read_text()
    for model, strength in own.items():
        assert f"{model}: control: step 1: strength 1:" in words
        assert f"{model}: control: found strength {strength:g}" in words


def test_strengths_and_placebos_are_multiples_of_what_was_found(found: RunResult) -> None:
    about = json.loads((found.run_dir / "run.json").read_text())
    for model in BUILTIN:
        steering = about["models"][model]["steering"]
        norms = {name: max(own["added_norms"]) for name, own in steering.items()}
        strength = about["found_strengths"][model]["control"]
        plain = run_norms(model)
        assert norms["control_+1"] == pytest.approx(strength * plain, rel=1e-5)
        assert norms["control_-1"] == norms["control_+1"] == pytest.approx(norms["control_+2"] / 2, rel=1e-6)
        assert norms["control_random_1"] == pytest.approx(norms["control_+2"], rel=1e-4)


def run_norms(model: str) -> float:
    """Return the largest norm of the built-in vector of a model, at strength 1."""
    from llm_entropy.runs.plan import plan_model

    control = ControlSettings(control_vector=f"builtin:{model}/bible.safetensors")
    settings = Settings(analysis=AnalysisSettings(control=control), models=dict(BUILTIN))
    norms = plan_model(model, BUILTIN[model], settings).steering["control"].added_norms
    assert norms is not None
    return max(norms)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the strength is searched again")


def settings_of(folder: Path, tmp_path: Path, **control: Any) -> Settings:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{SENTENCES[i % 8]} {i}\n" for i in range(40)), encoding="utf-8")
    steering: Any = {"control_vector": [0.4, -0.9, 0.7], "target_kl": 0.3, **control}
    return Settings(
        analysis=AnalysisSettings(metrics=["entropy"], compare_control=True, control=steering),
        models={"gpt2": str(folder)},
        data=DataSettings(path=str(corpus), tokens_per_batch=64),
        output=OutputSettings(dir=str(tmp_path / "runs"), run_name="one", plots=False, part_seconds=0),
    )


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("gpt2", tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("WINDOW_ROWS", 16), ("MIN_BATCH_TOKENS", 32), ("MIN_PIECE_TOKENS", 32)):
        monkeypatch.setattr(windows, name, number)


@pytest.mark.usefixtures("small_windows")
def test_a_resume_and_other_tasks_keep_to_the_strength_that_was_found(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(gpt2, tmp_path)
    whole = run(settings, quiet=True)
    assert percentile(whole, "gpt2") == pytest.approx(0.3, rel=0.05)
    tables = {path.name: path.read_bytes() for path in whole.run_dir.glob("*/data/*.csv")}
    config = (whole.run_dir / "config.yaml").read_text()
    strength = read_config(whole.run_dir / "config.yaml").analysis.control.found_strengths

    # As the user's own command, and as the command that is printed: neither searches.
    monkeypatch.setattr(strengths, "find_strength", refuse)
    for given in (settings, read_config(whole.run_dir / "config.yaml")):
        part = sorted(whole.run_dir.glob("shards/gpt2/**/part-*"))[0]
        for path in part.parent.glob(f"{part.stem}*"):
            path.unlink()
        given.output = settings.output
        resumed = run(given, quiet=True, resume=True)
        assert {path.name: path.read_bytes() for path in resumed.run_dir.glob("*/data/*.csv")} == tables
        assert (resumed.run_dir / "config.yaml").read_text() == config

    # Another run of the configuration has the strength, and the tasks of an array have that of the first.
    for index in (0, 1):
        given = read_config(whole.run_dir / "config.yaml") if index == 0 else settings_of(gpt2, tmp_path)
        given.output = OutputSettings(dir=str(tmp_path / "runs"), run_name="array", plots=False)
        given.data.num_shards, given.data.shard_index = 2, index
        run(given, quiet=True)
    merged = merge_run(tmp_path / "runs" / "array", quiet=True)
    assert {path.name: path.read_bytes() for path in merged.run_dir.glob("*/data/*.csv")} == tables
    assert read_config(merged.run_dir / "config.yaml").analysis.control.found_strengths == strength


def test_a_task_that_has_searched_at_the_same_time_takes_the_strength_of_the_first(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, strength = strengths.find_strength, []

    def slow_search(*given: Any, **options: Any) -> float:
        """Let another task begin the run before this one has found its strength, which is not quite the same."""
        own = search(*given, **options)
        if not strength:
            strength.append(own)
            other = settings_of(gpt2, tmp_path)
            other.data.num_shards, other.data.shard_index = 2, 1
            run(other, quiet=True)
            return own * 1.01
        return own

    monkeypatch.setattr(strengths, "find_strength", slow_search)
    settings = settings_of(gpt2, tmp_path)
    settings.data.num_shards, settings.data.shard_index = 2, 0
    run(settings, quiet=True)
    merged = merge_run(tmp_path / "runs" / "one", quiet=True)
    about = json.loads((merged.run_dir / "run.json").read_text())
    assert about["found_strengths"] == {"gpt2": {"control": strength[0]}}
    alone = tmp_path / "alone"
    settings = settings_of(gpt2, tmp_path)
    settings.output.dir = str(alone)
    monkeypatch.setattr(strengths, "find_strength", search)
    whole = run(settings, quiet=True)
    records = [result["gpt2"]["comparative"].records[KL].tolist() for result in (merged, whole)]
    assert all((one == other).all() for one, other in zip(*records, strict=True))


@pytest.mark.slow
def test_several_processes_have_the_strength_of_the_first(
    gpt2: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, launcher: Launcher
) -> None:
    settings, config = settings_of(gpt2, tmp_path), tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(to_plain(settings)))
    words = ["predict", f"--config={config}", "--output.run_name=two", "--trainer.devices=2"]
    ended = launcher.at(tmp_path_factory.mktemp("two"))([*words, "--trainer.accelerator=cpu"], num_copies=1)
    assert ended.status == 0, ended.said
    two = tmp_path / "runs" / "two"
    about = json.loads((two / "run.json").read_text())
    assert len(about["models"]["gpt2"]["processes"]) == 2
    assert ended.said.count("found strength") == 1, "the first process alone searches"
    settings.analysis.control.found_strengths = {"gpt2": about["found_strengths"]["gpt2"]["control"]}
    one = run(settings, quiet=True).run_dir
    tables = {path.name: path.read_bytes() for path in one.glob("*/data/*.csv")}
    assert {path.name: path.read_bytes() for path in two.glob("*/data/*.csv")} == tables


def test_another_strength_than_that_of_the_run_is_refused(gpt2: Path, tmp_path: Path) -> None:
    settings = settings_of(gpt2, tmp_path, found_strengths={"gpt2": 0.25})
    run(settings, quiet=True)
    about = json.loads((tmp_path / "runs" / "one" / "run.json").read_text())
    assert about["found_strengths"] == {"gpt2": {"control": 0.25}}, "what is given is not searched"
    settings.analysis.control.found_strengths = {"gpt2": 0.5}
    with pytest.raises(
        ReportedError,
        match=r"analysis\.control\.found_strengths\.gpt2: got 0\.5, but .*one was started with 0\.25; leave",
    ):
        run(settings, quiet=True, resume=True)
    settings = settings_of(gpt2, tmp_path, target_kl=0.4)
    with pytest.raises(ReportedError, match=r"conditions\.control\.target_kl was 0\.3, now 0\.4"):
        run(settings, quiet=True, resume=True)


@pytest.mark.parametrize(
    ("control", "error"),
    [
        ({"found_strengths": {"gtp2": 1.0}}, r"found_strengths: got the key 'gtp2'; expected keys of models: gpt2"),
        ({"target_kl": 1e6}, r"analysis\.control\.target_kl: gpt2: got 1e\+06 nats; .*the best that was seen is"),
        ({"control_vector": [0.0]}, r"target_kl: gpt2: the vector is 0, or every weight of it is"),
        ({"layer_weights": [0.0]}, r"target_kl: gpt2: the vector is 0, or every weight of it is"),
    ],
)
def test_what_cannot_be_searched_is_an_error_that_leaves_nothing(
    gpt2: Path, tmp_path: Path, control: dict[str, Any], error: str
) -> None:
    with pytest.raises(ReportedError, match=error):
        run(settings_of(gpt2, tmp_path, **control), quiet=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("control", "error"),
    [
        ({"target_kl": 0.0}, r"analysis\.control\.target_kl: got 0; expected a number of nats, at least 0\.001"),
        ({"target_kl": 1.0, "operator": "project_out"}, r"operator is project_out, whose strength is the share"),
        ({"target_kl": 1.0, "operator": "cap", "cap": 1.0}, r"operator is cap, whose strength is the share"),
        ({"target_kl": 1.0, "strengths": [0.0]}, r"target_kl: got 1, but every strength is 0"),
        ({"found_strengths": {"gpt2": 1.0}}, r"found_strengths: got .*, but analysis\.control\.target_kl is null"),
        ({"target_kl": 1.0, "found_strengths": {"gpt2": -1.0}}, r"found_strengths\.gpt2: got -1\.0; expected a number"),
    ],
)
def test_a_target_without_a_sense_is_refused_at_once(control: dict[str, Any], error: str) -> None:
    with pytest.raises(ReportedError, match=error):
        ControlSettings(control_vector=[0.1], **control)


def test_the_direction_of_the_conditions_is_the_one_that_is_searched() -> None:
    def strength(**control: Any) -> float:
        analysis = AnalysisSettings(control=ControlSettings(control_vector=[0.1], target_kl=1.0, **control))
        (condition,) = strengths.budgets(analysis).values()
        assert condition.steering is not None
        return condition.steering.strength

    assert strength() == 1.0
    assert strength(strengths=[-2, 0, 0.5, 3]) == 0.5
    assert strength(strengths=[0, -2]) == strength(strength=-2) == -2.0


def test_the_plan_says_that_a_strength_is_searched(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(gpt2, tmp_path)
    given = ["plan", "--models", f"{{gpt2: {gpt2}}}", "--data.path", str(settings.data.path), "--compare-control"]
    given += ["--control-vector", "[1.0]", "--analysis.control.target_kl", "0.5"]
    main(given)
    words = capsys.readouterr().out
    assert (
        "searched first: the strength of control at which the 95th percentile of KL at the last layer is 0.5" in words
    )
    assert "for gpt2: at most 12 steps, each a pass with and without steering over 64 sentences" in words
    main([*given, "--analysis.control.found_strengths", "{gpt2: 2.5}"])
    words = capsys.readouterr().out
    assert "searched first" not in words
    assert "not searched, but given: the strength of control" in words


@pytest.mark.usefixtures("small_windows")
def test_a_sample_is_picked_by_the_seed_from_the_whole_corpus() -> None:
    sentences = [f"sentence {number}" for number in range(100)]
    corpus = corpus_of_sentences(sentences, None, 0)
    ids, texts = sample_sentences(corpus, 20, 3)
    assert ids == sorted(set(ids))
    assert len(ids) == 20
    assert texts == [sentences[number] for number in ids]
    assert len({number // windows.WINDOW_ROWS for number in ids}) > 3
    assert sample_sentences(corpus, 20, 3) == (ids, texts)
    assert sample_sentences(corpus, 20, 4) != (ids, texts)
    assert sample_sentences(corpus, 200, 3) == (list(range(100)), sentences)


def test_of_a_stream_a_sample_is_picked_from_its_first_window(gpt2: Path, tmp_path: Path) -> None:
    settings = settings_of(gpt2, tmp_path)
    settings.data.streaming, settings.analysis.num_sentences = True, None
    result = run(settings, quiet=True)
    assert percentile(result, "gpt2") == pytest.approx(0.3, rel=0.05)
    shutil.rmtree(result.run_dir)

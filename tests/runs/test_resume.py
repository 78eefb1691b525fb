"""Going on with a run: what is done again, what is refused, what arrays and streams give."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from tiny_models import HIDDEN, SENTENCES, save_model

from llm_entropy import merge_run
from llm_entropy.commands.cli import main
from llm_entropy.errors import ReportedError, RunIncompleteError
from llm_entropy.outputs.results import RunResult
from llm_entropy.runs import opening
from llm_entropy.runs.run import run
from llm_entropy.runs.storable import storable
from llm_entropy.settings import AnalysisSettings, ControlSettings, DataSettings, OutputSettings, Settings
from llm_entropy.store import files, manifest, windows
from llm_entropy.store.files import Lock
from llm_entropy.store.status import run_status

MERGE = "llm-entropy merge"

# Where a stream is left before its end, `datasets` does not close its files.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def make_windows_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(windows, "WINDOW_ROWS", 16)
    patch.setattr(windows, "MIN_BATCH_TOKENS", 32)
    patch.setattr(windows, "MIN_PIECE_TOKENS", 32)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    make_windows_small(monkeypatch)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model("gpt2", tmp_path_factory.mktemp("models") / "gpt2"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(f"{SENTENCES[i % 8]} {i}\n" for i in range(70)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def settings_of_whole(gpt2: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    control = ControlSettings(control_vector=[0.4, -0.9, 0.7])
    folder = tmp_path_factory.mktemp("whole")
    return Settings(
        analysis=AnalysisSettings(
            num_sentences=None, metrics=["entropy"], lens_tokens=True, compare_control=True, control=control
        ),
        models={"gpt2": gpt2},
        data=DataSettings(path=str(corpus), tokens_per_batch=64),
        output=OutputSettings(dir=str(folder), run_name="one", plots=False, part_seconds=0),
    )


@pytest.fixture(scope="module")
def whole(settings_of_whole: Settings) -> RunResult:
    """An unbroken run, made once and left alone."""
    with pytest.MonkeyPatch.context() as patch:
        make_windows_small(patch)
        return run(settings_of_whole, quiet=True)


@pytest.fixture
def settings(settings_of_whole: Settings, tmp_path: Path) -> Settings:
    """The settings of `whole`, with a folder of runs of the test's own."""
    return changed(settings_of_whole, "output.dir", str(tmp_path / "runs"))


@pytest.fixture
def run_of_its_own(whole: RunResult, settings: Settings) -> Path:
    """A copy of `whole` where the test's own run would be."""
    return Path(shutil.copytree(whole.run_dir, Path(settings.output.dir) / "one"))


def changed(settings: Any, key: str, value: Any) -> Any:
    """Return settings with another value under a dotted key."""
    name, _, rest = key.partition(".")
    return replace(settings, **{name: changed(getattr(settings, name), rest, value) if rest else value})


def named(settings: Settings, name: str, **data: Any) -> Settings:
    settings = changed(settings, "output.run_name", name)
    for key, value in data.items():
        settings = changed(settings, f"data.{key}", value)
    return settings


def tables_of(run_dir: Path) -> dict[str, bytes]:
    paths = [path for path in run_dir.rglob("*") if path.suffix in (".csv", ".parquet") and "shards" not in path.parts]
    assert paths
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in paths}


def everything_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".log")]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def lose(run_dir: Path, *numbers: int) -> list[Path]:
    """Remove parts with their markers, as if a process had never written them."""
    markers = sorted(run_dir.glob("shards/*/*/*/part-*.json"))
    lost = [markers[number] for number in numbers]
    for marker in lost:
        marker.unlink()
        marker.with_suffix(".parquet").unlink()
    return lost


# --- what is done again ------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_computed_and_the_bytes_are_the_same(settings: Settings, run_of_its_own: Path):
    before = tables_of(run_of_its_own)
    lost = lose(run_of_its_own, 1, 5, -1)
    kept = everything_in(run_of_its_own / "shards")
    again = run(settings, quiet=True, resume=True)
    assert again.run_dir == run_of_its_own
    assert tables_of(again.run_dir) == before
    after = everything_in(run_of_its_own / "shards")
    assert {name: after[name] for name in kept} == kept
    assert len(after) - len(kept) == 2 * len(lost)
    about = json.loads((run_of_its_own / "run.json").read_text())
    assert about["status"] == "complete"
    assert [process["num_parts"] for process in about["models"]["gpt2"]["processes"]][-1] == 3
    assert about["models"]["gpt2"]["num_records"] == 70


def test_lost_texts_are_written_again_as_they_were_and_tasks_write_the_same(settings: Settings):
    words = {"num_sentences": 24, "max_new_tokens": 5, "use_sampling": True, "top_p": 0.9}
    sampled = replace(settings.analysis, positions="generated", **words)
    settings = replace(settings, analysis=sampled)
    whole = run(settings, quiet=True)
    before = tables_of(whole.run_dir)
    lose(whole.run_dir, 1, -1)
    assert tables_of(run(settings, quiet=True, resume=True).run_dir) == before
    merged = merge_run(run_tasks(settings, "array", 2, (1, 0)).run_dir, quiet=True)
    assert tables_of(merged.run_dir) == before
    assert b"control" in before["control/predictions/gpt2_generations.csv"]
    with pytest.raises(ReportedError, match=r"analysis.top_p was 0.9, now null"):
        run(replace(settings, analysis=replace(sampled, top_p=None)), quiet=True, resume=True)


def test_a_complete_run_is_left_as_it_is(settings_of_whole: Settings, whole: RunResult):
    before = everything_in(whole.run_dir)
    again = run(settings_of_whole, quiet=True, resume=True)
    assert everything_in(whole.run_dir) == before
    assert again["gpt2"].overview == whole["gpt2"].overview
    assert list(again["gpt2"]["standard"]["entropy"].index) == list(whole["gpt2"]["standard"]["entropy"].index)


def test_other_outputs_are_made_of_a_complete_run(settings: Settings):
    run(changed(settings, "output.csv", False), quiet=True)
    result = run(settings, quiet=True, resume=True)
    assert (result.run_dir / "standard/data/gpt2_entropy.csv").is_file()


def test_resuming_what_was_never_begun_begins_it(settings: Settings):
    assert run(settings, quiet=True, resume=True)["gpt2"].overview


def test_an_existing_run_is_not_touched_without_being_asked(settings_of_whole: Settings, whole: RunResult):
    before = everything_in(whole.run_dir)
    with pytest.raises(ValueError, match=r"exists already and is never overwritten; .* --resume"):
        run(settings_of_whole, quiet=True)
    assert everything_in(whole.run_dir) == before


def test_resuming_needs_a_name(settings: Settings):
    with pytest.raises(ValueError, match=r"output\.run_name: --resume needs the name of the run"):
        run(changed(settings, "output.run_name", None), quiet=True, resume=True)


# --- creating a run, killed anywhere -----------------------------------------------------------------------------


class Killed(BaseException):
    """What a process is by SIGKILL: it does nothing more, not even tidy up."""


CALLS = ("mkdir", "fsync", "replace", "link", "unlink")


@contextmanager
def killed_at(number: int) -> Iterator[list[str]]:
    """Let a process die before its call of this number that changes what is on the disk; give the calls it came to."""
    calls: list[str] = []

    def dying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_die(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) > number:
                raise Killed(name)
            return call(*arguments, **options)

        return call_or_die

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, dying(name, getattr(os, name)))
        yield calls


def in_memory(settings: Settings, vector: float = 1.0) -> Settings:
    settings = changed(settings, "analysis.control.control_vector", torch.full((HIDDEN,), vector))
    return changed(settings, "analysis.num_sentences", 2)


def create(settings: Settings, **about: Any) -> Path:
    stored = partial(storable, settings, ["the cat", "sat"])
    run_dir, _ = manifest.create_run(settings.output, about, storable=stored, may_exist=True)
    return run_dir


def contents_of(run_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_dir)): path.read_bytes().replace(str(run_dir).encode(), b"")
        for path in run_dir.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_wherever_creating_a_run_is_killed_resuming_creates_it_whole_with_its_own_configuration(
    settings: Settings, tmp_path: Path
):
    settings = in_memory(settings)
    whole = contents_of(create(changed(settings, "output.dir", str(tmp_path / "whole")), status="running"))
    assert sorted(whole) == ["config.yaml", "control_vector.safetensors", "run.json", "sentences.jsonl"]
    whole["config.yaml"] = whole["config.yaml"].replace(str(tmp_path / "whole").encode(), b"")
    num_calls = 0
    for number in range(100):
        output = str(tmp_path / f"killed-{number}")
        other = changed(changed(in_memory(settings, 2.0), "seed", 7), "output.dir", output)
        with killed_at(number) as calls, suppress(Killed):
            create(other, status="another")
        num_calls = len(calls)
        if num_calls <= number:
            break
        mine = changed(settings, "output.dir", output)
        manifest.check_output(mine.output, may_exist=True)
        run_dir = Path(output) / "one"
        is_run = (run_dir / "run.json").exists()
        found = contents_of(create(mine, status="running"))
        if is_run:  # what came last is there: the run was begun by the other
            assert json.loads(found["run.json"])["status"] == "another"
            assert b"seed: 7" in found["config.yaml"]
        else:
            found["config.yaml"] = found["config.yaml"].replace(output.encode(), b"")
            assert found == whole, f"killed before call {number}, {calls[-1]}"
    assert 15 < num_calls < 100


def test_a_folder_that_is_empty_or_was_half_created_is_taken_over_when_resuming(settings: Settings):
    whole = run(in_memory(named(settings, "whole")), quiet=True)
    folder = Path(settings.output.dir) / "one"
    folder.mkdir()
    assert tables_of(run(in_memory(settings), quiet=True, resume=True).run_dir) == tables_of(whole.run_dir)
    half = Path(settings.output.dir) / "half"
    (half / ".locks").mkdir(parents=True)
    for name in (".locks/create.lock", "config.yaml", ".run.json.elsewhere-1.tmp"):
        (half / name).write_text("seed: 9")
    with pytest.raises(ReportedError, match=r"half exists already and is never overwritten; .* or add --resume"):
        run(in_memory(named(settings, "half")), quiet=True)
    result = run(in_memory(named(settings, "half")), quiet=True, resume=True)
    assert tables_of(result.run_dir) == tables_of(whole.run_dir)
    assert "seed: 0" in (half / "config.yaml").read_text()
    assert not list(half.rglob("*.tmp"))


def test_what_another_process_did_while_this_one_was_loading_its_model_is_not_done_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    load_model, quicker = opening.load_model, []

    def load_slowly(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(opening, "load_model", load_model)
        quicker.append(run(settings, quiet=True, resume=True))
        return load_model(*arguments, **options)

    monkeypatch.setattr(opening, "load_model", load_slowly)
    result = run(settings, quiet=True, resume=True)
    assert len(result["gpt2"]["standard"]["entropy"]) == 70
    assert quicker[0].run_dir == result.run_dir


def test_a_run_that_another_process_creates_first_is_not_removed_by_one_that_is_refused(settings: Settings):
    run_dir = create(settings, status="running")
    with pytest.raises(ReportedError, match="exists already and is never overwritten"):
        manifest.create_run(settings.output, {}, storable=lambda _: settings, may_exist=False)
    assert (run_dir / "run.json").is_file()


def test_a_process_that_is_refused_leaves_the_run_of_the_one_that_works_on_it_as_it_is(settings: Settings):
    whole = run(settings, quiet=True)
    lose(whole.run_dir, 0)
    manifest.update_manifest(whole.run_dir, "running")
    lock = Lock(whole.run_dir / ".locks/task-00000-of-00001.rank-0001.lock")
    assert lock.acquire({})
    before = everything_in(whole.run_dir)
    with pytest.raises(ReportedError, match=r"process \d+ on .* is at work on it"):
        run(settings, quiet=True, resume=True)
    assert everything_in(whole.run_dir) == before
    lock.release()


# --- what is refused ---------------------------------------------------------------------------------------------


CHANGES: list[tuple[str, Any, str]] = [
    ("seed", 3, "seed was 0, now 3"),
    ("analysis.temperature", 0.5, "analysis.temperature was 1.0, now 0.5"),
    ("analysis.metrics", ["entropy", "margin"], r'analysis.metrics was \["entropy"\], now \["entropy", "margin"\]'),
    ("analysis.lens", "raw", 'analysis.lens was "logit", now "raw"'),
    ("analysis.compare_control", False, "analysis.compare_control was true, now false"),
    ("analysis.control.strength", 2.0, "conditions.control.strength was 1.0, now 2.0"),
    (
        "analysis.control.strengths",
        [1, 2],
        r'conditions was \["standard", "control"\], now .*"control_\+1", "control_\+2"\]',
    ),
    ("analysis.control.placebo", {"random": 1}, r'now \["standard", "control", "control_random_1"\]'),
    ("analysis.conditions", {"tense": {"control_vector": [1.0]}}, r'now \["standard", "control", "tense"\]'),
    ("analysis.control.control_vector", torch.ones(HIDDEN), r"models.gpt2.steering.control has changed"),
    ("analysis.num_sentences", 9, r"corpus has changed; analysis.num_sentences was null, now 9"),
    ("data.tokens_per_batch", 65, "data.tokens_per_batch was 64, now 65"),
    ("data.max_length", 9, "models.gpt2.max_length was 60, now 9"),
    ("trainer.precision", "bf16-true", 'trainer.precision was "32-true", now "bf16-true"'),
]


def test_a_changed_configuration_is_refused_and_the_difference_named(settings_of_whole: Settings, whole: RunResult):
    before = everything_in(whole.run_dir)
    for key, value, words in CHANGES:
        with pytest.raises(ReportedError, match=f"was started with another configuration: .*{words}"):
            run(changed(settings_of_whole, key, value), quiet=True, resume=True)
    assert everything_in(whole.run_dir) == before


def test_other_weights_and_other_sentences_are_refused(settings: Settings, corpus: Path, tmp_path: Path):
    corpus = Path(shutil.copy(corpus, tmp_path))
    settings = changed(settings, "data.path", str(corpus))
    other = save_model("gpt2", tmp_path / "gpt2", seed=1)
    run(changed(settings, "models", {"gpt2": str(other)}), quiet=True)
    save_model("gpt2", other, seed=2)
    with pytest.raises(ValueError, match=r"configuration: models.gpt2.content has changed;"):
        run(changed(settings, "models", {"gpt2": str(other)}), quiet=True, resume=True)
    save_model("gpt2", other, seed=1)
    corpus.write_text(corpus.read_text().replace("3", "4"))
    with pytest.raises(ValueError, match=r"configuration: corpus has changed;"):
        run(changed(settings, "models", {"gpt2": str(other)}), quiet=True, resume=True)


def test_a_run_whose_batches_would_be_made_otherwise_is_refused_and_the_version_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    run_dir = run(settings, quiet=True).run_dir
    before = everything_in(run_dir)
    version = metadata.version("llm_entropy")
    program = rf"resume it with the version that started it, llm_entropy {version}( \(commit \w+\+?\w*\))?, or start"
    for name, value in (("BATCHES_PER_WINDOW", 16), ("VERSION", 2), ("MIN_PIECE_TOKENS", 33)):
        with monkeypatch.context() as patch:
            patch.setattr(windows, name, value)
            words = rf"makes other batches: batches.{name.lower()} was \d+, now {value}"
            with pytest.raises(ReportedError, match=f"{words}; {program}"):
                run(settings, quiet=True, resume=True)
    assert everything_in(run_dir) == before
    about = json.loads((run_dir / "run.json").read_text())
    identity = {key: value for key, value in about["identity"].items() if not key.startswith("batches.")}
    files.write_text(run_dir / "run.json", json.dumps({**about, "identity": {**identity, "rows of a window": 8192}}))
    with pytest.raises(ReportedError, match=f"does not say how its batches are made.*; {program}"):
        run(settings, quiet=True, resume=True)


def with_versions(run_dir: Path, status: manifest.Status, **versions: str) -> None:
    before = manifest.read_manifest(run_dir)["versions"]
    manifest.update_manifest(run_dir, status, versions={**before, **versions})


def test_other_minor_versions_are_refused_and_other_patches_are_warned_of(
    settings: Settings, capsys: pytest.CaptureFixture[str]
):
    run_dir = run(settings, quiet=True).run_dir
    now = manifest.read_manifest(run_dir)["versions"]
    lose(run_dir, 2)
    for status in ("failed", "complete"):  # or it seems to be
        with_versions(run_dir, status, transformers="4.57.3", torch="1.9.1+cu118", numba="0.1.2", pandas="0.1")
        words = (
            rf"torch was 1\.9\.1\+cu118, now {re.escape(now['torch'])}, transformers was 4\.57\.3, now .*, numba was"
        )
        advice = (
            r"resume it with: pip install torch==1\.9\.1 transformers==4\.57\.3 numba==0\.1\.2, or start another run"
        )
        with pytest.raises(ReportedError, match=rf"was started with other versions: {words} .*; .*; {advice}"):
            run(settings, quiet=True, resume=True)
        capsys.readouterr()
    patch = ".".join([*now["tokenizers"].split(".")[:2], "999"])
    with_versions(run_dir, "failed", **{**now, "tokenizers": patch, "numba": "0.1.2"})
    run(settings, quiet=True, resume=True)
    said = capsys.readouterr().err
    assert said.count("was started with other versions") == 1
    assert f"tokenizers was {patch}, now {now['tokenizers']}, numba was 0.1.2, now" in said
    assert "records may differ in their last digits" in said


def test_of_a_complete_run_any_version_makes_outputs(settings: Settings):
    run_dir = run(settings, quiet=True).run_dir
    with_versions(run_dir, "complete", torch="1.9.1")
    assert run(changed(settings, "output.parquet", False), quiet=True, resume=True).run_dir == run_dir


def test_a_checkpoint_that_lightning_would_load_is_refused(settings: Settings, run_of_its_own: Path):
    (run_of_its_own / "hpc_ckpt_1.ckpt").write_bytes(b"weights of another day")
    with pytest.raises(
        ValueError, match=r"hpc_ckpt_1\.ckpt: Lightning would load it over the models' weights; remove it"
    ):
        run(settings, quiet=True, resume=True)


def test_such_a_checkpoint_is_refused_too_where_a_new_run_would_look_for_it(settings: Settings):
    folder = Path(settings.output.dir) / "none"
    folder.mkdir(parents=True)
    (folder / "hpc_ckpt_2.ckpt").write_bytes(b"weights of another day")
    with pytest.raises(ValueError, match=r"none/hpc_ckpt_2\.ckpt: Lightning would load it over the models' weights"):
        run(settings, quiet=True)
    assert not (Path(settings.output.dir) / "one").exists()


def test_a_folder_that_is_no_run_is_not_taken_for_one(settings: Settings):
    folder = Path(settings.output.dir) / "one"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("keep")
    with pytest.raises(
        ReportedError, match=r"one exists and is no run \(it holds notes.txt, but no run.json\); choose"
    ):
        run(settings, quiet=True, resume=True)
    (folder / "notes.txt").rename(folder / "config.yaml")
    with pytest.raises(ReportedError, match=r"no run \(it holds config.yaml, but"):
        run(settings, quiet=True, resume=True)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"], "a configuration of the user's is not replaced"
    with pytest.raises(ReportedError, match=r"config\.yaml exists and is no run \(it is a file\)"):
        run(named(changed(settings, "output.dir", str(folder)), "config.yaml"), quiet=True, resume=True)


# --- a full disk -------------------------------------------------------------------------------------------------


def fill_disk(patch: pytest.MonkeyPatch, name: str) -> None:
    """Leave no room as soon as a file of this name is written."""
    sync = files._sync

    def sync_or_not(path: Path) -> None:
        if name in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    patch.setattr(files, "_sync", sync_or_not)


@pytest.mark.parametrize("name", ["part-000003.parquet", "part-000003.json", "gpt2_entropy.csv", "gpt2.parquet"])
def test_a_full_disk_is_told_with_the_way_on_and_costs_what_was_being_written(
    settings: Settings, whole: RunResult, monkeypatch: pytest.MonkeyPatch, name: str
):
    with monkeypatch.context() as patch:
        fill_disk(patch, name)
        words = (
            r"No space left on device; what was done is kept; free some space, then resume with: "
            "llm-entropy predict .* --resume"
        )
        with pytest.raises(RunIncompleteError, match=words):
            run(settings, quiet=True)
    run_dir = Path(settings.output.dir) / "one"
    left = [path.name for path in run_dir.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    assert left == [".locks"], "nothing is half-written"
    assert json.loads((run_dir / "run.json").read_text())["status"] == "failed"
    kept = everything_in(run_dir / "shards")
    assert sum(key.endswith(".json") for key in kept) >= 3
    again = run(settings, quiet=True, resume=True)
    assert tables_of(again.run_dir) == tables_of(whole.run_dir)
    after = everything_in(run_dir / "shards")
    assert all(after[key] == kept[key] for key in kept if Path(key).with_suffix(".json").as_posix() in kept)


def test_a_full_disk_is_told_by_the_merge_and_the_first_word_too(
    settings: Settings, run_of_its_own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = tables_of(run_of_its_own)
    with monkeypatch.context() as patch:
        fill_disk(patch, "gpt2.parquet")
        with pytest.raises(SystemExit) as ended:
            main(["merge", str(run_of_its_own), "--quiet"])
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        f"No space left on device; what was done is kept; free some space, then resume with: {MERGE} {run_of_its_own}"
    )
    assert tables_of(run_of_its_own) == before
    assert not list(run_of_its_own.glob(".merge-*"))
    with monkeypatch.context() as patch:
        fill_disk(patch, "config.yaml")
        with pytest.raises(ValueError, match=r"output\.dir: cannot write to .*two: No space left on device"):
            run(named(settings, "two"), quiet=True)
    assert not (Path(settings.output.dir) / "two").exists()


# --- arrays ------------------------------------------------------------------------------------------------------


def run_tasks(settings: Settings, name: str, count: int, order: Iterator[int] | range, **data: Any) -> RunResult:
    for index in order:
        result = run(named(settings, name, num_shards=count, shard_index=index, **data), quiet=True)
    return result


@pytest.mark.parametrize("count", [2, 5, 40])
def test_tasks_in_any_order_give_the_bytes_of_one_process(settings: Settings, whole: RunResult, count: int):
    result = run_tasks(settings, "array", count, reversed(range(count)))
    assert not result, "a task makes no outputs"
    assert not (result.run_dir / "standard").exists()
    merged = merge_run(result.run_dir, quiet=True)
    assert tables_of(merged.run_dir) == tables_of(whole.run_dir)
    about = json.loads((merged.run_dir / "run.json").read_text())
    tasks = [process["task"] for process in about["models"]["gpt2"]["processes"]]
    assert tasks == sorted(tasks)
    assert about["models"]["gpt2"]["num_sentences"] == 70
    work = {"num_records", "num_examples", "num_tokens", "seconds", "tokens_per_second", "peak_memory_bytes"}
    for process in about["models"]["gpt2"]["processes"]:
        assert work | {"task", "rank", "host", "versions", "git_commit"} <= process.keys()
    for part in merged.run_dir.glob("shards/*/*/*/part-*.parquet"):
        assert pq.read_schema(part).metadata[b"config_hash"].decode() == about["config_hash"]


def test_an_array_that_lacks_tasks_says_which_and_other_processes_can_do_them(settings: Settings, whole: RunResult):
    run_dir = run_tasks(settings, "array", 5, range(0, 5, 2)).run_dir
    status = run_status(run_dir)
    assert (status.is_complete, status.missing_tasks, status.workers) == (False, [1, 3], [])
    with pytest.raises(ValueError, match=r"is not complete: gpt2 lacks .* --array=1,3 each of them runs: llm-entropy"):
        merge_run(run_dir, quiet=True)
    run(named(settings, "array", num_shards=3, shard_index=1), quiet=True, resume=True)
    assert run_status(run_dir).missing_tasks
    result = run(named(settings, "array"), quiet=True, resume=True)
    assert run_status(run_dir).is_complete
    assert tables_of(result.run_dir) == tables_of(whole.run_dir)


def test_tasks_can_do_what_a_single_process_left(settings: Settings, whole: RunResult, run_of_its_own: Path):
    run_dir = run_of_its_own
    kept = everything_in(run_dir / "shards")
    for path in lose(run_dir, *range(1, 20)):
        for suffix in (".json", ".parquet"):
            del kept[str(path.with_suffix(suffix).relative_to(run_dir / "shards"))]
    for index in (1, 0, 2):
        run(named(settings, "one", num_shards=3, shard_index=index), quiet=True, resume=True)
    assert {name: everything_in(run_dir / "shards")[name] for name in kept} == kept
    assert {path.name for path in run_dir.glob("shards/gpt2/task-*")} >= {"task-00000-of-00003", "task-00000-of-00001"}
    assert tables_of(merge_run(run_dir, quiet=True).run_dir) == tables_of(whole.run_dir)


def test_a_task_that_was_begun_is_gone_on_with_only_when_asked(settings: Settings):
    run_dir = run_tasks(settings, "array", 2, range(1)).run_dir
    before = everything_in(run_dir)
    with pytest.raises(ValueError, match="task 0 was started already; add --resume"):
        run_tasks(settings, "array", 2, range(1))
    assert everything_in(run_dir) == before


def test_the_tasks_number_comes_from_the_array(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    result = run(named(settings, "array", num_shards=2), quiet=True)
    assert [path.name for path in result.run_dir.glob("shards/gpt2/task-*")] == ["task-00001-of-00002"]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with pytest.raises(ValueError, match=r"SLURM_ARRAY_TASK_ID: got 2, but data.num_shards is 2; .*--array=0-1"):
        run(named(settings, "array", num_shards=2), quiet=True, resume=True)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    with pytest.raises(ValueError, match=r"data.shard_index: got null, and SLURM_ARRAY_TASK_ID is not set"):
        run(named(settings, "array", num_shards=2), quiet=True, resume=True)
    with pytest.raises(ValueError, match=r"output.run_name: data.num_shards needs the name of the run"):
        run(changed(named(settings, "x", num_shards=2, shard_index=0), "output.run_name", None), quiet=True)


# --- streams -----------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_bytes_of_the_mapped_corpus_and_is_gone_on_with(settings: Settings, whole: RunResult):
    streamed = run(named(settings, "stream", streaming=True), quiet=True)
    assert tables_of(streamed.run_dir) == tables_of(whole.run_dir)
    lose(streamed.run_dir, 0, 4, -1)
    assert not run_status(streamed.run_dir).is_complete
    again = run(named(settings, "stream", streaming=True), quiet=True, resume=True)
    assert tables_of(again.run_dir) == tables_of(whole.run_dir)
    about = json.loads((again.run_dir / "run.json").read_text())
    assert (about["corpus"]["num_rows"], about["corpus"]["num_windows"]) == (70, None)
    assert tables_of(merge_run(again.run_dir, quiet=True).run_dir) == tables_of(whole.run_dir)


def test_the_files_of_a_stream_whatever_their_sizes_are_shared_by_tasks(
    settings: Settings, whole: RunResult, tmp_path: Path
):
    texts = Path(str(settings.data.path)).read_text().splitlines()
    edges = [0, 1, 60, 64, 70]
    for number, (first, end) in enumerate(itertools.pairwise(edges)):
        Dataset.from_dict({"text": texts[first:end]}).to_parquet(tmp_path / f"part-{number}.parquet")
    data = {"path": str(tmp_path / "part-*.parquet"), "streaming": True}
    single = run(named(settings, "single", **data), quiet=True)
    assert json.loads((single.run_dir / "run.json").read_text())["corpus"]["num_files"] == 4
    # ids and batches are not those of one file; order and numbers are
    for condition in ("standard", "control", "comparative"):
        found, expected = (result["gpt2"][condition]["entropy"] for result in (single, whole))
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)
    for count in (2, 3, 7):
        run_dir = run_tasks(settings, f"tasks-{count}", count, range(count), **data).run_dir
        assert tables_of(merge_run(run_dir, quiet=True).run_dir) == tables_of(single.run_dir)

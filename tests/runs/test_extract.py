"""Extractions: what plain hooks in float64 give, whoever works on them, and however often they are stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from launcher import Launcher
from safetensors import safe_open
from tiny_models import FAMILIES, HIDDEN, make_tokenizer, save_model
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from llm_entropy import ExtractionResult, extract, merge_run, merge_vectors, run_analysis
from llm_entropy.commands.cli import main
from llm_entropy.errors import ReportedError
from llm_entropy.outputs.extraction.contrast import left_out_pairs
from llm_entropy.runs.extract import run_extraction
from llm_entropy.runs.stopping import Stopped
from llm_entropy.settings import ExtractionSettings
from llm_entropy.settings.configuration import read_config
from llm_entropy.steering.convert import convert_vector
from llm_entropy.steering.vectors import read_vector, resolve_vector
from llm_entropy.store import windows
from llm_entropy.store.status import run_status

METHODS = ("mean_difference", "pca_difference", "pca_center")
POSITIONS = ("last", "mean", "completion")
BLOCKS = {"gpt2": "transformer.h", "bert": "bert.encoder.layer"}
"""Where the blocks are, by family."""
STARTS = ("the cat", "rain fell", "she counted the lamps", "why does iron rust", "the old bridge of stone", "nobody")
ENDS = (
    ("left the harbour", "left the fog"),
    ("sailed on", "went out"),
    ("built of stone", "built in the rain"),
    ("waved to the crew", "waved"),
)
ROWS = [{"prompt": start, "positive": one, "negative": other} for start in STARTS for one, other in ENDS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: str(save_model(family, root / family)) for family in BLOCKS}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    make_batches_small(monkeypatch)


def make_batches_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(windows, "WINDOW_ROWS", 16)
    patch.setattr(windows, "MIN_BATCH_TOKENS", 32)
    patch.setattr(windows, "MIN_PIECE_TOKENS", 32)


def extracted(models: Any, folder: Path, **options: Any) -> ExtractionResult:
    options = {"pairs": ROWS, "splits": 3, "shuffled": 2, **options}
    output = {"dir": str(folder), "plots": False, "part_seconds": 0, **options.pop("output", {})}
    return extract(models, output=output, quiet=True, trainer={"accelerator": "cpu", "devices": 1}, **options)


@pytest.fixture(scope="module")
def usual(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> ExtractionResult:
    """An extraction with the defaults, made once and left alone."""
    with pytest.MonkeyPatch.context() as patch:
        make_batches_small(patch)
        return extracted(folders, tmp_path_factory.mktemp("usual"), output={"run_name": "one", "plots": True})


# --- plain hooks, in float64 -------------------------------------------------------------------------------------


def states_of(model: Any, tokenizer: Any, blocks: str, position: str, text: str, prompt: str) -> np.ndarray:
    """Return the state of one text at the output of each block, [block, hidden], in float64."""
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True)
    own = (encoded["special_tokens_mask"][0] == 0).nonzero().flatten().tolist()
    if position == "last":
        own = own[-1:]
    elif position == "completion":
        own = [token for token in own if encoded["offset_mapping"][0, token, 1] > len(prompt)]
    found = []
    with ExitStack() as hooks, torch.inference_mode():
        for block in model.get_submodule(blocks):

            def keep(module: Any, args: Any, output: Any) -> None:
                stream = output[0] if isinstance(output, tuple) else output
                found.append(stream[0, own].mean(dim=0))

            hooks.callback(block.register_forward_hook(keep).remove)
        model(input_ids=encoded["input_ids"])
    return torch.stack(found).numpy()


@pytest.fixture(scope="module")
def plain_states(folders: dict[str, str]) -> dict[tuple[str, str], np.ndarray]:
    """[pair, positive and negative, block, hidden] by family and position."""
    found = {}
    for family, blocks in BLOCKS.items():
        auto = AutoModelForCausalLM if family == "gpt2" else AutoModelForMaskedLM
        model = auto.from_pretrained(folders[family], dtype=torch.float64, attn_implementation="eager").eval()
        read = partial(states_of, model, AutoTokenizer.from_pretrained(folders[family]), blocks)
        for position in POSITIONS:
            sides = [
                [read(position, f"{row['prompt']} {row[side]}", row["prompt"]) for row in ROWS]
                for side in ("positive", "negative")
            ]
            found[family, position] = np.stack(sides, axis=1)
    return found


def plain_vector(method: str, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return a vector, [hidden], by the textbook."""
    mean = (positive - negative).mean(axis=0)
    if method == "mean_difference":
        return mean
    middle = (positive + negative) / 2
    rows = np.concatenate([positive - middle, negative - middle])
    if method == "pca_difference":
        rows = (positive - negative) - mean
    direction = np.linalg.svd(rows, full_matrices=False)[2][0]
    return (mean @ direction) * direction


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("method", METHODS)
def test_vectors_are_those_of_plain_hooks(
    method: str, position: str, folders: dict[str, str], plain_states: Any, tmp_path: Path
) -> None:
    result = extracted(folders, tmp_path, method=method, position=position, splits=0, shuffled=0)
    is_test = left_out_pairs(np.arange(len(ROWS)), 0.2, 0)
    assert is_test.sum() == 5
    for family in BLOCKS:
        states = plain_states[family, position][~is_test]
        wanted = np.stack([plain_vector(method, *states[:, :, block].swapaxes(0, 1)) for block in range(3)])
        found = result[family].vector.double().numpy()
        assert np.abs(found - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max()), family


def test_quality_is_that_of_the_pairs_that_are_left_out(usual: ExtractionResult, plain_states: Any) -> None:
    is_test = left_out_pairs(np.arange(len(ROWS)), 0.2, 0)
    for family in BLOCKS:
        table = usual[family].quality
        assert list(table["block"]) == [0, 1, 2]
        for block in range(3):
            states = plain_states[family, "last"][:, :, block]
            vector = (states[~is_test, 0] - states[~is_test, 1]).mean(axis=0)
            above, below = states[is_test, 0] @ vector, states[is_test, 1] @ vector
            pairs = above[:, None] - below
            row = table.iloc[block]
            assert row["auroc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
            spread = np.sqrt((np.var(above, ddof=1) + np.var(below, ddof=1)) / 2)
            assert row["d_prime"] == pytest.approx((above.mean() - below.mean()) / spread, rel=1e-4)
            lengths = np.linalg.norm(states[is_test, 0] - states[is_test, 1], axis=1)
            cosines = (above - below) / (lengths * np.linalg.norm(vector))
            assert row["mean_cosine"] == pytest.approx(cosines.mean(), rel=1e-4)
            share = ((above - below) ** 2).sum() / (lengths**2).sum() / (vector @ vector)
            assert row["explained_variance"] == pytest.approx(share, rel=1e-4)
            assert row["norm"] == pytest.approx(np.linalg.norm(vector), rel=1e-4)
            assert row["residual_norm"] == pytest.approx(np.linalg.norm(states, axis=-1).mean(), rel=1e-4)
            assert row["relative_norm"] == pytest.approx(row["norm"] / row["residual_norm"])
        best = table.loc[usual[family].best_block]
        assert best["auroc"] == table["auroc"].max()


# --- the files ---------------------------------------------------------------------------------------------------


def test_a_run_leaves_vectors_quality_and_a_plot(usual: ExtractionResult) -> None:
    run_dir = usual.run_dir
    names = {path.name for path in (run_dir / "vectors").iterdir()}
    assert names == {f"{model}{end}" for model in usual for end in (".safetensors", "_quality.csv", "_quality.png")}
    about = json.loads((run_dir / "run.json").read_text())
    assert (about["mode"], about["status"]) == ("extract", "complete")
    assert about["models"]["gpt2"]["num_pairs"] == len(ROWS)
    with safe_open(usual["gpt2"].path, "pt") as file:
        said = json.loads(file.metadata()["extraction"])
        assert file.get_tensor("shuffled").shape == (2, 3, HIDDEN)
    assert said["method"] == "mean_difference"
    assert said["data_fingerprint"] == about["corpus"]["fingerprint"]
    assert said["quality"]["auroc"] == usual["gpt2"].quality["auroc"].tolist()
    assert f"gpt2: best block {said['best']} (of 0 to 2): AUROC" in (run_dir / "run.log").read_text()


def test_the_file_is_a_control_vector_at_once(usual: ExtractionResult, tmp_path: Path) -> None:
    path = usual["gpt2"].path
    vector = usual["gpt2"].vector
    assert torch.equal(read_vector(path, num_blocks=3), vector)
    converted = convert_vector(path, tmp_path / "vector.npy")
    assert np.array_equal(np.load(converted), vector.numpy())


def test_a_vector_of_another_type_of_model_is_warned_of(
    usual: ExtractionResult, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"key": "control_vector", "model": "mine", "num_blocks": 3, "hidden_size": HIDDEN}
    path = usual["gpt2"].path
    resolve_vector(path, **sizes, model_type="gpt2")
    resolve_vector(path, **sizes)
    assert caplog.messages == []
    resolve_vector(path, **sizes, model_type="bert")
    (said,) = caplog.messages
    assert said.startswith(f"control_vector: {path} was extracted from ")
    assert said.endswith("a model of type gpt2, but mine is of type bert, where its directions mean something else")


def test_shuffled_placebos_are_the_files_with_the_vectors_norms(
    usual: ExtractionResult, folders: dict[str, str], tmp_path: Path
) -> None:
    result = run_analysis(
        folders,
        sentences=["the cat", "rain fell on the old stone bridge"],
        compare_control=True,
        control_vector=str(usual.run_dir / "vectors" / "{model}.safetensors"),
        metrics="entropy",
        placebo={"shuffled": 2},
        output={"dir": str(tmp_path), "plots": False},
        trainer={"accelerator": "cpu", "devices": 1},
        quiet=True,
    )
    placebos = result["gpt2"].placebos
    assert set(placebos["kind"]) == {"shuffled"}
    about = json.loads((result.run_dir / "run.json").read_text())["models"]["gpt2"]["steering"]
    norms = usual["gpt2"].vector.norm(dim=1).tolist()
    for number in (1, 2):
        assert about[f"control_shuffled_{number}"]["added_norms"] == pytest.approx([0.0, *norms], rel=1e-6)


@pytest.mark.parametrize(
    ("vector", "count", "words"),
    [
        ("{path}", 3, "got 3, but .*gpt2.safetensors holds 2 vectors from permuted labels; ask for 2, or extract it"),
        ([0.5], 1, "got 1, but analysis.control.control_vector is no file; give a vector that llm-entropy extract"),
        ("{plain}", 1, "got 1, but .*plain.npy holds no vectors from permuted labels; give a vector that"),
    ],
)
def test_shuffled_placebos_that_are_not_there_are_refused(
    vector: Any, count: int, words: str, usual: ExtractionResult, folders: dict[str, str], tmp_path: Path
) -> None:
    np.save(tmp_path / "plain.npy", usual["gpt2"].vector.numpy())
    if isinstance(vector, str):
        vector = vector.format(path=usual["gpt2"].path, plain=tmp_path / "plain.npy")
    with pytest.raises(ReportedError, match=f"analysis.control.placebo.shuffled: {words}"):
        run_analysis(
            {"gpt2": folders["gpt2"]},
            sentences=["the cat"],
            compare_control=True,
            control_vector=vector,
            placebo={"shuffled": count},
            output=tmp_path / "runs",
            quiet=True,
        )
    assert not (tmp_path / "runs").exists()


# --- processes, kills, arrays ------------------------------------------------------------------------------------


def bytes_of(result: ExtractionResult | Path) -> dict[str, bytes]:
    run_dir = result if isinstance(result, Path) else result.run_dir
    return {path.name: path.read_bytes() for path in (run_dir / "vectors").iterdir() if path.suffix != ".png"}


@pytest.fixture
def settings(usual: ExtractionResult, tmp_path: Path) -> ExtractionSettings:
    """The settings of `usual`, with a folder of runs of the test's own."""
    made = read_config(usual.run_dir / "config.yaml")
    assert isinstance(made, ExtractionSettings)
    return replace(made, output=replace(made.output, dir=str(tmp_path / "runs"), plots=False))


def test_what_was_stopped_is_resumed_to_the_same_bytes(
    usual: ExtractionResult, settings: ExtractionSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_entropy.measuring.states import StatesModule

    predict_step, calls = StatesModule.predict_step, []

    def stopped_later(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise Stopped(15)
        return predict_step(self, *arguments)

    monkeypatch.setattr(StatesModule, "predict_step", stopped_later)
    with pytest.raises(SystemExit):
        run_extraction(settings, quiet=True)
    run_dir = Path(settings.output.dir) / "one"
    status = run_status(run_dir)
    assert not status.is_complete
    assert status.status == "stopped"
    assert "llm-entropy extract --config" in (run_dir / "run.log").read_text()
    num_before = len(calls)
    result = run_extraction(settings, quiet=True, resume=True)
    assert bytes_of(result) == bytes_of(usual)
    everything = sum(marker.is_file() for marker in (usual.run_dir / "shards").rglob("part-*.json"))
    assert len(calls) - num_before == everything - 3, "what was done is not done again"


def test_tasks_of_an_array_are_merged_to_the_same_bytes(
    usual: ExtractionResult, settings: ExtractionSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(2):
        own = replace(settings, data=replace(settings.data, num_shards=2, shard_index=index))
        result = run_extraction(own, quiet=True)
        assert not result
    main(["merge", str(result.run_dir), "--quiet"])
    assert capsys.readouterr().out.strip() == str(result.run_dir)
    assert bytes_of(result.run_dir) == bytes_of(usual)
    with pytest.raises(ReportedError, match="is a run of llm-entropy extract; merge_vectors makes its vectors"):
        merge_run(result.run_dir, quiet=True)
    assert dict(merge_vectors(result.run_dir, quiet=True)).keys() == {"gpt2", "bert"}


def test_a_run_with_another_method_is_not_gone_on_with(usual: ExtractionResult, settings: ExtractionSettings) -> None:
    shutil.copytree(usual.run_dir, Path(settings.output.dir) / "one")
    other = replace(settings, extract=replace(settings.extract, method="pca_center"))
    with pytest.raises(ReportedError, match=r'extract\.method was "mean_difference", now "pca_center"'):
        run_extraction(other, quiet=True, resume=True)
    again = run_extraction(settings, quiet=True, resume=True)
    assert dict(again).keys() == dict(usual).keys()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(usual: ExtractionResult, tmp_path: Path, launcher: Launcher) -> None:
    config = usual.run_dir / "config.yaml"
    words = ["extract", f"--config={config}", "--trainer.devices=2", f"--output.dir={tmp_path}", "--quiet"]
    small = "from llm_entropy.store import windows\n"
    small += "windows.WINDOW_ROWS, windows.MIN_BATCH_TOKENS, windows.MIN_PIECE_TOKENS = 16, 32, 32\n"
    program = small + "from llm_entropy.commands.cli import main; main(sys.argv[1:])"
    ended = launcher.at(tmp_path)(words, program=program, num_copies=1)
    assert ended.status == 0, ended.said
    assert ended.said.strip() == str(tmp_path / "one")
    assert bytes_of(tmp_path / "one") == bytes_of(usual)
    ranks = {path.parent.name for path in (tmp_path / "one" / "shards").rglob("part-*.json")}
    assert ranks == {"rank-0000", "rank-0001"}


# --- what the pairs may be ---------------------------------------------------------------------------------------


def sources(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the same pairs in other forms."""
    frame = pd.DataFrame(ROWS)
    frame.to_csv(folder / "pairs.csv", index=False)
    frame.to_json(folder / "pairs.jsonl", orient="records", lines=True)
    frame.to_parquet(folder / "pairs.parquet")
    yield "csv", {"data": folder / "pairs.csv"}
    yield "stream", {"data": {"path": str(folder / "pairs.jsonl"), "streaming": True}}
    yield "parquet", {"data": str(folder / "pairs.parquet")}
    yield "frame", {"pairs": frame}
    yield (
        "tuples",
        {"pairs": [tuple(f"{row['prompt']} {row[side]}" for side in ("positive", "negative")) for row in ROWS]},
    )
    texts = [
        {"text": f"{row['prompt']} {row[side]}", "label": label}
        for row in ROWS
        for side, label in (("positive", 1), ("negative", 0))
    ]
    yield "labels", {"pairs": texts}


def test_every_form_of_the_pairs_gives_the_same_vector(
    usual: ExtractionResult, folders: dict[str, str], tmp_path: Path
) -> None:
    for name, given in sources(tmp_path):
        given = {"pairs": None, **given}
        result = extracted({"gpt2": folders["gpt2"]}, tmp_path, splits=0, shuffled=0, **given)
        assert torch.equal(result["gpt2"].vector, usual["gpt2"].vector), name


def test_the_other_label_turns_the_vector(usual: ExtractionResult, folders: dict[str, str], tmp_path: Path) -> None:
    given = dict(sources(tmp_path))["labels"]
    result = extracted({"gpt2": folders["gpt2"]}, tmp_path, splits=0, shuffled=0, positive_label="0", **given)
    torch.testing.assert_close(result["gpt2"].vector, -usual["gpt2"].vector, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": None}, r"data.path: got null; expected positive and negative.*builtin:pairs/tense"),
        ({"data": "builtin:pairs/mood"}, "no built-in data 'builtin:pairs/mood': the built-in data are builtin:pairs/"),
        ({"data": "{folder}/other.csv"}, "other.csv has the columns text, topic; expected positive and negative, and"),
        ({"pairs": ROWS[:7]}, "given pairs has 7 pairs; expected at least 8"),
        ({"pairs": [("a", "b")] * 7 + [("a", " ")]}, "has 7 pairs; 1 rows hold no text; expected at least 8"),
        (
            {"pairs": [{"text": "a", "label": n} for n in range(9)]},
            "'label' of given pairs holds 9 values .*expected two",
        ),
        ({"pairs": ["a", "b"]}, r"pairs: got list; expected a list of \(positive, negative\)"),
        ({"pairs": [{"positive": 1, "negative": 2}] * 9}, "'positive' of given pairs holds int64; expected text"),
        ({"test_share": 1.0}, "extract.test_share: got 1; expected a share between 0 and 1"),
        ({"method": "svd"}, "extract.method: got 'svd' .*expected one of 'mean_difference'"),
        ({"shuffled": -1}, "extract.shuffled: got -1; expected at least 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(options: Any, words: str, folders: Any, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("text,topic\na b c,d\n")
    if isinstance(options.get("data"), str):
        options = {**options, "data": options["data"].format(folder=tmp_path)}
    if "data" in options:
        options = {"pairs": None, **options}
    with pytest.raises(ReportedError, match=words):
        extracted({"gpt2": folders["gpt2"]}, tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


def test_pairs_of_which_a_text_is_cut_away_are_left_out_and_counted(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ROWS, {"prompt": "the old bridge over the river " * 6, "positive": "fell", "negative": "stood"}]
    result = extracted(
        {"gpt2": folders["gpt2"]}, tmp_path, pairs=rows, position="completion", splits=0, data={"max_length": 20}
    )
    about = json.loads((result.run_dir / "run.json").read_text())["models"]["gpt2"]
    assert about["num_pairs"] == len(ROWS)
    assert "2 sentences hold no token to read" in capsys.readouterr().err


# --- what is found -----------------------------------------------------------------------------------------------


def test_a_planted_direction_is_found_and_permuted_labels_find_nothing(tmp_path: Path) -> None:
    folder = save_model("gpt2", tmp_path / "planted")
    tokenizer = make_tokenizer(FAMILIES["gpt2"].kind)
    model = AutoModelForCausalLM.from_pretrained(folder)
    direction = torch.nn.functional.normalize(torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1)), dim=0)
    words = [" harbour", " river", " bridge", " ship"], [" lamps", " crew", " rain", " fog"]
    with torch.no_grad():
        for block in model.transformer.h:  # what the embeddings hold stays in the stream
            for written in (block.attn.c_proj, block.mlp.c_proj):
                written.weight.mul_(0.02)
        for sign, own in zip((1, -1), words, strict=True):
            for word in own:
                model.transformer.wte.weight[tokenizer(word)["input_ids"][-1]] += sign * 4 * direction
    model.save_pretrained(folder)
    pairs = [
        (f"{start}{one}", f"{start}{other}")
        for start in (*STARTS, "a", "before dawn", "until the last of them", "on the quay")
        for one in words[0]
        for other in words[1]
    ]
    result = extracted({"gpt2": str(folder)}, tmp_path / "runs", pairs=pairs, shuffled=40)
    quality = result["gpt2"].quality
    assert quality["auroc"].iloc[0] > 0.99
    cosine = torch.nn.functional.cosine_similarity(result["gpt2"].vector[0], direction, dim=0)
    assert cosine > 0.95
    assert abs(quality["shuffled_auroc"].mean() - 0.5) < 0.05

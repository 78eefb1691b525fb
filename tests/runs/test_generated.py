"""Runs whose models write: what they leave, against the texts themselves, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tiny_models import HIDDEN, MAX_POSITIONS, SENTENCES, make_tokenizer, save_model

from llm_entropy import run_analysis
from llm_entropy.errors import ReportedError
from llm_entropy.outputs.plots import canvas, draw_model, drawing, generations
from llm_entropy.outputs.results import RunResult
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import TEXT_METRICS

NUM_NEW = 6
CONDITIONS = {"standard": "standard", "control_-2": "control/control_-2", "control_+2": "control/control_+2"}
COUNTED = ("text_length", "distinct_1", "distinct_2", "longest_repetition")
LIMIT = MAX_POSITIONS - 4
"""Most tokens by the tokenizer."""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"gpt2": str(save_model("gpt2", tmp_path_factory.mktemp("models") / "gpt2"))}


def analyse(models: dict[str, str], folder: Path, **words: Any) -> RunResult:
    words = {"positions": "generated", "max_new_tokens": NUM_NEW, "metrics": ["entropy"], **words}
    words.setdefault("sentences", SENTENCES)
    return run_analysis(
        models, output={"dir": str(folder), "plots": False, **words.pop("output", {})}, quiet=True, **words
    )


@pytest.fixture(scope="module")
def tables() -> list[ModelTables]:
    """What `written` would have drawn."""
    return []


@pytest.fixture(scope="module")
def written(
    gpt2: dict[str, str], tmp_path_factory: pytest.TempPathFactory, tables: list[ModelTables]
) -> Iterator[RunResult]:
    """Two strengths and a placebo, compared."""
    vector = [math.sin(index) for index in range(HIDDEN)]
    control: dict[str, Any] = {"control_vector": vector, "strengths": [-2, 2], "placebo": {"random": 1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing.Drawers, "draw_model", lambda _, own: tables.append(own))
        patch.setattr(drawing.Drawers, "draw_side_by_side", lambda *_: None)
        folder = tmp_path_factory.mktemp("written")
        rows = [{"text": text, **kept(number)} for number, text in enumerate(SENTENCES)]
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = {"path": str(folder / "corpus.jsonl"), "text_column": "text", "keep_columns": ["item", "region"]}
        about: dict[str, Any] = {"data": data, "sentences": None, "output": {"plots": True}}
        yield analyse(gpt2, folder, compare_control=True, **about, **control)


def kept(number: int) -> dict[str, Any]:
    """Return what the corpus says beside a sentence."""
    return {"item": number, "region": f'r, "{number}"'}


def texts(result: RunResult, condition: str) -> Iterator[tuple[list[int], pd.DataFrame]]:
    """Yield each sentence's written tokens, and its records."""
    records = result["gpt2"][condition].records
    for _, own in records.groupby("sentence_id"):
        yield [int(token) for token in own["target_id"].dropna()], own


def counted(tokens: list[int]) -> tuple[float, float, float, float]:
    """Return length, distinct-1, distinct-2 and longest repetition, by their definitions."""
    pairs = list(itertools.pairwise(tokens))
    repeated = [
        size
        for size in range(1, len(tokens))
        for start in range(len(tokens) - size + 1)
        for other in range(start)
        if tokens[start : start + size] == tokens[other : other + size]
    ]
    distinct_2 = len(set(pairs)) / len(pairs) if pairs else math.nan
    return len(tokens), len(set(tokens)) / len(tokens), distinct_2, max(repeated, default=0)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_table_of_texts_has_the_sentence_its_continuation_and_the_tokens(
    written: RunResult, condition: str
) -> None:
    table = written["gpt2"][condition].generations
    assert list(table.columns) == ["Sentence", "Continuation", "Analysis", "tokens", "item", "region"]
    assert list(table["region"]) == [kept(number)["region"] for number in range(len(SENTENCES))]
    assert list(table["item"]) == list(range(len(SENTENCES)))
    assert list(table["Sentence"]) == list(SENTENCES)
    assert set(table["Analysis"]) == {condition}
    tokenizer = make_tokenizer("causal")
    for (tokens, own), row in zip(texts(written, condition), table.itertuples(), strict=True):
        assert row.Continuation == tokenizer.decode(tokens, skip_special_tokens=True)
        assert len(json.loads(row.tokens)) == len(tokens) <= NUM_NEW
        assert list(own["target"].dropna()) == json.loads(row.tokens)
        assert own["token_id"].notna().sum() == 1, "what is read behind the first token is each condition's own"
        assert own["continuation"].iloc[0] == row.Continuation
        assert own["continuation"].iloc[1:].isna().all()
    assert (written.run_dir / CONDITIONS[condition] / "predictions/gpt2_generations.csv").is_file()
    own, other = (written["gpt2"][name].generations["Continuation"] for name in ("standard", "control_+2"))
    assert (own != other).any()


def test_rows_are_means_over_what_was_written_and_predictions_those_of_the_first_token(written: RunResult) -> None:
    for condition in CONDITIONS:
        rows = written["gpt2"][condition]["entropy"].to_numpy()
        means = [np.mean(np.stack(own["entropy"])[: len(tokens)], axis=0) for tokens, own in texts(written, condition)]
        np.testing.assert_allclose(rows, means, rtol=1e-6)
        likeliest = written["gpt2"][condition].predictions.groupby("Sentence", sort=False).first()["Token"]
        assert list(likeliest) == [own["target"].iloc[0] for _, own in texts(written, condition)]


def test_the_summary_compares_the_texts_as_they_are_counted_and_as_the_standard_model_finds_them(
    written: RunResult,
) -> None:
    summary = written["gpt2"].summary
    standard = np.array([counted(tokens) for tokens, _ in texts(written, "standard")])
    for condition in ("control_-2", "control_+2"):
        own = summary[summary["condition"] == condition].set_index("metric")
        assert set(TEXT_METRICS) < set(own.index)
        steered = np.array([counted(tokens) for tokens, _ in texts(written, condition)])
        for place, metric in enumerate(COUNTED):
            row = own.loc[metric]
            assert row["layer"] == 3
            assert row["mean_condition"] == pytest.approx(np.nanmean(steered[:, place]))
            assert row["mean_difference"] == pytest.approx(np.nanmean(steered[:, place] - standard[:, place]))
            assert row["placebo_p"] in (0.5, 1.0)
        means = [np.nanmean(np.stack(text["standard_surprisal"]), axis=0) for _, text in texts(written, condition)]
        rows = own.loc["standard_surprisal"]
        np.testing.assert_allclose(rows["mean_condition"], np.mean(means, axis=0), rtol=1e-6)
        assert rows["mean_difference"].iloc[-1] > 0, "greedy text of the model itself surprises it least"
        assert (rows["ci_low"] <= rows["mean_difference"]).all()
    assert {"text_length", "standard_surprisal"} < set(written["gpt2"].doses["metric"])
    placebos = written["gpt2"].placebos
    assert set(TEXT_METRICS) < set(placebos["metric"])
    assert not list(written.run_dir.rglob("*random*"))


def test_the_texts_of_all_conditions_stand_side_by_side_sentence_by_sentence(written: RunResult) -> None:
    together = pd.read_csv(written.run_dir / "comparative/predictions/gpt2_generations.csv", keep_default_na=False)
    assert list(together["Analysis"]) == [*CONDITIONS] * len(SENTENCES)
    for condition, own in together.groupby("Analysis"):
        pd.testing.assert_frame_equal(own.reset_index(drop=True), written["gpt2"][condition].generations)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_table_of_counts_has_a_row_for_each_text(written: RunResult, condition: str) -> None:
    table = written["gpt2"][condition].texts
    measured = ["standard_surprisal"] if condition == "standard" else ["standard_surprisal", "kl_from_standard"]
    assert list(table.columns) == [*COUNTED, *measured, "item", "region"]
    assert list(table["region"]) == [kept(number)["region"] for number in range(len(SENTENCES))]
    assert list(table.index) == list(SENTENCES)
    for (tokens, own), (_, row) in zip(texts(written, condition), table.iterrows(), strict=True):
        np.testing.assert_allclose(row[list(COUNTED)].astype(float), counted(tokens), rtol=1e-6)
        assert row["standard_surprisal"] == pytest.approx(np.stack(own["standard_surprisal"])[: len(tokens), -1].mean())


def test_the_figure_of_texts_shows_each_mean_difference_with_its_interval_beside_the_placebos(
    written: RunResult, tables: list[ModelTables], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(canvas, "_rendered", lambda figure: figures.append(figure) or Image.new("L", (1, 1)))
    drawn = draw_model(tables[0], tmp_path)
    assert drawn[-1] == tmp_path / "comparative/plots/gpt2_generations.png"
    summary, placebos = written["gpt2"].summary, written["gpt2"].placebos
    panels = figures[-1].axes
    assert len(panels) == len(generations.SHOWN) == 6
    for metric, axes in zip(generations.SHOWN, panels, strict=True):
        last = summary[summary["metric"] == metric].groupby("condition", sort=False).last()
        shown = [line.get_xdata() for line in axes.lines]
        np.testing.assert_allclose(shown[:-1:2], last[["ci_low", "ci_high"]])
        np.testing.assert_allclose(np.ravel(shown[1:-1:2]), last["mean_difference"])
        own = placebos[placebos["metric"] == metric].groupby("condition")["mean_difference"].last()
        assert [bar.get_x() for bar in axes.patches] == pytest.approx([own.iloc[0]] * 2)
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["control_-2", "control_+2"]
    assert panels[0].get_title(loc="left").startswith("Surprisal under the standard model (nats)\nstandard: ")


def test_one_condition_alone_leaves_its_texts(gpt2: dict[str, str], tmp_path: Path) -> None:
    result = analyse(gpt2, tmp_path, output={"parquet": False}, use_sampling=True, top_p=0.5)
    path = result.run_dir / "standard/predictions/gpt2_generations.csv"
    assert len(pd.read_csv(path)) == len(SENTENCES)
    assert list(result["gpt2"]) == ["standard"]


def test_the_first_sampled_token_is_the_one_that_is_sampled_at_the_last_position(
    gpt2: dict[str, str], tmp_path: Path
) -> None:
    words: dict[str, Any] = {"use_sampling": True, "temperature": 1.5, "seed": 3}
    last = analyse(gpt2, tmp_path / "last", positions="last", max_new_tokens=None, **words)
    generated = analyse(gpt2, tmp_path / "generated", **words)
    tokens = [own["target"].iloc[0] for _, own in texts(generated, "standard")]
    assert tokens == list(last["gpt2"]["standard"].predictions["Token"])


def test_a_sentence_that_leaves_no_room_is_cut_and_counted(gpt2: dict[str, str], tmp_path: Path) -> None:
    long = " ".join(["the ship left the harbour before dawn"] * 12)
    result = analyse(gpt2, tmp_path, sentences=["a", long], max_new_tokens=20)
    about = json.loads((result.run_dir / "run.json").read_text(encoding="utf-8"))["models"]["gpt2"]
    assert (about["num_cut"], about["max_length"]) == (1, LIMIT - 19)
    _, (tokens, own) = texts(result, "standard")
    assert own["position"].iloc[0] == LIMIT - 20
    assert own["position"].max() < LIMIT
    assert len(tokens) <= 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"positions": "last"}, r"analysis.max_new_tokens: got 6, but analysis.positions is last; set"),
        ({"max_new_tokens": 0}, r"analysis.max_new_tokens: got 0; expected at least 1"),
        ({"use_sampling": True, "top_p": 1.2}, r"analysis.top_p: got 1.2; expected a number above 0, up to 1"),
        ({"use_sampling": True, "top_p": 0.0}, r"analysis.top_p: got 0.0; expected a number above 0, up to 1"),
        ({"top_p": 0.9}, r"analysis.top_p: got 0.9, but analysis.use_sampling is false"),
        (
            {"positions": "all", "max_new_tokens": None, "use_sampling": True, "top_p": 0.9},
            r"analysis.top_p: got 0.9, but analysis.positions is all",
        ),
        (
            {"max_new_tokens": LIMIT},
            rf"analysis.max_new_tokens: got {LIMIT}; gpt2 takes at most {LIMIT} tokens, .* give {LIMIT - 2} or less",
        ),
        (
            {"max_new_tokens": 20, "data": {"max_length": LIMIT}},
            rf"data.max_length: got {LIMIT}; gpt2 takes at most {LIMIT} tokens, and 20 more are written; give "
            rf"{LIMIT - 19} or less",
        ),
    ],
)
def test_settings_that_are_out_of_range_or_without_effect_are_refused(
    gpt2: dict[str, str], tmp_path: Path, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(ReportedError, match=message):
        analyse(gpt2, tmp_path / "runs", **words)
    assert not (tmp_path / "runs").exists()


def test_a_masked_model_does_not_go_on_with_a_text(gpt2: dict[str, str], tmp_path: Path) -> None:
    bert = str(save_model("bert", tmp_path / "bert"))
    with pytest.raises(
        ReportedError, match=r"positions: got generated, but bert \(.*\) is a masked model, .* leave it out"
    ):
        analyse({**gpt2, "bert": bert}, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()

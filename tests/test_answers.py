"""Answers and kept columns, from the corpus to the files: against plain transformers in float64."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from llm_entropy import run_analysis
from llm_entropy.builtin import model_folder
from llm_entropy.commands.summary import print_summary
from llm_entropy.errors import ReportedError
from llm_entropy.outputs.making import merge_run, read_result
from llm_entropy.outputs.results import RunResult
from llm_entropy.settings.configuration import read_config
from llm_entropy.store import manifest

ROWS: list[dict[str, Any]] = [
    {
        "text": "The capital of France is",
        "right": "Paris",
        "wrong": "Rome",
        "item": 7,
        "region": "verb, a",
        "l": [1, 2],
    },
    {
        "text": "",
        "right": "The king was very old.",
        "wrong": "The king were very old.",
        "item": 8,
        "region": "b",
        "l": [],
    },
    {"text": "Nobody asks anything here", "right": None, "wrong": None, "item": 9, "region": None, "l": None},
    {
        "text": "The opposite of possible is  ",
        "right": "impossible",
        "wrong": "unlikely.",
        "item": 10,
        "region": 'q"',
        "l": [3],
    },
    {
        "text": "The [MASK] rises in the east.",
        "right": "sun",
        "wrong": "grandfather",
        "item": 11,
        "region": "b",
        "l": [4],
    },
    {"text": "A dog is a kind of", "right": "animal", "wrong": None, "item": 12, "region": "b", "l": [5]},
]
COLUMNS = {"keep_columns": ["item", "region", "l"], "target_column": "right", "foil_column": "wrong"}
MODELS = {"gpt2": "builtin:tiny-gpt2", "bert": "builtin:tiny-bert"}


def write_rows(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def analyse(folder: Path, data: dict[str, Any], **settings: Any) -> RunResult:
    about = {"metrics": ["entropy"], "output": {"dir": str(folder), "run_name": "run", "plots": False}, "quiet": True}
    return run_analysis(**{"models": MODELS, "data": {**COLUMNS, **data}, **about, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    output = {"dir": str(folder), "run_name": "run"}
    path = write_rows(folder / "corpus.jsonl")
    return analyse(folder, {"path": path}, compare_control=True, control_vector=[0.2, -0.1], output=output).run_dir


def read_answers(run_dir: Path, model: str, condition: str = "standard") -> pd.DataFrame:
    frame = pd.read_csv(run_dir / condition / "data" / f"{model}_answers.csv", keep_default_na=False)
    for name in frame.columns[3:]:
        frame[name] = [np.array(json.loads(text), float) for text in frame[name]]
    return frame


# --- the transcription -------------------------------------------------------------------------------------------


def causal_distributions(model: Any, ids: list[int]) -> torch.Tensor:
    """ln p at every layer, [layer, position, vocab], by GPT-2's own final norm and head."""
    out = model(torch.tensor([ids]), output_hidden_states=True)
    last = len(out.hidden_states) - 1  # which transformers returns behind the final norm
    states = [h if layer == last else model.transformer.ln_f(h) for layer, h in enumerate(out.hidden_states)]
    return torch.stack([model.lm_head(state)[0] for state in states]).log_softmax(-1)


def masked_distributions(model: Any, ids: list[int]) -> torch.Tensor:
    out = model(torch.tensor([ids]), output_hidden_states=True)
    return torch.stack([model.cls(state)[0] for state in out.hidden_states]).log_softmax(-1)


def causal_expected(model: Any, tokenizer: Any, sentence: str, answer: str) -> torch.Tensor:
    """ln p of each token of the answer, [layer, token], with the boundary of the lm-evaluation-harness."""
    context, continuation = sentence, answer if not sentence or sentence[-1] == " " else " " + answer
    num_spaces = len(context) - len(context.rstrip())
    if num_spaces:
        continuation = context[-num_spaces:] + continuation
        context = context[:-num_spaces]
    whole = tokenizer(context + continuation)["input_ids"]
    before = tokenizer(context)["input_ids"] if context else []
    own = whole[len(before) :]
    if not context:
        before = [tokenizer.bos_token_id]
    log_p = causal_distributions(model, [*before, *own])
    return torch.stack([log_p[:, len(before) - 1 + j, token] for j, token in enumerate(own)], dim=1), log_p[
        :, len(before) - 1
    ]


def masked_expected(model: Any, tokenizer: Any, sentence: str, answer: str) -> torch.Tensor:
    own = tokenizer(answer, add_special_tokens=False)["input_ids"]
    open_sentence = sentence if "[MASK]" in sentence else f"{sentence} [MASK]"
    left, right = open_sentence.split("[MASK]")
    left_ids, right_ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (left, right))
    start = 1 + len(left_ids)
    masks = [tokenizer.mask_token_id] * len(own)
    ids = [tokenizer.cls_token_id, *left_ids, *masks, *right_ids, tokenizer.sep_token_id]
    log_p = masked_distributions(model, ids)
    return torch.stack([log_p[:, start + j, token] for j, token in enumerate(own)], dim=1), log_p[:, start]


EXPECTED = {"gpt2": causal_expected, "bert": masked_expected}
CLASSES = {"gpt2": AutoModelForCausalLM, "bert": AutoModelForMaskedLM}


@pytest.fixture(scope="module")
def plain() -> Iterator[dict[str, tuple[Any, Any]]]:
    with torch.inference_mode():
        yield {
            key: (
                CLASSES[key].from_pretrained(model_folder(f"tiny-{key}")).double().eval(),
                AutoTokenizer.from_pretrained(model_folder(f"tiny-{key}")),
            )
            for key in MODELS
        }


@pytest.mark.parametrize("model", MODELS)
def test_answers_are_those_of_plain_transformers(run: Path, plain: dict[str, tuple[Any, Any]], model: str) -> None:
    found = read_answers(run, model)
    assert list(found.columns) == [
        *("sentence", "target", "foil", "target_surprisal", "foil_surprisal", "preference"),
        *("target_rank", "target_probability"),
    ]
    asked = [row for row in ROWS if row["right"] is not None]
    assert found["sentence"].tolist() == [row["text"] for row in asked]
    assert found["target"].tolist() == [row["right"] for row in asked]
    assert found["foil"].tolist() == [row["wrong"] or "" for row in asked]
    num_tokens = []
    for row, line in zip(asked, found.itertuples(), strict=True):
        with torch.inference_mode():
            right, first = EXPECTED[model](*plain[model], row["text"], row["right"])
            wrong = None if row["wrong"] is None else EXPECTED[model](*plain[model], row["text"], row["wrong"])[0]
        num_tokens.append(right.shape[1])
        np.testing.assert_allclose(line.target_surprisal, -right.sum(1).numpy(), rtol=2e-5, atol=2e-4)
        np.testing.assert_allclose(line.target_probability, right[:, 0].exp().numpy(), rtol=5e-4, atol=1e-9)
        assert line.target_rank.tolist() == (first > right[:, :1]).sum(1).tolist()
        if wrong is None:
            assert np.isnan(line.foil_surprisal).all()
            assert np.isnan(line.preference).all()
        else:
            np.testing.assert_allclose(line.foil_surprisal, -wrong.sum(1).numpy(), rtol=2e-5, atol=2e-4)
            np.testing.assert_allclose(line.preference, (right.sum(1) - wrong.sum(1)).numpy(), atol=1e-3)
    assert max(num_tokens) > 4, "an answer of several tokens is among them"


def blocks_of(key: str, model: Any) -> Any:
    return model.transformer.h if key == "gpt2" else model.bert.encoder.layer


@pytest.mark.parametrize("model", MODELS)
def test_steered_answers_are_those_of_plain_hooks(run: Path, plain: dict[str, tuple[Any, Any]], model: str) -> None:
    loaded, tokenizer = plain[model]
    vector = torch.tensor([0.2, -0.1], dtype=torch.float64).repeat(loaded.config.hidden_size // 2)

    def add(module: Any, args: Any, output: Any) -> Any:
        return output + vector if isinstance(output, torch.Tensor) else (output[0] + vector, *output[1:])

    hooks = [block.register_forward_hook(add) for block in blocks_of(model, loaded)]
    try:
        for line in read_answers(run, model, "control").itertuples():
            with torch.inference_mode():
                right, _ = EXPECTED[model](loaded, tokenizer, line.sentence, line.target)
            np.testing.assert_allclose(line.target_surprisal[-1], -float(right.sum(1)[-1]), rtol=2e-5, atol=2e-4)
    finally:
        for hook in hooks:
            hook.remove()
    standard, steered = (read_answers(run, model, name)["target_surprisal"] for name in ("standard", "control"))
    assert np.abs(np.stack(steered)[:, -1] - np.stack(standard)[:, -1]).max() > 0.01


def test_answers_alone_in_their_batches_are_the_same(run: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "corpus.jsonl")
    single = analyse(tmp_path, {"path": path, "tokens_per_batch": 1}).run_dir
    for model in MODELS:
        together, alone = read_answers(run, model), read_answers(single, model)
        for name in together.columns[3:]:
            np.testing.assert_allclose(np.stack(alone[name]), np.stack(together[name]), rtol=1e-3, atol=1e-4)


def test_ordinary_records_do_not_depend_on_answers(run: Path, tmp_path: Path) -> None:
    rows = [row for row in ROWS if row["text"]]
    path = write_rows(tmp_path / "corpus.jsonl", rows)
    without = {name: None for name in ("target_column", "foil_column")}
    plain_run = analyse(tmp_path, {"path": path, "text_column": "text", **without}).run_dir
    for model in MODELS:
        with_answers = pd.read_parquet(run / "standard" / "data" / f"{model}.parquet").query("sentence != ''")
        alone = pd.read_parquet(plain_run / "standard" / "data" / f"{model}.parquet")
        assert with_answers.columns.tolist() == alone.columns.tolist()
        assert with_answers["token_id"].tolist() == alone["token_id"].tolist()
        np.testing.assert_allclose(np.stack(with_answers["entropy"]), np.stack(alone["entropy"]), rtol=1e-4, atol=1e-5)


def test_kept_columns_come_back_with_their_types_in_every_parquet_file(run: Path) -> None:
    items, regions = [row["item"] for row in ROWS], [row["region"] for row in ROWS]
    for folder in ("standard", "control", "comparative"):
        table = pq.read_table(run / folder / "data" / "gpt2.parquet")
        assert table["sentence_id"].to_pylist() == list(range(len(ROWS)))
        assert table["item"].to_pylist() == items
        assert str(table.schema.field("item").type) == "int64"
        assert table["region"].to_pylist() == regions
        assert table["l"].to_pylist() == [row["l"] for row in ROWS]
    answers = pq.read_table(run / "standard" / "data" / "gpt2_answers.parquet")
    asked = [row for row in ROWS if row["right"] is not None]
    assert answers["item"].to_pylist() == [row["item"] for row in asked]
    assert answers["sentence_id"].to_pylist() == [0, 1, 3, 4, 5]


def test_the_table_of_sentences_has_kept_columns_in_front_of_the_last_layers_metrics(run: Path) -> None:
    frame = pd.read_csv(run / "control" / "data" / "bert_sentences.csv", keep_default_na=False)
    names = ["sentence_id", "sentence", "item", "region", "l", "entropy", "accuracy", "preference"]
    assert frame.columns.tolist() == names
    assert frame["sentence"].tolist() == [row["text"] for row in ROWS]
    assert frame["region"].tolist() == [row["region"] or "" for row in ROWS]
    assert frame["l"].tolist() == ["[1, 2]", "[]", "", "[3]", "[4]", "[5]"]
    records = pd.read_parquet(run / "control" / "data" / "bert.parquet")
    np.testing.assert_allclose(frame["entropy"].astype(float), [values[-1] for values in records["entropy"]], rtol=1e-6)
    answers = read_answers(run, "bert", "control").set_index("sentence")["preference"]
    expected = [
        "" if text not in answers or np.isnan(answers[text][-1]) else answers[text][-1] for text in frame["sentence"]
    ]
    assert [value == "" for value in frame["preference"]] == [value == "" for value in expected]
    assert [float(a) for a in frame["preference"] if a] == pytest.approx([a for a in expected if a != ""])


@pytest.mark.parametrize("data", [{}, {"streaming": True}, {"num_workers": 1}])
@pytest.mark.parametrize("number", [None, 3])
def test_values_of_several_types_come_back_as_json(tmp_path: Path, data: dict[str, Any], number: int | None) -> None:
    values = [1, "k", None]
    rows = [{"text": f"The dog {n}", "any": value, "z": None} for n, value in enumerate(values)]
    own = {"path": write_rows(tmp_path / "corpus.jsonl", rows), "keep_columns": ["any", "z"], "text_column": "text"}
    own |= {"target_column": None, "foil_column": None}
    settings = {"num_sentences": number, "models": {"gpt2": MODELS["gpt2"]}}
    run_dir = analyse(tmp_path, {**own, **data}, **settings).run_dir
    table = pq.read_table(run_dir / "standard" / "data" / "gpt2.parquet")
    assert table["any"].to_pylist() == ["1", '"k"', None]
    assert table["z"].to_pylist() == [None] * 3


@pytest.mark.parametrize("model", MODELS)
def test_the_summary_has_the_differences_of_accuracy_and_preference(run: Path, model: str) -> None:
    summary = pd.read_csv(run / "comparative" / "data" / f"{model}_summary.csv")
    standard, control = (np.stack(read_answers(run, model, name)["preference"]) for name in ("standard", "control"))
    has_both = ~np.isnan(standard[:, 0])
    standard, control = standard[has_both], control[has_both]
    rows = summary[summary["metric"] == "preference"]
    assert (rows["n"] == 4).all()
    np.testing.assert_allclose(rows["mean_difference"], (control - standard).mean(0), rtol=1e-4, atol=1e-5)
    rows = summary[summary["metric"] == "accuracy"]
    np.testing.assert_allclose(rows["mean_standard"], (standard > 0).mean(0))
    np.testing.assert_allclose(
        rows["mean_difference"], ((control > 0).astype(float) - (standard > 0)).mean(0), atol=1e-12
    )
    assert rows["p_value"].notna().any()


def test_the_terminal_shows_what_steering_does_to_accuracy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = read_config(run / manifest.CONFIG)
    result = read_result(run, settings, manifest.read_manifest(run))
    assert [row.metric for row in result["gpt2"].overview] == ["entropy", "accuracy", "preference"]
    shown = np.stack(result["gpt2"]["standard"].answers["preference"].to_list())
    has_both = ~np.isnan(shown[:, -1])
    assert result["gpt2"].overview[1].last_layer == pytest.approx((shown[has_both, -1] > 0).mean())
    print_summary(result)
    assert "accuracy" in capsys.readouterr().out


def test_the_layer_from_which_on_an_answer_is_preferred_is_beside_its_numbers(run: Path) -> None:
    table = pd.read_parquet(run / "standard" / "data" / "bert_answers.parquet")
    for preference, layer in zip(table["preference"], table["preferred_from"], strict=True):
        holds = [bool((preference[first:] > 0).all()) for first in range(len(preference))]
        assert (None if pd.isna(layer) else layer) == (holds.index(True) if any(holds) else None)
    for condition in ("standard", "control"):
        assert (run / condition / "plots" / "gpt2_answers.png").is_file()


def test_the_built_in_corpus_has_answers_for_both_kinds_of_models(tmp_path: Path) -> None:
    data = {"keep_columns": ["topic"], "target_column": "target", "foil_column": "foil"}
    result = analyse(tmp_path, data, num_sentences=40)
    found = {model: read_answers(result.run_dir, model) for model in MODELS}
    assert len(found["gpt2"]) == len(found["bert"]) > 4
    assert not any("[MASK]" in sentence for sentence in found["gpt2"]["sentence"])
    assert all("[MASK]" in sentence for sentence in found["bert"]["sentence"])
    assert found["gpt2"]["target"].tolist() != found["bert"]["target"].tolist()
    accuracy = {model: np.mean([one[-1] > 0 for one in frame["preference"]]) for model, frame in found.items()}
    assert min(accuracy.values()) > 0.5, accuracy


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"keep_columns": ["itm"]}, r"data.keep_columns: .* has no column 'itm' \(did you mean 'item'\?\)"),
        ({"target_column": "no"}, "data.target_column: .* has no column 'no'"),
        ({"target_column": "item"}, "data.target_column: 'item' of .* holds values of type int64; expected text"),
        ({"target_column": "blank"}, "data.target_column: the answer in column 'blank' of row 1, .* is empty"),
        ({"target_column": "mixed"}, "data.target_column: 'mixed' of .* holds values of several types; expected text"),
        ({"target_column": "some", "foil_column": "right"}, "data.foil_column: row 1, .* has a wrong answer"),
        ({"target_column": None, "foil_column": "wrong"}, "data.foil_column: got 'wrong' without right answers"),
        ({"target_column": "none"}, "data.target_column: 'none' of .* holds no answer at all"),
        ({"keep_columns": ["entropy"]}, "data.keep_columns: the outputs already have a column 'entropy'"),
        ({"keep_columns": ["foil"]}, "data.keep_columns: the tables of answers already have a column 'foil'"),
        ({"target_column": "long"}, "data.max_length: the right answer .* to sentence 0 does not fit into 256 tokens"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_wrong_with_columns_is_one_line(
    tmp_path: Path, data: dict[str, Any], message: str, streaming: bool
) -> None:
    own = {"entropy": 1, "blank": "x", "mixed": 1, "some": "x", "none": None, "text": "It is", "long": "word " * 400}
    rows = [
        {**ROWS[0], **own},
        {**ROWS[1], **own, "blank": " ", "mixed": "b", "some": None},
    ]
    path = write_rows(tmp_path / "corpus.jsonl", rows)
    settings = {"path": path, "text_column": "text", "streaming": streaming, "foil_column": None, **data}
    with pytest.raises(ReportedError, match=message):
        analyse(tmp_path / "out", settings, num_sentences=2, models={"gpt2": MODELS["gpt2"]})
    assert not list(tmp_path.glob("out/*"))


def test_masks_at_several_places_are_refused_and_masks_side_by_side_are_one_place(tmp_path: Path) -> None:
    rows = [{**ROWS[4], "text": "The [MASK] [MASK] rises in the [MASK]."}]
    path = write_rows(tmp_path / "corpus.jsonl", rows)
    with pytest.raises(ReportedError, match="sentence 0 has masks at 2 places"):
        analyse(tmp_path / "out", {"path": path}, models={"bert": MODELS["bert"]})
    path = write_rows(tmp_path / "corpus.jsonl", [{**ROWS[4], "text": "The [MASK] [MASK] rises in the east."}, ROWS[4]])
    found = read_answers(analyse(tmp_path / "out", {"path": path}, models={"bert": MODELS["bert"]}).run_dir, "bert")
    np.testing.assert_allclose(found["target_surprisal"][0], found["target_surprisal"][1], rtol=1e-5)


def test_a_stream_gives_the_bytes_of_a_mapped_corpus(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "corpus.jsonl")
    made = []
    for streaming in (False, True):
        run_dir = analyse(tmp_path / str(streaming), {"path": path, "streaming": streaming}, num_sentences=None).run_dir
        made.append(files_of(run_dir))
    assert made[0] == made[1]
    assert "standard/data/gpt2_sentences.csv" in made[0]


def test_tasks_of_an_array_and_a_resumed_run_give_the_bytes_of_one_run(tmp_path: Path) -> None:
    data = {"path": write_rows(tmp_path / "corpus.jsonl"), "text_column": "text", "tokens_per_batch": 1}
    models = {"gpt2": MODELS["gpt2"]}
    whole = analyse(tmp_path / "whole", data, models=models).run_dir
    for index in (0, 1):
        tasks = analyse(tmp_path / "tasks", {**data, "num_shards": 2, "shard_index": index}, models=models).run_dir
    merge_run(tasks, quiet=True)
    part, *_ = sorted(tmp_path.glob("whole/run/shards/**/part-*.parquet"))
    before = files_of(whole)
    assert files_of(tasks) == before
    for file in part.parent.glob("part-*"):
        file.unlink()
    manifest.update_manifest(whole, "stopped")
    analyse(tmp_path / "whole", data, models=models, resume=True)
    assert files_of(whole) == before
    with pytest.raises(ReportedError, match=r'data.keep_columns was \["item", "region", "l"\], now \["item"\]'):
        analyse(tmp_path / "whole", {**data, "keep_columns": ["item"]}, models=models, resume=True)


def files_of(run_dir: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run_dir)): file.read_bytes() for file in run_dir.glob("standard/data/*")}


def test_a_data_frame_gives_what_a_file_gives_and_its_run_can_be_run_again(run: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({name: [row[name] for row in ROWS] for name in ROWS[0]})
    given = analyse(tmp_path, {}, sentences=frame, models={"gpt2": MODELS["gpt2"]}).run_dir
    expected = (run / "standard" / "data" / "gpt2_answers.csv").read_bytes()
    assert (given / "standard" / "data" / "gpt2_answers.csv").read_bytes() == expected
    stored = [json.loads(line) for line in (given / "sentences.jsonl").read_text().splitlines()]
    assert [row["item"] for row in stored] == frame["item"].tolist()
    again = analyse(
        tmp_path / "again",
        {"path": str(given / "sentences.jsonl"), "text_column": "sentence"},
        models={"gpt2": MODELS["gpt2"]},
    ).run_dir
    assert (again / "standard" / "data" / "gpt2_answers.csv").read_bytes() == expected

"""The tables of words against brute force: float64, plain transformers, sums over the vocabulary written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from tiny_models import HIDDEN, make_model, make_tokenizer
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from llm_entropy import run_analysis
from llm_entropy.errors import ReportedError
from llm_entropy.outputs import words as word_files
from llm_entropy.outputs.making import merge_run
from llm_entropy.outputs.results import RunResult

SENTENCES = [
    "the ship left the harbour before dawn, and nobody waved",
    "she\ncounted  the lamps",
    "a",
    "why does iron rust.\nshe left of the lamps",
    "na\u00efve \u96e8 fell on the 'old' stone bridge.",
]
KEPT: list[dict[str, Any]] = [
    {"item, no": number, "region": region, "list": list(range(number))}
    for number, region in enumerate(["a", 'b"', None, "", "d, e"])
]
"""Of each sentence: columns of the corpus that come back."""
VECTOR = [0.5 * (-1) ** i for i in range(HIDDEN)]
END = "<|endoftext|>"
BLANKS = tuple(chr(256 + byte) for byte in (*range(9, 14), *range(28, 33)))
"""How byte-level vocabularies write the bytes that are white space."""
SETTINGS: dict[str, Any] = {"positions": "all", "mask_strategy": "within_word_l2r", "words": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Llama whose tokenizer begins texts with a BOS, a GPT-2 whose one does not, a BERT."""
    folder = tmp_path_factory.mktemp("models")
    for family, kind in (("llama", "causal"), ("gpt2", "causal"), ("bert", "masked")):
        tokenizer = make_tokenizer(kind)
        if family == "llama":
            tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in (".\n", " of the")])
            tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single=f"{END} $A", special_tokens=[(END, 0)]
            )
        make_model(family).save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
    return {family: str(folder / family) for family in ("llama", "gpt2", "bert")}


def analyse(
    models: dict[str, str], folder: Path, sentences: list[str] | None = SENTENCES, **settings: Any
) -> RunResult:
    output = {"dir": str(folder), "plots": False}
    return run_analysis(models, sentences=sentences, **{**SETTINGS, "output": output, **settings})


@pytest.fixture(scope="module")
def result(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("run")
    path = folder / "corpus.jsonl"
    rows = [{"text": text, **kept} for text, kept in zip(SENTENCES, KEPT, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"path": str(path), "text_column": "text", "keep_columns": list(KEPT[0])}
    return analyse(models, folder, None, data=data, compare_control=True, control_vector=VECTOR)


def words_in(sentence: str) -> list[str]:
    """Return what stands between white space; the Llama's tokenizer has a token of two words."""
    return [word.replace("_", " ") for word in sentence.replace("of the", "of_the").split()]


def numbers(column: pd.Series[Any]) -> np.ndarray:
    """[word, layer], NaN where a word has none."""
    width = max((len(values) for values in column if values is not None), default=1)
    return np.array([[np.nan] * width if values is None else values for values in column], np.float64)


def log_probabilities(model: PreTrainedModel, ids: list[int], vector: list[float]) -> Tensor:
    """Return ln p of the next token at every layer of a Llama, [layer, token, vocab], float64."""
    states = []

    def steer(module: Any, args: Any, output: Tensor) -> Tensor:
        states.append(output + torch.tensor(vector, dtype=torch.float64))
        return states[-1]

    base = model.model
    handles = [base.embed_tokens.register_forward_hook(lambda module, args, output: states.append(output))]
    handles += [layer.register_forward_hook(steer) for layer in base.layers]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
        logits = model.lm_head(base.norm(torch.cat(states)))
    for handle in handles:
        handle.remove()
    return logits.log_softmax(-1)


def words_by_hand(folder: str, vector: list[float]) -> list[dict[str, Any]]:
    """Return the words of the sentences: each piece, with the tokens that overlap it, and what is summed over them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    ends = [i for i, piece in enumerate(pieces) if piece.startswith((*BLANKS, " ", END))]
    rows = []
    for number, sentence in enumerate(SENTENCES):
        encoded = tokenizer(sentence, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        assert ids[0] == 0
        log_p = log_probabilities(model, ids, vector)
        place = token = 0
        for word in words_in(sentence):
            start = sentence.index(word, place)
            place = start + len(word)
            first = token + 1
            token = max(t for t in range(first, len(ids)) if offsets[t][0] < place)
            total = sum(-log_p[:, t - 1, ids[t]] for t in range(first, token + 1))
            behind = [log_p[:, t, ends].exp().sum(-1).log() for t in (first - 1, token)]
            certain = [t == 0 or pieces[ids[t]] == ".\n" for t in (first - 1, token)]
            before, after = (0.0 if sure else b for sure, b in zip(certain, behind, strict=True))
            corrected = total - after + before
            entropy = -(log_p[:, first - 1].exp() * log_p[:, first - 1]).sum(-1)
            rows.append(
                {
                    "sentence_id": number,
                    "word": word,
                    "start": start,
                    "end": place,
                    "num_tokens": token - first + 1,
                    "surprisal": total.numpy(),
                    "corrected_surprisal": corrected.numpy(),
                    "entropy_before": entropy.numpy(),
                }
            )
    return rows


@pytest.mark.parametrize(("condition", "strength"), [("standard", 0.0), ("control", 1.0)])
def test_words_are_the_float64_sums_over_the_whole_vocabulary(
    condition: str, strength: float, result: RunResult, models: dict[str, str]
) -> None:
    seen = result["llama"][condition].words
    expected = pd.DataFrame(words_by_hand(models["llama"], [strength * value for value in VECTOR]))
    assert list(seen.columns) == [*expected.columns, *KEPT[0]]
    plain = ["sentence_id", "word", "start", "end", "num_tokens"]
    pd.testing.assert_frame_equal(seen[plain], expected[plain], check_dtype=False)
    assert seen["num_tokens"].max() > 2
    for name in ("surprisal", "corrected_surprisal", "entropy_before"):
        np.testing.assert_allclose(numbers(seen[name]), numbers(expected[name]), rtol=1e-4, atol=1e-4)
    assert (np.abs(numbers(seen["corrected_surprisal"]) - numbers(seen["surprisal"])) > 0.01).mean() > 0.9


def test_offsets_give_back_the_sentence_and_words_add_up_to_its_tokens(result: RunResult) -> None:
    words, records = result["llama"]["standard"].words, result["llama"]["standard"].records
    for number, sentence in enumerate(SENTENCES):
        own = words[words["sentence_id"] == number]
        assert [sentence[start:end] for start, end in zip(own["start"], own["end"], strict=True)] == list(own["word"])
        tokens = records[records["sentence_id"] == number].iloc[:-1]  # the last one predicts what nobody wrote
        assert own["num_tokens"].sum() == len(tokens)
        np.testing.assert_allclose(numbers(own["surprisal"]).sum(0), numbers(tokens["surprisal"]).sum(0), rtol=1e-5)


def test_the_csv_file_says_what_the_parquet_file_says(result: RunResult) -> None:
    place = result["llama"]["control"].place
    written, words = pd.read_csv(place.words(".csv")), result["llama"]["control"].words
    assert list(written.columns) == list(words.columns)
    assert written["word"].tolist() == words["word"].tolist()
    for name in ("surprisal", "corrected_surprisal", "entropy_before"):
        read = np.array([json.loads(text) for text in written[name]], np.float32)
        np.testing.assert_array_equal(read, numbers(words[name]).astype(np.float32))


def test_columns_of_the_corpus_come_back_with_each_word(result: RunResult) -> None:
    place, words = result["bert"]["control"].place, result["bert"]["control"].words
    owners = words["sentence_id"]
    table = pq.read_table(place.words(".parquet"))
    for name in KEPT[0]:
        assert table[name].to_pylist() == [KEPT[owner][name] for owner in owners]
    written = pd.read_csv(place.words(".csv"), keep_default_na=False)
    assert written["item, no"].tolist() == [KEPT[owner]["item, no"] for owner in owners]
    assert written["region"].tolist() == [KEPT[owner]["region"] or "" for owner in owners]
    assert written["list"].map(json.loads).tolist() == [KEPT[owner]["list"] for owner in owners]


def test_a_kept_column_may_not_have_the_name_of_one_of_the_words(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ReportedError, match=r"data.keep_columns: the tables of words already have a column 'start'"):
        analyse(models, tmp_path, data={"keep_columns": ["start"]})
    assert not list(tmp_path.iterdir())


def test_a_merge_anew_gives_the_same_words_in_row_groups_of_a_fixed_size(
    result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = result["llama"]["control"].place.words(".parquet")
    before = pq.read_table(path)
    monkeypatch.setattr(word_files, "ROW_GROUP", 7)
    merge_run(result.run_dir, quiet=True)
    groups = pq.ParquetFile(path).metadata
    sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
    assert sizes == [7] * (len(before) // 7) + [len(before) % 7]
    assert pq.read_table(path).equals(before)


def test_without_a_bos_nothing_predicts_the_first_word(result: RunResult) -> None:
    words = result["gpt2"]["standard"].words
    is_first = ~words["sentence_id"].duplicated()
    for name in ("surprisal", "corrected_surprisal", "entropy_before"):
        assert (words[name].isna() == is_first).all()
    first = (result["gpt2"]["standard"].place.words(".csv")).read_text(encoding="utf-8").splitlines()[1]
    assert '"[null, null, null, null]"' in first


def test_masked_words_are_those_of_masks_on_the_token_and_what_follows_in_its_word(
    result: RunResult, models: dict[str, str]
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(models["bert"], dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(models["bert"])
    expected, entropies, counts = [], [], []
    for sentence in SENTENCES:
        encoded = tokenizer(sentence, return_offsets_mapping=True)
        ids, pieces = encoded["input_ids"], encoded.word_ids()
        of_token = {}
        for i in range(1, len(ids) - 1):
            masked = [tokenizer.mask_token_id if j >= i and pieces[j] == pieces[i] else ids[j] for j in range(len(ids))]
            with torch.no_grad():
                log_p = model(input_ids=torch.tensor([masked])).logits[0, i].log_softmax(-1)
            of_token[i] = -float(log_p[ids[i]]), -float((log_p.exp() * log_p).sum())
        place = 0
        for word in sentence.split():
            start = sentence.index(word, place)
            place = start + len(word)
            own = [i for i in of_token if start <= encoded["offset_mapping"][i][0] < place]
            expected.append(sum(of_token[i][0] for i in own))
            entropies.append(of_token[own[0]][1])
            counts.append(len(own))
    words = result["bert"]["standard"].words
    assert words["word"].tolist() == [word for sentence in SENTENCES for word in sentence.split()]
    assert words["num_tokens"].tolist() == counts
    np.testing.assert_allclose(numbers(words["surprisal"])[:, -1], expected, rtol=1e-4)
    np.testing.assert_allclose(numbers(words["entropy_before"])[:, -1], entropies, rtol=1e-4)
    assert words["corrected_surprisal"].isna().all(), "the model sees where the word ends"
    assert len(result["bert"]["control"].words) == len(words)


def test_one_sentence_at_a_time_gives_the_words_of_a_batch(
    result: RunResult, models: dict[str, str], tmp_path: Path
) -> None:
    pair = {name: models[name] for name in ("llama", "bert")}
    single = analyse(pair, tmp_path, data={"tokens_per_batch": 1}, metrics=["margin"])
    for name in pair:
        one, many = single[name]["standard"].words, result[name]["standard"].words
        assert one["word"].tolist() == many["word"].tolist()
        for column in ("surprisal", "corrected_surprisal", "entropy_before"):
            np.testing.assert_allclose(numbers(one[column]), numbers(many[column]), rtol=1e-5, atol=1e-5)
        records = single[name]["standard"].records
        assert not {"surprisal", "entropy", "log_boundary", "word_start"} & set(records.columns), "no metric was added"


def test_special_tokens_of_the_text_are_no_words_and_a_word_that_was_cut_has_no_row(
    models: dict[str, str], tmp_path: Path
) -> None:
    sentences = [f"the cat{END}nobody waved", "rain fell on the quayside"]
    whole = analyse({"llama": models["llama"]}, tmp_path, [*sentences, f"{END}the cat"])["llama"]["standard"].words
    whole, own_start = whole[whole["sentence_id"] < 2], whole[whole["sentence_id"] == 2]
    for name in ("surprisal", "corrected_surprisal", "entropy_before"):  # the BOS stands once
        np.testing.assert_allclose(numbers(own_start[name])[:1], numbers(whole[name])[:1], rtol=1e-5)
    assert own_start["start"].tolist() == [len(END), len(f"{END}the ")]
    assert whole["word"].tolist() == ["the", "cat", "nobody", "waved", "rain", "fell", "on", "the", "quayside"]
    behind = whole.iloc[2]
    assert (behind["start"], behind["end"]) == (len(f"the cat{END}"), len(f"the cat{END}nobody"))
    longest = 1 + int(whole["num_tokens"][4:].sum()) - 1
    cut = analyse({"llama": models["llama"]}, tmp_path, sentences[1:], data={"max_length": longest})
    words = cut["llama"]["standard"].words
    assert whole["num_tokens"].iloc[-1] > 1
    assert words["word"].tolist() == ["rain", "fell", "on", "the"]
    np.testing.assert_allclose(numbers(words["surprisal"]), numbers(whole["surprisal"])[4:8], rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("gpt2", {"positions": "last"}, "a causal model reads words with analysis.positions: all"),
        ("bert", {"mask_strategy": "each"}, "a masked model reads words with analysis.mask_strategy: within_word_l2r"),
    ],
)
def test_words_without_all_tokens_are_refused(
    model: str, settings: dict[str, str], message: str, models: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ReportedError, match=message):
        analyse({model: models[model]}, tmp_path, **settings)
    assert not list(tmp_path.iterdir())

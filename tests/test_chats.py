"""Chats: lists of messages, read through the model's own template, against the template's own text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_entropy import run_analysis
from llm_entropy.builtin import model_folder
from llm_entropy.errors import ReportedError

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'narrator' %}"
    "{{ raise_exception('no narrators, please') }}{% endif %}"
    "{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
ASKED = [{"role": "user", "content": "We hear with our what?"}]
CHATS: list[list[dict[str, str]]] = [
    ASKED,
    [*ASKED, {"role": "assistant", "content": "We hear with our"}],
    [{"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "Ears."}, *ASKED],
]
TEXTS = [
    "<bos>user: We hear with our what?\nassistant:",
    "<bos>user: We hear with our what?\nassistant: We hear with our",
    "<bos>system: Be brief.\nuser: We hear with our what?\nassistant: Ears.\nuser: We hear with our what?\nassistant:",
]
TURNS = ["", "user: We hear with our what?\n", "system: Be brief.\nuser: We hear with our what?\nassistant: Ears.\n"]
"""What stands before the last message, behind the BOS token."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chats") / "gpt2"
    shutil.copytree(model_folder("tiny-gpt2"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_chats(path: Path, chats: list[Any]) -> str:
    rows = [{"chat": chat, "right": "ears", "wrong": "noses", "number": n} for n, chat in enumerate(chats)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def records(folder: Path, models: dict[str, str], data: dict[str, Any], **settings: Any) -> pd.DataFrame:
    output = {"dir": str(folder), "run_name": "run", "plots": False}
    result = run_analysis(models, data=data, output=output, metrics=["surprisal"], quiet=True, **settings)
    return pd.read_parquet(result.run_dir / "standard" / "data" / "gpt2.parquet")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_chat_is_read_as_the_models_template_writes_it(model: str, tmp_path: Path, streaming: bool) -> None:
    path = write_chats(tmp_path / "corpus.jsonl", CHATS)
    data = {"path": path, "text_column": "chat", "streaming": streaming}
    found = records(tmp_path, {"gpt2": model}, data, num_sentences=None)
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = [text.replace("<bos>", tokenizer.bos_token) for text in TEXTS]
    assert found["sentence"].tolist() == expected
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in expected]
    assert found["position"].tolist() == [len(own) - 1 for own in ids]
    assert found["token_id"].tolist() == [own[-1] for own in ids]


def test_all_positions_are_those_of_the_last_message(model: str, tmp_path: Path) -> None:
    path = write_chats(tmp_path / "corpus.jsonl", CHATS)
    data = {"path": path, "text_column": "chat", "keep_columns": ["number"]}
    found = records(tmp_path, {"gpt2": model}, data, positions="all")
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).double().eval()
    for number, (text, before) in enumerate(zip(TEXTS, TURNS, strict=True)):
        own = found[found["number"] == number]
        whole = text.replace("<bos>", tokenizer.bos_token)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        first = len(tokenizer(tokenizer.bos_token + before, add_special_tokens=False)["input_ids"]) if before else 0
        assert own["position"].tolist() == list(range(first, len(ids)))
        with torch.inference_mode():
            log_p = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [-float(log_p[p, ids[p + 1]]) for p in range(first, len(ids) - 1)]
        np.testing.assert_allclose([values[-1] for values in own["surprisal"]][:-1], expected, rtol=1e-4, atol=1e-4)


def test_an_answer_stands_behind_what_introduces_it(model: str, tmp_path: Path) -> None:
    path = write_chats(tmp_path / "corpus.jsonl", CHATS[:1])
    data = {"path": path, "text_column": "chat", "target_column": "right", "foil_column": "wrong"}
    records(tmp_path, {"gpt2": model}, data)
    line = pd.read_csv(tmp_path / "run" / "standard" / "data" / "gpt2_answers.csv").iloc[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).double().eval()
    text = TEXTS[0].replace("<bos>", tokenizer.bos_token)
    assert line["sentence"] == text
    before, whole = (tokenizer(one, add_special_tokens=False)["input_ids"] for one in (text, text + "ears"))
    with torch.inference_mode():
        log_p = network(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = -sum(float(log_p[p - 1, whole[p]]) for p in range(len(before), len(whole)))
    assert json.loads(line["target_surprisal"])[-1] == pytest.approx(expected, rel=1e-4)


def test_a_chat_that_is_too_long_loses_its_beginning(model: str, tmp_path: Path) -> None:
    path = write_chats(tmp_path / "corpus.jsonl", CHATS)
    found = records(tmp_path, {"gpt2": model}, {"path": path, "text_column": "chat", "max_length": 8})
    tokenizer = AutoTokenizer.from_pretrained(model)
    last = [tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in TEXTS]
    assert found["position"].tolist() == [7, 7, 7]
    assert found["token_id"].tolist() == last


def test_chats_in_memory_are_stored_and_can_be_run_again(model: str, tmp_path: Path) -> None:
    found = records(tmp_path, {"gpt2": model}, {}, sentences=CHATS)
    data = {"path": str(tmp_path / "run" / "sentences.jsonl"), "text_column": "sentence"}
    again = records(tmp_path / "again", {"gpt2": model}, data)
    assert found["sentence"].tolist() == again["sentence"].tolist()
    assert len(set(found["sentence"])) == 3
    assert np.stack(found["surprisal"]).tolist() == np.stack(again["surprisal"]).tolist()
    with pytest.raises(ReportedError, match="got chats beside texts"):
        records(tmp_path / "out", {"gpt2": model}, {}, sentences=[*CHATS, "a text"])


@pytest.mark.parametrize(
    ("models", "chats", "message"),
    [
        ({"gpt2": "builtin:tiny-gpt2"}, CHATS, "models.gpt2: the corpus holds chats, .* has no chat template"),
        ({"bert": "builtin:tiny-bert"}, CHATS, "models.bert: the corpus holds chats, which a masked model does not"),
        (None, [[{"role": "narrator", "content": "x"}]], "the chat in row 0 does not fit .*: no narrators, please"),
        (
            None,
            [*CHATS, "text"],
            "data.text_column: .*row 3, counted from 0, holds text|'chat' .* not text in every row",
        ),
    ],
)
def test_what_cannot_be_read_as_chats_is_one_line(
    model: str, tmp_path: Path, models: dict[str, str] | None, chats: list[Any], message: str
) -> None:
    path = write_chats(tmp_path / "corpus.jsonl", chats)
    with pytest.raises(ReportedError, match=message):
        records(tmp_path / "out", models or {"gpt2": model}, {"path": path, "text_column": "chat"})
    assert not list(tmp_path.glob("out/*"))

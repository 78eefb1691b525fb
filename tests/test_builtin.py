"""The built-in models and corpus: they are there, they load, and they were really trained."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from llm_entropy import extract
from llm_entropy.builtin import BUILTIN_MODELS, PAIR_FAMILIES, data_file, model_folder, read_sentences
from llm_entropy.corpus.picking import load_corpus
from llm_entropy.settings import DataSettings
from llm_entropy.store.windows import Task
from tools.builtin_models import pairs as builtin_pairs
from tools.builtin_models import text as builtin_text
from tools.builtin_models.rows import IGNORED, MAX_POSITIONS, make_rows, mask_tokens, train_bert_tokenizer

MEGABYTES_AT_MOST = 8
# Written for this test; neither the built-in corpus nor the training text holds them.
UNSEEN = (
    "A large animal that lives in the sea and eats fish.",
    "The act of giving something back to a person who has lost it.",
    "The old man walked slowly along the river until he came to a small house.",
    "She gave the children some bread and a little milk before they went to bed.",
    "And the king said unto his servants, Go ye up to the city, and bring me word again.",
    "He was not able to see the road because the night was very dark.",
    "A small tree of Africa with white flowers and sweet fruit.",
    "And it came to pass after these things, that the people of the land went forth to battle.",
    "A person who works in a shop and sells things to other people.",
    "They built a high wall of stone around the city.",
)
CAUSAL_PERPLEXITY_AT_MOST = 45.0  # measured: 37.2
MASKED_PERPLEXITY_AT_MOST = 22.0  # measured: 16.8


def causal_surprisal(folder: Path) -> list[float]:
    """Mean surprisal in nats of every token but the first of `UNSEEN`, at each layer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    values = []
    for sentence in UNSEEN:
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = model(ids, output_hidden_states=True).hidden_states
            normed = [*(model.transformer.ln_f(state) for state in states[:-1]), states[-1]]
            logits = torch.stack([model.lm_head(state[0, :-1]) for state in normed])
        values.append(-logits.log_softmax(-1)[:, torch.arange(ids.shape[1] - 1), ids[0, 1:]])
    return torch.cat(values, dim=1).mean(1).tolist()


def masked_surprisal(folder: Path) -> list[float]:
    """Mean surprisal in nats of every token of `UNSEEN`, masked one at a time, at each layer."""
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    values = []
    for sentence in UNSEEN:
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"][0]
        places = torch.arange(1, len(ids) - 1)
        copies = ids.repeat(len(places), 1)
        rows = torch.arange(len(places))
        copies[rows, places] = tokenizer.mask_token_id
        with torch.inference_mode():
            states = model(copies, output_hidden_states=True).hidden_states
            logits = torch.stack([model.cls(state[rows, places]) for state in states])
        values.append(-logits.log_softmax(-1)[:, rows, ids[places]])
    return torch.cat(values, dim=1).mean(1).tolist()


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_a_built_in_model_is_small_and_in_half_precision(name: str) -> None:
    folder = model_folder(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MEGABYTES_AT_MOST * 1_000_000
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert (folder / "README.md").is_file()
    for path in folder.glob("*.json"):
        assert "/tmp" not in path.read_text(encoding="utf-8")


def test_the_causal_model_predicts_unseen_text_better_with_each_half_of_its_depth() -> None:
    surprisal = causal_surprisal(model_folder("tiny-gpt2"))
    assert surprisal[-1] < surprisal[len(surprisal) // 2] < surprisal[0]
    assert torch.tensor(surprisal[-1]).exp() < CAUSAL_PERPLEXITY_AT_MOST


def test_the_masked_model_predicts_unseen_text_better_with_each_half_of_its_depth() -> None:
    surprisal = masked_surprisal(model_folder("tiny-bert"))
    assert surprisal[-1] < surprisal[len(surprisal) // 2] < surprisal[0]
    assert torch.tensor(surprisal[-1]).exp() < MASKED_PERPLEXITY_AT_MOST


def test_every_position_of_the_causal_model_takes_a_token() -> None:
    folder = model_folder("tiny-gpt2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    with torch.inference_mode():
        logits = model(torch.arange(256)[None]).logits
    assert logits.shape == (1, 256, len(tokenizer))
    assert logits.isfinite().all()


def test_the_masked_tokenizer_frames_a_sentence_and_keeps_its_mask() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder("tiny-bert"))
    ids = tokenizer("The dog is a [MASK].")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["[CLS]", "the", "dog", "is", "a", "[MASK]", ".", "[SEP]"]


def test_the_causal_tokenizer_gives_back_what_it_was_given() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder("tiny-gpt2"))
    for row in read_sentences():
        assert tokenizer.decode(tokenizer(row["prompt"])["input_ids"]) == row["prompt"]


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="tiny-gpt2, tiny-bert"):
        model_folder("tiny-t5")


def test_the_corpus_is_distinct_and_well_formed() -> None:
    rows = read_sentences()
    assert len(rows) >= 320
    answers = {"target", "foil", "masked_target", "masked_foil"}
    assert all(row.keys() - answers == {"prompt", "masked", "topic"} for row in rows)
    answered = [row for row in rows if "target" in row]
    assert len(answered) >= 100
    for row in answered:
        assert answers <= row.keys()
        assert row["target"] != row["foil"]
        assert row["masked_target"] != row["masked_foil"]
    for key in ("prompt", "masked"):
        assert len({row[key] for row in rows}) == len(rows)
        assert all(4 <= len(row[key].split()) <= 25 for row in rows)
    for row in rows:
        assert re.search(r"[\s.,;:!?]$", row["prompt"]) is None
        assert row["masked"].count("[MASK]") == 1
        assert row["masked"].endswith(".")
        assert "  " not in row["prompt"] + row["masked"]
    assert len({row["topic"] for row in rows}) >= 10


@pytest.mark.parametrize("family", PAIR_FAMILIES)
def test_a_family_of_pairs_is_what_its_templates_make(family: str) -> None:
    pairs = builtin_pairs.FAMILIES[family]()
    assert data_file(family).read_text(encoding="utf-8") == builtin_pairs.as_csv(pairs)
    assert len(set(pairs)) == len({text for pair in pairs for text in pair}) // 2 == 200
    for pair in pairs:
        assert all(text[0].isupper() and text.endswith(".") and "  " not in text for text in pair)


@pytest.mark.parametrize("model", BUILTIN_MODELS)
def test_the_card_says_how_well_the_pairs_are_told_apart(model: str, tmp_path: Path) -> None:
    card = (model_folder(model) / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(pairs/\w+)` \| last \| (.+) \|$", card, flags=re.MULTILINE))
    assert tuple(rows) == PAIR_FAMILIES
    result = extract(
        {"m": f"builtin:{model}"},
        data="builtin:pairs/negation",
        splits=0,
        shuffled=0,
        trainer={"accelerator": "cpu", "devices": 1},
        output={"dir": str(tmp_path), "plots": False},
        quiet=True,
    )
    *recorded, _ = map(float, rows["pairs/negation"].split(" | "))
    # Of 1,600 comparisons a few may turn on another processor; two digits are recorded.
    assert recorded == pytest.approx(result["m"].quality["auroc"].tolist(), abs=0.012)


def test_built_in_pairs_are_data_for_any_run() -> None:
    data = DataSettings(path="builtin:pairs/tense", text_column="negative")
    (window,) = load_corpus(data, None, 0, quiet=True).windows(Task())
    assert window.sentences[0] == "The man walks along the river."
    with pytest.raises(ValueError, match="no built-in data 'builtin:moods': the built-in data are builtin:pairs/tense"):
        load_corpus(DataSettings(path="builtin:moods"), None, 0)


def test_importing_the_package_s_data_does_not_import_torch() -> None:
    code = "import sys; sys.modules['llm_entropy'] = type(sys)('llm_entropy'); "
    code += f"sys.modules['llm_entropy'].__path__ = [{str(model_folder('tiny-bert').parents[1])!r}]; "
    code += "import llm_entropy.builtin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------- the text


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """A WordNet of an animal, a dog, a poodle, and hot and cold."""
    notice = "  1 This line begins with two blanks, as the licence in WordNet's files does.  \n"
    nouns = [
        '00000001 05 n 01 animal 0 001 ~ 00000002 n 0000 | a living thing that moves; "the animal slept in the sun"  ',
        "00000002 05 n 02 dog 0 domestic_dog 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | a tame animal that barks  ",
        "00000003 05 n 01 poodle 0 001 @ 00000002 n 0000 | an intelligent dog with curly hair  ",
        "00000004 15 n 01 Paris 0 000 | the capital and largest city of France; a center of culture  ",
    ]
    adjectives = [
        "00000005 00 a 01 hot 0 001 ! 00000006 a 0101 | of a high temperature  ",
        "00000006 00 a 01 cold(p) 0 001 ! 00000005 a 0101 | of a low temperature  ",
    ]
    lemmas = ("animal", "dog", "domestic_dog", "poodle", "paris")
    noun_index = [f"{lemma} n 1 0 1 0 0000000{offset}  " for lemma, offset in zip(lemmas, "12234", strict=True)]
    files = {
        "data.noun": nouns,
        "data.adj": adjectives,
        "data.verb": [],
        "data.adv": [],
        "index.noun": noun_index,
        "index.adj": ["hot a 1 0 1 0 00000005  ", "cold a 1 0 1 0 00000006  "],
        "index.verb": [],
        "index.adv": [],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text(notice + "".join(line + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "cntlist.rev").write_text("dog%1:05:00:: 1 42\nhot%3:00:00:: 1 9\n", encoding="utf-8")
    return tmp_path


def test_wordnet_is_read_with_its_senses_counts_and_examples(wordnet: Path) -> None:
    synsets = builtin_text.read_wordnet(wordnet)
    assert len(synsets) == 6
    dog = synsets["n00000002"]
    assert [word.lemma for word in dog.words] == ["dog", "domestic dog"]
    assert (dog.count, dog.words[0].rank) == (42, 0)
    assert synsets["n00000001"].examples == ("the animal slept in the sun",)
    assert synsets["a00000006"].words[0].lemma == "cold"


def test_wordnet_s_relations_are_told_as_sentences(wordnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_text, "HELD_OUT_SHARE", 0.0)
    monkeypatch.setattr(builtin_text, "OBSCURE_SHARE", 1.0)
    texts, _ = builtin_text.make_texts(builtin_text.read_wordnet(wordnet), ["In the beginning."])
    told = set(texts.relations)
    assert {"The opposite of hot is cold.", "The opposite of cold is hot.", "The capital of France is Paris."} <= told
    assert told & {"A poodle is a kind of dog.", "A poodle is a type of dog."}
    assert "A poodle is an intelligent dog with curly hair." in texts.natural["glosses"]
    assert texts.natural["examples"] == ["The animal slept in the sun."]
    assert texts.natural["verses"] == ["In the beginning."]


def test_the_split_is_by_seed_and_keeps_the_halves_apart(wordnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_text, "HELD_OUT_SHARE", 0.5)
    synsets = builtin_text.read_wordnet(wordnet)
    verses = [f"Verse {number} of the book." for number in range(100)]
    once, again = (builtin_text.make_texts(synsets, verses, seed=3) for _ in range(2))
    assert once == again
    train, held_out = once
    assert not set(train.everything()) & set(held_out.everything())
    assert len(train.natural["verses"]) + len(held_out.natural["verses"]) == 100


def test_a_missing_wordnet_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.noun"):
        builtin_text.read_wordnet(tmp_path)


@pytest.mark.parametrize(
    ("noun", "phrase"), [("dog", "a dog"), ("apple", "an apple"), ("hour", "an hour"), ("university", "a university")]
)
def test_articles_follow_the_sound(noun: str, phrase: str) -> None:
    assert builtin_text.with_article(noun) == phrase


def test_the_corpus_file_holds_plain_json_lines() -> None:
    lines = (model_folder("tiny-bert").parent / "sentences.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == read_sentences()


# --- how the models were made --------------------------------------------------------------------------------------

WORD_PIECES = """
from llm_entropy.builtin import read_sentences
from tools.builtin_models.rows import train_bert_tokenizer

tokenizer = train_bert_tokenizer([row["prompt"] for row in read_sentences()], 400)
print(sorted(tokenizer.get_vocab().items()))
"""


def test_the_word_pieces_are_the_same_in_each_process() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"}
    other = subprocess.run([sys.executable, "-c", WORD_PIECES], env=environment, capture_output=True, check=True).stdout
    own = str(sorted(train_bert_tokenizer([row["prompt"] for row in read_sentences()], 400).get_vocab().items()))
    assert other.decode().strip() == own
    assert "('[MASK]', 4)" in own


@pytest.mark.parametrize("causal", [True, False])
def test_training_rows_hold_no_document_twice_and_begin_with_one(causal: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder("tiny-gpt2" if causal else "tiny-bert"))
    documents = [[100 + number, 2000, 3000 + number] for number in range(500)]
    rows = make_rows(documents, tokenizer, causal, random.Random(0))
    first = 0 if causal else 1
    assert {row[first + 1] for row in rows} == {2000}
    assert max(map(len, rows)) <= MAX_POSITIONS
    starts = [token for row in rows for token in row if 100 <= token < 600]
    assert len(starts) == len(set(starts)) >= 480, "more is lost than what is cut at the ends of rows"
    if not causal:
        assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in rows)


def test_masks_hide_the_share_of_tokens_that_is_asked_for_and_no_special_one() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder("tiny-bert"))
    ids = torch.randint(10, 4000, (50, 40), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    masked, labels = mask_tokens(ids, tokenizer, 0.3, torch.Generator().manual_seed(1))
    hidden = labels != IGNORED
    assert torch.equal(masked == tokenizer.mask_token_id, hidden)
    assert torch.equal(labels[hidden], ids[hidden])
    assert not hidden[:, [0, -1]].any()
    assert 0.25 < hidden[:, 1:-1].float().mean() < 0.35

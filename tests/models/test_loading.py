"""Finding and loading models: local folders, a hub cache, and what is refused before it can be measured wrongly."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, HIDDEN, MAX_POSITIONS, make_model, make_tokenizer, save_model

from llm_entropy.corpus.picking import corpus_of_sentences
from llm_entropy.errors import ReportedError
from llm_entropy.models.attention.interface import READABLE, attention_implementation
from llm_entropy.models.finding import find_model
from llm_entropy.models.loading import load_model
from llm_entropy.runs.identity import model_identity
from llm_entropy.runs.plan import check_tokens, plan_model
from llm_entropy.settings import DataSettings, ModelSettings, Settings
from llm_entropy.store.windows import Task


def find(name: object, **settings: object):
    return find_model("mine", ModelSettings(str(name), **settings))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("bert", tmp_path_factory.mktemp("bert"))


def save_without_limit(family: str, folder: Path) -> Path:
    """Save a model with a tokenizer that would take sentences of any length."""
    save_model(family, folder)
    tokenizer = make_tokenizer(FAMILIES[family].kind)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_folder_is_found_with_its_sizes(gpt2: Path):
    source = find(gpt2)
    assert source.architecture.kind == "causal"
    assert source.shape[:4] == (3, 4, HIDDEN, 331)
    assert source.revision is None
    assert source.key == "mine"
    assert source.name == str(gpt2)


def test_a_folder_in_the_home_directory_is_found(gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(gpt2.parent))
    assert find(f"~/{gpt2.name}").location == str(gpt2)


def test_a_loaded_model_is_float32_in_evaluation_mode_and_frozen(gpt2: Path):
    model = load_model(find(gpt2), precision="32-true", needs_attention=False)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, value in make_model("gpt2").state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


def test_attention_is_eager_only_where_it_cannot_be_read_otherwise(gpt2: Path, tmp_path: Path):
    def attention(source, needs_attention: bool) -> str:
        return attention_implementation(load_model(source, precision="32-true", needs_attention=needs_attention))

    assert attention(find(gpt2), True) == READABLE
    assert attention(find(gpt2), False) == "sdpa"
    for family in ("gemma2", "gpt_neo", "bloom"):
        source = find(save_model(family, tmp_path / family))
        assert {attention(source, needs_attention) for needs_attention in (False, True)} == {"eager"}, family


@pytest.mark.parametrize("written_out", ["gelu_new", "gelu_fast"])
def test_activations_become_one_operation_of_the_same_values(written_out: str, tmp_path: Path):
    save_model("gpt2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "activation_function": written_out}))
    loaded = load_model(find(tmp_path), precision="32-true", needs_attention=False)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(plain.transformer.h[1].mlp.act) is not torch.nn.GELU
    assert all(type(block.mlp.act) is torch.nn.GELU for block in loaded.transformer.h)
    ids = torch.arange(12)[None] + 3
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "dtype", "expected"),
    [
        ("32-true", None, torch.float32),
        ("bf16-true", None, torch.bfloat16),
        ("16-true", None, torch.float16),
        ("32-true", "bfloat16", torch.bfloat16),
        ("bf16-true", "float32", torch.float32),
    ],
)
def test_the_models_own_dtype_goes_before_the_trainers_precision(gpt2: Path, precision: str, dtype, expected):
    model = load_model(find(gpt2, dtype=dtype), precision=precision, needs_attention=False)
    assert model.lm_head.weight.dtype == expected


def test_weights_saved_in_half_precision_are_read_as_float32(tmp_path: Path):
    save_model("gpt2", tmp_path)
    make_model("gpt2").to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_model(find(tmp_path), precision="32-true", needs_attention=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("parent", ["", f"snapshots/{'a' * 40}"])
def test_one_byte_of_the_weights_makes_another_model(parent: str, tmp_path: Path):
    folder = tmp_path / parent / "model"
    folder.mkdir(parents=True)
    plan = plan_model("mine", str(save_model("gpt2", folder)), Settings())
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    names = {model_identity(plan)["content"]}
    for place in random.Random(0).sample(range(len(content)), 64):
        weights.write_bytes(content[:place] + bytes([content[place] ^ 128]) + content[place + 1 :])
        names.add(model_identity(plan)["content"])
    assert len(names) == 65
    weights.write_bytes(content)
    assert model_identity(plan)["content"] in names


# --- the hub -----------------------------------------------------------------------------------------------------


def test_the_commit_of_a_cached_hub_model_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repository = tmp_path / "models--some--model"
    commits = {"main": "a" * 40, "v1": "b" * 40}
    (repository / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(commits.items()):
        (repository / "refs" / name).write_text(commit)
        save_model("gpt2", repository / "snapshots" / commit, seed)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    heads = {}
    for revision, commit in ((None, commits["main"]), ("v1", commits["v1"]), (commits["v1"], commits["v1"])):
        source = find("some/model", revision=revision)
        assert source.revision == commit
        heads[revision] = load_model(source, precision="32-true", needs_attention=False).lm_head.weight
    assert torch.equal(heads["v1"], heads[commits["v1"]])
    assert not torch.equal(heads["v1"], heads[None])
    with pytest.raises(ValueError, match=r"'some/model' at revision 'v2'.*builtin:tiny-gpt2"):
        find("some/model", revision="v2")


def test_no_network_and_no_cache_is_one_error_with_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot load the model 'google-bert/.*local folder.*builtin:") as caught:
        find("google-bert/bert-base-uncased")
    assert "\n" not in str(caught.value)


CODE = """
from pathlib import Path
from transformers import PretrainedConfig
Path({made!r}).touch()
class MineConfig(PretrainedConfig):
    model_type = "mine"
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose configuration is code, which makes the file `made` when it is run."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "with_code"
    folder.mkdir()
    about = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "configuration_mine.py").write_text(CODE.format(made=str(tmp_path / "made")))
    return folder


def test_a_models_own_code_is_not_run_unless_asked(with_code: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="trust_remote_code"):
        find(with_code)
    assert not (tmp_path / "made").exists()
    with pytest.raises(ValueError, match=r"'mine' is no causal or masked language model of transformers"):
        find(with_code, trust_remote_code=True)
    assert (tmp_path / "made").exists()


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["./gone", "/nowhere/at/all", "~/gone"])
def test_a_missing_folder_is_not_taken_for_a_hub_name(folder: str):
    with pytest.raises(ValueError, match=rf"models\b.*no folder {folder}"):
        find(folder)


def test_a_folder_that_hides_a_hub_model_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(
        ValueError, match=r"gpt2 is a folder that holds no config\.json.*hides a hub model of the same name"
    ):
        find("gpt2")


def test_a_folder_that_cannot_hide_a_hub_model_is_told_nothing_of_the_hub(tmp_path: Path):
    with pytest.raises(ValueError, match=rf"models\.mine: {tmp_path} is a folder that holds no config\.json") as caught:
        find(tmp_path)
    assert "hub" not in str(caught.value)


@pytest.mark.parametrize("inside", ["checkpoint-500", f"snapshots/{'a' * 40}"])
def test_the_folder_that_is_meant_is_named(inside: str, tmp_path: Path):
    (tmp_path / inside).mkdir(parents=True)
    (tmp_path / inside / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"its subfolder {inside} does, give {tmp_path / inside}"):
        find(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_a_file_is_no_model(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / file).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / file, f"./{file}", file):
        with pytest.raises(ValueError, match=rf"models\.mine: {name} is a file; give the folder that holds it"):
            find(name)


@pytest.mark.parametrize("name", ["", " ", "https://huggingface.co/gpt2", "x" * 300, "~nobody-of-this-name/model"])
def test_a_name_that_cannot_be_one_is_refused(name: str):
    with pytest.raises(ValueError, match=r"models\.mine: .*a local folder, a hub name, or builtin:") as caught:
        find(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_a_folder_without_a_tokenizer_is_refused_and_none_made_up(family: str, tmp_path: Path):
    make_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"[Tt]okenizer") as caught:
        find(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_weights_is_one_error(gpt2: Path, tmp_path: Path):
    (tmp_path / "config.json").write_bytes((gpt2 / "config.json").read_bytes())
    make_tokenizer("causal").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot load the model .*safetensors") as caught:
        load_model(find(tmp_path), precision="32-true", needs_attention=False)
    assert "\n" not in str(caught.value)


def test_an_encoder_decoder_is_refused_with_the_reason(tmp_path: Path):
    transformers.T5Config(d_model=HIDDEN, num_layers=2, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"models\.mine: .*'t5' cannot be measured: it is an encoder-decoder"):
        find(tmp_path)


def test_a_checkpoint_without_a_language_model_head_is_refused(bert: Path, tmp_path: Path):
    config = transformers.AutoConfig.from_pretrained(bert)
    transformers.BertModel(config).save_pretrained(tmp_path)
    make_tokenizer("masked").save_pretrained(tmp_path)
    source = find(tmp_path)
    with pytest.raises(ValueError, match=r"models\.mine: .* lacks \d+ weights of a masked .*cls\.predictions"):
        load_model(source, precision="32-true", needs_attention=False)


# --- weights that are not used -----------------------------------------------------------------------------------


def load(source):
    return load_model(source, precision="32-true", needs_attention=False)


def save_as(family: str, folder: Path, auto: type, **changes: object) -> Path:
    """Save a model of another class, made of a family's configuration, with the family's tokenizer."""
    save_model(family, folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    auto.from_config(config).save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("dtype", "float23", "cannot load the model .*float23.*Correct its files"),
        ("n_layer", "two", "cannot load the model .*n_layer.*expected int, got str"),
        ("n_head", 0, r"config\.json says num_blocks 3, num_heads 0, .*; expected at least 1 of each"),
        ("n_layer", -1, r"config\.json says num_blocks -1, .*; expected at least 1 of each"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(key: str, value: Any, words: str, gpt2: Path, tmp_path: Path):
    shutil.copytree(gpt2, tmp_path / "model")
    change_config(tmp_path / "model", **{key: value})
    with pytest.raises(ReportedError, match=words):
        find(tmp_path / "model")


@pytest.mark.parametrize(
    ("file", "key", "value", "words"),
    [
        (
            "tokenizer_config.json",
            "eos_token",
            5,
            "cannot load the model .*Special token eos_token .*Correct its files",
        ),
        ("tokenizer_config.json", "tokenizer_class", [], "cannot load the model .*Correct its files"),
        ("tokenizer_config.json", "model_max_length", "long", "says model_max_length 'long'; expected a number"),
        ("tokenizer.json", "added_tokens", None, "cannot load the model .*Correct its files"),
    ],
)
def test_a_tokenizer_whose_files_hold_something_else_is_refused(
    file: str, key: str, value: Any, words: str, gpt2: Path, tmp_path: Path
):
    shutil.copytree(gpt2, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ReportedError, match=words):
        find(tmp_path / "model")


def add_weights(folder: Path, **weights: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **weights}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "key", "had"),
    [("gpt2", "n_layer", 3), ("llama", "num_hidden_layers", 4), ("bert", "num_hidden_layers", 3)],
)
def test_weights_of_more_blocks_than_the_configuration_says_are_refused(
    family: str, key: str, had: int, tmp_path: Path
):
    save_model(family, tmp_path)
    change_config(tmp_path, **{key: had - 1})
    with pytest.raises(ValueError, match=rf"models\.mine: .* weights of {had} blocks, and config\.json says {had - 1}"):
        load(find(tmp_path))


@pytest.mark.parametrize(
    ("family", "auto", "head"),
    [
        ("gpt2", transformers.AutoModelForSequenceClassification, "score.weight"),
        ("gpt2", transformers.AutoModelForTokenClassification, "classifier.bias"),
        ("qwen2", transformers.AutoModelForTokenClassification, "score.bias"),
    ],
)
def test_a_classifier_whose_embeddings_would_pass_for_a_head_is_refused(
    family: str, auto: type, head: str, tmp_path: Path
):
    folder = save_as(family, tmp_path, auto, pad_token_id=0, num_labels=2)
    with pytest.raises(ValueError, match=rf"models\.mine: .* holds the head of a classifier \({head}"):
        load(find(folder))


def test_a_language_model_with_one_more_head_is_measured_and_the_head_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save_model("llama", tmp_path)
    extra = {f"v_head.{number}.weight": torch.zeros(1, HIDDEN) for number in range(4)}
    add_weights(tmp_path, **extra, **{"score.weight": torch.zeros(2, HIDDEN)})
    load(find(tmp_path))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    listed = "score.weight, v_head.0.weight, v_head.1.weight, ..."
    assert record.getMessage() == f"models.mine: {tmp_path}: 5 weights of its files are not used: {listed}"


def test_what_a_language_model_always_does_without_is_not_worth_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save_as("bert", tmp_path / "bert", transformers.AutoModelForPreTraining)
    save_model("gpt_neo", tmp_path / "gpt_neo")
    mask = {"transformer.h.0.attn.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}
    add_weights(tmp_path / "gpt_neo", **mask, **{"transformer.h.0.attn.attention.masked_bias": torch.tensor(-1e9)})
    for family in ("bert", "gpt_neo"):
        load(find(tmp_path / family))
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


def test_weights_of_other_sizes_than_the_configuration_says_are_refused_with_both(tmp_path: Path):
    save_model("gpt2", tmp_path)
    change_config(tmp_path, vocab_size=340)
    sizes = rf"transformer\.wte\.weight is \[331, {HIDDEN}\] in the weights, and \[340, {HIDDEN}\] by config\.json"
    with pytest.raises(ValueError, match=sizes) as caught:
        load(find(tmp_path))
    assert "\n" not in str(caught.value)


def test_embeddings_with_fewer_rows_than_the_configuration_says_are_refused(gpt2: Path):
    source = find(gpt2)
    other = dataclasses.replace(source, shape=source.shape._replace(vocab_size=340))
    with pytest.raises(ValueError, match=r"the embeddings have 331 rows, and config\.json says 340"):
        load(other)


# --- lengths and padding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "limit"), [("gpt2", MAX_POSITIONS), ("bert", MAX_POSITIONS), ("roberta", MAX_POSITIONS - 2)]
)
def test_the_limit_is_what_the_position_table_really_holds(family: str, limit: int, tmp_path: Path):
    source = find(save_without_limit(family, tmp_path))
    assert source.most_tokens == limit
    model = load_model(source, precision="32-true", needs_attention=False)
    longest = torch.full((1, limit), 5)
    assert model(longest).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.cat([longest, longest[:, :1]], dim=1))


def test_a_tokenizers_limit_counts_where_it_is_smaller(gpt2: Path):
    assert find(gpt2).most_tokens == MAX_POSITIONS - 4


def test_a_model_without_a_limit_has_none(tmp_path: Path):
    assert find(save_without_limit("bloom", tmp_path)).most_tokens is None


def test_a_tokenizer_without_a_padding_token_still_pads(gpt2: Path, bert: Path):
    source = find(gpt2)
    assert source.tokenizer.pad_token_id is None
    assert source.pad_token_id == 0
    assert find(bert).pad_token_id == 1


def test_padding_beyond_the_embeddings_is_done_with_a_token_that_the_model_knows(tmp_path: Path):
    save_model("gpt2", tmp_path)
    tokenizer = make_tokenizer("causal")
    tokenizer.add_tokens([f"<{number}>" for number in range(331 - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == 331
    tokenizer.save_pretrained(tmp_path)
    assert find(tmp_path).pad_token_id == 0


def plan_with_unknown_tokens(folder: Path, kind: str, **special: str):
    save_model({"causal": "gpt2", "masked": "bert"}[kind], folder)
    tokenizer = make_tokenizer(kind)
    tokenizer.add_tokens([f"<{number}>" for number in range(400)])
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return plan_model("mine", str(folder), Settings())


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_tokens_beyond_the_embeddings_are_found_before_any_work(kind: str, tmp_path: Path):
    plan = plan_with_unknown_tokens(tmp_path, kind)
    check_tokens(plan, corpus_of_sentences(["the cat", "rain fell"], None, 0), Task(), DataSettings())
    other = corpus_of_sentences(["the cat <399>", "rain fell"], None, 0)
    with pytest.raises(ValueError, match=r"the token '<399>' in sentence 0 the id \d+, and the model's embeddings"):
        check_tokens(plan, other, Task(), DataSettings())


def test_a_mask_token_beyond_the_embeddings_is_refused_when_the_run_is_planned(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the token '<my mask>' the id \d+, and the model's embeddings have 149 rows"):
        plan_with_unknown_tokens(tmp_path, "masked", mask_token="<my mask>")


def test_a_source_is_a_fact(gpt2: Path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        find(gpt2).name = "other"

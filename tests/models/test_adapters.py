"""Kinds of adapters: each gives the logits that peft gives without merging, or is refused before weights are read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from llm_entropy.errors import ReportedError
from llm_entropy.measuring.lens import check_lens
from llm_entropy.models.families import view_model
from llm_entropy.models.finding import find_model
from llm_entropy.models.loading import load_model
from llm_entropy.settings import ModelSettings

peft = pytest.importorskip("peft")

IDS = torch.arange(3, 15)[None]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PARTS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models: the embeddings of gpt2 are tied, and its layers have a bias."""
    return {family: save_model(family, tmp_path_factory.mktemp(family)) for family in ("llama", "gpt2")}


@pytest.fixture(scope="module")
def plain(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(make(bases["llama"]), lora(), tmp_path_factory.mktemp("plain"))


def lora(**options: Any):
    return peft.LoraConfig(r=2, **{"target_modules": PARTS, **options})


def make(base: Path, auto: Any = AutoModelForCausalLM, **sizes: int):
    return auto.from_config(AutoConfig.from_pretrained(base, **sizes))


def save_adapter(model: torch.nn.Module, config: Any, folder: Path, **options: Any) -> Path:
    """Save an adapter that has learnt something."""
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    adapted.save_pretrained(folder, **options)
    return folder


def find(base: Path, adapter: Path):
    return find_model("mine", ModelSettings(str(base), adapter=str(adapter)))


def load(base: Path, adapter: Path):
    return load_model(find(base, adapter), precision="32-true", needs_attention=False)


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of tied embeddings, which are the point
@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param("llama", lora(modules_to_save=["lm_head", "embed_tokens"]), id="modules to save"),
        pytest.param("gpt2", lora(target_modules=["c_attn"], modules_to_save=["lm_head"]), id="tied head to save"),
        pytest.param("llama", lora(target_modules=["embed_tokens", "lm_head"]), id="embeddings"),
        pytest.param("gpt2", lora(target_modules=["wte"]), id="tied embeddings"),
        pytest.param("gpt2", lora(target_modules=["lm_head"]), id="tied head"),
        pytest.param("llama", lora(use_dora=True), id="DoRA"),
        pytest.param("llama", lora(use_rslora=True), id="rsLoRA"),
        pytest.param("llama", lora(target_modules=[], target_parameters=["q_proj.weight"]), id="parameters"),
        pytest.param("gpt2", lora(target_modules=["c_attn"], bias="all"), id="all biases"),
        pytest.param(
            "llama", lora(target_modules=[*PARTS, "lm_head"], lora_bias=True), id="biases of layers without one"
        ),
        pytest.param("llama", lora(rank_pattern={"q_proj": 5}, alpha_pattern={"down_proj": 3}), id="several ranks"),
        pytest.param("gpt2", lora(target_modules=["c_attn"], trainable_token_indices={"wte": [3, 5]}), id="tokens"),
        pytest.param(
            "llama", peft.IA3Config(target_modules=["k_proj", *PARTS[1:]], feedforward_modules=PARTS[1:]), id="IA3"
        ),
        pytest.param("llama", peft.VeraConfig(r=4, target_modules=["q_proj", "up_proj"]), id="VeRA"),
        pytest.param("llama", peft.ShiraConfig(r=2, target_modules=["q_proj"]), id="SHiRA"),
    ],
)
def test_an_adapter_gives_the_logits_of_the_model_that_was_trained(
    family: str, config: Any, bases: dict[str, Path], tmp_path: Path
):
    base = bases[family]
    folder = save_adapter(AutoModelForCausalLM.from_pretrained(base), config, tmp_path)
    trained = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    merged = load(base, folder)
    with torch.inference_mode():
        expected, seen = trained(IDS).logits, merged(IDS).logits
        with trained.disable_adapter():
            plain = trained(IDS).logits
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-4)
    assert (seen - plain).abs().max() > 0.01
    check_lens(view_model(merged), family)


def resized(base: Path):
    model = make(base)
    model.resize_token_embeddings(335, mean_resizing=False)
    return model


@pytest.mark.parametrize(
    ("family", "made", "config", "message"),
    [
        ("llama", lambda base: make(base, hidden_size=64), lora(), r"q_proj\.lora_A\.weight is \[2, 64\] .* \[2, 32\]"),
        ("llama", lambda base: make(base, num_hidden_layers=2), lora(), r"0 of its .* 8 places .*layers\.2"),
        ("llama", lambda base: make(base, num_hidden_layers=6), lora(), r"8 of its .* 0 places .*layers\.4"),
        ("gpt2", lambda base: make(base), lora(), "Target modules .* not found"),
        ("llama", lambda base: make(base, AutoModel), lora(), r"16 of its weights have no place"),
        ("llama", resized, lora(), "was trained with 335 tokens, and .* has 331; in Python, resize"),
        ("llama", resized, lora(target_modules=["embed_tokens"]), "335 tokens, and .* has 331"),
        ("llama", resized, lora(trainable_token_indices=[333, 334]), "at least 335 tokens, and .* has 331"),
        (
            "llama",
            lambda base: make(base, AutoModelForSequenceClassification),
            lora(task_type="SEQ_CLS"),
            "was trained for SEQ_CLS, and not as a language model",
        ),
        (
            "llama",
            lambda base: make(base, AutoModelForSequenceClassification),
            lora(),
            "was trained for LlamaForSequenceClassification",
        ),
        ("llama", make, lora(layer_replication=[(0, 2), (1, 3)]), "it repeats blocks of the model"),
        ("llama", make, lora(alora_invocation_tokens=[5], task_type="CAUSAL_LM"), "only behind certain tokens"),
        ("llama", make, peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PREFIX_TUNING adds"),
        ("llama", make, peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PROMPT_TUNING adds"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_weights_are_read(
    family: str, made: Any, config: Any, message: str, bases: dict[str, Path], tmp_path: Path
):
    model = made(bases["llama"])
    folder = save_adapter(model, config, tmp_path, save_embedding_layers=model.config.vocab_size > 331)
    with pytest.raises(ReportedError, match=rf"models\.mine\.adapter: .*{message}"):
        find(bases[family], folder)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 64}, r"q_proj\.shira_weight is \[\d+\] in the adapter"),
        ({"num_hidden_layers": 6}, "4 of its weights have no place"),
    ],
)
def test_a_kind_that_is_made_from_numbers_is_refused_all_the_same(
    sizes: dict[str, int], message: str, bases: dict[str, Path], tmp_path: Path
):
    config = peft.ShiraConfig(r=2, target_modules=["q_proj"])
    folder = save_adapter(make(bases["llama"], **sizes), config, tmp_path)
    with pytest.raises(ReportedError, match=rf"models\.mine\.adapter: .*another model .*{message}"):
        load(bases["llama"], folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "NEWEST"}, r"peft \S+ does not know the kind NEWEST; install a newer peft"),
        ({"peft_type": "XLORA"}, "XLORA computes something for each text"),
        ({"target_modules": "q_proj", "layers_to_transform": [1]}, r"adapter_config\.json is not what peft writes \("),
        ({"modules_to_save": ["lm_head"]}, r"it has no .*lm_head\.weight"),
    ],
)
def test_an_adapter_is_refused_by_its_configuration(
    config: dict[str, Any], message: str, bases: dict[str, Path], plain: Path, tmp_path: Path
):
    (tmp_path / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes())
    (tmp_path / CONFIG).write_text(json.dumps(json.loads((plain / CONFIG).read_text()) | config))
    with pytest.raises(ReportedError, match=message):
        find(bases["llama"], tmp_path)


def test_an_adapter_whose_weights_are_cut_off_is_refused(bases: dict[str, Path], plain: Path, tmp_path: Path):
    (tmp_path / CONFIG).write_bytes((plain / CONFIG).read_bytes())
    for kept in (0, 100):
        (tmp_path / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes()[:kept])
        with pytest.raises(ReportedError, match=r"models\.mine\.adapter: .*weights cannot be read"):
            find(bases["llama"], tmp_path)


def test_an_adapter_of_the_former_format_is_read(bases: dict[str, Path], plain: Path, tmp_path: Path):
    (tmp_path / CONFIG).write_bytes((plain / CONFIG).read_bytes())
    torch.save(load_file(plain / WEIGHTS), tmp_path / "adapter_model.bin")
    former, latest = (load(bases["llama"], folder).state_dict() for folder in (tmp_path, plain))
    assert all(torch.equal(former[name], weight) for name, weight in latest.items())


def test_a_kind_that_peft_cannot_merge_is_refused_with_its_reason(bases: dict[str, Path], plain: Path, tmp_path: Path):
    weights = load_file(plain / WEIGHTS)
    (tmp_path / CONFIG).write_bytes((plain / CONFIG).read_bytes())
    save_file({name: weight * float("nan") for name, weight in weights.items()}, tmp_path / WEIGHTS)
    with pytest.raises(ReportedError, match=r"cannot merge it into .*NaNs detected.*; give an adapter that can"):
        load(bases["llama"], tmp_path)


def test_tokens_that_the_models_tokenizer_lacks_and_unknown_settings_are_warned_of(
    bases: dict[str, Path], plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes())
    about = json.loads((plain / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(about | {"future": True, "another": None}))
    tokenizer = json.loads((bases["llama"] / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"content": "<call>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with caplog.at_level(logging.WARNING, "llm_entropy"):
        find(bases["llama"], plain)
        assert not caplog.records
        find(bases["llama"], tmp_path)
    assert "its tokenizer has 1 tokens that the model's has not (<call>)" in caplog.text
    assert "ignores its future; install a newer peft" in caplog.text

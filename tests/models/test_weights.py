"""How people keep weights: adapters beside a model, GGUF files, and the type that a checkpoint has."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import make_model, save_model
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llm_entropy.builtin import model_folder
from llm_entropy.errors import ReportedError
from llm_entropy.measuring.lens import check_lens
from llm_entropy.models.families import view_model
from llm_entropy.models.finding import find_model
from llm_entropy.models.loading import load_model
from llm_entropy.models.quantised import restore_head_
from llm_entropy.runs.identity import model_identity
from llm_entropy.runs.plan import plan_model
from llm_entropy.settings import ModelSettings, Settings

IDS = torch.arange(3, 15)[None]


def find(name: object, **settings: object):
    return find_model("mine", ModelSettings(str(name), **settings))


def logits(source) -> torch.Tensor:
    model = load_model(source, precision="32-true", needs_attention=False)
    with torch.inference_mode():
        return model(IDS).logits


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("llama"))


# --- adapters ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zeros at first: an adapter that has learnt nothing
            torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged_into_its_base(llama: Path, adapter: Path):
    import peft

    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), adapter).eval()
    with torch.inference_mode():
        expected = adapted(IDS).logits
    seen = logits(find(llama, adapter=str(adapter)))
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
    assert (seen - logits(find(llama))).abs().max() > 0.01


def test_an_adapter_is_merged_in_float32_before_the_weights_are_rounded(llama: Path, adapter: Path):
    source = find(llama, adapter=str(adapter), dtype="bfloat16")
    rounded = load_model(source, precision="32-true", needs_attention=False)
    exact = load_model(find(llama, adapter=str(adapter)), precision="32-true", needs_attention=False)
    weight = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(rounded.state_dict()[weight], exact.state_dict()[weight].to(torch.bfloat16))


def test_an_adapter_is_part_of_what_a_run_is(llama: Path, adapter: Path):
    plain = model_identity(plan_model("mine", ModelSettings(str(llama)), Settings()))
    adapted = model_identity(plan_model("mine", ModelSettings(str(llama), adapter=str(adapter)), Settings()))
    assert "adapter" not in plain  # identities of runs from before there were any stay what they were
    assert {name: value for name, value in adapted.items() if name != "adapter"} == plain
    assert len(adapted["adapter"]) == 32


def test_what_is_no_adapter_is_refused_before_weights_are_read(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ReportedError, match=r"models\.mine\.adapter: .* holds no adapter; expected adapter_config"):
        find(llama, adapter=str(llama))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for content, message in (('{"peft_type": "PREFIX_TUNING"}', "PREFIX_TUNING adds tokens"), ("{}", "its peft_type")):
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(ReportedError, match=message):
            find(llama, adapter=str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ReportedError, match=r"pip install 'llm-entropy\[peft\]'"):
        find(llama, adapter=str(tmp_path))


# --- GGUF --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_with_words() -> LlamaForCausalLM:
    """Random weights for the vocabulary of the built-in GPT-2, that half precision holds exactly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).half().float().eval()


@pytest.fixture(scope="module")
def gguf_model(llama_with_words: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as llama.cpp keeps it."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    config = llama_with_words.config
    path = tmp_path_factory.mktemp("gguf") / "tiny.F16.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads((model_folder("tiny-gpt2") / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].get))
    writer.add_token_types([1] * len(vocabulary["vocab"]))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, weight in tensors_of(llama_with_words).items():
        writer.add_tensor(name, weight.numpy().astype(np.float16 if weight.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """llama.cpp's names of a Llama's weights; it keeps the two halves of what is rotated side by side."""
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    found = {}
    for name, weight in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module in whole:
            found[f"{whole[module]}.weight"] = weight
            continue
        _, _, block, part = module.split(".", 3)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            halves = weight.unflatten(0, (-1, 2, model.config.head_dim // 2))
            weight = halves.transpose(1, 2).flatten(0, 2).contiguous()
        found[f"blk.{block}.{parts[part]}.weight"] = weight
    return found


def test_a_gguf_file_is_read_as_the_model_that_it_was_made_from(
    gguf_model: Path, llama_with_words: LlamaForCausalLM, capfd: pytest.CaptureFixture[str]
):
    source = find(gguf_model)
    assert source.shape[:4] == (3, 4, 32, 4096)
    assert source.most_tokens == 64
    text = "The capital of Spain is Madrid."
    assert source.tokenizer(text).input_ids == find("builtin:tiny-gpt2").tokenizer(text).input_ids
    with torch.inference_mode():
        expected = llama_with_words(IDS).logits
    torch.testing.assert_close(logits(source), expected, rtol=1e-5, atol=1e-5)
    assert capfd.readouterr().err == "", "the loader's own bar"
    assert not tqdm(disable=False, file=io.StringIO()).disable, "bars are as they were"
    in_folder = find(gguf_model.parent, gguf_file=gguf_model.name)
    torch.testing.assert_close(logits(in_folder), expected, rtol=1e-5, atol=1e-5)


def test_the_bytes_of_the_gguf_file_alone_make_the_model_what_it_is(gguf_model: Path, tmp_path: Path):
    copy = tmp_path / gguf_model.name
    copy.write_bytes(gguf_model.read_bytes())
    (tmp_path / "another.bin").write_bytes(b"a")
    first, second = (
        model_identity(plan_model("mine", ModelSettings(str(path)), Settings())) for path in (gguf_model, copy)
    )
    assert first["content"] == second["content"]
    changed = bytearray(copy.read_bytes())
    changed[-1] ^= 1
    copy.write_bytes(changed)
    assert model_identity(plan_model("mine", ModelSettings(str(copy)), Settings()))["content"] != first["content"]


def test_a_gguf_file_that_is_missing_or_broken_is_one_error(gguf_model: Path, tmp_path: Path):
    with pytest.raises(ReportedError, match=r"models\.mine\.gguf_file: there is no file .*other\.gguf"):
        find(gguf_model.parent, gguf_file="other.gguf")
    (tmp_path / "cut.gguf").write_bytes(gguf_model.read_bytes()[:200])
    with pytest.raises(ReportedError, match=r"cannot load the model .*cut\.gguf"):
        find(tmp_path / "cut.gguf")


def test_without_the_packages_a_gguf_file_is_refused(gguf_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ReportedError, match=r"the package gguf and accelerate; run: pip install 'llm-entropy\[gguf\]'"):
        find(gguf_model)


# --- types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_is_the_type_of_the_checkpoint(dtype: torch.dtype, tmp_path: Path):
    save_model("gpt2", tmp_path)
    make_model("gpt2").to(dtype).save_pretrained(tmp_path)
    model = load_model(find(tmp_path, dtype="auto"), precision="16-true", needs_attention=False)
    assert model.lm_head.weight.dtype == dtype


def test_a_stream_that_half_precision_cannot_hold_is_refused():
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 1e6
    message = r"LlamaForCausalLM: model\.layers\.1 .* gives numbers that are not finite in float16; give dtype bfloat16"
    with pytest.raises(ReportedError, match=message):
        view_model(model.half().eval())


class Quantised(torch.nn.Linear):
    """A linear layer that keeps a weight in 8 bits and a scale for each row, as the libraries do."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.scales = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.bias = linear.bias
        self.weight = torch.nn.Parameter((linear.weight / self.scales).round().to(torch.int8), requires_grad=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(values, self.weight * self.scales, self.bias)


@pytest.mark.parametrize("family", ["llama", "bert"])  # without and with a bias
def test_a_quantised_decoder_becomes_the_numbers_that_it_multiplies_with(family: str):
    model = make_model(family).eval()
    assert not restore_head_(model, torch.float32)
    model.set_output_embeddings(Quantised(model.get_output_embeddings()))
    with torch.inference_mode():
        expected = model(IDS).logits
    assert restore_head_(model, torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    check_lens(view_model(model), family)


def test_an_adapter_is_not_merged_into_quantised_weights(
    llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("llm_entropy.models.finding.method_of", lambda config: "bitsandbytes")
    with pytest.raises(
        ReportedError, match=r"is quantised \(bitsandbytes\), and an adapter is merged in full precision"
    ):
        find(llama, adapter=str(adapter))

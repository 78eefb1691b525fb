"""Checkpoints in 8 and 4 bits: measured, standard and steered, as the numbers that they are dequantised to."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SENTENCES, make_model, make_tokenizer, save_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llm_entropy import measure, open_model
from llm_entropy.errors import ReportedError
from llm_entropy.models.finding import find_model
from llm_entropy.models.quantised import PACKAGES
from llm_entropy.settings import ModelSettings

IDS = torch.arange(3, 15)[None]


def linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def compressed(folder: Path, bits: int, ignore: list[str]) -> PreTrainedModel:
    """Save a Llama as compressed-tensors packs it, and return it with the numbers that it is rounded to."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    weights = QuantizationArgs(num_bits=bits, strategy="channel", symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    model, twin = make_model("llama"), make_model("llama")
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=ignore, format="pack-quantized")
    apply_quantization_config(model, config, show_progress=False)
    most = 2 ** (bits - 1) - 1
    for (_, packed), (_, plain) in zip(linears(model), linears(twin), strict=True):
        if hasattr(packed, "weight_scale"):
            packed.weight_scale.data = plain.weight.detach().abs().amax(dim=1, keepdim=True) / most
            plain.weight.data = (plain.weight / packed.weight_scale).round() * packed.weight_scale
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    return twin


def by_transformers(
    folder: Path, model: PreTrainedModel, config: Any, numbers: Callable[[Any], Tensor]
) -> PreTrainedModel:
    """Save a model that transformers quantises, and return it with the numbers that `numbers` makes of its weights."""
    model.save_pretrained(folder / "whole")
    quantised = AutoModelForCausalLM.from_pretrained(folder / "whole", quantization_config=config)
    quantised.save_pretrained(folder)
    for (_, packed), (_, plain) in zip(linears(quantised), linears(model), strict=True):
        if type(packed.weight) is not nn.Parameter:
            plain.weight.data = numbers(packed.weight).detach()
    return model


def by_torchao(folder: Path) -> PreTrainedModel:
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return by_transformers(
        folder, make_model("llama"), TorchAoConfig(Int8WeightOnlyConfig()), lambda weight: weight.dequantize()
    )


def by_bitsandbytes(folder: Path) -> PreTrainedModel:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=331, max_position_embeddings=64, **sizes)).eval()
    for weight in model.parameters():  # sizes that fill its blocks of 64 numbers
        nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.2)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return by_transformers(
        folder, model, config, lambda weight: bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    )


WAYS: dict[str, tuple[Callable[[Path], PreTrainedModel], float]] = {
    "compressed-tensors, 8 bits": (lambda folder: compressed(folder, 8, ["lm_head"]), 1e-4),
    "compressed-tensors, 4 bits and the decoder": (lambda folder: compressed(folder, 4, []), 1e-4),
    "torchao, 8 bits": (by_torchao, 1e-4),
    "bitsandbytes, 4 bits": (by_bitsandbytes, 2e-2),  # on some processors its kernel rounds to bfloat16
}
"""How a checkpoint is made, and how far it may be from its twin, as a share."""


@pytest.mark.parametrize("way", WAYS)
def test_a_quantised_checkpoint_is_measured_as_its_dequantised_twin_computes(
    way: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, tolerance = WAYS[way]
    twin, tokenizer = make(tmp_path), make_tokenizer("causal")
    tokenizer.save_pretrained(tmp_path)
    vector = torch.linspace(-1.0, 1.5, twin.config.hidden_size)
    capfd.readouterr()
    lm = open_model(str(tmp_path), name="mine")
    frame = measure(lm, SENTENCES[2:4], metrics="entropy", positions="last", conditions={"up": vector})
    assert "it/s]" not in capfd.readouterr().err, "bars of a library"
    for condition in ("standard", "up"):
        handles = [
            block.register_forward_hook(lambda module, args, output: output + vector)
            for block in (twin.model.layers if condition == "up" else ())
        ]
        for number in (0, 1):
            ids = torch.tensor([tokenizer(SENTENCES[2 + number]).input_ids])
            with torch.inference_mode():
                expected = torch.distributions.Categorical(logits=twin(ids).logits[0, -1]).entropy()
            own = frame[(frame["condition"] == condition) & (frame["sentence_id"] == number)]
            found = own[own["metric"] == "entropy"]["value"].to_numpy()[-1]
            assert found == pytest.approx(float(expected), rel=tolerance), f"{condition} {number}"
        for handle in handles:
            handle.remove()
    with torch.inference_mode():
        found, expected = lm.model(IDS).logits, twin(IDS).logits
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def without(package: str) -> Callable[..., Any]:
    """Return what finds every package but one."""
    find_spec = importlib.util.find_spec
    return lambda name, *more: None if name == package else find_spec(name, *more)


def test_a_quantised_checkpoint_names_the_package_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model("llama", tmp_path)
    path = folder / "config.json"
    for method, package in PACKAGES.items():
        about = {"quant_method": method, "format": "pack-quantized", "load_in_8bit": True, "quant_type": "int8"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": about}))
        with monkeypatch.context() as patch:
            patch.setattr("importlib.util.find_spec", without(package))
            message = rf"quantised by {method}, .* the package {package}; run: .*llm-entropy\[quantized\]"
            with pytest.raises(ReportedError, match=message):
                find_model("mine", ModelSettings(str(folder)))

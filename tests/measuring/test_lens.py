"""Lenses: the proof at load, what a wrong row gives away, and the tuned lens on disk."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import FAMILIES, HIDDEN, make_model

from llm_entropy.errors import ReportedError
from llm_entropy.measuring.lens import Lens, check_lens, read_translators
from llm_entropy.models.families import ModelView, view_model

NUM_BLOCKS = FAMILIES["gpt2"].num_blocks
LAYERS = range(NUM_BLOCKS + 1)


def states_for(family: str) -> torch.Tensor:
    """Return states of the residual stream, [slot, record, hidden], a slot for each of LAYERS."""
    shape = (FAMILIES[family].num_blocks + 1, 5, HIDDEN)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_of_every_family_gives_the_models_own_logits(family: str):
    assert check_lens(view_model(make_model(family)), family).error < 1e-4


def without_steps(view: ModelView, *numbers: int) -> ModelView:
    """Return a view whose head forgets some of its steps."""
    return dataclasses.replace(view, head=tuple(step for at, step in enumerate(view.head) if at not in numbers))


WRONG_VIEWS: dict[str, tuple[str, Callable[[ModelView], ModelView]]] = {
    "no final norm": ("gpt2", lambda view: dataclasses.replace(view, final_norm=None)),
    "no final norm in masked models": ("modernbert", lambda view: dataclasses.replace(view, final_norm=None)),
    "another norm": ("llama", lambda view: dataclasses.replace(view, final_norm=view.blocks[0].input_layernorm)),
    "no softcap": ("gemma2", lambda view: dataclasses.replace(view, softcap=None)),
    "no scale": ("cohere", lambda view: dataclasses.replace(view, scale=1.0)),
    "the inverse scale": ("granite", lambda view: dataclasses.replace(view, scale=1.0 / view.scale)),
    "no bias": ("phi", lambda view: dataclasses.replace(view, bias=None)),
    "no head": ("bert", lambda view: without_steps(view, 0)),
    "half a head": ("distilbert", lambda view: without_steps(view, 1)),
    "no function between modules": ("roberta", lambda view: without_steps(view, 1)),
    "a head that changes the width left out": ("electra", lambda view: without_steps(view, 0)),
    "no projection": ("opt_projected", lambda view: without_steps(view, 0)),
    "blocks shuffled": ("gpt2", lambda view: dataclasses.replace(view, blocks=view.blocks[::-1])),
}


@pytest.mark.parametrize("wrong", WRONG_VIEWS)
def test_a_wrong_view_is_refused_with_what_was_found(wrong: str):
    family, change = WRONG_VIEWS[wrong]
    with pytest.raises(ReportedError, match=r"models\.mine: .*found by tracing: \d blocks from "):
        check_lens(change(view_model(make_model(family))), "models.mine: folder")


def test_weights_that_are_not_finite_are_refused():
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = torch.nan
    with pytest.raises(ReportedError, match=r"transformer\.ln_f \(LayerNorm\) gives numbers that are not finite"):
        view_model(model)


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROVED = ("gpt2", "llama", "gemma2", "granite", "cohere", "bert")
LARGEST_LOGIT = 40.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", PROVED)
def test_a_scale_that_is_off_by_one_percent_is_refused_in_every_precision(family: str, dtype: torch.dtype):
    for seed in range(4):
        view = view_model(make_model(family, seed).to(dtype))
        assert check_lens(view, "right").error <= 2 * torch.finfo(dtype).eps * LARGEST_LOGIT
        for wrong in (0.99, 1.01):
            with pytest.raises(ValueError, match=r"mine: .* misses the model's own logits by"):
                check_lens(dataclasses.replace(view, scale=wrong * view.scale), "mine")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cap", [4.0, 30.0])
def test_a_softcap_that_is_left_out_is_refused_where_it_hardly_bends(cap: float, dtype: torch.dtype):
    model = make_model("gemma2").to(dtype)
    model.config.final_logit_softcapping = cap
    view = view_model(model)
    check_lens(view, "right")
    with pytest.raises(ValueError, match="misses the model's own logits"):
        check_lens(dataclasses.replace(view, softcap=None), "mine")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["phi", "bert"])
def test_a_small_bias_that_is_left_out_is_refused(family: str, dtype: torch.dtype):
    view = view_model(make_model(family).to(dtype))
    with torch.no_grad():
        view.decoder.bias.mul_(0.2)  # 0.06 where the logits are about 3
    check_lens(view, "right")
    with pytest.raises(ValueError, match="misses the model's own logits"):
        check_lens(dataclasses.replace(view, bias=None), "mine")


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_have_an_offset_in_common_are_proved_as_well(dtype: torch.dtype):
    """As those of GPT-2, around -100 in many places."""
    view = view_model(make_model("phi").to(dtype))
    with torch.no_grad():
        view.decoder.bias.sub_(100.0)
    check_lens(view, "right")
    with pytest.raises(ValueError, match="misses the model's own logits"):
        check_lens(dataclasses.replace(view, scale=0.99), "mine")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("least", ["minus infinity", "the least number"])
def test_masked_tokens_are_compared_as_such(least: str, dtype: torch.dtype):
    view = view_model(make_model("phi").to(dtype))
    with torch.no_grad():
        view.decoder.bias[-30:] = -torch.inf if least == "minus infinity" else torch.finfo(dtype).min
    assert check_lens(view, "right").error < 1.0
    with pytest.raises(ValueError, match="misses the model's own logits"):
        check_lens(dataclasses.replace(view, scale=0.99), "mine")
    with pytest.raises(ValueError, match="other tokens are masked"):
        check_lens(dataclasses.replace(view, bias=None), "mine")


def test_the_raw_lens_leaves_the_final_norm_out():
    view = view_model(make_model("gpt2"))
    states = states_for("gpt2")
    raw, logit = Lens(view, "raw").project(states, LAYERS), Lens(view).project(states, LAYERS)
    assert torch.equal(raw, states)
    torch.testing.assert_close(logit, view.model.transformer.ln_f(states), rtol=0, atol=0)
    assert (raw - logit).abs().max() > 0.1


def test_the_raw_lens_is_the_logit_lens_where_there_is_no_final_norm():
    view = view_model(make_model("bert"))
    states = states_for("bert")
    assert torch.equal(Lens(view, "raw").project(states, LAYERS), Lens(view).project(states, LAYERS))


# --- the tuned lens ----------------------------------------------------------------------------------------------


def parameters(num_blocks: int = NUM_BLOCKS, width: int = HIDDEN) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    sizes = {"weight": (width, width), "bias": (width,)}
    return {
        f"{layer}.{name}": torch.randn(size, generator=generator)
        for layer in range(num_blocks)
        for name, size in sizes.items()
    }


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_tuned_lens_moves_every_layer_but_the_last(suffix: str, tmp_path: Path):
    maps = parameters()
    if suffix == "pt":
        torch.save(maps, tmp_path / "params.pt")
    else:
        save_file(maps, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"d_model": HIDDEN, "num_hidden_layers": NUM_BLOCKS}))
    view = view_model(make_model("gpt2"))
    states = states_for("gpt2")
    seen = Lens(view, "tuned", tmp_path).project(states, LAYERS)
    for layer in range(NUM_BLOCKS):
        moved = states[layer] + states[layer] @ maps[f"{layer}.weight"].T + maps[f"{layer}.bias"]
        torch.testing.assert_close(seen[layer], view.model.transformer.ln_f(moved), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen[-1], Lens(view).project(states, LAYERS)[-1], rtol=0, atol=0)


def test_other_entries_of_a_tuned_lens_are_left_alone(tmp_path: Path):
    torch.save({**parameters(), "unembed.weight": torch.zeros(3, HIDDEN)}, tmp_path / "params.pt")
    assert len(read_translators(tmp_path, NUM_BLOCKS, HIDDEN)) == NUM_BLOCKS


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        (parameters(width=HIDDEN + 1), r"expected 3 maps of width 32 .*0\.bias \[33\]"),
        (parameters(NUM_BLOCKS - 1), r"expected 3 maps .*2\.bias \[32\]"),
        (parameters(NUM_BLOCKS + 1), r"expected 3 maps .*3\.bias \[32\]"),
        ({}, r"expected 3 maps"),
    ],
)
def test_a_tuned_lens_that_does_not_fit_is_refused(maps: dict[str, torch.Tensor], words: str, tmp_path: Path):
    torch.save(maps, tmp_path / "params.pt")
    with pytest.raises(ValueError, match=rf"analysis\.lens_path: .*{words}"):
        read_translators(tmp_path, NUM_BLOCKS, HIDDEN)


@pytest.mark.parametrize(("key", "value"), [("d_model", 33), ("num_hidden_layers", 12)])
def test_a_tuned_lens_of_another_model_is_refused_by_its_configuration(key: str, value: int, tmp_path: Path):
    torch.save(parameters(), tmp_path / "params.pt")
    (tmp_path / "config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match=rf"analysis\.lens_path: .*config\.json has {key} {value}; the model has"):
        read_translators(tmp_path, NUM_BLOCKS, HIDDEN)


def test_a_missing_tuned_lens_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"analysis\.lens_path: .*neither params\.safetensors nor params\.pt"):
        read_translators(tmp_path / "gone", NUM_BLOCKS, HIDDEN)


class TouchWhenLoaded:
    """What a pickle must never be allowed to do: loading it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", ["code", "rubbish", "a list"])
def test_a_tuned_lens_that_is_no_state_dict_is_refused_and_never_run(content: str, tmp_path: Path):
    made = tmp_path / "made"
    if content == "a list":
        torch.save([torch.zeros(2)], tmp_path / "params.pt")
    else:
        data = pickle.dumps(TouchWhenLoaded(made), protocol=2) if content == "code" else b"rubbish"
        (tmp_path / "params.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"analysis\.lens_path: .*params\.pt") as caught:
        read_translators(tmp_path, NUM_BLOCKS, HIDDEN)
    assert "\n" not in str(caught.value)
    assert not made.exists()


def test_a_broken_safetensors_file_is_refused(tmp_path: Path):
    (tmp_path / "params.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"analysis\.lens_path: .*params\.safetensors"):
        read_translators(tmp_path, NUM_BLOCKS, HIDDEN)

"""Finding a model's parts by tracing, and the proofs: each is seen to fail on a model that is broken on purpose."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from tiny_models import FAMILIES, HIDDEN, make_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from llm_entropy.errors import ReportedError
from llm_entropy.measuring.lens import check_lens
from llm_entropy.models.attention import check_attention
from llm_entropy.models.attention.interface import READABLE
from llm_entropy.models.families import find_architecture, outline_model, view_model
from llm_entropy.models.proofs import check_parts, check_size, check_steering


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_every_family_prove_themselves(family: str):
    view = view_model(make_model(family))
    check_parts(view, family)
    assert len(view.blocks) == FAMILIES[family].num_blocks
    assert view.kind == FAMILIES[family].kind


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "granite", "bert", "albert"])
def test_half_precision_proves_itself_too(family: str, dtype: torch.dtype):
    check_parts(view_model(make_model(family).to(dtype)), family)


# --- a family that nobody knew -----------------------------------------------------------------------------------


class MineConfig(PretrainedConfig):
    """Of a family of our own, with names of its own."""

    model_type = "mine_of_a_test"

    def __init__(self, broken: str = "", logit_mult: float = 0.8, **options: Any):
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.vocab_size = HIDDEN, 3, 4, 61
        self.max_position_embeddings, self.broken, self.logit_mult = 40, broken, logit_mult
        super().__init__(**options)


class Mixer(nn.Module):
    """A block: every token takes the mean of those before it; what is broken in it is said by the configuration."""

    def __init__(self, broken: str):
        super().__init__()
        self.mix, self.norm, self.broken = nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), broken

    def forward(self, stream: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        stream = stream[0] if isinstance(stream, tuple) else stream
        shown = self.norm(stream)
        if self.broken == "noise":
            shown = shown + torch.randn_like(shown)
        shown = shown * len(shown) if self.broken == "batch" else shown * mask[..., None]
        if self.broken == "future":
            mean = shown.sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
        else:
            mean = shown.cumsum(dim=1) / mask.cumsum(dim=1)[..., None]
        return (stream + torch.tanh(self.mix(mean)),)


class Both(nn.Module):
    """A step of a head that reads two layers."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one + 0.5 * other


class MineModel(PreTrainedModel):
    """A language model with a head, of our own."""

    config_class = MineConfig
    base_model_prefix = "body"

    def __init__(self, config: MineConfig):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, HIDDEN)
        self.stack = nn.ModuleList(Mixer(config.broken) for _ in range(3))
        self.last = nn.LayerNorm(HIDDEN)
        self.out = nn.Linear(HIDDEN, config.vocab_size)
        self.both, self.turn = Both(), nn.Parameter(torch.empty(HIDDEN, HIDDEN))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.out

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> CausalLMOutput:
        broken = self.config.broken
        stream = first = self.words(input_ids)
        for number, block in enumerate(self.stack):
            (after,) = block((stream,) if broken == "inside" else stream, attention_mask)
            stream = after * 1.5 if broken == "between" and number else after
            if broken == "twice":
                (stream,) = block(stream, attention_mask)
            if broken == "added":
                stream = after + 0.1
        if broken == "behind":
            stream = torch.sin(stream)
        stream = {"mixed": self.both, "beside": lambda one, other: self.both(other, one)}.get(broken, _one)(
            stream, first
        )
        states = self.last(stream)
        states = states @ self.turn if broken == "turned" else states
        logits = self.out(states) * self.config.logit_mult
        return CausalLMOutput(logits=logits.exp() if broken == "logits" else logits)


def _one(stream: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    return stream


class OddConfig(MineConfig):
    """Of a family whose modules lie in an unusual way."""

    model_type = "odd_of_a_test"

    def __init__(self, layout: str = "stages", warmth: float = 1.0, **options: Any):
        self.layout, self.warmth = layout, warmth
        super().__init__(**options)


class Handed(NamedTuple):
    """What a block of a family returns."""

    note: str
    stream: torch.Tensor


@dataclasses.dataclass
class Kept:
    """What a block of another family returns."""

    note: str
    stream: torch.Tensor


class OddBlock(Mixer):
    """A block that returns the stream behind something else."""

    def __init__(self, layout: str):
        super().__init__("")
        self.returned = {"stages": Kept, "names": Handed, "sequence": dict}[layout]

    def forward(self, stream: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.returned(note="done", stream=super().forward(stream, mask)[0])


class Head(nn.Module):
    """A head with a norm of its own, and a decoder with a bias."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.before, self.decode = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, vocab_size)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return self.decode(self.before(stream))


class OddModel(PreTrainedModel):
    """A language model whose blocks are in no plain list, and whose norm is in its head."""

    config_class = OddConfig
    base_model_prefix = "body"

    def __init__(self, config: OddConfig):
        super().__init__(config)
        first, second, third = (OddBlock(config.layout) for _ in range(3))
        self.words = nn.Embedding(config.vocab_size, HIDDEN)
        self.body: nn.Module = {
            "stages": lambda: nn.ModuleList([nn.ModuleList([first, second]), nn.ModuleList([third])]),
            "names": lambda: nn.ModuleDict({"low": first, "middle": second, "high": third}),
            "sequence": lambda: nn.Sequential(first, second, third),
        }[config.layout]()
        self.head = Head(config.vocab_size)
        self.post_init()

    def blocks(self) -> list[nn.Module]:
        return [block for block in self.body.modules() if isinstance(block, OddBlock)]

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.head.decode

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> CausalLMOutput:
        stream = self.words(input_ids)
        for block in self.blocks():
            handed = block(stream, attention_mask)
            stream = handed["stream"] if isinstance(handed, dict) else handed.stream
        return CausalLMOutput(logits=self.head(stream) * self.config.warmth)


NEW = {MineConfig: MineModel, OddConfig: OddModel}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    for config_class, model_class in NEW.items():
        AutoConfig.register(config_class.model_type, config_class)
        AutoModelForCausalLM.register(config_class, model_class)
    yield
    for config_class in NEW:
        transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content.pop(config_class.model_type)
        AutoModelForCausalLM._model_mapping._extra_content.pop(config_class)


def mine(broken: str = "") -> PreTrainedModel:
    return random_model(MineModel, MineConfig(broken))


def odd(layout: str, warmth: float = 1.0) -> PreTrainedModel:
    return random_model(OddModel, OddConfig(layout, warmth))


def random_model(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(3)
    model = model_class(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def test_a_family_that_nobody_knew_is_found_and_proved():
    view = view_model(mine())
    assert view.kind == find_architecture(MineConfig(), "mine").kind == "causal"
    assert view.blocks == tuple(view.model.stack)
    assert view.final_norm is view.model.last
    assert (view.head, view.scale, view.softcap) == ((), 0.8, None)
    assert view.attentions == (None, None, None)
    assert view.found == "3 blocks from stack.0 (Mixer), then last, then out, then logits times 0.8"
    check_parts(view, "mine")
    assert check_lens(view, "mine").error < 1e-4


@pytest.mark.parametrize("layout", ["stages", "names", "sequence"])
def test_blocks_in_lists_of_lists_or_by_name_that_return_more_than_the_stream_are_found_and_proved(layout: str):
    model = odd(layout)
    view = view_model(model)
    assert list(view.blocks) == model.blocks()
    assert outline_model(model).blocks == view.blocks
    assert view.final_norm is model.head.before
    assert view.bias is model.head.decode.bias
    check_size(view, "odd")
    check_parts(view, "odd")
    assert check_lens(view, "odd").error < 1e-4


def test_a_scale_of_the_logits_under_a_name_of_its_own_is_refused_with_the_number():
    with pytest.raises(
        ReportedError, match=r"neither a scale nor a softcap of the configuration: the logits are 0\.7 "
    ):
        view_model(odd("names", warmth=0.7))


BROKEN = {
    "between": r"of 3 calls in stack only 2 in a row are given what the one before returned \(not stack\.\d\)",
    "behind": r"what is done behind stack\.2, on the way to the decoder, is neither a module nor a known function",
    "inside": r"its blocks take the residual stream inside of another argument \(stack\.0\), not as one",
    "mixed": r"both \(Both\), on the way to the decoder, makes its numbers of more than what the last block hands on",
    "beside": r"both \(Both\), on the way to the decoder, makes its numbers of more than what stack\.2 hands on",
    "logits": r"what is done to the decoder's output is neither a scale nor a softcap",
    "added": r"of 3 calls in stack only 1 in a row are given what the one before returned",
    "batch": r"a batch gives layer 1 other states than its sentences one by one",
    "future": r"it is read as a causal model, and a token changes the states of those before it",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_model_that_does_something_else_is_refused_with_what_was_found(broken: str):
    with pytest.raises(ReportedError, match=BROKEN[broken]):
        check_parts(view_model(mine(broken)), "mine")


def test_a_product_with_a_matrix_of_the_model_is_a_step_of_the_head():
    view = view_model(mine("turned"))
    assert view.found.endswith("then last, then times a matrix [32, 32], then out, then logits times 0.8")
    assert check_lens(view, "mine").error < 1e-4


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("num_hidden_layers", 4, "says 4 blocks of width 32, and 3 of width 32 were found .* be measured in part"),
        ("hidden_size", 16, "of width 16, and 3 of width 32 were found .* 2 residual streams side by side"),
    ],
)
def test_another_size_than_the_configuration_says_is_refused(name: str, number: int, words: str):
    view = view_model(mine())
    setattr(view.model.config, name, number)
    with pytest.raises(ReportedError, match=words):
        check_size(view, "mine")


def test_tokens_that_go_into_no_table_are_refused(monkeypatch: pytest.MonkeyPatch):
    model = mine()
    monkeypatch.setattr(model, "get_input_embeddings", lambda: model.words.weight)
    with pytest.raises(ReportedError, match=r"tokens go into no table of embeddings \(.* gives Parameter\)"):
        view_model(model)


def test_a_block_that_runs_twice_counts_as_two():
    view = view_model(mine("twice"))
    assert view.blocks == tuple(block for block in view.model.stack for _ in range(2))
    check_parts(view, "mine")


def test_blocks_in_another_order_are_refused():
    view = view_model(make_model("gpt2"))
    with pytest.raises(ReportedError, match=r"its 3 blocks ran in the order 2, 1, 0.*found by tracing: 3 blocks from "):
        check_parts(dataclasses.replace(view, blocks=view.blocks[::-1]), "mine")


def test_a_block_that_is_left_out_is_refused():
    view = view_model(make_model("gpt2"))
    skipped = dataclasses.replace(view, blocks=(view.blocks[0], view.blocks[2], nn.Linear(1, 1)))
    with pytest.raises(ReportedError, match="its 3 blocks ran in the order 0, 1, so that"):
        check_parts(skipped, "mine")


def test_a_hook_without_effect_is_refused(monkeypatch: pytest.MonkeyPatch):
    """The stream goes past the hooks of a block: the next one takes what its `forward` has returned."""
    view = view_model(make_model("llama"))
    block = view.blocks[1]
    forward, kept = block.forward, {}

    def keep(*args: Any, **options: Any) -> Any:
        kept["output"] = forward(*args, **options)
        return kept["output"]

    def take_kept(module: nn.Module, args: Any, options: Any) -> Any:
        return (kept["output"], *args[1:]), options

    monkeypatch.setattr(block, "forward", keep)
    handle = view.blocks[2].register_forward_pre_hook(take_kept, with_kwargs=True, prepend=True)
    with pytest.raises(ReportedError, match="what is added behind block 1 does not show at layer 2"):
        check_parts(view, "mine")
    handle.remove()


def test_a_change_before_the_steered_block_is_refused():
    view = view_model(mine())
    for block in view.blocks:
        block.broken = "noise"
    with pytest.raises(ReportedError, match=r"what is added behind block \d changes layer \d, before it"):
        check_steering(view, "mine")


def test_a_causal_model_is_no_masked_one():
    view = dataclasses.replace(view_model(make_model("gpt2")), kind="masked")
    with pytest.raises(ReportedError, match="it is read as a masked model, and a token changes nothing before it"):
        check_parts(view, "mine")


def test_a_masked_model_in_which_no_token_changes_another_is_refused_with_that_reason():
    model = make_model("bert")
    for layer in model.bert.encoder.layer:
        nn.init.zeros_(layer.attention.output.dense.weight)
    with pytest.raises(ReportedError, match="read as a masked model, and no token changes the state of another"):
        check_parts(view_model(model), "mine")


def test_a_model_that_needs_more_than_text_is_refused():
    model = make_model("gpt2")
    model.forward = partial(_needs_an_image, model.forward)
    with pytest.raises(ReportedError, match=r"it cannot be run on tokens and a mask alone \(an image is needed\)"):
        view_model(model)


def _needs_an_image(forward: Any, **inputs: Any) -> Any:
    raise ValueError("an image is needed\nsomewhere")


def test_a_real_gpt2_is_traced_and_proved_within_two_seconds():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel._from_config(transformers.GPT2Config(), attn_implementation=READABLE)
    model.to_empty(device="cpu").tie_weights()
    for parameter in model.requires_grad_(False).parameters():
        parameter.uniform_(-0.03, 0.03)
    model.eval()
    took = 2.0
    for _ in range(2):  # another process may have the processor's cache at first
        start = time.process_time()
        view = view_model(model)
        check_parts(view, "gpt2")
        check_lens(view, "gpt2")
        check_attention(view, "gpt2")
        took = time.process_time() - start
        if took < 2.0:
            break
    assert took < 2.0

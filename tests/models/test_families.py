"""Every family of the table against a reference in float64 that asks the model itself: one sentence at a time.

The reference knows a family's blocks by name and nothing else. What a layer's logits are it asks the model: the whole
model runs in float64 with that layer's states in the place of the last block's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from families_table import AGAIN, TABLE, all_types, made_with, row_of, table_of
from plans import added
from reference import PREDICTED, Expected, in_float64, metrics_at
from tiny_families import FAMILIES, make_tiny
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_entropy.corpus.batching import collate
from llm_entropy.errors import ReportedError
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.lens import Lens, check_lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.attention import about_attention, check_sinks, open_attention, read_attention_entropy
from llm_entropy.models.families import ModelView, find_architecture, most_tokens, run_base, view_model
from llm_entropy.models.proofs import check_parts, check_size
from llm_entropy.models.tracing.probe import probe_tokens
from llm_entropy.schema.batches import Batch, Example
from llm_entropy.settings import CONTROL, METRICS, STANDARD, AnalysisSettings, ControlSettings

LENGTHS = (12, 1, 7)
"""Of the sentences: longer than every window, and of one token."""
READ = (0, 5, 11)
"""Positions that are read, where a sentence has them."""
TEMPERATURE = 0.7
HIDDEN = 32


def tokens(length: int) -> list[int]:
    """Return a sentence without special tokens."""
    return torch.randint(10, 140, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def positions_of(length: int) -> list[int]:
    return [position for position in READ if position < length]


def batch(*, every: bool = False) -> Batch:
    """Return the sentences as a padded batch, read at some positions or at each; the target is the next token."""
    return collate(examples(every=every), 9, 0)


def batches(*, pads: bool) -> list[Batch]:
    """Return the sentences as a padded batch, or each as one."""
    return [batch()] if pads else [collate([example], 9, 0) for example in examples()]


def examples(*, every: bool = False) -> list[Example]:
    """Return the sentences, read at some positions or at each; the target of a position is the next token."""
    made = []
    for number, length in enumerate(LENGTHS):
        ids, read = tokens(length), list(range(length)) if every else positions_of(length)
        targets = [ids[position + 1] if position + 1 < length else PREDICTED for position in read]
        none = [-1] * len(read)
        made.append(Example(number, f"sentence {number}", ids, read, targets, none, none))
    return made


class Shown(NamedTuple):
    """What the model shows of a sentence in float64."""

    layers: Tensor
    """[layer, seq, hidden]."""
    logits: Tensor
    """[layer, seq, vocab]: of the model itself, with a layer's states behind its last block."""
    maps: list[Tensor]
    """[head, seq, seq] of each block that shows one."""


def blocks_of(model: nn.Module, model_type: str) -> list[nn.Module]:
    """Return the blocks by name, as often as they run."""
    items = list(model.get_submodule(FAMILIES[model_type].blocks).children())
    return items * 3 if len(items) == 1 else items


@contextmanager
def hooks(blocks: list[nn.Module], vectors: Tensor | None, last: Tensor | None) -> Iterator[list[Tensor]]:
    """Note what flows between blocks, with rows of `vectors` added, or with `last` in the place of the last output."""
    layers: list[Tensor] = []

    def begin(module: nn.Module, args: Any, options: Any) -> Any:
        if layers:
            return None
        (place, stream), *_ = [
            (place, value) for place, value in (*enumerate(args), *options.items()) if isinstance(value, Tensor)
        ]
        layers.append(stream if vectors is None else stream + vectors[0])
        if isinstance(place, str):
            return args, {**options, place: layers[0]}
        return (*args[:place], layers[0], *args[place + 1 :]), options

    def end(module: nn.Module, args: Any, output: Any) -> Any:
        stream = output if isinstance(output, Tensor) else output[0]
        if vectors is not None:
            stream = stream + vectors[len(layers)]
        if last is not None and len(layers) == len(blocks):
            stream = last
        layers.append(stream)
        return stream if isinstance(output, Tensor) else type(output)((stream, *output[1:]))

    handles = [blocks[0].register_forward_pre_hook(begin, with_kwargs=True, prepend=True)]
    handles += [block.register_forward_hook(end, prepend=True) for block in dict.fromkeys(blocks)]
    yield layers
    for handle in handles:
        handle.remove()


@torch.no_grad()
def show(model: nn.Module, model_type: str, length: int, vectors: Tensor | None) -> Shown:
    blocks = blocks_of(model, model_type)
    ids = torch.tensor([tokens(length)])
    with hooks(blocks, vectors, None) as layers:
        output: Any = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True)
    assert len(layers) == len(blocks) + 1
    states = torch.cat(layers)
    many = ids.expand(len(states), -1)
    with hooks(blocks, None, states):
        logits = model(input_ids=many, attention_mask=torch.ones_like(many)).logits
    torch.testing.assert_close(logits[-1], output.logits[0], rtol=1e-6, atol=1e-5)
    maps = [weights[0] for weights in output.get("attentions") or () if weights is not None and weights.ndim == 4]
    return Shown(states, logits, maps)


def most_heads(shown: Shown) -> int:
    return max(map(len, shown.maps), default=1)


def expect(shown: Shown, has_attention: list[bool], length: int) -> list[Expected]:
    """Return what the program should report of a sentence, position by position."""
    weights = torch.full((len(has_attention), most_heads(shown), length, length), torch.nan, dtype=torch.float64)
    for block, own in zip(np.flatnonzero(has_attention), shown.maps, strict=True):
        weights[block, : len(own)] = own  # of heads that a block lacks there is nothing
    ids, found = tokens(length), []
    for position in positions_of(length):
        rows = weights[:, :, position].numpy()
        found.append(
            metrics_at(
                (shown.logits[:, position] / TEMPERATURE).double().numpy(),
                shown.layers[:, position].double().numpy(),
                rows,
                (rows > 0).sum(-1).max(-1),
                ids[position + 1] if position + 1 < length else PREDICTED,
                2.0,
            )
        )
    return found


def opened(model_type: str) -> ModelView:
    """Return a family's tiny model as a run opens it."""
    view = view_model(make_tiny(model_type))
    check_size(view, model_type)
    view = check_parts(view, model_type)
    check_lens(view, model_type)
    return open_attention(view, model_type)


@torch.no_grad()
def check_longest(view: ModelView, model_type: str) -> None:
    """Run as many tokens as there are said to be positions for, and see that one more is too many for a table."""
    most = most_tokens(view.model.config) or 80
    ids = probe_tokens(view.model, (1, most + 1))
    assert view.model(input_ids=ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1])).logits.isfinite().all()
    if view.most_tokens is not None:
        assert view.most_tokens == most, "the configuration promises other positions than the table has"
        if model_type != "xglm":  # it makes its table longer
            with pytest.raises((IndexError, RuntimeError)):
                view.model(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_metric_of_a_family_is_what_the_model_itself_shows(model_type: str) -> None:
    view = opened(model_type)
    num_blocks = len(view.blocks)
    assert list(view.blocks) == blocks_of(view.model, model_type)
    vectors = 0.5 * torch.randn(num_blocks + 1, HIDDEN, generator=torch.Generator().manual_seed(4))
    settings = AnalysisSettings(
        temperature=TEMPERATURE,
        metrics=list(METRICS),
        compare_control=True,
        control=ControlSettings(control_vector=[1.0]),
    )
    module = EntropyModule(view, Lens(view), Asked(settings, {CONTROL: added(vectors)}))
    records = [module.predict_step(batch) for batch in batches(pads=view.takes_padding)]
    exact = in_float64(make_tiny(model_type, attention="eager")).to(FAMILIES[model_type].exact)
    for config in (exact.config, exact.config.get_text_config()):
        config._experts_implementation = "eager"  # grouped products know no float64
    has_attention = [module is not None for module in view.attentions]
    budget = FAMILIES[model_type].budget
    for condition, steered in ((STANDARD, None), (CONTROL, vectors.to(FAMILIES[model_type].exact))):
        want = []
        for length in LENGTHS:
            shown = show(exact, model_type, length, steered)
            assert len(shown.maps) == sum(has_attention), "the reference shows the attention of other blocks"
            want += expect(shown, has_attention, length)
        got = [found.conditions[condition].metrics for found in records]
        for name in METRICS:
            values = np.stack([record.metrics[name] for record in want])
            found = torch.cat([metrics[name] for metrics in got]).double().numpy()
            if name == "target_rank":
                least, greatest = (np.stack([record.ranks[end] for record in want]) for end in (0, 1))
                assert ((least <= found) & (found <= greatest)).all(), f"{model_type} {condition} {name}"
                continue
            if name == "top1_agreement":
                continue  # ties are decided by rounding; the rank tells it
            np.testing.assert_allclose(found, values, budget, budget / 4, err_msg=f"{model_type} {condition} {name}")
    check_longest(view, model_type)
    if made_with() is None:
        assert row_of(view) == table_of(TABLE.read_text()).get(model_type), f"{TABLE.name} is out of date: {AGAIN}"


def window_of_5(position: int) -> int:
    return min(position + 1, 5)


LOCAL = {
    "gemma2": ("sliding", window_of_5),
    "gemma3_text": ("sliding", window_of_5),
    "gpt_oss": ("sliding", window_of_5),
    "laguna": ("sliding", window_of_5),
    "llama4_text": ("chunked", lambda position: position % 5 + 1),
    "mistral": ("", window_of_5),
}
"""Families with blocks that see a part of a sentence: what the configuration calls them, and how many tokens they see;
without a name it is all blocks."""


@torch.inference_mode()
@pytest.mark.parametrize("model_type", LOCAL)
def test_a_window_or_chunk_counts_the_tokens_in_it_alone(model_type: str) -> None:
    view, (kind, num_seen) = opened(model_type), LOCAL[model_type]
    longest = max(LENGTHS)
    whole = batch(every=True)
    with read_attention_entropy(view, whole.rows, whole.positions, counts=True) as read:
        run_base(view, whole.input_ids, whole.attention_mask, shows_maps=True)
    counts, positions = read.stack_attended(), whole.positions.tolist()
    assert counts is not None
    for block, own in enumerate(counts):
        is_local = kind in (getattr(view.model.config, "layer_types", None) or [kind] * 3)[block]
        seen = torch.tensor([num_seen(position) if is_local else position + 1 for position in positions])
        assert torch.equal(own, seen[:, None].expand_as(own)), f"block {block}"
        entropies = read.stack()[block]
        assert bool((entropies <= seen[:, None].log() + 1e-5).logical_or(entropies.isnan()).all())
    assert num_seen(longest - 1) < longest, "the sentences are longer than what such a block sees"


@pytest.mark.parametrize("model_type", ["gpt_oss", "flint"])
def test_the_mass_of_sinks_is_that_of_the_sentence_alone_and_of_its_last_token(model_type: str) -> None:
    view = opened(model_type)
    module = EntropyModule(view, Lens(view), Asked(AnalysisSettings(metrics=["attention_entropy"]), {}))
    together = module.predict_step(batch(every=True)).conditions[STANDARD].metrics
    assert list(together) == ["attention_entropy", "sink_mass"]
    ends = np.cumsum(LENGTHS)
    for number, length in enumerate(LENGTHS):
        last = Example(0, "alone", tokens(length), [length - 1], [PREDICTED], [-1], [-1])
        alone = module.predict_step(collate([last], 9, 0)).conditions[STANDARD].metrics
        for name in together:
            torch.testing.assert_close(alone[name][0], together[name][ends[number] - 1], rtol=1e-5, atol=1e-6)
    assert ((together["sink_mass"] > 0.01) & (together["sink_mass"] < 0.99)).any(-1).any(-1).all()


def test_sinks_that_take_next_to_nothing_are_found_too() -> None:
    model = make_tiny("gpt_oss")
    for block in model.model.layers:
        block.self_attn.sinks.data.fill_(-13.0)
    view = open_attention(view_model(model), "gpt_oss")
    module = EntropyModule(view, Lens(view), Asked(AnalysisSettings(metrics=["sink_mass"]), {}))
    mass = module.predict_step(batch()).conditions[STANDARD].metrics["sink_mass"]
    assert view.shape.has_sinks
    assert 1e-4 < mass.max() < 0.05


def test_a_metric_of_sinks_is_0_where_there_are_none_and_empty_where_there_is_no_attention() -> None:
    view = opened("lfm2")
    module = EntropyModule(view, Lens(view), Asked(AnalysisSettings(metrics=["sink_mass"]), {}))
    mass = module.predict_step(batch()).conditions[STANDARD].metrics["sink_mass"]
    assert mass[:, [0, 2]].isnan().all()
    assert (mass[:, 1] == 0).all()
    assert [*about_attention(view, ["sink_mass"])][1:] == ["all of its attention goes to tokens: sink_mass is 0"]
    assert len([*about_attention(view, ["attention_entropy"])]) == 1


def test_sinks_that_maps_do_not_show_are_said_and_their_mass_is_refused() -> None:
    view = opened("granite_swa")
    assert not view.shape.has_sinks
    assert [*about_attention(view, ["attention_entropy"])] == [
        "a part of the attention goes to sinks, which its maps do not show; its entropy is that of the rest"
    ]
    check_sinks(view, ["attention_entropy"], "mine")
    with pytest.raises(ReportedError, match=r"^mine: a part of its attention goes to sinks, .*; leave sink_mass out"):
        check_sinks(view, ["sink_mass"], "mine")
    assert row_of(view).attention == "eager, without sinks"


@pytest.mark.skipif(made_with() is not None, reason=f"the table was made with transformers {made_with()}")
def test_the_table_of_families_names_every_family() -> None:
    text = TABLE.read_text()
    missing = [model_type for model_type in all_types() if model_type not in text]
    assert not missing, f"{TABLE.name} is out of date: {AGAIN}"
    assert set(FAMILIES) <= set(table_of(text))


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("t5", "it is an encoder-decoder"),
        ("bart", "it is an encoder-decoder"),
        ("gemma3n", "several residual streams side by side"),
        ("deepseek_v4", "several residual streams side by side"),
        ("diffusion_gemma", "by diffusion"),
        ("vit", "is no causal or masked language model"),
    ],
)
def test_what_has_no_one_stream_is_refused_by_name_with_the_reason(model_type: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"models\.mine: .*'{model_type}'.*{words}"):
        find_architecture(CONFIG_MAPPING[model_type](), "models.mine: folder")


@pytest.mark.parametrize("model_type", ["deberta", "gpt_oss", "laguna", "lfm2", "mamba", "mixtral", "qwen3_next"])
def test_a_family_is_opened_in_half_precision_too(model_type: str) -> None:
    view = view_model(make_tiny(model_type).to(torch.bfloat16))
    check_parts(view, model_type)
    check_lens(view, model_type)
    assert row_of(open_attention(view, model_type)) == row_of(opened(model_type))

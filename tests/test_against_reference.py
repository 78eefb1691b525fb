"""The program against the independent reference: every family, standard and steered, all metrics."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from devices import DEVICE, predict
from dispatch import NoFloat64
from plans import plan_of
from reference import Expected, Observation, Reading, Steering
from tiny_models import (
    CAUSAL,
    FAMILIES,
    HIDDEN,
    MASKED,
    OPEN_SENTENCES,
    SENTENCES,
    is_eager_only,
    make_model,
    make_tokenizer,
    readable_attention,
)
from transformers import PreTrainedModel

from llm_entropy.corpus.encoding import Encoder
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.lens import Lens, check_lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import ModelView, view_model
from llm_entropy.schema.batches import Batch
from llm_entropy.schema.records import ConditionRecords, NamedTokens
from llm_entropy.settings import (
    CONTROL,
    KL_FROM_STANDARD,
    METRICS,
    STANDARD,
    TOP1_CHANGED,
    AnalysisSettings,
    ControlSettings,
)
from llm_entropy.steering.conditions import plan_conditions
from llm_entropy.steering.hooks import steer
from llm_entropy.steering.plan import SteeringPlan

RELATIVE, ABSOLUTE = 1e-4, 2e-5
"""The budget of float32 against float64; the absolute part is for what is near zero."""
TOP_K = 4


@dataclasses.dataclass(frozen=True)
class Subject:
    """A family's tiny model, the same in float64, and how it is steered."""

    family: str
    model: PreTrainedModel
    exact: torch.nn.Module
    view: ModelView
    steering: Steering

    def observe(self, reading: Reading, condition: str) -> Observation:
        """Return what the reference sees of a sentence under a condition."""
        return _observe_all(self.family, len(reading.input_ids), condition)[tuple(reading.input_ids)]

    def plan(self) -> SteeringPlan:
        """Return the program's plan of the same steering."""
        return plan_of(self.control(), self.steering.vector, num_blocks=self.view.shape.num_blocks, sign=1)

    def control(self) -> ControlSettings:
        """Return the settings of the same steering; the vector is a stand-in."""
        layers, tokens = self.steering.layer_weights, self.steering.token_weights
        assert layers is not None
        assert tokens is not None
        return ControlSettings(
            control_vector=[1.0],
            strength=self.steering.strength,
            layer_weights=list(layers),
            token_weights=list(tokens),
        )


@cache
def subject(family: str) -> Subject:
    """Return a family's subject; shapes of vectors and numbers of layer weights are spread over the families."""
    model = make_model(family, attention=readable_attention(family))
    number, num_blocks = list(FAMILIES).index(family), FAMILIES[family].num_blocks
    generator = torch.Generator().manual_seed(100 + number)
    shape = ((HIDDEN,), (num_blocks, HIDDEN), (num_blocks + 1, HIDDEN))[number % 3]
    layer_weights = {
        0: (1.0, -0.6),
        1: (0.4, 1.5, 0.2, -1.0, 0.9, 0.1),
        2: tuple(0.5 + 0.2 * layer for layer in range(num_blocks + (number % 3 != 1))),
    }[number // 3 % 3]
    steering = Steering(torch.randn(shape, generator=generator), layer_weights, (1.2, 0.3, -0.8), strength=0.7)
    return Subject(family, model, reference.in_float64(make_model(family)), view_model(model), steering)


@cache
def _observe_all(family: str, length: int, condition: str) -> dict[tuple[int, ...], Observation]:
    """Return what all sentences of a length show, the copies with a mask among them, by their tokens."""
    who = subject(family)
    sentences = [reading.input_ids for reading in readings(family, "all") if len(reading.input_ids) == length]
    shown = reference.observe_all(who.exact, sentences, who.steering if condition == CONTROL else None)
    return dict(zip(map(tuple, sentences), shown, strict=True))


@cache
def readings(family: str, positions: str) -> tuple[Reading, ...]:
    """Return all sentences as the design reads them; for masked models `each` token of those without a mask."""
    kind = FAMILIES[family].kind
    tokenizer = make_tokenizer(kind)
    if kind == "causal":
        return tuple(reference.causal_reading(tokenizer(sentence).input_ids, positions) for sentence in SENTENCES)
    mask, special = tokenizer.mask_token_id, set(tokenizer.all_special_ids)
    tokens = [tokenizer(sentence).input_ids for sentence in (*OPEN_SENTENCES, *SENTENCES)]
    return tuple(reading for ids in tokens for reading in reference.masked_readings(ids, mask, special))


def expected(
    who: Subject, sentences: tuple[Reading, ...], condition: str, temperature: float = 1.0, *lens: Any, **order: float
) -> list[Expected]:
    """Return the reference's records of all sentences, one by one."""
    return [
        record
        for reading in sentences
        for record in reference.expected(
            who.exact, who.observe(reading, condition), reading, temperature, *lens, **order
        )
    ]


def batch_of(sentences: tuple[Reading, ...]) -> Batch:
    """Return all sentences as one batch, padded on the right with a token that means something."""
    length = max(len(reading.input_ids) for reading in sentences)
    records = [
        (row, *read)
        for row, reading in enumerate(sentences)
        for read in zip(reading.positions, reading.targets, strict=True)
    ]
    rows, positions, targets = (torch.tensor(numbers) for numbers in zip(*records, strict=True))
    return Batch(
        input_ids=torch.tensor([[*r.input_ids, *[9] * (length - len(r.input_ids))] for r in sentences]),
        attention_mask=torch.tensor([[int(t < len(r.input_ids)) for t in range(length)] for r in sentences]),
        rows=rows,
        positions=positions,
        targets=targets,
        uniforms=torch.full((len(records),), 0.5, dtype=torch.float64),
        sentence_ids=rows,
        starts=torch.full_like(rows, -1),
        ends=torch.full_like(rows, -1),
        sentences=[str(number) for number in range(len(sentences))],
    )


def assert_close(got: Any, want: Any, what: str) -> None:
    """Fail unless `got` is float32 and within the budget of `want`."""
    assert got.dtype == torch.float32, f"{what}: {got.dtype}"
    np.testing.assert_allclose(got.double().numpy(), want, rtol=RELATIVE, atol=ABSOLUTE, err_msg=what)


def assert_records(got: ConditionRecords, want: list[Expected], metrics: list[str], what: str) -> None:
    """Fail unless everything that is reported under one condition is what the reference expects."""
    tokens = got.tokens
    assert tokens is not None
    assert tokens.target_ids.tolist() == [record.target for record in want], what
    for name in metrics:
        if name == "target_rank":
            least, greatest = (np.stack([record.ranks[end] for record in want]) for end in (0, 1))
            ranks = got.metrics[name].numpy()
            assert ((least <= ranks) & (ranks <= greatest)).all(), f"{what} {name}"
        else:
            assert_close(got.metrics[name], np.stack([record.metrics[name] for record in want]), f"{what} {name}")
    probabilities = np.stack([record.probabilities for record in want])
    for ids, reported in (
        (tokens.top_ids, tokens.top_probabilities),
        (tokens.tracked_ids, tokens.tracked_probabilities[..., -1]),
    ):
        # By probability rather than by id: tokens as good as equal may stand in either order.
        ranked = -np.sort(-probabilities[:, -1], axis=-1)[:, : ids.shape[1]]
        assert_close(reported, ranked, f"{what} ranked probabilities")
        assert_close(
            reported, np.take_along_axis(probabilities[:, -1], ids.numpy(), -1), f"{what} probabilities of ids"
        )
        assert all(len(set(row)) == len(row) for row in ids.tolist()), f"{what}: a token is listed twice"
    tracked = np.take_along_axis(probabilities, tokens.tracked_ids.numpy()[:, None], axis=-1)
    assert_close(tokens.tracked_probabilities, tracked.swapaxes(1, 2), f"{what} tracked probabilities")
    if tokens.lens_ids.shape[1]:
        assert_lens_tokens(tokens, probabilities, what)


def assert_lens_tokens(tokens: NamedTokens, probabilities: Any, what: str) -> None:
    """Fail unless the token of each layer is the most likely one of the reference's [record, layer, token]."""
    assert_close(tokens.lens_probabilities, probabilities.max(axis=-1), f"{what} lens probabilities")
    own = np.take_along_axis(probabilities, tokens.lens_ids.numpy()[..., None], axis=-1)[..., 0]
    assert_close(tokens.lens_probabilities, own, f"{what} probabilities of lens tokens")
    ranked = np.sort(probabilities, axis=-1)
    is_clear = ranked[..., -1] - ranked[..., -2] > 2 * (ABSOLUTE + RELATIVE * ranked[..., -1])
    assert is_clear.any(), f"{what}: no layer has one most likely token"  # a softcap makes many equal
    np.testing.assert_array_equal(tokens.lens_ids.numpy()[is_clear], probabilities.argmax(axis=-1)[is_clear], what)


def assert_comparison(got: ConditionRecords, standard: list[Expected], want: list[Expected], what: str) -> None:
    """Fail unless what compares two conditions is what the reference expects."""
    for name, metric in ((KL_FROM_STANDARD, reference.kl_from_standard), (TOP1_CHANGED, reference.top1_changed)):
        expected = np.stack([metric(*both) for both in zip(standard, want, strict=True)])
        assert_close(got.metrics[name], expected, f"{what} {name}")


def cases() -> list[tuple[str, str]]:
    """Return every family with the ways of reading it."""
    return [(family, way) for family in CAUSAL for way in ("last", "all")] + [(family, "each") for family in MASKED]


@pytest.mark.parametrize(("family", "positions"), [("gpt2", "last"), ("gpt2", "all"), ("bert", "each")])
def test_sentences_are_read_where_the_reference_reads_them(family: str, positions: Any) -> None:
    kind = FAMILIES[family].kind
    ways = {"positions": positions} if kind == "causal" else {"mask_strategy": positions}
    sentences = SENTENCES if kind == "causal" else (*OPEN_SENTENCES, *SENTENCES)
    encoded = Encoder(make_tokenizer(kind), kind, **ways)(range(len(sentences)), sentences)
    found = tuple(Reading(example.input_ids, example.positions, example.targets) for example, _ in encoded)
    assert found == readings(family, positions)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_reproduces_the_models_own_logits(family: str) -> None:
    """An oracle whose lens is wrong would prove nothing."""
    who = subject(family)
    longest = max(readings(family, "last"), key=lambda reading: len(reading.input_ids))
    for condition in (STANDARD, CONTROL):
        shown = who.observe(longest, condition)
        with torch.no_grad():
            logits = reference.lens_logits(who.exact, shown.layers)
        torch.testing.assert_close(logits[-1], shown.logits, rtol=1e-6, atol=5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(("temperature", "order"), [(0.7, 2.0), (1.3, 0.5)])
@pytest.mark.parametrize(("family", "positions"), cases())
def test_every_metric_of_a_padded_batch_is_that_of_the_sentences_one_by_one(
    family: str, positions: str, temperature: float, order: float
) -> None:
    who = subject(family)
    sentences = readings(family, positions)
    settings = AnalysisSettings(
        temperature=temperature,
        compare_control=True,
        metrics=list(METRICS),
        renyi_order=order,
        top_k=TOP_K,
        lens_tokens=True,
        control=who.control(),
    )
    module = EntropyModule(who.view, Lens(who.view), Asked(settings, {CONTROL: who.plan()}))
    records = predict(module, batch_of(sentences))
    want = {c: expected(who, sentences, c, temperature, order=order) for c in (STANDARD, CONTROL)}
    assert list(records.conditions) == [STANDARD, CONTROL]
    for condition, found in records.conditions.items():
        assert_records(found, want[condition], settings.metrics, f"{family} {condition}")
    assert_comparison(records.conditions[CONTROL], want[STANDARD], want[CONTROL], family)
    assert records.positions.tolist() == [position for reading in sentences for position in reading.positions]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert", "modernbert"])
def test_a_device_without_float64_gives_the_same_within_the_budget(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_entropy.schema.batches.WITHOUT_FLOAT64", {"cpu"})
    monkeypatch.setattr("llm_entropy.kernels.choose_backend", lambda device: "reference")
    who, sentences = subject(family), readings(family, "all")
    for use_sampling in (False, True):
        settings = AnalysisSettings(
            temperature=1.3,
            compare_control=True,
            metrics=list(METRICS),
            top_k=TOP_K,
            use_sampling=use_sampling,
            control=who.control(),
        )
        module = EntropyModule(who.view, Lens(who.view), Asked(settings, {CONTROL: who.plan()}))
        batch = batch_of(sentences).to("cpu")
        with NoFloat64():
            records = module.predict_step(batch, 0)
        if not use_sampling:
            for condition, found in records.conditions.items():
                want = expected(who, sentences, condition, 1.3)
                assert_records(found, want, settings.metrics, f"{family} {condition}")


@pytest.mark.gpu
@pytest.mark.parametrize("family", [name for name in FAMILIES if not is_eager_only(name)])
def test_without_attention_entropy_the_quicker_attention_gives_the_same(family: str) -> None:
    who = subject(family)
    view = view_model(make_model(family, attention=None))
    sentences = readings(family, "all")
    names = [name for name, metric in METRICS.items() if "attention" not in metric.needs]
    settings = AnalysisSettings(compare_control=True, metrics=names, top_k=TOP_K, control=who.control())
    records = predict(EntropyModule(view, Lens(view), Asked(settings, {CONTROL: who.plan()})), batch_of(sentences))
    for condition, found in records.conditions.items():
        assert_records(found, expected(who, sentences, condition), names, f"{family} {condition}")


@pytest.mark.parametrize("family", FAMILIES)
def test_steered_logits_are_those_of_plain_forward_hooks(family: str) -> None:
    who = subject(family)
    sentences = readings(family, "last")
    batch = batch_of(sentences)
    with torch.no_grad(), steer(who.view.blocks, who.plan(), batch.attention_mask):
        steered = who.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    for logits, reading in zip(steered, sentences, strict=True):
        plain = who.observe(reading, CONTROL).logits
        torch.testing.assert_close(logits[: len(plain)].double(), plain, rtol=1e-4, atol=1e-4)


def write_translators(folder: Path, num_blocks: int) -> dict[str, torch.Tensor]:
    """Write a random tuned lens as the package `tuned-lens` names its files; return its parameters."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"weight": (HIDDEN, HIDDEN), "bias": (HIDDEN,)}
    parameters = {
        f"{layer}.{name}": 0.2 * torch.randn(shape, generator=generator)
        for layer in range(num_blocks)
        for name, shape in shapes.items()
    }
    torch.save(parameters, folder / "params.pt")
    return parameters


@pytest.mark.gpu
@pytest.mark.parametrize("lens", ["raw", "tuned"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_other_lenses_are_those_of_the_reference(family: str, lens: Any, tmp_path: Path) -> None:
    who = subject(family)
    sentences = readings(family, "last")[:12]
    translators = write_translators(tmp_path, who.view.shape.num_blocks) if lens == "tuned" else None
    settings = AnalysisSettings(
        temperature=1.3,
        metrics=list(METRICS),
        top_k=TOP_K,
        lens_tokens=True,
        lens=lens,
        lens_path=str(tmp_path) if translators else None,
    )
    module = EntropyModule(who.view, Lens(who.view, lens, tmp_path if translators else None), Asked(settings, {}))
    records = predict(module, batch_of(sentences))
    want = expected(who, sentences, STANDARD, 1.3, lens, translators)
    assert_records(records.conditions[STANDARD], want, settings.metrics, f"{family} {lens}")


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_of_every_family_proves_itself(family: str) -> None:
    subject(family).view.model.to(DEVICE)
    assert check_lens(subject(family).view, family).error < 1e-4


def damaged(view: ModelView) -> dict[str, ModelView]:
    """Return views of which each forgets one thing that stands between the last layer and the logits."""
    found = {}
    states = torch.ones(1, HIDDEN)
    for number, step in enumerate(view.head):
        width, states = states.shape, step(states).detach()
        if states.shape == width:  # else the next step would not run at all
            head = view.head[:number] + view.head[number + 1 :]
            found[f"head step {number}"] = dataclasses.replace(view, head=head)
    if view.final_norm is not None:
        found["final norm"] = dataclasses.replace(view, final_norm=None)
    if view.softcap is not None:
        found["softcap"] = dataclasses.replace(view, softcap=None)
    if view.scale != 1.0:
        found["scale"] = dataclasses.replace(view, scale=1.0)
    return found


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("opt_post_norm", "electra")])
def test_a_lens_that_forgets_something_is_refused(family: str) -> None:
    """Of the two families left out, nothing can be forgotten without the widths falling apart."""
    views = damaged(subject(family).view)
    assert views, "nothing to forget"
    for what, view in views.items():
        with pytest.raises(ValueError, match=r"found by tracing: \d blocks from"):
            check_lens(view, f"{family} without its {what}")


# --- many conditions ---------------------------------------------------------------------------------------------

STRENGTHS = {"tense": (-1.0, 0.7, 2.0), "mood": (-0.5, 1.2)}


def vectors_of(who: Subject) -> dict[str, Steering]:
    """Two vectors at strength 1; the second leaves the first two layers as they are."""
    num_blocks = who.view.shape.num_blocks
    later = torch.randn(num_blocks, HIDDEN, generator=torch.Generator().manual_seed(7))
    weights = (0.0, *(1.0 + 0.3 * block for block in range(1, num_blocks)))
    return {"tense": who.steering, "mood": Steering(later, weights, (0.4, 1.1))}


def settings_of(steering: Steering, strengths: tuple[float, ...]) -> ControlSettings:
    return ControlSettings(
        control_vector=steering.vector,
        operator=steering.operator,  # type: ignore[arg-type]
        cap=steering.cap if steering.operator == "cap" else None,
        strengths=list(strengths),
        layer_weights=None if steering.layer_weights is None else list(steering.layer_weights),
        token_weights=None if steering.token_weights is None else list(steering.token_weights),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("is_tight", [False, True], ids=["together", "in groups"])
@pytest.mark.parametrize(
    ("family", "positions"),
    [("gpt2", "last"), ("gpt2", "all"), ("gemma2", "all"), ("bert", "each"), ("albert", "each")],
)
def test_each_of_five_conditions_is_what_the_reference_expects(
    family: str, positions: str, is_tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_tight:
        monkeypatch.setattr("llm_entropy.measuring.budget.STATES_BYTES", 1)
    assert_conditions(subject(family), readings(family, positions), vectors_of(subject(family)), STRENGTHS)


@pytest.mark.gpu
@pytest.mark.parametrize(("family", "positions"), [("gpt2", "all"), ("llama", "all"), ("albert", "each")])
def test_each_operator_is_what_the_reference_expects(family: str, positions: str) -> None:
    who = subject(family)
    vectors = {
        name: dataclasses.replace(who.steering, operator=name, cap=0.1)
        for name in ("add_keep_norm", "project_out", "cap")
    }
    strengths = {name: (-0.4, 1.0) for name in vectors}
    assert_conditions(who, readings(family, positions), vectors, strengths)


def assert_conditions(
    who: Subject,
    sentences: tuple[Reading, ...],
    vectors: dict[str, Steering],
    all_strengths: dict[str, tuple[float, ...]],
) -> None:
    """Assert that the program and the reference agree on a comparison under several vectors and strengths."""
    shape, family = who.view.shape, who.family
    settings = AnalysisSettings(
        compare_control=True,
        metrics=list(METRICS),
        top_k=TOP_K,
        conditions={name: settings_of(vectors[name], strengths) for name, strengths in all_strengths.items()},
    )
    plans = plan_conditions(
        settings.run_conditions,
        model=family,
        num_blocks=shape.num_blocks,
        hidden_size=shape.hidden_size,
        seed=0,
    )
    records = predict(EntropyModule(who.view, Lens(who.view), Asked(settings, plans)), batch_of(sentences))
    want = {STANDARD: expected(who, sentences, STANDARD)}
    for name, strengths in all_strengths.items():
        for strength in strengths:
            steering = dataclasses.replace(vectors[name], strength=strength)
            want[f"{name}_{strength:+g}"] = [
                record
                for reading in sentences
                for record in reference.expected(
                    who.exact, reference.observe(who.exact, reading.input_ids, steering), reading, 1.0
                )
            ]
    assert list(records.conditions) == list(want)
    for condition, found in records.conditions.items():
        assert_records(found, want[condition], settings.metrics, f"{family} {condition}")
        if condition != STANDARD:
            assert_comparison(found, want[STANDARD], want[condition], f"{family} {condition}")

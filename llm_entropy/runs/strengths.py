"""`target_kl`: the strengths are searched once, before a run begins, and written down for everybody who takes part.

The first process of a run searches, for all models. What it finds goes into `run.json` and `config.yaml` when the
run's folder is created. From then on that counts: for a resume, for the other processes, which are told, and for the
other tasks of an array, also for those that have searched at the same time on another machine.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.corpus import Corpus
from llm_entropy.corpus.sample import sample_sentences
from llm_entropy.errors import ReportedError
from llm_entropy.measuring.budget import CPU_TOKENS
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.measuring.target_kl import MOST_STEPS, PERCENT, SENTENCES, LastLayerKL, find_strength
from llm_entropy.runs.launch import is_first_process
from llm_entropy.runs.opening import OpenedModel, open_model
from llm_entropy.runs.plan import Plan
from llm_entropy.runs.state import Found, RunState
from llm_entropy.schema.batches import Batch
from llm_entropy.settings import AnalysisSettings, Condition, ControlSettings, Settings
from llm_entropy.steering.plan import SteeringPlan
from llm_entropy.store import manifest
from llm_entropy.store.windows import plan_batches

log = logging.getLogger("llm_entropy")

FOUND_STRENGTHS = "found_strengths"
"""The key of `run.json`: by model and vector."""


def budgets(analysis: AnalysisSettings) -> dict[str, Condition]:
    """Return the vectors with a `target_kl`, each with the condition at which it is searched: the first above 0."""
    chosen: dict[str, Condition] = {}
    for condition in analysis.run_conditions:
        steering = condition.steering
        if steering is None or steering.placebo is not None or steering.control.target_kl is None:
            continue
        before = chosen.get(steering.source)
        if steering.strength != 0 and (before is None or _strength(before) < 0 < steering.strength):
            chosen[steering.source] = condition
    return chosen


def _strength(condition: Condition) -> float:
    assert condition.steering is not None
    return condition.steering.strength


def _control(condition: Condition) -> ControlSettings:
    assert condition.steering is not None
    return condition.steering.control


def _key(condition: Condition) -> str:
    assert condition.steering is not None
    return condition.steering.key


def missing_strengths(settings: Settings) -> dict[str, list[str]]:
    """Return the models for which a strength will have to be searched, by vector."""
    return {
        source: [model for model in settings.models if model not in (_control(condition).found_strengths or {})]
        for source, condition in budgets(settings.analysis).items()
    }


def find_strengths(state: RunState, plans: Sequence[Plan], device: torch.device) -> None:
    """Search the strengths of all models, unless the run has them already. Only the first process does that.

    Args:
        state: Of the run; gets what is found.
        plans: Of the models.
        device: Where the models run.

    Raises:
        ReportedError: A target is not reached.
    """
    wanted = budgets(state.settings.analysis)
    if not wanted or not is_first_process():
        return
    for condition in wanted.values():
        _refuse_other_models(condition, state.settings)
    if state.session.run_dir is not None:
        take_found(state, manifest.read_manifest(state.session.run_dir), state.session.run_dir)
        return
    for plan in plans:
        for condition in wanted.values():
            _refuse_idle(plan, condition)
    state.found = {plan.source.key: _strengths_of(plan, state, wanted, device) for plan in plans}


def take_found(state: RunState, about: Mapping[str, Any], run_dir: Path) -> None:
    """Go by the strengths that a run was begun with.

    Args:
        state: Of the run.
        about: What `run.json` says.
        run_dir: The run's folder.

    Raises:
        ReportedError: The settings give another strength.
    """
    found: Found = about.get(FOUND_STRENGTHS, {})
    for source, condition in budgets(state.settings.analysis).items():
        for model, strength in (_control(condition).found_strengths or {}).items():
            if strength != found[model][source]:
                raise ReportedError(
                    f"{_key(condition)}.found_strengths.{model}: got {json.dumps(strength)}, but {run_dir} was started "
                    f"with {json.dumps(found[model][source])}; leave it out, or resume the run with its own config.yaml"
                )
    if state.found and found != state.found:
        log.info("%s: was started by another task, whose strengths count: %s", run_dir, json.dumps(found))
    state.found = found


def with_found(settings: Settings, found: Found) -> Settings:
    """Return settings that hold the strengths that were found."""
    analysis = settings.analysis
    wanted = budgets(analysis)

    def held(source: str, control: ControlSettings) -> ControlSettings:
        if source not in wanted or _control(wanted[source]) is not control:
            return control
        return replace(control, found_strengths={model: own[source] for model, own in found.items()})

    conditions = {name: held(name, own) for name, own in analysis.conditions.items()}
    return replace(
        settings, analysis=replace(analysis, control=held("control", analysis.control), conditions=conditions)
    )


def at_found(plan: Plan, analysis: AnalysisSettings, found: Mapping[str, float]) -> Plan:
    """Return a plan whose strengths are multiples of those that were found, by vector; of other vectors as they are."""
    steering = dict(plan.steering)
    for condition in analysis.run_conditions:
        own = condition.steering
        if own is not None and own.source in found:
            steering[condition.name] = plan.steering[condition.name].at_strength(found[own.source], own.key)
    return replace(plan, steering=steering)


class SharedStrengths(L.Callback):
    """Gives all processes the strengths that the first one has found or read, before they predict.

    Args:
        plan: Of the model, as `plan_model` returns it.
        state: Of the run.
    """

    def __init__(self, plan: Plan, state: RunState) -> None:
        self._plan, self._state = plan, state

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Agree with the other processes."""
        assert isinstance(pl_module, EntropyModule)
        self._state.found = trainer.strategy.broadcast(self._state.found)
        found = self._state.found[self._plan.source.key]
        pl_module.steer_by(at_found(self._plan, self._state.settings.analysis, found).steering)


def _refuse_other_models(condition: Condition, settings: Settings) -> None:
    """Refuse strengths of models that the run does not have: a slip would only show as a search."""
    for model in _control(condition).found_strengths or {}:
        if model not in settings.models:
            raise ReportedError(
                f"{_key(condition)}.found_strengths: got the key {model!r}; expected keys of models: "
                f"{', '.join(settings.models)}"
            )


def _strengths_of(
    plan: Plan, state: RunState, wanted: Mapping[str, Condition], device: torch.device
) -> dict[str, float]:
    """Return the strength of each vector for a model: given, or searched."""
    key, settings = plan.source.key, state.settings
    given = {source: (_control(condition).found_strengths or {}).get(key) for source, condition in wanted.items()}
    found = {source: strength for source, strength in given.items() if strength is not None}
    searched = {source: condition for source, condition in wanted.items() if source not in found}
    if searched:
        opened = open_model(plan, settings.analysis, precision=settings.trainer.precision)
        found |= _search(plan, opened, settings, state.corpus, searched, device)
        del opened
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what is free decides how much fills a batch
    return {source: found[source] for source in wanted}


def _refuse_idle(plan: Plan, condition: Condition) -> None:
    if not plan.steering[condition.name].steered_layers:
        raise ReportedError(
            f"{_key(condition)}.target_kl: {plan.source.key}: the vector is 0, or every weight of it is; no strength "
            "makes a difference; expected a vector that acts somewhere"
        )


def _search(
    plan: Plan,
    opened: OpenedModel,
    settings: Settings,
    corpus: Corpus,
    wanted: Mapping[str, Condition],
    device: torch.device,
) -> dict[str, float]:
    """Search the strength of each vector for a model that is loaded."""
    key = plan.source.key
    opened.lens.to(device)
    torch.nn.Module.to(opened.view.model, device)
    batches = [batch.to(device) for batch in _batches(plan, corpus, settings.seed, pads=opened.view.takes_padding)]
    kl = LastLayerKL(opened.lens, settings.analysis.temperature, batches)
    if not kl.num_positions:
        raise ReportedError(
            f"{key}: {SENTENCES} sentences of the corpus hold no token to read, so that no strength can be searched; "
            "expected another corpus, or found_strengths beside target_kl"
        )
    return {
        source: _search_vector(key, source, plan.steering[condition.name], condition, kl)
        for source, condition in wanted.items()
    }


def _search_vector(key: str, source: str, steering: SteeringPlan, condition: Condition, kl: LastLayerKL) -> float:
    """Search the strength of one vector.

    Args:
        key: The model's.
        source: The vector's name.
        steering: As the condition has it: at a multiple of the strength.
        condition: At which it is searched.
        kl: What a strength does to the model.
    """
    target, multiple = _control(condition).target_kl, abs(_strength(condition))
    assert target is not None
    log.info(
        "%s: searching the strength of %s at which the %dth percentile of KL(standard, steered) at the last layer is "
        "%g nats, over %d positions",
        *(key, source, PERCENT, target, kl.num_positions),
    )
    numbers = itertools.count(1)
    found = find_strength(
        lambda strength: kl.percentile(steering.at_strength(strength / multiple, _key(condition))),
        target,
        where=f"{_key(condition)}.target_kl: {key}",
        largest=_largest(steering) * multiple,
        tell=lambda step: log.info("%s: %s: step %d: strength %g: %.4g nats", key, source, next(numbers), *step),
    )
    log.info("%s: %s: found strength %g", key, source, found)
    return found


def _largest(steering: SteeringPlan) -> float:
    """Return the largest factor that leaves what is added, and its factors, within the range of float32."""
    most = max(float(steering.coefficients.abs().max()), float(steering.addends.abs().max()))
    return min(torch.finfo(torch.float32).max / 2 / most, math.sqrt(torch.finfo(torch.float32).max))


def _batches(plan: Plan, corpus: Corpus, seed: int, *, pads: bool) -> list[Batch]:
    """Return the batches of a sample of the corpus; `pads`: whether sentences of different lengths may share one."""
    ids, sentences = sample_sentences(corpus.for_kind(plan.source.architecture.kind), SENTENCES, seed)
    encoder = plan.encoder
    if encoder.positions == "generated":  # what will be written is not there yet: the first of its tokens is looked at
        encoder = replace(encoder, positions="last", num_new_tokens=0)
    examples = [encoded.example for encoded in encoder.examples(ids, sentences)]
    if not examples:
        return []
    groups = plan_batches([len(example.input_ids) for example in examples], CPU_TOKENS, pads=pads)
    return [collate([examples[row] for row in rows], plan.source.pad_token_id, seed) for rows in groups]


def describe_searches(settings: Settings) -> list[str]:
    """Return in words what will be searched before a run begins, a line for each vector with a `target_kl`."""
    lines = []
    for source, models in missing_strengths(settings).items():
        target = _control(budgets(settings.analysis)[source]).target_kl
        what = (
            f"the strength of {source} at which the {PERCENT}th percentile of KL at the last layer is {target:g} nats"
        )
        if models:
            lines.append(
                f"searched first: {what}, for {', '.join(models)}: at most {MOST_STEPS} steps, each a pass with and "
                f"without steering over {SENTENCES} sentences"
            )
        else:
            lines.append(f"not searched, but given: {what}")
    return lines

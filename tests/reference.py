"""The reference that the program is held against: float64, one sentence at a time, full logits, eager attention.

Written from the design alone; it shares nothing with the program. Everything is spelled out: which module is a block,
what the lens of each family is, each metric by its textbook formula with scipy. Some models of transformers compute
their norms, rotations and attention weights in float32 whatever the weights are; that error, about 1e-7, is the
reference's too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import entr, log_softmax, rel_entr, softmax
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, layer_norm, linear

# --- the blocks of each family, in the order of depth --------------------------------------------------------------


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks 0..L-1; ALBERT's are the same module several times."""
    config: Any = model.config
    match config.model_type:
        case "gpt2" | "gpt_neo" | "bloom":
            return list(model.transformer.h)
        case "gpt_neox":
            return list(model.gpt_neox.layers)
        case "opt":
            return list(model.model.decoder.layers)
        case "llama" | "mistral" | "qwen2" | "qwen3" | "gemma2" | "phi" | "cohere" | "granite" | "modernbert":
            return list(model.model.layers)
        case "bert":
            return list(model.bert.encoder.layer)
        case "roberta" | "xlm-roberta" | "camembert":
            return list(model.roberta.encoder.layer)
        case "distilbert":
            return list(model.distilbert.transformer.layer)
        case "electra":
            return list(model.electra.encoder.layer)
        case "albert":
            groups = list(model.albert.encoder.albert_layer_groups)
            blocks_per_group = config.num_hidden_layers // len(groups)
            return [groups[k // blocks_per_group] for k in range(config.num_hidden_layers)]
    raise KeyError(config.model_type)


# --- the lens of each family ---------------------------------------------------------------------------------------


def _norm(h: Tensor, module: nn.LayerNorm) -> Tensor:
    return layer_norm(h, module.weight.shape, module.weight, module.bias, module.eps)


def _rms(h: Tensor, weight: Tensor, eps: float) -> Tensor:
    return h / torch.sqrt(torch.mean(h * h, dim=-1, keepdim=True) + eps) * weight


def _gpt(model: Any, h: Tensor, raw: bool) -> Tensor:
    return (h if raw else _norm(h, model.transformer.ln_f)) @ model.lm_head.weight.T


def _gpt_neox(model: Any, h: Tensor, raw: bool) -> Tensor:
    return (h if raw else _norm(h, model.gpt_neox.final_layer_norm)) @ model.lm_head.weight.T


def _opt(model: Any, h: Tensor, raw: bool) -> Tensor:
    decoder = model.model.decoder
    if decoder.final_layer_norm is not None and not raw:
        h = _norm(h, decoder.final_layer_norm)
    if decoder.project_out is not None:
        h = h @ decoder.project_out.weight.T
    return h @ model.lm_head.weight.T


def _llama(model: Any, h: Tensor, raw: bool) -> Tensor:
    norm = model.model.norm
    return (h if raw else _rms(h, norm.weight, norm.variance_epsilon)) @ model.lm_head.weight.T


def _gemma2(model: Any, h: Tensor, raw: bool) -> Tensor:
    norm = model.model.norm
    z = (h if raw else _rms(h, 1.0 + norm.weight, norm.eps)) @ model.lm_head.weight.T
    cap = model.config.final_logit_softcapping
    return cap * torch.tanh(z / cap)


def _cohere(model: Any, h: Tensor, raw: bool) -> Tensor:
    norm = model.model.norm
    if not raw:
        h = layer_norm(h, norm.weight.shape, norm.weight, None, norm.variance_epsilon)
    return model.config.logit_scale * (h @ model.lm_head.weight.T)


def _granite(model: Any, h: Tensor, raw: bool) -> Tensor:
    return _llama(model, h, raw) / model.config.logits_scaling


def _phi(model: Any, h: Tensor, raw: bool) -> Tensor:
    h = h if raw else _norm(h, model.model.final_layernorm)
    return linear(h, model.lm_head.weight, model.lm_head.bias)


# The families with norms after each block have no norm before the head, so that raw is the same lens: BERT's "head" is
# all that stands between the last block and the logits.


def _bert(model: Any, h: Tensor, raw: bool) -> Tensor:
    head = model.cls.predictions
    h = gelu(linear(h, head.transform.dense.weight, head.transform.dense.bias))
    return linear(_norm(h, head.transform.LayerNorm), head.decoder.weight, head.decoder.bias)


def _roberta(model: Any, h: Tensor, raw: bool) -> Tensor:
    head = model.lm_head
    h = gelu(linear(h, head.dense.weight, head.dense.bias))
    return linear(_norm(h, head.layer_norm), head.decoder.weight, head.decoder.bias)


def _distilbert(model: Any, h: Tensor, raw: bool) -> Tensor:
    h = gelu(linear(h, model.vocab_transform.weight, model.vocab_transform.bias))
    return linear(_norm(h, model.vocab_layer_norm), model.vocab_projector.weight, model.vocab_projector.bias)


def _electra(model: Any, h: Tensor, raw: bool) -> Tensor:
    head = model.generator_predictions
    h = gelu(linear(h, head.dense.weight, head.dense.bias))
    return linear(_norm(h, head.LayerNorm), model.generator_lm_head.weight, model.generator_lm_head.bias)


def _albert(model: Any, h: Tensor, raw: bool) -> Tensor:
    head = model.predictions
    h = gelu(linear(h, head.dense.weight, head.dense.bias), approximate="tanh")
    return linear(_norm(h, head.LayerNorm), head.decoder.weight, head.decoder.bias)


def _modernbert(model: Any, h: Tensor, raw: bool) -> Tensor:
    h = h if raw else _norm(h, model.model.final_norm)
    h = gelu(linear(h, model.head.dense.weight, model.head.dense.bias))
    return linear(_norm(h, model.head.norm), model.decoder.weight, model.decoder.bias)


LENSES: dict[str, Callable[[Any, Tensor, bool], Tensor]] = {
    "gpt2": _gpt,
    "gpt_neo": _gpt,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gemma2": _gemma2,
    "phi": _phi,
    "cohere": _cohere,
    "granite": _granite,
    "bloom": _gpt,
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "distilbert": _distilbert,
    "electra": _electra,
    "albert": _albert,
    "modernbert": _modernbert,
}


def lens_logits(
    model: nn.Module, layers: Tensor, kind: str = "logit", translators: dict[str, Tensor] | None = None
) -> Tensor:
    """Return the logits of every layer, before temperature.

    Args:
        model: the model, float64.
        layers: [layer, seq, hidden].
        kind: `logit`, `raw` (without the final norm) or `tuned`.
        translators: `{layer}.weight` [hidden, hidden] and `{layer}.bias` [hidden] of every layer but the last.

    Returns:
        [layer, seq, vocab].
    """
    config: Any = model.config
    logits = []
    for number, h in enumerate(layers):
        if kind == "tuned" and number < len(layers) - 1:
            assert translators is not None
            weight, bias = translators[f"{number}.weight"].double(), translators[f"{number}.bias"].double()
            h = h + h @ weight.T + bias
        logits.append(LENSES[config.model_type](model, h, kind == "raw"))
    return torch.stack(logits)


# --- reading and steering the residual stream ----------------------------------------------------------------------


@dataclass(frozen=True)
class Steering:
    """What happens to the residual stream h: h + s v[k], s = strength * layer_weight[k] * token_weight[t]."""

    vector: Tensor
    """[hidden], [L, hidden] or [L + 1, hidden], whose row 0 acts on the embeddings."""
    layer_weights: tuple[float, ...] | None = None
    """L numbers, or another number of them, interpolated over the blocks; L + 1: the first for the embeddings."""
    token_weights: tuple[float, ...] | None = None
    """Numbers interpolated over the tokens."""
    strength: float = 1.0
    operator: str = "add"
    """Or what else happens to h; u = v / norm(v)."""
    cap: float = 0.0

    def steered(self, h: Tensor, layer: int, num_blocks: int) -> Tensor:
        """Return the stream [sentence, seq, hidden] of a layer, steered; layer k + 1 is the output of block k."""
        rows, factors = self.rows_and_factors(num_blocks, h.shape[-2])
        v, s = rows[layer].to(h), factors[layer, :, None].to(h)
        if not v.any():
            return h
        u = v / torch.linalg.vector_norm(v)
        along = torch.einsum("bsh,h->bs", h, u)[..., None]
        match self.operator:
            case "add":
                return h + s * v
            case "add_keep_norm":
                return (h + s * v) * (torch.linalg.norm(h, dim=-1) / torch.linalg.norm(h + s * v, dim=-1))[..., None]
            case "project_out":
                return h - s * along * u
            case "cap":
                return h + s * (along.minimum(torch.tensor(self.cap).to(h)) - along) * u
        raise KeyError(self.operator)

    def rows_and_factors(self, num_blocks: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return v [L + 1, hidden] and s [L + 1, seq], at the embeddings and at each block's output."""
        vector = self.vector.double()
        weighs_embeddings = self.layer_weights is not None and len(self.layer_weights) == num_blocks + 1
        if vector.ndim == 1:
            # "The same at each block"; at the embeddings, too, where they are given a weight of their own.
            vector = vector.expand(num_blocks + weighs_embeddings, -1)
        if len(vector) == num_blocks:
            vector = torch.cat([torch.zeros_like(vector[:1]), vector])
        layer_weights = torch.ones(num_blocks + 1, dtype=torch.float64)
        if weighs_embeddings:
            layer_weights = torch.tensor(self.layer_weights, dtype=torch.float64)
        elif self.layer_weights is not None:
            layer_weights[1:] = _stretched(self.layer_weights, num_blocks)
        token_weights = _stretched(self.token_weights or (1.0,), num_tokens)
        return vector, self.strength * layer_weights[:, None] * token_weights


def _stretched(numbers: tuple[float, ...], size: int) -> Tensor:
    given = torch.tensor(numbers, dtype=torch.float64)[None, None]
    return interpolate(given, size=size, mode="linear", align_corners=False)[0, 0]


@dataclass(frozen=True)
class Observation:
    """What one forward pass shows."""

    layers: Tensor
    """[L + 1, seq, hidden]: the embeddings' output, then what each block hands on, steering included."""
    attentions: Tensor
    """[L, head, seq, seq]."""
    logits: Tensor
    """[seq, vocab], the model's own."""


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _hooks(model: nn.Module, layers: list[Tensor], steering: Steering | None) -> Iterator[None]:
    """Append to `layers` what flows between the blocks, steered, by plain forward hooks."""
    num_blocks = len(blocks_of(model))

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if layers:
            return None
        h = arguments[0] if steering is None else steering.steered(arguments[0], 0, num_blocks)
        layers.append(h)
        return (h, *arguments[1:])

    def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        h = _hidden(output)
        if steering is not None:
            h = steering.steered(h, len(layers), num_blocks)
        layers.append(h)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    blocks = blocks_of(model)
    handles = [blocks[0].register_forward_pre_hook(before, prepend=True)]
    # A block that is used several times is one module: the order of the calls tells the depth.
    handles += [block.register_forward_hook(after, prepend=True) for block in dict.fromkeys(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def in_float64(model: nn.Module) -> nn.Module:
    """Return a copy of a model in float64."""
    return copy.deepcopy(model).double().eval()


def observe(model: nn.Module, input_ids: list[int], steering: Steering | None = None) -> Observation:
    """Run one sentence, without padding, and return all that it shows."""
    return observe_all(model, [input_ids], steering)[0]


def observe_all(
    model: nn.Module, sentences: list[list[int]], steering: Steering | None = None
) -> tuple[Observation, ...]:
    """Run sentences of one length, so that there is no padding, and return all that each shows."""
    layers: list[Tensor] = []
    num_blocks = len(blocks_of(model))
    with torch.no_grad(), _hooks(model, layers, steering):
        output = model(input_ids=torch.tensor(sentences), output_attentions=True)
    assert len(layers) == num_blocks + 1
    assert len(output.attentions) == num_blocks
    states, attentions = torch.stack(layers), torch.stack(output.attentions)
    return tuple(Observation(states[:, row], attentions[:, row], output.logits[row]) for row in range(len(sentences)))


# --- positions and targets -----------------------------------------------------------------------------------------

PREDICTED = -1


@dataclass(frozen=True)
class Reading:
    """A tokenised sentence, and where it is read."""

    input_ids: list[int]
    positions: list[int]
    targets: list[int]
    """The true token, or `PREDICTED`."""


def causal_reading(input_ids: list[int], positions: str) -> Reading:
    """Read a sentence at its last token, or at every one, for the token that follows."""
    everywhere = Reading(input_ids, list(range(len(input_ids))), [*input_ids[1:], PREDICTED])
    if positions == "all":
        return everywhere
    return replace(everywhere, positions=everywhere.positions[-1:], targets=everywhere.targets[-1:])


def masked_readings(input_ids: list[int], mask: int, special: set[int]) -> list[Reading]:
    """Read a sentence at its mask tokens; without any, at a copy for each token that is no special one."""
    masks = [position for position, token in enumerate(input_ids) if token == mask]
    if masks:
        return [Reading(input_ids, masks, [PREDICTED] * len(masks))]
    return [
        Reading([*input_ids[:position], mask, *input_ids[position + 1 :]], [position], [token])
        for position, token in enumerate(input_ids)
        if token not in special
    ]


# --- the metrics ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What the program should report at one position under one condition."""

    target: int
    metrics: dict[str, Any]
    """[layer], or for those of attention [block, head]."""
    ranks: tuple[Any, Any]
    """[layer] least and greatest rank of the target, which differ where logits are as good as equal."""
    logits: Any
    """[layer, vocab], after temperature."""

    @cached_property
    def probabilities(self) -> Any:
        """[layer, vocab]."""
        return softmax(self.logits, axis=-1)

    @property
    def top1(self) -> Any:
        """[layer], the most likely token."""
        return np.argmax(self.logits, axis=-1)


def num_attended(config: Any, block: int, position: int, length: int) -> int:
    """Return how many tokens a position of a sentence may attend to in a block, from the words of the configuration."""
    is_local = block in [k for k, kind in enumerate(getattr(config, "layer_types", None) or ()) if "sliding" in kind]
    match config.model_type:
        case "mistral":
            return min(position + 1, config.sliding_window)
        case "gemma2":
            return min(position + 1, config.sliding_window) if is_local else position + 1
        case "gpt_neo":
            is_local = config.attention_layers[block] == "local"
            return min(position + 1, config.window_size) if is_local else position + 1
        case "modernbert":
            reach = config.local_attention // 2 if is_local else length
            return sum(abs(position - other) <= reach for other in range(length))
        case "bert" | "roberta" | "xlm-roberta" | "camembert" | "distilbert" | "electra" | "albert":
            return length
    return position + 1


TIE = 1e-5
"""Logits that are nearer than this may change places in float32."""


def metrics_at(logits: Any, layers: Any, attention: Any, attended: Any, target: int, order: float) -> Expected:
    """Return every metric at a position.

    Args:
        logits: [layer, vocab], after temperature.
        layers: [layer, hidden], the residual stream.
        attention: [block, head, seq], the position's rows; what they lack of 1 goes to sinks.
        attended: [block], how many tokens it may attend to.
        target: the true token, or `PREDICTED`.
        order: of Rényi's entropy.
    """
    if target == PREDICTED:
        target = int(np.argmax(logits[-1]))
    vocab = logits.shape[-1]
    log_p = log_softmax(logits, axis=-1)
    p = np.exp(log_p)
    entropy = entr(p).sum(axis=-1)
    ordered = np.sort(logits, axis=-1)
    other = np.delete(logits, target, axis=-1)
    wanted = logits[:, target, None]
    to_tokens = attention.sum(axis=-1)
    attention = attention / to_tokens[..., None]
    metrics = {
        "entropy": entropy,
        "perplexity": np.exp(entropy),
        "margin": ordered[:, -1] - ordered[:, -2],
        "kl_divergence": rel_entr(p, np.full(vocab, 1 / vocab)).sum(axis=-1),
        "surprisal": -log_p[:, target],
        "attention_entropy": entr(attention).sum(axis=-1),
        "attended_entropy": _share_of_most(entr(attention).sum(axis=-1), attended[:, None]),
        "sink_mass": 1 - to_tokens,
        "kl_to_final": rel_entr(p[-1], p).sum(axis=-1),
        "target_rank": (other > wanted).sum(axis=-1),
        "varentropy": (p * (-log_p - entropy[:, None]) ** 2).sum(axis=-1),
        "residual_norm": np.sqrt((layers**2).sum(axis=-1)),
        "entropy_change": np.concatenate([[np.nan], entropy[1:] - entropy[:-1]]),
        "top1_agreement": (ordered[:, -1] == logits[:, np.argmax(logits[-1])]).astype(float),
        "renyi_entropy": np.log((p**order).sum(axis=-1)) / (1 - order),
    }
    ranks = (other > wanted + TIE).sum(axis=-1), (other > wanted - TIE).sum(axis=-1)
    return Expected(target, metrics, ranks, logits)


def _share_of_most(entropy: Any, attended: Any) -> Any:
    """Return entropy / ln(attended), and NaN where there is one token alone."""
    return np.where(attended > 1, entropy / np.log(np.maximum(attended, 2)), np.nan)


def expected(
    model: nn.Module,
    shown: Observation,
    reading: Reading,
    temperature: float = 1.0,
    lens: str = "logit",
    translators: dict[str, Tensor] | None = None,
    order: float = 2.0,
) -> list[Expected]:
    """Return what the program should report for one sentence under one condition, position by position.

    Args:
        model: the model, float64 (`in_float64`).
        shown: what it shows of the sentence (`observe`).
        reading: the sentence.
        temperature: every logit is divided by it.
        lens: as `lens_logits`.
        translators: as `lens_logits`.
        order: of Rényi's entropy.
    """
    with torch.no_grad():
        logits = (lens_logits(model, shown.layers[:, reading.positions], lens, translators) / temperature).numpy()
    attention = shown.attentions[:, :, reading.positions].double().numpy()
    layers, length = shown.layers[:, reading.positions].numpy(), len(reading.input_ids)
    attended = np.array(
        [[num_attended(model.config, block, at, length) for block in range(len(attention))] for at in reading.positions]
    )
    return [
        metrics_at(logits[:, index], layers[:, index], attention[:, :, index], attended[index], target, order)
        for index, target in enumerate(reading.targets)
    ]


def kl_from_standard(standard: Expected, control: Expected) -> Any:
    """Return KL(p_standard, p_control) of every layer, in nats."""
    return rel_entr(standard.probabilities, control.probabilities).sum(axis=-1)


def top1_changed(standard: Expected, control: Expected) -> Any:
    """Return 1 at each layer whose most likely token is another, else 0."""
    return (standard.top1 != control.top1).astype(float)

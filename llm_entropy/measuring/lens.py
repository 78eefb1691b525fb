"""Lenses: how the residual stream at a layer becomes the statistics of a distribution over the vocabulary."""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Optional

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llm_entropy import kernels
from llm_entropy.errors import ReportedError
from llm_entropy.models.families import ModelView, run_base
from llm_entropy.models.layers import read_layers
from llm_entropy.models.tracing.probe import probe_tokens

log = logging.getLogger("llm_entropy")

PROBES = ((7, 7), (1,), (5, 2))
"""Lengths of the sentences of random tokens with which a lens proves itself."""
LARGEST_ERROR, TYPICAL_ERROR = 1e-4, 1e-5
"""Largest and root mean square error of a logit in float32, as shares of the largest and of the typical logit."""
ROUNDINGS = 3
"""Half precision may add so many times what it costs to round the logits once: a model rounds behind its decoder, and
again behind a scale or a softcap."""
SCALE_ERROR = 2e-3
"""Largest error of the scale of the logits; over all of the probe the rounding of bfloat16 leaves less than a tenth."""
CHUNK = 2**9
"""Tokens of the vocabulary whose logits are made together: weights in half precision are widened for it."""
MASKED = -1e4
"""Logits below are those of masked tokens, whatever the number: minus infinity, or the least of a type."""


class Lens(nn.Module):
    """What turns the states of the residual stream into the decoder's inputs, and these into statistics.

    `logit`: the model's own final norm and head, at every layer (nostalgebraist 2020, "interpreting GPT: the logit
    lens"). `raw`: the head alone. `tuned`: a trained affine map h + W h + b first (Belrose et al. 2023, "Eliciting
    Latent Predictions from Transformers with the Tuned Lens", eq. 8), the identity at the last layer.

    Args:
        view: The model.
        kind: Which lens.
        path: Folder of a tuned lens, with `params.pt` or `params.safetensors` as the `tuned-lens` package writes it.

    Raises:
        ReportedError: A tuned lens that is missing, or that does not fit the model.
    """

    def __init__(
        self, view: ModelView, kind: Literal["logit", "raw", "tuned"] = "logit", path: Optional[Path] = None
    ) -> None:
        super().__init__()
        self.view = view
        self.kind = kind
        self.translators: Optional[nn.ModuleList] = None
        if kind == "tuned":
            assert path is not None, "a tuned lens without a path"
            self.translators = read_translators(path, view.shape.num_blocks, view.shape.hidden_size)
            self.translators.to(device=view.decoder.weight.device, dtype=view.decoder.weight.dtype)

    @torch.inference_mode()
    def project(self, states: Tensor, layers: Sequence[int]) -> Tensor:
        """Return what goes into the decoder.

        Args:
            states: [slot, record, hidden].
            layers: [slot], the layer of each slot, 0..L.

        Returns:
            [slot, record, width].
        """
        view = self.view
        if self.translators is not None:
            states = torch.stack([self._translate(state, layer) for state, layer in zip(states, layers, strict=True)])
        if view.final_norm is not None and self.kind != "raw":
            states = view.final_norm(states)
        for step in view.head:
            states = step(states)
        return states

    def _translate(self, states: Tensor, layer: int) -> Tensor:
        """Apply the affine map of a layer, the identity at the last one."""
        assert self.translators is not None
        return states if layer == len(self.translators) else states + self.translators[layer](states)


def read_translators(folder: Path, num_blocks: int, hidden_size: int) -> nn.ModuleList:
    """Read the affine maps of a tuned lens.

    Args:
        folder: Holds `params.safetensors` or `params.pt`, a state dict with `{layer}.weight` [hidden, hidden] and
            `{layer}.bias` [hidden] for layers 0..L-1; a `config.json` beside it, if there, is checked.
        num_blocks: L.
        hidden_size: Width of the residual stream.

    Returns:
        L linear maps.

    Raises:
        ReportedError: The files are missing or do not fit.
    """
    parameters = _read_parameters(folder)
    config = folder / "config.json"
    if config.is_file():
        about = json.loads(config.read_text(encoding="utf-8"))
        for key, expected in (("num_hidden_layers", num_blocks), ("d_model", hidden_size)):
            if key in about and about[key] != expected:
                raise ReportedError(f"analysis.lens_path: {config} has {key} {about[key]}; the model has {expected}")
    translators = nn.ModuleList([nn.Linear(hidden_size, hidden_size) for _ in range(num_blocks)])
    wanted = {name: tuple(value.shape) for name, value in translators.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in parameters.items() if name[:1].isdigit()}
    if wanted != found:
        wrong = sorted(set(wanted.items()) ^ set(found.items()))[:4]
        raise ReportedError(
            f"analysis.lens_path: {folder} does not fit the model: expected {num_blocks} maps of width {hidden_size} "
            f"as 0.weight, 0.bias, ...; these differ: {', '.join(f'{name} {list(shape)}' for name, shape in wrong)}"
        )
    translators.load_state_dict({name: parameters[name] for name in wanted})
    return translators.requires_grad_(False).eval()


def _read_parameters(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a saved tuned lens, by name."""
    safe, pickled = folder / "params.safetensors", folder / "params.pt"
    path = safe if safe.is_file() else pickled
    if not path.is_file():
        raise ReportedError(f"analysis.lens_path: {folder} holds neither params.safetensors nor params.pt")
    try:
        parameters = load_file(safe) if path == safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, LookupError, EOFError, OSError) as error:
        raise ReportedError(
            f"analysis.lens_path: {path} cannot be read; expected a state dict of tensors alone, pickled code is "
            "refused and never run"
        ) from error
    if not isinstance(parameters, dict):
        raise ReportedError(f"analysis.lens_path: {path} holds a {type(parameters).__name__}; expected a state dict")
    return parameters


class LensProof(NamedTuple):
    """How well the lens gives a model's own logits."""

    error: float
    """The largest difference, in logits."""
    allowed: float
    """The largest one that is taken for rounding, in logits."""


@torch.inference_mode()
def check_lens(view: ModelView, name: str) -> LensProof:
    """Prove that the logit lens at the last layer gives the model's own logits, on a few random tokens.

    Args:
        view: The model.
        name: The model, for the message.

    Returns:
        The largest error, and what is allowed.

    Raises:
        ReportedError: It does not: the family's row, or the checkpoint, is not what it seems.
    """
    last = len(PROBES) - 1
    # One probe after the other: of a large vocabulary logits are larger than all else that the probes take.
    dtype = view.decoder.weight.dtype
    compared = [
        _compare(*_probe(view, name, seed, lengths, by_base=seed == last), dtype) for seed, lengths in enumerate(PROBES)
    ]
    proof, wrong = _judge(compared, dtype)
    if wrong is not None:
        raise ReportedError(
            f"{name}: the logit lens at the last layer misses the model's own logits by {proof.error:.3g} ({wrong}), "
            f"so its layers would be measured wrongly; found by tracing: {view.found}; the model does something else "
            "to the stream or to the logits, which was not found"
        )
    log.debug("%s: the lens reproduces the model's logits within %.3g", name, proof.error)
    return proof


def _probe(view: ModelView, name: str, seed: int, lengths: tuple[int, ...], *, by_base: bool) -> tuple[Tensor, Tensor]:
    """Return the lens's logits and the model's own, [record, vocab], of a padded batch of random sentences.

    Both are of one pass of the model; with `by_base` the lens is given what a pass without the head shows, as in a run.
    """
    input_ids = probe_tokens(view.model, (len(lengths), max(lengths)), seed)
    ends = torch.tensor(lengths, device=input_ids.device)[:, None]
    mask = (torch.arange(max(lengths), device=input_ids.device) < ends).long()
    rows, positions = mask.nonzero(as_tuple=True)
    with read_layers(view, rows, positions) as states:
        truth = view.model(input_ids=input_ids, attention_mask=mask).logits[rows, positions].float()
    if by_base:
        with read_layers(view, rows, positions) as states:
            run_base(view, input_ids, mask)
    inputs = Lens(view).project(states.stack()[-1:], [view.shape.num_blocks])
    if inputs.shape[-1] != view.decoder.in_features:
        raise ReportedError(
            f"{name}: the lens gives the decoder {inputs.shape[-1]} numbers, it takes {view.decoder.in_features}; "
            f"found by tracing: {view.found}"
        )
    unembedding, num_tokens = view.unembedding(temperature=1.0), len(view.decoder.weight)
    seen = torch.empty(len(rows), num_tokens, device=truth.device)
    for start in range(0, num_tokens, CHUNK):
        tokens = slice(start, min(start + CHUNK, num_tokens))
        seen[:, tokens] = kernels.logits_of(inputs[0], unembedding, tokens)
    if seen.shape != truth.shape:
        raise ReportedError(
            f"{name}: the lens gives {seen.shape[-1]} logits, the model {truth.shape[-1]}; found by tracing: "
            f"{view.found}"
        )
    return seen, truth


class _Compared(NamedTuple):
    """How logits of a lens, computed in float32, differ from those of a model; numbers of several probes add up."""

    extremes: Tensor
    """The largest difference, and the largest logit of the lens."""
    sums: Tensor
    """Sums of squares: of differences, logits of the lens, their rounding, and what deviates from a record's mean; the
    sum of products of that with differences; and how many logits there are. All float64."""


def _compare(seen: Tensor, truth: Tensor, dtype: torch.dtype) -> Optional[_Compared]:
    """Compare logits that were computed in float32 with those of a model; None: other tokens are masked.

    Args:
        seen: [record, vocab], float32; overwritten.
        truth: As `seen`, turned to float32; overwritten.
        dtype: The model's, to which `truth` was rounded.
    """
    masked = truth < MASKED
    if not torch.equal(seen < MASKED, masked):
        return None
    if masked.any():
        kept = ~masked.any(dim=0)
        seen, truth = seen[:, kept], truth[:, kept]
    del masked
    largest, usual = _largest(seen), _sum_of_squares(seen)
    rounding = _sum_of_squares(seen.to(dtype).float().sub_(seen)) if dtype.itemsize == 2 else 0.0
    difference = truth.sub_(seen)
    deviation = seen.sub_(seen.mean(dim=-1, keepdim=True)).flatten()
    common = float(deviation.dot(difference.flatten()))
    sums = [_sum_of_squares(difference), usual, rounding, _sum_of_squares(deviation), common, float(seen.numel())]
    return _Compared(torch.tensor([_largest(difference), largest]), torch.tensor(sums, dtype=torch.float64))


def _judge(compared: Sequence[Optional[_Compared]], dtype: torch.dtype) -> tuple[LensProof, Optional[str]]:
    """Return the largest error of all probes and what is allowed, and what is wrong; None if nothing is.

    Rounding hides an error of one logit, but not what thousands have in common: errors of half precision have a known
    size, and no part in common with the logits themselves.

    Args:
        compared: Of each probe.
        dtype: The model's.
    """
    known = [own for own in compared if own is not None]
    if len(known) < len(compared):
        return LensProof(float("inf"), 0.0), "other tokens are masked"
    error, largest = torch.stack([own.extremes for own in known]).amax(dim=0).tolist()  # NaN where one is
    *squares, spread, common, number = torch.stack([own.sums for own in known]).sum(dim=0).tolist()
    typical, usual, rounding = (math.sqrt(square / max(1.0, number)) for square in squares)
    of_rounding = ROUNDINGS * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
    # The model's logits are the lens's and the difference; what deviates from its mean has none in common with a mean.
    scale = common / spread if spread else 0.0
    proof = LensProof(error, LARGEST_ERROR * max(1.0, largest) + of_rounding * largest)
    for what, value, allowed in (
        ("largest error", *proof),
        ("root mean square", typical, TYPICAL_ERROR * max(1.0, usual) + ROUNDINGS * rounding),
        ("error of the scale", abs(scale), SCALE_ERROR),
    ):
        if not value <= allowed:
            return proof, f"{what} {value:.3g}, at most {allowed:.3g} expected"
    return proof, None


def _largest(values: Tensor) -> float:
    least, most = values.aminmax()
    return max(-float(least), float(most))


def _sum_of_squares(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2

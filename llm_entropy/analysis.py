"""`run_analysis`: a run from Python, with the words of the configuration as arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import numpy as np
import numpy.typing as npt
from torch import Tensor

from llm_entropy.errors import ReportedError
from llm_entropy.results import RunResult
from llm_entropy.run import run
from llm_entropy.settings import (
    DEFAULT_METRICS,
    AnalysisSettings,
    ControlSettings,
    ControlVectors,
    DataSettings,
    ModelSettings,
    OutputSettings,
    Settings,
    TrainerSettings,
    default_models,
)

Vector = Union[str, Path, Tensor, npt.NDArray[np.floating], Sequence[float], Sequence[Sequence[float]]]
Weights = Union[Tensor, npt.NDArray[np.floating], Sequence[float]]


def run_analysis(
    models: Optional[Mapping[str, Union[str, ModelSettings]]] = None,
    *,
    sentences: Optional[Sequence[str]] = None,
    num_sentences: Union[int, Literal["auto"], None] = "auto",
    temperature: float = 1.0,
    use_sampling: bool = False,
    compare_control: bool = False,
    positions: Literal["last", "all"] = "last",
    mask_strategy: Literal["last", "random", "each"] = "last",
    lens: Literal["logit", "raw", "tuned"] = "logit",
    lens_path: Optional[str] = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    top_k: int = 5,
    tracked_tokens: int = 3,
    control_vector: Optional[Vector] = None,
    control_vectors: Optional[Mapping[str, Vector]] = None,
    direction: Literal["positive", "negative"] = "positive",
    strength: float = 1.0,
    layer_weights: Optional[Weights] = None,
    token_weights: Optional[Weights] = None,
    seed: int = 0,
    data: Union[str, Path, DataSettings, None] = None,
    trainer: Optional[TrainerSettings] = None,
    output: Union[str, Path, OutputSettings, None] = None,
    resume: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Measure what models believe at every layer, over a corpus, and what steering changes.

    The same as `llm-entropy predict`; every argument is a key of the configuration, with its default.

    Args:
        models: By a key that names files, a hub name, folder or `builtin:...`, or settings; default: gpt2 and bert.
        sentences: The corpus itself, instead of `data`.
        num_sentences: How many, picked by `seed`; None: all; auto: all of `sentences` or `data`, 10 built-in ones.
        temperature: Every logit is divided by it.
        use_sampling: Take a sampled token where the target is the predicted token.
        compare_control: Run standard and control and compare them; false: control alone where a vector is given.
        positions: Causal models: the last token, or every one.
        mask_strategy: Masked models: which token of a sentence without a mask is masked.
        lens: How a layer becomes logits.
        lens_path: Folder of a tuned lens.
        metrics: Names of the metrics, keys of `llm_entropy.METRICS`.
        top_k: How many tokens the predictions list.
        tracked_tokens: For how many of them the probability is followed over the layers.
        control_vector: A file, or [hidden], [blocks, hidden], [blocks + 1, hidden] with row 0 for the embeddings.
        control_vectors: `positive` and `negative`, of which `direction` chooses.
        direction: See there; it turns the sign of a single `control_vector`.
        strength: Factor on every vector.
        layer_weights: [blocks], or [blocks + 1] with the first for the embeddings; other lengths are interpolated.
        token_weights: Interpolated over the real tokens of each sentence.
        seed: Of every random choice.
        data: A file, glob, folder or hub name, or settings.
        trainer: Devices, nodes, precision.
        output: The folder of runs, or settings.
        resume: Go on with the run `output.run_name`, if it has been begun: only what is missing is computed.
        quiet: Whether the terminal shows warnings and errors alone.

    Returns:
        `result["gpt2"]["standard"]["entropy"]` is a data frame, a row per sentence in corpus order, a column per layer.

    Raises:
        ReportedError: Something is wrong, said in one line; nothing is left behind.
    """
    control = ControlSettings(
        control_vector=_vector(control_vector),
        control_vectors=_vector_pair(control_vectors),
        direction=direction,
        strength=strength,
        layer_weights=_numbers(layer_weights),
        token_weights=_numbers(token_weights),
    )
    analysis = AnalysisSettings(
        num_sentences=num_sentences,
        temperature=temperature,
        use_sampling=use_sampling,
        compare_control=compare_control,
        positions=positions,
        mask_strategy=mask_strategy,
        lens=lens,
        lens_path=lens_path,
        metrics=list(metrics),
        top_k=top_k,
        tracked_tokens=tracked_tokens,
        control=control,
    )
    settings = Settings(
        seed=seed,
        analysis=analysis,
        models=default_models() if models is None else dict(models),
        data=data if isinstance(data, DataSettings) else DataSettings(path=None if data is None else str(data)),
        trainer=trainer or TrainerSettings(),
        output=_output(output),
    )
    return run(settings, quiet=quiet, sentences=sentences, resume=resume)


def _output(output: Union[str, Path, OutputSettings, None]) -> OutputSettings:
    if output is None:
        return OutputSettings()
    return output if isinstance(output, OutputSettings) else OutputSettings(dir=str(output))


def _vector(vector: Optional[Vector]) -> Any:
    """Return a vector as settings hold it; a tensor or array stays what it is, so that its width is taken as meant."""
    if isinstance(vector, Path):
        return str(vector)
    return _plain(vector)


def _plain(vector: Any) -> Any:
    """Return lists of numbers as YAML can write them."""
    if isinstance(vector, (list, tuple)):
        return [_plain(row) for row in vector]
    return vector.item() if isinstance(vector, np.generic) else vector


def _vector_pair(pair: Optional[Mapping[str, Vector]]) -> Optional[ControlVectors]:
    if pair is None:
        return None
    unknown = set(pair) - {"positive", "negative"}
    if unknown:
        raise ReportedError(f"control_vectors: got {sorted(pair)}; expected positive, negative or both")
    return ControlVectors(**{name: _vector(vector) for name, vector in pair.items()})


def _numbers(weights: Optional[Weights]) -> Optional[list[float]]:
    if weights is None:
        return None
    numbers = np.asarray(weights.detach().cpu() if isinstance(weights, Tensor) else weights, dtype=np.float64)
    if numbers.ndim != 1:
        raise ReportedError(f"layer_weights, token_weights: got shape {list(numbers.shape)}; expected a row of numbers")
    return [float(number) for number in numbers]

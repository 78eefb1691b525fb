"""`extract`: vectors from contrastive pairs, from Python, with the words of the configuration as arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from llm_entropy.analysis.given import Model, models_by_key, section_of
from llm_entropy.corpus.pairs import rows_of
from llm_entropy.corpus.sentences import refuse_data_beside
from llm_entropy.outputs.extraction.result import ExtractionResult
from llm_entropy.runs.extract import run_extraction
from llm_entropy.settings import (
    DataSettings,
    ExtractionSettings,
    ExtractSettings,
    OutputSettings,
    TrainerSettings,
    default_models,
)
from llm_entropy.settings.extraction import Method, TokenChoice


def extract(
    models: Union[Mapping[str, Model], Model, Sequence[Model], None] = None,
    *,
    pairs: Optional[Iterable[Any]] = None,
    data: Union[str, Path, Mapping[str, Any], DataSettings, None] = None,
    method: Method = "mean_difference",
    position: TokenChoice = "last",
    test_share: float = 0.2,
    splits: int = 200,
    shuffled: int = 10,
    positive_label: Optional[str] = None,
    seed: int = 0,
    trainer: Union[Mapping[str, Any], TrainerSettings, None] = None,
    output: Union[str, Path, Mapping[str, Any], OutputSettings, None] = None,
    resume: bool = False,
    quiet: bool = False,
) -> ExtractionResult:
    """Make a vector for every block of each model from contrastive pairs, and test it on left-out pairs.

    The same as `llm-entropy extract`; every argument is a key of the configuration, with its default.

    Args:
        models: As in `run_analysis`.
        pairs: The pairs themselves, instead of `data`: a list of (positive, negative), or a data frame, a data set or a
            list of mappings with the same columns as `data`.
        data: A file, glob, folder, hub name or `builtin:pairs/tense`, or settings. Columns: `positive`, `negative`, and
            `prompt` if both begin alike; or `text`, and `label` with two values.
        method: `mean_difference`, `pca_difference` or `pca_center`.
        position: Where a text's state is read: `last` token, `mean` over its tokens, or `completion`, the mean over its
            tokens after the prompt.
        test_share: Share of the pairs that is left out.
        splits: How often the other pairs are split into halves, to measure reliability.
        shuffled: Number of vectors that are extracted from permuted labels, for `placebo={"shuffled": ...}`.
        positive_label: Which label is positive; None: the larger number, or the later in the alphabet.
        seed: Seed of every random choice.
        trainer: Devices, nodes, precision.
        output: The folder of runs, or settings.
        resume: Continue the run `output.run_name` if it exists: only what is missing is computed.
        quiet: Whether the terminal shows only warnings and errors.

    Returns:
        `result["gpt2"].vector` is [blocks, hidden], `result["gpt2"].quality` a data frame with a row per block, and
        `result["gpt2"].path` what `run_analysis(control_vector=...)` takes.

    Raises:
        ReportedError: An argument is wrong; the message says which. No files are left behind.
    """
    settings = ExtractionSettings(
        seed=seed,
        models=default_models() if models is None else models_by_key(models),
        data=section_of(data, "data", DataSettings, "path", "what is in memory is given as pairs"),
        trainer=section_of(trainer, "trainer", TrainerSettings),
        output=section_of(output, "output", OutputSettings, "dir"),
        extract=ExtractSettings(method, position, test_share, splits, shuffled, positive_label),
    )
    if pairs is not None:
        refuse_data_beside(settings.data)
    return run_extraction(settings, quiet=quiet, pairs=None if pairs is None else rows_of(pairs), resume=resume)

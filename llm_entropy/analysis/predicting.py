"""`run_analysis`: a run from Python, with the words of the configuration as arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union, cast

from llm_entropy.analysis.given import (
    Model,
    Vector,
    Weights,
    conditions_of,
    loaded_apart,
    models_by_key,
    section_of,
    vector_of,
    vectors_of,
)
from llm_entropy.corpus.sentences import columns_of, refuse_data_beside, texts_of
from llm_entropy.outputs.results import RunResult
from llm_entropy.runs.run import run
from llm_entropy.settings import (
    DEFAULT_METRICS,
    AnalysisSettings,
    ControlSettings,
    ControlVectors,
    DataSettings,
    OutputSettings,
    PlaceboSettings,
    Settings,
    TrainerSettings,
    default_models,
)


def run_analysis(
    models: Union[Mapping[str, Model], Model, Sequence[Model], None] = None,
    *,
    sentences: Optional[Iterable[Any]] = None,
    num_sentences: Union[int, Literal["auto"], None] = "auto",
    temperature: float = 1.0,
    use_sampling: bool = False,
    compare_control: bool = False,
    positions: Literal["last", "all", "generated"] = "last",
    max_new_tokens: Optional[int] = None,
    top_p: Optional[float] = None,
    mask_strategy: Literal["last", "random", "each", "within_word_l2r"] = "last",
    words: bool = False,
    lens: Literal["logit", "raw", "tuned"] = "logit",
    lens_path: Union[str, Path, None] = None,
    metrics: Union[str, Sequence[str]] = DEFAULT_METRICS,
    renyi_order: float = 2.0,
    top_k: int = 5,
    tracked_tokens: int = 3,
    lens_tokens: bool = False,
    control_vector: Optional[Vector] = None,
    control_vectors: Union[Mapping[str, Vector], ControlVectors, None] = None,
    direction: Literal["positive", "negative"] = "positive",
    strength: float = 1.0,
    strengths: Optional[Sequence[float]] = None,
    target_kl: Optional[float] = None,
    layer_weights: Optional[Weights] = None,
    token_weights: Optional[Weights] = None,
    operator: Literal["add", "add_keep_norm", "project_out", "cap"] = "add",
    cap: Optional[float] = None,
    blocks: Union[str, Sequence[int], None] = None,
    tokens: str = "all",
    placebo: Union[Mapping[str, int], PlaceboSettings, None] = None,
    conditions: Optional[Mapping[str, Union[Mapping[str, Any], ControlSettings]]] = None,
    seed: int = 0,
    data: Union[str, Path, Mapping[str, Any], DataSettings, None] = None,
    trainer: Union[Mapping[str, Any], TrainerSettings, None] = None,
    output: Union[str, Path, Mapping[str, Any], OutputSettings, None] = None,
    resume: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Measure what models believe at every layer, over a corpus, and what steering changes.

    The same as `llm-entropy predict`; every argument is a key of the configuration, with its default.

    Args:
        models: A mapping of keys to models. A key names the model's files. A model is a hub name, folder or
            `builtin:...`, settings, or a loaded model: what `open_model` returns, the model itself, or (model,
            tokenizer). Loaded models run in one process, and afterwards are as they were. Without keys, one or several
            names; the keys are then the last parts of the names. Default: gpt2 and bert.
        sentences: The corpus itself, instead of `data`: a list, an iterator (read once), a column, or a data frame or
            data set. Its text column is found as in a file, or named by `data={"text_column": ...}`. Missing values of
            a column are skipped and counted. From an `IterableDataset` the first `num_sentences` are read, or all.
        num_sentences: Number of sentences, picked by `seed`; None: all; auto: all of `sentences` or `data`, or 10 of
            the built-in sentences.
        temperature: Every logit is divided by it.
        use_sampling: Sample the tokens that are predicted or written, instead of taking the most likely ones.
        compare_control: Compare control with standard; false: control alone if a vector is given, else standard alone.
        positions: Where causal models are read: at the last token, at all tokens, or at the tokens that they write.
        max_new_tokens: `positions="generated"`: largest number of tokens to write; None: 32.
        top_p: `positions="generated"` with `use_sampling`: sample among the most likely tokens that together have this
            probability.
        mask_strategy: Which token masked models mask in a sentence without a mask; each: each in turn;
            within_word_l2r: each in turn, with the rest of its word.
        words: Whether to make a table of words; causal models need `positions="all"`, masked ones
            `mask_strategy="within_word_l2r"`.
        lens: How a layer becomes logits.
        lens_path: Folder of a tuned lens.
        metrics: Name or names of the metrics, keys of `llm_entropy.METRICS`.
        renyi_order: Order a of the metric `renyi_entropy`, ln(sum p^a) / (1 - a): above 0, not within 0.02 of 1.
        top_k: How many tokens the predictions list.
        tracked_tokens: Number of the most likely tokens whose probability is tracked over the layers.
        lens_tokens: Record each layer's own most likely token and its probability: the report's lens grid, and
            `result["gpt2"].plot("lens_grid")`.
        control_vector: A file, or [hidden], [blocks, hidden], [blocks + 1, hidden] with row 0 for the embeddings: a
            tensor or array of floating-point numbers, or a list of numbers or of rows.
        control_vectors: `positive` and `negative`, of which `direction` chooses.
        direction: Which of them acts; with a single `control_vector`, negative reverses its sign.
        strength: Factor on every vector.
        strengths: Several factors, instead of `strength`. Each makes a condition: `control_-1`, `control_+0.5`.
        target_kl: Search, for each model, the strength at which the 95th percentile of KL(standard, condition) at the
            last layer is this many nats. `strength` and `strengths` are then multiples of it.
        layer_weights: [blocks], or [blocks + 1] with the first for the embeddings; other lengths are interpolated.
        token_weights: Interpolated over the real tokens of each sentence.
        operator: What happens to the stream; `llm_entropy.steering.operators` has the formulas.
        cap: For the operator `cap`: the largest component along the vector that remains.
        blocks: Which blocks are steered: a list of numbers, or a slice as "8:12"; None: all of the vector's.
        tokens: Which tokens of a sentence are steered, without padding: all, last, prompt, no_special, or a slice.
        placebo: Number of placebos of each kind beside the vector, as `{"random": 20}`; needs `compare_control`.
        conditions: Further steered conditions, by name: each a mapping with `control_vector` or `control_vectors`, and
            any of `direction`, `strength`, `strengths`, `target_kl`, `layer_weights`, `token_weights`, `operator`,
            `cap`, `blocks`, `tokens`, `placebo`.
        seed: Seed of every random choice.
        data: A file, glob, folder or hub name, or settings.
        trainer: Devices, nodes, precision.
        output: The folder of runs, or settings.
        resume: Continue the run `output.run_name` if it exists: only what is missing is computed.
        quiet: Whether the terminal shows only warnings and errors.

    Returns:
        The tables of the run. `result["gpt2"]["standard"]["entropy"]` is a data frame with a row per sentence, in
        corpus order, and a column per layer.

    Raises:
        ReportedError: An argument is wrong; the message says which. No files are left behind.
    """
    by_key, loaded = loaded_apart(default_models() if models is None else models_by_key(models))
    data = section_of(data, "data", DataSettings, "path", "what is in memory is given as sentences")
    # Where a cast stands, the settings make a plain value of what was given.
    control = ControlSettings(
        control_vector=vector_of("analysis.control.control_vector", control_vector),
        control_vectors=vectors_of(control_vectors),
        direction=direction,
        strength=strength,
        strengths=cast(Any, strengths),
        target_kl=target_kl,
        layer_weights=cast(Any, layer_weights),
        token_weights=cast(Any, token_weights),
        operator=operator,
        cap=cap,
        blocks=cast(Any, blocks),
        tokens=tokens,
        placebo=PlaceboSettings() if placebo is None else cast(Any, placebo),
    )
    analysis = AnalysisSettings(
        num_sentences=num_sentences,
        temperature=temperature,
        use_sampling=use_sampling,
        compare_control=compare_control,
        positions=positions,
        max_new_tokens=max_new_tokens,
        top_p=top_p,
        mask_strategy=mask_strategy,
        words=words,
        lens=lens,
        lens_path=cast(Any, lens_path),
        metrics=cast(Any, metrics),
        renyi_order=renyi_order,
        top_k=top_k,
        tracked_tokens=tracked_tokens,
        lens_tokens=lens_tokens,
        control=control,
        conditions=conditions_of(conditions),
    )
    settings = Settings(
        seed=seed,
        analysis=analysis,
        models=by_key,
        data=data,
        trainer=section_of(trainer, "trainer", TrainerSettings),
        output=section_of(output, "output", OutputSettings, "dir"),
    )
    columns = None
    if sentences is not None:
        refuse_data_beside(data)
        number = settings.analysis.num_sentences
        texts = texts_of(sentences, data, None if number == "auto" else number)
        columns, sentences = columns_of(sentences, data, len(texts)), texts
    return run(settings, quiet=quiet, sentences=sentences, columns=columns, resume=resume, loaded=loaded)

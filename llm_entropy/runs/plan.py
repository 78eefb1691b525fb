"""What a run will do to its models, checked before any weight is read, and what must be the same to go on with it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from llm_entropy.corpus.chats import refuse_without_template
from llm_entropy.corpus.corpus import Corpus
from llm_entropy.corpus.encoded import EncodedSentences
from llm_entropy.corpus.encoding import Encoder
from llm_entropy.corpus.words import word_starts
from llm_entropy.errors import ReportedError
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.lens import read_translators
from llm_entropy.models.checkpoints import weight_files
from llm_entropy.models.loaded import content_of
from llm_entropy.models.loading import ModelSource, find_model
from llm_entropy.settings import AnalysisSettings, ControlSettings, DataSettings, ModelSettings, Settings, to_plain
from llm_entropy.steering.plan import SteeringPlan, plan_conditions
from llm_entropy.steering.tokens import special_tokens_of
from llm_entropy.store import manifest
from llm_entropy.store.fingerprints import fingerprint, fingerprint_files
from llm_entropy.store.windows import Task, plan_scheme

log = logging.getLogger("llm_entropy")

BATCHES = "batches."
"""Begins the keys of an identity that say how batches are made."""
SAME_MINOR = ("llm_entropy", "torch", "transformers", "tokenizers")
"""Packages of which another minor version may make other records; another patch differs in the last digits at most."""
SHAPING = ("direction", "layer_weights", "token_weights")
"""Settings of a vector that an identity holds beside the hash of what acts, so that an error can name what differs."""
CHOICES = ("operator", "cap", "blocks", "tokens", "target_kl")
"""As `SHAPING`, where they are not the usual ones: the identities of runs that know none of them stay what they are."""
LEAST_ROOM = 3
"""Fewest tokens of a sentence that a model must have room for beside what it writes, as `data.max_length` has it."""
OF_GENERATION = ("max_new_tokens", "top_p")
"""Settings that an identity holds where they are given, as `CHOICES`."""
LAST_DIGITS = ("numba",)
"""Packages that compile the arithmetic, and do not decide what is computed."""


@dataclass(frozen=True)
class Plan:
    """A model that was found, and what is asked of it."""

    source: ModelSource
    encoder: Encoder
    """Makes examples of its sentences."""
    steering: dict[str, SteeringPlan]
    """How each steered condition steers it, by name."""
    lens_path: Optional[Path]
    """Folder of a tuned lens."""
    max_length: Optional[int]
    """Most tokens of a sentence."""

    def word_starts(self) -> Optional[Tensor]:
        """Return which tokens begin a word or end the text, [vocab]; None where nobody asks, or nobody can tell."""
        if not self.encoder.words or self.encoder.kind == "masked":
            return None
        tokenizer, config = self.source.tokenizer, self.source.config.get_text_config()
        ends = getattr(config, "eos_token_id", None)
        ends = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        found = word_starts(tokenizer, self.source.shape.vocab_size, [token for token in ends if token is not None])
        if found is None:
            log.warning(
                "%s: the tokens of its vocabulary do not begin with white space: the corrected surprisal of words is "
                "empty",
                self.source.key,
            )
        return found

    def asked(self, settings: Settings) -> Asked:
        """Return what the module that measures the model is asked for."""
        return Asked(
            settings.analysis,
            self.steering,
            word_starts=self.word_starts(),
            reads_answers=settings.data.target_column is not None,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the records of this model what they are, beside the settings of the analysis."""
        source, settings = self.source, self.source.settings
        return {
            "name": source.name,
            "revision": source.revision,
            "content": _content(source),
            **({} if source.adapter is None else {"adapter": fingerprint(source.adapter)}),
            "dtype": settings.dtype,
            "tokenizer": self.encoder.fingerprint,
            "max_length": self.max_length,
            **{f"steering.{name}": _steering_hash(plan) for name, plan in self.steering.items()},
            "lens": None if self.lens_path is None else fingerprint(self.lens_path),
        }


def _content(source: ModelSource) -> Optional[str]:
    """Return a name for the content of a local model's files; None for one from the hub."""
    if source.loaded is not None:
        return content_of(source.loaded)
    folder = Path(source.location)
    if not folder.is_dir():
        return None
    if source.gguf_file is not None:
        return fingerprint_files(folder, [folder / source.gguf_file])
    return fingerprint(folder, weight_files(folder))


def plan_model(key: str, model: str | ModelSettings, settings: Settings, loaded: Optional[ModelSource] = None) -> Plan:
    """Check everything about a model that can be checked before its weights are read.

    Args:
        key: The model's.
        model: Which one.
        settings: Of the run.
        loaded: The model, where it was given in memory.

    Raises:
        ReportedError: The model, a control vector, or what is asked of it is wrong.
    """
    analysis, data = settings.analysis, settings.data
    source = loaded or find_model(key, ModelSettings(model) if isinstance(model, str) else model)
    shape = source.shape
    for name, number in (("top_k", analysis.top_k), ("tracked_tokens", analysis.tracked_tokens)):
        if number > shape.vocab_size:
            raise ReportedError(
                f"analysis.{name}: got {number}; the vocabulary of {key} has {shape.vocab_size} tokens, ask for fewer"
            )
    most_tokens = _most_tokens(source, analysis)
    if data.max_length is not None and most_tokens is not None and data.max_length > most_tokens:
        beside = f", and {analysis.num_new_tokens} more are written" if analysis.is_generated else ""
        raise ReportedError(
            f"data.max_length: got {data.max_length}; {key} takes at most {source.most_tokens} tokens{beside}; "
            f"give {'that' if not beside else most_tokens} or less, or null"
        )
    lens_path = None
    if analysis.lens == "tuned":
        assert analysis.lens_path is not None
        lens_path = Path(analysis.lens_path.replace("{model}", key)).expanduser()
        read_translators(lens_path, shape.num_blocks, shape.hidden_size)
    steering = plan_conditions(
        analysis.run_conditions,
        model=key,
        num_blocks=shape.num_blocks,
        hidden_size=shape.hidden_size,
        seed=settings.seed,
        special=special_tokens_of(source.tokenizer, source.architecture.kind),
    )
    max_length = data.max_length or most_tokens
    encoder = Encoder(
        tokenizer=source.tokenizer,
        kind=source.architecture.kind,
        positions=analysis.positions,
        mask_strategy=analysis.mask_strategy,
        seed=settings.seed,
        max_length=max_length,
        num_embeddings=shape.vocab_size,
        words=analysis.words,
        num_new_tokens=analysis.num_new_tokens,
    )
    return Plan(source, encoder, steering, lens_path, max_length)


def _most_tokens(source: ModelSource, analysis: AnalysisSettings) -> Optional[int]:
    """Return how many tokens of a sentence a model can take, with room for what it is to write; None: any number.

    Raises:
        ReportedError: It does not write texts, or has no room for them.
    """
    if not analysis.is_generated:
        return source.most_tokens
    if source.architecture.kind == "masked":
        raise ReportedError(
            f"analysis.positions: got generated, but {source.key} ({source.name}) is a masked model, which does not go "
            "on with a text; leave it out of the models, or set the positions to last"
        )
    if source.most_tokens is None:
        return None
    room = source.most_tokens - (analysis.num_new_tokens - 1)  # the last token is not read
    if room < LEAST_ROOM:
        raise ReportedError(
            f"analysis.max_new_tokens: got {analysis.num_new_tokens}; {source.key} takes at most {source.most_tokens} "
            f"tokens, the sentence's own included; give {max(1, source.most_tokens - LEAST_ROOM + 1)} or less"
        )
    return room


def for_corpus(plan: Plan, corpus: Corpus) -> Plan:
    """Return the plan of a model for what a corpus holds: text, or chats.

    Raises:
        ReportedError: It holds chats, and the model reads none.
    """
    if not corpus.is_chat:
        return plan
    source = plan.source
    refuse_without_template(source.tokenizer, source.key, source.architecture.kind)
    return replace(plan, encoder=replace(plan.encoder, reads_chats=True))


def check_tokens(plan: Plan, corpus: Corpus, task: Task, data: DataSettings) -> None:
    """Make sure that the model knows all tokens, if its tokenizer has others, and can read all answers and chats.

    Where one of these may fail, the sentences are tokenised once more. Those of a stream are checked when they come.

    Args:
        plan: Of the model.
        corpus: Of the run.
        task: Which share of it.
        data: Says whether there are answers.

    Raises:
        ReportedError: A sentence has a token for which the model has no embedding, or an answer or a chat cannot be
            read.
    """
    encoder = plan.encoder
    is_needed = encoder.may_be_unknown or encoder.reads_chats or data.target_column is not None
    if corpus.num_windows is None or not is_needed:
        return
    for window in corpus.for_kind(plan.source.architecture.kind).windows(task):
        EncodedSentences(plan.encoder, window.sentence_ids, window.sentences, window.answers, data.answer_delimiter)


def run_identity(settings: Settings, plans: Sequence[Plan], corpus: str) -> dict[str, Any]:
    """Return everything that decides what a record is, by key, in words that JSON can hold.

    Not in it: how many processes work, on what, and what is made of the records afterwards.

    Args:
        settings: Of the run.
        plans: Of its models.
        corpus: Fingerprint of the corpus.
    """
    analysis = to_plain(settings.analysis)
    if not analysis["words"]:  # as in the runs before there was a choice
        del analysis["words"]
    for name in ("control", "conditions", "lens_path"):
        del analysis[name]  # what they come to counts: the conditions, each model's `steering` and `lens`
    for name in OF_GENERATION:
        if analysis[name] is None:
            del analysis[name]
    identity = {
        "seed": settings.seed,
        "corpus": corpus,
        "data.tokens_per_batch": settings.data.tokens_per_batch,
        **{f"data.{name}": list(columns) for name, columns in settings.data.carried.items()},
        **({"data.answer_delimiter": settings.data.answer_delimiter} if settings.data.target_column else {}),
        "trainer.precision": settings.trainer.precision,
        **{f"{BATCHES}{name}": value for name, value in plan_scheme().items()},
        "models": [plan.source.key for plan in plans],
        **{f"analysis.{name}": value for name, value in analysis.items()},
        "conditions": [condition.name for condition in settings.analysis.run_conditions],
    }
    for condition in settings.analysis.run_conditions:
        if (steering := condition.steering) is not None:
            about = {name: to_plain(getattr(steering.control, name)) for name in (*SHAPING, *CHOICES)}
            about = {name: value for name, value in about.items() if name in SHAPING or value != _usual(name)}
            about |= {
                "strength": steering.strength,
                "placebo": None if steering.placebo is None else steering.placebo.kind,
            }
            identity |= {f"conditions.{condition.name}.{name}": value for name, value in about.items()}
    for plan in plans:
        identity |= {f"models.{plan.source.key}.{name}": value for name, value in plan.identity.items()}
    return identity


def config_hash(identity: dict[str, Any]) -> str:
    """Return a short name for an identity."""
    return _hash(json.dumps(identity, sort_keys=True).encode())


def check_identity(about: Mapping[str, Any], now: dict[str, Any], where: Path) -> None:
    """Make sure that a run is gone on with as it was begun.

    Args:
        about: What `run.json` says.
        now: The identity that is asked for.
        where: The run's folder.

    Raises:
        ReportedError: They differ; all differences are named.
    """
    before, version = about["identity"], manifest.written_by(about)
    other_program = f"resume it with the version that began it, llm_entropy {version}, or start another run"
    if not any(key.startswith(BATCHES) for key in before):
        raise ReportedError(
            f"{where}: run.json does not say how its batches are made, as this version does; {other_program}"
        )
    keys = [*before, *(key for key in now if key not in before)]
    differing = [key for key in keys if before.get(key) != now.get(key)]
    differences = "; ".join(
        f"{key} was {json.dumps(before.get(key))}, now {json.dumps(now.get(key))}" for key in differing
    )
    if any(key.startswith(BATCHES) for key in differing):
        raise ReportedError(f"{where}: this version of llm_entropy makes other batches: {differences}; {other_program}")
    if differing:
        raise ReportedError(
            f"{where}: was begun with another configuration: {differences}; resume it with its own config.yaml, and "
            "with models, corpus and vectors as they were then, or start another run"
        )


def check_versions(about: Mapping[str, Any], now: Mapping[str, str], where: Path) -> None:
    """Make sure that what is still to be computed of a run comes out as what is there.

    Of libraries that decide the numbers another minor version is refused, and another patch is warned of.

    Args:
        about: What `run.json` says.
        now: Versions, by package.
        where: The run's folder.

    Raises:
        ReportedError: Records might differ by more than their last digits.
    """
    before = about.get("versions", {})
    differing = [name for name in (*SAME_MINOR, *LAST_DIGITS) if name in before and before[name] != now[name]]
    if not differing:
        return
    words = ", ".join(f"{name} was {before[name]}, now {now[name]}" for name in differing)
    if any(_minor(before[name]) != _minor(now[name]) for name in differing if name in SAME_MINOR):
        wanted = " ".join(f"{name}=={before[name].partition('+')[0]}" for name in differing)
        raise ReportedError(
            f"{where}: was begun with other versions: {words}; records of both in one run could not be compared; "
            f"resume it with: pip install {wanted}, or start another run"
        )
    log.warning("%s: was begun with other versions: %s; records may differ in their last digits", where, words)


def _minor(version: str) -> list[str]:
    return version.partition("+")[0].split(".")[:2]


def _usual(name: str) -> Any:
    return next(item.default for item in fields(ControlSettings) if item.name == name)


def _steering_hash(plan: SteeringPlan) -> str:
    tensors = [plan.directions, plan.coefficients, plan.token_weights]
    numbers = [b"-" if tensor is None else tensor.cpu().numpy().tobytes() for tensor in tensors]
    # What is as it always was stays out, so that the runs of old have the hashes that they had.
    chosen = [] if plan.tokens == "all" else [plan.tokens, sorted(plan.special.ids), plan.special.close_sentences]
    more = [] if plan.cap is None else [plan.cap]
    about = json.dumps([*more, *chosen]) if more or chosen else ""
    return _hash(plan.operator.encode() + b"".join(numbers) + about.encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

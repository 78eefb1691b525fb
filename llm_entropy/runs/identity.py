"""What must be the same to go on with a run: everything that decides what a record is, by name."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Optional

from llm_entropy.errors import ReportedError
from llm_entropy.models.checkpoints import weight_files
from llm_entropy.models.finding import ModelSource
from llm_entropy.models.loaded import content_of
from llm_entropy.runs.plan import Plan
from llm_entropy.settings import ControlSettings, Settings, to_plain
from llm_entropy.steering.plan import SteeringPlan
from llm_entropy.store import manifest
from llm_entropy.store.fingerprints import fingerprint, fingerprint_files
from llm_entropy.store.windows import plan_scheme

log = logging.getLogger("llm_entropy")

_DIGEST = re.compile("[0-9a-f]{16}|[0-9a-f]{32}")
"""A content's name in an identity; a commit is longer."""
BATCHES = "batches."
"""Begins the keys of an identity that say how batches are made."""
SAME_MINOR = ("llm_entropy", "torch", "transformers", "tokenizers")
"""Packages of which another minor version may make other records; another patch differs in the last digits at most."""
SHAPING = ("direction", "layer_weights", "token_weights")
"""Settings of a vector that an identity holds beside the hash of what acts, so that an error can name what differs."""
CHOICES = ("operator", "cap", "blocks", "tokens", "target_kl")
"""As `SHAPING`, where they are not the usual ones: the identities of runs that know none of them stay what they are."""
OF_GENERATION = ("max_new_tokens", "top_p")
"""Settings that an identity holds where they are given, as `CHOICES`."""
LAST_DIGITS = ("numba",)
"""Packages that compile the arithmetic, and do not decide what is computed."""


def run_identity(settings: Settings, plans: Sequence[Plan], corpus: str) -> dict[str, Any]:
    """Return everything that decides what a record is, by key, in words that JSON can hold.

    Not in it: how many processes work, on what, and what is made of the records afterwards.

    Args:
        settings: Of the run.
        plans: Of its models.
        corpus: Fingerprint of the corpus.
    """
    analysis = to_plain(settings.analysis)
    for name in ("words", "lens_tokens"):
        if not analysis[name]:  # as in the runs before there was a choice
            del analysis[name]
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
        identity |= {f"models.{plan.source.key}.{name}": value for name, value in model_identity(plan).items()}
    return identity


def model_identity(plan: Plan) -> dict[str, Any]:
    """Return what makes the records of a model what they are, beside the settings of the analysis."""
    source, settings = plan.source, plan.source.settings
    return {
        "name": source.name,
        "revision": source.revision,
        "content": _content(source),
        **({} if source.code is None else {"code": source.code}),
        **({} if source.adapter is None else {"adapter": fingerprint(source.adapter)}),
        "dtype": settings.dtype,
        "tokenizer": plan.encoder.fingerprint,
        "max_length": plan.max_length,
        **{f"steering.{name}": _steering_hash(steering) for name, steering in plan.steering.items()},
        "lens": None if plan.lens_path is None else fingerprint(plan.lens_path),
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


def config_hash(identity: dict[str, Any]) -> str:
    """Return a short name for an identity."""
    return _hash(json.dumps(identity, sort_keys=True).encode())


def check_identity(about: Mapping[str, Any], now: dict[str, Any], where: Path) -> None:
    """Make sure that a run is resumed as it was started.

    Args:
        about: What `run.json` says.
        now: The identity that is asked for.
        where: The run's folder.

    Raises:
        ReportedError: They differ; all differences are named.
    """
    before, version = about["identity"], manifest.written_by(about)
    other_program = f"resume it with the version that started it, llm_entropy {version}, or start another run"
    if not any(key.startswith(BATCHES) for key in before):
        raise ReportedError(
            f"{where}: run.json does not say how its batches are made, as this version does; {other_program}"
        )
    keys = [*before, *(key for key in now if key not in before)]
    differing = [key for key in keys if before.get(key) != now.get(key)]
    differences = "; ".join(_difference(key, before.get(key), now.get(key)) for key in differing)
    if any(key.startswith(BATCHES) for key in differing):
        raise ReportedError(f"{where}: this version of llm_entropy makes other batches: {differences}; {other_program}")
    if differing:
        raise ReportedError(
            f"{where}: was started with another configuration: {differences}; resume it with its own config.yaml, and "
            "with models, corpus and vectors as they were then, or start another run"
        )


def _difference(key: str, before: Any, now: Any) -> str:
    """Return in words how a key differs; of a digest only that it does, since nobody can read one."""
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (before, now)):
        return f"{key} has changed"
    return f"{key} was {json.dumps(before)}, now {json.dumps(now)}"


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
            f"{where}: was started with other versions: {words}; records of both in one run could not be compared; "
            f"resume it with: pip install {wanted}, or start another run"
        )
    log.warning("%s: was started with other versions: %s; records may differ in their last digits", where, words)


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

"""What a report says: plain lists and numbers, from what the merge made and from what `run.json` says."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from llm_entropy.outputs.answers import AnswerCurves
from llm_entropy.outputs.groups import GroupCurve
from llm_entropy.outputs.inference.resampling import Interval
from llm_entropy.outputs.inference.student import t_interval
from llm_entropy.outputs.points import with_points
from llm_entropy.outputs.report.numbers import short
from llm_entropy.outputs.report.sentences import shown_sentences
from llm_entropy.outputs.tables import Curves, ModelTables
from llm_entropy.schema.shape import measured_of
from llm_entropy.settings import ALL_METRICS, Condition, Settings
from llm_entropy.store.manifest import CONFIG

LONGEST_CONFIG = 20_000
"""Letters of a configuration that is shown; a longer one is in its file alone."""
LINKED = (".csv", ".parquet", ".png", ".svg", ".pdf", ".json", ".yaml", ".log")
HIDDEN = ("shards",)
SUMMARY_COLUMNS = (
    *("n", "mean_standard", "mean_difference", "ci_low", "ci_high", "effect_size", "p_holm", "share_increased"),
    "placebo_p",
)
DOSE_COLUMNS = ("slope", "slope_ci_low", "slope_ci_high", "share_negative", "spearman", "residual")


def content(run_dir: Path, settings: Settings, about: Mapping[str, Any], tables: Sequence[ModelTables]) -> Any:
    """Return all that the page shows, as JSON holds it.

    Args:
        run_dir: The run's folder, with all other outputs in it.
        settings: Of the run.
        about: What `run.json` says of the complete run.
        tables: What the merge made of each model.
    """
    analysis = settings.analysis
    conditions = analysis.run_conditions
    return short(
        {
            "run": _about_run(run_dir, settings, about),
            "conditions": [_about_condition(one) for one in conditions if one.keeps_tokens],
            "placebos": _about_placebos(conditions),
            "metrics": {name: ALL_METRICS[name]._asdict() for name in _metrics(tables)},
            "models": [_model(one, about["models"][one.model], settings) for one in tables],
            "files": _files(run_dir),
        }
    )


def _about_run(run_dir: Path, settings: Settings, about: Mapping[str, Any]) -> dict[str, Any]:
    analysis, config = settings.analysis, (run_dir / CONFIG).read_text(encoding="utf-8")
    corpus = about["corpus"]
    names = ("source", "fingerprint", "num_rows", "num_sentences", "num_skipped")
    return {
        "name": about["run"],
        "mode": about["mode"],
        "started": about["started"],
        "seed": settings.seed,
        "lens": analysis.lens,
        "positions": analysis.positions,
        "mask_strategy": analysis.mask_strategy,
        "temperature": analysis.temperature,
        "use_sampling": analysis.use_sampling,
        "precision": settings.trainer.precision,
        "corpus": {name: corpus[name] for name in names},
        "versions": about.get("versions", {}),
        "git_commit": about.get("git_commit"),
        "command": _command(settings, about["run"]),
        "machine": {name: about.get(name) for name in ("platform", "processors", "device")},
        "config": config if len(config) <= LONGEST_CONFIG else None,
    }


def _command(settings: Settings, name: str) -> str:
    """Return what makes another run like this one, in the folder in which it was started: its paths are relative."""
    path = Path(settings.output.dir) / name / CONFIG
    return shlex.join(["llm-entropy", "predict", "--config", str(path), "--output.run_name", "null"])


def _about_condition(condition: Condition) -> dict[str, Any]:
    steering = condition.steering
    return {
        "name": condition.name,
        "role": condition.role,
        "vector": steering and steering.source,
        "strength": steering and steering.strength,
        "operator": steering and steering.control.operator,
    }


def _about_placebos(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """Return how many placebos of each kind a vector has, and at which strength."""
    own = Counter(
        (one.steering.source, one.steering.placebo.kind, one.steering.strength)
        for one in conditions
        if one.steering is not None and one.steering.placebo is not None
    )
    names = ("vector", "kind", "strength", "count")
    return [dict(zip(names, (*key, count), strict=True)) for key, count in own.items()]


def _metrics(tables: Sequence[ModelTables]) -> list[str]:
    """Return the metrics that the page shows: those of a condition, those between two, and what else is compared."""
    return list(
        dict.fromkeys(
            [name for one in tables for curves in one.curves.values() for name in _shown(curves, one)]
            + [name for one in tables for compared in one.comparisons.values() for name in compared.between]
            + [name for one in tables if one.summary is not None for name in _shown(one.summary.metric.tolist(), one)]
        )
    )


def _shown(metrics: Iterable[str], tables: ModelTables) -> list[str]:
    """Return the metrics that have a number in any block, as those of the attention of a model without any have not.

    Where these are all there are, they are shown empty.
    """
    every = list(metrics)
    return with_points(every, tables.shape) or every


def _model(tables: ModelTables, about: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    counts = ("num_sentences", "num_records", "num_tokens", "num_cut", "num_own_start", "num_unread", "num_parts")
    names = (
        *("name", "revision", "model_type", "kind", "dtype", "attention", "max_length"),
        *("lens_error_logits", "lens_allowed_logits", "attention_error_nats", "attention_allowed_nats"),
    )
    curves = {name: {metric: own[metric] for metric in _shown(own, tables)} for name, own in tables.curves.items()}
    for name, compared in tables.comparisons.items():
        curves[name] |= compared.between
    return {
        "key": tables.model,
        **{name: about.get(name) for name in (*names, *counts)},
        **tables.shape.plain(),
        "num_layers": tables.shape.num_layers,
        "curves": {
            name: {metric: {"mean": one.mean, "half": _half_width(metric, one)} for metric, one in own.items()}
            for name, own in curves.items()
        },
        "summary": _summary(tables),
        "placebos": {
            vector: {metric: list(own[metric]) for metric in _shown(own, tables)}
            for vector, own in tables.placebos.items()
        },
        "doses": _doses(tables),
        "strengths": _strengths(tables.strengths),
        "untouched": tables.untouched,
        "answers": {name: _answers(curves) for name, curves in tables.answers.items()},
        "groups": _groups(tables.groups),
        "sample": tables.sample
        and shown_sentences(
            tables, tables.sample, _shown(measured_of(settings.analysis, tables.shape), tables), about["kind"]
        ),
    }


def _half_width(metric: str, curves: Curves) -> Any:
    """Return half of the 95 % interval of a mean, by Student's t; NaN where sentences may be left out of the mean."""
    if ALL_METRICS[metric].has_gaps or curves.count < 2:
        return np.full(len(curves.mean), np.nan)
    deviation = curves.deviation * np.sqrt(curves.count / (curves.count - 1))
    return t_interval(curves.count, np.zeros_like(deviation), deviation).high


def _answers(curves: AnswerCurves) -> dict[str, Any]:
    """Return how often, and how much, right answers are preferred, by layer, with the ends of the intervals."""
    return {
        "count": curves.count,
        "accuracy": {"mean": curves.accuracy, **_ends(curves.accuracy_interval)},
        "preference": {"mean": curves.preference, **_ends(curves.preference_interval)},
        "preferred_from": curves.preferred_from,
    }


def _groups(groups: Mapping[str, Mapping[str, Mapping[str, GroupCurve]]]) -> dict[str, Any]:
    """Return the mean of each group by layer, by condition, group and metric, with half of its 95 % interval."""
    return {
        condition: {
            group: {
                metric: {"n": one.n, "mean": one.mean, "half": one.interval.high - one.mean}
                for metric, one in curves.items()
            }
            for group, curves in own.items()
        }
        for condition, own in groups.items()
    }


def _ends(interval: Interval) -> dict[str, Any]:
    return {"low": interval.low, "high": interval.high}


def _summary(tables: ModelTables) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the summary by condition and metric; an empty column is left out."""
    summary = tables.summary
    if summary is None:
        return {}
    rows = _rows_by(summary.condition, summary.metric)
    shown = _shown(dict.fromkeys(summary.metric.tolist()), tables)
    columns = {item.name: getattr(summary, item.name) for item in fields(summary) if item.name in SUMMARY_COLUMNS}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (condition, metric), places in rows.items():
        if metric not in shown:
            continue
        own = {name: values[places] for name, values in columns.items()}
        kept = {name: values for name, values in own.items() if not np.isnan(values.astype(float)).all()}
        found.setdefault(condition, {})[metric] = kept
    return found


def _doses(tables: ModelTables) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the slopes by vector and metric."""
    doses = tables.doses
    found: dict[str, dict[str, dict[str, Any]]] = {}
    if doses is not None:
        shown = _shown(dict.fromkeys(doses.metric.tolist()), tables)
        for (vector, metric), places in _rows_by(doses.vector, doses.metric).items():
            if metric not in shown:
                continue
            found.setdefault(vector, {})[metric] = {name: getattr(doses, name)[places] for name in DOSE_COLUMNS}
    return found


def _strengths(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return how strong each condition is: its relative dose by block, where it is known, and KL at the last layer."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = found.setdefault(row["condition"], {})
        if "relative_dose" in row:
            own.setdefault("relative_dose", []).append(row["relative_dose"])
        else:
            own |= {name: row[name] for name in ("kl_mean", "kl_p95")}
    return found


def _rows_by(first: Any, second: Any) -> dict[tuple[str, str], list[int]]:
    """Return the rows of each pair of names, in order."""
    rows: dict[tuple[str, str], list[int]] = {}
    for place, key in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        rows.setdefault(key, []).append(place)
    return rows


def _files(run_dir: Path) -> list[str]:
    """Return what lies beside the report, for links."""
    paths = (path.relative_to(run_dir) for path in run_dir.rglob("*") if path.suffix in LINKED and path.is_file())
    return sorted(path.as_posix() for path in paths if path.parts[0] not in HIDDEN and not _is_hidden(path))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)

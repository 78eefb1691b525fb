"""What a run leaves of the attention of models that have sinks, blocks without attention, or blocks of other heads."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_families import make_tiny
from tiny_models import CAUSAL_VOCAB, SENTENCES, make_tokenizer
from transformers import PreTrainedModel

from llm_entropy import OutputSettings, measure, open_model, run_analysis
from llm_entropy.commands.summary import print_summary
from llm_entropy.outputs.results import RunResult

HEADS = {"gpt_oss": (4, 4, 4), "laguna": (4, 2, 6), "lfm2": (0, 4, 0), "mamba": (0, 0, 0)}
"""The heads of each block that can be read."""
ASKED = ["entropy", "attention_entropy", "attended_entropy"]
OPTIONS: dict[str, Any] = {
    "metrics": ASKED,
    "positions": "all",
    "conditions": {"up": {"control_vector": torch.linspace(-1.0, 1.5, 32)}},
}
TEXTS = SENTENCES[:5]


@cache
def model(name: str) -> PreTrainedModel:
    return make_tiny(name, vocab=CAUSAL_VOCAB)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Of all of these models, with strengths and placebos."""
    options = {
        **OPTIONS,
        "conditions": {"up": {**OPTIONS["conditions"]["up"], "strengths": [-1, 2], "placebo": {"random": 2}}},
    }
    return run_analysis(
        {name: (model(name), make_tokenizer("causal")) for name in HEADS},
        sentences=TEXTS,
        compare_control=True,
        output=OutputSettings(dir=str(tmp_path_factory.mktemp("runs")), plots=False),
        quiet=True,
        **options,
    )


def by_head(run: RunResult, name: str, condition: str, metric: str) -> np.ndarray:
    """Return a metric of the records, [record, block, head]."""
    numbers = np.stack(run[name][condition].records[metric].tolist())
    return numbers.reshape(len(numbers), len(HEADS[name]), max(*HEADS[name], 1))


def test_the_mass_of_sinks_is_beside_the_entropy_of_models_that_have_them(run: RunResult) -> None:
    for name in HEADS:
        own = [*ASKED, "sink_mass"] if name == "gpt_oss" else ASKED
        assert list(run[name]["standard"]) == own
        assert list(run[name]["up_+2"]) == own
        assert ("sink_mass" in run[name]["standard"].records) == (name == "gpt_oss")
        assert set(run[name].tidy()["metric"]) == set(own)
        files = [path.name for path in run.run_dir.glob(f"*/**/{name}_sink_mass*.csv")]
        assert sorted(set(files)) == (
            ["gpt_oss_sink_mass.csv", "gpt_oss_sink_mass_comparative.csv"] if name == "gpt_oss" else []
        )
    mass = by_head(run, "gpt_oss", "standard", "sink_mass")
    assert ((mass >= 0) & (mass <= 1)).all()
    assert (mass.mean(axis=(0, 2)) > 0.01).all()
    owners = run["gpt_oss"]["standard"].records["sentence_id"]
    expected = pd.DataFrame(mass.mean(axis=2)).groupby(owners.to_numpy()).mean()
    np.testing.assert_allclose(run["gpt_oss"]["standard"]["sink_mass"], expected, rtol=1e-5)
    placebos = run["gpt_oss"].placebos
    assert placebos[placebos["metric"] == "sink_mass"]["mean_difference"].abs().max() > 1e-6
    summary = run["gpt_oss"].summary
    assert (summary[(summary["metric"] == "sink_mass") & (summary["layer"] > 0)]["p_value"] <= 1).all()


@pytest.mark.parametrize("name", HEADS)
def test_heads_and_blocks_that_are_not_there_are_empty_and_no_others(name: str, run: RunResult) -> None:
    for condition in ("standard", "up_+2"):
        found = by_head(run, name, condition, "attention_entropy")
        is_there = np.arange(found.shape[2]) < np.array(HEADS[name])[:, None]
        assert np.array_equal(np.isfinite(found), np.broadcast_to(is_there, found.shape))
        means = run[name][condition]["attention_entropy"]
        assert np.array_equal(np.isfinite(means).any(), np.array(HEADS[name]) > 0)
        owners = run[name][condition].records["sentence_id"].to_numpy()
        for block, num in enumerate(HEADS[name]):
            if num:
                own = pd.Series(found[:, block, :num].mean(axis=1)).groupby(owners).mean()
                np.testing.assert_allclose(means[block], own, rtol=1e-5)
    placebos = run[name].placebos
    own = placebos[placebos["metric"] == "attention_entropy"].groupby("layer")["n"].min()
    assert own.tolist() == [len(TEXTS) if num else 0 for num in HEADS[name]]


def test_what_cannot_be_read_is_said_once_at_load_and_never_again(run: RunResult) -> None:
    said = [line for line in (run.run_dir / "run.log").read_text().splitlines() if " WARNING " in line]
    ours = [line.partition("llm_entropy: models.")[2] for line in said if "llm_entropy: " in line]
    assert [line.partition(": ")[0] for line in ours] == ["gpt_oss", "lfm2", "mamba"], said
    assert ours[0].endswith("its entropy is that of the rest, and sink_mass is that part")
    assert "blocks 0, 2 do not have attention whose scores or weights can be read: it is null there" in ours[1]
    assert "none of its blocks has attention" in ours[2]
    assert not [line for line in said if "RuntimeWarning" in line or "not finite" in line]


def test_the_report_leaves_out_what_no_block_has(run: RunResult) -> None:
    page = (run.run_dir / "report.html").read_text()
    found = json.loads(re.search(r"<script[^>]*type=\"application/json\"[^>]*>(.*?)</script>", page, re.S)[1])
    for model in found["models"]:
        name = model["key"]
        own = {"entropy", *ASKED[1:]} if any(HEADS[name]) else {"entropy"}
        own |= {"sink_mass"} if name == "gpt_oss" else set()
        assert set(model["curves"]["standard"]) == own
        assert set(model["summary"]["up_+2"]) == own | {"kl_from_standard", "top1_changed"}
        assert set(model["doses"]["up"]) == own
        assert set(model["sample"]["metrics"]) == own | {"kl_from_standard", "top1_changed"}
        assert ("heads" in model) == (len(set(HEADS[name])) > 1 or not any(HEADS[name]))


def test_the_terminal_shows_no_number_where_there_is_none(
    run: RunResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_summary(run)
    shown = capsys.readouterr().out
    assert "nan" not in shown
    rows = [line.split() for line in shown.splitlines() if " attention_entropy " in line]
    assert [row[0] for row in rows] == [name for name in HEADS for _ in (-1, 2)]
    last = run["lfm2"]["standard"]["attention_entropy"][1].mean()
    assert f"{last:.4g}" in rows[4]
    assert rows[6] == ["mamba", "attention_entropy", "nats", "up_-1", "not", "tested"]


@pytest.mark.parametrize("name", ["gpt_oss", "laguna", "lfm2"])
def test_a_library_gives_the_numbers_of_the_run(name: str, run: RunResult) -> None:
    frame = measure(open_model(model(name), make_tokenizer("causal")), TEXTS, **OPTIONS)
    for metric in run[name]["standard"]:
        own = frame[(frame["condition"] == "standard") & (frame["metric"] == metric)]
        wide = own.pivot(index=["sentence_id", "position"], columns="layer", values="value")
        means = wide.groupby("sentence_id").mean()
        np.testing.assert_allclose(means, run[name]["standard"][metric], rtol=1e-4, atol=1e-6)


def test_without_csv_files_the_same_is_read_from_the_records(run: RunResult, tmp_path: Path) -> None:
    for name in ("laguna", "lfm2"):
        own = run[name]["up_+2"]
        expected = own["attention_entropy"]
        path = own.place.metric("attention_entropy")
        hidden = path.rename(tmp_path / path.name)
        pd.testing.assert_frame_equal(own["attention_entropy"], expected, rtol=1e-6)
        hidden.rename(path)


def test_a_library_counts_the_tokens_of_a_family_whose_masks_do_not_tell_them() -> None:
    lm = open_model(make_tiny("mpt", vocab=CAUSAL_VOCAB), make_tokenizer("causal"))
    frame = measure(lm, TEXTS, metrics=ASKED[1:])  # of several lengths: there is padding
    entropy, share = (
        frame[frame["metric"] == metric].pivot(index=["sentence_id", "position"], columns="layer", values="value")
        for metric in ASKED[1:]
    )
    positions = entropy.index.get_level_values("position").to_numpy()
    seen = np.log(np.where(positions > 0, positions + 1, np.nan))[:, None]
    np.testing.assert_allclose(share, entropy / seen, rtol=1e-5)

"""Opening a model: what its weights and its code tell goes before what its configuration says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_families import make_tiny, tiny_config
from tiny_models import MAX_POSITIONS, SENTENCES, make_tokenizer, save_model

from llm_entropy import measure, run_analysis
from llm_entropy import open_model as open_in_memory
from llm_entropy.errors import ReportedError
from llm_entropy.models import families
from llm_entropy.models.attention.interface import READABLE, attention_implementation
from llm_entropy.models.families import find_architecture, shape_of
from llm_entropy.models.finding import find_model
from llm_entropy.models.loading import load_model
from llm_entropy.runs.opening import open_model
from llm_entropy.runs.plan import plan_model
from llm_entropy.settings import AnalysisSettings, DataSettings, ModelSettings, OutputSettings, Settings


def test_sentences_that_are_longer_than_the_table_of_positions_are_refused_with_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family that begins its positions behind the padding's, of which nobody has said so."""
    monkeypatch.setitem(families.ROWS, "roberta", {})
    save_model("roberta", tmp_path)
    tokenizer = make_tokenizer("masked")
    tokenizer.model_max_length = 10**9
    tokenizer.save_pretrained(tmp_path)
    analysis = AnalysisSettings(metrics=["entropy"])
    settings = Settings(analysis=analysis, models={"mine": ModelSettings(str(tmp_path))})
    most = MAX_POSITIONS - 2
    words = f"up to {MAX_POSITIONS} tokens .* positions has rows for {most} tokens; give data.max_length: {most}, or"
    with pytest.raises(ReportedError, match=words):
        open_model(plan_model("mine", settings.models["mine"], settings), analysis)
    settings.data = DataSettings(max_length=most)
    opened = open_model(plan_model("mine", settings.models["mine"], settings), analysis)
    assert opened.view.most_tokens == most
    lm = open_in_memory(opened.view.model, tokenizer)
    assert lm.source.most_tokens == most, "in memory the table is known before a sentence is read"


def test_a_model_that_padding_disturbs_is_measured_in_batches_of_one_length(tmp_path: Path) -> None:
    model, tokenizer = make_tiny("fnet"), make_tokenizer("masked")
    lm = open_in_memory(model, tokenizer, name="mine")
    assert not lm.view.takes_padding
    texts = SENTENCES[:8]
    assert len({len(tokenizer(text).input_ids) for text in texts}) > 2
    alone = np.concatenate([_entropies(measure(lm, [text], metrics=["entropy"], positions="last")) for text in texts])
    together = _entropies(measure(lm, texts, metrics=["entropy"], positions="last"))
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    output = OutputSettings(dir=str(tmp_path), plots=False, csv=False)
    result = run_analysis({"mine": lm}, sentences=texts, metrics=["entropy"], output=output, quiet=True)
    np.testing.assert_allclose(result["mine"]["standard"]["entropy"].to_numpy().flatten(), together, rtol=1e-5)


def _entropies(frame: object) -> np.ndarray:
    return frame.sort_values(["sentence_id", "layer"])["value"].to_numpy()  # type: ignore[attr-defined,no-any-return]


def test_a_tower_for_images_that_attends_in_ways_of_its_own_does_not_hinder_the_text(tmp_path: Path) -> None:
    make_tiny("deepseek_vl_hybrid").save_pretrained(tmp_path)
    make_tokenizer("causal").save_pretrained(tmp_path)
    source = find_model("mine", ModelSettings(str(tmp_path)))
    model = load_model(source, precision="32-true", needs_attention=True)
    assert attention_implementation(model) == model.config.text_config._attn_implementation == READABLE
    assert model.config.high_res_vision_config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(("model_type", "is_eager_only"), [("deepseek_v32", True), ("deepseek_v3", False)])
def test_a_model_whose_code_lists_ways_of_attending_attends_in_one_of_them(
    model_type: str, is_eager_only: bool
) -> None:
    assert find_architecture(tiny_config(model_type), "mine").eager_only == is_eager_only


def test_of_sizes_that_differ_from_layer_to_layer_the_largest_counts() -> None:
    config = tiny_config("dots3_note_text")
    assert [layer.num_attention_heads for layer in config.per_layer_config] == [4, 4, 2]
    assert shape_of(config).num_heads == 4

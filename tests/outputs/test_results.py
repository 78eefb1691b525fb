"""What results are at a prompt and in a notebook: short, as tables, as figures, as one long table."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from llm_entropy import run_analysis
from llm_entropy.errors import ReportedError
from llm_entropy.outputs.plots.lettering import token_label
from llm_entropy.outputs.results import RunResult

SENTENCES = ["The king <b>went</b> & saw", "Bread and wine", "A dictionary of words"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run_analysis(
        {"tiny": "builtin:tiny-gpt2"},
        sentences=SENTENCES,
        metrics=["entropy", "attention_entropy"],
        compare_control=True,
        control_vector=np.linspace(-1, 1, 192),
        blocks=[2],
        lens_tokens=True,
        trainer={"accelerator": "cpu"},
        output={"dir": str(tmp_path_factory.mktemp("runs")), "run_name": "a&b", "plots": False},
        quiet=True,
    )


def test_a_result_is_one_short_line(result):
    assert repr(result) == f"<RunResult comparative, in {result.run_dir}: tiny>"
    assert repr(result["tiny"]) == "<ModelResult tiny: standard, control, comparative>"
    assert repr(result["tiny"]["standard"]) == "<ConditionResult tiny, standard: entropy, attention_entropy>"
    assert repr(result["tiny"]["comparative"]).startswith("<ConditionResult tiny, comparative: entropy, attention")


def test_a_notebook_shows_means_and_differences_with_every_sign_escaped(result):
    page = result._repr_html_()
    assert "a&amp;b" in page
    assert "a&b" not in page
    (effect,) = [row for row in result["tiny"].effects if row.at == "last" and row.columns["metric"] == "entropy"]
    assert f"<td>{effect.columns['mean_difference']:+.4g}</td>" in page
    assert result["tiny"]._repr_html_().count("<table>") == 2
    assert "&lt;ConditionResult" in result["tiny"]["control"]._repr_html_()


def test_a_metric_is_a_figure_that_shows_itself(result):
    axes = result["tiny"]["control"].plot("entropy").axes[0]
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), result["tiny"]["control"]["entropy"].mean(), rtol=1e-6)
    figure = result["tiny"].plot("attention_entropy")
    assert figure.axes[0].get_xlabel() == "Block"
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        assert image.size == (704, 440)


def test_the_lens_grid_of_a_model_has_both_conditions_side_by_side_and_that_of_any_sentence(result):
    standard, control, *_ = result["tiny"].plot("lens_grid").axes
    records = result["tiny"]["control"].records
    tokens = np.stack(records["lens_tokens"])
    assert [text.get_text() for text in control.texts] == [token_label(token, 10) for token in tokens.T.ravel()]
    likely = np.stack(records["lens_probabilities"])
    tracked = np.stack(records["tracked_probabilities"]).reshape(len(likely), -1, likely.shape[1])
    np.testing.assert_allclose(likely[:, -1], tracked[:, 0, -1], rtol=1e-5)
    assert (likely >= tracked.max(axis=1) * (1 - 1e-5)).all()
    assert len(standard.texts) == len(control.texts) == tokens.size
    (axes, _) = result["tiny"]["standard"].plot("lens_grid", sentence=2).axes
    assert len(axes.texts) == tokens.shape[1]
    with pytest.raises(ReportedError, match="sentence: got 1, but entropy is drawn for all of them"):
        result["tiny"].plot("entropy", sentence=1)
    with pytest.raises(ReportedError, match="sentence: got 3; tiny has sentences 0 to 2"):
        result["tiny"].plot("lens_grid", sentence=3)


def test_a_comparison_is_a_figure_with_both_means_and_the_interval(result):
    compared = result["tiny"]["comparative"]
    axes = compared.plot("entropy").axes[0]
    for line, name in zip(axes.lines, ("standard", "control"), strict=False):
        np.testing.assert_allclose(line.get_ydata(), result["tiny"][name]["entropy"].mean(), rtol=1e-6)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "95 % interval of the mean difference" in labels
    assert "layers untouched by steering" in labels
    assert compared.plot("kl_from_standard").axes[0].get_ylabel() == "KL from standard to control (nats)"


def test_the_models_of_a_run_are_a_figure(result):
    left, right = result.plot("entropy").axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("Entropy (nats)", "Entropy / ln V")


def test_a_metric_that_was_not_measured_is_no_figure(result):
    for one in (result, result["tiny"], result["tiny"]["standard"]):
        with pytest.raises(KeyError, match="'margin': the run has entropy, attention_entropy"):
            one.plot("margin")


def test_everything_is_one_long_table(result):
    table = result.tidy()
    assert list(table.columns) == ["model", "condition", "metric", "row", "sentence", "layer", "value"]
    assert len(table) == 2 * len(SENTENCES) * (6 + 5)
    one = table[(table.condition == "control") & (table.metric == "entropy") & (table.row == 1)]
    assert one.sentence.unique().tolist() == [SENTENCES[1]]
    np.testing.assert_array_equal(one.value, result["tiny"]["control"]["entropy"].iloc[1])
    compared = result["tiny"]["comparative"].tidy()
    rows = compared[(compared.metric == "entropy") & (compared.quantity == "difference") & (compared.row == 2)]
    expected = result["tiny"]["comparative"]["entropy"].xs("difference", level="quantity").iloc[2]
    np.testing.assert_array_equal(rows.value, expected)

"""Every figure is drawn from made-up tables; what is drawn is looked up in the axes, what is saved in the file."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import shards
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from PIL import Image

from llm_entropy.outputs.plots import (
    canvas,
    comparative,
    draw_model,
    draw_side_by_side,
    figures_of_model,
    figures_side_by_side,
    impact,
    lettering,
)
from llm_entropy.outputs.plots import condition as condition_plots
from llm_entropy.outputs.plots.condition import draw_trajectories, spread
from llm_entropy.outputs.tables import Curves, ModelTables
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import COMPARISON_METRICS, METRICS, AnalysisSettings, ControlSettings

PRINT_DPI = canvas.DPI
"""What a user gets, read before `small_plots` has made it small."""
DEFAULT = ("entropy", "perplexity", "margin", "kl_divergence", "attention_entropy", "surprisal")


def make(run_dir: Path, analysis: AnalysisSettings, *, key="tiny", num=12, shape=shards.SHAPE, sentences=None):
    texts = sentences or [f"{shards.SENTENCES[index % 10]} {index}" for index in range(num)]
    shards.write(run_dir, key, shards.table(texts, analysis, shape))
    return shards.merge(run_dir, key, analysis, shape, parquet=False)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> ModelTables:
    """Of a comparative run with three of the metrics."""
    analysis = shards.comparative(metrics=["entropy", "perplexity", "attention_entropy"])
    return make(tmp_path_factory.mktemp("run"), analysis, num=250)


def listen_to_titles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return a list that the titles and the lines below them come to."""
    titles = []
    original = canvas.write_title

    def listen(figure, title, subtitle):
        titles.append((title, subtitle))
        original(figure, title, subtitle)

    for module in ("comparative", "condition", "dose_response", "overview"):
        monkeypatch.setattr(f"llm_entropy.outputs.plots.{module}.write_title", listen)
    return titles


def names(drawn: list[Path], run_dir: Path) -> set[str]:
    return {str(path.relative_to(run_dir)) for path in drawn}


def curves_of(rows: np.ndarray) -> Curves:
    with np.errstate(invalid="ignore"):
        return Curves(len(rows), rows.mean(axis=0), rows.std(axis=0), rows.astype(np.float32))


# --- the files ---------------------------------------------------------------------------------------------------


def test_a_comparative_run_has_every_figure_that_is_promised(tmp_path):
    drawn = draw_model(make(tmp_path, shards.comparative()), tmp_path)
    expected = {f"{name}/plots/tiny_{metric}.png" for name in ("standard", "control") for metric in DEFAULT}
    expected |= {f"{name}/plots/tiny_token_probabilities.png" for name in ("standard", "control")}
    expected |= {f"comparative/plots/tiny_{m}_{what}.png" for m in DEFAULT for what in ("comparison", "differences")}
    expected |= {f"comparative/plots/tiny_{what}.png" for what in ("layer_impact", *COMPARISON_METRICS, "summary")}
    assert names(drawn, tmp_path) == expected
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")} == expected
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("mode", ["standard", "control"])
def test_a_run_of_one_condition_has_the_figures_of_that_condition(tmp_path, mode):
    control = ControlSettings(control_vector=[0.1] if mode == "control" else None)
    result = make(tmp_path, AnalysisSettings(metrics=["margin"], control=control))
    drawn = draw_model(result, tmp_path) + draw_side_by_side([result], tmp_path)
    files = ("tiny_margin", "tiny_token_probabilities", "models_margin")
    assert names(drawn, tmp_path) == {f"{mode}/plots/{file}.png" for file in files}


def test_many_conditions_have_their_figures_in_their_own_folders_and_under_their_own_names(tmp_path, monkeypatch):
    titles, colours = listen_to_titles(monkeypatch), set()
    monkeypatch.setattr(canvas, "_rendered", lambda figure: Image.new("L", (1, 1)))
    original = condition_plots.draw_trajectories

    def listen(axes, curves, metric, colour, **more):
        colours.add(colour)
        original(axes, curves, metric, colour, **more)

    monkeypatch.setattr(condition_plots, "draw_trajectories", listen)
    result = make(tmp_path, shards.dose(metrics=["entropy"]), num=3)
    drawn = draw_model(result, tmp_path) + draw_side_by_side([result], tmp_path)
    steered = [f"control_{strength:+g}" for strength in (-2, -1, 1, 2)]  # 0 is the standard run
    own = ("entropy", "token_probabilities")
    expected = {
        f"{one}/plots/tiny_{file}.png" for one in ("standard", *(f"control/{n}" for n in steered)) for file in own
    }
    compared = ("entropy_comparison", "entropy_differences", "layer_impact", *COMPARISON_METRICS)
    expected |= {f"comparative/{name}/plots/tiny_{file}.png" for name in steered for file in compared}
    expected |= {f"comparative/plots/tiny_{file}.png" for file in ("entropy_dose_response", "summary")}
    assert names(drawn, tmp_path) == expected | {"standard/plots/models_entropy.png"}
    assert len(drawn) == len(titles) + 1
    assert [title for title, _ in titles][:2] == [
        "Entropy by layer, standard",
        "How the final answer emerges, standard",
    ]
    assert [title for title, _ in titles][-7:] == [
        "Entropy by layer, standard and control_+2",
        "Entropy by layer, control_+2 \N{MINUS SIGN} standard",
        "Where control_+2 acts: standardised effect by metric and layer",
        "How far control_+2 moves the prediction, by layer",
        "Where control_+2 changes the most likely token, by layer",
        "Entropy by strength of control",
        "What each condition changes, by depth",
    ]
    assert colours == {canvas.BLUE, canvas.VERMILLION}


def test_without_a_standard_run_the_models_are_drawn_side_by_side_for_each_condition(tmp_path):
    control = ControlSettings(control_vector=[0.1], strengths=[1, 2])
    result = make(tmp_path, AnalysisSettings(metrics=["margin"], control=control), num=3)
    drawn = draw_side_by_side([result, result], tmp_path)
    expected = {f"control/{name}/plots/models_margin.png" for name in ("control_+1", "control_+2")}
    assert names(drawn, tmp_path) == expected


def test_a_comparison_is_lettered_with_the_names_of_its_conditions_the_long_ones_shortened(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(canvas, "_rendered", lambda figure: figures.append(figure) or Image.new("L", (1, 1)))
    name = "what-the-king-james-bible-does"
    analysis = AnalysisSettings(
        compare_control=True, conditions={name: ControlSettings(control_vector=[0.1])}, metrics=["entropy"]
    )
    draw_model(make(tmp_path, analysis, num=3), tmp_path)
    both, kl = figures[-6], figures[-3]
    shown = lettering.shorten(name, canvas.MOST_NAME)
    assert "…" in shown
    labels = [text.get_text() for text in both.axes[0].get_legend().get_texts()]
    assert labels[:2] == ["standard, mean", f"{shown}, mean"]
    assert [line.get_color() for line in both.axes[0].lines[:2]] == [canvas.BLUE, canvas.VERMILLION]
    assert kl.axes[0].get_ylabel() == f"KL from standard to {shown} (nats)"


def test_a_figure_is_a_whole_png_at_print_resolution_on_white(tmp_path, tables, monkeypatch):
    monkeypatch.setattr(canvas, "DPI", PRINT_DPI)
    for path in draw_model(tables, tmp_path) + draw_side_by_side([tables, tables], tmp_path):
        assert 5_000 < path.stat().st_size < 300_000
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert image.info["dpi"] == pytest.approx((PRINT_DPI, PRINT_DPI), rel=1e-3)
            assert min(image.size) > 2.5 * PRINT_DPI
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert PRINT_DPI >= 200


def test_drawing_changes_no_setting_of_matplotlib(tmp_path, tables):
    before = dict(mpl.rcParams)
    with mpl.rc_context({"text.usetex": True, "font.size": 30}):
        draw_side_by_side([tables], tmp_path)
    assert dict(mpl.rcParams) == before


def test_a_figure_that_fails_leaves_no_file(tmp_path):
    def fail(_: Figure) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        canvas.Drawing(tmp_path / "plots/x.png", 3, 2, fail, ("entropy",)).save()
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("num", "shape", "key"),
    [(1, shards.SHAPE, "_a$b$"), (2, ModelShape(1, 1, 8, 50), "two"), (5, ModelShape(80, 1, 8, 50), "deep")],
)
def test_few_sentences_shallow_and_deep_models_and_odd_keys_are_drawn_without_warnings(tmp_path, num, shape, key):
    texts = ["$x_1$ 月亮 😀 \x07 \ud7ff" * 40, "b\n\r", "", " ", "NA"][:num]
    analysis = shards.comparative(metrics=["perplexity", "attention_entropy", "target_rank"], tracked_tokens=1)
    result = make(tmp_path, analysis, shape=shape, sentences=texts, key=key)
    draw_model(result, tmp_path)
    draw_side_by_side([result], tmp_path)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_constants_and_missing_numbers_are_drawn_without_warnings(tmp_path, tables, value):
    changed = copy.deepcopy(tables)
    compared, summary = changed.comparisons["control"], changed.summary
    numbers = {name: column for name, column in vars(summary).items() if column.dtype == np.float64}
    changed.summary = replace(summary, **{name: np.full_like(column, value) for name, column in numbers.items()})
    for metric, comparison in compared.metrics.items():
        rows = np.full((20, len(comparison.baseline.mean)), value)
        comparison.baseline = comparison.other = curves_of(rows + 1)
        comparison.difference = curves_of(rows)
        changed.curves["standard"][metric] = curves_of(rows + 1)
    for metric in COMPARISON_METRICS:
        compared.between[metric] = curves_of(rows)
    draw_model(changed, tmp_path)
    draw_side_by_side([changed], tmp_path)


BLOCK_METRICS = ["attention_entropy", "attended_entropy"]


def with_heads(run_dir: Path, *heads: int, key: str = "tiny", metrics: list[str] | None = None) -> ModelTables:
    shape = shards.SHAPE._replace(heads=heads)
    control = ControlSettings(control_vector=[0.1], strengths=[-1, 2])
    analysis = shards.comparative(metrics=metrics or ["entropy", *BLOCK_METRICS])
    return make(run_dir, replace(analysis, control=control), num=5, shape=shape, key=key)


def test_a_curve_goes_on_over_blocks_without_attention(tmp_path):
    result = with_heads(tmp_path, 0, 2, 0, 2)
    shown = {figure.path.relative_to(tmp_path).as_posix(): figure for figure in figures_of_model(result, tmp_path)}
    own = shown["standard/plots/tiny_attention_entropy.png"].figure()
    mean = own.axes[0].lines[0]
    assert mean.get_xdata().tolist() == [1, 3]
    np.testing.assert_allclose(mean.get_ydata(), result.curves["standard"]["attention_entropy"].mean[[1, 3]])
    assert mean.get_marker() == "o"
    assert own.axes[0].get_xticks().tolist() == [0, 1, 2, 3]
    assert any("attention in 2 of 4 blocks" in text.get_text() for text in own.findobj(Annotation))
    for line in shown["comparative/control_+2/plots/tiny_attention_entropy_comparison.png"].figure().axes[0].lines:
        assert line.get_xdata().tolist() == [1, 3]
    panels = shown["comparative/plots/tiny_summary.png"].figure().axes
    titles = [axes.get_title(loc="left") for axes in panels]
    overview = panels[titles.index("Attention entropy (nats)")]
    assert [1, 3] in [list(line.get_xdata()) for line in overview.lines]
    doses = shown["comparative/plots/tiny_attention_entropy_dose_response.png"].figure()
    assert all(np.isfinite(axes.lines[0].get_ydata()).all() for axes in doses.axes)


def test_one_block_with_attention_is_seen(tmp_path):
    result = with_heads(tmp_path, 0, 0, 2, 0, metrics=["attention_entropy"])
    figures = {figure.path.name: figure for figure in figures_of_model(result, tmp_path)}
    (axes,) = figures["tiny_attention_entropy.png"].figure().axes
    assert (list(axes.lines[-1].get_xdata()), axes.lines[-1].get_marker()) == ([2], "o")
    (deviation,) = axes.patches
    mean = result.curves["standard"]["attention_entropy"].mean[2]
    assert axes.get_ylim()[0] < deviation.get_y() < mean < deviation.get_y() + deviation.get_height()
    doses = figures["tiny_attention_entropy_dose_response.png"].figure().axes
    assert doses[0].get_title(loc="left").startswith("Last block with attention (2)")
    cells = figures["tiny_layer_impact.png"].figure().axes[0].texts
    assert [text.get_position()[0] for text in cells if text.get_text() == "\u2013"] == [0, 1, 3, 4]


def test_of_a_model_without_attention_there_is_no_figure_of_it(tmp_path):
    result = with_heads(tmp_path, 0, 0, 0, 0)
    figures = {figure.path.name: figure for figure in figures_of_model(result, tmp_path)}
    assert not [name for name in figures if "atte" in name]
    assert "tiny_entropy_dose_response.png" in figures
    labels = figures["tiny_layer_impact.png"].figure().axes[0].get_yticklabels()
    assert [text.get_text() for text in labels] == ["Entropy"]
    titles = [axes.get_title(loc="left") for axes in figures["tiny_summary.png"].figure().axes]
    assert titles == ["Entropy (nats)", "KL from standard (nats)", "Share of changed top tokens"]


def test_a_model_without_attention_leaves_the_others_their_colours_side_by_side(tmp_path):
    results = [
        with_heads(tmp_path, *heads, key=f"m{num}") for num, heads in enumerate([(2,) * 4, (0,) * 4, (0, 2, 0, 2)])
    ]
    shown = {figure.path.name: figure for figure in figures_side_by_side(results, tmp_path)}
    lines = shown["models_attention_entropy.png"].figure().axes[0].lines
    assert [line.get_color() for line in lines] == [canvas.PALETTE[0], canvas.PALETTE[2]]
    np.testing.assert_allclose(lines[1].get_xdata(), [1 / 3, 1])
    alone = [with_heads(tmp_path, 0, 0, 0, 0, key="alone", metrics=BLOCK_METRICS)]
    assert not figures_side_by_side(alone, tmp_path)
    assert "alone_layer_impact.png" not in [figure.path.name for figure in figures_of_model(alone[0], tmp_path)]


def test_bands_keep_to_the_values_that_there_can_be():
    rows = np.array([[0.0, 0.9, -3.0], [1.0, 1.0, 5.0]])
    bands = {metric: canvas.band(curves_of(rows), metric) for metric in ("entropy", "entropy_change", "top1_changed")}
    for metric, low, high in (
        ("entropy", [0, 0.9, 0], [1, 1, 5]),
        ("entropy_change", [0, 0.9, -3], [1, 1, 5]),
        ("top1_changed", [0, 0.9, 0], [1, 1, 1]),
    ):
        np.testing.assert_allclose(bands[metric], [low, high], atol=1e-12)


@pytest.mark.parametrize("num", [1, 12])
def test_metrics_with_empty_layers_and_flags_have_their_figures(tmp_path, num, monkeypatch):
    impacts = []
    original = impact._impact
    monkeypatch.setattr(impact, "_impact", lambda *given: impacts.append(original(*given)) or impacts[-1])
    new = ["residual_norm", "entropy_change", "top1_agreement", "attended_entropy", "renyi_entropy"]
    result = make(tmp_path, shards.comparative(metrics=new), num=num)
    drawn = draw_model(result, tmp_path) + draw_side_by_side([result], tmp_path)
    expected = {f"comparative/plots/tiny_{name}.png" for name in COMPARISON_METRICS}
    expected |= {f"standard/plots/models_{metric}.png" for metric in new}
    assert expected <= names(drawn, tmp_path)
    missing = impacts[0].missing
    assert missing[:, 0].tolist() == [metric == "entropy_change" for metric in new]
    assert missing[:, -1].tolist() == [metric == "attended_entropy" for metric in new]


# --- what is drawn -----------------------------------------------------------------------------------------------


def test_single_sentences_are_at_most_two_hundred_and_the_mean_is_the_black_line():
    rows = np.random.default_rng(0).normal(5, 1, (2_000, 6))
    axes = Figure().add_subplot()
    draw_trajectories(axes, curves_of(rows), "entropy", "#0072B2")
    (singles,) = [item for item in axes.collections if type(item) is LineCollection]
    assert len(singles.get_segments()) == 200
    (mean,) = axes.lines
    np.testing.assert_array_equal(mean.get_ydata(), rows.mean(axis=0))
    assert mean.get_color() == canvas.BLACK
    low, high = canvas.band(curves_of(rows), "entropy")
    np.testing.assert_allclose([low, high], [rows.mean(0) - rows.std(0), rows.mean(0) + rows.std(0)])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["emb.", "1", "2", "3", "4", "5"]
    assert axes.get_ylabel() == "Entropy (nats)"


def test_perplexity_has_a_logarithmic_axis_and_the_deviation_of_its_logarithm():
    rows = np.exp(np.random.default_rng(0).normal(5, 2, (300, 6)))
    axes = Figure().add_subplot()
    draw_trajectories(axes, curves_of(rows), "perplexity", "#0072B2")
    assert axes.get_yscale() == "log"
    low, high = canvas.band(curves_of(rows), "perplexity")
    logs = np.log(rows)
    np.testing.assert_allclose(np.log([low, high]), [logs.mean(0) - logs.std(0), logs.mean(0) + logs.std(0)], rtol=1e-5)


def test_the_differences_are_quantiles_of_the_sample_about_a_line_at_zero():
    rows = np.random.default_rng(0).normal(0.5, 1, (400, 4))
    axes = Figure().add_subplot()
    comparative._draw_differences(axes, curves_of(rows), "entropy")
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    ends = np.array([[bar.get_y(), bar.get_y() + bar.get_height()] for bar in bars]).reshape(2, 4, 2)
    for found, levels in zip(ends, [(0.05, 0.95), (0.25, 0.75)], strict=True):
        np.testing.assert_allclose(found, np.quantile(rows, levels, axis=0).T, rtol=1e-5, atol=1e-6)
    assert any(np.array_equal(line.get_ydata(), [0, 0]) for line in axes.lines)


def test_the_heat_map_is_centred_and_annotated_and_has_a_dash_where_there_is_no_block(tables):
    figure = Figure()
    impact.draw_impact(figure, tables, tables.comparisons["control"])
    axes = figure.axes[0]
    (image,) = axes.images
    assert image.norm.vmin == -image.norm.vmax
    assert [text.get_position() for text in axes.texts if text.get_text() == "\N{EN DASH}"] == [(4, 2)]
    assert len(axes.texts) == 3 * 5
    assert not axes.patches, "it is not known which layers are untouched"
    effects = tables.summary.effect_size[tables.summary.metric == "entropy"]
    np.testing.assert_allclose(np.clip(effects, -2 * image.norm.vmax, 2 * image.norm.vmax), image.get_array()[0])
    assert axes.texts[4].get_text() == f"{effects[4]:+.2f}"


def test_titles_name_the_model_the_metric_and_the_number_of_sentences(tables, tmp_path, monkeypatch):
    titles = listen_to_titles(monkeypatch)
    monkeypatch.setattr(canvas, "_rendered", lambda figure: Image.new("L", (1, 1)))  # titles are made before
    drawn = draw_model(tables, tmp_path)
    assert len(titles) == len(drawn)
    assert all("tiny (builtin:tiny) · 250 sentences" in subtitle for _, subtitle in titles)
    assert titles[0] == ("Entropy by layer, standard", "tiny (builtin:tiny) · 250 sentences · 200 of them drawn")


def test_models_are_drawn_over_relative_depth_and_as_a_share_of_ln_v(tables, tmp_path, monkeypatch):
    figures = []
    original = canvas._rendered
    monkeypatch.setattr(canvas, "_rendered", lambda figure: figures.append(figure) or original(figure))
    other = copy.deepcopy(tables)
    other.model = "_other"
    draw_side_by_side([tables, other], tmp_path)
    left, right = figures[0].axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("Entropy (nats)", "Entropy / ln V")
    mean = tables.curves["standard"]["entropy"].mean
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(left.lines[0].get_ydata(), mean)
    np.testing.assert_allclose(right.lines[0].get_ydata(), mean / np.log(4000))
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == [f"{key}: 250 sentences, 4 blocks, V = 4,000" for key in ("tiny", "_other")]
    assert len(figures) == len(tables.curves["standard"])
    assert all(len(figure.axes) == 1 for figure in figures[1:])


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" the", "␣the"),
        ("##ing", "##ing"),
        ("$x_1$", "$x_1$"),
        ("\n", "“↵”"),
        (",", "“,”"),
        ("", "“”"),
        ("月", "U+6708"),
        (" 月", "␣ U+6708"),
        ("antidisestablishment", "antidi…ishment"),
    ],
)
def test_tokens_show_their_white_space_and_what_the_font_lacks(token, label):
    assert lettering.token_label(token) == label


def test_sentences_are_on_one_line_in_characters_of_the_font():
    assert lettering.plain(" a\r\n b\t月😀\x07 $é_ ") == "a b □😀□ $é_"


def test_long_sentences_keep_their_end_on_the_lines_they_have():
    text = " ".join(f"word{index}" for index in range(60))
    lines = lettering.wrapped(text, 46, 2).split("\n")
    assert len(lines) == 2
    assert max(map(len, lines)) <= 46
    assert lines[0].startswith("word0 word1 ")
    assert lines[1].endswith("word58 word59")
    assert "…" in "".join(lines)
    assert lettering.wrapped("short", 46, 2) == "short"
    assert max(map(len, lettering.wrapped("x" * 300, 46, 2).split("\n"))) <= 46


@pytest.mark.parametrize("num_points", [1, 2, 13, 14, 25, 33, 49, 81, 127])
def test_ticks_are_whole_numbers_from_the_first_to_the_last_and_not_too_many(num_points):
    ticks = canvas.thinned(num_points)
    assert (ticks[0], ticks[-1]) == (0, num_points - 1)
    assert len(ticks) <= canvas.MOST_TICKS + 1
    assert np.diff(ticks).min(initial=num_points) >= np.diff(ticks).max(initial=1) / 2


def test_labels_are_moved_apart_and_keep_their_order():
    placed = spread(np.array([0.9, 0.02, 0.01, 0.02]), 0.1)
    np.testing.assert_allclose(placed, [0.9, 0.11, 0.01, 0.21])


@pytest.mark.parametrize(
    ("effect", "text"),
    [
        (0.0, "0"),
        (0.004, "0.00"),
        (-0.004, "0.00"),
        (0.5, "+0.50"),
        (-1.25, "\N{MINUS SIGN}1.25"),
        (-12.34, "\N{MINUS SIGN}12.3"),
        (1e5, "+≫"),
        (-np.inf, "\N{MINUS SIGN}∞"),
    ],
)
def test_effects_are_written_short(effect, text):
    assert impact.effect_text(effect) == text


def test_the_metrics_of_the_schema_all_have_an_axis_label():
    assert canvas.axis_label("perplexity") == "Perplexity"
    assert canvas.axis_label("kl_divergence") == "KL from uniform (nats)"
    assert len({canvas.axis_label(metric) for metric in METRICS}) == len(METRICS)

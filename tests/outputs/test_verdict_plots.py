"""How sure a difference is, in figures: intervals, marks, placebos and untouched layers, looked up in the axes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shards
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

from llm_entropy.outputs.effects import SteeringFacts
from llm_entropy.outputs.merge import MergeOptions, MergeSource, merge_model
from llm_entropy.outputs.places import placebos_path
from llm_entropy.outputs.plots import canvas, comparative, dose_response, draw_model, impact, overview, verdict
from llm_entropy.outputs.tables import Curves, ModelTables
from llm_entropy.schema.shards import column
from llm_entropy.settings import COMPARISON_METRICS, AnalysisSettings, Condition, ControlSettings, compared

METRICS = ["entropy", "perplexity", "attention_entropy"]
FIRST = 2
"""First steered layer of the made-up model."""


def make(run_dir: Path, analysis: AnalysisSettings, whole: pa.Table, facts: dict[str, SteeringFacts]) -> ModelTables:
    shards.write(run_dir, "tiny", whole)
    ledger = shards.ledger_of(run_dir, "tiny")
    source = MergeSource("tiny", "builtin:tiny", "causal", shards.SHAPE, ledger, facts)
    return merge_model(run_dir, source, analysis, MergeOptions(csv=False, parquet=False))


def numbered(count: int) -> list[str]:
    return [f"sentence {index}" for index in range(count)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def dosed(run_dir) -> ModelTables:
    """Of five strengths of one vector, one of them 0, and two placebos, steered from layer 2 on."""
    analysis = shards.dose(metrics=METRICS)
    facts = {one.other.name: SteeringFacts(FIRST) for one in compared(analysis.run_conditions)}
    facts["control_-2"] = SteeringFacts(None)
    return make(run_dir, analysis, shards.table(numbered(250), analysis), facts)


@pytest.fixture
def quick(monkeypatch) -> list[Figure]:
    """Leave out the pixels, and return the list that figures come to."""
    figures: list[Figure] = []
    monkeypatch.setattr(canvas, "_rendered", lambda figure: figures.append(figure) or Image.new("L", (1, 1)))
    return figures


def steered(tables: ModelTables, name: str) -> Condition:
    return tables.comparisons[name].comparison.other


def ends_of(area: Artist) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper end of a filled area, at each x."""
    corners = area.get_paths()[0].vertices
    places = np.unique(corners[:, 0])
    heights = [corners[corners[:, 0] == place, 1] for place in places]
    return np.array([height.min() for height in heights]), np.array([height.max() for height in heights])


def areas_at(axes: Axes, zorder: float) -> list[Artist]:
    return [item for item in axes.collections if item.get_zorder() == zorder and not isinstance(item, LineCollection)]


def words(legend: Legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def with_numbers(tables: ModelTables, condition: str, metric: str, **columns: list[float]) -> ModelTables:
    """Return tables whose summary has other numbers for a condition and metric."""
    changed = copy.copy(tables)
    own = (tables.summary.condition == condition) & (tables.summary.metric == metric)
    new = {name: getattr(tables.summary, name).copy() for name in columns}
    for name, numbers in columns.items():
        new[name][own] = numbers
    changed.summary = replace(tables.summary, **new)
    return changed


# --- what plots are given ----------------------------------------------------------------------------------------


def test_the_tables_hold_the_placebos_by_vector_and_the_layers_that_steering_does_not_reach(dosed, run_dir):
    rows = pq.read_table(placebos_path(run_dir, "tiny")).to_pandas()
    assert set(dosed.placebos) == {"control"}
    assert set(dosed.placebos["control"]) == {*METRICS, *COMPARISON_METRICS}
    for metric, means in dosed.placebos["control"].items():
        own = rows[rows.metric == metric].pivot(index="condition", columns="layer", values="mean_difference")
        np.testing.assert_array_equal(np.sort(means, axis=0), np.sort(own.to_numpy(), axis=0))
    reached = dict.fromkeys(["control_-1", "control_+0", "control_+1", "control_+2"], FIRST)
    assert dosed.untouched == {"control_-2": shards.SHAPE.num_layers, **reached}


def test_of_a_model_whose_steering_is_not_known_nothing_is_called_untouched(tmp_path):
    analysis = shards.comparative(metrics=["entropy"])
    tables = make(tmp_path, analysis, shards.table(numbered(3), analysis), {})
    assert tables.untouched == {}
    assert tables.placebos == {}
    assert verdict.num_untouched(tables, steered(tables, "control")) == 0
    assert verdict.placebo_means(tables, steered(tables, "control"), "entropy").shape == (0, 5)


# --- both conditions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_the_interval_of_the_mean_difference_is_drawn_about_the_mean_of_the_other_condition(dosed, quick, metric):
    both = dosed.comparisons["control_+2"].metrics[metric]
    rows = verdict.verdict(dosed, steered(dosed, "control_+2"), metric)
    axes = Figure().add_subplot()
    comparative._draw_both(axes, dosed.comparisons["control_+2"].comparison, both, metric, rows, FIRST)
    (band,) = areas_at(axes, 2.5)
    low, high = ends_of(band)
    np.testing.assert_allclose(low, both.baseline.mean + rows.ci_low)
    np.testing.assert_allclose(high, both.baseline.mean + rows.ci_high)
    assert np.all((low <= both.other.mean + 1e-9) & (both.other.mean <= high + 1e-9))
    spreads = areas_at(axes, 1)
    assert len(spreads) == 2
    assert {area.get_alpha() for area in spreads} == {comparative.SPREAD_ALPHA}
    assert band.get_alpha() > 3 * comparative.SPREAD_ALPHA
    labels = words(axes.get_legend())
    assert labels[:2] == ["standard, mean", "control_+2, mean"]
    assert labels[2].startswith("± 1 standard deviation")
    assert labels[3:] == ["95 % interval of the mean difference", "layers untouched by steering"]


def test_no_band_ends_below_the_least_that_a_metric_can_be(dosed):
    rows = np.exp(np.abs(np.random.default_rng(0).normal(0, 0.5, (300, 4))))
    curves = Curves(300, rows.mean(axis=0), rows.std(axis=0), rows.astype(np.float32))
    logarithms = np.log(rows)
    assert np.all(logarithms.mean(axis=0) < 2 * logarithms.std(axis=0))
    wide = replace(curves, sample=np.exp(3 * logarithms - logarithms.mean(axis=0)).astype(np.float32))
    assert np.log(wide.sample).mean() < np.log(wide.sample).std()
    assert canvas.band(wide, "perplexity")[0].tolist() == [1.0] * 4
    assert canvas.band(replace(curves, deviation=np.full(4, 9.0)), "entropy")[0].tolist() == [0.0] * 4
    changed = with_numbers(dosed, "control_+2", "perplexity", ci_low=[-1e6] * 5)
    own = verdict.verdict(changed, steered(dosed, "control_+2"), "perplexity")
    assert comparative.interval_about(np.full(5, 3.0), own, "perplexity")[0].tolist() == [1.0] * 5


def test_every_figure_over_depth_shades_the_layers_below_the_first_steered_one(dosed, quick, tmp_path):
    draw_model(dosed, tmp_path)
    shaded = {
        figure.get_suptitle().strip(): [
            patch.get_x() + patch.get_width() for axes in figure.axes for patch in axes.patches if patch.get_hatch()
        ]
        for figure in quick
    }
    for metric, axis in (("Entropy", "layer"), ("Perplexity", "layer"), ("Attention entropy", "block")):
        assert shaded[f"{metric} by {axis}, standard and control_+1"] == [FIRST - 0.5]
        assert shaded[f"{metric} by {axis}, control_+1 \N{MINUS SIGN} standard"] == [FIRST - 0.5]
        assert shaded[f"{metric} by {axis}, control_+1"] == []
        assert shaded[f"{metric} by strength of control"] == []
    assert shaded["How far control_+1 moves the prediction, by layer"] == [FIRST - 0.5]
    assert shaded["What each condition changes, by depth"] == [FIRST - 0.5] * 5
    right = shaded["Entropy by layer, standard and control_-2"][0]
    assert right < shards.SHAPE.num_layers - 0.5, "the shade of a model that is untouched ends where the axis does"


# --- where a condition acts --------------------------------------------------------------------------------------


def test_the_heat_map_marks_what_is_significant_and_greys_what_a_placebo_does_too(dosed):
    nan = np.nan
    changed = with_numbers(
        dosed,
        "control_+2",
        "entropy",
        effect_size=[nan, 0.0, 0.1, 0.2, 0.3],
        p_holm=[nan, nan, 0.049, 0.05, 0.001],
        placebo_p=[1.0, 1.0, 1 / 3, 2 / 3, 1.0],
    )
    figure = Figure()
    one = changed.comparisons["control_+2"]
    impact.draw_impact(figure, changed, replace(one, metrics={"entropy": one.metrics["entropy"]}))
    axes = figure.axes[0]
    dots = np.concatenate([line.get_xydata() for line in axes.lines])
    assert sorted(dots[:, 0].tolist()) == [2, 4]
    effects, greyed = axes.images
    assert np.ma.getmaskarray(effects.get_array())[0].tolist() == [True, True, False, True, True]
    assert np.ma.getmaskarray(greyed.get_array())[0].tolist() == [False, False, True, False, False]
    (untouched,) = axes.patches
    assert (*untouched.get_xy(), untouched.get_width(), untouched.get_height()) == (-0.5, -0.5, FIRST, 1)
    inks = {text.get_text(): text.get_color() for text in axes.texts}
    assert inks["+0.20"] == inks["+0.30"] == impact.WITHIN_INK
    assert set(inks) == {"+0.10", "+0.20", "+0.30"}
    assert words(figure.legends[0]) == [
        "p < 0.05 after Holm's correction",
        "at least one of 2 placebos at strength 2 changes it as much",
        "layers untouched by steering",
    ]


def test_without_placebos_nothing_is_greyed_and_nothing_said_of_them(tmp_path):
    analysis = shards.comparative(metrics=["entropy"])
    tables = make(tmp_path, analysis, shards.table(numbered(40), analysis), {})
    figure = Figure()
    impact.draw_impact(figure, tables, tables.comparisons["control"])
    assert len(figure.axes[0].images) == 1
    assert words(figure.legends[0]) == ["p < 0.05 after Holm's correction"]


def test_a_difference_beyond_every_placebo_is_not_within_them_however_many_there_are(dosed):
    for count in (1, 2, 19, 49, 99):
        placebos = np.zeros((count, 3))
        rows = verdict.verdict(dosed, steered(dosed, "control_+2"), "entropy")
        ranks = np.array([1, 2, count + 1]) / (count + 1)
        assert verdict.is_within(replace(rows, placebo_p=ranks), placebos).tolist() == [False, True, True]


def test_the_largest_effect_is_the_largest_finite_one_of_either_sign_where_steering_reaches(dosed):
    rows = verdict.verdict(dosed, steered(dosed, "control_+2"), "entropy")
    assert np.isnan(rows.p_value).tolist() == [True, True, False, False, False]
    for sizes, layer in (
        ([0.0, 0.9, 0.2, -0.5, np.nan], 3),
        ([0.0, 0.0, np.inf, 0.0, 0.1], 4),
        ([0.0, 0.9, 0.0, 0.0, 0.0], None),
        ([0.0] * 5, None),
        ([np.nan] * 5, None),
    ):
        assert verdict.largest_effect(replace(rows, effect_size=np.array(sizes))) == layer


# --- doses -------------------------------------------------------------------------------------------------------


def test_the_dose_response_holds_means_intervals_and_some_sentences_from_the_lowest_strength_on(dosed):
    conditions = dose_response.doses_of(dosed, "control")
    assert [one.name for one in conditions] == ["control_-2", "control_-1", "control_+1", "control_+2"]
    axes, layer = Figure().add_subplot(), 3
    handles, labels = dose_response._draw_layer(axes, dosed, conditions, "entropy", layer)
    curves = {name: one.metrics["entropy"] for name, one in dosed.comparisons.items()}
    names = ["control_-2", "control_-1", "standard", "control_+1", "control_+2"]
    means = [dosed.curves[name]["entropy"].mean[layer] for name in names]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.stack([[-2, -1, 0, 1, 2], means], axis=1))
    assert axes.lines[1].get_xydata().tolist() == [[0, curves["control_+1"].baseline.mean[layer]]]
    singles, bars = [item for item in axes.collections if isinstance(item, LineCollection)]
    assert len(singles.get_segments()) == 200
    first = [dosed.curves[name]["entropy"].sample[0, layer] for name in names]
    np.testing.assert_array_equal(singles.get_segments()[0][:, 1], first)
    for bar, condition in zip(bars.get_segments(), conditions, strict=True):
        rows = verdict.verdict(dosed, condition, "entropy")
        start = curves[condition.name].baseline.mean[layer]
        assert bar[:, 0].tolist() == [dose_response.strength_of(condition)] * 2
        np.testing.assert_allclose(bar[:, 1], [start + rows.ci_low[layer], start + rows.ci_high[layer]])
    assert len(handles) == len(labels) == 4
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        f"{canvas.MINUS}2",
        f"{canvas.MINUS}1",
        "0",
        "1",
        "2",
    ]


def test_a_dose_response_shows_the_last_layer_and_that_of_the_largest_effect_with_their_slopes(dosed, quick, tmp_path):
    changed = with_numbers(dosed, "control_+2", "entropy", effect_size=[0, 0, -0.9, 0.2, 0.3])
    own = (changed.doses.vector == "control") & (changed.doses.metric == "entropy")
    slopes = {
        "slope": [0, 0, -0.25, 1, 1234.5],
        "slope_ci_low": [0, 0, -0.5, 1, 1000.4],
        "slope_ci_high": [0, 0, 0.125, 2, 2e6],
    }
    changed.doses = replace(
        changed.doses, **{name: np.where(own, np.resize(numbers, len(own)), 0.0) for name, numbers in slopes.items()}
    )
    drawn = [figure.save() for figure in dose_response.figures_of_doses(changed, tmp_path)]
    assert [path.name for path in drawn] == [f"tiny_{metric}_dose_response.png" for metric in METRICS]
    assert [axes.get_title(loc="left") for axes in quick[0].axes] == [
        "Last layer (4)\nslope +1,234, 95 % [+1,000, +2e+06]",
        "Layer 2, of the largest effect\nslope -0.25, 95 % [-0.5, +0.125]".replace("-", canvas.MINUS),
    ]


def test_several_vectors_with_doses_have_their_names_in_the_files(quick, tmp_path):
    one, two = (ControlSettings(control_vector=[0.1], strengths=[1, 2]) for _ in range(2))
    single = ControlSettings(control_vector=[0.1])
    analysis = AnalysisSettings(
        compare_control=True, conditions={"mood": one, "tone": two, "late": single}, metrics=["entropy"]
    )
    tables = make(tmp_path, analysis, shards.table(numbered(5), analysis), {})
    drawn = {str(path.relative_to(tmp_path)) for path in draw_model(tables, tmp_path)}
    together = {name for name in drawn if name.startswith("comparative/plots/")}
    names = ("mood_entropy_dose_response", "tone_entropy_dose_response", "summary")
    assert together == {f"comparative/plots/tiny_{name}.png" for name in names}
    assert quick[-1].get_suptitle().strip() == "What each condition changes, by depth"


# --- all comparisons ---------------------------------------------------------------------------------------------


def test_the_summary_holds_each_mean_difference_its_interval_and_the_range_of_the_placebos(dosed, quick, tmp_path):
    (path,) = (figure.save() for figure in overview.figures_of_overview(dosed, tmp_path))
    assert path == tmp_path / "comparative/plots/tiny_summary.png"
    panels = dict(zip([*METRICS, *COMPARISON_METRICS], quick[0].axes, strict=True))
    names = ["control_-2", "control_-1", "control_+1", "control_+2"]
    for metric, axes in panels.items():
        lines = [line for line in axes.lines if line.get_zorder() == 3]
        for name, line, area in zip(names, lines, areas_at(axes, 2), strict=True):
            rows = verdict.verdict(dosed, steered(dosed, name), metric)
            np.testing.assert_array_equal(line.get_ydata(), rows.mean_difference)
            np.testing.assert_allclose(ends_of(area), [rows.ci_low, rows.ci_high])
        (band,) = areas_at(axes, 1)
        means = dosed.placebos["control"][metric]
        np.testing.assert_allclose(ends_of(band), [means.min(axis=0), means.max(axis=0)])
    assert panels["kl_from_standard"].get_title(loc="left") == "KL from standard (nats)"
    assert words(quick[0].legends[0]) == [
        *names,
        "95 % interval",
        "range of 2 placebos at strength 2",
        "layers untouched by steering",
    ]


def conditions_of(**named: ControlSettings) -> list[Condition]:
    every = AnalysisSettings(compare_control=True, conditions=named).run_conditions
    return [one for one in every if one.role == "control"]


def vector(*strengths: float) -> ControlSettings:
    return ControlSettings(control_vector=[0.1], strengths=list(strengths))


def test_up_to_eight_conditions_are_drawn_and_of_more_the_strongest_doses():
    few = conditions_of(a=vector(-2, -1, 0, 1, 2), b=vector(1))
    shown, about = overview.chosen(few)
    assert [one.name for one in shown] == ["a_-2", "a_-1", "a_+1", "a_+2", "b"]
    assert about == []
    shown, about = overview.chosen(conditions_of(a=vector(-3, -2, -1, 1, 2, 3), b=vector(1, 2, 3, -1)))
    assert [one.name for one in shown] == ["a_-3", "a_+3", "b_+3", "b_-1"]
    assert about == ["the strongest dose of each vector and sign"]
    shown, about = overview.chosen(conditions_of(**{f"v{index}": vector(-1, 1) for index in range(7)}))
    assert [one.name for one in shown] == [f"v{index}_+1" for index in range(7)]
    assert about == ["the strongest dose of each vector"]
    shown, about = overview.chosen(conditions_of(**{f"v{index}": vector(1) for index in range(12)}))
    assert [one.name for one in shown] == [f"v{index}" for index in range(8)]
    assert about == ["the strongest dose of the first 8 vectors"]
    assert [one.name for one in overview.chosen(conditions_of(a=vector(0)))[0]] == ["a"]


def test_doses_are_shades_about_zero_the_stronger_the_darker_and_told_apart_without_colour():
    looks = overview.looks_of(conditions_of(a=vector(-2, -1, 1, 2), late=vector(1)))
    darkness = [-np.dot(to_rgb(look.colour), [0.3, 0.6, 0.1]) for look in looks]
    assert [look.line for look in looks] == ["--", "--", "-", "-", "-."]
    assert darkness[0] > darkness[1] + 0.15
    assert darkness[3] > darkness[2] + 0.1
    red, _, blue = np.transpose([to_rgb(look.colour) for look in looks[:4]])
    assert (blue > red).tolist() == [True, True, False, False]
    uneven = overview.looks_of(conditions_of(a=vector(0.1, 0.5, 30)))
    assert np.all(np.diff([-np.dot(to_rgb(look.colour), [0.3, 0.6, 0.1]) for look in uneven]) > 0.1)
    (only,) = overview.looks_of(conditions_of(a=vector(1)))
    assert (only.colour, only.line) == (canvas.VERMILLION, "-")
    for conditions in (
        conditions_of(**{f"v{index}": vector(1) for index in range(8)}),
        conditions_of(a=vector(1, 2), b=vector(1, 2), c=vector(1, 2), d=vector(1, 2)),
        conditions_of(a=vector(1, 2), **{f"v{index}": vector(1) for index in range(6)}),
    ):
        assert len({(look.colour, look.line) for look in overview.looks_of(conditions)}) == len(conditions)


# --- few and missing numbers -------------------------------------------------------------------------------------


def test_a_single_sentence_is_drawn_without_intervals(tmp_path, quick):
    analysis = shards.dose(metrics=["entropy", "attention_entropy"])
    facts = {one.other.name: SteeringFacts(FIRST) for one in compared(analysis.run_conditions)}
    draw_model(make(tmp_path, analysis, shards.table(["one"], analysis), facts), tmp_path)
    titles = {figure.get_suptitle().strip(): figure for figure in quick}
    both = titles["Entropy by layer, standard and control_+1"].axes[0]
    assert words(both.get_legend()) == ["standard", "control_+1", "layers untouched by steering"]
    dose = titles["Entropy by strength of control"]
    assert words(dose.legends[0]) == ["the sentence", "standard"]
    assert dose.axes[0].get_title(loc="left").count("95 %") == 0
    assert "95 % interval" not in words(titles["What each condition changes, by depth"].legends[0])


def test_missing_numbers_leave_gaps_and_no_warnings(tmp_path):
    """In all sentences at one layer under one condition, and in some at another."""
    control = ControlSettings(control_vector=[0.1], strengths=[1, 2])
    analysis = AnalysisSettings(compare_control=True, control=control, metrics=METRICS)
    whole = shards.table(numbered(12), analysis)
    for metric in METRICS:
        name = column("control_+2", metric)
        place = whole.schema.get_field_index(name)
        field = whole.schema.field(place)
        numbers = np.stack(whole[name].to_pylist())
        numbers[:, 3 if metric != "attention_entropy" else slice(6, 8)] = np.nan
        numbers[::2, 2] = np.inf
        flat = pa.array(numbers.ravel().astype(np.float32))
        whole = whole.set_column(
            place, field, pa.FixedSizeListArray.from_arrays(flat, numbers.shape[1]).cast(field.type)
        )
    tables = make(tmp_path, analysis, whole, {})
    assert np.isnan(tables.curves["control_+2"]["entropy"].mean).tolist() == [False, False, False, True, False]
    drawn = draw_model(tables, tmp_path)
    assert tmp_path / "comparative/plots/tiny_perplexity_dose_response.png" in drawn
    assert tmp_path / "comparative/plots/tiny_summary.png" in drawn

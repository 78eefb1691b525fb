"""Which figures are drawn, in which format, and by how many processes: the bytes are the same."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shards
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from llm_entropy.outputs.plots import canvas, drawing, figures_of_model, figures_side_by_side, worker
from llm_entropy.outputs.plots.drawing import Drawers
from llm_entropy.outputs.plots.layout import PanelGrid, SinglePanel
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import OutputSettings, Settings
from llm_entropy.settings.plots import PLOT_FORMATS, PLOTS

NUM_PROCESSES = drawing.num_processes
"""As it is outside of tests."""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> ModelTables:
    run_dir, analysis = tmp_path_factory.mktemp("run"), shards.dose(metrics=["entropy", "surprisal"])
    shards.write(run_dir, "tiny", shards.table([f"sentence {index}" for index in range(12)], analysis, shards.SHAPE))
    return shards.merge(run_dir, "tiny", analysis, shards.SHAPE, parquet=False)


def draw(tables: ModelTables, run_dir: Path, output: OutputSettings) -> dict[str, bytes]:
    with Drawers(output, run_dir) as drawers:
        drawers.draw_model(tables)
        drawers.draw_side_by_side([tables])
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_several_processes_draw_the_same_bytes_as_one(tables, tmp_path, monkeypatch):
    output = OutputSettings(plots=["layer_impact", "models", "summary", "token_probabilities"])
    monkeypatch.setattr(canvas, "DPI", 220)  # as the other processes have it
    one = draw(tables, tmp_path / "one", output)
    monkeypatch.setattr(drawing, "num_processes", lambda: 2)
    assert draw(tables, tmp_path / "two", output) == one
    assert len(one) > 10


@pytest.mark.parametrize("plot_format", PLOT_FORMATS)
def test_a_figure_is_the_same_file_whenever_it_is_drawn(tables, tmp_path, monkeypatch, plot_format):
    output = OutputSettings(plots=["summary", "kl_from_standard"], plot_format=plot_format)
    first = draw(tables, tmp_path / "first", output)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert draw(tables, tmp_path / "second", output) == first
    assert {Path(name).suffix for name in first} == {f".{plot_format}"}
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[plot_format]
    assert all(content.startswith(start) for content in first.values())


def test_a_metric_chooses_all_its_plots_and_a_kind_that_plot_of_every_metric(tables, tmp_path, monkeypatch):
    drawn: list[str] = []
    monkeypatch.setattr(canvas.Drawing, "save", lambda figure, _: drawn.append(figure.path.stem))
    draw(tables, tmp_path, OutputSettings(plots=["layer_impact", "entropy"]))
    assert set(drawn) == {
        *("tiny_entropy", "tiny_entropy_comparison", "tiny_entropy_differences", "tiny_entropy_dose_response"),
        *("tiny_layer_impact", "models_entropy"),
    }
    drawn.clear()
    draw(tables, tmp_path, OutputSettings(plots=["differences"]))
    assert set(drawn) == {"tiny_entropy_differences", "tiny_surprisal_differences"}
    for nothing in (False, []):
        draw(tables, tmp_path, OutputSettings(plots=nothing))
    assert set(drawn) == {"tiny_entropy_differences", "tiny_surprisal_differences"}


def test_every_figure_can_be_chosen_by_a_word_that_the_settings_know(tables, tmp_path):
    assert all(set(figure.names) & set(PLOTS) == set(figure.names) for figure in figures_of_model(tables, tmp_path))


def test_a_word_that_chooses_no_plot_is_refused():
    with pytest.raises(
        ValueError,
        match=r"output\.plots: got 'entropies' \(did you mean 'entropy'\?\); expected true, false, or some of ",
    ):
        OutputSettings(plots=["entropies"])
    with pytest.raises(
        ValueError, match=r"output\.plots: got 'varentropy', which the run does not measure; .* has entr"
    ):
        Settings(output=OutputSettings(plots=["varentropy"]))


def test_a_process_that_draws_imports_no_torch():
    code = (
        "import sys, llm_entropy.outputs.plots.worker; print(sorted({'torch', 'pandas', 'lightning'} & {*sys.modules}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_what_makes_the_outputs_of_a_run_imports_no_plots():
    code = "import sys, llm_entropy.outputs.making; print('llm_entropy.outputs.plots' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


def test_what_a_process_could_not_draw_is_raised_where_it_was_ordered(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "num_processes", lambda: 2)
    (tmp_path / "standard").write_text("in the way of the folder")
    with pytest.raises(NotADirectoryError) as caught:
        draw(tables, tmp_path, OutputSettings(plots=["token_probabilities"]))
    assert "in save" in str(caught.value.__cause__)


def test_a_process_that_is_lost_is_reported(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "BEGIN", "import os; os._exit(7)")
    monkeypatch.setattr(drawing, "num_processes", lambda: 2)
    with pytest.raises(RuntimeError, match="a process that draws has ended, with status 7"):
        draw(tables, tmp_path, OutputSettings(plots=["summary"]))


def test_a_process_answers_each_order_and_ends_when_nothing_more_comes(tables, tmp_path):
    sheet = worker.Sheet(3, [tables], False, tmp_path)
    index = next(k for k, figure in enumerate(sheet.figures()) if figure.path.name == "tiny_summary.png")
    answers = io.BytesIO()
    messages = (sheet, worker.Order(3, index, "png"), worker.Order(3, index, "tiff"))
    worker.serve(io.BytesIO(b"".join(pickle.dumps(message) for message in messages)), answers)
    answers.seek(0)
    assert pickle.load(answers) is None
    assert isinstance(pickle.load(answers).error, KeyError)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["tiny_summary.png"]


def test_few_colours_stay_what_they_are_and_many_become_the_nearest():
    pixels = np.full((40, 60, 4), 255, np.uint8)
    pixels[:10, :, :3] = (0, 114, 178)
    exact = canvas.in_few_colours(pixels)
    assert exact.convert("RGB").getcolors() == [(1800, (255, 255, 255)), (600, (0, 114, 178))]
    pixels[..., :3] = np.random.default_rng(0).integers(0, 256, (40, 60, 3))
    picture = canvas.in_few_colours(pixels)
    distances = np.abs(np.asarray(picture.convert("RGB")).astype(int) - pixels[..., :3]).max(axis=-1)
    assert distances.mean() < 40
    assert canvas.in_few_colours(np.full((3, 3, 4), 255, np.uint8)).convert("RGB").getcolors() == [(9, (255, 255, 255))]


def test_a_figure_of_each_kind_has_room_for_its_letters(tables, tmp_path):
    drawings = [*figures_of_model(tables, tmp_path), *figures_side_by_side([tables], tmp_path)]
    figures = []
    for one in {kind.draw.func: kind for kind in drawings}.values():
        with canvas.figure(tmp_path / "x.png", one.width, one.height, layout=one.layout) as figure:
            one.draw(figure)
        figures.append(figure)
    assert {type(figure.get_layout_engine()) for figure in figures} > {SinglePanel, PanelGrid}
    for figure in figures:
        whole = Figure.get_window_extent(figure)
        legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
        above, below = figure.texts[0].get_window_extent(), [legend.get_window_extent() for legend in legends]
        for axes in figure.axes:
            labels = [label for axis in (axes.xaxis, axes.yaxis) for label in (axis.label, *shown_labels(axis))]
            boxes = [label.get_window_extent() for label in [*labels, *axes.texts] if label.get_text()]
            inside = whole.padded(1)
            outside = [box for box in [*boxes, *below] if not (inside.contains(*box.min) and inside.contains(*box.max))]
            assert not outside
            assert all(box.y1 < above.y1 and not box.overlaps(legend) for box in boxes for legend in below)
            if axes.yaxis.label.get_text() and axes.yaxis.get_label_position() == "left":
                ticks = [label.get_window_extent() for label in shown_labels(axes.yaxis)]
                assert axes.yaxis.label.get_window_extent().x1 <= min(box.x0 for box in ticks) + 1
    for figure in (one for one in figures if isinstance(one.get_layout_engine(), PanelGrid)):
        around = [axes.get_tightbbox(for_layout_only=True) for axes in figure.axes]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(around, 2))


def shown_labels(axis: Axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    at = 0 if axis.axis_name == "x" else 1
    return [label for label in axis.get_ticklabels() if low <= label.get_position()[at] <= high and label.get_text()]


def test_one_processor_draws_without_others(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert NUM_PROCESSES() == 1

"""The lens grid: which positions it shows, what is drawn of them, and that a finished run gives it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shards
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from llm_entropy.errors import ReportedError
from llm_entropy.outputs.lens_grids import MOST_COLUMNS, grid_of_sentence, read_lens_grid
from llm_entropy.outputs.plots.lens_grid import MOST_BESIDE, figures_of_lens
from llm_entropy.outputs.plots.lettering import token_label
from llm_entropy.outputs.tables import LensGrid, ModelTables
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import AnalysisSettings, OutputSettings, Settings

TEXTS = [f"{shards.SENTENCES[index % 10]} {index}" for index in range(30)]


def merged(
    run_dir: Path, analysis: AnalysisSettings, records: tuple[int, ...], **options: Any
) -> tuple[Any, ModelTables]:
    whole = shards.write(run_dir, "tiny", shards.table(TEXTS, analysis, records=records))
    return whole, shards.merge(run_dir, "tiny", analysis, **options)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table, ModelTables]:
    """A comparative run: its second sentence is the first that is read at several positions, at more than are shown."""
    run_dir = tmp_path_factory.mktemp("several")
    return run_dir, *merged(run_dir, shards.comparative(metrics=["entropy"], lens_tokens=True), (1, 20, 3), csv=False)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table, ModelTables]:
    """A run that reads each sentence at one position, and does not measure the entropy."""
    run_dir = tmp_path_factory.mktemp("single")
    return run_dir, *merged(run_dir, AnalysisSettings(metrics=["margin"], lens_tokens=True), (1,), csv=False)


def assert_same(one: LensGrid, other: LensGrid) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def of(table: pa.Table, name: str, rows: slice) -> list[Any]:
    found: list[Any] = table[name].to_pylist()[rows]
    return found


# --- what it shows -----------------------------------------------------------------------------------------------


def test_a_grid_shows_the_first_positions_of_the_first_sentence_that_has_several(several):
    _, table, tables = several
    rows = slice(1, 1 + MOST_COLUMNS)
    for condition, grid in tables.lens.items():
        assert (grid.sentence, grid.num_columns) == (TEXTS[1], 20)
        assert grid.read == of(table, "token", rows)
        assert grid.targets == of(table, f"{condition}/target", rows)
        assert grid.tokens == of(table, f"{condition}/lens_tokens", rows)
        np.testing.assert_array_equal(grid.probabilities, of(table, f"{condition}/lens_probabilities", rows))
        np.testing.assert_array_equal(grid.entropy, of(table, f"{condition}/entropy", rows))
    assert list(tables.lens) == ["standard", "control"]


def test_where_each_sentence_has_one_position_the_columns_are_sentences_from_all_of_the_corpus(single):
    _, table, tables = single
    (grid,) = tables.lens.values()
    places = [TEXTS.index(text) for text in grid.read]
    assert grid.sentence is None
    assert grid.num_columns == len(TEXTS)
    assert len(places) == MOST_COLUMNS
    assert {0, len(TEXTS) - 1} <= set(places)
    assert grid.tokens == [of(table, "standard/lens_tokens", slice(place, place + 1))[0] for place in places]
    assert grid.entropy is None


@pytest.mark.parametrize("records", [(1,), (1, 20, 3)])
def test_a_grid_does_not_depend_on_how_the_sentences_are_cut_into_chunks(several, single, records, tmp_path):
    _, table, tables = single if records == (1,) else several
    analysis = shards.comparative(metrics=["entropy"], lens_tokens=True)
    if records == (1,):
        analysis = AnalysisSettings(metrics=["margin"], lens_tokens=True)
    shards.write(tmp_path, "tiny", table, num_files=2, seed=9)
    again = shards.merge(tmp_path, "tiny", analysis, csv=False, parquet=False, chunk_bytes=2_000)
    for condition, grid in tables.lens.items():
        assert_same(again.lens[condition], grid)


def test_a_finished_run_gives_the_same_grid_again_and_that_of_any_sentence(several, single):
    for run_dir, _, tables in (several, single):
        for condition in tables.conditions:
            assert_same(read_lens_grid(run_dir, "tiny", condition), tables.lens[condition.name])
    run_dir, table, tables = several
    grid = read_lens_grid(run_dir, "tiny", tables.conditions[1], 2)
    assert (grid.sentence, grid.num_columns) == (TEXTS[2], 3)
    assert grid.tokens == of(table, "control/lens_tokens", slice(21, 24))
    with pytest.raises(ReportedError, match="got 30; tiny has sentences 0 to 29"):
        read_lens_grid(run_dir, "tiny", tables.conditions[1], 30)


def test_a_text_that_was_written_is_read_token_by_token_up_to_its_own_end():
    records = pa.table(
        {
            "token": [" the", None, None],
            "target": [" king", " of", None],
            "lens_tokens": [["a", "b"], ["c", "d"], [None, None]],
            "lens_probabilities": [[0.5, 0.25], [0.5, 0.75], [np.nan, np.nan]],
        }
    )
    grid = grid_of_sentence(records, "Long live the")
    assert (grid.read, grid.targets, grid.num_columns) == ([" the", " king"], [" king", " of"], 2)
    assert grid.tokens == [["a", "b"], ["c", "d"]]


def test_a_run_without_the_tokens_of_layers_has_no_grid(tmp_path):
    _, tables = merged(tmp_path, shards.comparative(metrics=["entropy"]), (2,), csv=False)
    assert tables.lens == {}
    assert figures_of_lens(tables, tmp_path) == []
    with pytest.raises(KeyError, match=r"did not record it; set analysis\.lens_tokens to true"):
        read_lens_grid(tmp_path, "tiny", tables.conditions[0])
    with pytest.raises(ReportedError, match=r"got 'lens_grid', which the run does not record; set analysis\.lens"):
        Settings(output=OutputSettings(plots=["lens_grid"]))


# --- what is drawn -----------------------------------------------------------------------------------------------


def drawn(tables: ModelTables) -> dict[str, Figure]:
    return {figure.path.parent.parent.name: figure.figure() for figure in figures_of_lens(tables, Path("run"))}


def test_both_conditions_of_a_comparison_stand_side_by_side_each_token_in_its_cell(several):
    _, _, tables = several
    figures = drawn(tables)
    assert list(figures) == ["standard", "comparative"]
    panels = figures["comparative"].axes[:2]
    for axes, grid in zip(panels, tables.lens.values(), strict=True):
        cells = {text.get_position(): text for text in axes.texts}
        assert len(cells) == MOST_BESIDE * shards.SHAPE.num_layers
        for (column, layer), text in cells.items():
            assert text.get_text() == token_label(grid.tokens[column][layer], 10)
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array(), grid.entropy[:MOST_BESIDE].T)
        framed = sum(len(one.get_paths()) for one in axes.collections)
        assert framed == sum(token == own[-1] for own in grid.tokens[:MOST_BESIDE] for token in own)
        assert [label.get_text() for label in axes.get_xticklabels()] == [
            token_label(token, 10) for token in grid.read[:MOST_BESIDE]
        ]
        (above,) = axes.child_axes
        assert [label.get_text() for label in above.get_xticklabels()] == [
            token_label(token, 10) for token in grid.targets[:MOST_BESIDE]
        ]
    assert [axes.child_axes[0].get_xlabel() for axes in panels] == ["Target, standard", "Target, control"]
    assert panels[0].images[0].norm.vmax == panels[1].images[0].norm.vmax, "both have the same colours"


def test_letters_are_white_on_dark_cells_and_black_on_light_ones(several):
    _, _, tables = several
    (axes, *_) = drawn(tables)["standard"].axes
    (image,) = axes.images
    for text in axes.texts:
        column, layer = text.get_position()
        red, green, blue, _ = image.to_rgba(image.get_array())[layer, column] / 1.0
        light = 0.3 * red + 0.59 * green + 0.11 * blue
        assert (to_hex(text.get_color()) == "#ffffff") == (light < 0.5)


@pytest.mark.parametrize("shape", [ModelShape(1, 1, 8, 50), ModelShape(80, 1, 8, 50)], ids=["shallow", "deep"])
def test_deep_and_shallow_models_and_odd_sentences_have_grids_without_warnings(tmp_path, shape):
    texts = ["$x_1$ 月亮 😀 \x07 \ud7ff" * 40, "b\n\r", "", " ", "NA"]
    analysis = shards.comparative(metrics=["margin"], lens_tokens=True)
    shards.write(tmp_path, "_a$b$", shards.table(texts, analysis, shape))
    tables = shards.merge(tmp_path, "_a$b$", analysis, shape, csv=False, parquet=False)
    for figure in figures_of_lens(tables, tmp_path):
        axes = figure.figure().axes[0]
        rows = [label.get_text() for label in axes.get_yticklabels()]
        assert (rows[0], rows[-1]) == ("emb.", str(shape.num_blocks))
        assert len(rows) <= 33
        assert figure.save().is_file()


def test_a_condition_of_strength_0_has_no_grid_of_its_own(tmp_path):
    _, tables = merged(tmp_path, shards.dose(metrics=["entropy"], lens_tokens=True), (2,), csv=False, parquet=False)
    folders = [figure.path.parent.parent.name for figure in figures_of_lens(tables, tmp_path)]
    assert folders == ["standard", *(f"control_{strength:+g}" for strength in (-2, -1, 1, 2))]

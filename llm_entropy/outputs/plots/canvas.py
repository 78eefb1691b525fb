"""Figures of one look, made and saved without pyplot and without lasting changes to matplotlib's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine, LayoutEngine
from matplotlib.legend import Legend
from matplotlib.text import Annotation
from matplotlib.ticker import NullFormatter
from PIL.Image import Image, fromarray

from llm_entropy.outputs.plots.lettering import FAMILY, plain, shorten
from llm_entropy.outputs.points import Places, drawn_points, num_points
from llm_entropy.outputs.tables import Curves, ModelTables
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import ALL_METRICS, Condition
from llm_entropy.settings.conditions import Role
from llm_entropy.store.files import written_whole

Numbers = npt.NDArray[np.floating[Any]]

DPI = 220
SCREEN_DPI = 110
BLACK, GREY = "#1a1a1a", "#8a8a8a"
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, "#CC79A7", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito (2008), told apart with any colour vision; yellow, the weakest on white, last."""
ROLE_COLOURS: dict[Role, str] = {"standard": BLUE, "control": VERMILLION}
"""Of conditions that are drawn."""
MINUS = "\u2212"
MOST_TICKS, MOST_MARKERS = 13, 34
MOST_NAME = 24
"""Letters of a condition's name that a title has room for."""

STYLE: Any = {
    "text.usetex": False,
    "font.family": [FAMILY],
    "font.size": 9,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.unicode_minus": True,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.use_mathtext": False,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "grid.linestyle": "-",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "svg.hashsalt": "llm_entropy",
}


class Drawing(NamedTuple):
    """A figure that can be drawn: how large, what on it, and where it goes."""

    path: Path
    """The PNG file; another format has another suffix."""
    width: float
    """In inches."""
    height: float
    """In inches."""
    draw: Callable[[Figure], None]
    """Draws on an empty figure."""
    names: tuple[str, ...]
    """Words of `output.plots` that choose it: a metric, a kind of plot, or both."""
    layout: type[LayoutEngine] = ConstrainedLayoutEngine
    """Places its panels: one with a legend below, or a grid, at once; matplotlib's own layout places anything."""

    def save(self, plot_format: str = "png") -> Path:
        """Draw it, and save it: whole, or not at all.

        Args:
            plot_format: A key of `SAVERS`.

        Returns:
            The file.
        """
        path = self.path.with_suffix(f".{plot_format}")
        with figure(path, self.width, self.height, layout=self.layout) as canvas:
            self.draw(canvas)
        return path

    def figure(self) -> NotebookFigure:
        """Return it drawn, to be shown or changed: a notebook shows it as a picture."""
        with mpl.rc_context(STYLE):
            canvas = NotebookFigure(figsize=(self.width, self.height), dpi=SCREEN_DPI, layout=self.layout())
            self.draw(canvas)
            canvas.draw_without_rendering()  # matplotlib makes ticks when it draws, in the style of that moment
        return canvas


class NotebookFigure(Figure):
    """Shows itself in a notebook, whether or not pyplot is there."""

    def _repr_png_(self) -> bytes:
        shown = BytesIO()
        self.savefig(shown, format="png")
        return shown.getvalue()


@contextmanager
def figure(
    path: Path, width: float, height: float, *, layout: type[LayoutEngine] = ConstrainedLayoutEngine
) -> Iterator[Figure]:
    """Give an empty figure, and save it when it has been drawn: whole, or not at all.

    Args:
        path: Where it goes; the suffix is a key of `SAVERS`.
        width: In inches.
        height: In inches.
        layout: As in `Drawing`.
    """
    with mpl.rc_context(STYLE):
        canvas = Figure(figsize=(width, height), dpi=DPI, layout=layout())
        yield canvas
        save = SAVERS[path.suffix.removeprefix(".")](canvas)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            save(temporary)


Saver = Callable[[Path], None]


def _as_png(canvas: Figure) -> Saver:
    image = _rendered(canvas)
    return lambda path: image.save(path, format="png", dpi=(DPI, DPI))


def _as_svg(canvas: Figure) -> Saver:
    vector: Any = FigureCanvasSVG(canvas)
    return lambda path: vector.print_svg(path, metadata={"Date": None})


def _as_pdf(canvas: Figure) -> Saver:
    vector: Any = FigureCanvasPdf(canvas)
    return lambda path: vector.print_pdf(path, metadata={"CreationDate": None})


SAVERS: dict[str, Callable[[Figure], Saver]] = {"png": _as_png, "svg": _as_svg, "pdf": _as_pdf}
"""By format: what returns the function that writes a figure; without dates: the same figure is the same file."""


def _rendered(canvas: Figure) -> Image:
    """Return the picture in 256 colours of its own: a third of the size, and no difference to be seen."""
    agg: Any = FigureCanvasAgg(canvas)  # matplotlib leaves its methods untyped
    agg.draw()
    return in_few_colours(np.asarray(agg.buffer_rgba()))


def in_few_colours(pixels: npt.NDArray[np.uint8]) -> Image:
    """Return a picture in at most 256 colours.

    White, which most of it is, is one of them. Other colours fall into 32 shades of red by 32 of green by 32 of blue;
    the 255 cells that hold most pixels have the mean colour of these, and pixels of other cells that of the nearest.

    Args:
        pixels: [row, column, red green blue opacity], opaque.
    """
    words = pixels.view(np.uint32).ravel()
    is_start = np.ones(words.size, bool)
    np.not_equal(words[1:], words[:-1], out=is_start[1:])
    starts = np.flatnonzero(is_start)  # of runs of pixels of one colour: there are far fewer of these
    lengths = np.diff(starts, append=words.size)
    colours = words[starts]
    is_inked = colours != np.uint32(0xFFFFFFFF)
    sizes = lengths[is_inked]
    channels = colours[is_inked].view(np.uint8).reshape(-1, 4)[:, :3].T.astype(np.intp)
    shades = channels >> 3
    cells = (shades[0] << 10) | (shades[1] << 5) | shades[2]
    counts = np.bincount(cells, sizes, 1 << 15)
    used = np.flatnonzero(counts)
    by_size = used[np.argsort(-counts[used], kind="stable")]
    kept, rest = np.sort(by_size[:255]), by_size[255:]
    sums = np.stack([np.bincount(cells, channel * sizes, 1 << 15)[kept] for channel in channels], axis=1)
    numbers = np.zeros(1 << 15, np.uint8)
    numbers[kept] = np.arange(1, len(kept) + 1)
    if len(rest):
        numbers[rest] = numbers[kept[_nearest(rest, kept)]]
    indices = np.zeros(len(starts), np.uint8)
    indices[is_inked] = numbers[cells]
    picture = fromarray(np.repeat(indices, lengths).reshape(pixels.shape[:2]))
    picture.putpalette([255, 255, 255, *np.rint(sums / counts[kept][:, None]).astype(int).ravel().tolist()])
    return picture


def _nearest(cells: npt.NDArray[np.intp], among: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return which of some cells each cell is nearest to; of several, the first."""
    distances = np.zeros((len(cells), len(among)), np.int8)  # at most 3 times 31
    for own, other in zip(_shades(cells), _shades(among), strict=True):
        distances += np.abs(own[:, None] - other)
    return np.asarray(distances.argmin(axis=1))


def _shades(cells: npt.NDArray[np.intp]) -> npt.NDArray[np.int8]:
    return np.stack([cells >> 10, cells >> 5 & 31, cells & 31]).astype(np.int8)


def write_title(canvas: Figure, title: str, subtitle: str) -> None:
    """Write a bold line and a grey line above everything, at the left."""
    look: dict[str, Any] = {"fontsize": 11, "fontweight": "bold", "color": BLACK, "linespacing": 1.35}
    heading = canvas.suptitle(plain(title) + "\n ", x=0.012, ha="left", parse_math=False, **look)
    look = {"fontsize": 8.5, "color": "#555555", "va": "bottom"}
    canvas.add_artist(Annotation(plain(subtitle), (0, 0), xycoords=heading, parse_math=False, **look))


def model_line(tables: ModelTables, *more: str) -> str:
    """Return the line below a title: which model, how many sentences, and what else there is to say."""
    name = "" if tables.name == tables.model else f" ({shorten(tables.name, 40)})"
    return " · ".join([tables.model + name, sentences(tables.num_sentences), *more])


def shown_name(condition: Condition) -> str:
    """Return a condition's name, short enough for a title."""
    return shorten(condition.name, MOST_NAME)


def sentences(count: int) -> str:
    """Return how many sentences, in words."""
    return f"{count:,} sentence{'' if count == 1 else 's'}"


def axis_label(metric: str) -> str:
    """Return a metric's name, beginning with a capital, with its unit."""
    about = ALL_METRICS[metric]
    return f"{capital(about.label)} ({about.unit})" if about.unit else capital(about.label)


def difference_label(metric: str) -> str:
    """Return what an axis of differences of a metric says, with the unit."""
    label = axis_label(metric)
    return f"Difference in {label if label[:2].isupper() else label[0].lower() + label[1:]}"


def is_logarithmic(metric: str) -> bool:
    """Whether a metric's axis is logarithmic."""
    return ALL_METRICS[metric].scale == "logarithmic"


def capital(words: str) -> str:
    """Return words with a capital at the beginning."""
    return words[:1].upper() + words[1:]


def place_depth_ticks(axes: Axes, num_points: int, metric: str, most: int = MOST_TICKS) -> None:
    """Put whole-numbered ticks below layers (or blocks), thinned where there are many; layer 0 is the embeddings'."""
    is_layer = ALL_METRICS[metric].axis == "layer"
    ticks = thinned(num_points, most)
    axes.set_xticks(ticks, ["emb." if is_layer and tick == 0 else str(tick) for tick in ticks])
    axes.set_xlabel("Layer" if is_layer else "Block")
    margin = max(0.03 * (num_points - 1), 0.25)
    axes.set_xlim(-margin, num_points - 1 + margin)


def thinned(num_points: int, most: int = MOST_TICKS) -> list[int]:
    """Return about `most` numbers to be written below `num_points` points: first, last, and some evenly between."""
    last = num_points - 1
    step = next(step for step in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 50, 100, 1000) if last <= step * most)
    ticks = list(range(0, last + 1, step))
    if ticks[-1] != last:
        ticks = [tick for tick in ticks if last - tick > step / 2] + [last]
    return ticks


def marker(num_points: int, shape: str = "o", size: float = 3.2) -> dict[str, Any]:
    """Return the markers of a curve of so many points: none where they would run into each other."""
    return {"marker": shape, "ms": size} if num_points <= MOST_MARKERS else {}


def place_legend(axes: Axes | Figure, handles: Sequence[Any], labels: Sequence[str], **look: Any) -> Legend:
    """Write a legend whose labels are plain text, whatever signs they begin with or hold."""
    legend = axes.legend(handles, [str(index) for index in range(len(labels))], **look)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(plain(label))
        text.set_parse_math(False)
    return legend


def legend_columns(labels: Sequence[str], width: float) -> int:
    """Return in how many columns a legend fits into a figure of some width in inches."""
    column = 0.55 + 0.063 * max(map(len, labels), default=0)
    return int(np.clip(width // column, 1, max(len(labels), 1)))


def band(curves: Curves, metric: str) -> tuple[Numbers, Numbers]:
    """Return one standard deviation below and above the mean, within what values there can be.

    Where the axis is logarithmic it is the deviation of the logarithms, about their mean.
    Perplexities are spread over orders of magnitude: mean - deviation is below zero for them, and says nothing.
    """
    least, most = ALL_METRICS[metric].bounds
    if not is_logarithmic(metric):
        return np.maximum(curves.mean - curves.deviation, least), np.minimum(curves.mean + curves.deviation, most)
    logarithms = np.ma.log(np.ma.masked_invalid(curves.sample.astype(np.float64)))
    middle, spread = logarithms.mean(axis=0), logarithms.std(axis=0)
    return np.maximum(np.exp(middle - spread).filled(np.nan), least), np.exp(middle + spread).filled(np.nan)


def band_label(metric: str) -> str:
    """Return what the legend calls the band."""
    return "± 1 standard deviation" + (" of the logarithm" if is_logarithmic(metric) else "")


def shade(axes: Axes, at: Places, low: Numbers, high: Numbers, **look: Any) -> None:
    """Shade between two curves over depth; at a single point, beside which there is nothing to shade, with a bar.

    Args:
        axes: Where to.
        at: [point], the layers or blocks.
        low: [point].
        high: [point].
        look: Of the patch.
    """
    if len(at) > 1:
        axes.fill_between(at, low, high, **look)
        return
    for bar in axes.bar(at, high - low, 0.3, low, **look):
        bar.sticky_edges.y.clear()  # the axis is to reach beyond its foot


def about_blocks(metric: str, shape: ModelShape) -> list[str]:
    """Return what the line below a title says of blocks that are left out."""
    count = len(drawn_points(metric, shape))
    return [] if count == num_points(metric, shape) else [f"attention in {count} of {shape.num_blocks} blocks"]


def finish(axes: Axes, num_points: int, metric: str) -> None:
    """Label and scale the axes of a metric over depth."""
    axes.set_ylabel(axis_label(metric))
    place_depth_ticks(axes, num_points, metric)
    use_scale_of(axes, metric)
    widen_constant(axes)


def use_scale_of(axes: Axes, metric: str) -> None:
    """Make the axis of a metric logarithmic, if it is one that is."""
    if is_logarithmic(metric) and np.isfinite(axes.dataLim.minposy):  # infinite where there is nothing to draw
        axes.set_yscale("log")
        _label_decades(axes)


def use_both_logarithms(axes: Axes, beyond: float = 20) -> None:
    """Make the axis of signed numbers logarithmic on both sides of -1 .. 1, if they reach beyond some number."""
    low, high = axes.dataLim.intervaly
    if np.isfinite([low, high]).all() and max(-low, high) > beyond:
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(2 * min(low, -0.5), 2 * max(high, 0.5))
        _label_decades(axes)


def _label_decades(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}".replace("-", MINUS))
    if axes.get_yscale() == "symlog" or high > 100 * max(low, 1e-9):
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif high > 10 * low:
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if f"{value:e}"[0] in "25" else "")
    else:
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}")


def widen_constant(axes: Axes) -> None:
    """Keep the rounding errors of a constant from filling the axis."""
    low, high = axes.get_ylim()
    middle = (low + high) / 2
    if high - low < 1e-4 * max(abs(middle), 1e-3):
        half = max(0.05 * abs(middle), 0.05)
        axes.set_ylim(middle - half, middle + half)

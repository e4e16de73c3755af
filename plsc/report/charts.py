"""The charts of a report, drawn with matplotlib: as SVG for the page, and as PNG for use elsewhere."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Optional

import numpy as np
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, FuncFormatter, MaxNLocator

from plsc.metrics import roc_curve
from plsc.report.pairs_file import PairScores
from plsc.report.run_folder import PARTS, RunFolder

SOFTWARE = "plsc report"  # PNG files hold it, so that they are recognised later.
# The colours are legible on white and on near black. Each run also has a dash, for readers and printers without
# colours.
COLOURS = ("#2f7fd0", "#e07b1f", "#2c9f6b", "#b05fc4", "#d4475c", "#8a8f3c", "#1fa3b5", "#a9744f")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.5), (6, 1.5, 1.5, 1.5))
SAME, DIFFERENT = COLOURS[0], COLOURS[1]
# In SVG the colours of the page replace these.
_INK, _GRID = "#010203", "#040506"
_SIZE = (3.7, 2.5)  # In inches. On a phone the text is then as large as that of the page.
_MOST_NAMES, _LONGEST_NAME = 60, 12  # identities that a map names, and characters of a name
_POINTS = 2400  # Most points of all curves of a chart together.
_CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "SimHei")


@dataclass
class Curve:
    """The style in which a run, or a kind of pair, is drawn in every chart.

    Attributes:
        name: What the legend calls it.
        colour: Colour of the line.
        dash: Lengths of dashes and gaps; empty for a solid line.
    """

    name: str
    colour: str
    dash: tuple[float, ...] = ()

    @property
    def style(self) -> dict[str, Any]:
        """Keyword arguments for `Axes.plot`."""
        return {"color": self.colour, **({"dashes": self.dash} if self.dash else {})}


@dataclass
class Chart:
    """One chart.

    Attributes:
        name: Name of its PNG file.
        title: Title that says all the chart is about.
        caption: Title on the page, without what its place on the page says.
        alt: What the chart shows, in words.
        draw: Function that draws it.
        legend: Curves to explain; empty if the chart needs no legend.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Axes], None]
    legend: Sequence[Curve] = field(default=())

    def svg(self, number: int) -> str:
        """Returns an `svg` element for a page, on which it has the given number."""
        with style.context(_style(_INK, _GRID)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It warns about characters that it has no font for; the browser may.
            figure = Figure(figsize=_SIZE, layout="constrained")
            FigureCanvasSVG(figure)
            self._draw(figure.add_subplot())
            stream = io.StringIO()
            figure.savefig(stream, format="svg", transparent=True)
        return _for_page(stream.getvalue(), number, self.alt)

    def png(self) -> bytes:
        """Returns the content of a PNG file, with title and legend."""
        with style.context(_style("#333333", "#dddddd")), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It warns about characters that no font has.
            figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
            FigureCanvasAgg(figure)
            axes = figure.add_subplot()
            self._draw(axes)
            axes.set_title(self.title, loc="left", parse_math=False)
            if self.legend:
                lines = [Line2D([], [], **curve.style) for curve in self.legend]
                box = axes.legend(lines, [_short(curve.name) for curve in self.legend], frameon=False, fontsize=7)
                for text in box.get_texts():
                    text.set_parse_math(False)
            stream = io.BytesIO()
            figure.savefig(stream, format="png", metadata={"Software": SOFTWARE})
        return stream.getvalue()

    def _draw(self, axes: Axes) -> None:
        """Draws the chart with ticks that do not depend on its size: the layout would not know the final ones."""
        self.draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_locator(), AutoLocator):
                axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def _style(ink: str, grid: str) -> list[Any]:
    """Returns a style that does not depend on the user's matplotlibrc."""
    installed = set(font_manager.get_font_names())
    own: dict[str, Any] = {
        "font.family": ["DejaVu Sans", *(name for name in _CHINESE if name in installed)],
        "font.size": 9,
        "axes.titlesize": 10,
        "svg.fonttype": "none",
        "svg.hashsalt": "plsc",
        "lines.linewidth": 1.4,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
    }
    return ["default", own]


def _for_page(text: str, number: int, alt: str) -> str:
    """Returns the part of an SVG file that a page needs."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _tag_for_page(tag[0], number), text)
    box = re.search(r'viewBox="[^"]*"', text)
    element = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(alt)}">'
    return re.sub(r"<svg[^>]*>", lambda _: element, text, count=1)


def _tag_for_page(tag: str, number: int) -> str:
    tag = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>c{number}-", tag)  # The ids of a page must differ.
    tag = re.sub(r"(?<=\d\.\d\d)\d+", "", tag)
    return tag.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def curves_of(names: Sequence[str]) -> list[Curve]:
    """Returns a curve for each name, with a colour and a dash."""
    return [
        Curve(name, COLOURS[one % len(COLOURS)], DASHES[one % len(DASHES)] if len(names) > 1 else ())
        for one, name in enumerate(names)
    ]


def training_charts(runs: Sequence[RunFolder]) -> list[Chart]:
    """Returns the charts of loss, learning rate, accuracy, loss scale and speed over the steps, as far as recorded."""
    charts = []
    parts = dict.fromkeys(column for run in runs for column in run.train if column.startswith(PARTS))
    for column, title, unit in (
        ("loss", "Training loss", "loss"),
        *((part, f"Training loss of {part.removeprefix(PARTS)}", "loss") for part in parts),
        ("lr", "Learning rate", "learning rate"),
        ("acc1", "Accuracy of the training batches", "top-1, %"),
        ("loss_scaling", "Loss scale", "scale"),
        ("images_per_second", "Speed", "images/s"),
    ):
        shown = [run for run in runs if column in run.train and np.isfinite(run.train[column]).any()]
        if shown:
            charts.append(_training_chart(runs, column, title, unit, 100.0 if column == "acc1" else 1.0))
    return charts


def _training_chart(runs: Sequence[RunFolder], column: str, title: str, unit: str, factor: float) -> Chart:
    curves = curves_of([run.name for run in runs])
    texts, columns = [], []
    for run in runs:
        steps = run.train["step"]
        values = run.train.get(column, np.full(len(steps), np.nan)) * factor
        finite = values[np.isfinite(values)]
        columns.append((steps, values))
        if len(finite):
            texts.append(f"{run.name}: from {finite[0]:.4g} to {finite[-1]:.4g} in {steps[-1]:,.0f} steps")

    def draw(axes: Axes) -> None:
        for curve, (steps, values) in zip(curves, columns):
            _draw_over_steps(axes, curve, steps, values, max(20, _POINTS // (3 * len(curves))), 0.25 / len(curves))
        everything = np.concatenate([values for _, values in columns])
        positive = everything[np.isfinite(everything)]
        # On a linear axis, a run that diverges would press the curves of the others flat.
        wide = len(positive) > 0 and positive.min() > 0 and positive.max() > 30 * np.median(positive)
        if column == "loss_scaling":
            axes.set_yscale("log", base=2)
        elif wide:
            axes.set_yscale("log")
        elif unit != "loss":
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))

    return Chart(
        column, title, title, f"{title} over the steps. {'; '.join(texts)}.", draw, curves if len(runs) > 1 else ()
    )


def _draw_over_steps(axes: Axes, curve: Curve, steps: np.ndarray, values: np.ndarray, most: int, band: float) -> None:
    """Draws a line. Too many points become means, in a band of opacity `band` from smallest to largest value."""
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values) > most:
        buckets = np.array_split(np.arange(len(values)), most)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # A bucket without a number makes a gap.
            low, mean, high = (
                np.array([f(values[bucket]) for bucket in buckets]) for f in (np.nanmin, np.nanmean, np.nanmax)
            )
        steps, values = np.array([steps[bucket].mean() for bucket in buckets]), mean
        axes.fill_between(steps, low, high, color=curve.colour, alpha=band, linewidth=0)
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if np.isfinite(values).sum() == 1 else {}
    axes.plot(steps, values, **curve.style, **marker)


def _thousands(value: float, position: Optional[int] = None) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def test_chart(runs: Sequence[RunFolder], name: str) -> Optional[Chart]:
    """Returns the chart of the accuracy, or rank-1 rate, on a set over the epochs; None if no run has two tests."""
    curves, series, texts = curves_of([run.name for run in runs]), [], []
    is_gallery = any("rank@1" in one.sets.get(name, ()) for run in runs for one in run.tests)
    measure, word = ("rank@1", "Rank-1 rate") if is_gallery else ("accuracy", "Accuracy")
    for run in runs:
        tests = [(one.epoch, one.sets[name]) for one in run.tests if measure in one.sets.get(name, ())]
        epochs = np.array([epoch for epoch, _ in tests], np.float64)
        accuracy, std = (np.array([_percent(values.get(key)) for _, values in tests]) for key in (measure, "std"))
        series.append((epochs, accuracy, std))
        if len(epochs):
            texts.append(f"{run.name}: {accuracy[-1]:.2f} % after epoch {epochs[-1]:.0f}")
    if max(len(epochs) for epochs, _, _ in series) < 2:
        return None

    def draw(axes: Axes) -> None:
        for curve, (epochs, accuracy, std) in zip(curves, series):
            axes.fill_between(epochs, accuracy - std, accuracy + std, color=curve.colour, alpha=0.15, linewidth=0)
            marker: dict[str, Any] = {"marker": "o", "markersize": 2.5} if len(epochs) < 40 else {}
            axes.plot(epochs, accuracy, **curve.style, **marker)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{word.lower()}, %")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))

    title, alt = f"{word} on {name}", f"{word} on {name} after each epoch. {'; '.join(texts)}."
    return Chart(f"accuracy_{name}", title, word, alt, draw, curves if len(runs) > 1 else ())


def _percent(value: Any) -> float:
    return 100 * value if isinstance(value, (int, float)) else np.nan


def roc_chart(runs: Sequence[RunFolder], name: str) -> Optional[Chart]:
    """Returns the ROC chart of a set; None if no run has pairs of both kinds."""
    curves, shown, texts = curves_of([run.name for run in runs]), [], []
    for run, curve in zip(runs, curves):
        pairs = run.pairs.get(name)
        if pairs is None or pairs.issame.all() or not pairs.issame.any():
            continue
        lowest = 1 / int((~pairs.issame).sum())
        far, tar = _thinned(*roc_curve(pairs.similarity, pairs.issame), lowest, max(50, _POINTS // (4 * len(runs))))
        shown.append((curve, far, tar, lowest))
        texts.append(f"{run.name}: {tar[np.searchsorted(far, 1e-3, side='right') - 1]:.1%} at 1e-3")
    if not shown:
        return None

    def draw(axes: Axes) -> None:
        least = min(lowest for _, _, _, lowest in shown)
        chance = np.geomspace(least, 1, 60)
        axes.plot(chance, 100 * chance, color="#888888", linewidth=0.9, linestyle=":")
        for curve, far, tar, lowest in shown:
            axes.step(np.maximum(far, lowest), 100 * tar, where="post", **curve.style)
        axes.set_xscale("log")
        axes.set_xlim(least, 1)
        axes.set_ylim(0, 101)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-")))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.set_xlabel("false accept rate (FAR), log scale")
        axes.set_ylabel("true accept rate (TAR), %")

    alt = (
        f"True accept rate over false accept rate on {name}; a dotted line shows guessing. True accept rate: "
        f"{'; '.join(texts)}."
    )
    return Chart(f"roc_{name}", f"ROC on {name}", "ROC", alt, draw, curves if len(runs) > 1 else ())


def _thinned(far: np.ndarray, tar: np.ndarray, lowest: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve at up to `most` rates, evenly spaced on a log axis; each keeps the value of the step before."""
    if len(far) <= most:
        return far, tar
    grid = np.geomspace(lowest, 1, most)
    index = np.unique(np.concatenate([[0], np.searchsorted(far, grid * (1 + 1e-9), side="right") - 1]))
    return far[index], tar[index]


HISTOGRAM_LEGEND = (Curve("same", SAME), Curve("different", DIFFERENT))


def histogram_chart(run: RunFolder, name: str, pairs: PairScores) -> Chart:
    """Returns the histogram of the similarities of pairs of the same and of different identities."""
    low, high = float(pairs.similarity.min()), float(pairs.similarity.max())
    edges = np.linspace(low, high if high > low else low + 1e-3, 61)
    kinds = [(pairs.similarity[pairs.issame], SAME, "same"), (pairs.similarity[~pairs.issame], DIFFERENT, "different")]
    texts = [f"{len(values):,} {kind} pairs, mean {values.mean():.3f}" for values, _, kind in kinds if len(values)]

    def draw(axes: Axes) -> None:
        for values, colour, _ in kinds:
            if len(values):
                share = 100 * np.histogram(values, edges)[0] / len(values)
                axes.stairs(share, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
                axes.stairs(share, edges, color=colour, linewidth=1.2)
        axes.set_xlabel("cosine similarity")
        axes.set_ylabel("share of the pairs, %")

    title = f"Similarity of pairs of {name}, {run.name}"
    return Chart(
        f"pairs_{name}_{run.name}",
        title,
        "Similarity of pairs",
        f"{title}: {'; '.join(texts)}.",
        draw,
        HISTOGRAM_LEGEND,
    )


def map_chart(run: RunFolder, name: str, pairs: PairScores) -> Chart:
    """Returns the map of embeddings in two dimensions: each identity is a star, from its centre to its images."""
    points = _flat(pairs.embeddings)
    groups: dict[str, list[int]] = {}
    for one, identity in enumerate(pairs.identities):
        groups.setdefault(identity or f"\0{one}", []).append(one)
    several = sorted((g for g in groups.items() if len(g[1]) > 1), key=lambda g: -len(g[1]))
    single = [members[0] for members in groups.values() if len(members) == 1]

    def draw(axes: Axes) -> None:
        axes.plot(*points[single].T, "o", color="#888888", markersize=2, markeredgewidth=0, rasterized=True)
        for number, (identity, members) in enumerate(several):
            colour, own = COLOURS[number % len(COLOURS)], points[members]
            middle = np.median(own, axis=0)
            rays = np.stack([own, np.broadcast_to(middle, own.shape), np.full(own.shape, np.nan)], axis=1).reshape(
                -1, 2
            )
            axes.plot(*rays.T, color=colour, linewidth=0.5, alpha=0.5, rasterized=True)
            axes.plot(*own.T, "o", color=colour, markersize=2.6, markeredgewidth=0, alpha=0.85, rasterized=True)
            if number < _MOST_NAMES:
                name = identity if len(identity) <= _LONGEST_NAME else f"{identity[: _LONGEST_NAME - 1]}\u2026"
                above: dict[str, Any] = {
                    "ha": "center",
                    "va": "bottom",
                    "xytext": (0, 2),
                    "textcoords": "offset points",
                }
                place = middle[0], own[:, 1].max()
                axes.annotate(name, place, fontsize=6, parse_math=False, **above)
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(False)
        axes.set_axis_off()

    title = f"Map of embeddings of {name}, {run.name}"
    known = f"{len(several)} identities with several images" if several else "identities unknown"
    known += f", the largest {_MOST_NAMES} named" if len(several) > _MOST_NAMES else ""
    return Chart(
        f"map_{name}_{run.name}", title, "Map of embeddings", f"{title}: {len(points):,} images, {known}.", draw
    )


def _flat(embeddings: np.ndarray) -> np.ndarray:
    """Returns places [M, 2] at which neighbours stay neighbours; the same embeddings give the same places."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(embeddings) < 10:
        size = min(2, *embeddings.shape)
        flat = PCA(size).fit_transform(embeddings)
        return np.pad(flat, ((0, 0), (0, 2 - size)))
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    init = "pca" if min(embeddings.shape) >= 2 else "random"
    return TSNE(init=init, perplexity=perplexity, random_state=0).fit_transform(embeddings)

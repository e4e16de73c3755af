"""The charts of a report, drawn with matplotlib: each as SVG for the page and as PNG for elsewhere."""

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
from matplotlib.ticker import FuncFormatter, MaxNLocator

from plsc.metrics import roc_curve
from plsc.report.run_folder import PairSet, RunFolder

SOFTWARE = "plsc report"  # in PNGs, so that they are known again
# Legible on white and on near black; a run also has a dash, for eyes and printers that know no colours.
COLOURS = ("#2f7fd0", "#e07b1f", "#2c9f6b", "#b05fc4", "#d4475c", "#8a8f3c", "#1fa3b5", "#a9744f")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.5), (6, 1.5, 1.5, 1.5))
SAME, DIFFERENT = COLOURS[0], COLOURS[1]
# In SVG these stand for the page's own colours.
_INK, _GRID = "#010203", "#040506"
_SIZE = (3.7, 2.5)  # inches: on a phone the text is as large as the page's
_POINTS = 2400  # of all curves of a chart together
_CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "SimHei")


@dataclass
class Curve:
    """How one thing is drawn in every chart."""

    name: str
    colour: str
    dash: tuple[float, ...] = ()

    @property
    def style(self) -> dict[str, Any]:
        """For `Axes.plot`."""
        return {"color": self.colour, **({"dashes": self.dash} if self.dash else {})}


@dataclass
class Chart:
    """One chart.

    Attributes:
        name: of its PNG.
        title: names all it is about; `caption` what its place on the page does not say.
        alt: what it shows, in words.
        legend: when it needs one.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Axes], None]
    legend: Sequence[Curve] = field(default=())

    def svg(self, number: int) -> str:
        """An `svg` element for a page, the `number`th of it."""
        with style.context(_style(_INK, _GRID)):
            figure = Figure(figsize=_SIZE, layout="constrained")
            FigureCanvasSVG(figure)
            self.draw(figure.add_subplot())
            stream = io.StringIO()
            figure.savefig(stream, format="svg", transparent=True)
        return _for_page(stream.getvalue(), number, self.alt)

    def png(self) -> bytes:
        """A file of its own, with title and legend."""
        with style.context(_style("#333333", "#dddddd")), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about characters that no font has
            figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
            FigureCanvasAgg(figure)
            axes = figure.add_subplot()
            self.draw(axes)
            axes.set_title(self.title, loc="left", parse_math=False)
            if self.legend:
                lines = [Line2D([], [], **curve.style) for curve in self.legend]
                box = axes.legend(lines, [_short(curve.name) for curve in self.legend], frameon=False, fontsize=7)
                for text in box.get_texts():
                    text.set_parse_math(False)
            stream = io.BytesIO()
            figure.savefig(stream, format="png", metadata={"Software": SOFTWARE})
        return stream.getvalue()


def _style(ink: str, grid: str) -> list[Any]:
    """Whatever the user's matplotlibrc says."""
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
    """Takes from an SVG file what a page needs of it."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _tag_for_page(tag[0], number), text)
    box = re.search(r'viewBox="[^"]*"', text)
    element = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(alt)}">'
    return re.sub(r"<svg[^>]*>", lambda _: element, text, count=1)


def _tag_for_page(tag: str, number: int) -> str:
    tag = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>c{number}-", tag)  # a page's ids are all different
    tag = re.sub(r"(?<=\d\.\d\d)\d+", "", tag)
    return tag.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def curves_of(names: Sequence[str]) -> list[Curve]:
    """A colour and a dash for each name."""
    return [
        Curve(name, COLOURS[one % len(COLOURS)], DASHES[one % len(DASHES)] if len(names) > 1 else ())
        for one, name in enumerate(names)
    ]


def training_charts(runs: Sequence[RunFolder]) -> list[Chart]:
    """Loss, learning rate, accuracy of the batches, loss scale and speed over the steps: those that are there."""
    charts = []
    for column, title, unit in (
        ("loss", "Training loss", "loss"),
        ("lr", "Learning rate", "learning rate"),
        ("acc1", "Accuracy of the training batches", "top-1, %"),
        ("loss_scaling", "Loss scale", "scale"),
        ("images_per_second", "Speed", "images/s"),
    ):
        shown = [run for run in runs if np.isfinite(run.train[column]).any()]
        if shown:
            charts.append(_training_chart(runs, column, title, unit, 100.0 if column == "acc1" else 1.0))
    return charts


def _training_chart(runs: Sequence[RunFolder], column: str, title: str, unit: str, factor: float) -> Chart:
    curves = curves_of([run.name for run in runs])
    texts, columns = [], []
    for run in runs:
        steps, values = run.train["step"], run.train[column] * factor
        finite = values[np.isfinite(values)]
        columns.append((steps, values))
        if len(finite):
            texts.append(f"{run.name}: from {finite[0]:.4g} to {finite[-1]:.4g} in {steps[-1]:,.0f} steps")

    def draw(axes: Axes) -> None:
        for curve, (steps, values) in zip(curves, columns):
            _draw_over_steps(axes, curve, steps, values, max(20, _POINTS // (3 * len(curves))), 0.25 / len(curves))
        everything = np.concatenate([values for _, values in columns])
        positive = everything[np.isfinite(everything)]
        # One that blew up would leave the others on the axis.
        wide = len(positive) > 0 and positive.min() > 0 and positive.max() > 30 * np.median(positive)
        if column == "loss_scaling":
            axes.set_yscale("log", base=2)
        elif wide:
            axes.set_yscale("log")
        elif column != "loss":
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))

    return Chart(
        column, title, title, f"{title} over the steps. {'; '.join(texts)}.", draw, curves if len(runs) > 1 else ()
    )


def _draw_over_steps(axes: Axes, curve: Curve, steps: np.ndarray, values: np.ndarray, most: int, band: float) -> None:
    """A line; where there are too many points, of means, in a band from the least to the greatest, `band` opaque."""
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values) > most:
        buckets = np.array_split(np.arange(len(values)), most)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a bucket without a number: a gap
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
    """Accuracy on a set, or how often a probe's identity is found first, over the epochs; None without two tests of a run."""
    curves, series, texts = curves_of([run.name for run in runs]), [], []
    found_first = any("rank@1" in one.sets.get(name, ()) for run in runs for one in run.tests)
    measure, word = ("rank@1", "Found first") if found_first else ("accuracy", "Accuracy")
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
    """True accepts over false accepts on a set; None when no run has pairs of both kinds of it."""
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
        axes.set_xlabel("false accepts (FAR), log scale")
        axes.set_ylabel("true accepts (TAR), %")

    alt = f"True accepts over false accepts on {name}; dotted: guessing. True accepts: {'; '.join(texts)}."
    return Chart(f"roc_{name}", f"ROC on {name}", "ROC", alt, draw, curves if len(runs) > 1 else ())


def _thinned(far: np.ndarray, tar: np.ndarray, lowest: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The curve at up to `most` rates, evenly on a log axis; what is between them is the step before."""
    if len(far) <= most:
        return far, tar
    grid = np.geomspace(lowest, 1, most)
    index = np.unique(np.concatenate([[0], np.searchsorted(far, grid * (1 + 1e-9), side="right") - 1]))
    return far[index], tar[index]


HISTOGRAM_LEGEND = (Curve("same", SAME), Curve("different", DIFFERENT))


def histogram_chart(run: RunFolder, name: str, pairs: PairSet) -> Chart:
    """How alike pairs of the same and of different things are."""
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
        axes.set_ylabel("pairs of the kind, %")

    title = f"Similarity of pairs of {name}, {run.name}"
    return Chart(
        f"pairs_{name}_{run.name}",
        title,
        "Similarity of pairs",
        f"{title}: {'; '.join(texts)}.",
        draw,
        HISTOGRAM_LEGEND,
    )


def map_chart(run: RunFolder, name: str, pairs: PairSet) -> Chart:
    """Embeddings in two dimensions: a star for each identity, from its middle to its images."""
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
            if len(several) <= 60 and len(identity) <= 8:
                axes.text(middle[0], middle[1], identity, fontsize=6, ha="center", va="center", parse_math=False)
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(False)
        axes.set_axis_off()

    title = f"Map of embeddings of {name}, {run.name}"
    known = f"{len(several)} identities with several" if several else "identities unknown"
    return Chart(
        f"map_{name}_{run.name}", title, "Map of embeddings", f"{title}: {len(points):,} images, {known}.", draw
    )


def _flat(embeddings: np.ndarray) -> np.ndarray:
    """[M, 2]: neighbours stay neighbours. The same for the same embeddings."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(embeddings) < 10:
        size = min(2, *embeddings.shape)
        flat = PCA(size).fit_transform(embeddings)
        return np.pad(flat, ((0, 0), (0, 2 - size)))
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    init = "pca" if min(embeddings.shape) >= 2 else "random"
    return TSNE(init=init, perplexity=perplexity, random_state=0).fit_transform(embeddings)

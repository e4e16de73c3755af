"""The page of a report: one self-contained HTML file about one run or several."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from PIL import Image

from plsc.config import Config, plain_settings
from plsc.report import charts
from plsc.report.charts import Chart, Curve
from plsc.report.document import document, image_url
from plsc.report.headline import headline_rows
from plsc.report.markup import Child, Markup, join, tag
from plsc.report.pairs_file import SUFFIX, HardPair, PairScores
from plsc.report.run_folder import RunFolder

GENERATOR = "plsc report"  # Pages hold it, so that they are recognised later.
_HARD_PAIRS, _LEAST_HARD_PAIRS = 144, 2  # Most pairs on a page; fewest of each kind and set.
_MAPS, _ROWS = 12, 40  # Most maps on a page; most rows in a table of tests.
_MISSING = "\u2013"
# Columns of the tables of tests.
_VERIFICATION = {"accuracy": "accuracy", "std": "std", "tar@1e-3": "TAR@FAR 1e-3", "xnorm": "mean norm"}
_IDENTIFICATION = {"rank@1": "rank 1", "rank@5": "rank 5", "rank@10": "rank 10", "mated": "mated probes"}


@dataclass
class Page:
    """A page about runs.

    Attributes:
        runs: The runs.
        numbers: Headline numbers of each run; see `headline.headline`.
        charts: The charts on the page, in order; `html` fills it.
    """

    runs: Sequence[RunFolder]
    numbers: Sequence[Mapping[str, Any]]
    charts: list[Chart] = field(default_factory=list)

    def html(self) -> str:
        """Returns the text of the whole page."""
        names = ", ".join(run.name for run in self.runs)
        parts = [
            tag("header", tag("h1", "Training report"), tag("p", names, class_="names")),
            self.summary(),
            self.notes(),
            self.training(),
            *(self.verification(name) for name in self.set_names),
            self.settings(),
            self.machines(),
        ]
        return document(
            f"Training report: {names}", GENERATOR, parts, about="This file contains every chart and image."
        )

    @property
    def set_names(self) -> list[str]:
        """Names of the test sets of all runs."""
        return list(dict.fromkeys(name for run in self.runs for name in run.set_names))

    @property
    def is_comparison(self) -> bool:
        """Whether the page compares several runs."""
        return len(self.runs) > 1

    def section(self, title: str, *children: Child) -> Markup:
        """Returns a part of the page with a heading."""
        return tag("section", tag("h2", title), *children)

    def summary(self) -> Markup:
        """Returns the headline numbers, as cards for one run or a table for several."""
        rows = [dict(headline_rows(dict(one))) for one in self.numbers]
        if not self.is_comparison:
            cards = [tag("div", tag("dt", what), tag("dd", value)) for what, value in rows[0].items()]
            return self.section("Summary", tag("dl", cards, class_="cards"))
        return self.section("Summary", self.run_table("", rows))

    def notes(self) -> Markup:
        """Returns the list of what is missing or odd."""
        found = [
            tag("li", tag("b", f"{run.name}: ") if self.is_comparison else "", note)
            for run in self.runs
            for note in run.notes
        ]
        return tag("aside", tag("h2", "Notes"), tag("ul", found), class_="notes") if found else Markup()

    def training(self) -> Markup:
        """Returns the section of the curves over the steps."""
        made = charts.training_charts(self.runs)
        if not made:
            return self.section("Training", _missing("No training step is recorded, so there are no curves."))
        return self.section("Training", self.legend(), self.grid(made))

    def verification(self, name: str) -> Markup:
        """Returns the section about one test set."""
        tested, roc = charts.test_chart(self.runs, name), charts.roc_chart(self.runs, name)
        curves = [one for one in (tested, roc) if one is not None]
        having = [run for run in self.runs if len(run.pairs.get(name, _NO_PAIRS).similarity)]
        curves += [self.of_run(run, charts.histogram_chart(run, name, run.pairs[name])) for run in having]
        mapped = [run for run in having if len(run.pairs[name].embeddings) >= 3]
        maps = [self.of_run(run, charts.map_chart(run, name, run.pairs[name])) for run in mapped[: self.maps_of_a_set]]
        missing = []
        for run in self.runs:
            what = self.what_is_missing(run, name)
            if what:
                missing.append(_missing((f"{run.name}: " if self.is_comparison else "") + what))
        if len(mapped) > self.maps_of_a_set:
            missing.append(
                _missing(f"To keep the page small, it shows the maps of {self.maps_of_a_set} of {len(mapped)} runs.")
            )
        return self.section(
            f"Test on {name}",
            self.legend() if curves else "",
            [self.grid(curves) if curves else "", self.grid(maps, "maps") if maps else ""],
            missing,
            [self.hard_pairs(run, run.pairs[name]) for run in having if run.pairs[name].hard],
            self.tests(name),
        )

    def of_run(self, run: RunFolder, chart: Chart) -> Chart:
        """Returns the chart, with the name of the run in its caption if there are several runs."""
        return dataclasses.replace(chart, caption=f"{chart.caption}, {run.name}") if self.is_comparison else chart

    @property
    def maps_of_a_set(self) -> int:
        """Number of maps that the page shows of each set."""
        return max(1, _MAPS // max(1, len(self.set_names)))

    def what_is_missing(self, run: RunFolder, name: str) -> str:
        """Returns a sentence about what a run did not leave about a set; '' if nothing is missing."""
        pairs = run.pairs.get(name)
        if pairs is None and any("rank@1" in one.sets.get(name, ()) for one in run.tests):
            return ""  # A gallery has no pairs.
        if pairs is None:
            return f"There is no {name}{SUFFIX}, so the ROC, similarities, images and map are missing."
        if not len(pairs.similarity):
            return f"{name}{SUFFIX} holds no pairs."
        lacks = []
        if pairs.issame.all() or not pairs.issame.any():
            kind = "of the same identity" if pairs.issame.all() else "of different identities"
            lacks.append(f"no ROC, as all its pairs are {kind}")
        if not pairs.hard:
            lacks.append("no images of its hardest pairs")
        if len(pairs.embeddings) < 3:
            lacks.append("no embeddings for a map")
        return f"{name}{SUFFIX}: {'; '.join(lacks)}." if lacks else ""

    def legend(self) -> Child:
        """Returns the colours and dashes of the runs, or '' for a single run."""
        return _legend(charts.curves_of([run.name for run in self.runs])) if self.is_comparison else ""

    def grid(self, made: Sequence[Chart], kind: str = "") -> Markup:
        """Returns charts side by side, as many in a row as there is room for; `kind` is a class of the style sheet."""
        figures = []
        for chart in made:
            self.charts.append(chart)
            own = _legend(chart.legend) if chart.legend is charts.HISTOGRAM_LEGEND else ""
            svg = Markup(chart.svg(len(self.charts)))
            figures.append(tag("figure", tag("figcaption", chart.caption, own), svg))
        # Four in a row keep a single chart from having the last row of three to itself.
        kind = kind or ("four" if len(figures) % 3 == 1 else "")
        return tag("div", figures, class_=f"grid {kind}".rstrip())

    def hard_pairs(self, run: RunFolder, pairs: PairScores) -> Markup:
        """Returns the pairs that the network is most wrong about."""
        sets = sum(bool(one.hard) for each in self.runs for one in each.pairs.values())
        most = max(_LEAST_HARD_PAIRS, min(12, _HARD_PAIRS // (2 * sets)))
        parts = []
        for kind, title in (
            (True, "Same identity, lowest similarity"),
            (False, "Different identities, highest similarity"),
        ):
            shown = [pair for pair in pairs.hard if pair.is_same == kind][:most]
            if shown:
                parts.append(tag("h3", title, tag("small", f" {run.name}") if self.is_comparison else ""))
                parts.append(tag("ul", [_hard_pair(pair) for pair in shown], class_="pairs"))
        return join(parts)

    def tests(self, name: str) -> Child:
        """Returns a table of the tests of a set, newest last, and every number of the last one."""
        rows, skipped = [], 0
        columns = (
            _IDENTIFICATION if any("rank@1" in one["test"].get(name, ()) for one in self.numbers) else _VERIFICATION
        )
        for run in self.runs:
            tests = [one for one in run.tests if name in one.sets]
            skipped += max(0, len(tests) - _ROWS)
            for one in tests[-_ROWS:]:
                measures = one.sets[name]
                values = [_number(measures.get(key)) for key in columns]
                rows.append([*([run.name] if self.is_comparison else []), f"{one.epoch}", f"{one.step:,}", *values])
        if not rows:
            return _missing("metrics.jsonl holds no test on this set.")
        heads = [*(["run"] if self.is_comparison else []), "epoch", "step", *columns.values()]
        left_out = f"; {skipped} earlier ones left out" if skipped else ""
        by_run = [dict(one["test"].get(name, {})) for one in self.numbers]
        texts = [{key: _number(value) for key, value in one.items()} for one in by_run]
        return [
            tag("details", tag("summary", f"Tests ({len(rows)}{left_out})"), _table(heads, rows)),
            tag("details", tag("summary", "Every number of the last test"), self.run_table("measure", texts)),
        ]

    def settings(self) -> Markup:
        """Returns the settings that differ between the runs or from the defaults, and then all of them."""
        default = _flat(plain_settings(Config()))
        flat = [_settings_of(run.record) for run in self.runs]
        known = [one for one in flat if one]
        if not known:
            return self.section("Settings", _missing("Unknown, as there is no run.json."))
        names = list(dict.fromkeys(name for one in flat for name in one))
        everything = [{name: one.get(name, _MISSING) for name in names} for one in flat]
        parts: list[Child] = []
        if self.is_comparison:
            differing = [name for name in names if len({one.get(name, _MISSING) for one in known}) > 1]
            parts += [tag("h3", "Settings that differ between the runs")]
            parts += [
                self.run_table("setting", [{name: one[name] for name in differing} for one in everything])
                if differing
                else tag("p", "None.")
            ]
        changed = [
            name for name in names if any(one.get(name, default.get(name)) != default.get(name) for one in known)
        ]
        parts += [
            tag(
                "details",
                tag("summary", f"Settings that differ from the defaults ({len(changed)})"),
                self.run_table("setting", [{name: one[name] for name in changed} for one in everything]),
                **({} if self.is_comparison else {"open": ""}),
            ),
            tag("details", tag("summary", f"All settings ({len(names)})"), self.run_table("setting", everything)),
        ]
        return self.section("Settings", parts)

    def machines(self) -> Markup:
        """Returns the section about the machines of the runs."""
        rows = [_machine_of(run.record) for run in self.runs]
        if not any(rows):
            return self.section("Machine", _missing("Unknown, as there is no run.json."))
        return self.section("Machine", self.run_table("", rows))

    def run_table(self, corner: str, columns: Sequence[Mapping[str, str]]) -> Markup:
        """Returns a table with a column for each run, and a row for each name in any of the columns."""
        names = list(dict.fromkeys(name for one in columns for name in one))
        heads = [corner, *(run.name for run in self.runs)] if self.is_comparison else []
        return _table(heads, [[name, *(one.get(name, _MISSING) for one in columns)] for name in names])


_NO_PAIRS = PairScores(np.empty(0), np.empty(0, bool))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Returns a table, which scrolls on its own if it is wider than the page."""
    head = tag("thead", tag("tr", [tag("th", one, scope="col") for one in heads])) if heads else ""
    lines = [tag("tr", tag("th", _breakable(row[0]), scope="row"), [tag("td", one) for one in row[1:]]) for row in rows]
    return tag(
        "div", tag("table", head, tag("tbody", lines)), class_="scroll", tabindex=0, role="region", aria_label="table"
    )


def _breakable(name: str) -> Markup:
    """Lets a name break after each `_`, as `gradient_accumulation` must on a phone."""
    return join([part if k == 0 else ["_", tag("wbr"), part] for k, part in enumerate(name.split("_"))])


def _legend(curves: Sequence[Curve]) -> Markup:
    items = []
    for curve in curves:
        dash = ",".join(f"{1.4 * one:g}" for one in curve.dash) or None
        line = tag("line", x1=0, y1=5, x2=26, y2=5, stroke=curve.colour, stroke_width=3, stroke_dasharray=dash)
        items.append(tag("li", tag("svg", line, viewBox="0 0 26 10", aria_hidden="true"), curve.name))
    return tag("ul", items, class_="legend")


def _missing(text: str) -> Markup:
    return tag("p", text, class_="missing")


def _hard_pair(pair: HardPair) -> Markup:
    kind = "the same identity" if pair.is_same else "two identities"
    names = [name or "unnamed" for name in pair.names]
    label = " | ".join(dict.fromkeys(name for name in pair.names if name))
    images = [
        tag(
            "img",
            src=_image(one),
            alt=f"{name}, image {k} of pair {pair.number}, which shows {kind}",
            class_=_scaling(one),
        )
        for k, (one, name) in enumerate(zip(pair.images, names), 1)
    ]
    return tag("li", tag("div", images), tag("b", f"{pair.similarity:.3f}"), tag("span", label, title=label))


def _image(pixels: np.ndarray) -> str:
    """Returns an image as a data URL, scaled down if it is large."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((112, 112))
    return image_url(image, "PNG" if max(image.size) <= 40 else "JPEG")


def _scaling(pixels: np.ndarray) -> Optional[str]:
    return "small" if max(pixels.shape[:2]) <= 40 else None


def _number(value: Any) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return _MISSING
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _settings_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Returns all settings of a `run.json` as texts, without what training has found in the data."""
    settings = record.get("settings")
    if not isinstance(settings, dict):
        return {}
    settings = {name: value for name, value in settings.items() if name not in Config.FOUND}
    objects = record.get("objects")
    return {**_flat(settings), **(_flat(objects) if isinstance(objects, dict) else {})}


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, str]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{path}{name}."))
        else:
            flat[f"{path}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _machine_of(record: Mapping[str, Any]) -> dict[str, str]:
    machine = record.get("machine")
    machine = machine if isinstance(machine, dict) else {}
    rows = {
        "ranks": record.get("ranks"),
        "started": record.get("started"),
        "resumed": record.get("resumed_at"),
        **machine,
    }
    memory = rows.get("memory")
    if isinstance(memory, (int, float)):
        rows["memory"] = f"{memory / 1e9:.1f} GB"
    return {name: str(value) for name, value in rows.items() if value is not None}

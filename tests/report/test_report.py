"""The page and the charts: their content, names that try to break them, and the command."""

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from run_folders import make_run, pairs

from plsc.cli import main
from plsc.report import make_report
from plsc.report.charts import Chart, map_chart

EVIL = '<b onclick="x">&amp; $\\frac{1}{$ _e\u202e'  # Markup, broken TeX, a character that reverses text.


class Checked(HTMLParser):
    """A parser that checks that elements nest, and collects what the tests look at."""

    EMPTY = ("meta", "img", "link", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.images, self.tags, self.texts = [], [], [], [], set(), []
        self.feed(text)
        self.close()
        assert self.open == [] and len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        assert not any(name.startswith("on") for name in attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]
        self.images += [attributes.get("alt")] if tag == "img" else []
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(page, folder of charts, result) for two runs whose names try to break the page."""
    folder = tmp_path_factory.mktemp("compared")
    one = make_run(folder / f"one {EVIL.replace('/', '')}", set_name=EVIL, scale=8.0)
    two = make_run(folder / "two", set_name=EVIL, lr=0.2, seed=1, bad_loss_at=(5,))
    content = pairs(np.random.default_rng(2))
    content["hard_names"][:] = '"><script>alert(1)</script>'
    content["map_identities"] = np.array(["$<i>", "b"] * 20)
    np.savez(one / f"{EVIL}_pairs.npz", **content)
    made = make_report([one, two], folder / "report.html", folder / "png")
    return (folder / "report.html").read_text(encoding="utf-8"), folder / "png", made


def test_a_page_of_two_runs_is_valid_and_complete(compared):
    text, _, made = compared
    page = Checked(text)
    assert page.tags.isdisjoint({"b onclick", "i", "script", "iframe", "object"}) and "onclick" in page.text
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert len(page.images) == 32 and all(page.images)
    for title in (
        "Summary", "Notes", "Training loss", "Learning rate", "Loss scale", "Speed", "Accuracy", "ROC",
        "Similarity of pairs, two", "Map of embeddings, two", "Same identity, lowest similarity",
        "Different identities, highest similarity", "Settings that differ between the runs", "Machine", "A processor",
    ):  # fmt: skip
        assert title in page.text, title
    assert "\u202e" not in text and "prefers-color-scheme: dark" in text and '<html lang="en">' in text
    assert made["bytes"] == len(text.encode()) < 400_000


def test_the_chart_files_name_their_maker(compared):
    _, folder, made = compared
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 10 == len(made["png"]) and all(re.fullmatch(r"[\w.-]+\.png", name) for name in names)
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert image.info["Software"] == "plsc report"
            assert len(image.convert("RGB").getcolors(100_000)) > 10, "not blank"


def test_the_map_names_the_largest_identities_and_shortens_long_names():
    identities = [f"a character of number {k}" for k in range(70) for _ in range(3 if k == 69 else 2)]
    rng = np.random.default_rng(0)
    scores = SimpleNamespace(embeddings=rng.normal(size=(len(identities), 4)), identities=identities)
    chart = map_chart(SimpleNamespace(name="run"), "set", scores)
    axes = Figure().add_subplot()
    chart.draw(axes)
    names = [text.get_text() for text in axes.texts]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "\u4e8c" in replace(chart, draw=lambda axes: axes.text(0, 0, "\u4e8c")).svg(1)
    assert len(names) == 60 and names[0] == "a character\u2026" and "the largest 60 named" in chart.alt


def test_labels_are_inside_of_the_chart():
    def draw(axes):
        axes.plot([0, 846], [13.7, 0.4])
        axes.set_ylabel("loss")

    text = Chart("loss", "Loss", "Loss", "A loss.", draw).svg(1)
    (place,) = re.findall(r'x="([-.\d]+)"[^>]*>loss<', text)
    assert float(place) > 7  # The letters are to its left, since the label is turned.


def test_a_run_without_tests_is_noted_and_has_no_empty_chart(tmp_path):
    run = make_run(tmp_path / "run", tests=0, run_json=False)
    made = make_report([run], tmp_path / "report.html", tmp_path / "png")
    page = Checked((tmp_path / "report.html").read_text())
    assert [path.split("/")[-1] for path in made["png"]] == ["loss.png", "lr.png", "images_per_second.png"]
    assert "No test is recorded" in page.text and "Test on" not in page.text
    assert page.text.count("Unknown, as there is no run.json.") == 2
    (run / "metrics.jsonl").write_text('{"event": "tra')
    assert make_report([run], tmp_path / "report.html", tmp_path / "none")["png"] == []
    assert "No training step is recorded, so there are no curves." in (tmp_path / "report.html").read_text()


def test_each_part_of_the_loss_has_a_chart(tmp_path):
    taught, alone = make_run(tmp_path / "taught", tests=0), make_run(tmp_path / "alone", tests=0)
    records = [json.loads(line) for line in (taught / "metrics.jsonl").read_text().splitlines()]
    for number, one in enumerate(records):
        if one["event"] == "train" and number > 5:
            one["losses"] = {"head": 3.0, "teacher": 1 / one["step"], EVIL: "no number"}
    (taught / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    made = make_report([alone, taught], tmp_path / "report.html", tmp_path / "png")
    page = Checked((tmp_path / "report.html").read_text())
    names = [path.split("/")[-1] for path in made["png"]]
    assert names == ["loss.png", "losses_head.png", "losses_teacher.png", "lr.png", "images_per_second.png"]
    assert "Training loss of teacher" in page.text


def test_pairs_without_images_or_of_one_kind_are_noted(tmp_path):
    run = make_run(tmp_path / "run", images=False)
    np.savez(run / "one_pairs.npz", similarity=np.ones(3), issame=np.ones(3, bool))
    np.savez(run / "none_pairs.npz", similarity=np.ones(0), issame=np.ones(0, bool))
    make_report([run], tmp_path / "report.html")
    text = Checked((tmp_path / "report.html").read_text()).text
    assert "lfw_pairs.npz: no images of its hardest pairs; no embeddings for a map." in text
    assert "one_pairs.npz: no ROC, as all its pairs are of the same identity;" in text
    assert "none_pairs.npz holds no pairs." in text
    assert "metrics.jsonl holds no test on this set." in text


def test_a_gallery_has_rank_rates_and_no_pairs(tmp_path):
    run = make_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as stream:
        for epoch, share in enumerate((0.25, 0.875)):
            found = {
                "rank@1": share,
                "rank@5": 1.0,
                "rank@10": 1.0,
                "mated": 8,
                "probes": 9,
                "gallery": 4,
                "at_fpir": {},
            }
            stream.write(
                json.dumps({"event": "test", "step": epoch + 1, "epoch": epoch, "identification": found}) + "\n"
            )
    made = make_report([run], tmp_path / "report.html", tmp_path / "png")
    text = Checked((tmp_path / "report.html").read_text()).text
    assert "identification: rank-1 rate 87.50%" in re.sub(r"\s+", " ", text)
    assert (
        "Rank-1 rate on identification after each epoch. run: 87.50 % after epoch 1."
        in (tmp_path / "report.html").read_text()
    )
    assert [one for one in made["png"] if "identification" in one] and "no identification_pairs.npz" not in text


def test_a_long_run_gives_a_small_page(tmp_path):
    run = make_run(tmp_path / "run", steps=20_000, tests=100)
    rng = np.random.default_rng(0)
    content = pairs(rng, number=200_000)
    content["hard_pairs"] = np.concatenate([np.arange(40), np.arange(40)])
    content["hard_images"] = rng.integers(0, 255, (80, 2, 112, 112, 3), dtype=np.uint8)
    content["hard_names"] = np.full((80, 2), "")
    np.savez(run / "lfw_pairs.npz", **content)
    assert make_report([run], tmp_path / "report.html")["bytes"] < 1_000_000, "though its images are noise"


def test_the_command_prints_its_result_and_does_not_load_paddle(tmp_path):
    run = make_run(tmp_path / "run", steps=4, tests=0)
    program = (
        "import sys; from plsc.cli import main; status = main(sys.argv[1:]); assert 'paddle' not in sys.modules; "
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", program, "report", run, "--output", tmp_path / "new" / "page.html", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    made = json.loads(process.stdout)
    assert made["report"] == str(tmp_path / "new" / "page.html") and made["png"] == []
    assert made["runs"][0]["name"] == "run" and made["runs"][0]["steps"] == 4


def test_mistakes_are_reported_in_one_line_and_foreign_files_stay(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=4, tests=0)
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--output", str(page)]) == 1
    page.write_text("<p>mine")
    assert main(["report", str(run), "--output", str(page)]) == 1
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "loss.png").write_bytes(b"mine")
    assert main(["report", str(run), "--output", str(tmp_path / "new.html"), "--png", str(tmp_path / "png")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and page.read_text() == "<p>mine" and not (tmp_path / "new.html").exists()
    assert "not the folder of a run" in lines[0] and "name another file with --output" in lines[1]
    assert "loss.png: exists, and is not a chart" in lines[2]
    for _ in range(2):
        assert main(["report", str(run), "--output", str(tmp_path / "own.html"), "--png", str(tmp_path / "own")]) == 0

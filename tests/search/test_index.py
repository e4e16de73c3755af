"""Building an index of embeddings, and searching it."""

import base64
import contextlib
import csv
import importlib
import io
import json
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from plsc import cli
from plsc.data.pixels import PixelRule
from plsc.errors import ConfigError, DataError
from plsc.search import index as search
from plsc.search.embeddings import EmbeddingsWriter, open_embeddings
from plsc.search.index import SearchIndex, build_index
from plsc.search.page import write_page

pytest.importorskip("faiss")


def write_folder(folder, vectors, names=None, identities=None, **meta):
    """Writes an embeddings folder."""
    folder.mkdir(exist_ok=True)
    count, dim = vectors.shape
    names = names or [f"{row}.jpg" for row in range(count)]
    np.save(folder / "embeddings.npy", vectors.astype("float32"))
    with open(folder / "images.tsv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, csv.excel_tab, lineterminator="\n").writerows(zip(names, identities or [""] * count))
    manifest = {"count": count, "emb_dim": dim, "source": str(folder), "images": "", "model": None,
                "image_shape": [3, 32, 32], "flip": False, **meta}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def clustered(identities, images, dim, rng):
    """Returns rows [identities * images, dim] near centres, in random order, and the identity of each."""
    centres = unit(rng.standard_normal((identities, dim)))
    numbers = rng.permutation(np.repeat(np.arange(identities), images))
    return centres[numbers] + rng.standard_normal((len(numbers), dim)) / dim**0.5, numbers


def test_exact_search_finds_what_numpy_finds(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 24)) * rng.uniform(1e-3, 1e3, (3000, 1))
    queries = 7 * rng.standard_normal((50, 24))
    meta = build_index(write_folder(tmp_path / "e", vectors), tmp_path / "x")
    cosines, rows = SearchIndex(tmp_path / "x").nearest(queries, 10)
    expected = unit(queries) @ unit(vectors).T
    order = np.argsort(-expected, axis=1)[:, :10]
    assert meta["kind"] == "flat" and (rows == order).all()
    assert np.abs(cosines - np.take_along_axis(expected, order, 1)).max() < 1e-5


def test_lists_find_most_neighbours_and_with_all_probes_every_one(tmp_path):
    rng = np.random.default_rng(1)
    vectors, _ = clustered(500, 10, 32, rng)
    folder = write_folder(tmp_path / "e", vectors)
    queries = vectors[::50] + 0.02 * rng.standard_normal((100, 32))
    for kind in ("flat", "ivf"):
        meta = build_index(folder, tmp_path / kind, kind)
    exact, ivf = (SearchIndex(tmp_path / kind) for kind in ("flat", "ivf"))
    wanted = exact.nearest(queries, 10)[1]
    recall = [
        np.mean([len(set(a) & set(b)) for a, b in zip(ivf.nearest(queries, 10, probes)[1], wanted)]) / 10
        for probes in (1, None, meta["lists"])
    ]
    assert meta["lists"] == 128 and 16 <= meta["probes"] < 128 and 0.95 <= meta["recall"] <= 1
    assert 0.2 < recall[0] < recall[1] and recall[1] > 0.9 and recall[2] > 0.999


def test_many_embeddings_get_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_FLAT_UP_TO", 99)
    folder = write_folder(tmp_path / "e", np.random.default_rng(2).standard_normal((100, 8)))
    assert build_index(folder, tmp_path / "x", probes=9)["kind"] == "ivf"
    assert (
        len(SearchIndex(tmp_path / "x").search(np.eye(8), 100)[0]) == 100
    )  # Few embeddings give few lists, and a search looks into all.


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_each_identity_is_found_once_and_images_without_one_count_alone(kind, tmp_path):
    angles = np.radians([1, 2, 3, 4, 5, *np.linspace(6, 20, 40), 30])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    identities = ["a", "", "", "a", "b", *["b"] * 40, "c"]
    build_index(write_folder(tmp_path / "e", vectors, identities=identities), tmp_path / "x", kind)
    (hits,) = SearchIndex(tmp_path / "x").search(np.array([[2.0, 0]]), 5)
    assert [(hit.name, hit.identity) for hit in hits] == [
        ("0.jpg", "a"), ("1.jpg", ""), ("2.jpg", ""), ("4.jpg", "b"), ("45.jpg", "c")
    ]  # fmt: skip
    assert np.allclose([hit.cosine for hit in hits], np.cos(np.radians([1, 2, 3, 5, 30])), atol=1e-6)
    (all_there_is,) = SearchIndex(tmp_path / "x").search(np.array([[2.0, 0]]), 99)
    assert all_there_is == hits


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("others", [2, 9])
def test_a_search_does_not_widen_to_all_images_of_a_large_identity(kind, others, tmp_path, monkeypatch):
    rng = np.random.default_rng(6)
    vectors = rng.standard_normal((3000, 8))
    identities = ["large" if row >= others else str(row % 8) for row in range(len(vectors))]  # row 8 is of 0, too
    build_index(write_folder(tmp_path / "e", vectors, identities=identities), tmp_path / "x", kind, 128)
    index = SearchIndex(tmp_path / "x")
    asked = []
    find = SearchIndex._find
    monkeypatch.setattr(SearchIndex, "_find", lambda self, *those: (asked.append(those[1]), find(self, *those))[1])
    queries = unit(rng.standard_normal((4, 8)))
    cosines = queries @ unit(vectors).T
    numbers = np.array([*(row % 8 for row in range(others)), *[8] * (3000 - others)])
    for query, hits in zip(cosines, index.search(queries, 5)):
        best = sorted((float(query[numbers == number].max()) for number in set(numbers.tolist())), reverse=True)[:5]
        np.testing.assert_allclose([hit.cosine for hit in hits], best, atol=1e-5)
        assert len({hit.identity for hit in hits}) == len(hits) == min(5, others + 1)
    assert max(asked) <= 1280 and len(asked) < 4 + 4 * 5


def test_threads_that_share_an_index_get_what_they_ask_for(tmp_path):
    rng = np.random.default_rng(7)
    vectors, _ = clustered(200, 10, 16, rng)
    build_index(write_folder(tmp_path / "e", vectors), tmp_path / "x", "ivf", 4)
    index, queries = SearchIndex(tmp_path / "x"), rng.standard_normal((20, 16))
    wanted = {probes: index.nearest(queries, 10, probes)[1] for probes in (1, 2, 8, 40)}

    def search(probes):
        return sum(not np.array_equal(index.nearest(queries, 10, probes)[1], wanted[probes]) for _ in range(150))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(search, wanted)) == [0] * 4


HOSTILE = [None, True, -1, 0, 2**60, 1e999, float("nan"), "", "3", [], {}, ["a"], [3, 32, 1e999]]


def test_crafted_manifests_are_refused(tmp_path):
    folder = write_folder(tmp_path / "e", np.eye(3), format="plsc embeddings 1")
    build_index(folder, tmp_path / "x", "ivf")

    def tried(place, action, keys):
        whole = json.loads(place.read_text())
        texts = [json.dumps({**whole, key: value}) for key in keys for value in HOSTILE]
        texts += [json.dumps({k: v for k, v in whole.items() if k != key}) for key in keys]
        refused = 0
        for text in (*texts, "", "[]", "3", "[" * 100_000, "\x00"):
            place.write_text(text)
            try:
                action()
            except (ConfigError, DataError):
                refused += 1
        place.write_text(json.dumps(whole))
        action()
        return refused / len(texts)

    keys = ["count", "emb_dim", "model", "source", "images", "image_shape"]
    assert tried(folder / "manifest.json", lambda: open_embeddings(folder), keys) > 0.5
    assert tried(tmp_path / "x.json", lambda: SearchIndex(tmp_path / "x").search(np.eye(3)), [*keys, "kind"]) > 0.5

    def resume():
        with contextlib.closing(EmbeddingsWriter(tmp_path / "w", {"count": 5, "emb_dim": 3})) as writer:
            writer.append(np.eye(3)[:1]) if not writer.rows else None

    resume()
    assert tried(tmp_path / "w" / ".embeddings.progress.json", resume, ["rows", "meta"]) > 0.5

    header = (folder / "embeddings.npy").read_bytes()
    for shape in (b"(" * 90, b"-" * 90, b"(2**62,3)", b"(9999999999999999999, 3)", b"('a', 3)", b"(1e999, 3)", b"()"):
        (folder / "embeddings.npy").write_bytes(header.replace(b"(3, 3)", shape))
        with pytest.raises(DataError):
            open_embeddings(folder)


def test_an_index_keeps_names_and_settings_and_can_be_replaced(tmp_path):
    names = ['tab\tquote".jpg', "new\nline.jpg", "人/一.jpg"]
    folder = write_folder(tmp_path / "e", np.eye(3), names, ["x", "", "人"], model="abc", flip=True)
    place = tmp_path / "there" / "faces.index"
    build_index(folder, place)
    write_folder(folder, np.eye(3), names[::-1], ["人", "", "x"], model="abc", flip=True)
    meta = build_index(folder, place)
    index = SearchIndex(place)
    assert (index.names, index.identities, index.meta) == (names[::-1], ["人", "", "x"], meta)
    assert (meta["count"], meta["identities"], meta["model"], meta["flip"]) == (3, 2, "abc", True)
    assert meta["source"] == str(folder) and meta["image_shape"] == [3, 32, 32]
    assert sorted(path.name for path in place.parent.iterdir()) == [
        "faces.index",
        "faces.index.json",
        "faces.index.tsv",
    ]


def test_zero_embeddings_are_left_out_and_infinite_ones_are_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    vectors = np.eye(6)
    vectors[2] = 0
    folder = write_folder(tmp_path / "e", vectors, identities=list("abcdef"))
    assert build_index(folder, tmp_path / "x")["left_out"] == 1
    assert "1 zero embeddings are left out, the first in row 2 (2.jpg)" in caplog.text
    assert [hits[0].identity for hits in SearchIndex(tmp_path / "x").search(np.eye(6)[[1, 3, 5]], 1)] == list("bdf")
    vectors[4, 1] = np.nan
    with pytest.raises(DataError, match=r"row 4 \(4.jpg\) is not finite"):
        build_index(write_folder(folder, vectors), tmp_path / "x")
    with pytest.raises(DataError, match="all embeddings are zero"):
        build_index(write_folder(folder, np.zeros((2, 3))), tmp_path / "x")


def test_damaged_embeddings_folders_are_refused(tmp_path):
    folder = write_folder(tmp_path / "e", np.eye(3))
    for break_it, said in (
        (lambda: (folder / "images.tsv").write_text("a\tb\n"), "images.tsv has 1 line, but manifest.json says 3"),
        (lambda: (folder / "images.tsv").write_text("a\n"), "images.tsv, line 1"),
        (lambda: (folder / "embeddings.npy").write_bytes(b"?"), "not a complete embeddings folder"),
        (lambda: (folder / "manifest.json").unlink(), "manifest.json: No such file"),
    ):
        break_it()
        with pytest.raises(DataError, match=said):
            build_index(folder, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["x", "x.json", "x.tsv"])
def test_a_file_that_is_not_an_index_is_not_replaced(name, tmp_path):
    folder = write_folder(tmp_path / "e", np.eye(3))
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=f"{name}: exists, and is not a complete index"):
        build_index(folder, tmp_path / "x")
    assert (tmp_path / name).read_text() == "{}" and len(list(tmp_path.iterdir())) == 2


def test_a_file_that_is_not_an_index_is_not_searched(tmp_path):
    with pytest.raises(DataError, match="not a complete index"):
        SearchIndex(tmp_path / "x")
    folder = write_folder(tmp_path / "e", np.eye(3))
    build_index(folder, tmp_path / "x")
    with pytest.raises(DataError, match=r"embeddings \[1, 4\] do not fit the index, which holds \[N, 3\]"):
        SearchIndex(tmp_path / "x").nearest(np.ones((1, 4)), 1)
    with pytest.raises(DataError, match="query 1 is zero or not finite"):
        SearchIndex(tmp_path / "x").nearest(np.eye(3)[:2] * [[1], [0]], 1)
    (tmp_path / "x.tsv").write_text("a\t\n")
    with pytest.raises(DataError, match="the index does not belong to its .json and .tsv"):
        SearchIndex(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(DataError, match="the index cannot be read"):
        SearchIndex(tmp_path / "x")


def test_without_faiss_the_extra_is_named(tmp_path, monkeypatch, capsys):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert cli.main(["index", str(tmp_path), "--output", str(tmp_path / "x")]) == 1
    assert "pip install '.[search]'" in capsys.readouterr().err


def test_a_page_holds_thumbnails_escapes_names_and_marks_missing_images(tmp_path):
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.png")
    Image.new("L", (20, 30)).save(tmp_path / "<b>&.jpg")
    hits = [search.Hit("a.png", "<i>one</i>", 0.91234), search.Hit("gone.jpg", "", 0.5)]
    page = tmp_path / "page.html"
    for _ in range(2):  # The second page replaces the first.
        write_page(page, str(tmp_path), [tmp_path / "<b>&.jpg"], [hits])
    text = page.read_text()
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in images]
    assert sizes == [(20, 30), (96, 48)]
    assert "&lt;i&gt;one&lt;/i&gt;" in text and "<i>one" not in text and "&lt;b&gt;&amp;.jpg" in text
    assert "0.912" in text and "gone.jpg" in text and text.count("image missing or unreadable") == 1
    assert "http" not in text and 'name="viewport"' in text
    write_page(page, None, [tmp_path / "a.png"], [[]], PixelRule(most_pixels=400 * 200 - 1))
    assert "image missing or unreadable" in page.read_text()
    page.write_text("mine")
    with pytest.raises(ConfigError, match="not a page of a search"):
        write_page(page, None, [], [])
    assert page.read_text() == "mine"


def test_commands_find_the_images_of_an_index(trained, few_glyphs, tmp_path, capsys):
    checkpoint, source, folder = str(trained / "output" / "0"), few_glyphs / "images", tmp_path / "e"
    images = sorted(source.rglob("*.jpg"))
    file, page = str(tmp_path / "x"), tmp_path / "page.html"
    words = ["predict", "--checkpoint", checkpoint, "--input", str(source), "--output", str(folder), "--flip"]
    assert cli.main(words) == 0
    assert cli.main(["index", str(folder), "--output", file]) == 0
    assert f"{len(images)} images of 12 identities, flat" in capsys.readouterr().out
    one = str(images[3].parent)
    assert cli.main(["search", file, "--checkpoint", checkpoint, one, "--top", "3", "--json", "--page", str(page)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [item["image"] for item in found] == [str(path) for path in images if str(path.parent) == one]
    assert all(item["hits"][0]["name"] == str(item["image"])[len(str(source)) + 1 :] for item in found)
    assert all(len(item["hits"]) == 3 and item["hits"][0]["cosine"] > 0.9999 for item in found)
    assert page.read_text().count("data:image/jpeg") == 4 * len(found)
    assert cli.main(["search", file, "--model", str(trained / "net"), str(images[-1]), "--top", "1"]) == 0
    identity, name = images[-1].parent.name, images[-1].relative_to(source)
    assert re.search(rf"\n  1\.0000  {identity}  {name}\n", capsys.readouterr().out)


def test_commands_take_and_make_files_of_any_bytes(trained, few_glyphs, tmp_path, capsys):
    raw = "数".encode("gbk")
    folder = tmp_path / os.fsdecode(raw)
    source, first = folder / "images", few_glyphs / "images" / "0"
    shutil.copytree(first, source / os.fsdecode(raw))
    shutil.copytree(few_glyphs / "images" / "1", source / 'a\tb\n"')
    checkpoint, net = folder / "0", folder / "net"
    shutil.copytree(trained / "output" / "0", checkpoint)
    shutil.copytree(trained / "net", net)
    embeddings, file, page = folder / "e", folder / f"{os.fsdecode(raw)}.index", folder / "page.html"
    words = ["predict", "--checkpoint", str(checkpoint), "--input", str(source), "--output", str(embeddings), "--json"]
    assert cli.main(words) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["count"] == 4 and made["output"].encode("utf-8", "surrogateescape") == os.fsencode(embeddings)
    table = (embeddings / "images.tsv").read_bytes()
    assert b"%s/0.jpg\t%s\n" % (raw, raw) in table and b'"a\tb\n""/0.jpg"\t"a\tb\n"""\n' in table
    assert cli.main(["index", str(embeddings), "--output", str(file)]) == 0
    query = str(source / os.fsdecode(raw) / "0.jpg")
    assert cli.main(["search", str(file), "--model", str(net), query, "--page", str(page)]) == 0
    shown = capsys.readouterr().out
    assert r"  1.0000  \xca\xfd  \xca\xfd/0.jpg" in shown and r'a\tb\n"/' in shown
    text = page.read_text(encoding="utf-8")
    assert r"\xca\xfd/0.jpg" in text and text.count("data:image/jpeg") == 3
    assert cli.main(["search", str(file), "--model", str(net), query, "--json"]) == 0
    hits = json.loads(capsys.readouterr().out.splitlines()[-1])[0]["hits"]
    assert hits[0]["name"].encode("utf-8", "surrogateescape") == raw + b"/0.jpg"
    assert hits[1]["name"].startswith('a\tb\n"/')


def test_a_search_with_another_network_is_refused(trained, few_glyphs, tmp_path, capsys):
    checkpoint, image = str(trained / "output" / "0"), str(few_glyphs / "images" / "0" / "0.jpg")
    folder, file = tmp_path / "e", str(tmp_path / "x")
    words = ["predict", "--checkpoint", checkpoint, "--input", str(few_glyphs / "images"), "--output", str(folder)]
    assert cli.main(words) == 0
    embeddings = open_embeddings(folder)
    other = embeddings.meta["model"][::-1]
    for change, network, said in (
        ({"model": other}, ["--checkpoint", checkpoint], "was made with another network"),
        ({"image_shape": [3, 48, 48]}, ["--checkpoint", checkpoint], "takes images [3, 32, 32]"),
        ({"emb_dim": 16}, ["--model", str(trained / "net")], "have 32 numbers, those of"),
        ({"model": other}, ["--model", str(trained / "net")], "was made with another network"),
        ({"model": None, "export": other}, ["--model", str(trained / "net")], "was made with another network"),
    ):
        meta = {**embeddings.meta, **change}
        write_folder(tmp_path / "other", embeddings.vectors[:, : meta["emb_dim"]], **meta)
        build_index(tmp_path / "other", tmp_path / "x")
        assert cli.main(["search", file, *network, image]) == 1
        assert said in capsys.readouterr().err
    build_index(
        write_folder(tmp_path / "other", embeddings.vectors, **{**embeddings.meta, "model": None}), tmp_path / "x"
    )
    assert (
        cli.main(["search", file, "--checkpoint", checkpoint, image]) == 0
    )  # A script made the index, so there is no network to compare.


def test_queries_are_read_as_the_images_of_the_index_were(trained, tmp_path, capsys):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    clear.paste((0, 90, 250, 255), (4, 8, 20, 28))
    (tmp_path / "images").mkdir()
    clear.save(tmp_path / "images" / "a.png")
    folder, file, image = str(tmp_path / "e"), str(tmp_path / "x"), str(tmp_path / "images" / "a.png")
    trained_here, white = ["--checkpoint", str(trained / "output" / "0")], ["--set", "image_ground=[255,255,255]"]
    words = ["--input", str(tmp_path / "images"), "--output", folder, "--set", "image_ground=[0,0,0]"]
    assert cli.main(["predict", *trained_here, *words]) == 0
    assert cli.main(["index", folder, "--output", file]) == 0
    assert SearchIndex(tmp_path / "x").meta["image_ground"] == [0, 0, 0]
    capsys.readouterr()
    for network in (trained_here, ["--model", str(trained / "net")]):
        for more, is_alike in (([], True), (white, False)):
            assert cli.main(["search", file, image, *network, *more, "--json"]) == 0
            cosine = json.loads(capsys.readouterr().out.splitlines()[-1])[0]["hits"][0]["cosine"]
            assert (cosine > 0.9999) == is_alike, (network, more, cosine)


def test_a_folder_without_images_is_named(tmp_path, capsys):
    assert cli.main(["search", "x", "--checkpoint", "y", str(tmp_path)]) == 1
    assert f"{tmp_path}: holds no image" in capsys.readouterr().err


def test_loading_faiss_does_not_log_which_builds_it_lacks(monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)  # as Paddle sets it
    logging.getLogger("faiss").setLevel(logging.NOTSET)
    search._faiss()
    assert not logging.getLogger("faiss.loader").isEnabledFor(logging.INFO)


def test_the_log_level_that_the_user_chose_for_faiss_is_kept(monkeypatch):
    monkeypatch.setattr(logging.getLogger("faiss"), "level", logging.DEBUG)
    search._faiss()
    assert logging.getLogger("faiss").level == logging.DEBUG

"""The rendered glyph data set: its layout, and equal bytes for equal arguments."""

from __future__ import annotations

import base64
import errno
import io
import itertools
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="the fonts come with matplotlib, of the demo extra")

from plsc.data import glyphs as module  # noqa: E402
from plsc.data.glyphs import main, render_glyphs  # noqa: E402
from plsc.data.label_file import read_label_file  # noqa: E402
from plsc.data.test_sets import IdentitySet, find_sets  # noqa: E402
from plsc.data.verification import load_verification  # noqa: E402
from plsc.errors import DataError  # noqa: E402
from plsc.settings.checks import class_names  # noqa: E402

CLASSES, IMAGES, SIZE, HELD_OUT, PAIRS, PARTS = 6, 3, 24, 4, 20, 2


def render(folder: Path, seed: int = 0, base64_parts: int = 0) -> Path:
    render_glyphs(str(folder), CLASSES, IMAGES, SIZE, HELD_OUT, PAIRS, seed, base64_parts)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("glyphs") / "set", base64_parts=PARTS)


def test_images_and_labels(rendered: Path) -> None:
    lines = (rendered / "label.txt").read_text().splitlines()
    assert lines == [f"images/{label}/{k}.jpg {label}" for label in range(CLASSES) for k in range(IMAGES)]
    source = read_label_file(str(rendered), CLASSES)
    for i in range(len(source)):
        image = Image.open(io.BytesIO(source.read(i)[0]))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIZE, SIZE))
        # The character stands out from the background.
        assert np.asarray(image.convert("L"), np.float64).std() > 5


def test_every_class_has_a_name_in_a_file_that_set_class_names_takes(rendered: Path) -> None:
    names = class_names("set_class_names", str(rendered / "classes.txt"))
    assert names is not None and len(set(names)) == CLASSES
    assert all(name == f"{name[0]} {unicodedata.name(name[0])}" for name in names)


def test_verification_set(rendered: Path) -> None:
    pairs = load_verification(str(rendered / "glyphs.bin"), (3, SIZE, SIZE))
    assert pairs.images.shape == (2 * PAIRS, SIZE, SIZE, 3)
    assert pairs.issame.sum() == PAIRS // 2
    # A pair of one image with itself would be too easy.
    assert all((pairs.images[2 * i] != pairs.images[2 * i + 1]).any() for i in range(PAIRS))


def test_the_held_out_folder_has_all_images_that_the_pairs_are_drawn_from(rendered: Path) -> None:
    (held_out,) = find_sets(str(rendered), "held_out", (3, SIZE, SIZE))
    assert isinstance(held_out, IdentitySet)
    assert held_out.labels.tolist() == [label for label in range(HELD_OUT) for _ in range(16)]
    assert sorted(path.name for path in (rendered / "held_out").iterdir()) == [
        str(CLASSES + number) for number in range(HELD_OUT)
    ]
    owner = {held_out.images.pixels(i, (3, SIZE, SIZE)).tobytes(): label for i, label in enumerate(held_out.labels)}
    assert len(owner) == HELD_OUT * 16
    pairs = load_verification(str(rendered / "glyphs.bin"), (3, SIZE, SIZE))
    found = [owner[image.tobytes()] for image in pairs.images]
    assert [one == other for one, other in zip(found[::2], found[1::2])] == pairs.issame.tolist()


def test_every_fold_has_both_kinds_of_pairs(tmp_path: Path) -> None:
    render_glyphs(str(tmp_path / "set"), 1, 1, 16, 4, 400, 0)
    issame = load_verification(str(tmp_path / "set" / "glyphs.bin"), (3, 16, 16)).issame
    assert all(0 < fold.sum() < len(fold) for fold in np.split(issame, 10))


def test_held_out_characters_are_not_trained_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[list[str]] = []
    original = module._render_all

    def record(characters, *arguments):
        drawn.append(list(characters))
        return original(characters, *arguments)

    monkeypatch.setattr(module, "_render_all", record)
    render(tmp_path / "set")
    trained, held_out = drawn
    assert (len(trained), len(held_out)) == (CLASSES, HELD_OUT)
    assert not set(trained) & set(held_out)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(rendered: Path, tmp_path: Path) -> None:
    first = content(rendered)
    assert content(render(tmp_path / "again", base64_parts=PARTS)) == first
    other = content(render(tmp_path / "other", seed=1, base64_parts=PARTS))
    assert set(other) == set(first)
    assert all(other[name] != first[name] for name in first if name.endswith((".jpg", ".bin")))


def test_base64_lines_are_the_image_files(rendered: Path) -> None:
    # Only the first word is compared, in case counts follow the names.
    names = [line.split()[0] for line in (rendered / "file_list.txt").read_text().splitlines()]
    assert names == [f"dataset.part{number}" for number in range(1, PARTS + 1)]
    rows = itertools.chain.from_iterable((rendered / name).read_text().splitlines() for name in names)
    encoded = [(base64.b64decode(data, validate=True), int(label)) for data, label in (row.split("\t") for row in rows)]
    source = read_label_file(str(rendered), CLASSES)
    assert sorted(encoded) == sorted(source.read(i) for i in range(len(source)))


def test_an_equal_set_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = render(tmp_path / "set")
    marked = folder / "images" / "0" / "0.jpg"
    marked.write_bytes(b"mine")
    render(folder)
    assert marked.read_bytes() == b"mine"
    with pytest.raises(DataError, match="another folder"):
        render(folder, seed=1)
    assert marked.read_bytes() == b"mine"
    assert main(["--output", str(folder)]) == 1
    assert "another folder" in capsys.readouterr().err


def test_a_folder_with_other_content_is_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="another folder"):
        render(tmp_path)
    assert content(tmp_path) == {"notes.txt": b"mine"}


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_verification", full)
    assert main(["--output", str(tmp_path / "set"), "--classes", "2", "--images", "1", "--held-out", "2"]) == 1
    assert re.search(r"set: cannot be written \(No space left on device\); .*\n$", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_too_many_classes_are_refused(tmp_path: Path) -> None:
    available = len(module.distinct_characters())
    # There must be enough characters for the default set.
    assert available >= 1250
    with pytest.raises(DataError, match=str(available)):
        render_glyphs(str(tmp_path / "set"), classes=available)
    assert not (tmp_path / "set").exists()

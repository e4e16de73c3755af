"""What `plsc data outliers` finds, in embeddings that are made for it and in glyphs whose labels were spoilt."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from plsc import cli
from plsc.datasets import outliers as outliers_module
from plsc.datasets.outliers import Groups, Limits, find_outliers, likeness

CLASSES, IMAGES, SIZE = 60, 20, 32


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def embeddings(seed=0, classes=CLASSES):
    """Returns embeddings of random classes, whose images have a cosine of about 0.8 with each other."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(unit(rng.normal(size=(classes, SIZE))), IMAGES, axis=0)
    spread = rng.normal(size=centres.shape) * (0.5 / np.sqrt(SIZE))
    lengths = rng.uniform(0.5, 30, (len(centres), 1))  # plsc does not normalise what it keeps
    return ((centres + spread) * lengths).astype(np.float32), np.repeat(np.arange(classes), IMAGES)


def test_good_data_has_no_outliers():
    found = find_outliers(*embeddings(), Limits())
    assert (len(found.images), len(found.doubtful), found.merges, found.splits, found.copies) == (0, 0, [], [], [])


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_wrong_labels_are_found_and_the_right_class_is_named(rate):
    vectors, labels = embeddings()
    rng = np.random.default_rng(1)
    wrong = rng.random(len(labels)) < rate
    spoilt = np.where(wrong, (labels + rng.integers(1, CLASSES, len(labels))) % CLASSES, labels)
    found = find_outliers(vectors, spoilt * 7, Limits())  # the numbers of the classes have gaps
    both = np.concatenate([found.images, found.doubtful])
    assert set(both.tolist()) == set(np.flatnonzero(wrong).tolist())
    assert len(found.images) >= 0.95 * wrong.sum(), "1 in 100 is missed"
    assert (found.nearest[found.images] == labels[found.images] * 7).all()
    assert (np.diff(found.own[found.images]) >= 0).all(), "the worst comes first"


def test_cosines_leave_out_the_image_itself():
    vectors, labels = embeddings(classes=3)
    found, rows = find_outliers(vectors, labels, Limits()), unit(vectors.astype(np.float64))
    for i in (0, 25, 59):
        others = [j for j in np.flatnonzero(labels == labels[i]) if j != i]
        # The centre is that of the images that fit best, at least half of them.
        scores = {j: rows[j] @ unit(rows[(labels == labels[j]) & (np.arange(60) != j)].sum(0)) for j in [*others, i]}
        best = sorted(scores, key=lambda j: -scores[j])[: IMAGES // 2]
        assert found.own[i] == pytest.approx(rows[i] @ unit(rows[[j for j in best if j != i]].sum(0)), abs=1e-5)


def test_classes_of_one_identity_and_of_two_are_found():
    vectors, labels = embeddings()
    changed = labels.copy()
    changed[np.flatnonzero(labels == 3)[::2]] = 100  # half of class 3 has another name
    changed[labels == 8] = 7  # class 7 holds two identities
    found = find_outliers(vectors, changed, Limits())
    assert [pair[:2] for pair in found.merges] == [(3, 100)] and found.merges[0][2] == pytest.approx(1, abs=0.1)
    ((number, similar, one, other),) = found.splits
    assert number == 7 and similar < 0.3
    assert {frozenset(labels[one]), frozenset(labels[other])} == {frozenset([7]), frozenset([8])}


def test_likeness_does_not_depend_on_the_number_of_images():
    rows = unit(embeddings(classes=2)[0])
    one, other = rows[:IMAGES], rows[IMAGES:]
    assert likeness(one[:3], one[3:]) == pytest.approx(1, abs=0.15)
    assert likeness(one[:10], one[10:]) == pytest.approx(1, abs=0.1)
    assert abs(likeness(one, other)) < 0.6
    assert likeness(one[:1], other) == 0, "one image does not say how much its class varies"


def test_few_images_and_damaged_ones_are_no_outliers():
    vectors, labels = embeddings()
    vectors[5] = 0
    vectors, labels = np.concatenate([vectors, vectors[:1] * -1]), np.append(labels, 999)
    found = find_outliers(vectors, labels, Limits())
    assert len(found.images) == 0 and found.own[5] == found.own[-1] == -2
    for count in (0, 1, 2):
        small = find_outliers(vectors[:count], labels[:count], Limits())
        assert len(small.images) == 0 and small.merges == []


def test_copies_in_other_classes_and_of_tests():
    vectors, labels = embeddings()
    vectors = np.concatenate([vectors, vectors[[0, 41]] * 2])
    labels = np.append(labels, [30, 31])
    found = find_outliers(vectors, labels, Limits(copy=0.999), [vectors[:0], vectors[[77, 100]] * 3, vectors[[1100]]])
    assert sorted(one[:2] for one in found.copies) == [(1200, 0), (1201, 41)]
    assert [one[:2] for one in found.leaks] == [(77, 0), (100, 1), (1100, 2)]


def test_many_classes_and_large_test_sets_are_compared_in_parts(monkeypatch):
    vectors, labels = embeddings()
    labels[labels == 3] = [3, 100] * (IMAGES // 2)  # two classes of one identity
    tests = [vectors[:0], vectors[[77, 100]], vectors[300:340], vectors[:0]]
    whole = find_outliers(vectors, labels, Limits(copy=0.99), tests)
    monkeypatch.setattr(outliers_module, "_ROWS", 32)
    monkeypatch.setattr(outliers_module, "_CLASSES", 7)
    parts = find_outliers(vectors, labels, Limits(copy=0.99), tests)
    assert [one[:2] for one in parts.merges] == [one[:2] for one in whole.merges] and whole.merges
    assert [one[:2] for one in parts.leaks] == [one[:2] for one in whole.leaks] and len(whole.leaks) == 42
    centres = unit(vectors[::IMAGES])
    cosines = centres @ centres.T - 3 * np.eye(CLASSES)
    nearest = {(min(k, j), max(k, j)) for k, row in enumerate(cosines) for j in np.argsort(-row)[:8].tolist()}
    assert outliers_module._close_classes(centres) == nearest
    assert find_outliers(vectors, labels, Limits(), [vectors[:0]]).leaks == []


def test_groups():
    groups = Groups(np.array([5, 2, 5, 5, 9]))
    assert groups.classes.tolist() == [2, 5, 9] and groups.images(1).tolist() == [0, 2, 3]
    kept = groups.better_half(np.array([0.1, 0.0, 0.9, 0.5, -1.0]))
    assert kept.tolist() == [False, True, True, True, True]


@pytest.fixture(scope="module")
def spoilt(glyphs, tmp_path_factory):
    """Glyphs with names of their classes, of which some are in the wrong class, twice there, or damaged."""
    folder = tmp_path_factory.mktemp("data") / "spoilt"
    shutil.copytree(glyphs, folder)
    lines = [line.split() for line in (folder / "label.txt").read_text().splitlines()]
    for line in lines:
        if line[0] in ("images/0/1.jpg", "images/3/2.jpg"):
            line[1] = str((int(line[1]) + 5) % 12)
    Image.open(folder / "images/4/0.jpg").save(folder / "copy.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    shutil.copy(sorted((folder / "held_out").rglob("*.jpg"))[0], folder / "leak.jpg")
    lines += [["copy.png", "9"], ["broken.jpg", "1"], ["leak.jpg", "2"]]
    (folder / "classes.txt").write_text("".join(f"class{number:02d}\n" for number in range(12)))
    (folder / "label.txt").write_text("".join(f"{path} class{int(number):02d}\n" for path, number in lines))
    return folder


def outliers(capsys, *arguments):
    status = cli.main(["data", "outliers", "zoo:glyphs", *map(str, arguments), "--json"])
    said = capsys.readouterr()
    return status, json.loads(said.out) if status == 0 else said.err


def moved_on(output, name):
    """Moves the embeddings of a finished folder to a new one."""
    new = output.with_name(name)
    new.mkdir()
    (output / "embeddings").rename(new / "embeddings")
    return new


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.mark.core
def test_the_command_lists_and_shows_what_is_wrong(spoilt, tmp_path, capsys):
    output = tmp_path / "outliers"
    before = {path: path.read_bytes() for path in spoilt.rglob("*") if path.is_file()}
    status, found = outliers(capsys, spoilt, "--output", output, "--against", spoilt / "held_out")
    assert status == 0 and found["images"] == 99 and found["damaged"] == 1
    listed = [line.split("\t") for line in (output / "leave_out.txt").read_text().splitlines()]
    assert {name for name, _ in listed} >= {"images/3/2.jpg", "copy.png", "leak.jpg"}
    assert len(listed) == found["left_out"] <= 9
    assert [why for _, why in listed].count("cannot be decoded") == 1
    nearest = {row["image"]: (row["class"], row["nearest class"]) for row in rows_of(output / "images.tsv")}
    assert nearest["images/0/1.jpg"] == ("class05", "class00") and nearest["images/3/2.jpg"] == ("class08", "class03")
    copies = {row["image"]: row["copy of"] for row in rows_of(output / "copies.tsv")}
    assert copies["copy.png"] == "images/4/0.jpg (class 4 ('class04'))" and copies["leak.jpg"].endswith(".jpg")
    page = (output / "page.html").read_text()
    assert "labelled class 5 (&#x27;class05&#x27;)" in page and page.count("<img") > 12
    assert {path: path.read_bytes() for path in spoilt.rglob("*") if path.is_file()} == before

    # What the command wrote is not replaced. With other limits the images are not embedded again.
    written = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    status, said = outliers(capsys, spoilt, "--output", output, "--stranger-rate", "0.3")
    assert status == 1 and "is finished, and nothing is overwritten" in said
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == written
    vectors = (output / "embeddings/embeddings.npy").stat()
    output = moved_on(output, "later")
    status, later = outliers(capsys, spoilt, "--output", output, "--stranger-rate", "0.3", "--shown", 2)
    assert status == 0 and later["threshold"] < found["threshold"] and later["leaks"] == 0
    assert (output / "embeddings/embeddings.npy").stat().st_mtime_ns == vectors.st_mtime_ns
    assert (output / "page.html").read_text().count("<img") < page.count("<img")

    # Names of the settings replace those of the data, as in training.
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {number}\n" for number in range(12)))
    output = moved_on(output, "named")
    words = (spoilt, "--output", output, "--set", f"class_names={names}")
    assert outliers(capsys, *words)[0] == 0
    assert "name 5" in {row["class"] for row in rows_of(output / "images.tsv")}
    names.write_text("one\ntwo\n")
    status, said = outliers(capsys, *words[:2], moved_on(output, "short"), *words[3:])
    assert status == 1 and "set_class_names gives 2 names for 12 classes" in said


@pytest.mark.parametrize("is_listed", [True, False])
def test_embeddings_of_images_that_have_changed_are_not_used_again(glyphs, tmp_path, capsys, is_listed):
    data, output = tmp_path / "data", tmp_path / "outliers"
    shutil.copytree(glyphs / "images", data, ignore=shutil.ignore_patterns("[2-9]", "1[0-9]", "[3-7].jpg"))
    image = next(data.glob("0/*.jpg"))
    content = image.read_bytes()
    image.write_bytes(b"broken")
    if is_listed:
        lines = [f"{path.relative_to(data)} {path.parent.name}\n" for path in sorted(data.rglob("*.jpg"))]
        (data / "label.txt").write_text("".join(lines))
    words = (data, "--output", output)
    if is_listed:
        (tmp_path / "list.txt").write_text(lines[-1].split()[0] + "\n")
        words = (*words, "--exclude", tmp_path / "list.txt")
    assert outliers(capsys, *words)[1]["damaged"] == 1
    image.write_bytes(content)
    status, said = outliers(capsys, data, "--output", moved_on(output, "later"), *words[3:])
    assert status == 1 and "holds other embeddings (different: images)" in said


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--stranger-rate", "0"], "not a number above 0"),
        (["--merge", "much"], "not a number above 0"),
        (["--against", "nowhere"], "nowhere"),
        (["--set", "dataset_dir=x"], "names the data set"),
    ],
)
def test_mistakes(glyphs, tmp_path, capsys, arguments, problem):
    with pytest.raises(SystemExit) if problem.startswith("not a number") else pytest.MonkeyPatch.context():
        status, said = outliers(capsys, glyphs, "--output", tmp_path / "new", *arguments)
        assert status != 0 and problem in said and "Traceback" not in said


def test_a_folder_of_other_files_is_left_alone(glyphs, tmp_path, capsys):
    (tmp_path / "page.html").write_text("mine")
    status, said = outliers(capsys, glyphs, "--output", tmp_path)
    assert status == 1 and "holds page.html, which plsc data outliers did not write" in said
    assert (tmp_path / "page.html").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_two_ranks_find_the_same(spoilt, tmp_path, capsys):
    from ranks import run_plsc

    words = ["data", "outliers", "zoo:glyphs", spoilt, "--output"]
    for ranks in (1, 2):
        done = run_plsc(*words, tmp_path / str(ranks), "--ranks", ranks)
        assert done.returncode == 0, done.stderr
    one, two = (rows_of(tmp_path / name / "images.tsv") for name in ("1", "2"))
    assert [row["image"] for row in one] == [row["image"] for row in two] and one

"""Whatever the format, the number of processes and the interruptions, the images come out as they went in."""

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_images import encode
from PIL import Image

from plsc import cli
from plsc.data.exclusion import find_listed
from plsc.data.recordio import RecordIOWriter
from plsc.data.records import Records
from plsc.data.sources import open_images
from plsc.datasets import conversion as module
from plsc.datasets import image_tree, staging
from plsc.datasets.conversion import Conversion, convert
from plsc.datasets.opening import open_data
from plsc.datasets.staging import NAME
from plsc.datasets.targets import TARGETS
from plsc.errors import ConfigError, DataError

CLASSES, IMAGES = 4, 41


def silent(stage, done, total):
    pass


def encoded(i):
    """An image of its own: JPEG or PNG, of 12 x 12 pixels or another size."""
    pixels = np.random.default_rng(i).integers(0, 255, (12, 12 if i % 3 else 17, 3)).astype(np.uint8)
    return encode(pixels, "PNG" if i % 2 else "JPEG")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A label.txt whose images are not sorted by class, and of which many share a name; class 2 has no image."""
    folder = tmp_path_factory.mktemp("source")
    lines = []
    for i in range(IMAGES):
        name = f"{i // 10}/a {i % 5}.{'png' if i % 2 else 'jpg'}" if i % 7 else f"{i}/x"
        (folder / name).parent.mkdir(exist_ok=True)
        if (folder / name).exists():
            name = f"{i // 10}/b{i}.png"
        (folder / name).write_bytes(encoded(i))
        lines.append(f"{name} {(0, 1, 3)[i % 3]}\n")
    (folder / "label.txt").write_text("".join(lines))
    return folder


def images_of(path, data_format="auto"):
    _, records = open_data(str(path), data_format)
    return [records.read(i) for i in range(records.num_images)]


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("to", TARGETS)
def test_every_format_gives_the_images_back_however_many_processes_wrote_it(to, source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_number_of_shards", lambda *given: 5)
    shards = 5 if TARGETS[to].has_shards else None
    outputs = [tmp_path / f"with {workers}" for workers in (1, 3)]
    for workers, output in zip((1, 3), outputs):
        result = convert(Conversion(str(source), str(output), to, shards=shards, workers=workers), silent)
        assert (result.images, result.classes, result.skipped) == (IMAGES, CLASSES, 0)
    assert files_of(outputs[0]) == files_of(outputs[1])
    assert not list(outputs[0].glob(".*"))
    if TARGETS[to].part:
        monkeypatch.setattr(module, "_number_of_shards", lambda *given: 1)
        convert(Conversion(str(source), str(tmp_path / "one"), to), silent)
        assert files_of(tmp_path / "one") == files_of(outputs[0])
    expected, found = images_of(source), images_of(outputs[0])
    assert (sorted(found) == sorted(expected)) if to == "folder" else found == expected
    assert open_data(str(outputs[0]))[1].num_classes == CLASSES
    back = tmp_path / "back"
    convert(Conversion(str(outputs[0]), str(back), "base64"), silent)
    assert images_of(back) == found


def test_a_folder_has_the_names_of_the_images_and_a_suffix_that_tells_their_format(source, tmp_path):
    output = tmp_path / "out"
    convert(Conversion(str(source), str(output), "folder"), silent)
    found = files_of(output)
    assert found.pop("classes.txt") == b"0\n1\n2\n3\n"
    _, records = open_data(str(source))
    assert set(found.values()) == {records.read(i)[0] for i in range(IMAGES)} and len(found) == IMAGES
    for name, data in found.items():
        assert name.endswith(".jpg" if data.startswith(b"\xff\xd8") else ".png")
    assert {"0/a 3-2.png", "0/x.jpg", "0/x.png"} & set(found) and {name[0] for name in found} == {"0", "1", "3"}


def test_only_images_of_another_size_are_changed_and_as_training_resizes_them(source, tmp_path):
    output = tmp_path / "out"
    convert(Conversion(str(source), str(output), "base64", size=12, quality=100, workers=1), silent)
    changed = 0
    for (before, label), (after, same_label) in zip(images_of(source), images_of(output)):
        assert label == same_label
        with Image.open(module.io.BytesIO(before)) as image:
            if image.size == (12, 12):
                assert after == before
                continue
        changed += 1
        wanted, found = (module.decode(data, (1, 12, 12), "").astype(int) for data in (before, after))
        assert after.startswith(b"\xff\xd8") and np.abs(found - wanted).mean() < 4  # JPEG keeps less of the colours
    assert 10 < changed < 20


def damage(folder, output, *numbers):
    """Copies base64 parts, of which some lines are damaged."""
    output.mkdir()
    for name, data in files_of(folder).items():
        lines = data.splitlines(True)
        if name != "file_list.txt":
            for number in numbers:
                if number < len(lines):
                    lines[number] = lines[number].replace(b"\t", b" ")
        (output / name).write_bytes(b"".join(lines))
    return output


def test_a_damaged_image_stops_the_conversion_or_is_left_out_and_listed(source, tmp_path, capsys):
    parts, output = tmp_path / "parts", tmp_path / "out"
    convert(Conversion(str(source), str(parts), "base64", shards=3), silent)
    bad = damage(parts, tmp_path / "bad", 3, 5)
    for workers in ("1", "3"):  # several processes meet several of them
        assert cli.main(["data", "convert", str(bad), str(output), "--to=base64", "--shards=4", f"--workers={workers}"])
        said = capsys.readouterr().err
        assert "bad/part-00000-of-00003:4: no tab" in said and "--skip-damaged" in said and said.count("\n") == 1
        assert os.listdir(output) == [NAME] and not list((output / NAME).glob("*.piece"))
        module.shutil.rmtree(output)
    assert cli.main(["data", "convert", str(bad), str(output), "--to=base64", "--shards=4", "--skip-damaged"]) == 0
    assert "6 damaged images left out" in capsys.readouterr().out
    listed = (output / "skipped.txt").read_text().splitlines()
    assert len(listed) == 6 and listed[0].startswith(f"part-00000-of-00003:4\t{bad}/part-00000-of-00003:4: no tab")
    kept = [one for k, one in enumerate(images_of(source)) if not any(k - first in (3, 5) for first in (0, 13, 27))]
    assert images_of(output) == kept
    every = damage(parts, tmp_path / "every", *range(99))
    assert cli.main(["data", "convert", str(every), str(tmp_path / "none"), "--to=folder", "--skip-damaged"]) == 1
    assert "no image of it can be read; " in capsys.readouterr().err


@pytest.mark.parametrize("size", [[], ["--size", "16"]])
def test_images_that_cannot_be_decoded_are_left_out_in_a_list_that_exclude_takes(tmp_path, capsys, size):
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "good.jpg").write_bytes(encoded(0))
    (folder / "a" / "cut.jpg").write_bytes(encoded(1)[:200])
    (folder / "a" / "text.jpg").write_text("no image")
    given = ["data", "convert", str(folder), str(tmp_path / "out"), "--to=tar", *size]
    assert cli.main([*given, "--skip-damaged"]) == 0
    assert len(images_of(tmp_path / "out")) == 1 and "skipped.txt" in capsys.readouterr().out
    assert find_listed(open_images(str(folder), None, 0, 1), tmp_path / "out" / "skipped.txt").tolist() == [0, 2]


def convert_until_killed(given, place, victim):
    """Converts in this process, which kills itself, its parent or a worker when it reaches a place."""
    record, moved, at, commit = module._record, [], 4, staging.Staging.commit

    def kill_at_an_image(given, records, i):
        if i == 25:
            os.kill(victim(), signal.SIGKILL)
        return record(given, records, i)

    def kill_at_a_file(move, *given):
        moved.append(given)
        if len(moved) == at:
            os.kill(victim(), signal.SIGKILL)
        move(*given)

    def kill_at_the_whole(self, piece):
        is_whole = piece.name.startswith(staging.WHOLE)
        if is_whole and place == "before the whole":
            os.kill(victim(), signal.SIGKILL)
        commit(self, piece)
        if is_whole:
            os.kill(victim(), signal.SIGKILL)

    if place == "image":
        module._record = kill_at_an_image
    elif place.endswith("the whole"):
        staging.Staging.commit = kill_at_the_whole
    else:
        staging._move = partial(kill_at_a_file, staging._move)
        image_tree._place = partial(kill_at_a_file, image_tree._place)
    try:
        convert(given, silent)
    except DataError as error:
        assert "a worker process ended early (exit code -9); run the same command again" in str(error)
        os._exit(3)


@pytest.mark.parametrize(
    "to, place, victim, workers, status",
    [
        ("base64", "image", os.getpid, 1, -signal.SIGKILL),
        ("base64", "image", os.getppid, 2, -signal.SIGKILL),
        ("base64", "image", os.getpid, 2, 3),
        ("base64", "file", os.getpid, 1, -signal.SIGKILL),
        ("folder", "image", os.getpid, 1, -signal.SIGKILL),
        ("folder", "file", os.getpid, 1, -signal.SIGKILL),
        ("recordio", "image", os.getpid, 1, -signal.SIGKILL),
        ("recordio", "image", os.getppid, 2, -signal.SIGKILL),
        ("recordio", "image", os.getpid, 2, 3),
        ("recordio", "before the whole", os.getpid, 1, -signal.SIGKILL),
        ("recordio", "after the whole", os.getpid, 2, -signal.SIGKILL),
    ],
)
def test_a_killed_conversion_resumes_from_its_whole_shards(
    to, place, victim, workers, status, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_number_of_shards", lambda *given: 4)
    whole, output = tmp_path / "whole", tmp_path / "out"
    given = Conversion(str(source), str(output), to, shards=4 if to == "base64" else None, workers=workers)
    convert(replace(given, output=str(whole)), silent)
    process = multiprocessing.get_context("fork").Process(target=convert_until_killed, args=(given, place, victim))
    process.start()
    process.join()
    assert process.exitcode == status
    assert (output / NAME).exists() and not (output / "file_list.txt").exists()
    result = convert(given, silent)
    assert result.kept >= 1 and files_of(output) == files_of(whole) and not list(output.glob(".*"))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_file_of_all_shards_is_written_once(workers, source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_number_of_shards", lambda *given: 5)
    monkeypatch.setattr("plsc.datasets.joining._PATIENCE", 60.0)
    added, add_part = [], RecordIOWriter.add_part
    monkeypatch.setattr(RecordIOWriter, "add_part", lambda self, path: added.append(path) or add_part(self, path))
    convert(Conversion(str(source), str(tmp_path / "whole"), "recordio", workers=workers), silent)
    whole = files_of(tmp_path / "whole")

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(RecordIOWriter, "close", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(Conversion(str(source), str(tmp_path / "out"), "recordio", workers=workers), silent)
    assert len(added) == 10 and all(path.parent.exists() and not path.exists() for path in added[5:])
    images = whole["train.rec"][: (tmp_path / "out" / NAME / "whole.unfinished/data/train.rec").stat().st_size]
    assert images == (tmp_path / "out" / NAME / "whole.unfinished/data/train.rec").read_bytes()


def test_images_left_out_move_the_numbers_and_the_places_of_the_others(source, tmp_path, monkeypatch):
    parts = tmp_path / "parts"
    convert(Conversion(str(source), str(parts), "base64", shards=3), silent)
    bad = damage(parts, tmp_path / "bad", 3, 5)
    for shards, workers in ((1, 1), (5, 1), (5, 3), (IMAGES, 2)):
        monkeypatch.setattr(module, "_number_of_shards", lambda *given, shards=shards: shards)
        output = tmp_path / f"{shards} {workers}"
        convert(Conversion(str(bad), str(output), "recordio", workers=workers, skip_damaged=True), silent)
        assert files_of(output) == files_of(tmp_path / "1 1")


def test_shards_that_become_one_file_fit_into_memory():
    for total in 1, 15_999_999, 16_000_001, 10**12:
        shards = module._shards_of(total, "recordio")
        assert shards == 1 or total / shards <= 16_000_000


def unfinished(source, output):
    """Leaves a conversion to base64 that was interrupted in its third shard of four."""

    def stop(stage, done, total):
        if done > 25:
            raise KeyboardInterrupt

    given = Conversion(str(source), str(output), "base64", shards=4, workers=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_REPORTED", 1)
        convert(given, stop)
    return given


def test_an_interrupted_conversion_keeps_whole_shards_and_notices_what_changed(source, tmp_path, monkeypatch):
    output = tmp_path / "out"
    given = unfinished(source, output)
    assert sorted(os.listdir(output / NAME)) == ["plan.json", "shard-00000", "shard-00001"]
    for change, says in ({"size": 9}, "--size"), ({"skip_damaged": True}, "--skip-damaged"), ({"shards": 3}, "shards"):
        with pytest.raises(ConfigError, match=f"unfinished conversion that differs in its {says}"):
            convert(replace(given, **change), silent)
    other = tmp_path / "other"
    module.shutil.copytree(source, other)
    with pytest.raises(ConfigError, match="differs in its source .*other"):
        convert(replace(given, source=str(other)), silent)
    label = other / "label.txt"
    os.rename(source, tmp_path / "aside")
    try:
        os.symlink(other, source)
        label.write_text(label.read_text().replace(" 3\n", " 1\n", 1))
        with pytest.raises(ConfigError, match="differs in its (source|digest)"):
            convert(given, silent)
    finally:
        os.unlink(source)
        os.rename(tmp_path / "aside", source)
    # A shard that is not as its record says is made again, and the number of shards need not be given again.
    part = output / NAME / "shard-00001" / "data" / "part-00001-of-00004"
    part.write_bytes(part.read_bytes()[:-1])
    (output / NAME / "shard-00003.0123456789abcdef.piece").mkdir()
    result = convert(replace(given, shards=None), silent)
    assert (result.kept, result.shards) == (1, 4) and images_of(output) == images_of(source)
    with pytest.raises(ConfigError, match="is not empty .it holds file_list.txt.; give a new folder"):
        convert(given, silent)


@pytest.mark.parametrize("name", [".converted", ".converting"])
def test_hidden_folders_of_users_stay_and_what_a_kill_left_is_removed(name, source, tmp_path):
    output = tmp_path / "out"
    given = Conversion(str(source), str(output), "base64", workers=1)
    for content in {"mine": "mine"}, {"plan.json": "{}"}, {"publishing": "mine", "other": ""}, {"plan.json": "mine"}:
        for others in (), ("precious",):
            (output / name).mkdir(parents=True)
            for one, text in content.items():
                (output / name / one).write_text(text)
            for one in others:
                (output / one).mkdir()
            before = sorted(output.rglob("*"))
            with pytest.raises(ConfigError, match=f"is not empty .it holds {name}.; give a new folder"):
                convert(given, silent)
            assert sorted(output.rglob("*")) == before
            module.shutil.rmtree(output)
    for content in {}, {".plan.json.1.ab.part": ""}, {"plan.json": '{"--to": "tar"}', "publishing": "", "shard-0": ""}:
        if name == ".converting" and "plan.json" in content:
            continue  # an unfinished conversion of another plan
        (output / name).mkdir(parents=True)
        for one, text in content.items():
            (output / name / one).write_text(text)
        convert(given, silent)
        assert not list(output.glob(".*"))
        module.shutil.rmtree(output)


def test_ctrl_c_ends_with_130_and_says_how_to_resume(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "_convert", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["data", "convert", str(source), str(tmp_path / "out"), "--to", "base64"]) == 130
    assert capsys.readouterr().err == "plsc: stopped by Ctrl-C; run the same command again to resume\n"


@pytest.mark.parametrize(
    "source_name, output, options, says",
    [
        ("source", "source", [], "is the source, or a folder in it"),
        ("source", "source/in/it", [], "is the source, or a folder in it"),
        ("source", "file", [], "is not a folder"),
        ("source", "file/new", [], "cannot write there"),
        ("source", "full", [], "is not empty (it holds mine)"),
        ("nowhere", "new", [], "holds no training data (no such file or folder)"),
        ("empty", "new", [], "holds no training data"),
        ("source", "new", ["--format", "base64"], "base64_manifest.json: missing"),
        ("source", "new", ["--to", "folder", "--shards", "3"], "--shards is not for --to folder"),
        ("source", "new", ["--to", "folder", "--ranks", "3"], "--ranks is for --to base64"),
        ("source", "new", ["--quality", "3"], "--quality is for the images that --size changes"),
        ("source", "new", ["--engine", "spark", "--workers", "3"], "--workers is not for --engine spark"),
    ],
)
def test_what_cannot_work_is_one_line_and_changes_nothing(
    source_name, output, options, says, source, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    module.shutil.copytree(source, "source")
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    Path("empty").mkdir()
    before = files_of(tmp_path)
    assert cli.main(["data", "convert", source_name, output, "--to", "base64", *options]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("plsc: error: ") and says in said and said.count("\n") == 1
    assert files_of(tmp_path) == before and not Path("new").exists()


@pytest.mark.parametrize("to", ["base64", "recordio"])
def test_a_full_disk_is_one_line_and_a_rerun_resumes(to, source, tmp_path, small_disk, capsys, monkeypatch):
    monkeypatch.setattr(module, "_number_of_shards", lambda *given: 4)
    block = small_disk / "block"
    block.write_bytes(bytes((1 << 20) - 60_000))
    words = ["data", "convert", str(source), str(small_disk / "out"), "--to", to]
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said and "run the same command again, which resumes" in said
    assert said.count("\n") == 1 and not list((small_disk / "out" / NAME).glob("*.piece"))
    block.unlink()
    assert cli.main(words) == 0 and images_of(small_disk / "out") == images_of(source)


class Named(Records):
    """Images in memory, with names of classes that no folder can have."""

    class_names = ("b", "a/x", "..", "", "a/x", "c" * 300)
    num_images = 12

    def name(self, i):
        return "same/name.jpg"

    def where(self, i):
        return f"image {i}"

    def read(self, i):
        return encoded(2 * i), i % 6

    def labels(self):
        return np.arange(12) % 6

    def digests(self):
        return {}


# By these names readers recognise formats, or the converter and other commands write lists.
TAKEN = (
    "classes.txt",
    "skipped.txt",
    "label.txt",
    "Label.txt",
    "train.rec",
    "train.idx",
    "a.tar",
    "b.PARQUET",
    "c.rec",
)
TAKEN += ("base64_manifest.json", "file_list.txt", "base64_file_list.txt", ".converting", "d.tgz")


def test_classes_with_the_names_of_lists_and_of_other_formats_become_folders_that_can_be_read(tmp_path, monkeypatch):
    records = Named()
    records.class_names, records.num_images = TAKEN, 2 * len(TAKEN)
    records.read = lambda i: (encoded(2 * i), i % len(TAKEN))
    records.labels = lambda: np.arange(2 * len(TAKEN)) % len(TAKEN)
    with monkeypatch.context() as patch:
        patch.setattr(module, "open_data", lambda *given: ("named", records))
        convert(Conversion(str(tmp_path / "x"), str(tmp_path / "out"), "folder", workers=1), silent)
    assert open_data(str(tmp_path / "out"))[0] == "folder"
    assert sorted(images_of(tmp_path / "out")) == sorted(map(records.read, range(2 * len(TAKEN))))
    folders = (tmp_path / "out" / "classes.txt").read_text().splitlines()
    assert folders == [one.name for one in sorted(tmp_path.glob("out/*/"))] and not set(folders) & set(TAKEN)


@pytest.mark.parametrize("name", [*TAKEN, "x"])
def test_a_folder_tree_may_have_classes_of_any_name(name, tmp_path):
    if name.startswith("."):
        return
    for one in name, "y":
        (tmp_path / one).mkdir()
        (tmp_path / one / "a.jpg").write_bytes(encoded(0))
    assert open_data(str(tmp_path))[0] == "folder"


def test_class_names_travel_and_names_that_no_file_can_have_are_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "open_data", lambda *given: ("named", Named()))
    (tmp_path / "set.bin").touch()
    for to in ("folder", "base64"):
        words = ["data", "convert", str(tmp_path / "x"), str(tmp_path / to), "--to", to]
        assert cli.main(words) == 0
        assert capsys.readouterr().out.splitlines()[-1] == (
            "Test sets are not converted; copy them to the new folder: set.bin"
        )
    assert (tmp_path / "base64" / "classes.txt").read_text().splitlines() == list(Named.class_names)
    folders = (tmp_path / "folder" / "classes.txt").read_text().splitlines()
    assert folders == ["b", "1_a_x", "2_..", "3_", "4_a_x", f"5_{'c' * 237}"]
    for label, folder in enumerate(folders):
        files = files_of(tmp_path / "folder" / folder)
        assert files == {"name.jpg": encoded(2 * label), "name-2.jpg": encoded(2 * label + 12)}


@pytest.mark.parametrize("to", [to for to in TARGETS if TARGETS[to].has_names])
def test_a_format_that_holds_names_gives_them_back_in_the_order_of_the_numbers(to, tmp_path, monkeypatch):
    names = ("b", "a b", "数据", "c", "no image", "d")
    monkeypatch.setattr(Named, "class_names", names)
    monkeypatch.setattr(Named, "read", lambda self, i: (encoded(2 * i), (0, 1, 2, 3, 5)[i % 5]))
    monkeypatch.setattr(module, "open_data", lambda *given: ("named", Named()))
    monkeypatch.setattr(module, "_number_of_shards", lambda *given: 3)
    convert(Conversion(str(tmp_path / "x"), str(tmp_path / "out"), to), silent)
    _, records = open_data(str(tmp_path / "out"))
    assert tuple(records.class_names) == names
    assert sorted(records.labels().tolist()) == sorted(label for _, label in map(Named().read, range(12)))


def test_a_missing_package_is_noticed_before_a_folder_is_made(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="Parquet needs pyarrow"):
        convert(Conversion(str(source), str(tmp_path / "out"), "parquet"), lambda *arguments: None)
    assert not (tmp_path / "out").exists()


def test_base64_data_can_be_split_for_the_ranks_at_once(source, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["data", "convert", str(source), str(output), "--to", "base64", "--ranks", "2", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["images"] == IMAGES
    name, records = open_data(str(output))
    assert name == "base64" and sorted(images_of(output)) == sorted(images_of(source))
    assert {path.split("_")[0] for path in os.listdir(output)} == {"base64"}


def test_spark_makes_the_same_files(spark, source, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "_number_of_shards", lambda *given: 3)
        for to in ("folder", "recordio"):
            for engine in ("local", "spark"):
                words = ["data", "convert", str(source), str(tmp_path / to / engine), f"--to={to}"]
                assert cli.main([*words, f"--engine={engine}"]) == 0
            assert files_of(tmp_path / to / "spark") == files_of(tmp_path / to / "local")
    for engine in ("local", "spark"):
        words = ["data", "convert", str(source), str(tmp_path / engine), "--to=base64", "--shards=3", "--size=12"]
        assert cli.main([*words, f"--engine={engine}"]) == 0
    assert files_of(tmp_path / "spark") == files_of(tmp_path / "local")
    capsys.readouterr()
    bad = damage(tmp_path / "local", tmp_path / "bad", 5)
    assert cli.main(["data", "convert", str(bad), str(tmp_path / "out"), "--to=folder", "--engine=spark"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"plsc: error: {bad}/part-00000-of-00003:6: no tab") and said.count("\n") == 1


def test_an_executor_that_sees_another_source_says_so(source):
    from plsc.datasets.spark import _make_shard

    job = module.Job(Conversion(str(source), "out", "base64"), (), CLASSES, IMAGES, 1)
    assert "; put it on a disk that all machines share" in _make_shard(job, "another digest", 0)

"""Parts of a RecordIO file make the file that one writer would have made, whoever wrote them and when."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encode

from plsc.data.recordio import RecordIOWriter
from plsc.data.recordio_file import MAGIC
from plsc.data.recordio_parts import RecordIOPart, read_part
from plsc.data.records import Record
from plsc.errors import DataError

FILES = ("train.rec", "train.idx", "property")
# Images with the mark of records in them are split over chunks.
DATA = st.lists(st.sampled_from([MAGIC, MAGIC[:2], b"abcd", b"a"]), min_size=1, max_size=6).map(b"".join)
PART = st.lists(st.tuples(DATA, st.integers(0, 3)), max_size=5)


def content(folder):
    return [(folder / name).read_bytes() for name in FILES]


def made_whole(folder, images):
    """Returns what one writer makes of images."""
    folder.mkdir()
    writer = RecordIOWriter(folder / "train.rec")
    for data, label in images:
        writer.add(Record("a", data, label))
    writer.close()
    return content(folder)


def made_part(path, images, whole=None, before=(0, 0), at_once=2):
    """Makes a part; with `whole` in that file, after every `at_once` images."""
    path.parent.mkdir(exist_ok=True)
    part = RecordIOPart(path)
    for number, (data, label) in enumerate(images, 1):
        part.add(Record("a", data, label))
        if whole is not None and number % at_once == 0:
            part.write_into(whole, *before)
    if whole is not None:
        part.write_into(whole, *before)
    part.close()
    return before[0] + part.size, before[1] + part.images


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PART, st.booleans()), min_size=1, max_size=5), st.booleans(), st.randoms())
def test_parts_make_the_same_file_as_one_writer_in_place_or_copied_and_after_a_kill(
    tmp_path_factory, parts, is_sorted, chance
):
    folder = tmp_path_factory.mktemp("data")
    if is_sorted:
        parts = [([(data, k) for data, _ in images], in_place) for k, (images, in_place) in enumerate(parts)]
    whole = folder / "train.rec"
    whole.touch()
    jobs, before = [], (0, 0)
    for number, (images, in_place) in enumerate(parts):
        path = folder / str(number) / "train.rec"
        jobs.append((path, images, whole if in_place else None, before))
        before = made_part(folder / "sized" / "train.rec", images, None, before)
    for job in chance.sample(jobs, len(jobs)):  # processes finish in any order
        made_part(*job)
    assert [path.exists() for path, *_ in jobs] == [not in_place for _, in_place in parts]
    expected = made_whole(folder / "expected", [image for images, _ in parts for image in images])
    for added in chance.randint(0, len(parts)), len(parts):  # the first writer is killed
        writer = RecordIOWriter(whole, is_shared=True)
        for path, *_ in jobs[:added]:
            writer.add_part(path)
    writer.close()
    assert content(folder) == expected
    writer = RecordIOWriter(whole, is_shared=True)  # one that was killed when it had closed the file
    for path, *_ in jobs:
        writer.add_part(path)
    writer.close()
    assert content(folder) == expected


def test_the_size_of_the_images_is_that_of_the_first_part_with_one_that_can_be_opened(tmp_path):
    for number, data in enumerate((b"no image", encode(np.zeros((20, 30, 3), np.uint8)))):
        made_part(tmp_path / str(number) / "train.rec", [(data, 0)])
    writer = RecordIOWriter(tmp_path / "train.rec", is_shared=True)
    for number in range(2):
        writer.add_part(tmp_path / str(number) / "train.rec")
    writer.close()
    assert (tmp_path / "property").read_text() == "1,20,30\n"


def test_an_image_that_recordio_cannot_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match="b: label 16777216 does not fit into RecordIO"):
        RecordIOPart(tmp_path / "train.rec").add(Record("b", b"x", 2**24))


def test_what_a_part_has_lost_is_one_line(tmp_path):
    whole = tmp_path / "train.rec"
    whole.touch()
    paths = [tmp_path / str(number) / "train.rec" for number in range(3)]
    before = made_part(paths[0], [(b"abcd", 0)], whole)
    made_part(paths[1], [(b"abcd", 0)], whole, before)
    writer = RecordIOWriter(whole, is_shared=True)
    with pytest.raises(DataError, match="does not hold the images of .* where they should be; remove the unfinished"):
        writer.add_part(paths[1])
    writer.add_part(paths[0])
    os.truncate(whole, before[0] + 3)
    with pytest.raises(DataError, match="does not hold the images of"):
        writer.add_part(paths[1])
    for damage in b"", b"mine", paths[0].with_suffix(".npy").read_bytes()[:-9]:
        paths[1].with_suffix(".npy").write_bytes(damage)
        with pytest.raises(DataError, match=r"1/train.npy: cannot be read .*; remove the unfinished conversion"):
            read_part(paths[1])
    with pytest.raises(DataError, match=r"2/train.npy: cannot be read .*No such file"):
        read_part(paths[2])

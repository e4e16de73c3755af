"""A pipe in place of any file of a data set ends in one line, and nothing waits for a writer."""

import errno
import os
import shutil
import signal

import numpy as np
import pytest

from plsc import cli
from plsc.data.packed import hashes_of
from plsc.datasets.conversion import Conversion, convert
from plsc.machine.files import NotRegularError, advice_on

SECONDS = 60


@pytest.fixture(autouse=True)
def in_time():
    """Ends a test that hangs."""

    def end(*_):
        raise AssertionError("it waits for a writer")

    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="module")
def data(few_glyphs, tmp_path_factory):
    """A small set in several formats."""
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(few_glyphs, root / "jpeg")
    for to in ("tar", "recordio", "base64"):
        convert(Conversion(str(few_glyphs), str(root / to), to, workers=1), lambda *a: None)
    return root


FILES = {
    "jpeg/label.txt": 1,
    "jpeg/classes.txt": 1,
    "recordio/train.rec": 1,
    "recordio/train.idx": 1,
    "recordio/property": 1,
    "tar/train-00000-of-00001.tar": 1,
    "tar/.train-00000-of-00001.tar.index.npz": 0,  # an index that cannot be used is made again
    "base64/file_list.txt": 1,
}


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_is_one_line(data, tmp_path, capsys, name):
    folder = tmp_path / "set"
    shutil.copytree(data / os.path.dirname(name), folder)
    place = folder / os.path.basename(name)
    assert place.exists() or name.endswith(".npz")
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    assert cli.main(["data", "info", str(folder)]) == FILES[name]
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == FILES[name] and all(str(folder) in line for line in errors)


@pytest.mark.parametrize("option", ["--exclude", "--against"])
@pytest.mark.parametrize("place", ["pipe.txt", "/dev/zero"])
def test_a_pipe_or_a_device_in_place_of_a_list_is_one_line(data, tmp_path, capsys, option, place):
    path = place if place.startswith("/") else str(tmp_path / place)
    if not os.path.exists(path):
        os.mkfifo(path)
    assert cli.main(["data", "check", str(data / "jpeg"), option, path]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1 and path in errors[0]


def test_a_list_with_a_line_of_many_megabytes_is_read_in_time(data, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(data / "jpeg", folder)
    lines = (folder / "label.txt").read_bytes() * 20_000
    (folder / "label.txt").write_bytes(lines + b"a" * 4_000_000 + b" 1\n")
    assert cli.main(["data", "info", str(folder)]) == 1
    assert f"label.txt:{lines.count(10) + 1}: " in capsys.readouterr().err


def test_long_texts_that_begin_alike_have_different_hashes():
    texts = [b"a" * 5000 + b"b", b"a" * 5000 + b"c", b"a" * 5000 + b"b"]
    starts = np.cumsum([0, *map(len, texts)])[:-1]
    lengths = np.array([len(text) for text in texts], np.int64)
    found = hashes_of(np.frombuffer(b"".join(texts), np.uint8), starts, lengths)
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, "what is there is no ordinary file"),
        (os.mkdir, "what is there is no ordinary file"),
        (lambda path: os.symlink("nowhere", path), "it is a link that leads nowhere"),
    ],
)
def test_what_is_no_image_file_is_not_merely_missing(data, tmp_path, capsys, make, said):
    folder = tmp_path / "set"
    shutil.copytree(data / "jpeg", folder)
    name = (folder / "label.txt").read_text().splitlines()[2].rpartition(" ")[0]
    (folder / name).unlink()
    make(folder / name)
    assert cli.main(["data", "info", str(folder)]) == 1
    error = capsys.readouterr().err
    assert f"label.txt:3: image file '{name}' is missing" in error and said in error


def test_advice_fits_the_problem():
    denied, odd = PermissionError(errno.EACCES, "Permission denied"), NotRegularError(errno.EINVAL, "not a file")
    assert advice_on(denied, "copy it again") == "give this user the permission to read it"
    assert advice_on(odd, "copy it again") == "put an ordinary file there, or leave it out"
    assert advice_on(OSError(errno.EIO, "broken"), "copy it again") == "copy it again"

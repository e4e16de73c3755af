from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plsc.data import verification
from plsc.data.verification import find_verification_sets, load_verification, save_verification
from plsc.errors import DataError

SHAPE = (3, 6, 6)


def pictures(count: int) -> tuple[np.ndarray, list[bytes]]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    encoded = []
    for one in pixels:
        file = io.BytesIO()
        Image.fromarray(one).save(file, "PNG")
        encoded.append(file.getvalue())
    return pixels, encoded


def write(path: Path, content: Any, protocol: int = 4) -> str:
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


def test_round_trip(tmp_path: Path) -> None:
    pixels, encoded = pictures(6)
    path = str(tmp_path / "lfw.bin")
    save_verification(path, encoded, [True, False, True])
    assert os.listdir(tmp_path) == ["lfw.bin"]
    one = load_verification(path, SHAPE)
    assert one.name == "lfw"
    assert one.images.dtype == np.uint8
    assert np.array_equal(one.images, pixels)
    assert one.issame.dtype == bool
    assert one.issame.tolist() == [True, False, True]
    assert load_verification(path, (1, 4, 4)).images.shape == (6, 4, 4, 1)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_protocols_and_arrays(tmp_path: Path, protocol: int) -> None:
    pixels, encoded = pictures(4)
    same = [True, False]
    for images in (encoded, [np.frombuffer(data, np.uint8) for data in encoded], list(pixels), pixels):
        for issame in (same, np.array(same), [np.bool_(value) for value in same]):
            one = load_verification(write(tmp_path / "a.bin", (images, issame), protocol), SHAPE)
            assert np.array_equal(one.images, pixels)
            assert one.issame.tolist() == same
    fortran = [np.asfortranarray(image) for image in pixels]
    assert np.array_equal(load_verification(write(tmp_path / "f.bin", (fortran, same), protocol), SHAPE).images, pixels)


@pytest.mark.parametrize("protocol", [2, 5])
def test_encoded_bytes_are_known_by_how_they_begin(tmp_path: Path, protocol: int) -> None:
    pixels, encoded = pictures(4)
    longest = max(map(len, encoded))
    padded = np.stack([np.frombuffer(data.ljust(longest, b"\0"), np.uint8) for data in encoded])
    bytes_of = [np.frombuffer(data, np.uint8) for data in encoded]
    columns, rows = ([one.reshape(shape) for one in bytes_of] for shape in ((-1, 1), (1, -1)))
    for images in (columns, rows, padded, padded[:, :, None], padded[:, None]):
        one = load_verification(write(tmp_path / "a.bin", (images, [True, False]), protocol), SHAPE)
        assert np.array_equal(one.images, pixels)
    with pytest.raises(DataError, match=r"image 0: an array of shape \[6, 1\] .* may be pixels or a damaged file"):
        load_verification(write(tmp_path / "a.bin", (np.zeros((2, 6, 1), np.uint8), [True])), SHAPE)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "<i2", ">i4", "int64", ">u8", "uint64", "object"])
def test_issame_may_be_of_any_kind_of_integers(tmp_path: Path, protocol: int, kind: str) -> None:
    _, encoded = pictures(4)
    same = np.array([1, 0]).astype(kind)
    for issame in (same, same[:, None], list(same), tuple(int(value) for value in same)):
        one = load_verification(write(tmp_path / "a.bin", (encoded, issame), protocol), SHAPE)
        assert one.issame.tolist() == [True, False]


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_old_and_new_numpy_names(tmp_path: Path, core: str) -> None:
    pixels, _ = pictures(2)
    data = pickle.dumps((list(pixels), [True]), 0)
    data = data.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core.encode())
    (tmp_path / "a.bin").write_bytes(data)
    assert np.array_equal(load_verification(str(tmp_path / "a.bin"), SHAPE).images, pixels)


def test_python2_strings(tmp_path: Path) -> None:
    _, encoded = pictures(2)
    # Python 2 writes byte strings as BINSTRING in protocol 2.
    strings = b"".join(b"T" + len(data).to_bytes(4, "little") + data for data in encoded)
    (tmp_path / "a.bin").write_bytes(b"\x80\x02](" + strings + b"e](\x88e\x86.")
    assert len(load_verification(str(tmp_path / "a.bin"), SHAPE).images) == 2


class Call:
    def __init__(self, function: Any, *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch {0}",), "system"),
        (eval, ("open({0!r}, 'w')",), "eval"),
        (getattr, ("", "join"), "getattr"),
        (np.load, ("{0}",), "numpy"),
    ],
)
def test_malicious_pickle(tmp_path: Path, protocol: int, function: Any, args: tuple[str, ...], name: str) -> None:
    trace = str(tmp_path / "trace")
    content = ([b"x", Call(function, *(arg.format(trace) for arg in args))], [True])
    path = write(tmp_path / "evil.bin", content, protocol)
    with pytest.raises(DataError, match=rf"evil\.bin: refused.*{name}"):
        load_verification(path, SHAPE)
    assert not os.path.exists(trace)


@pytest.mark.parametrize(
    "body",
    [
        b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
        b"c_codecs\nencode\n(Vabc\ntR.",
        b"c_codecs\nlookup\n(Vabc\ntR.",
        b"cnumpy\nload\n(Vabc\ntR.",
        b"cnumpy\ndtype.__class__\n(Vabc\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    ],
)
def test_refused_globals(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "evil.bin").write_bytes(body)
    with pytest.raises(DataError, match=r"evil\.bin: refused"):
        load_verification(str(tmp_path / "evil.bin"), SHAPE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (([b"x"] * 3, [True]), "3 images for 1 pair "),
        (([], []), "no pairs"),
        ([1, 2, 3], "not a verification set"),
        ((1, [True]), "not a verification set"),
        (([b"x", b"y"], ["yes"]), "issame of pair 0"),
        (([b"x", b"y"], [True]), "image 0: cannot decode"),
        ((["x", "y"], [True]), "image 0: str"),
        (([np.zeros((6, 6, 3)), b"y"], [True]), "float|f8"),
        (([b"x", b"y"], np.array(1)), "not a verification set"),
        (([b"x", b"y"], np.array([2])), "issame of pair 0"),
        (([b"x", b"y"], np.array([1.0])), "f8"),
        (([np.zeros((6, 6, 3), np.int64), b"y"], [True]), "int64 array of shape"),
    ],
)
def test_bad_content(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"bad\.bin.*({words})"):
        load_verification(write(tmp_path / "bad.bin", content), SHAPE)


def test_damaged_and_missing(tmp_path: Path) -> None:
    _, encoded = pictures(2)
    path = Path(write(tmp_path / "cut.bin", (encoded, [True])))
    whole = path.read_bytes()
    for data in (b"", b"garbage", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"cut\.bin"):
            load_verification(str(path), SHAPE)
    with pytest.raises(DataError, match=r"none\.bin"):
        load_verification(str(tmp_path / "none.bin"), SHAPE)


def test_save_refuses_odd_counts_and_cleans_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 image for 1 pair; give two per pair"):
        save_verification(str(tmp_path / "a.bin"), [b"x"], [True])
    assert os.listdir(tmp_path) == []


def test_find(tmp_path: Path) -> None:
    for name in ("lfw.bin", "agedb_30.bin", "label.txt"):
        (tmp_path / name).write_bytes(b"")
    root = str(tmp_path)
    assert find_verification_sets(root, "lfw, agedb_30") == [f"{root}/lfw.bin", f"{root}/agedb_30.bin"]
    assert find_verification_sets(root, "") == []
    with pytest.raises(DataError, match=r"cfp_fp\.bin.*agedb_30, lfw$"):
        find_verification_sets(root, "lfw,cfp_fp")
    with pytest.raises(DataError, match="cannot be listed"):
        find_verification_sets(f"{root}/no", "lfw")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.bin files"):
        find_verification_sets(f"{root}/empty", "lfw")


# What tests/fuzz.py and others have found: each took gigabytes, minutes, or ended in a traceback.
GREEDY = {
    "a memo with a number of 2**29": b"\x80\x02Nr\xff\xff\xff\x1f.",
    "bytes of 2**62": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3f.",
    "bytes of 4 GB": b"\x80\x04B\xff\xff\xff\xff.",
    "a bytearray of 1 GiB": b"\x80\x05\x96" + (1 << 30).to_bytes(8, "little") + b".",
    "a bytearray of 2**62": b"\x80\x05\x96" + b"\xff" * 7 + b"\x3f.",
    "an integer of 2 GB": b"\x8b\xff\xff\xff\x7f.",
    "a frame of 2**62": b"\x80\x04\x95" + b"\xff" * 7 + b"\x3f.",
    "a million marks": b"(" * 1_000_000 + b".",
    "a million sets": b"\x8f" * 1_000_000 + b".",
    "many arrays of one text": b"\x80\x02cnumpy\ndtype\nq\0X\x02\0\0\0b1\x85Rq\x01X\0\0\x10\0" + b"a" * (1 << 20)
    + b"q\x02]q\x03(" + b"cnumpy.core.multiarray\nscalar\nh\x01h\x02\x86R0" * 20 + b"e.",
    "the state of a function": b"cnumpy.core.multiarray\nscalar\n}b.",
    "a name with controls": b"cnumpy\nnda\0\x1brray\n.",
}  # fmt: skip


@pytest.mark.parametrize("kind", GREEDY)
def test_a_small_file_takes_little_memory_and_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "greedy.bin"
    path.write_bytes(GREEDY[kind])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"greedy\.bin: (not a verification set|refused)") as caught:
            load_verification(str(path), SHAPE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20 and str(caught.value).isprintable()


def test_a_file_cannot_name_one_image_more_often_than_the_memory_holds(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(verification, "usable_memory", lambda: 1 << 20)
    path = write(tmp_path / "many.bin", ([b"x"] * 20_000, [True] * 10_000))
    with pytest.raises(DataError, match=r"many\.bin: its 20,000 images need .* GB of memory"):
        load_verification(path, SHAPE)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(DataError, match="not an ordinary file"):
        load_verification(str(tmp_path / "pipe.bin"), SHAPE)


def test_images_of_different_sizes_are_not_padded_to_the_largest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", ([bytes(4 << 20), *[b"x"] * 99], [True] * 50))
    tracemalloc.start()
    with pytest.raises(DataError, match="image 0: cannot decode"):
        load_verification(path, SHAPE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20

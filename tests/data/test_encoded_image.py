from __future__ import annotations

import base64
import io
import zlib

import numpy as np
import pytest
from made_images import encode, png
from PIL import EpsImagePlugin, Image

from plsc.data.encoded_image import check_header, decode_image, formats, interpret_opened
from plsc.data.pixels import PixelRule
from plsc.data.transforms import decode
from plsc.errors import DataError
from plsc.search.page import _thumbnail
from plsc.shuffle.scan import is_image

RGB = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def damaged(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


BROKEN = {
    "empty": (b"", "the file is empty; restore it"),
    "JPEG, cut": (cut(encode(RGB, "JPEG")), ", JPEG.: the file ends too early; copy or download it again"),
    "PNG, cut": (cut(encode(RGB)), ", PNG.: the file ends too early; copy or download it again"),
    "GIF, cut": (cut(encode(RGB, "GIF")), ", GIF.: the file ends too early; copy"),
    "BMP, cut": (cut(encode(RGB, "BMP")), ", BMP.: the file ends too early; copy"),
    "TIFF, cut": (cut(encode(RGB, "TIFF")), ", TIFF.: the file ends too early; copy"),
    "WebP, cut": (cut(encode(RGB, "WEBP")), ", WebP.: the file ends too early .it should have [0-9,]* bytes.; copy"),
    "PPM, cut": (cut(encode(RGB, "PPM")), "the file ends too early; copy"),
    "JPEG, header cut": (encode(RGB, "JPEG")[:20], "its header is damaged or cut off; copy"),
    "PNG, damaged": (damaged(encode(RGB), 200), ", PNG.: it is damaged or cut off .*; replace the file"),
    "PNG, no pixels": (png(RGB, 2, size=(0, 8)), "header"),
    "zeros": (bytes(5000), "begins with zero bytes"),
    "HTML": (b"\n<!DOCTYPE html><html>", "a web page; .* download the image again"),
    "SVG": (b"<svg xmlns='x'>", "a drawing .*; convert"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; run git lfs pull"),
    "EPS": (EPS, "EPS, which a program would have to run; convert it to PNG"),
    "WMF": (
        b"\xd7\xcd\xc6\x9a" + bytes(40),
        "a Windows metafile, which a program would have to run; convert it to PNG",
    ),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(30), "Pillow cannot decode HEIC; convert it to JPEG"),
    "MP4": (b"\0\0\0\x18ftypisom" + bytes(30), "not an image in a format that Pillow reads"),
    "zip": (b"PK\x03\x04" + bytes(30), "an archive; unpack it"),
    "text": (b"no image", "not an image in a format that Pillow reads .it begins with b'no image'.; replace"),
    "PNG, a large profile": (
        png(RGB, 2, (b"iCCP", b"x\0\0" + zlib.compress(bytes(3_000_000)))),
        "a compressed part of its header is too large .*; write the image again without metadata",
    ),
    "100 megapixels": (
        png(RGB, 2, size=(10000, 10000)),
        "10,000 x 10,000 pixels are more than 67,108,864; make it smaller, or allow more with set_max_image_pixels",
    ),
    "400 megapixels": (png(RGB, 2, size=(20000, 20000)), "more pixels than Pillow decodes .*; make the image smaller"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_cannot_be_decoded_says_why_and_what_to_do(kind: str) -> None:
    data, words = BROKEN[kind]
    with pytest.raises(DataError, match=f"a.png: cannot decode the image .{len(data):,} bytes.*{words}") as caught:
        decode(data, (3, 64, 64), "a.png")
    assert "\n" not in str(caught.value)
    assert not is_image(base64.b64encode(data))


@pytest.mark.parametrize("kind", ["empty", "HTML", "EPS", "JPEG, header cut", "100 megapixels", "400 megapixels"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_header_shows_it_as_well(kind: str) -> None:
    data, words = BROKEN[kind]
    with pytest.raises(DataError, match=f"a.png: cannot decode the image .{len(data):,} bytes.*{words}"):
        check_header(io.BytesIO(data), "a.png")
    check_header(io.BytesIO(png(RGB, 2, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))))), "a.png")


def test_a_file_never_starts_ghostscript(tmp_path, monkeypatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1) or Image.new("RGB", (9, 9)).im
    )
    Image.init()  # With every plugin loaded, Pillow itself would open the file as EPS.
    with Image.open(io.BytesIO(EPS)) as image:
        image.load()
    assert started.pop()
    path = tmp_path / "face.jpg"
    path.write_bytes(EPS)
    for read in (lambda: decode(EPS, (3, 9, 9), ""), lambda: decode(EPS, (3, 9, 9), "", PixelRule(1))):
        with pytest.raises(DataError, match="EPS"):
            read()
    assert _thumbnail(path) is None and not is_image(base64.b64encode(EPS))
    assert not started
    assert {"JPEG", "PNG", "TIFF", "WEBP"} < set(formats()) and not {"EPS", "WMF", "IPTC"} & set(formats())


def test_the_bound_on_pixels_is_a_setting() -> None:
    data = encode(RGB)
    for rule in (1, 2):
        assert decode_image(data, "RGB", "x", PixelRule(rule, most_pixels=64 * 64)).size == (64, 64)
        with pytest.raises(DataError, match="64 x 64 pixels are more than 4,095"):
            decode_image(data, "RGB", "x", PixelRule(rule, most_pixels=64 * 64 - 1))
    with Image.open(io.BytesIO(data)) as image, pytest.raises(DataError, match="image 3: .*more than 9; make"):
        interpret_opened(image, "RGB", "image 3", PixelRule(most_pixels=9))

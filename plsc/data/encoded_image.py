"""Opens encoded images that anyone may have made, and says why one cannot be decoded and what to do."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO, Union

from PIL import Image, ImageFile, UnidentifiedImageError

from plsc.data.pixels import MOST_PIXELS, NEWEST, PixelRule, interpret
from plsc.data.plain_jpeg import decode_plain
from plsc.errors import DataError, one_line

Where = Union[str, Callable[[], str]]  # where an image comes from, or a function that finds it out

# Formats that run a program (EPS: Ghostscript, WMF: that of Windows), or open whatever image they contain, or are
# recognised only.
_NEVER = ("EPS", "WMF", "IPTC", "FPX", "MIC", "BUFR", "GRIB", "HDF5", "MPEG")
_FIRST = ("JPEG", "PNG", "BMP", "GIF", "PPM")  # The usual formats come first, because formats are tried in order.
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_REPLACE = "replace the file or remove the sample"
_COPY = "copy or download it again, or remove the sample"

# How files begin that are no images, or none that plsc reads, with what they are and what to do about them.
_OTHERS = (
    ((b"%!PS", b"\xc5\xd0\xd3\xc6"), "EPS, which a program would have to run", "convert it to PNG"),
    (
        (b"\xd7\xcd\xc6\x9a", b"\x01\0\0\0"),
        "a Windows metafile, which a program would have to run",
        "convert it to PNG",
    ),
    ((b"%PDF",), "a PDF document", "convert its page to PNG"),
    ((b"<svg", b"<?xml"), "a drawing or another document in XML", "convert a drawing to PNG"),
    ((b"<",), "a web page", "a download has probably failed: download the image again"),
    ((b"version https://git-lfs",), "a pointer of Git LFS", "run git lfs pull"),
    ((b"\0\0\0\x0cJXL ", b"\xff\x0a"), "JPEG XL, which Pillow cannot decode", "convert it to PNG or JPEG"),
    ((b"PK\x03\x04", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf"), "an archive", "unpack it"),
)
_KNOWN = (
    (b"\xff\xd8", "JPEG"),
    (_PNG[:4], "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
)
_CUT = ("truncated", "Truncated", "unexpected end", "not enough image data", "EOF", "end of file", "only got")

_formats: dict[tuple[str, int], tuple[str, ...]] = {}  # by the version of Pillow and the number that it knew


class _TooManyPixelsError(Exception):
    """The error for an image with more pixels than the settings allow."""


def formats() -> tuple[str, ...]:
    """Returns the formats that are read, by Pillow's names: all that it knows but those that could run a program."""
    from PIL import Image  # here, because Spark sends this function to machines that may not have Pillow

    known = (Image.__version__, len(Image.OPEN))  # Other packages may add formats at any time.
    if known not in _formats:
        Image.init()
        _formats[known] = (*_FIRST, *sorted(set(Image.OPEN).difference(_FIRST, _NEVER)))
    return _formats[known]


def open_image(data: Union[bytes, BinaryIO]) -> Image.Image:
    """Opens an encoded image without decoding it. Long texts in a PNG, which Pillow refuses, are left out.

    Args:
        data: The encoded image, or a stream of it.

    Raises:
        Exception: It is not an image; Pillow's errors are of many types.
    """
    from PIL import Image  # as in `formats`

    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        return Image.open(stream, formats=formats())
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        stream.seek(0)
        return Image.open(io.BytesIO(_without_texts(stream.read())), formats=formats())


def _without_texts(data: bytes) -> bytes:
    """Returns a PNG without its text chunks."""
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in _TEXT_CHUNKS:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def decode_image(data: bytes, mode: str, where: Where, rule: PixelRule = NEWEST) -> Image.Image:
    """Decodes an encoded image.

    Args:
        data: The encoded image.
        mode: 'L' or 'RGB'.
        where: Where the image comes from, for the error message.
        rule: What the pixels mean.

    Returns:
        An image of that mode.

    Raises:
        DataError: It cannot be decoded.
    """
    plain = decode_plain(data, mode, rule.most_pixels)
    if plain is not None:
        return plain
    try:
        with open_image(data) as image:
            check_size(image, rule.most_pixels)
            return interpret(image, mode, rule)
    except Exception as error:  # For damaged files Pillow's decoders raise many unrelated types.
        place = where if isinstance(where, str) else where()
        raise _explained(place, error, data[:64], len(data)) from error


def interpret_opened(image: Image.Image, mode: str, where: str, rule: PixelRule = NEWEST) -> Image.Image:
    """Returns what an image of Pillow shows; see `decode_image`.

    An image as `Image.open` returned it is treated like its file.
    """
    is_file = isinstance(image, ImageFile.ImageFile)
    try:
        if is_file:
            check_size(image, rule.most_pixels)
        return interpret(image, mode, rule, of_file=is_file)
    except Exception as error:  # As in `decode_image`.
        why, advice = _reason(error, "", b"", -1)
        raise DataError(f"{where}: cannot decode the image: {why}; {advice}") from error


def check_header(stream: BinaryIO, where: str, most_pixels: int = MOST_PIXELS) -> None:
    """Checks an image by its header, without decoding it.

    Args:
        stream: The encoded image.
        where: Where the image comes from, for the error message.
        most_pixels: Most pixels that it may have.

    Raises:
        DataError: It is not an image, or has too many pixels.
        OSError: The stream cannot be read.
    """
    try:
        with open_image(stream) as image:
            check_size(image, most_pixels)
    except Exception as error:  # As in `decode_image`.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        stream.seek(0)
        begin = stream.read(64)
        raise _explained(where, error, begin, stream.seek(0, io.SEEK_END)) from error


def check_size(image: Image.Image, most_pixels: int) -> None:
    """Checks the size that the header of an image names.

    Raises:
        Exception: The image has no pixels, or more than `most_pixels`.
    """
    width, height = image.size
    if width * height > most_pixels:
        raise _TooManyPixelsError(f"{width:,} x {height:,} pixels are more than {most_pixels:,}")
    if width * height == 0:
        raise ValueError(f"the header says {width} x {height} pixels")


def _explained(where: str, error: Exception, begin: bytes, size: int) -> DataError:
    """Returns the error for an image that cannot be decoded: what, where, why, and what to do."""
    kind = next((name for start, name in _KNOWN if begin.startswith(start)), "")
    if begin[:4] == b"RIFF" and begin[8:12] == b"WEBP":
        kind, length = "WebP", int.from_bytes(begin[4:8], "little") + 8
        error = EOFError(f"it should have {length:,} bytes") if length > size else error
    if begin[4:8] == b"ftyp":  # videos begin so too
        kind = "AVIF" if begin[8:11] == b"avi" else "HEIC" if begin[8:11] in (b"hei", b"hev", b"mif", b"msf") else ""
    why, advice = _reason(error, kind, begin, size)
    return DataError(f"{where}: cannot decode the image ({size:,} bytes{', ' + kind if kind else ''}): {why}; {advice}")


def _reason(error: Exception, kind: str, begin: bytes, size: int) -> tuple[str, str]:
    """Returns why an image cannot be decoded, and what to do."""
    words = one_line(str(error)) or type(error).__name__
    if isinstance(error, _TooManyPixelsError):
        return words, "make it smaller, or allow more with set_max_image_pixels"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more pixels than Pillow decodes ({words})", "make the image smaller"
    if isinstance(error, MemoryError):
        return "there is not enough memory for its pixels", "lower set_num_workers, or make the image smaller"
    if size == 0:
        return "the file is empty", "restore it, or remove the sample"
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(kind, begin, size)
    if "MAX_TEXT" in words:
        return "a compressed part of its header is too large for Pillow", "write the image again without metadata"
    if "not available" in words or "not installed" in words:
        return f"this Pillow has no decoder for it ({words})", "install Pillow's own wheel, or convert it to PNG"
    if words.startswith("image file is truncated"):
        return "the file ends too early", _COPY
    if isinstance(error, EOFError) or any(one in words for one in _CUT):
        return f"the file ends too early ({words})", _COPY
    return f"it is damaged or cut off ({type(error).__name__}: {words})", _REPLACE


def _unidentified(kind: str, begin: bytes, size: int) -> tuple[str, str]:
    """Returns why Pillow does not recognise a file, and what to do."""
    if kind in ("WebP", "AVIF", "JPEG 2000") and kind.replace(" ", "").upper() not in formats():
        return f"this Pillow cannot decode {kind}", "install Pillow's own wheel, or convert it to PNG"
    if kind == "HEIC":
        return "Pillow cannot decode HEIC", "convert it to JPEG, or call pillow_heif.register_heif_opener()"
    if kind:
        return "its header is damaged or cut off", _COPY
    if not any(begin):
        return "the file begins with zero bytes, as after a crash or an unfinished download", _REPLACE
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n")
    for starts, what, advice in _OTHERS:
        if text.startswith(starts):
            return f"the file is not an image that plsc reads, but {what}", advice
    return f"the file is not an image in a format that Pillow reads (it begins with {begin[:12]!r})", _REPLACE

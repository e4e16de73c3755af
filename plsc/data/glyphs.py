"""Renders a real data set with many classes, without a download: the characters of matplotlib's DejaVu fonts.

`python -m plsc.data.glyphs --output DIR` writes the layouts that plsc trains and tests on. Of characters that look
alike (A, Alpha, ...) only one is used. The characters of the test sets `glyphs.bin` (some pairs) and `held_out/` (all
images, and so all pairs of them) are held out of training.
"""

from __future__ import annotations

import argparse
import base64
import functools
import io
import json
import os
import shutil
import signal
import sys
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from plsc.arguments import Parser, at_least, exit_status
from plsc.data.verification import save_verification
from plsc.errors import DataError
from plsc.machine.json_files import as_object, read_json

FORMAT = 3
FAMILIES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")
_BITMAP = 24  # Side of the bitmaps that are compared.
_ALIKE = 0.92  # Two characters look alike from this cosine of their bitmaps on, averaged over two styles.
_HELD_OUT_IMAGES = 16


def render_glyphs(
    output: str,
    classes: int = 1000,
    images: int = 24,
    size: int = 32,
    held_out: int = 250,
    pairs: int = 6000,
    seed: int = 0,
    base64_parts: int = 0,
) -> None:
    """Renders a data set. The same arguments give the same bytes.

    Args:
        output: Folder to create. It gets `images/`, `label.txt`, `classes.txt` with the name of each class on a line,
            `glyphs.bin`, `held_out/`, and with `base64_parts` also `file_list.txt` and its parts. A folder that the
            same arguments made before stays unchanged.
        classes: Number of characters to train on.
        images: Number of images of each character.
        size: Side of an image, in pixels.
        held_out: Number of other characters, for the pairs of `glyphs.bin` and for `held_out/`, which has 16 images of
            each.
        pairs: Number of pairs; one half shows the same character, the other half two different ones.
        seed: Seed of the choice of characters and of every image.
        base64_parts: Number of files of `base64<TAB>label` lines to write in addition to the image files.

    Raises:
        DataError: matplotlib is missing, too few characters are distinct, `output` holds something else, or it cannot
            be written.
    """
    settings = {
        "format": FORMAT,
        "classes": classes,
        "images": images,
        "size": size,
        "held_out": held_out,
        "pairs": pairs,
        "seed": seed,
        "base64_parts": base64_parts,
    }
    _check(settings)
    target = Path(output)
    if target.exists():
        if _settings_of(target) == settings:
            return
        raise DataError(f"{target}: exists, and is not this glyph set; choose another folder with --output")
    chosen = choose_characters(classes, held_out, seed)
    temporary = target.with_name(f".{target.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)  # A run that was stopped has left it.
    try:
        temporary.mkdir(parents=True)
        _write_training(temporary, chosen[:classes], images, size, seed, base64_parts)
        encoded = list(_render_all(chosen[classes:], classes, _HELD_OUT_IMAGES, size, seed))
        _write_held_out(temporary / "held_out", encoded, first_label=classes)
        _write_pairs(temporary / "glyphs.bin", encoded, pairs, seed)
        (temporary / "glyphs.json").write_text(json.dumps(settings), encoding="utf-8")
        os.rename(temporary, target)
    except OSError as problem:
        raise DataError(
            f"{target}: cannot be written ({problem.strerror or problem}); free space, or choose another folder with "
            "--output"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def choose_characters(classes: int, held_out: int, seed: int) -> list[str]:
    """Returns the characters of a data set: first those to train on, then those that are held out.

    Raises:
        DataError: matplotlib is missing, or too few characters are distinct.
    """
    characters = distinct_characters()
    if classes + held_out > len(characters):
        raise DataError(
            f"glyphs: {classes} classes and {held_out} held-out characters are more than the {len(characters)} "
            "characters that look different; ask for fewer with --classes and --held-out"
        )
    rng = np.random.default_rng((seed, 1))
    return [characters[index] for index in rng.permutation(len(characters))[: classes + held_out]]


def class_name(character: str) -> str:
    """Returns what the class of a character is called, such as "A LATIN CAPITAL LETTER A"."""
    return f"{character} {unicodedata.name(character, f'U+{ord(character):04X}')}"


def _check(settings: dict[str, int]) -> None:
    least = {"classes": 1, "images": 1, "size": 16, "held_out": 2, "pairs": 2, "seed": 0, "base64_parts": 0}
    for name, minimum in least.items():
        if settings[name] < minimum:
            raise DataError(f"glyphs: --{name.replace('_', '-')} {settings[name]}: expected at least {minimum}")


def _settings_of(folder: Path) -> dict[str, Any] | None:
    try:
        return as_object(read_json(folder / "glyphs.json"))
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=1)
def font_files() -> tuple[str, ...]:
    """Returns the font files of the twelve DejaVu styles, which share about 2,200 letters, numbers and symbols."""
    try:
        import matplotlib
    except ImportError:
        raise DataError(
            "the glyph set needs the fonts of matplotlib; run pip install '.[demo]' in the plsc clone"
        ) from None
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return tuple(
        str(path)
        for family in FAMILIES
        for path in sorted([*folder.glob(f"{family}.ttf"), *folder.glob(f"{family}-*.ttf")])
    )


@functools.lru_cache(maxsize=1)
def distinct_characters() -> tuple[str, ...]:
    """Returns one character of each group that looks alike, in the order of code points.

    Characters are compared in two styles, as bitmaps scaled to one box, so that a difference in size does not count.
    """
    from matplotlib.ft2font import FT2Font

    shared = set.intersection(*(set(FT2Font(path).get_charmap()) for path in font_files()))
    characters = [chr(code) for code in sorted(shared) if unicodedata.category(chr(code))[0] in "LNS"]
    sans = [_bitmap(character, _font(font_files()[0], 48)) for character in characters]
    serif = [_bitmap(character, _font(font_files()[-4], 48)) for character in characters]
    drawn = [index for index in range(len(characters)) if sans[index] is not None and serif[index] is not None]
    alike = (_cosines([sans[i] for i in drawn]) + _cosines([serif[i] for i in drawn])) / 2 > _ALIKE
    kept: list[int] = []
    for position in range(len(drawn)):
        if not alike[position, kept].any():
            kept.append(position)
    return tuple(characters[drawn[position]] for position in kept)


def _bitmap(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray | None:
    """Returns the inked box of a character, scaled into a square with its aspect kept; None if there is no ink."""
    canvas = Image.new("L", (128, 128))
    ImageDraw.Draw(canvas).text((32, 32), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    inked = canvas.crop(box)
    factor = _BITMAP / max(inked.size)
    inked = inked.resize([max(1, round(side * factor)) for side in inked.size], Image.Resampling.BILINEAR)
    square = Image.new("L", (_BITMAP, _BITMAP))
    square.paste(inked, ((_BITMAP - inked.width) // 2, (_BITMAP - inked.height) // 2))
    return np.asarray(square, dtype="float32").ravel()


def _cosines(bitmaps: Sequence[np.ndarray | None]) -> np.ndarray:
    rows = np.stack([bitmap for bitmap in bitmaps if bitmap is not None])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def _write_training(
    folder: Path, characters: Sequence[str], images: int, size: int, seed: int, base64_parts: int
) -> None:
    parts = []
    if base64_parts:
        names = [f"dataset.part{number + 1}" for number in range(base64_parts)]
        (folder / "file_list.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        parts = [open(folder / name, "w", encoding="utf-8") for name in names]  # noqa: SIM115 - They are closed below.
    try:
        with (
            open(folder / "label.txt", "w", encoding="utf-8") as labels,
            open(folder / "classes.txt", "w", encoding="utf-8") as names_file,
        ):
            for label, encoded in enumerate(_render_all(characters, 0, images, size, seed)):
                names_file.write(f"{class_name(characters[label])}\n")
                place = folder / "images" / str(label)
                place.mkdir(parents=True)
                for number, data in enumerate(encoded):
                    (place / f"{number}.jpg").write_bytes(data)
                    labels.write(f"images/{label}/{number}.jpg {label}\n")
                    if parts:
                        text = base64.b64encode(data).decode("ascii")
                        parts[(label * images + number) % len(parts)].write(f"{text}\t{label}\n")
    finally:
        for part in parts:
            part.close()


def _write_held_out(folder: Path, encoded: list[list[bytes]], first_label: int) -> None:
    for label, images in enumerate(encoded, start=first_label):
        place = folder / str(label)
        place.mkdir(parents=True)
        for number, data in enumerate(images):
            (place / f"{number}.jpg").write_bytes(data)


def _write_pairs(path: Path, encoded: list[list[bytes]], pairs: int, seed: int) -> None:
    rng = np.random.default_rng((seed, 2))
    issame = rng.permutation(np.arange(pairs) % 2 == 0)
    chosen: list[bytes] = []
    for same in issame:
        if same:
            one, (left, right) = rng.integers(len(encoded)), rng.choice(_HELD_OUT_IMAGES, 2, replace=False)
            chosen += [encoded[one][left], encoded[one][right]]
        else:
            one, other = rng.choice(len(encoded), 2, replace=False)
            left, right = rng.integers(_HELD_OUT_IMAGES, size=2)
            chosen += [encoded[one][left], encoded[other][right]]
    save_verification(str(path), chosen, [bool(same) for same in issame])


def _render_all(characters: Sequence[str], first_label: int, images: int, size: int, seed: int) -> Any:
    """Yields a list of the JPEG images of each character, which two processes render."""
    tasks = [(character, first_label + index, images, size, seed) for index, character in enumerate(characters)]
    if len(tasks) * images < 500:
        yield from map(_render_one, tasks)
        return
    # Ctrl-C interrupts this process, which then ends the two.
    with ProcessPoolExecutor(2, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.map(_render_one, tasks, chunksize=16)


def _render_one(task: tuple[str, int, int, int, int]) -> list[bytes]:
    return render_character(*task)


def render_character(character: str, label: int, images: int, size: int, seed: int) -> list[bytes]:
    """Returns JPEG images of a character, each in another font, which depend on `label` and `seed`."""
    rng = np.random.default_rng((seed, 3, label))
    styles = rng.permutation(len(font_files()))
    return [
        _encode(_draw(character, font_files()[styles[number % len(styles)]], size, rng)) for number in range(images)
    ]


def _draw(character: str, font_file: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draws an image of random size, angle, place, colours and noise, at four times the size for smooth edges."""
    large = size * 4
    font = _font(font_file, round(large * rng.uniform(0.6, 0.8)))
    mask = Image.new("L", (large, large))
    left, top, right, bottom = font.getbbox(character)
    shift = rng.uniform(-0.06, 0.06, 2) * large
    place = ((large - left - right) / 2 + shift[0], (large - top - bottom) / 2 + shift[1])
    ImageDraw.Draw(mask).text(place, character, fill=255, font=font)
    mask = mask.rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR).resize((size, size), Image.Resampling.BOX)
    background = rng.uniform(0, 255, 3)
    ink = rng.uniform(0, 255, 3)
    if abs(ink.mean() - background.mean()) < 90:  # The contrast is too low to read the character.
        ink = ink * 0.3 + (0 if background.mean() > 127 else 255) * 0.7
    opacity = np.asarray(mask, dtype="float64")[..., None] / 255
    pixels = background * (1 - opacity) + ink * opacity + rng.normal(0, 4, (size, size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))


@functools.lru_cache(maxsize=512)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=92)
    return stream.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status."""
    return exit_status(lambda: _render(make_parser().parse_args(arguments)))


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="python -m plsc.data.glyphs",
        description="Renders characters into a data set: images/, label.txt, classes.txt, and the images of characters "
        "that are held out of training: all of them in held_out/, and pairs of them in glyphs.bin. The same options "
        "give the same bytes.",
        examples=[
            "python -m plsc.data.glyphs --output ./glyphs                                         # as in the demo",
            "python -m plsc.data.glyphs --output ./small --classes 50 --held-out 30 --pairs 600   # takes seconds",
            "python -m plsc.data.glyphs --output ./glyphs64 --base64-parts 10                     # with base64 files",
        ],
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    for name, least, default, text in (
        ("classes", 1, 1000, "number of characters to train on"),
        ("images", 1, 24, "number of images of each character"),
        ("size", 1, 32, "side of an image, in pixels"),
        ("held-out", 2, 250, "number of characters that are held out of training, for tests"),
        ("pairs", 1, 6000, "number of pairs in glyphs.bin"),
        ("seed", 0, 0, "random seed"),
        ("base64-parts", 0, 0, "number of base64 files to write as well"),
    ):
        parser.add_argument(
            f"--{name}", type=at_least(least), default=default, metavar="N", help=f"{text} (default {default})"
        )
    return parser


def _render(options: argparse.Namespace) -> int:
    render_glyphs(**vars(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Names of files, which are bytes: as they are written into files, shown to humans, and compared.

In memory a name is what Python makes of its bytes in the locale, with bytes that do not fit as surrogates ("native").
Files that hold names hold their bytes, whatever the locale.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import itertools
import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Optional

from plsc.errors import one_line

CONTROLS = "".join(map(chr, (*range(32), *range(127, 160), 0x2028, 0x2029)))
_LOCALE_IS_UTF8 = sys.getfilesystemencoding() == "utf-8"
_LONGEST_QUOTED = 300
_MOST_LISTED = 10_000  # names of a folder among which a similar one is looked for
SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte that is not of the encoding
_UNSHOWN = re.compile(f"[{re.escape(CONTROLS)}]|{SURROGATE.pattern}")
_FORMS: tuple[Literal["NFC"], Literal["NFD"]] = ("NFC", "NFD")


def to_text(path: str) -> str:
    """Returns a native path as it is written into files: as UTF-8 whatever the locale, and with all its bytes.

    A text that is no name of the locale, such as the identity 人 in a Latin one, is returned as it is.
    """
    if _LOCALE_IS_UTF8:
        return path
    try:
        return os.fsencode(path).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return path


def from_text(text: str) -> str:
    """Returns the native path that `to_text` was given; a text that holds no bytes of a name is returned as it is."""
    if _LOCALE_IS_UTF8:
        return text
    try:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return text


def is_utf8(text: str) -> bool:
    """Returns whether the bytes of a name that `to_text` returned are UTF-8."""
    return not SURROGATE.search(text)


def readable(text: str, keep: str = "") -> str:
    r"""Returns a text for humans, on one line and in Unicode: bytes that have no meaning are shown as `\xc4`.

    Control characters, such as line ends in the name of a file, are shown as in Python's strings.

    Args:
        text: The text.
        keep: Control characters that stay, such as `string.whitespace`, or all of them, `CONTROLS`.
    """
    return _UNSHOWN.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def quoted(text: str) -> str:
    """Returns a `readable` text in quotation marks, cut off where it is long."""
    return f"'{one_line(readable(text), _LONGEST_QUOTED)}'"


def class_title(number: int, names: Sequence[str] = (), first: int = 0) -> str:
    """Returns what messages call a class: "class 12 ('Ada')", or "class 12" if its name is unknown.

    Args:
        number: Number of the class.
        names: Names of the classes from `first` on; empty if they are unknown.
        first: Number of the class to which the first name belongs.
    """
    place = number - first
    return f"class {number} ({quoted(names[place])})" if 0 <= place < len(names) else f"class {number}"


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # A byte; see PEP 383.
        character = chr(ord(character) - 0xDC00)
    return character.encode("unicode_escape").decode("ascii")


def unwritable_name(error: UnicodeEncodeError) -> Optional[str]:
    """Returns what is wrong if a file was to be opened whose name the locale cannot write; None for other errors."""
    encoding = sys.getfilesystemencoding()
    if _LOCALE_IS_UTF8 or codecs.lookup(error.encoding) != codecs.lookup(encoding):
        return None
    return (
        f"{ascii(error.object)}: the encoding of this process, {encoding}, cannot write this name of a file; set a "
        "UTF-8 locale, for example LC_ALL=C.UTF-8"
    )


def twin_of(folder: str, name: str) -> Optional[str]:
    """Returns the existing file whose name differs from a missing one only in Unicode normalization.

    An é may be one character (NFC, usual on Linux and Windows) or an e and an accent (NFD, usual on macOS). The two
    look the same, and are different names.

    Args:
        folder: Folder that `name` is relative to.
        name: Native path of the missing file.

    Returns:
        The native path of the file relative to `folder`; None if there is none.
    """
    if name.isascii():
        return None
    if os.path.isabs(name):
        twin = twin_of("/", name.lstrip("/"))
        return twin and f"/{twin}"
    found = ""
    for part in name.split("/"):
        text = to_text(part)
        forms = (part, *(from_text(unicodedata.normalize(form, text)) for form in _FORMS))
        there = (one for one in forms if os.path.exists(os.path.join(folder, found, one)))
        part = next(there, None)  # type: ignore[assignment]
        if part is None:
            return None
        found = os.path.join(found, part)
    return found if found != os.path.join(*name.split("/")) else None


def why_missing(folder: str, name: str) -> str:
    """Returns what may be wrong with the name of a missing file, beginning with "; ", or '' if nothing is known."""
    place = os.path.join(folder, name)
    if "\0" not in name and os.path.lexists(place):
        return "; it is a link that leads nowhere" if os.path.islink(place) else "; what is there is no ordinary file"
    twin = twin_of(folder, name)
    if twin is not None:
        mine, other = ("NFC", "NFD") if unicodedata.is_normalized("NFC", to_text(name)) else ("NFD", "NFC")
        return (
            f"; {quoted(twin)} exists, which looks the same but has another Unicode normalization ({other}, where the "
            f"list has {mine}): convert the list or rename the files, for example with convmv"
        )
    if not is_utf8(to_text(name)):
        return "; the line is not UTF-8, so if the name of the file is, save the list as UTF-8"
    return ""


def near_names(path: Path) -> str:
    """Returns what a missing path may have been meant to be, beginning with "; ", or '' if nothing is like it."""
    path = Path(os.path.abspath(path))
    while not path.parent.is_dir():
        path = path.parent
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        names = [one.name for one in itertools.islice(entries, _MOST_LISTED)]
        alike = difflib.get_close_matches(path.name, names, 1)
        if alike:
            return f"; did you mean {quoted(str(path.parent / alike[0]))}?"
    return ""


def twins_among(names: Iterable[str]) -> Optional[tuple[str, str]]:
    """Returns the first two different names that look the same, because only their Unicode normalization differs."""
    first_of: dict[str, str] = {}
    for name in names:
        if not name.isascii():
            first = first_of.setdefault(unicodedata.normalize("NFC", to_text(name)), name)
            if first != name:
                return first, name
    return None


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Yields a path of a file or folder for libraries that take the bytes of every path to be UTF-8.

    It is `path` itself, or a temporary link if that has other bytes.
    """
    absolute = os.path.abspath(path)
    try:
        is_plain = absolute.encode("utf-8") == os.fsencode(absolute)
    except UnicodeEncodeError:
        is_plain = False
    if is_plain:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="plsc-") as folder:
        link = Path(folder) / f"link{path.suffix if path.suffix.isascii() else ''}"
        link.symlink_to(absolute)
        yield link

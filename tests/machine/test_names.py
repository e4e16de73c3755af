"""Names of files are bytes, in every locale."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from ranks import TIMEOUT

from plsc.machine.names import from_text, readable, to_text, twins_among, utf8_path, why_missing

NAMES = ["数据".encode("gbk"), "人é".encode(), b"plain", b"\xff\xfe", b't\tn\nr\r"q"\'', "e\u0301".encode()]
_PROGRAM = """
import os, sys
from pathlib import Path
from plsc.arguments import exit_status, print_json
from plsc.data.image_folders import folder_of_images
from plsc.data.image_lists import parse_line, read_list
from plsc.machine.names import readable, to_text
from plsc.search.embeddings import read_table, write_table

def run():
    folder = Path(sys.argv[1])
    listed = folder_of_images(folder, folder)
    write_table(folder / "images.tsv", ((one.name, one.identity) for one in listed))
    names, identities = read_table(folder / "images.tsv")
    assert list(zip(names, identities)) == [one[:2] for one in listed]
    assert all((folder / name).is_file() for name in names)
    lines = [parse_line(folder / "list.txt", *line) for line in read_list(folder / "list.txt")]
    assert all((folder / one.name).is_file() for one in lines)
    print(sys.getfilesystemencoding())
    print_json({"names": [to_text(name) for name in names], "listed": [to_text(one.identity) for one in lines]})
    for name in names:
        print(readable(name), name)
    return 0

sys.exit(exit_status(run))
"""


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """A folder of locales that are not UTF-8."""
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef") is None:
        pytest.skip("there is no localedef to make locales with")
    for language, encoding in (("zh_CN", "GBK"), ("en_US", "ISO-8859-1")):
        words = ["localedef", "-i", language, "-f", encoding, str(folder / f"{language}.{encoding}")]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip(f"localedef cannot make {language}.{encoding} here")
    return folder


@pytest.mark.parametrize("name", ["C.UTF-8", "zh_CN.GBK", "en_US.ISO-8859-1", "en_US.ISO-8859-1 ascii"])
def test_tables_and_output_hold_the_bytes_of_names_in_every_locale(name, locales, tmp_path):
    wanted = sorted(os.path.join(one, b"1.png") for one in NAMES)
    for path in wanted:
        place = os.path.join(os.fsencode(tmp_path), path)
        os.makedirs(os.path.dirname(place))
        with open(place, "wb"):
            pass
    listed = [one for one in NAMES if b"\n" not in one]
    (tmp_path / "list.txt").write_bytes(b"".join(b"%s/1.png\t%s\n" % (one, one) for one in listed))
    locale, _, output = name.partition(" ")
    environment = {**os.environ, "LC_ALL": locale, "PYTHONIOENCODING": output, "PYTHONUTF8": "0"}
    if locale != "C.UTF-8":
        environment["LOCPATH"] = str(locales)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, tmp_path], capture_output=True, env=environment, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    encoding, text, *lines = done.stdout.split(b"\n")
    assert encoding.decode() == {"C": "utf-8", "z": "gbk", "e": "iso8859-1"}[locale[0]]
    found = {key: [one.encode("utf-8", "surrogateescape") for one in each] for key, each in json.loads(text).items()}
    assert found == {"names": wanted, "listed": listed}
    table = (tmp_path / "images.tsv").read_bytes()
    assert all(b"%s/1.png\t%s\n" % (one, one) in table for one in listed)
    assert len(lines) > len(wanted)


@pytest.mark.parametrize(
    "name, shown",
    [("人 é.jpg", "人 é.jpg"), (os.fsdecode(b"\xca\xfd.jpg"), r"\xca\xfd.jpg"),
     ("a\tb\nc\x1b[\x85", r"a\tb\nc\x1b[\x85"), ("\u2028\ud800", r"\u2028\ud800")],
)  # fmt: skip
def test_names_are_shown_on_one_line_of_unicode(name, shown):
    assert readable(name) == shown
    shown.encode()
    assert from_text(to_text(name)) == name
    assert readable("a\n\udcff\tb", keep="\n\t") == "a\n\\xff\tb"


@pytest.mark.parametrize("form, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_missing_name_whose_twin_exists_is_explained(form, other, tmp_path):
    there, wanted = (unicodedata.normalize(one, "é/ü.jpg") for one in (form, other))
    (tmp_path / there).parent.mkdir()
    (tmp_path / there).touch()
    said = why_missing(str(tmp_path), wanted)
    assert f"'{there}' exists, which looks the same" in said and f"({form}, where the list has {other})" in said
    assert f"'{tmp_path}/{there}' exists" in why_missing("elsewhere", f"{tmp_path}/{wanted}")
    assert why_missing(str(tmp_path), "x.jpg") == why_missing(str(tmp_path), "ä.jpg") == ""
    assert "not UTF-8" in why_missing(str(tmp_path), os.fsdecode(b"\xff.jpg"))


def test_twins_are_names_that_differ_in_normalization_alone():
    assert twins_among(["e", "\u00e9", "\u00e8", "\u00e9"]) is None
    assert twins_among(["x", "\u00e9", "e\u0301"]) == ("\u00e9", "e\u0301")


def test_libraries_get_a_path_of_utf_8(tmp_path):
    plain, odd = tmp_path / "人.npy", tmp_path / os.fsdecode(b"\xff.npy")
    for path in (plain, odd):
        path.write_bytes(b"1")
    with utf8_path(plain) as place:
        assert place == plain
    with utf8_path(odd) as place:
        place.as_posix().encode()
        assert place.read_bytes() == b"1" and place.suffix == ".npy"
        place.write_bytes(b"2")
    assert odd.read_bytes() == b"2" and not place.is_symlink() and not Path(place).parent.exists()

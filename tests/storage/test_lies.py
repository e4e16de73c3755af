"""Servers that lie: what they list, how large they say it is, what they send, and where they redirect to."""

import os
from types import SimpleNamespace

import hdfs
import pytest
import requests
from lying_server import LyingServer

from plsc.commands import fs as command
from plsc.errors import ConfigError
from plsc.storage import Retrying, StorageError, open_hdfs
from plsc.storage.rpc import RpcStorage
from plsc.storage.transfer import get, tree

NAMES = ["..", ".", "", "../x", "/etc/x", "a/../../x", "a\0b", "a/b", "\ud800"]


@pytest.fixture(scope="module")
def lying_server():
    with LyingServer() as server:
        yield server


@pytest.fixture
def lying(lying_server):
    """The server, which does not lie yet."""
    lying_server.listed, lying_server.body, lying_server.redirect = [], b"x", None
    lying_server.strangers.clear()
    return lying_server


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["FILE", "DIRECTORY"])
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(lying, tmp_path, name, kind):
    (tmp_path / "target").mkdir()
    (tmp_path / "x").write_text("precious")
    lying.listed = [("good", 1, "FILE"), (name, 1, kind)]
    with pytest.raises(StorageError, match="the server lists .*, which is not the name of a file"):
        get(open_hdfs(lying.url, "alice,"), "/source", tmp_path / "target")
    assert os.listdir(tmp_path / "target") == [] and (tmp_path / "x").read_text() == "precious"
    assert lying.strangers == []


def test_sizes_are_compared_with_the_free_space_before_a_byte_is_fetched(lying, tmp_path):
    lying.listed = [("a", 1, "FILE"), ("b", 2**52, "FILE")]
    with pytest.raises(ConfigError, match=r"PB are to be downloaded, but its disk has"):
        get(open_hdfs(lying.url, "alice,"), "/source", tmp_path / "target")
    assert os.listdir(tmp_path) == [] and lying.strangers == []


@pytest.mark.parametrize("body", [b"x" * 1000, b"", b"xx"])
def test_a_file_of_another_size_than_listed_is_cut_or_refused(lying, tmp_path, body):
    lying.listed, lying.body = [("a", 3, "FILE")], body
    store = open_hdfs(lying.url, "alice,").with_patience(0)
    if len(body) > 3:
        assert (get(store, "/source", tmp_path / "target") / "a").read_bytes() == b"xxx"
    else:
        with pytest.raises(StorageError, match="the connection ended after"):
            get(store, "/source", tmp_path / "target")
        assert os.listdir(tmp_path) == []


def test_a_store_that_sends_more_than_was_asked_for_is_refused():
    store = SimpleNamespace(name="lying", read=lambda path, offset, count: iter([b"ab", b"cd"]))
    with pytest.raises(StorageError, match="lying: x: the server sent more than the 3 bytes"):
        list(Retrying(store, 60).read("x", 0, 3))


def test_controls_in_listed_names_do_not_reach_the_terminal(lying, capsys):
    lying.listed = [("a\x1b]0;owned\x07\nb", 1, "FILE")]
    command._ls(SimpleNamespace(path="/source", json=False), open_hdfs(lying.url, "alice,"))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and printed.count("\n") == 1 and r"a\x1b]0;owned\x07\nb" in printed


def clients(url):
    """Returns clients that hold a secret, each in another place."""
    with_header, with_password = requests.Session(), requests.Session()
    with_header.headers["X-Secret"] = "s3cret"
    with_password.auth = ("alice", "s3cret")
    return {
        "token": hdfs.TokenClient(url, token="s3cret"),
        "header": hdfs.Client(url, session=with_header),
        "password": hdfs.Client(url, session=with_password),
        "cookie": hdfs.InsecureClient(url, user="alice"),
    }


@pytest.mark.parametrize("kind", ["token", "header", "password", "cookie"])
@pytest.mark.parametrize("redirect", [None, 301, 302, 307])
def test_a_redirect_to_another_server_carries_no_credentials(lying, tmp_path, kind, redirect, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login alice password s3cret\n")
    lying.listed = [("a", 1, "FILE")]
    store = open_hdfs(None, None, clients(lying.url)[kind])
    assert tree(store, "/source")  # the server sets its cookie
    lying.redirect = redirect
    assert b"".join(store.read("/source/a", 0, 1)) == b"x"
    store.write("/source/a", lambda: [b"x"], 1)
    store.mkdirs("/source/b")
    methods = [method for method, _, _ in lying.strangers]
    assert "GET" in methods and "PUT" in methods
    shown = repr(lying.strangers)
    for secret in ("s3cret", "Authorization", "c00kie", "Basic"):
        assert secret not in shown


def test_a_name_that_hdfs_cannot_have_does_not_pass_for_a_lie(lying):
    store = open_hdfs(lying.url, "alice,").with_patience(0)
    name = os.fsdecode(b"/\xff.jpg")
    with pytest.raises(StorageError, match="takes only names in UTF-8; rename the file, or put it into an archive"):
        store.write(name, lambda: [b"x"], 1)
    with pytest.raises(StorageError, match="takes only names in UTF-8"), RpcStorage._worded(store, name):
        name.encode()
    assert lying.strangers == []


def test_redirects_have_an_end(lying):
    lying.redirect, before = 307, lying.stranger
    lying.stranger = lying.url
    try:
        with pytest.raises(StorageError, match="/x: "):
            open_hdfs(lying.url, "alice,").with_patience(0).status("/x")
    finally:
        lying.stranger = before

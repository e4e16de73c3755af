"""Failures of a real HDFS: each is reported in one line, or passes after some waiting."""

import base64
import json
import os
import re
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import hdfs as hdfs_package
import pytest
from gateway import Gateway

from plsc import storage
from plsc.errors import ConfigError
from plsc.storage import Kerberos, StorageError, StorageUnavailableError, open_hdfs, rpc
from plsc.storage.hdfs import HdfsStorage, connect


@pytest.fixture
def folder(hdfs, tmp_path):
    """A folder of the superuser in which everybody may write."""
    hdfs.client().makedirs(f"/{tmp_path.name}", permission="777")
    return f"/{tmp_path.name}"


@pytest.fixture(params=["web", "rpc"])
def address(request, hdfs):
    """The address of HDFS, once for each way to speak to it."""
    if request.param == "rpc":
        pytest.importorskip("hdfs_native")
    return hdfs.web if request.param == "web" else hdfs.address


def refused(action):
    with pytest.raises(StorageError) as error:
        action()
    assert "\n" not in str(error.value) and "webhdfs/v1" not in str(error.value)
    return str(error.value), isinstance(error.value, StorageUnavailableError)


def write(store, path, data=b"x"):
    store.write(path, lambda: [data], len(data))


def test_every_form_of_the_address_works(hdfs, folder):
    web_port = hdfs.web.rsplit(":", 1)[1]
    dead = "http://127.0.0.1:9"
    for address in (f"hdfs://127.0.0.1:{web_port}", f"webhdfs://127.0.0.1:{web_port}", f"{dead};{hdfs.web}", hdfs.web):
        store = open_hdfs(address, "alice,any password")
        write(store, f"{folder}/a")
        assert store.name == address
        assert hdfs.client().status(f"{folder}/a")["owner"] == "alice"


def test_the_usual_web_port_is_tried_before_the_rpc_port(monkeypatch):
    tried = []
    monkeypatch.setattr(
        "plsc.storage.hdfs._probe", lambda url: None if tried.append(url) or url.endswith("70") else "no"
    )
    assert connect("hdfs://nn:9000", "a,")._client.urls == ["http://nn:9870"]
    assert connect("hdfs://a:9000;b:9000", "a,")._client.urls == ["http://a:9870", "http://b:9870"]
    assert set(tried[:3]) == {"http://nn:9870", "http://nn:50070", "http://nn:9000"}
    monkeypatch.setattr("plsc.storage.hdfs._probe", lambda url: None if url == "http://nn:50070" else "no")
    assert connect("hdfs://nn:9000", "a,")._client.urls == ["http://nn:50070"]


def test_the_user_without_fs_ugi(hdfs, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HADOOP_USER_NAME", "bob")
    write(open_hdfs(hdfs.web, None), f"{folder}/bob's")
    configuration = tmp_path / "hdfscli.cfg"
    configuration.write_text(f"[near.alias]\nurl = {hdfs.web}\nuser = carol\n[bad.alias]\nurl = x\ntoken_ = s3cret\n")
    monkeypatch.setenv("HDFSCLI_CONFIG", str(configuration))
    write(open_hdfs("near", None), f"{folder}/carol's")
    owners = {name: status["owner"] for name, status in hdfs.client().list(folder, status=True)}
    assert owners == {"bob's": "bob", "carol's": "carol"}
    with pytest.raises(ConfigError, match="the alias 'near' of .* leave out auth and keytab"):
        open_hdfs("near", None, kerberos=Kerberos())
    with pytest.raises(ConfigError, match="the alias 'bad' of HdfsCLI's configuration file") as error:
        open_hdfs("bad", None)
    assert "s3cret" not in str(error.value)


def test_a_custom_client(hdfs, folder):
    own = hdfs_package.InsecureClient(hdfs.web, user="dora")
    store = open_hdfs(None, None, own)
    write(store, f"{folder}/x")
    assert hdfs.client().status(f"{folder}/x")["owner"] == "dora" and store.name == hdfs.web


@pytest.mark.parametrize("is_installed", [True, False])
def test_hdfs_addresses_use_rpc_where_it_can_be_had_and_webhdfs_otherwise(hdfs, caplog, monkeypatch, is_installed):
    if is_installed:
        pytest.importorskip("hdfs_native")
    monkeypatch.setattr(rpc, "is_installed", lambda: is_installed)
    caplog.set_level("INFO", "plsc")
    by_web = hdfs.web.replace("http:", "hdfs:")
    way = "RPC" if is_installed else "WebHDFS"
    for address, words in (
        (f"{hdfs.address};127.0.0.1:{hdfs.web.rsplit(':', 1)[1]}", f"connected by {way}"),
        (by_web, "connected by WebHDFS; by RPC: " if is_installed else "connected by WebHDFS; for RPC, install"),
        (hdfs.web, "connected by WebHDFS"),
    ):
        caplog.clear()
        assert open_hdfs(address, "alice,s3cret").status("/").is_folder
        assert words in caplog.text and caplog.text.count("connected by") == 1 and "s3cret" not in caplog.text


def test_a_nameservice_of_the_configuration_and_a_port_that_is_left_out(hdfs, monkeypatch, tmp_path):
    pytest.importorskip("hdfs_native")
    pairs = {
        "dfs.nameservices": "cluster",
        "dfs.ha.namenodes.cluster": "a,b",
        "dfs.namenode.rpc-address.cluster.a": "127.0.0.1:9",
        "dfs.namenode.rpc-address.cluster.b": hdfs.address[7:],
    }
    rows = "".join(f"<property><name>{name}</name><value>{value}</value></property>" for name, value in pairs.items())
    (tmp_path / "hdfs-site.xml").write_text(f"<configuration>{rows}</configuration>")
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    store = open_hdfs("hdfs://cluster", "alice,")
    assert type(store._storage) is rpc.RpcStorage and store.name == "hdfs://cluster" and store.status("/").is_folder
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
    text, passes = refused(lambda: open_hdfs("hdfs://127.0.0.1", "alice,"))
    assert passes and "by RPC: Connection refused" in text


def test_the_user_of_rpc_is_that_of_fs_ugi_and_one_at_a_time(hdfs, folder, monkeypatch):
    pytest.importorskip("hdfs_native")
    monkeypatch.setenv("HADOOP_USER_NAME", "bob")
    store = open_hdfs(hdfs.address, "alice,")
    write(store, f"{folder}/alice's")
    hdfs.kill_namenode()
    hdfs.start()  # the user is needed again for the next connection
    write(store.with_patience(60), f"{folder}/alice's again")
    with pytest.raises(StorageUnavailableError, match="one user in a process, which is alice now"):
        rpc.connect([hdfs.address[7:]], "x", "carol")
    del store
    write(open_hdfs(hdfs.address, None), f"{folder}/bob's")
    owners = {name: status["owner"] for name, status in hdfs.client().list(folder, status=True)}
    assert owners == {"alice's": "alice", "alice's again": "alice", "bob's": "bob"}
    assert os.environ["HADOOP_USER_NAME"] == "bob"


def test_a_server_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
    monkeypatch.setattr("plsc.storage.hdfs._PROBE_SECONDS", 0.5)
    monkeypatch.setattr(rpc, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in ("hdfs", "http"):
            text, passes = refused(
                lambda scheme=scheme: open_hdfs(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", "a,")
            )
            assert passes and "no answer in time" in text


def test_no_namenode(monkeypatch):
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
    text, passes = refused(lambda: open_hdfs("hdfs://127.0.0.1:9", "alice,"))
    assert passes and "no WebHDFS answers" in text and "127.0.0.1:9: Connection refused" in text
    text, passes = refused(lambda: open_hdfs("hdfs://no.such.host.invalid:9000", "alice,"))
    assert passes and "no.such.host.invalid:9870: " in text


def test_the_rpc_port_is_not_webhdfs(hdfs, monkeypatch):
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
    text, _ = refused(lambda: open_hdfs(hdfs.address.replace("hdfs:", "webhdfs:"), "alice,"))
    assert "answers, but not as WebHDFS" in text


def test_refusals(hdfs, folder, address):
    store = open_hdfs(address, "alice,")
    hdfs.client().makedirs(f"{folder}/root's", permission="755")
    text, passes = refused(lambda: write(store, f"{folder}/root's/x"))
    assert not passes and "Permission denied: user=alice" in text and "ask its owner" in text
    hdfs.client().write(f"{folder}/secret", b"x", permission="600")
    text, passes = refused(lambda: list(store.read(f"{folder}/secret", 0, 1)))
    assert not passes and "Permission denied" in text
    hdfs.client().makedirs(f"{folder}/closed", permission="700")
    text, _ = refused(lambda: store.status(f"{folder}/closed/x"))  # it does not say that nothing is there
    assert "Permission denied" in text
    write(store, f"{folder}/file")
    for action in (lambda: store.mkdirs(f"{folder}/file"), lambda: write(store, f"{folder}/file/x")):
        text, passes = refused(action)
        assert not passes and "a file stands where a folder should be" in text, text
    text, passes = refused(lambda: write(store, f"{folder}/closed"))
    assert not passes


def test_quotas(hdfs, folder, address):
    store = open_hdfs(address, "alice,")
    for name, limits in (("names", {"names": 1}), ("bytes", {"size": 1 << 20})):
        hdfs.client().makedirs(f"{folder}/{name}", permission="777")
        hdfs.set_quota(f"{folder}/{name}", **limits)
    text, passes = refused(lambda: write(store, f"{folder}/names/x"))
    assert not passes and "quota" in text and "remove files there" in text
    for size in (10, 5_000_000):  # this server reports success, or closes the connection
        text, passes = refused(lambda size=size: write(store, f"{folder}/bytes/x", bytes(size)))
        assert not passes and re.search(r"quota .*exceeded.* 1,?048,?576", text), text


def test_a_write_waits_for_the_end_of_safe_mode(hdfs, folder, address):
    store = open_hdfs(address, "alice,")
    hdfs.safe_mode(True)
    text, passes = refused(lambda: write(store.with_patience(0), f"{folder}/x"))
    assert passes and "is in safe mode; wait until enough DataNodes" in text
    leave = threading.Timer(1.0, hdfs.safe_mode, [False])
    leave.start()
    write(store.with_patience(60), f"{folder}/x")
    leave.join()
    assert store.status(f"{folder}/x").size == 1


SIZE = 48 << 20


def interrupted(hdfs, data, break_it):
    """Returns the chunks of `data`, and calls `break_it` in the middle of the first pass."""
    happened = []

    def chunks():
        for begin in range(0, len(data), 1 << 20):
            if begin == len(data) // 2 and not happened:
                happened.append(break_it())
            yield data[begin : begin + (1 << 20)]

    return chunks


def restart_datanode(hdfs):
    hdfs.kill_datanode()
    hdfs.start_datanode()


def restart_namenode(hdfs):
    hdfs.kill_namenode()
    hdfs.start()


@pytest.mark.parametrize("restart", [restart_datanode, restart_namenode])
def test_a_server_that_comes_back_during_an_upload(hdfs, folder, address, restart):
    store, data = open_hdfs(address, "alice,").with_patience(90), os.urandom(SIZE)
    store.write(f"{folder}/x", interrupted(hdfs, data, lambda: restart(hdfs)), len(data))
    assert b"".join(store.read(f"{folder}/x", 0, SIZE)) == data


@pytest.mark.parametrize("restart", [restart_datanode, restart_namenode])
def test_a_server_that_comes_back_during_a_download(hdfs, folder, address, restart):
    store, data = open_hdfs(address, "alice,").with_patience(90), os.urandom(SIZE)
    write(store, f"{folder}/x", data)
    got = b""
    for chunk in store.read(f"{folder}/x", 0, SIZE):
        if not got:
            restart(hdfs)
        got += chunk
    assert got == data


def test_a_datanode_that_stays_away(hdfs, folder, address):
    store = open_hdfs(address, "alice,").with_patience(0)
    write(store.with_patience(60), f"{folder}/there")  # an earlier test may have just restarted the DataNode
    hdfs.kill_datanode()
    for action in (lambda: write(store, f"{folder}/x"), lambda: list(store.read(f"{folder}/there", 0, 1))):
        text, passes = refused(action)
        assert passes, text
        assert any(words in text for words in ("Connection refused", "reset", "broke", "does not answer")), text


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl, which makes the certificate")
def test_the_password_goes_to_a_gateway_that_asks_for_it_over_tls_and_nowhere_else(tmp_path, monkeypatch):
    with Gateway("alice:pass,word", tmp_path) as gateway:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(gateway.certificate))
        store = open_hdfs(gateway.url, "alice,pass,word")
        write(store, "/x", b"abc")
        assert b"".join(store.read("/x", 0, 3)) == b"abc"
        shown = [(server, header and base64.b64decode(header[6:])) for server, _, header in gateway.seen]
        # The probe and the first request carry no password; the gateway then asks for it and gets it.
        assert shown[:3] == [("gateway", None), ("gateway", None), ("gateway", b"alice:pass,word")]
        assert {header for server, header in shown if server == "data"} == {None}
        assert {header for server, header in shown[2:] if server == "gateway"} == {b"alice:pass,word"}
        with ThreadPoolExecutor(8) as pool:  # all requests are sent before the first answer
            several = open_hdfs(gateway.url, "alice,pass,word")
            assert {status.size for status in pool.map(lambda _: several.status("/x"), range(8))} == {3}
        text, passes = refused(lambda: open_hdfs(gateway.url, "alice,wrong").status("/x"))
        assert not passes and "the name or the password was refused" in text and "wrong" not in text
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
        text, _ = refused(lambda: open_hdfs(gateway.url, "alice,pass,word"))
        assert "certificate" in text
    with Gateway("alice:password") as plain:
        refused(lambda: open_hdfs(plain.url, "alice,password").status("/x"))
        assert {header for _, _, header in plain.seen} == {None}


def test_a_token_is_in_no_message(hdfs, monkeypatch):
    """The errors of the client show URLs, which contain it."""
    client = hdfs_package.TokenClient("http://127.0.0.1:9", token="t0ken")
    text, _ = refused(lambda: open_hdfs(None, None, client).with_patience(0).status("/x"))
    assert "t0ken" not in text and "127.0.0.1:9" in text


@pytest.mark.parametrize("status", [403, 407, 503, None])
def test_a_proxy_that_refuses_is_named_and_its_password_is_not(status, monkeypatch):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - the library's name
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    monkeypatch.setenv("http_proxy", f"http://eve:secret@127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    if status is None:
        server.server_close()  # nothing listens there any more
    else:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        text, passes = refused(lambda: open_hdfs("hdfs://namenode.example:9870", "alice,"))
    finally:
        if status is not None:
            server.shutdown()
        server.server_close()
    assert passes and "secret" not in text and f"(status {status})" in text or status is None
    assert f"go through the proxy 127.0.0.1:{server.server_port} of http_proxy" in text
    assert "add namenode.example to no_proxy" in text


@pytest.mark.parametrize(
    "answer",
    [
        *(b"[]", b"7", b'{"FileStatus": 7}', b"[" * 100_000, b'{"FileStatus": {"length": 1e400}}'),
        b'{"FileStatus": {"length": -1, "type": "FILE", "modificationTime": 0}}',
        b'{"FileStatus": {"length": 1, "type": "FILE", "modificationTime": "now"}}',
        b'{"FileStatus": {"length": "7", "type": [], "modificationTime": 0}}',
    ],
)
def test_a_status_of_anything_is_refused_in_one_line(answer, monkeypatch):
    import requests

    made = requests.Response()
    made.status_code, made._content = 200, answer
    client = hdfs_package.InsecureClient("http://127.0.0.1:1")
    monkeypatch.setattr(client._session, "request", lambda *arguments, **options: made)
    text, passes = refused(lambda: HdfsStorage(client, "hdfs://test").status("/x"))
    assert not passes and "/x: the server does not answer as WebHDFS does" in text


def test_answers_that_are_not_webhdfs(tmp_path):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - the library's name
            body = b"<html>log in" if "/page" in self.path else json.dumps({"hello": 1}).encode()
            self.send_response(500 if "/bad" in self.path else 200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        store = open_hdfs(f"http://127.0.0.1:{server.server_port}", "alice,")
        for path in ("/ok", "/bad", "/page"):
            text, passes = refused(lambda path=path: store.status(path))
            assert not passes and "does not answer as WebHDFS does" in text
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("kind", "words", "passes"),
    [
        # What a DataNode answers whose NameNode has just ended.
        (
            "IOException",
            "Failed on local exception: java.net.SocketException: Connection reset; Host Details : x",
            True,
        ),
        ("IOException", 'End of File Exception between local host is: "a"; destination host is: "b"', True),
        ("ConnectException", "Call From a to b failed on connection exception", True),
        ("IOException", "Invalid key to HMAC computation", False),
    ],
)
def test_words_of_a_server_that_say_whether_a_failure_passes(kind, words, passes):
    class Client:
        def status(self, path):
            raise hdfs_package.HdfsError(words, exception=kind)

    assert refused(lambda: HdfsStorage(Client(), "nn").status("/a"))[1] == passes

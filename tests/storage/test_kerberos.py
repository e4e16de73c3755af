"""A real HDFS with a real KDC: with a ticket, with a keytab, without either, and with a ticket that expires."""

import base64
import json
import os
import re
import struct
import time

import pytest
from gateway import Gateway
from hdfs_server import started
from kerberos import HOST, REALM, Kdc, SecureHdfs, SecurePair
from ranks import popen_ranks

from plsc import cli, storage
from plsc.checkpoint.download import open_store
from plsc.config import Config, Hdfs
from plsc.errors import ConfigError
from plsc.storage import Kerberos, StorageError, StorageUnavailableError, failover, open_hdfs, rpc

LIFETIME = 2  # seconds of a ticket of `carol`


@pytest.fixture(scope="module")
def kdc(tmp_path_factory):
    made = started(lambda: Kdc(tmp_path_factory.mktemp("kdc")), "Kerberos")
    with made as one, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRB5_CONFIG", str(one.config))
        one.add("alice", "bob")
        one.add("carol", lifetime=LIFETIME)
        yield one


@pytest.fixture(scope="module")
def server(kdc, tmp_path_factory):
    pytest.importorskip("hdfs_native")
    with started(lambda: SecureHdfs(tmp_path_factory.mktemp("secure"), kdc)) as secure:
        yield secure


@pytest.fixture
def secure(server, kdc, tmp_path, monkeypatch):
    """An HDFS with Kerberos, for a user who has no ticket; `secure.cache` is where one belongs."""
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    server.cache = tmp_path / "cache"
    monkeypatch.setenv("KRB5CCNAME", str(server.cache))
    return server


@pytest.fixture(params=["rpc", "web"])
def address(request, secure):
    """The address, once for each way to speak to it."""
    if request.param == "web":
        pytest.importorskip("gssapi")
    return secure.address if request.param == "rpc" else secure.web


def refused(action):
    with pytest.raises(StorageError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value), isinstance(error.value, StorageUnavailableError)


def round_trip(store, path):
    """Writes a file and reads it."""
    data = bytes(range(256)) * 8000
    store.write(path, lambda: [data], len(data))
    assert b"".join(store.read(path, 7, len(data) - 7)) == data[7:]


def test_tickets_and_keytabs(secure, kdc, address, tmp_path, monkeypatch, caplog, capsys):
    caplog.set_level("INFO", "plsc")
    text, passes = refused(lambda: open_hdfs(address, None, kerberos=Kerberos()))
    assert not passes and text.startswith(f"{address}: Kerberos: there is no ticket") and "run kinit" in text
    round_trip(open_hdfs(address, None, kerberos=Kerberos(str(kdc.keytab("bob")))), f"/{tmp_path.name}/bob's")
    assert f"with the keytab of bob@{REALM}" in caplog.text
    text, _ = refused(lambda: open_hdfs(address, None, kerberos=Kerberos()))  # the keytab left no ticket behind
    assert "there is no ticket" in text
    kdc.kinit("alice", secure.cache)
    round_trip(open_hdfs(address, None, kerberos=Kerberos()), f"/{tmp_path.name}/alice's")
    monkeypatch.setenv("HADOOP_CONF_DIR", str(secure.settings))  # says that the cluster has Kerberos
    monkeypatch.setenv("HADOOP_USER_NAME", "zoe")
    round_trip(open_hdfs(address, None), f"/{tmp_path.name}/also alice's")
    assert "with the Kerberos ticket of this user" in caplog.messages[-1]
    store = open_hdfs(address, None)
    store.write("mine/file", lambda: [b"x"], 1)
    assert "mine" in store.list(".") and list(store.list("mine")) == ["file"] and store.status(".").is_folder
    store = open_hdfs(secure.address, None)
    files = {one.path.rpartition("/")[2]: one.owner for one in store._storage._client.list_status(f"/{tmp_path.name}")}
    assert files == {"bob's": "bob", "alice's": "alice", "also alice's": "alice"}
    for how in (["--kerberos"], ["--keytab", str(kdc.keytab("bob"))]):
        assert cli.main(["fs", "ls", *how, "--fs", address, f"/{tmp_path.name}"]) == 0
        assert "also alice's" in capsys.readouterr().out
    store.mkdirs(f"/{tmp_path.name}/hers")
    bob = open_hdfs(address, None, kerberos=Kerberos(str(kdc.keytab("bob"))))
    text, passes = refused(lambda: bob.write(f"/{tmp_path.name}/hers/x", lambda: [b"x"], 1))
    assert not passes and "Permission denied: user=bob" in text


def test_servers_that_ask_for_kerberos_say_so(secure, kdc, address):
    for ugi in (None, "alice,"):
        text, _ = refused(lambda ugi=ugi: open_hdfs(address, ugi).status("/"))
        assert "call set_hdfs_info with auth='kerberos'" in text, text


def test_the_kdc_and_names_that_are_wrong(secure, kdc, address, tmp_path, monkeypatch):
    kdc.kinit("alice", secure.cache)
    if address == secure.web:  # RPC asks the server for its name
        text, _ = refused(lambda: open_hdfs(address.replace(HOST, "127.0.0.1"), None, kerberos=Kerberos()))
        assert "there is no such server (Server HTTP/127.0.0.1@PLSC.TEST not found" in text, text
        assert "give its full host name in fs_name" in text
    kdc.kinit("alice", secure.cache)
    (tmp_path / "krb5.conf").write_text(re.sub("kdc = .*", "kdc = 127.0.0.1:9", kdc.config.read_text()))
    monkeypatch.setenv("KRB5_CONFIG", str(tmp_path / "krb5.conf"))
    text, _ = refused(lambda: open_hdfs(address, None, kerberos=Kerberos()))
    assert "Kerberos: no KDC answers (Cannot contact any KDC" in text and "check krb5.conf" in text


def test_no_rank_begins_without_a_ticket(secure):
    """What every rank does before the first step fails, and waits for no ticket."""
    began = time.monotonic()
    text, passes = refused(lambda: open_store(Config(hdfs=Hdfs(secure.address, None, "/x", auth="kerberos"))))
    assert "Kerberos: there is no ticket" in text and not passes and time.monotonic() - began < 30


def test_training_for_longer_than_a_ticket_lives(secure, kdc, glyphs, tmp_path):
    """With a keytab nothing happens; without one the upload waits until there is a new ticket, and training goes on.

    The NameNode restarts in between, so that all connect again.
    """
    kdc.kinit("alice", secure.cache)
    processes = {}
    options = ("with_test=false", "log_period=1", "train_epochs=1", 'hdfs_upload=["epoch", 120]')
    for name, keytab in (("ticket", None), ("keytab", str(kdc.keytab("carol")))):
        info = {
            "fs_name": secure.address,
            "fs_ugi": None,
            "fs_dir_for_save": f"/{tmp_path.name}-{name}",
        }  # of two users
        info = json.dumps({**info, "auth": "kerberos", "keytab": keytab})
        processes[name] = popen_ranks(
            "train_glyphs.py", 1, glyphs, tmp_path / name, *options, f"hdfs_info={info}", "--hold-step=2"
        )
    lines = {name: [] for name in processes}
    for name, process in processes.items():
        for line in process.stderr:
            lines[name].append(line)
            if "holding step 2" in line:
                break
    kdc.kinit("alice", secure.cache, lifetime=f"{LIFETIME}s")
    began = time.monotonic()
    secure.kill_namenode()
    secure.start()
    time.sleep(max(0.0, LIFETIME + 1 - (time.monotonic() - began)))
    for name in processes:
        (tmp_path / f"{name}.release").touch()
    for name, process in processes.items():
        for line in process.stderr:
            lines[name].append(line)
            if "trying again in" in line and name == "ticket":
                kdc.kinit("alice", secure.cache)
        assert process.wait() == 0, "".join(lines[name])[-3000:]
        assert any(f"uploaded {tmp_path}/{name}/0" in line for line in lines[name])
    said = [line for line in lines["ticket"] if "Kerberos" in line and "trying again" in line]
    assert said and all("the ticket can no longer be used (Ticket expired); run kinit" in line for line in said)
    assert not [line for line in lines["keytab"] if "trying again" in line and "Kerberos" in line]


def test_tokens_of_redirects_and_tickets_are_in_no_message(secure, kdc, monkeypatch, tmp_path, caplog):
    """A NameNode adds a delegation token to the address of the DataNode; the ticket stays with the NameNode."""
    pytest.importorskip("gssapi")
    import logging

    from plsc.storage import gateway

    caplog.set_level(logging.INFO)
    sent, send = [], gateway.KeptCredentials._send

    def spy(self, method, url, options):
        answer = send(self, method, url, options)
        sent.append((url, answer.request.headers.get("Authorization", ""), answer.request.headers.get("Cookie", "")))
        return answer

    monkeypatch.setattr(gateway.KeptCredentials, "_send", spy)
    kdc.kinit("alice", secure.cache)
    store = open_hdfs(secure.web, None, kerberos=Kerberos())
    store.write(f"/{tmp_path.name}/x", lambda: [b"abc"], 3)
    secure.kill_datanode()
    try:
        text, passes = refused(lambda: store.with_patience(0).write(f"/{tmp_path.name}/y", lambda: [b"abc"], 3))
    finally:
        secure.start()
    tokens = {url.partition("delegation=")[2].partition("&")[0] for url, _, _ in sent if "delegation=" in url}
    assert len(tokens) == 1 and all(len(token) > 20 for token in tokens)
    for url, header, cookie in sent:
        assert bool(url.startswith(secure.web)) or (header, cookie) == ("", "")
    assert any(header.startswith("Negotiate ") for _, header, _ in sent)
    for secret in (*tokens, *(header for _, header, _ in sent if header)):
        assert secret not in text + caplog.text + repr(store) + repr(Kerberos())


def test_a_gateway_that_asks_for_a_ticket(secure, kdc, monkeypatch):
    """As HttpFS and Knox do. Its data server sees no ticket."""
    gssapi = pytest.importorskip("gssapi")
    kdc.kinit("alice", secure.cache)

    def accepts(header):
        if not (header or "").startswith("Negotiate "):
            return False
        keys = gssapi.Credentials(usage="accept", store={"keytab": f"FILE:{kdc.keytab('HTTP')}"})
        context = gssapi.SecurityContext(creds=keys, usage="accept")
        context.step(base64.b64decode(header[10:]))
        return str(context.initiator_name) == f"alice@{REALM}"

    with Gateway(accepts) as gateway:
        store = open_hdfs(gateway.url.replace("127.0.0.1", HOST), None, kerberos=Kerberos())
        store.write("/x", lambda: [b"abc"], 3)
        assert b"".join(store.read("/x", 0, 3)) == b"abc"
        assert {header for place, _, header in gateway.seen if place == "data"} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["RPC", "WebHDFS"])
def test_an_upload_and_a_download_survive_a_failover_with_kerberos(kdc, tmp_path, monkeypatch, caplog, way):
    """Each NameNode is a service of its own for Kerberos, and the second is first asked in the middle of a file."""
    pytest.importorskip("hdfs_native" if way == "RPC" else "gssapi")
    monkeypatch.setattr(rpc, "is_installed", lambda: way == "RPC")
    monkeypatch.setattr(failover, "_SECONDS", 0.0)
    monkeypatch.setenv("KRB5CCNAME", str(tmp_path / "cache"))
    caplog.set_level("INFO", "plsc")
    kdc.kinit("alice", tmp_path / "cache")
    with started(lambda: SecurePair(tmp_path / "pair", kdc)) as pair:
        monkeypatch.setenv("HADOOP_CONF_DIR", str(pair.settings))  # which says that it has Kerberos
        store, data = open_hdfs("hdfs://cluster", None).with_patience(60), os.urandom(12 << 20)
        assert f"hdfs://cluster: connected by {way}, with the Kerberos ticket" in caplog.text
        store.write("/a", lambda: [data], len(data))
        for number, disturb in enumerate((pair.fail_over, pair.kill_active)):
            happened = []

            def chunks(disturb=disturb, happened=happened):
                for place, chunk in enumerate(store.read("/a", 0, len(data))):
                    if place == 5 and not happened:
                        happened.append(pair.standby)
                        disturb()
                        if pair.active is None:
                            pair.activate(happened[0])
                    yield chunk

            store.write(f"/b{number}", chunks, len(data))
            assert happened == [pair.active] and b"".join(store.read(f"/b{number}", 0, len(data))) == data
        assert caplog.text.count("continuing with") == 2


def made_keytab(*parts, hole=False):
    body = struct.pack(">H", len(parts) - 1) + b"".join(struct.pack(">H", len(one)) + one for one in parts) + bytes(20)
    removed = struct.pack(">i", -8) + bytes(8) if hole else b""
    return b"\x05\x02" + removed + struct.pack(">i", len(body)) + body


def test_the_principal_of_a_keytab(tmp_path):
    path = tmp_path / "keys"
    for data, principal in (
        (made_keytab(b"REALM", b"alice"), "alice@REALM"),
        (made_keytab(b"R.X", b"svc", b"host.x", hole=True), "svc/host.x@R.X"),
    ):
        path.write_bytes(data)
        assert Kerberos(str(path)).principal == principal
    whole = made_keytab(b"REALM", b"alice")
    for data in (b"", b"\x05\x02", b"root:x:0:0", whole[:12], b"\x05\x02" + bytes(4), b"\x05\x02" + b"\xff" * 60):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="is not a keytab, or has no keys"):
            open_hdfs("hdfs://localhost:9", None, kerberos=Kerberos(str(path)))
    with pytest.raises(ConfigError, match="absent' cannot be read"):
        open_hdfs("hdfs://localhost:9", None, kerberos=Kerberos(str(tmp_path / "absent")))


def test_libraries_that_are_missing_are_named(monkeypatch):
    error = rpc._error("hdfs://x: /", 'OperationFailed("Failed to load libgssapi_krb5")', Kerberos())
    assert not isinstance(error, StorageUnavailableError)
    assert str(error).startswith("hdfs://x: /: Kerberos needs the library libgssapi_krb5.so.2: install Debian's")
    monkeypatch.setitem(__import__("sys").modules, "gssapi", None)
    with pytest.raises(StorageError, match="needs the package gssapi: pip install"):
        Kerberos().token("localhost")

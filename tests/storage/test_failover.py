"""A real HDFS with two NameNodes: copies and training continue when the active one changes, is killed, or hangs."""

import json
import os
import signal
import threading

import pytest
from hdfs_pairs import HdfsPair
from hdfs_server import NAMENODE, started, write_site
from ranks import popen_ranks

from plsc.errors import ConfigError
from plsc.storage import StorageUnavailableError, failover, open_hdfs, rpc, site

SIZE = 12 << 20


@pytest.fixture(scope="module")
def pair_of_module(tmp_path_factory):
    pytest.importorskip("hdfs_native")
    with started(lambda: HdfsPair(tmp_path_factory.mktemp("pair"))) as server:
        yield server


@pytest.fixture
def pair(pair_of_module, monkeypatch):
    """Two NameNodes, one active; `HADOOP_CONF_DIR` names the nameservice."""
    pair_of_module.reset()
    monkeypatch.setenv("HADOOP_CONF_DIR", str(pair_of_module.settings))
    monkeypatch.setattr(failover, "_SECONDS", 0.0)
    return pair_of_module


def take_over(pair):
    pair.fail_over()


def kill(pair):
    other = pair.standby
    pair.kill_active()
    pair.activate(other)


def copy(pair, store, source, target, disturb):
    """Copies a file of the store while `disturb(pair)` happens once in the middle."""
    happened = []

    def chunks():
        for number, chunk in enumerate(store.read(source, 0, SIZE)):
            if number == 5 and not happened:
                happened.append(disturb(pair))
            yield chunk

    store.write(target, chunks, SIZE)


def test_while_both_are_standbys_one_line_says_so_and_a_write_waits(pair, tmp_path):
    rpc_hosts = ";".join(f"hdfs://{host}" for host in pair.hosts.values())
    stores = [open_hdfs(address, "alice,") for address in ("hdfs://cluster", rpc_hosts, ";".join(pair.webs.values()))]
    was = pair.active
    pair.stand_by()
    for store in stores:
        with pytest.raises(StorageUnavailableError) as error:
            store.with_patience(0).status("/x")
        text = str(error.value)
        assert "/x: no NameNode is active: " in text and text.count("is a standby") == 2, text
        assert "make one of them active" in text
    later = threading.Timer(0.5, pair.activate, [was])
    later.start()
    stores[0].with_patience(60).write(f"/{tmp_path.name}/x", lambda: [b"x"], 1)
    later.join()
    assert stores[2].status(f"/{tmp_path.name}/x").size == 1


@pytest.mark.parametrize(
    "way, disturb, reason",
    [("RPC", take_over, "is a standby"), ("WebHDFS", kill, "does not answer (Connection refused)")],
)
def test_an_upload_and_a_download_survive_a_failover(pair, way, disturb, reason, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(rpc, "is_installed", lambda: way == "RPC")
    caplog.set_level("INFO", "plsc")
    store, data = open_hdfs("hdfs://cluster", "alice,").with_patience(60), os.urandom(SIZE)
    assert f"hdfs://cluster: connected by {way}" in caplog.text
    store.write(f"/{tmp_path.name}/a", lambda: [data], SIZE)
    hosts = {name: pair.hosts[name] if way == "RPC" else pair.webs[name][7:] for name in pair.hosts}
    before, after = hosts[pair.active], hosts[pair.standby]
    copy(pair, store, f"/{tmp_path.name}/a", f"/{tmp_path.name}/b", disturb)
    for name in ("a", "b"):
        assert b"".join(store.read(f"/{tmp_path.name}/{name}", 0, SIZE)) == data
    said = [line for line in caplog.messages if "continuing with" in line]
    assert len(said) == 1 and said[0].startswith(f"hdfs://cluster: the NameNode {before} {reason}")
    assert said[0].endswith(f"; continuing with {after}")


def test_a_namenode_whose_machine_hangs_is_left(pair, tmp_path, monkeypatch, caplog):
    """It still has connections, and new ones are accepted, but nothing is ever answered."""
    monkeypatch.setattr(rpc, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(rpc, "PROBE_SECONDS", 1.0)
    store, other = open_hdfs("hdfs://cluster", "alice,").with_patience(60), pair.standby
    hanging = pair.active
    before = pair.hosts[hanging]
    store.status("/")
    os.killpg(pair.processes[NAMENODE + hanging].pid, signal.SIGSTOP)
    try:
        pair.activate(other)
        store.write(f"/{tmp_path.name}/x", lambda: [b"abc"], 3)
        assert store.status(f"/{tmp_path.name}/x").size == 3
        assert f"the NameNode {before} does not answer (no answer in time); continuing with" in caplog.text
        assert open_hdfs("hdfs://cluster", "alice,").status(f"/{tmp_path.name}/x").size == 3
    finally:
        pair.kill(hanging)  # it would believe that it is active


def test_training_uploads_its_checkpoints_through_a_failover(pair, glyphs, tmp_path):
    folder = f"/{tmp_path.name}"
    info = "hdfs_info=" + json.dumps(["hdfs://cluster", "alice,", folder])
    options = ("with_test=false", "log_period=1", "train_epochs=2", info, 'hdfs_upload=["epoch"]')
    process = popen_ranks("train_glyphs.py", 1, glyphs, tmp_path / "out", *options, "--hold-step=8")
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "holding step 8" in line:
            kill(pair)
            (tmp_path / "out.release").touch()
    assert process.wait() == 0, "".join(lines)[-3000:]
    assert "connected by RPC" in "".join(lines) and "NOT UPLOADED" not in "".join(lines)
    assert any("does not answer (Connection refused); continuing with" in line for line in lines)
    store = open_hdfs("hdfs://cluster", "alice,")
    assert sorted(store.list(folder)) == ["0", "1"] and store.status(f"{folder}/1/meta.json").size


def test_configuration_files_of_hadoop(tmp_path, monkeypatch):
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.setenv("HADOOP_HOME", str(tmp_path))
    assert site.read_settings() == {}
    folder = tmp_path / "etc" / "hadoop"
    folder.mkdir(parents=True)
    values = {
        "dfs.ha.namenodes.c": "a, b,c,missing",
        "dfs.namenode.rpc-address.c.a": "one:9000",
        "dfs.namenode.http-address.c.a": "0.0.0.0:9999",
        "dfs.namenode.rpc-address.c.b": "two:9000",
        "dfs.namenode.https-address.c.b": "web.two:1",
        "dfs.namenode.http-address.c.c": "three:7",
    }
    write_site(folder / "hdfs-site.xml", values)
    known = site.read_settings()
    assert site.namenodes(known, "c") == [
        ("a", "one:9000", "http://one:9999"),
        ("b", "two:9000", "http://two:9870"),
        ("c", "three:8020", "http://three:7"),
    ]
    tls = site.namenodes({**known, "dfs.http.policy": "HTTPS_ONLY"}, "c")
    assert [one.web for one in tls][:2] == ["https://one:9871", "https://web.two:1"]
    assert site.namenodes(known, "other") == [] and not site.asks_for_kerberos(known)
    assert site.asks_for_kerberos({"hadoop.security.authentication": "Kerberos"})
    (folder / "core-site.xml").write_text("<configuration><property>")
    with pytest.raises(ConfigError, match=r"core-site.xml: cannot be read as .*; check HADOOP_HOME"):
        site.read_settings()

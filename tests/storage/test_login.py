"""Who connects to the store of an address."""

import importlib.util

import pytest
from gateway import Gateway

from plsc import cli
from plsc.storage import Kerberos, Retrying, StorageError, StorageUnavailableError, credentials, hdfs, login
from plsc.storage.address import split_address
from plsc.storage.base import missing, read_bytes
from plsc.storage.local import LocalStorage


@pytest.mark.parametrize(
    "fs_name, fs_ugi, kerberos, expected",
    [
        ("hdfs://one:9000", "me,secret", None, ("hdfs://two:9000", "me,", None)),
        ("hdfs://one:9000", None, Kerberos("/keys"), ("hdfs://two:9000", None, Kerberos("/keys"))),
        ("hdfs://two:8020", None, Kerberos(), ("hdfs://two:8020", None, Kerberos())),
        ("s3://bucket", "key,secret", None, ("hdfs://two:9000", None, None)),
    ],
)
def test_what_another_hdfs_learns_about_the_user(fs_name, fs_ugi, kerberos, expected, monkeypatch):
    """A password stays with its gateway. A ticket may be shown: it is of use to no server but one."""
    asked = []

    def open_hdfs(name, ugi, client=None, kerberos=None, patience=None):
        asked.append((name, ugi, kerberos))
        return Retrying(LocalStorage(), 0)

    monkeypatch.setattr(login, "open_hdfs", open_hdfs)
    address = split_address("x", "hdfs://two:9000/data")
    login.open_address(address, login.Login(fs_name, fs_ugi, kerberos=kerberos))
    assert asked == [expected]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("swebhdfs://host:1/x", ("swebhdfs://host:1", "me,secret")),
        ("hdfs://HOST:1/x", ("hdfs://HOST:1", "me,secret")),
        ("swebhdfs://port:2/x", ("swebhdfs://port:2", "me,secret")),
        ("swebhdfs://port:3/x", ("swebhdfs://port:3", None)),
        ("swebhdfs://port/x", ("swebhdfs://port", None)),
        ("swebhdfs://nohost:1/x", ("swebhdfs://nohost:1", None)),
        ("swebhdfs://host.evil:1/x", ("swebhdfs://host.evil:1", None)),
        ("s3://bucket/x", ("s3://bucket", None)),
    ],
)
def test_the_password_of_the_environment_goes_to_the_hosts_that_the_environment_names(text, expected, monkeypatch):
    asked = []

    def open_hdfs(name, ugi, *more, **others):
        asked.append((name, ugi))
        return Retrying(LocalStorage(), 0)

    monkeypatch.setattr(login, "open_hdfs", open_hdfs)
    monkeypatch.setenv("HADOOP_USER_NAME", "me")
    monkeypatch.setenv("PLSC_HDFS_HOST", "host; https://port:2/gateway, [")
    monkeypatch.setattr(credentials, "password", lambda: "secret")
    login.open_address(split_address("x", text), login.Login())
    login.open_address(split_address("x", "file:///x"), login.Login())
    assert asked == [expected] and "secret" not in repr(login.Login(fs_ugi="me,secret"))


def test_a_store_that_does_not_answer_is_tried_no_longer_than_the_settings_say(monkeypatch):
    asked = []

    def open_hdfs(name, ugi, client=None, kerberos=None, patience=None):
        asked.append(patience)
        return Retrying(LocalStorage(), 0)

    monkeypatch.setattr(login, "open_hdfs", open_hdfs)
    for fs_name, text in ((None, "webhdfs://two/x"), ("hdfs://two", "hdfs://two/x"), (None, "s3://bucket/x")):
        if importlib.util.find_spec("s3fs") or not text.startswith("s3:"):
            store = login.open_address(split_address("x", text), login.Login(fs_name, patience=5))
            assert asked.pop() == store.patience == 5


@pytest.mark.parametrize(
    "words", [["data", "info", "{}/x"], ["fs", "ls", "{}/x"], ["fs", "ls", "--user", "alice", "{}/x"]]
)
def test_a_command_sends_the_password_to_no_gateway_that_the_user_has_not_named(words, tmp_path, monkeypatch, capsys):
    with Gateway("alice:p4ss", tmp_path) as gateway:
        address = gateway.url.replace("https", "swebhdfs").removesuffix("/gateway/default")
        monkeypatch.setattr("gateway.PREFIX", "/webhdfs/v1")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(gateway.certificate))
        monkeypatch.setenv("HADOOP_USER_NAME", "alice")
        monkeypatch.setattr(credentials, "password", lambda: "p4ss")
        monkeypatch.setattr(credentials, "_withheld", set())
        words = [word.format(address) for word in words]
        for meant in ("", "another", "127.0.0.1:1"):
            monkeypatch.setenv("PLSC_HDFS_HOST", meant)
            assert cli.main(words) == 1
            line = capsys.readouterr().err.splitlines()[-1]
            assert "PLSC_HDFS_PASSWORD was not sent there, because PLSC_HDFS_HOST does not name it" in line
            assert "set PLSC_HDFS_HOST=127.0.0.1 if" in line and {header for *_, header in gateway.seen} == {None}
            assert "; for Kerberos, " in line and "auth=" not in line, "it may ask for a ticket instead"
        monkeypatch.setenv("PLSC_HDFS_HOST", "127.0.0.1")
        assert cli.main(words) == 1
        assert "no such file or folder" in capsys.readouterr().err and gateway.seen[-1][2] is not None
        monkeypatch.setattr(credentials, "password", lambda: "wrong")
        assert cli.main(words) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert "the name or the password was refused; check " in line and "fs_ugi" not in line
        assert ("--user" in line) == (words[0] == "fs") and ("HADOOP_USER_NAME" in line) == (words[0] == "data")


def test_a_folder_of_file_is_called_by_its_address(tmp_path):
    (tmp_path / "x y").write_text("x")
    store = login.open_address(split_address("x", f"file://{tmp_path}"), login.Login())
    assert read_bytes(store, f"{tmp_path}/x y") == b"x"
    with pytest.raises(StorageError) as caught:
        read_bytes(store, f"{tmp_path}/absent")
    assert str(caught.value) == (
        f"file://{tmp_path}/absent: no such file or folder; plsc fs ls file://{tmp_path} shows what is there"
    )


@pytest.mark.parametrize(
    "fs_name, problem, says",
    [
        (
            "hdfs://cluster",
            "Name or service not known",
            "if cluster is a nameservice, let HADOOP_CONF_DIR name the folder",
        ),
        ("webhdfs://one;two/", "Temporary failure in name resolution", "if one is a nameservice, let HADOOP_CONF_DIR"),
        ("hdfs://host:9000", "Name or service not known", "is the NameNode up, and the address right?"),
        ("hdfs://host", "Connection refused", "is the NameNode up, and the address right?"),
    ],
)
def test_a_name_that_no_server_knows_may_be_one_of_a_nameservice(fs_name, problem, says, monkeypatch):
    monkeypatch.setattr(hdfs, "_probe", lambda url: problem)
    with pytest.raises(StorageUnavailableError) as caught:
        hdfs.connect(fs_name, None)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name, path, advice",
    [
        ("s3://bucket/runs", "a b/c/", "plsc fs ls 's3://bucket/runs/a b' shows what is there"),
        ("s3://bucket/runs", "a", "plsc fs ls s3://bucket/runs shows what is there"),
        ("hdfs://nn:9000", "/a", "plsc fs ls hdfs://nn:9000 shows what is there"),
        ("hdfs://nn:9000", "a", "plsc fs ls --fs hdfs://nn:9000 . shows what is there"),
        ("hdfs://a;hdfs://b", "/x/y", "plsc fs ls --fs 'hdfs://a;hdfs://b' /x shows what is there"),
        ("https://gw:8443/gateway/default", "/x/y", "plsc fs ls --fs https://gw:8443/gateway/default /x shows what is"),
        ("", "/x/y", "check the path"),
    ],
)
def test_what_is_missing_is_told_with_a_command_that_shows_what_is_there(name, path, advice):
    assert f"no such file or folder; {advice}" in str(missing(LocalStorage(name=name), path))

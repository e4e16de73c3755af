"""Who connects to the store of an address."""

import importlib.util

import pytest

from plsc.storage import Kerberos, Retrying, credentials, login
from plsc.storage.address import split_address
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
        ("hdfs://host:1/x", ("hdfs://host:1", "me,secret")),
        ("s3://bucket/x", ("s3://bucket", None)),
    ],
)
def test_the_password_of_the_environment_is_that_of_a_gateway(text, expected, monkeypatch):
    asked = []

    def open_hdfs(name, ugi, *more, **others):
        asked.append((name, ugi))
        return Retrying(LocalStorage(), 0)

    monkeypatch.setattr(login, "open_hdfs", open_hdfs)
    monkeypatch.setenv("HADOOP_USER_NAME", "me")
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

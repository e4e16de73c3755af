"""The credentials that the environment gives to commands; who gets them is tested with `login`."""

import pytest

from plsc.errors import ConfigError
from plsc.storage import credentials


def test_every_server_of_an_address_must_be_named(monkeypatch):
    monkeypatch.setattr(credentials, "password", lambda: "p4ss")
    monkeypatch.setattr(credentials, "_withheld", set())
    for address, named, says in (
        (
            "swebhdfs://one;two",
            "one",
            "does not name each server of the address; set PLSC_HDFS_HOST=one,two if the pass",
        ),
        ("swebhdfs://service", "one", "does not name it; set PLSC_HDFS_HOST=service if"),  # a nameservice
        ("swebhdfs://one;two", "two,one", ""),
    ):
        monkeypatch.setenv("PLSC_HDFS_HOST", named)
        assert credentials.password_for(address) == ("" if says else "p4ss")
        why = credentials.why_withheld(address)
        assert says in why and bool(why) == bool(says)


def test_a_user_without_a_name_gets_a_line(monkeypatch):
    def no_name():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("HADOOP_USER_NAME", raising=False)
    monkeypatch.setattr("getpass.getuser", no_name)
    with pytest.raises(ConfigError, match="set HADOOP_USER_NAME to your name in HDFS"):
        credentials.user_name()

import importlib.util
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.errors import ConfigError
from plsc.storage.address import check_hdfs_address, is_inside, split_address, web_addresses

CASES = {
    "hdfs://nn": [["http://nn:9870", "http://nn:50070"]],
    "hdfs://nn:9000/": [["http://nn:9870", "http://nn:50070", "http://nn:9000"]],
    "nn:8020": [["http://nn:9870", "http://nn:50070", "http://nn:8020"]],
    "hdfs://nn:50070": [["http://nn:50070", "http://nn:9870"]],
    "hdfs://[::1]:9000": [["http://[::1]:9870", "http://[::1]:50070", "http://[::1]:9000"]],
    "webhdfs://nn": [["http://nn:9870", "http://nn:50070"]],
    "webhdfs://nn:1234": [["http://nn:1234"]],
    "swebhdfs://nn": [["https://nn:9871", "https://nn:50470"]],
    "http://nn:14000/": [["http://nn:14000"]],
    "https://gate:8443/gateway/default": [["https://gate:8443/gateway/default"]],
    "http://a:1;http://b:2": [["http://a:1"], ["http://b:2"]],
    "webhdfs://a:1, b:2": [["http://a:1"], ["http://b:2"]],
}


@pytest.mark.parametrize("address", CASES)
def test_addresses(address):
    assert web_addresses(address) == CASES[address]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "empty"),
        (" ; ", "empty"),
        ("hdfs://", "not an address"),
        ("hdfs://nn:port", "'port' is no port; expected hdfs://host:port"),
        ("hdfs://nn:0", "'0' is no port"),
        ("hdfs://nn:65536/", "'65536' is no port"),
        ("hdfs://n n", "not an address"),
        ("http://nn:1?op=x", "not an address"),
        ("hdfs://nn:9000/user/me", "fs_dir_for_save"),
        ("s3://bucket", "does not know s3://"),
        ("https://me:secret@gate", "give them in fs_ugi"),
    ],
)
def test_a_bad_address_is_reported_in_one_line_without_its_password(address, words):
    with pytest.raises(ConfigError) as error:
        web_addresses(address)
    assert words in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


@given(st.text(max_size=40))
def test_any_text_is_either_read_or_refused(text):
    try:
        found = web_addresses(text)
    except ConfigError:
        return
    assert found and all(urls and all(url.startswith("http") and "://" in url for url in urls) for urls in found)


def test_a_long_address_is_cut_in_the_message():
    with pytest.raises(ConfigError) as caught:
        web_addresses("hdfs://" + "[" * 3000)
    assert len(str(caught.value)) < 500


def test_addresses_of_data():
    assert split_address("set_dataset_dir", "./train data") is None
    for text, parts in {
        "hdfs://nn:9000/user/me/data": ("hdfs", "nn:9000", "/user/me/data", "hdfs://nn:9000"),
        "HDFS:///data/": ("hdfs", "", "/data", "hdfs://"),
        "webhdfs://nn:50070/a/train-{0..9}.tar": ("webhdfs", "nn:50070", "/a/train-{0..9}.tar", "webhdfs://nn:50070"),
        "file:///mnt/nfs/数据": ("file", "", "/mnt/nfs/数据", "file://"),
    }.items():
        found = split_address("set_dataset_dir", text)
        assert (found.scheme, found.host, found.path, found.server) == parts and found.text == text
    if importlib.util.find_spec("fsspec") is not None:
        data = split_address("set_dataset_dir", "memory://bucket/a/../data")
        assert (data.scheme, data.server, data.path, data.is_object) == ("memory", "memory://bucket", "/data", True)
        assert data.is_served_by("memory://other") and not data.is_served_by("s3://bucket/data")
        if importlib.util.find_spec("s3fs") is not None:
            assert split_address("set_dataset_dir", "s3a://bucket/data").is_served_by("s3://other")
        assert not data.is_served_by("hdfs://bucket:9000") and not data.is_served_by("bucket:9000")
    assert not split_address("set_dataset_dir", "hdfs://bucket/data").is_served_by("s3://bucket")
    data = split_address("set_dataset_dir", "hdfs://nn:9000/data")
    assert data.is_served_by("http://nn:9870") and data.is_served_by("other;nn") and not data.is_served_by("n:9000")
    assert split_address("set_dataset_dir", "hdfs:///data").is_served_by("http://nn:9870")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://bucket/data", "plsc does not know http://; expected a folder, or an address that begins with hdfs://"),
        ("nosuch://bucket/data", "nosuch://"),
        ("hdfs://me:secret@nn/data", "a user or a password; give them to set_hdfs_info as fs_ugi"),
        ("hdfs://nn:port/data", "is not an address: 'port' is no port; expected hdfs://host:port/path"),
        ("hdfs://n n/data", "is not an address"),
        ("webhdfs:///data", "is not an address; expected webhdfs://host:port/path"),
        ("file://host/data", "is not an address; expected file:///path"),
    ],
)
def test_a_bad_address_of_data_is_reported_in_one_line_without_its_password(address, words):
    with pytest.raises(ConfigError) as error:
        split_address("set_dataset_dir", address)
    assert words in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3:/b/r", "is not an address; did you mean 's3://b/r'?"),
        ("S3:/b/r", "did you mean 's3://b/r'?"),
        ("s3//b", "did you mean 's3://b'?"),
        ("s3:b", "did you mean 's3://b'?"),
        ("s3;//b", "did you mean 's3://b'?"),
        ("s3:\\\\b", "did you mean 's3://b'?"),
        ("s3:///b", "did you mean 's3://b'?"),
        (" s3://b", "begins or ends with a space; did you mean 's3://b'?"),
        ("s3://b/x ", "begins or ends with a space; did you mean 's3://b/x'?"),
        ("gs:/", "is not an address; expected gs://bucket/folder"),
        ("hdfs:/x", "did you mean 'hdfs://x'?"),
        ("HDFS//nn:9000", "did you mean 'hdfs://nn:9000'?"),
        ("http:/nn:9870", "did you mean 'http://nn:9870'?"),
        ("file:/x", "did you mean 'file:///x'?"),
        ("other:/x", "did you mean 'other://x'?"),
        ("s3:/key:secret@b", "that is not an address; expected s3://bucket/folder, without a user or a password"),
    ],
)
def test_what_was_meant_to_be_an_address_is_named_with_the_right_one(text, words):
    for action in (lambda: split_address("set_dataset_dir", text), lambda: check_hdfs_address(text, is_alias=True)):
        with pytest.raises(ConfigError) as error:
            action()
        assert words in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


def test_paths_and_hosts_are_not_taken_for_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("data", "./s3/b", "data//train", "/s3:/b", "a b:c", "gs", "hdfs/x", "C:x", "nn:9000"):
        assert split_address("set_dataset_dir", text) is None, text
    os.makedirs("s3:/b")
    assert split_address("set_dataset_dir", "s3:/b") is None
    for text in ("nn:9000", "nn", "file:9000", "memory:1;gs:2", "hdfs://nn:9000/", "HDFS://nn"):
        check_hdfs_address(text, is_alias=False)


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("file:///data/in/out", "/data/in", True),
        ("/data/in", "file:///data/in/", True),
        ("/data/into", "file:///data/in", False),
        ("memory://data/in/a/../b", "memory://data/in", True),
        ("memory://other/in/b", "memory://data/in", False),
        ("hdfs://nn:9000/in/out", "webhdfs://nn:9870/in", True),
        ("hdfs:///in/out", "hdfs://nn/in", True),
        ("hdfs://nn/in", "hdfs://nn/in/out", False),
        ("hdfs://one/in/out", "hdfs://two/in", False),
        ("hdfs://nn/in/out", "/in", False),
    ],
)
def test_a_place_in_another_one(inner, outer, expected):
    if "memory:" in inner:
        pytest.importorskip("fsspec")
    assert is_inside(inner, outer) is expected

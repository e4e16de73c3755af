"""The words of errors: one line, without what only the programmers of a library understand."""

import errno
import os
import time

import pytest

from plsc.errors import counted, one_line, reason_of

PADDLE = """
--------------------------------------
C++ Traceback (most recent call last):
--------------------------------------
0   paddle::AnalysisPredictor::Init(std::shared_ptr<paddle::framework::Scope> const&)

----------------------
Error Message Summary:
----------------------
InvalidArgumentError: The shapes differ.
  [Hint: Expected x == y.] (at /paddle/paddle/phi/infermeta/multiary.cc:123)
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PADDLE, "InvalidArgumentError: The shapes differ. [Hint: Expected x == y.]"),
        ("(NotFound) No kernel. (at ../paddle/phi/core/x.h:75)", "(NotFound) No kernel."),
        (
            "Error in faiss::Index* faiss::read_index(faiss::IOReader*, int) at /project/faiss/impl/index_read.cpp:90: "
            "Error: 'ret' failed: read error in /tmp/x",
            "Error: 'ret' failed: read error in /tmp/x",
        ),
        ("FAIL : /onnxruntime_src/core/graph/model.cc:182 Unsupported model", "FAIL : Unsupported model"),
        ("/arrow/cpp/src/arrow/filesystem/hdfs.cc:12: Not connected", "Not connected"),
        (
            "could not open /x/.faces.idx.123.0123456789abcdef.part for writing",
            "could not open /x/faces.idx for writing",
        ),
        ("label.txt:1203: not an integer", "label.txt:1203: not an integer"),
        ("/data/a.csv:3: not a number", "/data/a.csv:3: not a number"),
        ("", "RuntimeError"),
    ],
)
def test_a_reason_has_no_places_in_the_source_of_a_library(text, words):
    assert reason_of(RuntimeError(text)) == words


def test_a_missing_key_and_an_error_of_the_system_are_words():
    assert reason_of(KeyError("format")) == "no 'format'"
    assert reason_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a")) == "No space left on device"


def test_controls_and_bytes_that_are_not_text_are_escaped():
    assert one_line("a\n  b\0\x1b[2J\udcff\u202e\u6570") == "a b\\x00\\x1b[2J\\udcff\\u202e\u6570"
    assert len(one_line("x" * 10**6)) == 200


@pytest.mark.parametrize("part", ["a", "a/", ".", " ", ".a"])
def test_long_texts_take_little_time(part):
    began = time.process_time()
    reason_of(ValueError(part * (200_000 // len(part))))
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "count, noun, text",
    [
        (0, "image", "0 images"),
        (1, "damaged image", "1 damaged image"),
        (1, "class", "1 class"),
        (1234567, "class", "1,234,567 classes"),
        (2, "identity", "2 identities"),
        (1, "identity", "1 identity"),
        (2, "batch", "2 batches"),
        (10, "epoch", "10 epochs"),
        (1, "epoch", "1 epoch"),
        (3, "day", "3 days"),
    ],
)
def test_counted_nouns(count, noun, text):
    assert counted(count, noun) == text

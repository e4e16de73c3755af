"""Foreign tools in a child process."""

import os
import time
from pathlib import Path

import pytest

from plsc.errors import ConfigError
from plsc.inference import foreign

# What `run_child` calls in the child.


def obey():
    Path("/proc/self/oom_score_adj").read_text()


def loop(tool):
    foreign.begin(tool)
    print("still at it", flush=True)
    while True:
        time.sleep(0.01)


def die(status):
    foreign.begin("a tool")
    print("[ERROR][Paddle2ONNX] no such operator (at /paddle/some/file.cc:12)", flush=True)
    if int(status) > 0:
        os._exit(int(status))
    os.kill(os.getpid(), -int(status))


def refuse(kind):
    raise {"own": ConfigError("own words"), "other": OSError("words of\nanother")}[kind]


@pytest.mark.parametrize(
    ("function", "argument", "words"),
    [
        (loop, "a tool", r"a tool did not end within 6 seconds and was stopped \(still at it\); do it otherwise"),
        (die, "255", r"a tool ended with status 255 \(no such operator\); do it otherwise"),
        (die, "-9", r"a tool was killed by SIGKILL, perhaps for lack of memory \(no such operator\); do it otherwise"),
        (die, "-11", r"a tool was killed by SIGSEGV \(no such operator\); do it otherwise"),
        (refuse, "own", r"the converter ended with status 1 \(error: own words\); do it otherwise"),
        (refuse, "other", r"the converter ended with status 1 \(error: OSError: another\); do it otherwise"),
    ],
)
def test_a_tool_that_fails_crashes_or_does_not_end_is_an_error(tmp_path, function, argument, words):
    seconds = 6 if function is loop else 300  # it has begun by then, and the others end by themselves
    with pytest.raises(ConfigError, match=f"^{words}$"):
        foreign.run_child(f"{__name__}:{function.__name__}", [argument], tmp_path, "do it otherwise", seconds)


def test_a_child_imports_what_its_parent_would_and_leaves_no_output(tmp_path, monkeypatch, capfd):
    (tmp_path / "json.py").write_text("raise SystemExit(7)")  # `python -m` would import it.
    monkeypatch.chdir(tmp_path)
    foreign.run_child(f"{__name__}:obey", [], tmp_path, "")
    assert capfd.readouterr() == ("", "")


CRASH = """
--------------------------------------
C++ Traceback (most recent call last):
--------------------------------------
0   paddle2onnx::Export(char const*, char const*, char**, int*)

----------------------
Error Message Summary:
----------------------
FatalError: `Process abort signal` is detected by the operating system.
  [TimeInfo: *** Aborted at 1795654123 (unix time) try "date -d @1795654123" if you are using GNU date ***]
  [SignalInfo: *** SIGABRT (@0x3638) received by PID 13880 (TID 0x7f794742fb80) from PID 13880 ***]
"""


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", ""),
        (CRASH, ""),
        ("[Paddle2ONNX] Start parsing the Paddle model file...\n[ERROR][Paddle2ONNX] Not known\n" + CRASH, "Not known"),
        ("\x1b[0;31m2026-11-26 00:55:26 [ERROR]\tFailed: (Unimplemented) x (at /paddle/a.cc:1)\x1b[0m\n[I] Pass 2\n",
         "Failed: (Unimplemented) x"),
        ("cannot do that\nfine\n", "cannot do that"),
        ("one\ntwo\n", "two"),
        ("cannot read /work/.export-1/inference.onnx", "cannot read inference.onnx"),
        ("error: " + "x" * 400, "error: " + "x" * 293 + "..."),
    ],
)  # fmt: skip
def test_the_last_words_of_a_tool_are_the_line_that_helps(output, words):
    assert foreign.last_words(output, Path("/work/.export-1")) == words

"""tests/run.sh with stand-ins for Python, ruff, mypy and apt-get, which note how they are called."""

import shutil
import subprocess

import pytest
from conftest import SERVED
from ranks import ROOT, TIMEOUT

PYTHON = """#!/bin/bash
echo "${0#"$NOTES"/} $*" >> "$NOTES/calls"
case "$*" in
    *"-m venv"*) mkdir -p "${@: -1}/bin"
        for name in python ruff mypy; do cp "$0" "${@: -1}/bin/$name"; done ;;
    *missing_packages*hdfs*|*hdfs*missing_packages*) echo java ;;
    *kerberos*missing_packages*) echo krb5 ;;
    *missing_packages*) echo chromium ;;
    *version_info*) exit 0 ;;
    *"-m core"*) exit "${OLDEST:-0}" ;;
    *"-m pytest"*) exit "${NEWEST:-0}" ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """`run(*arguments, **variables)` gives the exit status of run.sh and the calls it made."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (
        ("python3", PYTHON),
        ("apt-get", '#!/bin/bash\necho "apt-get $*" >> "$NOTES/calls"\n'),
        ("id", "#!/bin/bash\necho 0\n"),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("bash", "grep", "cat", "mkdir", "cp", "dirname"):
        (programs / name).symlink_to(shutil.which(name))

    def run(*arguments, **variables):
        (tmp_path / "calls").write_text("")
        known = {"PATH": str(programs), "NOTES": str(tmp_path), "PLSC_TEST_CACHE": str(tmp_path / "cache")}
        process = subprocess.run(
            ["bash", str(ROOT / "tests" / "run.sh"), *arguments],
            env={**known, **variables}, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert not process.stderr
        return process.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


def calls_of(calls, words):
    return [call for call in calls if words in call]


def test_a_file_runs_on_both_paddles_without_lint_and_debian_packages(run):
    status, calls = run("tests/heads/test_margins.py", "-k", "nan")
    assert status == 0 and not calls_of(calls, "apt-get") and not calls_of(calls, "ruff")
    suites = sorted(calls_of(calls, "-m pytest"))
    words = "--dist loadfile --no-loadscope-reorder"
    assert suites == [
        f"cache/newest/bin/python -m pytest -n 3 {words} tests/heads/test_margins.py -k nan",
        f"cache/oldest/bin/python -m pytest -n 1 {words} -m core tests/heads/test_margins.py -k nan",
    ]


@pytest.mark.parametrize(
    "path, packages",
    [
        ("tests/storage/test_hdfs.py", ["java"]),
        ("tests/storage/test_hdfs.py::test_something", ["java"]),
        ("tests/storage/test_kerberos.py", ["java", "krb5"]),
        ("tests/engine", ["java"]),
        ("tests/report/test_browser.py", ["chromium"]),
        ("tests/data", ["java"]),
        ("tests/heads", []),
    ],
)
def test_debian_packages_are_installed_for_the_tests_that_need_them(run, path, packages):
    status, calls = run(path)
    assert status == 0
    assert [call.split()[-1] for call in calls_of(calls, "install --yes")] == packages


def test_a_word_that_is_no_path_chooses_among_all_tests(run):
    status, calls = run("-k", "docs")
    assert status == 0 and len(calls_of(calls, "install --yes")) == 3 and calls_of(calls, "ruff")


def test_a_whole_run_checks_everything_and_installs_all(run):
    status, calls = run()
    assert status == 0
    assert [call.split()[-1] for call in calls_of(calls, "install --yes")] == ["java", "krb5", "chromium"]
    for words in ("bin/ruff check .", "bin/ruff format --check .", "bin/mypy"):
        assert calls_of(calls, words), words
    assert len(calls_of(calls, "-m pip install")) == 2
    _, again = run()
    assert not calls_of(again, "pip"), "environments are made once"


@pytest.mark.parametrize(
    "arguments, newest, oldest, expected",
    [
        (("tests/docs",), 0, 5, 0),  # none of these tests is core
        ((), 0, 5, 5),  # but some of all tests are
        (("tests/docs",), 0, 1, 1),
        (("tests/docs",), 1, 5, 1),
        ((), 1, 0, 1),
        (("-k", "no_such_test"), 5, 5, 5),
    ],
)
def test_the_status_is_that_of_both_suites(run, arguments, newest, oldest, expected):
    assert run(*arguments, NEWEST=str(newest), OLDEST=str(oldest))[0] == expected


@pytest.mark.parametrize("name", sum(SERVED, ()))
def test_the_tests_of_servers_are_where_one_process_looks_for_them(name):
    path, _, function = name.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text() if function else (ROOT / path).exists()

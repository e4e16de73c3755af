#!/usr/bin/env bash
# Tests plsc on the newest and the oldest supported Paddle, each in an environment that the first run makes.
#
#   bash tests/run.sh                                     # lint, types, and all tests
#   bash tests/run.sh tests/heads/test_margins.py -k nan  # these tests alone; arguments go to pytest
#
# The suite of the oldest Paddle runs beside lint and the first part of the other suite, so that no core is idle.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${PLSC_TEST_CACHE:-$PWD/.cache/tests}"
python="${PYTHON:-python3}"
paths=() # the test files and folders among the arguments
for argument in "$@"; do
    case "$argument" in tests | tests/*) paths+=("${argument%%::*}") ;; esac
done

environment() { # name, requirements...
    local folder="$cache/$1" stamp
    shift
    stamp="$*"
    if [ "$(cat "$folder/requirements" 2> /dev/null)" != "$stamp" ]; then
        "$python" -m venv --clear "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
        "$folder/bin/python" -m pip uninstall --quiet --yes plsc # the tests run on this source tree
        echo "$stamp" > "$folder/requirements"
    fi
}

chosen() { # whether a line of the chosen test files matches this pattern
    grep -rqE --include='*.py' "$1" "${paths[@]-tests}"
}

debian_packages() { # what they are for, module of the tests that knows which are missing
    local missing
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then return; fi
    missing="$("$python" -c "import sys; sys.path[:0] = ['tests', 'tests/helpers']; import $2; print(*$2.missing_packages())")"
    [ -n "$missing" ] || return 0
    echo "installing $missing"
    # shellcheck disable=SC2086 # one word for each package
    (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $missing) \
        > /dev/null 2>&1 || echo "could not install them: the tests of $1 will skip"
}

# Hundreds of processes import plsc, which takes each of them 0.2 s with its compiled code and 0.7 s without it.
unset PYTHONDONTWRITEBYTECODE

suite() { # environment, processes, arguments of pytest...
    local python="$cache/$1/bin/python" processes="$2"
    shift 2
    PYTHONPATH="$PWD" OMP_NUM_THREADS=1 "$python" -m pytest -n "$processes" --dist loadfile --no-loadscope-reorder "$@"
}

if chosen '^def .*\bhdfs\b|getfixturevalue."hdfs"|hdfs_server'; then debian_packages HDFS hdfs_server; fi
if chosen '^from kerberos import'; then debian_packages Kerberos kerberos; fi
if chosen 'open_browser'; then debian_packages "web pages" browser; fi
extras="dev,hdfs,s3,spark,onnx,report,search,parquet,base64,tensorboard,visualdl,docs"
header='import os, sysconfig; print(os.path.join(sysconfig.get_path("include"), "Python.h"))'
if command -v krb5-config > /dev/null && command -v gcc > /dev/null && [ -e "$("$python" -c "$header")" ]; then
    extras+=",kerberos" # whose package, gssapi, is compiled
fi
environment newest paddlepaddle==3.3.1 setuptools ".[$extras]"

oldest=""
if "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then # Paddle 2.6.2 has no build for 3.13
    environment oldest paddlepaddle==2.6.2 setuptools "numpy<2" "protobuf<5" ".[dev]"
    suite oldest 1 -m core "$@" > "$cache/oldest/tests.log" 2>&1 &
    oldest=$!
    trap 'kill "$oldest" 2> /dev/null || true' EXIT
fi

if [ "${#paths[@]}" = 0 ]; then
    "$cache/newest/bin/ruff" check .
    "$cache/newest/bin/ruff" format --check .
    "$cache/newest/bin/mypy"
fi

newest_status=0 oldest_status=0
# A third of the time a test waits, for servers and for other processes: three of them keep two cores busy.
suite newest 3 "$@" || newest_status=$?
if [ -n "$oldest" ]; then
    wait "$oldest" || oldest_status=$?
    trap - EXIT
    echo "--- on the oldest supported Paddle, the tests marked 'core'"
    cat "$cache/oldest/tests.log"
    # Status 5 means that no test was run: not every choice has a core test, but all tests together have.
    if [ "$#" -gt 0 ] && [ "$oldest_status" = 5 ]; then oldest_status=0; fi
fi
exit "$((newest_status ? newest_status : oldest_status))"

#!/usr/bin/env bash
# Makes two environments (newest and oldest supported Paddle), then lint, types and tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${PLSC_TEST_CACHE:-$PWD/.cache/tests}"
python="${PYTHON:-python3}"

environment() { # name, requirements...
    local folder="$cache/$1" stamp
    shift
    stamp="$*"
    if [ "$(cat "$folder/requirements" 2>/dev/null)" != "$stamp" ]; then
        "$python" -m venv --clear "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
        echo "$stamp" > "$folder/requirements"
    fi
}

browser_packages() { # a browser for the pages of reports; without it their test skips and says so
    local missing
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || return 0
    missing="$("$python" -c 'import sys; sys.path.insert(0, "tests/helpers"); import browser; print(*browser.missing_packages())')"
    debian_packages "$missing" "the browser test"
}

hdfs_packages() { # Java and jars for the HDFS of tests/hdfs_server.py; without them its tests skip and say so
    local missing
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || return 0
    missing="$("$python" -c 'import sys; sys.path.insert(0, "tests"); import hdfs_server; print(*hdfs_server.missing_packages())')"
    debian_packages "$missing" "the HDFS tests"
}

debian_packages() { # names in one word, what skips without them
    [ -n "$1" ] || return 0
    echo "installing $1"
    # shellcheck disable=SC2086 # words
    (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $1) \
        > /dev/null 2>&1 || echo "could not install them: $2 will skip"
}

hdfs_packages
browser_packages
environment newest paddlepaddle==3.3.1 setuptools ".[dev,spark,onnx,report,search,parquet,tensorboard,visualdl]"
"$cache/newest/bin/python" -m pip uninstall --quiet --yes plsc # the tests run on the source beside them
"$cache/newest/bin/ruff" check .
"$cache/newest/bin/ruff" format --check .
"$cache/newest/bin/mypy"
export PYTHONPATH="$PWD" OMP_NUM_THREADS=1
"$cache/newest/bin/python" -m pytest -n 2 --dist loadgroup "$@"

if "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then # 2.6.2 has no build for 3.13
    environment oldest paddlepaddle==2.6.2 setuptools "numpy<2" "protobuf<5" ".[dev]"
    "$cache/oldest/bin/python" -m pip uninstall --quiet --yes plsc
    "$cache/oldest/bin/python" -m pytest -n 2 -m core "$@"
fi

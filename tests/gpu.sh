#!/usr/bin/env bash
# Tries plsc on a machine with GPUs: the tests marked `core`, and benchmarks, whose figures it writes as a table.
#
#   bash tests/gpu.sh                                    # the newest paddlepaddle-gpu that pip finds
#   PADDLE="paddlepaddle-gpu==3.3.1 -i https://..." bash tests/gpu.sh   # another build, as Paddle's own site names it
#
# It makes its environment in .cache/tests/gpu, and leaves build/gpu/table.md and the logs next to it.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${PLSC_TEST_CACHE:-$PWD/.cache/tests}/gpu"
output="${PLSC_GPU_OUTPUT:-build/gpu}"

gpus="$( (nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null || true) | grep -c . || true)"
if [ "$gpus" = 0 ]; then
    echo "tests/gpu.sh: no GPU found (nvidia-smi names none); run bash tests/run.sh on a machine without one" >&2
    exit 1
fi

if [ ! -x "$cache/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$cache"
    "$cache/bin/python" -m pip install --quiet --disable-pip-version-check ".[gpu,dev]"
    # shellcheck disable=SC2086 # several words
    [ -z "${PADDLE:-}" ] || "$cache/bin/python" -m pip install --quiet --disable-pip-version-check $PADDLE
    "$cache/bin/python" -m pip uninstall --quiet --yes plsc # the tests run on this source tree
fi
mkdir -p "$output"
export PYTHONPATH="$PWD"
python="$cache/bin/python"
ranks=$((gpus < 8 ? gpus : 8))
failed=0

row() { # name, command...: runs the command, and adds its status, seconds and last line to the table
    local name="$1" began="$SECONDS" status=0
    shift
    "$@" > "$output/$name.log" 2>&1 || status=$?
    [ "$status" = 0 ] || failed=1
    printf '| %s | %s | %s | `%s` |\n' "$name" "$([ "$status" = 0 ] && echo passed || echo "status $status")" \
        "$((SECONDS - began))" "$(grep . "$output/$name.log" | tail -n 1 | tr '|' ' ' | cut -c 1-200)" >> "$output/table.md"
}

{
    echo "$(date -u +%F), commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown), $gpus GPUs:"
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | sort | uniq -c
    "$python" -c 'import paddle; print("Paddle", paddle.__version__, "CUDA", paddle.version.cuda())' 2> /dev/null
    printf '\n| what | result | seconds | last line |\n|---|---|---|---|\n'
} > "$output/table.md"

row core "$python" -m pytest -q -m core tests
row head "$python" tests/benchmarks/head.py --only table
for number in 1 "$ranks"; do
    row "throughput-$number" "$python" -m plsc run --ranks "$number" tests/benchmarks/throughput.py --batch 128 --steps 50
    if [ "$ranks" = 1 ]; then break; fi
done
row loop "$python" tests/benchmarks/loop.py
row checkpoint "$python" tests/benchmarks/checkpoint.py
cat "$output/table.md"
exit "$failed"

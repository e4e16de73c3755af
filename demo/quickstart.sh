#!/usr/bin/env bash
# Makes an environment, renders 1,000 characters, trains on two CPU ranks, tests on 250 characters never seen, draws.
set -euo pipefail
cd "$(dirname "$0")/.."
work="${PLSC_DEMO_DIR:-$PWD/demo/work}"
python="${PYTHON:-python3}"
mkdir -p "$work"

if [ ! -f "$work/venv/ready" ]; then
    echo "== installing into $work/venv"
    "$python" -m venv --clear "$work/venv"
    # Compiling every module of every package takes longer than compiling those that are imported.
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile ".[cpu,demo]"
    touch "$work/venv/ready"
fi
python="$work/venv/bin/python"
export PYTHONWARNINGS=ignore # Paddle's, about tools that only its developers need
run="$work/run-$(date +%Y%m%d-%H%M%S)"

echo "== rendering the glyphs"
"$python" -m plsc.data.glyphs --output "$work/glyphs"
echo "== training on two ranks"
"$python" -m plsc run --ranks 2 demo/train.py "$work/glyphs" "$run"
echo "== testing on characters that were not in training"
"$python" -m plsc run --ranks 2 demo/test.py "$work/glyphs" "$run"
"$python" demo/plot.py --run "$run" --dataset "$work/glyphs" --output "$run/result.png"
echo "== done: look at $run/result.png"

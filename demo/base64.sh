#!/usr/bin/env bash
# Base64 data from end to end, small: renders 40 characters into base64 parts, shuffles and splits them for two ranks, trains.
# bash demo/base64.sh FOLDER; PYTHON names a Python with plsc and matplotlib, such as the one demo/quickstart.sh makes.
set -euo pipefail
folder="$(realpath -m "${1:?usage: bash demo/base64.sh FOLDER}")"
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

echo "== rendering $folder/dataset"
"$python" -m plsc.data.glyphs --output "$folder/dataset" --classes 40 --images 10 --held-out 20 --pairs 100 --base64-parts 10
echo "== shuffling and splitting it for 2 ranks"
"$python" tools/process_base64_files.py --data_dir="$folder/dataset" --file_list=file_list.txt --nranks=2
echo "== training on 2 ranks: the script of the demo on image files, as it is"
"$python" -m plsc run --ranks 2 --set num_classes=40 --set train_batch_size=20 --set train_epochs=4 --set log_period=5 \
    --set with_test=true demo/train.py "$folder/dataset" "$folder/output"

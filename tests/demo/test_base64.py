"""demo/base64.sh, as a user starts it."""

import json
import os
import subprocess
import sys

from ranks import ROOT, TIMEOUT, environment


def test_base64_data_from_rendering_to_training(tmp_path):
    process = subprocess.run(
        ["bash", ROOT / "demo" / "base64.sh", "run"],
        cwd=tmp_path,
        env={**environment(), "PYTHON": sys.executable, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    folder = tmp_path / "run"
    manifest = json.loads((folder / "dataset" / "base64_manifest.json").read_text())
    assert (manifest["nranks"], manifest["samples"], len(manifest["sources"])) == (2, 400, 10)
    records = [json.loads(line) for line in (folder / "output" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "train"]
    assert losses[-1] < 0.85 * losses[0]
    assert "400 images" in process.stderr and os.listdir(folder / "output" / "3")

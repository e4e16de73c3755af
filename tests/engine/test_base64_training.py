"""Training on base64 data, on real processes."""

import json
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from ranks import start
from safetensors.numpy import load_file
from train_glyphs import small_entry

from plsc import Callback
from plsc.data.label_file import read_label_file
from plsc.data.sampler import epoch_indices
from plsc.data.sources import open_images
from plsc.storage.local import LocalStorage

OPTIONS = (
    'augmentation={"rotate": 10, "translate": 0.1, "crop": 0.5, "blur": 0.5, "jpeg": 0.5, "erasing": 0.5}',
    "log_period=1",
    "num_workers=2",
    "resume=true",
    "calc_acc=true",
)


def order_images(glyphs, split, jpegs, ranks, epoch, shuffle):
    """Writes a label.txt whose order makes each rank read the images of `epoch` as it reads the lines of base64."""
    images = read_label_file(str(glyphs), 12)
    labels = images.labels()
    names = {images.read(i): f"{images.paths[i]} {labels[i]}" for i in range(len(images))}
    rows = [""] * len(images)
    for rank in range(ranks):
        lines = open_images(str(split), 12, rank, ranks, shuffle=shuffle)
        order = lines.epoch_order(0, epoch, rank, ranks)
        for row, line in zip(epoch_indices(len(rows), 0, epoch, rank, ranks), order.tolist()):
            rows[row] = names[lines.read(line)]
    jpegs.mkdir(exist_ok=True)
    if not (jpegs / "images").exists():
        (jpegs / "images").symlink_to(glyphs / "images")
        (jpegs / "glyphs.bin").symlink_to(glyphs / "glyphs.bin")
    (jpegs / "label.txt").write_text("\n".join(rows))


def records_of(output):
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in record.items() if key not in ("images_per_second", "time")} for record in records
    ]


@pytest.mark.parametrize(("number", "epochs", "shuffle"), [(1, 1, "full"), (2, 2, "window")])
def test_losses_are_those_of_the_same_images_in_the_same_order(
    ranks, glyphs, base64_glyphs, tmp_path, number, epochs, shuffle
):
    chosen = f'data_format=["base64", "{shuffle}"]'
    ranks("train_glyphs.py", number, base64_glyphs, tmp_path / "base64", *OPTIONS, f"train_epochs={epochs}", chosen)
    for epoch in range(epochs):  # one order of the images serves one epoch
        order_images(glyphs, base64_glyphs, tmp_path / "jpegs", number, epoch, shuffle)
        ranks("train_glyphs.py", number, tmp_path / "jpegs", tmp_path / "jpeg", *OPTIONS, f"train_epochs={epoch + 1}")

    found, wanted = records_of(tmp_path / "base64"), records_of(tmp_path / "jpeg")
    assert sum(record["event"] == "train" for record in wanted) == epochs * 96 // 16 // number
    assert found == wanted  # losses, accuracies and tests, to the last digit
    for path in (tmp_path / "jpeg" / str(epochs - 1)).glob("*.safetensors"):
        other = load_file(tmp_path / "base64" / str(epochs - 1) / path.name)
        for name, tensor in load_file(path).items():
            np.testing.assert_array_equal(other[name], tensor, err_msg=f"{path.name}: {name}")


def test_a_split_for_another_number_of_ranks_ends_every_rank_with_one_line(base64_glyphs, tmp_path):
    process = start("train_glyphs.py", 3, base64_glyphs, tmp_path)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "split for 2 ranks and cannot be shared by 3; run python tools/process_base64_files.py" in process.stderr
    assert "--nranks=3" in process.stderr


def test_a_damaged_line_ends_training_with_an_error_that_names_it(base64_glyphs, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in base64_glyphs.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    lines = (data / "base64_rank_1").read_bytes().splitlines(True)
    lines[4] = lines[4][:200] + b"*" + lines[4][201:]
    (data / "base64_rank_1").write_bytes(b"".join(lines))
    process = start("train_glyphs.py", 2, data, tmp_path / "output")
    assert process.returncode == 1
    line = f"plsc: error: (rank 1: )?{re.escape(str(data))}/base64_rank_1:5: a character that is not base64"
    assert re.match(line, process.stderr.splitlines()[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_file_and_the_run_resumes(base64_glyphs, tmp_path, monkeypatch, number):
    release, read = threading.Event(), LocalStorage.read

    class Signal(Callback):
        """Sends the signal once training has begun, which handles it."""

        def on_train_begin(self, run):
            if not release.is_set():
                threading.Timer(0.3, os.kill, (os.getpid(), number)).start()

    def entry():
        ins = small_entry(str(base64_glyphs), str(tmp_path / "output"))
        ins.set_dataset_dir(f"file://{base64_glyphs}")
        ins.set_data_cache(str(tmp_path / "cache"), "1GB")
        ins.set_model_name("GlyphNet")
        ins.set_with_test(False)
        ins.set_train_epochs(1)
        ins.set_resume(True)
        ins.add_callback(Signal())
        return ins

    def hanging(self, path, offset, count):
        if "base64_rank_1" in path:
            release.wait(60)
        yield from read(self, path, offset, count)

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "read", hanging)
        with pytest.raises(SystemExit) as ended:
            entry().train()
    release.set()
    assert ended.value.code == 128 + number and time.monotonic() - began < 50
    assert (tmp_path / "output" / "step_0" / "meta.json").exists()
    assert entry().train()["epochs"] == 1

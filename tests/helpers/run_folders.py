"""Makes the folders that runs leave behind, without training."""

import json
import math

import numpy as np


def make_run(
    folder, steps=40, tests=3, set_name="lfw", lr=0.1, images=True, run_json=True, seed=0, bad_loss_at=(), scale=None
):
    """Makes the folder of a run that has learnt: metrics.jsonl, run.json, <set>_pairs.npz."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, steps + 1):
        loss = math.nan if step in bad_loss_at else 20 * math.exp(-step / steps) + rng.random()
        record = {"event": "train", "step": step, "epoch": 0, "time": 1e9 + step, "lr": lr, "loss": loss}
        record.update(images_per_second=100 + rng.random(), skipped_steps=len(bad_loss_at))
        lines.append({**record, **({} if scale is None else {"loss_scaling": scale})})
        period = steps // max(1, tests)
        if tests and step % period == 0:
            values = {"accuracy": 0.9 + step / steps / 20, "std": 0.01, "tar@1e-3": 0.5, "xnorm": 20.0}
            values["at_far"] = {"1e-4": 0.25}
            lines.append({"event": "test", "step": step, "epoch": step // period - 1, set_name: values})
        lines.append({"event": "mine", "step": step, "note": "not for the report"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if run_json:
        settings = {
            "lr": lr,
            "num_classes": 12,
            "dataset_dir": "data",
            "augmentation": {"mirror": False, "rotate": 0.0},
        }
        machine = {"cpu": "A processor", "cores": 2, "memory": 8e9, "gpu": None, "paddle": "3.3.1"}
        record = {"run": "abc", "started": "2001-09-09T01:46:40+00:00", "resumed": 0, "ranks": 2}
        record.update(settings=settings, objects={"model": "TinyNet"}, machine=machine)
        (folder / "run.json").write_text(json.dumps(record))
    if tests:
        np.savez(folder / f"{set_name}_pairs.npz", **pairs(rng, images))
    return folder


def pairs(rng, images=True, number=300):
    """Returns the content of `<set>_pairs.npz`; the first pairs of each kind are the hard ones."""
    issame = np.arange(number) % 2 == 0
    similarity = np.clip(np.where(issame, rng.normal(0.6, 0.2, number), rng.normal(0, 0.2, number)), -1, 1)
    content = {"similarity": similarity, "issame": issame}
    if images:
        identities = np.repeat(np.arange(8), 5)
        embeddings = rng.normal(size=(8, 16))[identities] + 0.2 * rng.normal(size=(40, 16))
        content.update(
            hard_pairs=np.arange(8),
            hard_images=rng.integers(0, 255, (8, 2, 32, 32, 3), dtype=np.uint8),
            hard_names=np.array([[f"left {one}", f"right {one}"] for one in range(8)]),
            map_embeddings=(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype("float32"),
            map_identities=np.array([f"who {one}" for one in identities]),
        )
    return content

"""Trains two steps on this number of ranks and saves, or loads what other numbers of ranks saved and checks every row.

`reshard.py OUTPUT save` writes `<OUTPUT>/<ranks>/<case>/0`; `reshard.py OUTPUT load N...` loads each case of N ranks
and writes `<OUTPUT>/<ranks>_<rank>.json` with the bytes read.
"""

import json
import sys
from pathlib import Path

import numpy as np
import paddle
from safetensors.numpy import load_file

from plsc import checkpoint, optim, parallel
from plsc.amp import DynamicLossScaler
from plsc.config import Config
from plsc.engine.state import TrainingState
from plsc.heads import build_head

DIM = 4
# (loss, classes, optimizer); fewer classes than ranks, and counts that do not divide
CASES = [
    ("dist_arcface", 11, "Momentum"),
    ("dist_softmax", 11, "Adam"),
    ("dist_curricularface", 7, "AdamW"),
    ("dist_softmax", 2, "Momentum"),
    ("dist_magface", 3, "Adam"),
    ("softmax", 5, "Adam"),
    ("dist_arcface", 6, "ASGD"),
]
CASES = [case for case in CASES if hasattr(paddle.optimizer, case[2])]


def state_of(loss_type, classes, optimizer, seed):
    config = Config(loss_type=loss_type, num_classes=classes, emb_dim=DIM, lr_steps=())
    paddle.seed(0)
    backbone, head = paddle.nn.Linear(3, DIM), build_head(loss_type, classes, DIM, seed=seed)
    if optimizer == "ASGD":
        config.optimizer = lambda parameters: paddle.optimizer.ASGD(0.1, batch_num=2, parameters=parameters)
    elif optimizer != "Momentum":
        config.optimizer = lambda parameters: getattr(paddle.optimizer, optimizer)(0.1, parameters=parameters)
    built = optim.build_optimizer(config, backbone.parameters() + head.parameters(), 10)
    updates = optim.take_rows(built, dict(head.named_parameters()))
    return TrainingState(config, backbone, head, built, updates, DynamicLossScaler(config.mixed_precision), 10)


def step(state, number):
    rng = np.random.default_rng((number, parallel.rank()))
    embedding = state.backbone(paddle.to_tensor(rng.normal(size=(4, 3)).astype("float32")))
    out = state.head(embedding.detach(), rng.integers(0, state.head.num_classes, 4))
    embedding.backward(out.embedding_grad)
    for parameter in state.backbone.parameters():
        parallel.all_reduce_sum(parameter.grad)
    state.head.backward(state.row_updates.get("weight"), state.row_updates.get("bias"))
    optim.step(state.optimizer)
    optim.clear_grad(state.backbone.parameters() + state.head.parameters())
    state.schedules.step()
    state.progress.step += 1


def save(output):
    for number, case in enumerate(CASES):
        state = state_of(*case, seed=1)
        for at in range(3):
            step(state, at)
        writer = checkpoint.Writer(output / str(parallel.world_size()) / str(number))
        writer.start("0", state.files(), state.meta(), state.rank_rng())
        writer.finish()


def load(output, sources):
    read = {}
    for source in sources:
        for number, case in enumerate(CASES):
            found = checkpoint.open_checkpoint(output / source / str(number) / "0")
            state = state_of(*case, seed=2)
            head = state.head
            state.load(found)
            parts = [load_file(found.folder / checkpoint.head_file(r)) for r in range(len(found.head_rows))]
            own = state.files()
            own = own.get(checkpoint.head_file(parallel.rank()), {})
            assert not head.sharded or own.keys() >= ({"weight"} if head.weight is not None else set())
            for name, value in own.items():
                whole = [part[name] for part in parts if name in part]
                rows = name in found.meta["by_rows"]
                expected = np.concatenate(whole)[head.lower : head.upper] if rows else whole[0]
                np.testing.assert_array_equal(value, expected, err_msg=f"{case} {source}: {name}")
                assert not name.endswith(("velocity", "moment1", "/d", "/y")) or np.abs(value).max() > 0
            wanted = dict(found.meta, ranks=0, head_rows=0)
            if case[2] == "Momentum":  # its default rate is scaled by this number of ranks
                wanted["learning_rate"] = optim.learning_rate_at(state.config, found.meta["step"], 10)
            if parallel.rank() == 0:  # whose meta.json it is
                assert dict(state.meta(), ranks=0, head_rows=0, test=None) == {key: wanted[key] for key in state.meta()}
            step(state, 7)  # training can continue
            read[f"{source} {number}"] = checkpoint.load_head(found, build_head(*case[:2], DIM))
    Path(output, f"{parallel.world_size()}_{parallel.rank()}.json").write_text(json.dumps(read))


def main(output, what, *sources):
    parallel.initialise()
    save(Path(output)) if what == "save" else load(Path(output), sources)


if __name__ == "__main__":
    main(*sys.argv[1:])

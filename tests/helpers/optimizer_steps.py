"""Trains a small network with every optimizer, clip and parameter setting of Paddle, on this number of ranks.

`optimizer_steps.py OUTPUT` writes `<OUTPUT>/<ranks>.npz` with the final weights of every case, or the message of its
error. `expected()` trains the same cases with Paddle alone: one process, and the logits of all classes.
"""

import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import nn, optimizer
from paddle.incubate import LookAhead
from paddle.incubate.optimizer import LarsMomentumOptimizer
from paddle.regularizer import L1Decay, L2Decay

from plsc import parallel
from plsc.config import Config
from plsc.engine.updates import Updates
from plsc.errors import ConfigError
from plsc.heads import build_head
from plsc.optim import Schedules

CLASSES, DIM, FEATURES, BATCH, STEPS = 7, 4, 5, 6, 2


def kinds():
    """Returns functions of parameters that make an optimizer, by name."""

    def made(kind, rate=0.05, **options):
        return lambda parameters, **more: kind(rate, parameters=parameters, **options, **more)

    names = ["SGD", "Adagrad", "RMSProp", "Adam", "AdamW", "Adamax", "Adadelta", "NAdam", "RAdam", "Rprop", "ASGD"]
    found = {name: made(getattr(optimizer, name)) for name in names if hasattr(optimizer, name)}
    found["Lamb"] = made(optimizer.Lamb)
    found["Momentum"] = made(optimizer.Momentum, momentum=0.9)
    found["Momentum nesterov"] = made(optimizer.Momentum, momentum=0.9, use_nesterov=True)
    found["Momentum multi tensor"] = made(optimizer.Momentum, use_multi_tensor=True)
    found["Adam multi tensor"] = made(optimizer.Adam, use_multi_tensor=True)
    found["Lars"] = lambda parameters, **more: LarsMomentumOptimizer(0.5, 0.9, parameter_list=parameters, **more)
    found["LookAhead"] = lambda parameters, **more: LookAhead(found["SGD"](parameters, **more), k=2)
    found["LookAhead schedule"] = lambda parameters, **more: LookAhead(
        optimizer.Momentum(optimizer.lr.StepDecay(0.1, 1, 0.5), parameters=parameters, **more), k=2
    )
    return found


def cases():
    """Returns {name: (loss type, function of parameters, settings of ParamAttr for weight, bias and backbone)}."""
    made, found = kinds(), {}
    clips = {
        "": None,
        "value": nn.ClipGradByValue(0.02),
        "norm": nn.ClipGradByNorm(0.1),
        "global": nn.ClipGradByGlobalNorm(0.1),
    }
    for name, make in made.items():
        for clip in clips:
            # Few optimizers scale with their gradients; for the others one clip tells whether it is applied.
            if clip in ("", "norm") or name.startswith(("SGD", "Momentum", "AdamW", "LookAhead")):
                found[f"{name} {clip}"] = ("softmax", _with(make, grad_clip=clips[clip]), {})
    for name in ("SGD", "Momentum", "AdamW"):
        for clip in ("value", "norm", "global"):
            for part in ("weight", "bias", "backbone"):
                settings = {part: {"need_clip": False}}
                found[f"{name} {clip} not {part}"] = ("softmax", _with(made[name], grad_clip=clips[clip]), settings)
        for decay in (L1Decay(0.05), L2Decay(0.05)):
            kind = type(decay).__name__
            if name != "AdamW":
                found[f"{name} {kind}"] = ("softmax", _with(made[name], weight_decay=decay), {})
            found[f"{name} {kind} of the weight"] = ("softmax", made[name], {"weight": {"regularizer": decay}})
        found[f"{name} slow bias"] = ("softmax", made[name], {"bias": {"learning_rate": 0.1}})
        found[f"{name} frozen weight"] = (
            "softmax",
            _with(made[name], grad_clip=clips["global"]),
            {"weight": {"trainable": False}},
        )
        found[f"{name} groups"] = ("softmax", lambda parameters, make=made[name]: make(_groups(parameters)), {})
        clipped = _with(made[name], grad_clip=clips["global"])
        found[f"{name} groups global"] = ("softmax", lambda parameters, make=clipped: make(_groups(parameters)), {})
        clipped = _with(made[name], grad_clip=clips["norm"])
        found[f"{name} groups norm"] = ("softmax", lambda parameters, make=clipped: make(_groups(parameters)), {})
        found[f"{name} no bias norm"] = ("softmax no bias", _with(made[name], grad_clip=clips["norm"]), {})
        for clip in ("norm", "global"):  # the third rank has no rows
            found[f"{name} two classes {clip}"] = ("softmax two classes", _with(made[name], grad_clip=clips[clip]), {})
    found["AdamW decays weights alone"] = (
        "softmax",
        lambda parameters: made["AdamW"](
            parameters, weight_decay=0.5, apply_decay_param_fun={p.name for p in parameters if p.ndim == 2}.__contains__
        ),
        {},
    )
    return found


def _with(make, **more):
    return lambda parameters: make(parameters, **more)


def _groups(parameters):
    """Returns a group with its own rate and decay, and one with the optimizer's; either may lack the head's part."""
    groups = [parameters[:1], parameters[1:]]
    return [{"params": groups[0], "weight_decay": 0.1, "learning_rate": 0.5}, {"params": groups[1]}]


def backbone_of(settings):
    paddle.seed(3)
    return nn.Linear(FEATURES, DIM, paddle.ParamAttr(**settings.get("backbone", {})))


def classes_of(loss_type):
    return 2 if "two classes" in loss_type else CLASSES


def data(step, classes):
    rng = np.random.default_rng(step)
    return rng.normal(size=(BATCH, FEATURES)).astype("float32") * 3, rng.integers(0, classes, BATCH)


def attributes(settings, loss_type):
    weight, bias = (paddle.ParamAttr(**settings.get(part, {})) for part in ("weight", "bias"))
    return weight, (False if loss_type.endswith("no bias") else bias)


def expected(case):
    """Returns the final weights of a case, trained with Paddle alone: backbone, weight and bias."""
    loss_type, make, settings = case
    backbone, classes = backbone_of(settings), classes_of(loss_type)
    weight, bias = attributes(settings, loss_type)
    first = build_head("softmax", classes, DIM, seed=1).weight.numpy()
    # [C, D], as the head has it: the values of some optimizers depend on nothing else of the shape
    initializer = nn.initializer.Assign(first)
    weight = paddle.create_parameter([classes, DIM], "float32", attr=_initialised(weight, initializer))
    parameters = [*backbone.parameters(), weight]
    bias = None if bias is False else paddle.create_parameter([classes], "float32", attr=bias, is_bias=True)
    parameters += [] if bias is None else [bias]
    used = make([p for p in parameters if not p.stop_gradient])
    rate = used._learning_rate if not hasattr(used, "inner_optimizer") else used.inner_optimizer._learning_rate
    for step in range(STEPS):
        images, labels = data(step, classes)
        logits = paddle.matmul(backbone(paddle.to_tensor(images)), weight, transpose_y=True)
        logits = logits if bias is None else logits + bias
        nn.functional.cross_entropy(logits, paddle.to_tensor(labels)).backward()
        used.step()
        used.clear_grad()
        if not isinstance(rate, float):
            rate.step()
    return [parameter.numpy() for parameter in parameters]


def _initialised(attribute, initializer):
    attribute.initializer = initializer
    return attribute


def trained(case):
    """Returns the final weights of a case, trained with plsc on all ranks; the head's are those of all shards."""
    loss_type, make, settings = case
    backbone, classes = backbone_of(settings), classes_of(loss_type)
    config = Config(loss_type="dist_softmax", num_classes=classes, emb_dim=DIM, optimizer=make)
    config.param_attr, config.bias_attr = attributes(settings, loss_type)
    head = build_head("dist_softmax", classes, DIM, seed=1, param_attr=config.param_attr, bias_attr=config.bias_attr)
    updates = Updates(config, backbone, head, None)
    schedules = Schedules(updates.optimizer)
    rank, ranks = parallel.rank(), parallel.world_size()
    for step in range(STEPS):
        images, labels = (part[rank * BATCH // ranks : (rank + 1) * BATCH // ranks] for part in data(step, classes))
        embedding = backbone(paddle.to_tensor(images))
        output = head(embedding.detach(), labels)
        embedding.backward(output.embedding_grad)
        for parameter in backbone.parameters():
            parallel.all_reduce_sum(parameter.grad)
        updates.clip_and_apply()
        updates.clear_grad()
        schedules.step()
    own = {name: parameter.numpy() for name, parameter in head.named_parameters()}
    shards = parallel.all_gather_object(own, "a test")
    whole = [np.concatenate([shard[name] for shard in shards if name in shard]) for name in shards[0]]
    return [*(parameter.numpy() for parameter in backbone.parameters()), *whole]


def main(output):
    parallel.initialise()
    results = {}
    for name, case in cases().items():
        try:
            for number, array in enumerate(trained(case)):
                results[f"{name}/{number}"] = array
        except ConfigError as problem:
            results[f"{name}/error"] = np.array(str(problem))
    if parallel.rank() == 0:
        np.savez(Path(output, f"{parallel.world_size()}.npz"), **results)


if __name__ == "__main__":
    main(*sys.argv[1:])

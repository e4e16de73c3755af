"""Writes files as `torch.save` does, and hostile ones, without PyTorch."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np

STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}


class Global:
    """A class or a function that a pickle names."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """A call in a pickle."""

    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments


class Named:
    """What a pickle refers to by a persistent name, such as a storage."""

    def __init__(self, name):
        self.name = name


class _Storage(Named):
    def __init__(self, key, array):
        super().__init__(("storage", Global("torch", STORAGES[array.dtype.str[1:]]), key, "cpu", array.size))
        self.key, self.array = key, array


class _Pickler(pickle._Pickler):
    """Writes globals, calls and persistent names where their stand-ins are."""

    def persistent_id(self, thing):
        return thing.name if isinstance(thing, Named) else None

    def save(self, thing, save_persistent_id=True):
        if isinstance(thing, Global):
            self.write(pickle.GLOBAL + f"{thing.module}\n{thing.name}\n".encode())
        elif isinstance(thing, Call):
            self.save(thing.function)
            self.save(thing.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(thing, save_persistent_id)


def _tensors(state):
    """Returns a state dict with stand-ins for its arrays, and their storages."""
    content, storages = {}, []
    for number, (name, array) in enumerate(state.items()):
        storage = _Storage(str(number), np.array(array, order="C"))
        strides = [stride // array.itemsize for stride in storage.array.strides]
        arguments = (storage, 0, array.shape, tuple(strides), False, Call(Global("collections", "OrderedDict"), ()))
        content[name] = Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)
        storages.append(storage)
    return content, storages


def dump(content):
    """Returns a pickle of protocol 2."""
    stream = io.BytesIO()
    _Pickler(stream, 2).dump(content)
    return stream.getvalue()


def write_zip(path, state):
    """Writes the form of PyTorch 1.6 and later."""
    content, storages = _tensors(state)
    write_archive(path, dump(content), {one.key: one.array.tobytes() for one in storages})


def write_archive(path, text, data=(), **others):
    """Writes an archive with a given pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", text)
        for key, raw in dict(data).items():
            archive.writestr(f"archive/data/{key}", raw)
        for name, raw in others.items():
            archive.writestr(f"archive/{name}", raw)


def write_legacy(path, state):
    """Writes the form before PyTorch 1.6."""
    content, storages = _tensors(state)
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, machine):
            pickle.dump(part, file, 2)
        file.write(dump(content))
        pickle.dump([one.key for one in storages], file, 2)
        for one in storages:
            file.write(struct.pack("<q", one.array.size) + one.array.tobytes())


def named_as_arcface(model_state, depths):
    """Returns the tensors of an IResNet of plsc as arcface_torch names and shapes them."""
    state = OrderedDict()

    def norm(theirs, ours):
        pairs = {"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"}
        for kind, own in pairs.items():
            if f"{ours}.{own}" in model_state:
                state[f"{theirs}.{kind}"] = model_state[f"{ours}.{own}"]
        state[f"{theirs}.num_batches_tracked"] = np.array(7)

    state["conv1.weight"] = model_state["stem.0.weight"]
    norm("bn1", "stem.1")
    state["prelu.weight"] = model_state["stem.2._weight"]
    number = 0
    for stage, depth in enumerate(depths, 1):
        for index in range(depth):
            theirs, ours = f"layer{stage}.{index}", f"blocks.{number}"
            norm(f"{theirs}.bn1", f"{ours}.residual.0")
            state[f"{theirs}.conv1.weight"] = model_state[f"{ours}.residual.1.weight"]
            norm(f"{theirs}.bn2", f"{ours}.residual.2")
            state[f"{theirs}.prelu.weight"] = model_state[f"{ours}.residual.3._weight"]
            state[f"{theirs}.conv2.weight"] = model_state[f"{ours}.residual.4.weight"]
            norm(f"{theirs}.bn3", f"{ours}.residual.5")
            if index == 0:
                state[f"{theirs}.downsample.0.weight"] = model_state[f"{ours}.shortcut.0.weight"]
                norm(f"{theirs}.downsample.1", f"{ours}.shortcut.1")
            number += 1
    norm("bn2", "norm")
    state["fc.weight"], state["fc.bias"] = model_state["fc.weight"].T, model_state["fc.bias"]
    norm("features", "features")
    state["features.bias"] = model_state["features_bias"]
    return state

"""Reads safetensors files of other programs, which have no checksums, and may hold bfloat16."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np

from plsc.checkpoint.tensor_file import LARGEST_HEADER, parse_header
from plsc.errors import reason_of
from plsc.machine.bfloat16 import BFLOAT16, floats_of_bfloat16
from plsc.weights.source import Weights, damaged, open_file


class SafetensorsFile(Weights):
    """The tensors of a safetensors file. Names of Paddle's statistics show that Paddle wrote it, and not PyTorch.

    Args:
        path: The file.

    Raises:
        ConfigError: It is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_file(path)
        try:
            size = os.fstat(self._file.fileno()).st_size
            (length,) = struct.unpack("<Q", self._file.read(8))
            if length > min(LARGEST_HEADER, size - 8):
                raise ValueError("its header is too long")
            self._tensors = parse_header(self._file.read(length), size)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as problem:
            self._file.close()
            raise damaged(path, reason_of(problem)) from None
        self.shapes = {name: shape for name, (_, shape, _) in self._tensors.items()}
        self.of_torch = not any(name.endswith(("_mean", "_variance")) for name in self.shapes)

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor; see `Weights.read`."""
        dtype, shape, begin = self._tensors[name]
        self._file.seek(begin)
        data = self._file.read(dtype.itemsize * math.prod(shape))
        if len(data) < dtype.itemsize * math.prod(shape):
            raise damaged(self.path, "it ends too early")
        values = np.frombuffer(data, dtype).reshape(shape)
        return floats_of_bfloat16(values) if dtype == BFLOAT16 else values

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

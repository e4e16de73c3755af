"""Checkpoints: folders of safetensors files and a meta.json.

They are written under a temporary name and renamed, and checked when they are read. They contain no pickle.
"""

from plsc.checkpoint.folder import (
    AVERAGE,
    BACKBONE,
    META,
    OPTIMIZER,
    Age,
    Checkpoint,
    head_file,
    head_number,
    list_checkpoints,
    locked,
    open_checkpoint,
    parse_meta,
    recover,
)
from plsc.checkpoint.load import (
    HeadFiles,
    check_heads,
    load_backbone,
    load_common_head,
    load_head,
    load_head_optimizer,
    load_named_head,
    load_optimizer,
    read_average,
    row_axis,
)
from plsc.checkpoint.sharing import leader_of
from plsc.checkpoint.snapshot import host_array
from plsc.checkpoint.tensor_file import DamagedError, Stream
from plsc.checkpoint.writer import Saved, Writer, saved_by_run

__all__ = [
    "AVERAGE",
    "BACKBONE",
    "META",
    "OPTIMIZER",
    "Age",
    "Checkpoint",
    "DamagedError",
    "HeadFiles",
    "Saved",
    "Stream",
    "Writer",
    "check_heads",
    "head_file",
    "head_number",
    "host_array",
    "leader_of",
    "list_checkpoints",
    "load_backbone",
    "load_common_head",
    "load_head",
    "load_head_optimizer",
    "load_named_head",
    "load_optimizer",
    "locked",
    "open_checkpoint",
    "parse_meta",
    "read_average",
    "recover",
    "row_axis",
    "saved_by_run",
]

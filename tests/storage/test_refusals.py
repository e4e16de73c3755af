"""Refusals of Hadoop, by its words; tests of HDFS have a server say some of them."""

import pytest

from plsc.storage import StorageUnavailableError
from plsc.storage.refusals import refusal


@pytest.mark.parametrize(
    "kind, text, passes, advice",
    [
        (
            "SafeModeException",
            "Cannot create directory /a. Name node is in safe mode.",
            True,
            "hdfs dfsadmin -safemode",
        ),
        (
            "IOException",
            "File /a could only be replicated to 0 nodes instead of minReplication (=1).",
            True,
            "have room",
        ),
        ("IOException", "File /a could only be written to 0 of the 1 minReplication nodes.", True, "have room"),
        ("DSQuotaExceededException", "The DiskSpace quota of /a is exceeded: quota = 1 B", False, "a larger quota"),
        ("IOException", "Quota by storage type : SSD on path : /a is exceeded.", False, "a larger quota"),
        ("IOException", "Failed to rename /quota/a", False, ""),
        ("StandbyException", "Operation category READ is not supported in state standby", True, ""),
    ],
)
def test_refusals_of_hadoop_say_what_to_do(kind, text, passes, advice):
    problem = refusal("hdfs://nn/a", kind, text)
    assert isinstance(problem, StorageUnavailableError) == passes
    said = str(problem).removeprefix(f"hdfs://nn/a: {text.rstrip('.')}")
    assert advice in said and (said.startswith("; ") if advice else said in ("", "."))

"""The credentials that the environment gives to commands: no option takes a password, which others could read."""

from __future__ import annotations

import functools
import getpass
import os
from typing import Optional

PASSWORD = "PLSC_HDFS_PASSWORD"


@functools.cache
def _password() -> str:
    return os.environ.pop(PASSWORD, "")  # so that child processes do not see it


def ugi_of_environment() -> Optional[str]:
    """Returns `name,password` for a gateway of HDFS; None if the environment has no password."""
    if not _password():
        return None
    return f"{os.environ.get('HADOOP_USER_NAME') or getpass.getuser()},{_password()}"

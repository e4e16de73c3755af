"""The credentials that the environment gives to commands: no option takes a password, which others could read."""

from __future__ import annotations

import functools
import getpass
import os
from typing import Optional

PASSWORD = "PLSC_HDFS_PASSWORD"


@functools.cache
def password() -> str:
    """Returns the password of a gateway of HDFS, or the secret of an access key; '' if the environment has none."""
    return os.environ.pop(PASSWORD, "")  # so that child processes do not see it


def ugi_of_environment() -> Optional[str]:
    """Returns `name,password` for a gateway of HDFS; None if the environment has no password."""
    if not password():
        return None
    return f"{os.environ.get('HADOOP_USER_NAME') or getpass.getuser()},{password()}"

"""A session of Apache Spark: how it starts and ends, and its errors in one line."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from plsc.errors import ConfigError, DataError, one_line
from plsc.storage.hadoop import java_message


@contextlib.contextmanager
def spark_context(name: str, sent: Sequence[ModuleType] = ()) -> Iterator[Any]:
    """Yields the context of the running session, or of a new one that is stopped at the end.

    Args:
        name: What Spark's pages call the application.
        sent: Modules whose functions are sent to executors as they are, so that these need not have the modules.

    Raises:
        ConfigError: There is no PySpark, or Spark does not start.
    """
    try:
        from pyspark import cloudpickle
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise ConfigError(
            "--engine spark: PySpark is not installed; run pip install '.[spark]' in the plsc clone"
        ) from None
    running, on_interrupt = SparkSession.getActiveSession(), signal.getsignal(signal.SIGINT)
    if running is None:
        _check_user()
    try:
        session = running or SparkSession.builder.appName(name).getOrCreate()
    except (PySparkException, OSError) as error:
        raise ConfigError(
            f"--engine spark: Spark does not start ({str(error).splitlines()[0]}); PySpark 3.5 needs Java 8, "
            "11 or 17, and PySpark 4 needs Java 17 or 21"
        ) from error
    context = session.sparkContext
    if str(context.master).startswith("local") and "PYSPARK_PYTHON" not in os.environ:
        context.pythonExec = sys.executable
    for module in sent:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield context
    finally:
        if running is None:
            session.stop()
            restore_interrupt(on_interrupt)


def _check_user() -> None:
    """Raises ConfigError if this user has no name, as in many containers: Hadoop's log-in fails without one."""
    user = os.geteuid()
    try:
        pwd.getpwuid(user)
    except KeyError:
        raise ConfigError(
            f"--engine spark: user {user} has no entry in /etc/passwd, which Hadoop needs; add one such as "
            f"'name:x:{user}:{os.getegid()}::/tmp:/bin/sh', start the container as another user, or use --engine local"
        ) from None


def restore_interrupt(handler: Any) -> None:
    """Restores the handler of Ctrl-C: PySpark leaves one behind that fails once its session has ended."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def spark_errors() -> Iterator[None]:
    """Turns a failure of Spark into a DataError of one line."""
    from py4j.protocol import Py4JError, Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:  # Some exceptions of Java come in this form.
        reason = one_line(str(error).partition("\n")[0])
        raise DataError(f"Spark failed ({reason}); its log says more, and nothing was changed") from error
    except Py4JJavaError as error:
        raise DataError(f"Spark failed ({java_message(error)}); its log says more, and nothing was changed") from error
    except Py4JError as error:
        raise DataError(f"Spark ended early ({str(error).splitlines()[0]}); its log says more") from error

"""Worker processes that take numbered tasks in order and return one result each. A single worker is this process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from plsc.errors import DataError, PlscError
from plsc.machine.signals import heeded


class Tasks:
    """A worker's view of the tasks: it yields their numbers, takes reports of progress, and can stop the work.

    Tasks are handed out in rising order. When one of them fails, all those before it are done or under way.
    """

    def __init__(self, count: int, watch: Callable[[int], None]) -> None:
        self._count = count
        self._watch = watch
        self._next = 0
        self._reported = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            number = self._take()
            if number >= self._count:
                return
            yield number

    def report(self, amount: int) -> None:
        """Adds `amount` to what is done."""
        self._reported += amount
        self._watch(self._reported)

    def stop(self) -> None:
        """Keeps every worker from getting another task."""
        self._next = self._count

    def _take(self) -> int:
        self._next += 1
        return self._next - 1


class _SharedTasks(Tasks):
    """The tasks of several processes."""

    def __init__(self, count: int, workers: int, context: Any) -> None:
        super().__init__(count, lambda done: None)
        self.worker = 0
        self._counter = context.Value("q", 0)
        self._done = context.RawArray("q", workers)
        self._parent = os.getpid()

    def done(self) -> int:
        """Returns what all workers have reported."""
        return sum(self._done)

    def report(self, amount: int) -> None:
        self._done[self.worker] += amount
        if os.getppid() != self._parent:  # the parent was killed, so that nothing would end this process
            os._exit(1)

    def stop(self) -> None:
        with self._counter.get_lock():
            self._counter.value = self._count

    def _take(self) -> int:
        with self._counter.get_lock():
            self._counter.value += 1
            return self._counter.value - 1


def run_workers(
    function: Callable[[Tasks], Any],
    count: int,
    workers: int,
    watch: Callable[[int], None],
    advice: str = "if the machine ran out of memory, give a smaller --memory or fewer --workers, and run again",
) -> list[Any]:
    """Calls `function(tasks)` in each of `workers` processes and returns their results.

    Args:
        function: The work of a worker.
        count: The number of tasks, which are numbered from 0.
        workers: The number of processes to start. A single one runs in this process.
        watch: A function that is called now and then with what all workers have reported.
        advice: What to do when a worker was killed, for the error message.

    Raises:
        PlscError: A worker raised it, or was killed. The other workers are ended first.
        OSError: A worker raised it.
    """
    if workers == 1:
        return [function(Tasks(count, watch))]
    # Forked processes share modules and settings, and the caller has no threads.
    context = multiprocessing.get_context("fork")
    tasks = _SharedTasks(count, workers, context)
    processes, pipes = [], []
    try:
        for worker in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            tasks.worker = worker
            process = context.Process(target=_work, args=(function, tasks, sender), daemon=True)
            process.start()
            sender.close()
            processes.append(process)
            pipes.append(receiver)
        return _collect(tasks, processes, pipes, watch, advice)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def _collect(
    tasks: _SharedTasks, processes: list[Any], pipes: list[Any], watch: Callable[[int], None], advice: str
) -> list[Any]:
    from multiprocessing.connection import wait

    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting: list[Any] = wait([pipe for worker, pipe in enumerate(pipes) if worker not in results], 0.2)
        for pipe in waiting:
            worker = pipes.index(pipe)
            try:
                failed, results[worker] = pipe.recv()
            except EOFError:
                processes[worker].join()
                raise DataError(
                    f"a worker process ended early (exit code {processes[worker].exitcode}); {advice}"
                ) from None
            if failed:
                raise results[worker]
        watch(tasks.done())
    return [results[worker] for worker in range(len(pipes))]


def _work(function: Callable[[Tasks], Any], tasks: _SharedTasks, pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    for number in heeded([signal.SIGTERM, signal.SIGHUP]):
        signal.signal(number, signal.SIG_DFL)
    try:
        answer = (False, function(tasks))
    except (PlscError, OSError) as problem:
        answer = (True, problem)
    pipe.send(answer)

"""Run small tasks on as many threads as torch uses; what they compute must not depend on who runs them."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np
import torch

Task = Callable[[], None]

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
_of_pool = threading.local()
_held = {"depth": 0, "threads": 0}


def run(tasks: Iterable[Task], *, threads: int | None = None) -> None:
    """Run every task on a pool of threads, or here if there is one only; return when the last has ended.

    The first exception, in whichever thread, stops the rest and is raised here; so does Ctrl-C. When this
    returns or raises, no task is running any more.

    Args:
        tasks: Tasks in any number; drawn one by one, so that a generator may describe a model of any size.
        threads: Number of threads; `torch.get_num_threads()` when None.
    """
    count = torch.get_num_threads() if threads is None else threads
    rest = iter(tasks)
    first = list(itertools.islice(rest, 2))
    # A task that runs tasks of its own does so alone: the pool's threads may all be waiting for such.
    if count <= 1 or len(first) < 2 or getattr(_of_pool, "member", False):
        with _quiet():
            for task in itertools.chain(first, rest):
                task()
        return
    queue = _Queue(itertools.chain(first, rest))
    # This thread is one of them: on a pool of two the other needs to be woken, not both.
    helpers = [_pool(count - 1).submit(queue.work) for _ in range(count - 1)]
    try:
        queue.work()
        wait(helpers)
    finally:
        queue.close()
        wait(helpers)
    for helper in helpers:
        helper.result()


def _quiet() -> np.errstate:
    """An underflow in a tail is nobody's error, whatever the caller's settings are."""
    return np.errstate(all="ignore")


class _Queue:
    """An iterator of tasks that several threads empty together."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks: Iterator[Task] = iter(tasks)
        self._lock = threading.Lock()
        self._closed = False

    def next(self) -> Task | None:
        with self._lock:
            return None if self._closed else next(self._tasks, None)

    def close(self) -> None:
        self._closed = True

    def work(self) -> None:
        member, _of_pool.member = getattr(_of_pool, "member", False), True
        try:
            with _quiet():
                while (task := self.next()) is not None:
                    task()
        except BaseException:
            self.close()
            raise
        finally:
            _of_pool.member = member


@contextmanager
def single_threaded() -> Iterator[int]:
    """Let torch's own operations run on one thread each, everywhere, until the block ends.

    The order of the sums in a matrix product, and so its last places, may depend on the number of threads
    that the library splits it over. torch has one setting for all threads of the process; this puts the
    user's back.

    Yields:
        The number of threads that the user allows.
    """
    with _lock:
        _held["depth"] += 1
        if _held["depth"] == 1:
            _held["threads"] = torch.get_num_threads()
            torch.set_num_threads(1)
    try:
        yield _held["threads"]
    finally:
        with _lock:
            _held["depth"] -= 1
            if _held["depth"] == 0:
                torch.set_num_threads(_held["threads"])


def _pool(size: int) -> ThreadPoolExecutor:
    with _lock:
        if size not in _pools:
            _pools[size] = ThreadPoolExecutor(size, "isometry")
        return _pools[size]


# A forked child inherits the pools but not their threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)

"""The kernels' thread pool: every index once, any mixture of callers and nesting, no cost for the idle or the busy."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge.core.weight import Affine
from edge.kernels import lib, pack
from edge.kernels.reference import linear

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, TASK, ctypes.c_void_p)


def run(pool, count, task) -> None:
    """The pool's own `run` with a Python task."""
    RUN(pool.contents.run)(pool.contents.host, count, TASK(task), None)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
@pytest.mark.parametrize("threads", [2, 5])
def test_every_index_is_taken_once(threads, count):
    seen = []
    pool = lib.parallel(threads)
    assert pool.contents.threads == threads
    run(pool, count, lambda _, index: seen.append(index))
    assert sorted(seen) == list(range(count))


def test_helpers_take_part():
    """Two tasks that wait for each other end only if two threads run them."""
    meeting = threading.Barrier(2, timeout=20)
    for pause in (0, 0.01):  # awake, asleep
        time.sleep(pause)
        run(lib.parallel(2), 2, lambda *_: meeting.wait())


def test_a_task_may_use_its_pool():
    seen = []
    pool = lib.parallel(3)
    run(pool, 6, lambda _, i: run(pool, 5, lambda _, j: seen.append((i, j))))
    assert sorted(seen) == [(i, j) for i in range(6) for j in range(5)]


def test_many_callers_share_one_pool(make_tensor):
    packed = pack(make_tensor(600, 256, Affine(4, 64)))
    inputs = [np.random.default_rng(i).standard_normal((1 + i % 9, 256)).astype(np.float32) for i in range(16)]
    expected = [linear(packed, x) for x in inputs]

    def hammer(caller: int) -> bool:
        turns = [(caller + turn) % 16 for turn in range(400)]
        return all(np.array_equal(lib.linear(packed, inputs[i], threads=3), expected[i]) for i in turns)

    with ThreadPoolExecutor(6) as callers:
        assert all(callers.map(hammer, range(6)))


def test_pools_come_and_go():
    library = ctypes.CDLL(str(lib.library_path()))
    library.edge_pool_create.restype = ctypes.c_void_p
    library.edge_pool_parallel.restype = type(lib.parallel(2).contents)
    before = threading_count()
    for turn in range(100):
        seen = []
        pool = ctypes.c_void_p(library.edge_pool_create(ctypes.c_size_t(1 + turn % 6)))
        handle = ctypes.pointer(library.edge_pool_parallel(pool))
        for _ in range(turn % 3):
            run(handle, 4, lambda _, index, seen=seen: seen.append(index))
        assert sorted(seen) == sorted([*range(4)] * (turn % 3))
        library.edge_pool_destroy(pool)
    assert threading_count() <= before
    assert library.edge_pool_create(ctypes.c_size_t(0)) is None
    capped = ctypes.c_void_p(library.edge_pool_create(ctypes.c_size_t(10**6)))
    assert library.edge_pool_parallel(capped).threads <= 64
    library.edge_pool_destroy(capped)


def threading_count() -> int:
    """Threads of this process, those that Python doesn't know included."""
    return len(os.listdir("/proc/self/task"))


def test_an_idle_pool_sleeps():
    run(lib.parallel(4), 8, lambda *_: None)
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.06


def test_two_threads_do_not_collapse_on_a_busy_machine(make_tensor):
    """Other processes hold every core: two threads may win nothing then, but they must not fall far behind one."""
    packed = pack(make_tensor(1024, 1024, Affine(4, 64)))
    x = np.ones((1, 1024), np.float32)
    cores = sorted(os.sched_getaffinity(0))[:2]
    spin = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", spin, str(core)]) for core in cores for _ in range(2)]
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        time.sleep(0.2)
        done = {1: 0, 2: 0}
        lib.linear(packed, x, threads=2)
        for _ in range(4):  # in turns, so that a disturbance meets both
            for threads in done:
                end = time.perf_counter() + 0.25
                while time.perf_counter() < end:
                    lib.linear(packed, x, threads=threads)
                    done[threads] += 1
    finally:
        os.sched_setaffinity(0, everywhere)
        for process in busy:
            process.kill()
            process.wait()
    assert done[2] > done[1] / 5

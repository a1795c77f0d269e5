import threading

import pytest
import torch

from isometry.sampling import workers


def test_every_task_runs_once():
    done, lock = [], threading.Lock()

    def task(i):
        with lock:
            done.append(i)

    for threads in (1, 2, 4):
        done.clear()
        workers.run(((lambda i=i: task(i)) for i in range(300)), threads=threads)
        assert sorted(done) == list(range(300))
    workers.run([])


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_exception_stops_the_rest(error, threads):
    done = []

    def fail():
        raise error

    tasks = [lambda: done.append(0), fail, *(lambda: done.append(1) for _ in range(10_000))]
    with pytest.raises(type(error)):
        workers.run(tasks, threads=threads)
    count = len(done)
    assert count < 10_000
    # the pool is fit for more
    workers.run([lambda: done.append(2)] * 5, threads=threads)
    assert len(done) == count + 5


def test_tasks_may_run_tasks():
    done = []

    def outer():
        workers.run([lambda: done.append(0)] * 3, threads=2)

    workers.run([outer] * 8, threads=2)
    assert len(done) == 24


def test_torchs_own_threads_are_put_back():
    mine = torch.get_num_threads()
    with workers.single_threaded() as outer, workers.single_threaded() as inner:
        assert outer == inner == mine
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == mine
    with pytest.raises(ValueError, match="x"), workers.single_threaded():
        raise ValueError("x")
    assert torch.get_num_threads() == mine

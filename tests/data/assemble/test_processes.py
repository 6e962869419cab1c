"""Worker processes that are killed at all moments."""

import os
import signal
import threading
import time
from concurrent.futures import CancelledError, wait

import pytest

from dexcore.data.assemble.processes import WorkerDied, WorkerProcesses


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(text: str) -> None:
    raise ValueError(text)


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def function_of(_: object = None) -> object:
    return lambda: None  # is not to be pickled


@pytest.fixture
def two():
    executor = WorkerProcesses(2)
    yield executor
    executor.kill()


def test_a_death_costs_its_own_task_alone(two):
    slow = two.submit(nap, 0.5)
    dead = [two.submit(die) for _ in range(3)]
    later = [two.submit(pow, 2, power) for power in range(20)]
    assert [future.result() for future in later] == [2**power for power in range(20)]
    assert all(isinstance(future.exception(), WorkerDied) for future in dead)
    assert slow.exception() is None


def test_a_process_that_dies_while_it_waits_is_replaced(two):
    first = two.submit(os.getpid).result()
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{first}") and time.monotonic() < deadline:
        time.sleep(0.001)
    assert two.submit(os.getpid).result() != first


def test_one_task_after_the_other_stays_in_one_process(two):
    assert len({two.submit(os.getpid).result() for _ in range(30)}) == 1
    assert len({future.result() for future in [two.submit(nap, 0.2) for _ in range(2)]}) == 2


def test_large_tasks_and_results_pass_beside_deaths(two):
    """More than a pipe holds: what waits to be written when its reader dies is given up."""
    large = bytes(3 << 20)
    futures = [two.submit(die if place % 3 == 1 else bytes, large) for place in range(9)]
    wait(futures)
    for place, future in enumerate(futures):
        if place % 3 == 1:
            assert isinstance(future.exception(), WorkerDied)
        else:
            assert future.result() == large


def test_kills_at_any_moment_leave_no_task_without_an_end(two):
    """While processes begin, wait and end, too."""
    ended = threading.Event()

    def kill_all() -> None:
        while not ended.is_set():
            for worker in list(two._workers):
                worker.kill()
            time.sleep(0.02)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        futures = [two.submit(nap, 0.005) for _ in range(40)]
        assert not wait(futures, timeout=60).not_done
    finally:
        ended.set()
        killer.join()
    assert any(future.exception() for future in futures)
    assert two.submit(pow, 2, 5).result() == 32


def test_errors_of_tasks_come_back_with_the_place_they_were_raised_at(two):
    with pytest.raises(ValueError, match="no such image") as caught:
        two.submit(fail, "no such image").result()
    assert "in fail" in caught.value.__notes__[0]


def test_what_cannot_be_pickled_is_told_and_the_process_goes_on(two):
    process = two.submit(os.getpid).result()
    with pytest.raises(RuntimeError, match="cannot give back the result"):
        two.submit(function_of).result()
    with pytest.raises(Exception, match="pickle"):
        two.submit(len, threading.Lock()).result()
    assert two.submit(os.getpid).result() == process


def test_a_killed_executor_ends_at_once():
    executor = WorkerProcesses(1)
    long, queued = executor.submit(nap, 100), executor.submit(nap, 100)
    while not long.running():
        time.sleep(0.001)
    executor.kill()
    assert isinstance(long.exception(timeout=10), WorkerDied)
    with pytest.raises(CancelledError):
        queued.result(timeout=10)
    with pytest.raises(RuntimeError, match="were ended"):
        executor.submit(nap, 1)


def test_a_shut_down_executor_does_what_it_has():
    with WorkerProcesses(2) as executor:
        futures = [executor.submit(nap, 0.01) for _ in range(8)]
    assert all(future.done() and future.exception() is None for future in futures)

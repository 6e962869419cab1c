"""Processes find together in a store that holds whatever earlier ones left there."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from dexcore.engine.rendezvous import meet_in

_SECONDS = 60.0


@pytest.fixture
def server():
    """The store of an agent, which outlives the processes."""
    return dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=_SECONDS), wait_for_workers=False)


def _meets(server: dist.TCPStore, rank: int, count: int, seconds: float = _SECONDS) -> dist.Store:
    client = dist.TCPStore("127.0.0.1", server.port, None, False, timedelta(seconds=_SECONDS), wait_for_workers=False)
    return meet_in(client, rank, count, time.monotonic() + seconds)


def _assert_meet(server: dist.TCPStore, ranks: list[int], late: float = 0.0) -> None:
    """All do, in a place where nobody has been before; the last of ``ranks`` comes ``late``."""

    def comes(rank: int) -> tuple[int, bytes]:
        time.sleep(late if rank == ranks[-1] else 0.0)
        store = _meets(server, rank, len(ranks))
        if rank == 0:
            store.set("place", str(time.monotonic_ns()))
        place = store.get("place")
        return store.add("visits", 1), place

    with ThreadPoolExecutor(len(ranks)) as threads:
        visits, places = zip(*threads.map(comes, ranks), strict=True)
    assert sorted(visits) == [*range(1, len(ranks) + 1)]
    assert len({*places}) == 1


@pytest.mark.parametrize("ranks", [[0, 1], [0, 2, 1], [2, 1, 0]])
def test_they_meet_again_and_again_in_one_store_whoever_comes_last(server, ranks):
    for late in (0.0, 0.3, 0.3):
        _assert_meet(server, ranks, late)


@pytest.mark.parametrize("gone", [[0], [1], [0, 1], [1, 2]])
def test_those_who_ended_before_the_others_came_are_not_waited_for(server, gone):
    with ThreadPoolExecutor(len(gone)) as threads:
        for left in [threads.submit(_meets, server, rank, 3, seconds=0.3) for rank in gone]:
            with pytest.raises(TimeoutError, match="not all of 3 have come"):
                left.result()
    _assert_meet(server, [0, 1, 2], late=0.3)


def test_another_number_of_processes_meets_in_the_same_store(server):
    for ranks in ([0, 1, 2], [0, 1], [0, 1, 2]):
        _assert_meet(server, ranks)

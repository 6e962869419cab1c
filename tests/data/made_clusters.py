"""A Dask cluster of two real processes, whose workers a test may kill."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import LocalCluster, Status

_SECONDS = 60  # until a worker that was killed has begun again


@contextmanager
def dask_cluster() -> Iterator[LocalCluster]:
    """Two workers of one thread each, restarted when they are killed.

    It is closed when both run: a nanny whose worker dies, or that is closed, while the worker begins may hang.
    """
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster
        deadline = time.monotonic() + _SECONDS
        while len(running_workers(cluster)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)


def running_workers(cluster: LocalCluster) -> list[int]:
    """The process ids of the workers that run; those that begin again are left out."""
    # A nanny's worker_address is the one of before until its worker has begun again.
    processes = [nanny.process for nanny in cluster.workers.values() if nanny.process is not None]
    return [process.pid for process in processes if process.status == Status.running and process.pid is not None]

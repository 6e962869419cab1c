"""Workers of a Dask cluster (extra ``dask``), whose disks hold the folder and the store under the same paths."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress

from dexcore.extras import require

_SECONDS = 30  # until a scheduler that does not answer, or has no workers, is given up


@contextmanager
def cluster(address: str) -> Iterator[tuple[Executor, int]]:
    """The executor of the cluster whose scheduler is at ``address`` (``tcp://host:8786``), and its number of workers.

    A task whose worker is killed is given to another one; a file that kills workers costs itself alone
    (`dexcore.data.assemble.workers`).

    Raises:
        ValueError: no scheduler answers there, or its workers are not of one thread each.
        MissingExtraError: the extra ``dask`` is not installed.
    """
    distributed = require("distributed", "dask")
    try:
        client = distributed.Client(address, timeout=_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"--dask {address}: no scheduler of Dask answers there: {error}") from error
    with client:
        with suppress(TimeoutError):  # workers may be about to begin; that there are none is told below
            client.wait_for_workers(1, timeout=_SECONDS)
        threads = client.nthreads().values()
        if set(threads) != {1}:
            raise ValueError(
                f"--dask {address}: expected workers of one thread each (dask worker --nthreads 1), since a file that "
                f"hangs its decoder ends its process; found workers of {sorted(set(threads)) or 'none'}"
            )
        with client.get_executor() as executor:
            yield executor, len(threads)

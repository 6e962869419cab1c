"""How the processes that torchrun started find together, again and again in one store.

torchrun starts processes anew where one died, and its store lives on, with all that earlier processes wrote into it;
``TORCHELASTIC_RESTART_COUNT`` differs between the machines, since each counts the deaths among its own processes. So
every process writes a number that nobody had before (a nonce) beside its rank. Rank 0 publishes all of them as the
token of a meeting, and publishes anew as they change. Who finds its own nonce in the token counts itself as present,
and where all have, nobody is left out and nobody is of an earlier start:

    nonce/0: a   nonce/1: b   nonce/2: c   token: a,b,c     of an earlier start, in which rank 2 has died
    nonce/0: d   nonce/1: b   nonce/2: f   token: d,b,f     rank 0 and 2 are present, rank 1 is still to come
    nonce/0: d   nonce/1: e   nonce/2: f   token: d,e,f     all three are present, and go on in a prefix of this token
"""

import hashlib
import os
import threading
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_EVERY_SECONDS = 0.05


def meet(rank: int, count: int, limit: timedelta, given_up: threading.Event | None = None) -> dist.Store:
    """Wait until all processes are there, at the store that the environment names, or until ``given_up`` is set.

    Returns:
        A store that is theirs alone.

    Raises:
        dist.DistError, OSError: the store is not there, or not all come within ``limit``.
    """
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    began = time.monotonic()
    store = dist.TCPStore(address, port, None, hosts, limit, wait_for_workers=False, multi_tenant=True)
    return meet_in(dist.PrefixStore("dexcore", store), rank, count, began + limit.total_seconds(), given_up)


def meet_in(
    store: dist.Store, rank: int, count: int, until: float, given_up: threading.Event | None = None
) -> dist.Store:
    """`meet` in a store that is there, until a time of `time.monotonic`."""
    nonce, present = uuid.uuid4().hex, set[str]()
    nonces = [f"nonce/{other}" for other in range(count)]
    store.set(nonces[rank], nonce)
    while time.monotonic() < until and not (given_up and given_up.is_set()):
        if rank == 0 and store.check(nonces):
            store.set("token", b",".join(store.multi_get(nonces)).decode())
        token = store.get("token").decode() if store.check(["token"]) else ""
        if nonce in token:
            meeting = hashlib.sha256(token.encode()).hexdigest()
            new = meeting not in present
            present.add(meeting)
            if store.add(f"present/{meeting}", int(new)) == count:
                return dist.PrefixStore(meeting, store)
        time.sleep(_EVERY_SECONDS)
    raise TimeoutError(f"not all of {count} have come")

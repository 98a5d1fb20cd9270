"""How the processes of one attempt find each other, whatever former attempts have left behind."""

from __future__ import annotations

import time
import uuid

from torch import distributed as dist
from torch.distributed import PrefixStore, Store

_PLACE = "mach_ext/meeting"
_PAUSE = 0.02  # seconds


def private_store(store: Store, rank: int, size: int) -> PrefixStore:
    """Return a part of a store that only the processes of this meeting use. All of them call this function.

    `torchrun` keeps one store for all attempts of a launch. A new process would read the addresses of dead
    ones there. So the first rank names a new place. The others answer with names of their own, and go there
    only if the first rank has read just these names.

    The number of the attempt would not do as a name. On several machines it may differ.

    Args:
        store: The store of the launch.
        rank: The number of this process.
        size: The number of processes.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        place = f"{_PLACE}/{own}"
        store.set(_PLACE, own)
        guests = [store.get(f"{place}/{guest}").decode() for guest in range(1, size)]
        store.set(f"{place}/guests", " ".join(guests))
        return dist.PrefixStore(place, store)
    place = ""
    while True:
        newest = f"{_PLACE}/{store.get(_PLACE).decode()}"
        if newest != place:
            place = newest
            store.set(f"{place}/{rank}", own)
        if store.check([f"{place}/guests"]) and own in store.get(f"{place}/guests").decode().split():
            return dist.PrefixStore(place, store)
        time.sleep(_PAUSE)

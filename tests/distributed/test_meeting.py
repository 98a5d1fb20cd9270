"""Processes of one attempt find each other in a store that former attempts have used."""

import threading

import pytest
from torch.distributed import HashStore

from mach_ext.distributed.meeting import private_store


@pytest.mark.parametrize("late", [0, 1, 2])
def test_attempts_have_places_of_their_own(late):
    """The store is shared, and one rank comes later than the others."""
    store, size, places = HashStore(), 3, []

    def meet(rank, found):
        if rank == late:
            arrived.wait(0.2)
        private = private_store(store, rank, size)
        private.set(f"rank {rank}", "here")
        found[rank] = private

    for _ in range(3):
        found, arrived = {}, threading.Event()
        threads = [threading.Thread(target=meet, args=(rank, found), daemon=True) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found.keys() == {0, 1, 2}
        assert all(each.get(f"rank {rank}") == b"here" for each in found.values() for rank in range(size))
        found[0].set("attempt", str(len(places)))
        places.append(found[0])
    assert [place.get("attempt") for place in places] == [b"0", b"1", b"2"]

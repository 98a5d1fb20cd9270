"""Processes of one attempt find each other in a store that former attempts have used."""

import os
import threading
import time

import pytest
from launch_cases import on_ranks
from torch.distributed import HashStore

from mach_ext.distributed import together
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


def meet_often(times):
    """Works together so many times, and comes late every other time."""
    found = []
    for number in range(times):
        if os.environ["RANK"] == str(number % 2):
            time.sleep(0.1)
        with together() as ranks:
            found.append(ranks.collect((number, ranks.rank)))
    return found


def test_a_program_works_together_many_times(tmp_path):
    """All meetings of a launch take place in one store."""
    for found in on_ranks(2, meet_often, tmp_path, 6):
        assert found == [[(number, 0), (number, 1)] for number in range(6)]

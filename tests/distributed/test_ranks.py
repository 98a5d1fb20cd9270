"""Ranks: what processes exchange, alone and three together, and what they do if one of them dies."""

import datetime
import os
import re
import signal
import time

import pytest
import torch
from launch_cases import forked, on_ranks
from torch import distributed as dist

import mach_ext
from mach_ext.distributed import Ranks, current_ranks, is_launched, together
from mach_ext.distributed.ranks import alone, note_launch, was_noted

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
SIZES = [1, 0, 3]  # of the three ranks, where they differ


def test_a_process_alone():
    ranks, t = Ranks(), torch.arange(6.0).view(2, 3)
    assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
    ranks.barrier()
    assert ranks.broadcast("value") == "value"
    assert ranks.collect("value") == ["value"]
    assert ranks.gather(t, 1, [3]) is t
    assert ranks.sum(t) is t
    assert ranks.any(True, False) == [True, False]
    assert ranks.tell_error("an error")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 8, 20, 2**31])
def test_shares_are_all_things_in_order(size, count):
    shares = [Ranks(rank, size).share(count) for rank in range(size)]
    assert [share.start for share in shares] == [0, *(share.stop for share in shares[:-1])]
    assert shares[-1].stop == count
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for rank in range(size):
        assert Ranks(rank, size).sizes(count) == sizes
        assert Ranks(0, size).share(count, rank) == shares[rank]


def test_a_program_without_a_launcher_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not is_launched()
    with together() as ranks, together() as inner:
        assert ranks is inner is current_ranks()
        assert ranks.size == 1
    note_launch("something")
    assert not was_noted("something")


@pytest.mark.parametrize("size", ["", "0", "1"])
def test_a_launch_of_one_process_is_alone(monkeypatch, size):
    place = {"RANK": "0", "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with together() as ranks:
        assert ranks.size == 1


# ------------------------------------------------------------------------------------- three processes


def exchange():
    """What each rank sees, in a process group that the program has made itself."""
    dist.init_process_group("gloo")
    seen = {"outside": current_ranks().size, "launched": is_launched()}
    with together() as ranks:
        rank = ranks.rank
        with together() as inner:
            seen["nested"] = inner is ranks is current_ranks()
        if rank == 1:  # The others do not take part.
            with alone(), together() as own:
                seen["alone"] = own.size, current_ranks().size, own.broadcast(rank), own.any(True)
        seen["after alone"] = current_ranks() is ranks
        ranks.barrier()
        whole = torch.arange(24.0).view(2, 3, 4)
        seen["even"] = ranks.gather(whole[:, [rank]], 1, [1, 1, 1]).equal(whole)
        start = sum(SIZES[:rank])
        for dtype in (torch.float32, torch.int64, torch.bfloat16):
            own = whole[..., start : start + SIZES[rank]].to(dtype)
            seen[f"uneven {dtype}"] = ranks.gather(own, 2, SIZES).equal(whole.to(dtype))
        own = torch.randn(1000, generator=torch.Generator().manual_seed(rank)) * 10**rank
        seen["sum"] = ranks.sum(own)
        seen["unchanged"] = own.equal(
            torch.randn(1000, generator=torch.Generator().manual_seed(rank)) * 10**rank
        )
        seen["any"] = ranks.any(rank == 2, False, True)
        seen["broadcast"] = ranks.broadcast({"from": rank} if rank == 0 else None)
        seen["collect"] = ranks.collect(None if rank == 1 else ("from", rank))
        seen["told"] = ranks.tell_error("the same error on all ranks")
        ranks.barrier()
        note_launch("here")
        seen["noted"] = was_noted("here")  # only a later attempt asks
    seen["after"] = current_ranks().size, dist.is_initialized()
    dist.destroy_process_group()
    return seen


def test_three_ranks_exchange(tmp_path):
    results = on_ranks(3, exchange, tmp_path)
    parts = [torch.randn(1000, generator=torch.Generator().manual_seed(rank)) * 10**rank for rank in range(3)]
    total = parts[0] + parts[1] + parts[2]
    assert results[1].pop("alone") == (1, 1, 1, [True])
    for seen in results:
        assert seen.pop("sum").equal(total)
        assert seen.pop("any") == [True, False, True]
        assert seen.pop("broadcast") == {"from": 0}
        assert seen.pop("collect") == [("from", 0), None, ("from", 2)]
        assert (seen.pop("outside"), seen.pop("after")) == (1, (1, True))
        assert seen.pop("noted") is False
    assert sum(seen.pop("told") for seen in results) == 1
    assert all(value is True for seen in results for value in seen.values())


# --------------------------------------------------------------------------------------------------- death


def wait_for_others(ranks):
    ranks.collect(None)


def sum_of_others(ranks):
    ranks.sum(torch.ones(1000))


def sleep(ranks):
    time.sleep(60)


def work(ranks):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pass


def die(rank, victim, others, folder):
    """A rank kills itself while the others do something else. They keep the moment."""
    with together() as ranks:
        ranks.barrier()
        if rank == victim:
            time.sleep(0.3)
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        others(ranks)


STOPS = (
    "mach-ext: rank {} of 3 stops, because rank {} ended before the work was done; what is in the folder is "
)
STOPS += "whole, and --resume continues from the last checkpoint"


@pytest.mark.parametrize(
    ("victim", "others", "keeps_store"),
    [
        (0, wait_for_others, True), (1, sum_of_others, True), (2, sleep, True), (1, work, True),
        (0, sleep, False), (1, sleep, False),
    ],
)  # fmt: skip
def test_the_others_end_if_a_process_is_killed(say, tmp_path, victim, others, keeps_store):
    ended = forked(3, die, tmp_path, victim, others, tmp_path, keeps_store=keeps_store)
    seconds = time.time() - (tmp_path / "killed").stat().st_mtime
    say(f"rank {victim} of 3 killed, the others {others.__name__}: all ended after {seconds:.1f} s")
    assert seconds < 10
    assert ended[victim].code == -signal.SIGKILL
    named = set()
    for rank, each in enumerate(ended):
        if rank != victim:
            assert each.code == 1
            assert each.out == ""
            (line,) = each.said  # PyTorch adds its own where rank 0, which holds the store, is gone
            named.add(re.search(r"because rank (\d)", line)[1])
            assert line in (STOPS.format(rank, lost) for lost in range(3))
    if keeps_store or victim == 1:  # The notes stay where they are, so all name the rank that was lost first.
        assert named == {str(victim)}


def fail(rank, message, everywhere):
    """An error on one rank or on all, told as the command does."""
    with together() as ranks:
        ranks.barrier()
        try:
            if everywhere or rank == 1:
                raise ValueError(message)
            ranks.collect(None)
        except ValueError as error:
            if ranks.tell_error(str(error)):
                print(f"mach-ext: error: {error}", flush=True)
            raise SystemExit(1) from None


@pytest.mark.parametrize("everywhere", [False, True])
def test_an_error_is_told_once(tmp_path, everywhere):
    ended = forked(3, fail, tmp_path, "k must be at least 1", everywhere)
    assert [each.code for each in ended] == [1, 1, 1]
    assert "".join(each.out for each in ended) == "mach-ext: error: k must be at least 1\n"
    assert [line for each in ended for line in each.said] == []


def leave(rank):
    """A rank leaves with an error of Python's that nobody tells."""
    with together() as ranks:
        ranks.barrier()
        if rank == 0:
            raise KeyError("a defect")
        ranks.collect(None)


def test_a_defect_of_one_rank_ends_the_others(tmp_path):
    ended = forked(3, leave, tmp_path)
    assert all(each.code == 1 for each in ended)
    assert "KeyError: 'a defect'" in ended[0].err
    assert [len(each.said) for each in ended] == [0, 1, 1]


def meet_nobody(rank):
    mach_ext.distributed.ranks.PATIENCE = datetime.timedelta(seconds=1)
    with together():
        pass


def test_processes_that_cannot_meet_say_where(tmp_path):
    (ended,) = forked(1, meet_nobody, tmp_path, WORLD_SIZE="2", MASTER_ADDR="nowhere.invalid", RANK="1")
    assert "ValueError: the processes of torchrun could not meet at nowhere.invalid:" in ended.err
    assert ended.code == 1

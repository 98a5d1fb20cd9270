"""Ranks for tests: threads of one process, and processes of gloo."""

import contextlib
import os
import threading

import torch
import torch.distributed

from mach_ext.distributed import Ranks


class Threads:
    """The ranks of one process, each in a thread of its own. `on_each` runs a function of (ranks)."""

    def __init__(self, size):
        self.size = size
        self.places = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def on_each(self, function):
        results, errors = [None] * self.size, []

        def run(rank):
            try:
                results[rank] = function(_Thread(self, rank))
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [
            threading.Thread(target=run, args=(rank,), name=f"rank {rank}") for rank in range(self.size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return results


class _Thread(Ranks):
    def __init__(self, threads, rank):
        super().__init__(rank, threads.size)
        self.threads = threads

    def collect(self, value):
        self.threads.places[self.rank] = value
        self.threads.barrier.wait()
        values = list(self.threads.places)
        self.threads.barrier.wait()
        return values

    def gather(self, tensor, dim, sizes):
        assert tensor.shape[dim] == sizes[self.rank]
        return torch.cat(self.collect(tensor), dim)

    def broadcast(self, value):
        return self.collect(value)[0]

    def barrier(self):
        self.collect(None)

    def any(self, *flags):
        return [any(each) for each in zip(*self.collect(flags), strict=True)]


def on_processes(tmp_path, size, function, *arguments):
    """What a function of (rank, folder) returns on each of some processes."""
    start = torch.multiprocessing.start_processes
    start(_process, (size, function, str(tmp_path), *arguments), nprocs=size, start_method="fork")
    return [torch.load(tmp_path / f"result {rank}") for rank in range(size)]


def _process(rank, size, function, folder, *arguments):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    torch.save(function(rank, folder, *arguments), f"{folder}/result {rank}")
    with contextlib.suppress(RuntimeError):  # the other rank may have ended
        torch.distributed.barrier()
    os._exit(0)  # Where PyTorch ends a group, it can wait for a thread that needs the GIL.

"""Programs on several processes: by `torchrun`, and by forks that find each other as under `torchrun`.

A launch of `torchrun` takes seconds, because each of its processes imports torch. Forks take none. Both end
with everything that they started.
"""

import atexit
import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import torch
from helpers import TESTS
from torch.distributed import TCPStore

import mach_ext

SECONDS = 120  # for a launch; one that takes longer is ended
SAID = "mach-ext: "  # how the lines of our processes begin, beside those of the launcher


class Ended(NamedTuple):
    """How a process or a launch ended."""

    code: int
    out: str
    err: str

    @property
    def said(self):
        """The lines of our own processes on standard error."""
        return [line for line in self.err.splitlines() if line.startswith(SAID)]


# ------------------------------------------------------------------------------------------------ torchrun


def torchrun(size, *command, folder, restarts=0, stdin="", seconds=SECONDS, **env):
    """What a command prints on so many processes of `torchrun`. Its streams stand in the folder."""
    with started(size, *command, folder=folder, restarts=restarts, stdin=stdin, **env) as process:
        code = process.wait(seconds)
    return Ended(code, (folder / "out").read_text(), (folder / "err").read_text())


@contextlib.contextmanager
def started(size, *command, folder, restarts=0, stdin="", **env):
    """A launch that may be looked at while it runs."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size]
    argv += ["--max-restarts", restarts, *command]
    paths = [str(Path(mach_ext.__file__).parents[1]), str(TESTS)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **env}
    (folder / "in").write_text(stdin)
    with open(folder / "in") as source, open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        streams = {"stdin": source, "stdout": out, "stderr": err}
        process = subprocess.Popen([*map(str, argv)], cwd=folder, env=env, **streams)
    try:
        yield process
    finally:
        for pid in [*descendants(process.pid), process.pid] if process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def descendants(pid):
    """The processes that a process has started, and those that they have started, by number."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [each for child in children for each in descendants(child)]


def on_ranks(size, function, folder, *arguments, **env):
    """What a function of a test module returns on each process of a launch."""
    file = Path(sys.modules[function.__module__].__file__)
    (folder / "arguments").write_bytes(pickle.dumps(arguments))
    ended = torchrun(size, __file__, file, function.__name__, folder=folder, **env)
    assert ended.code == 0, ended.err
    return [pickle.loads((folder / f"result {rank}").read_bytes()) for rank in range(size)]


def _program(file, name):
    """Calls a function of a file of Python, and keeps what it returns. This is what `on_ranks` starts."""
    torch.set_num_threads(1)
    file = Path(file)
    sys.path.insert(0, str(file.parent))
    function = getattr(importlib.import_module(file.stem), name)
    result = function(*pickle.loads(Path("arguments").read_bytes()))
    Path(f"result {os.environ['RANK']}").write_bytes(pickle.dumps(result))


# --------------------------------------------------------------------------------------------------- forks


def forked(size, function, folder, *arguments, stdin=os.devnull, keeps_store=True, **env):
    """How forks of this process end that call a function of (rank, ...). What it returns is the exit code.

    This process keeps the store where they meet, as `torchrun` does, or rank 0 keeps it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    if keeps_store:
        place["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    else:
        del store  # Its port is free then.
    place |= env
    codes = {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os.environ.update(place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            _fork(folder, rank, stdin, function, arguments)
        codes[pid] = None
    try:
        until = time.monotonic() + SECONDS
        while None in codes.values():
            assert time.monotonic() < until, "processes have not ended"
            for pid in [pid for pid, code in codes.items() if code is None]:
                ended, status = os.waitpid(pid, os.WNOHANG)
                codes[pid] = os.waitstatus_to_exitcode(status) if ended else None
            time.sleep(0.01)
    finally:
        for pid in [pid for pid, code in codes.items() if code is None]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    streams = [[(folder / f"{name} {rank}").read_text() for name in ("out", "err")] for rank in range(size)]
    return [Ended(code, *pair) for code, pair in zip(codes.values(), streams, strict=True)]


def on_forks(size, function, folder, *arguments, **env):
    """What a function returns on each of so many forks, with `folder` as the working folder."""
    ended = forked(size, _keep_result, folder, folder, function, arguments, **env)
    assert [each.code for each in ended] == [0] * size, [each.err for each in ended]
    return [pickle.loads((folder / f"result {rank}").read_bytes()) for rank in range(size)]


def _keep_result(rank, folder, function, arguments):
    os.chdir(folder)
    result = function(*arguments)
    Path(f"result {rank}").write_bytes(pickle.dumps(result))


def _fork(folder, rank, stdin, function, arguments):
    """The life of a fork, with streams of its own. It ends as a program does."""
    code = 1
    try:
        atexit._clear()
        os.dup2(os.open(stdin, os.O_RDONLY), 0)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name} {rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False)
        torch.set_num_threads(1)
        code = function(rank, *arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    _program(*sys.argv[1:])

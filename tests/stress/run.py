"""Mutated files through the readers: python -m stress.run [format ...] [--files N] [--seed S], in tests/.

Every case follows from its format's name and its seed. Faulty cases stay in build/stress/<format>/<seed>/.
"""

from __future__ import annotations

import argparse
import faulthandler
import mmap
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from .formats import FORMATS, Files, Format, Options
from .naive import ANY, Refused

KEPT = Path(__file__).parents[2] / "build" / "stress"
SECONDS = 60  # for one case; a process that needs more is ended, which counts as a crash
MEMORY = 3 << 30  # beyond what is in use at the start


class Difference(NamedTuple):
    kind: str  # the same for the same fault
    detail: str


# ------------------------------------------------------------------------------------------- one case


def draw(name: str, seed: int) -> tuple[Files, Options]:
    return FORMATS[name].draw(random.Random(f"{name} {seed}"))


def write(folder: Path, files: Files) -> dict[str, Path]:
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files}


def expectation(form: Format, files: Files, options: Options) -> Any:
    try:
        return form.naive(files, options)
    except Refused as refused:
        return refused


def refusal_fault(error: Exception, expected: Refused, paths: dict[str, Path]) -> str | None:
    """What is wrong with the message of a refusal that is right."""
    named = [
        name
        for name, path in paths.items()
        if str(path) in str(error) or str(error).startswith(f"{name} of the model")
    ]
    if not set(named) & set(expected.files or paths):
        return f"names {named or 'no file'}, must name {list(expected.files or paths)}"
    line = re.search(r", line (\d+): | in line (\d+)$", str(error))
    number = int(line[1] or line[2]) if line else None
    if ANY not in expected.lines and number not in expected.lines:
        return f"names line {number}, must name line {expected.lines[0]}"
    return None


def outcome(read: Callable[[], Any]) -> Any:
    """What a real reader returns or raises; a warning counts as raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return read()
    except Exception as error:
        return error


def fault(got: Any, expected: Any, paths: dict[str, Path]) -> tuple[str, str] | None:
    """In what the real reader's outcome is wrong, in general and in detail."""
    if Path("unpickled").exists():
        Path("unpickled").unlink()
        return "unpickles", ""
    if isinstance(got, Exception):
        if not isinstance(got, (ValueError, TypeError)):
            where = traceback.extract_tb(got.__traceback__)[-1]
            return f"{type(got).__name__} from {Path(where.filename).name}", repr(got)
        if isinstance(expected, Refused):
            wrong = refusal_fault(got, expected, paths)
            return wrong and (re.sub("line [0-9]+", "line n", wrong), f"{wrong}: {got}")
        rule = str(got).rpartition("/")[2]  # after the folder
        return f"refuses what it must read: {re.sub('[0-9]+', '0', rule)[:90]}", str(got)
    if isinstance(expected, Refused):
        return "reads what it must refuse", f"line {expected.lines[0]}: read as {got}"
    return None if got == expected else ("another answer", f"read as {got}\nright:  {expected}")


def check(form: Format, files: Files, options: Options, folder: Path, expected: Any) -> Difference | None:
    """The first real reader that does not do as the naive one, or refuses in other words than the first."""
    paths, said = write(folder, files), []
    for reader, read in form.readers(paths, options).items():
        got = outcome(read)
        if wrong := fault(got, expected, paths):
            return Difference(f"{reader}: {wrong[0]}", wrong[1][:4000])
        said.append(str(got))
        if isinstance(expected, Refused) and ANY not in expected.lines and said[-1] != said[0]:
            return Difference(f"{reader}: other words than the first reader", f"{said[-1]}\n{said[0]}")
    return None


def shrink(parts: list[bytes], fails: Callable[[list[bytes]], bool], tries: int = 500) -> list[bytes]:
    """Leaves out halves, quarters, ... single parts, as long as it still fails."""
    size = len(parts) // 2
    while size > 0:
        start = 0
        while start < len(parts) and tries > 0:
            fewer = parts[:start] + parts[start + size :]
            tries -= 1
            if fails(fewer):
                parts = fewer
            else:
                start += size
        size //= 2
    return parts


def minimise(form: Format, files: Files, options: Options, folder: Path, kind: str) -> Files:
    """Smaller files with the same kind of fault: fewer lines, then fewer bytes."""

    def fails(candidate: Files) -> bool:
        difference = check(form, candidate, options, folder, expectation(form, candidate, options))
        return difference is not None and difference.kind == kind

    def without(name: str, parts: list[bytes], join: bytes) -> list[bytes]:
        return shrink(parts, lambda fewer: fails(files | {name: join.join(fewer)}))

    for name in files:
        files[name] = b"\n".join(without(name, files[name].split(b"\n"), b"\n"))
        if len(files[name]) < 1000:
            files[name] = b"".join(without(name, [bytes([byte]) for byte in files[name]], b""))
    return files


# ------------------------------------------------------------------------------------------- many cases


def keep(name: str, seed: int, files: Files, difference: Difference) -> None:
    folder = KEPT / name / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (folder / "difference").write_text(
        f"{difference.kind}\n{difference.detail}\n", "utf-8", "backslashreplace"
    )


def kept(name: str) -> dict[str, list[str]]:
    """The folders kept of a format, by kind of fault."""
    kinds: dict[str, list[str]] = {}
    for difference in sorted((KEPT / name).glob("*/difference"), key=lambda path: int(path.parent.name)):
        kind = difference.read_text("utf-8").partition("\n")[0]
        kinds.setdefault(kind, []).append(str(difference.parent.relative_to(KEPT)))
    return kinds


def work(name: str, seeds: Iterable[int], counts: Any) -> Counter[str]:
    """Checks these seeds in the current folder; counts: the seed, accepted, refused, differences.

    Of each kind of fault the first file is made small, and three are kept.
    """
    form, kinds = FORMATS[name], Counter[str]()
    folder = Path("files").absolute()
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        counts[0] = seed
        files, options = draw(name, seed)
        expected = expectation(form, files, options)
        difference = check(form, files, options, folder, expected)
        counts[2 if isinstance(expected, Refused) else 1] += 1
        if difference is None:
            continue
        counts[3] += 1
        kinds[difference.kind] += 1
        if kinds[difference.kind] == 1 and form.is_text:
            files = minimise(form, files, options, folder, difference.kind)
            difference = check(form, files, options, folder, expectation(form, files, options)) or difference
        if kinds[difference.kind] <= 3:
            keep(name, seed, files, difference)
    return kinds


def start_worker(name: str, seeds: range, counts: Any, folder: str) -> int:
    """A process of its own for these seeds, in a folder; its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        os.chdir(folder)
        with open(KEPT / name / "crashes", "a") as log:
            faulthandler.enable(log)
            work(name, seeds, counts)
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def wait(pid: int, counts: Any, progress: Callable[[int], Any]) -> int:
    """The status with which a worker ended, or was ended because it stood still."""
    seed, since = counts[0], time.monotonic()
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.1)
        progress(counts[0])
        if counts[0] != seed:
            seed, since = counts[0], time.monotonic()
        elif time.monotonic() - since > SECONDS:
            os.kill(pid, signal.SIGKILL)
    return ended[1]


def stress(name: str, seeds: range) -> bool:
    """All these seeds of a format, with a bar; prints what came of them. Whether nothing went wrong."""
    shutil.rmtree(KEPT / name, ignore_errors=True)
    (KEPT / name).mkdir(parents=True)
    counts = memoryview(mmap.mmap(-1, 32)).cast("q")
    crashes, start, next_seed = 0, time.monotonic(), seeds.start
    bar = tqdm(total=len(seeds), desc=name, unit=" files", disable=None)
    with bar, tempfile.TemporaryDirectory() as folder:
        while next_seed < seeds.stop:
            pid = start_worker(name, range(next_seed, seeds.stop), counts, folder)
            status = wait(pid, counts, lambda seed: bar.update(seed - seeds.start - bar.n))
            if os.WIFEXITED(status) and status != 0:
                raise SystemExit("the program that checks has failed")
            next_seed = seeds.stop
            if os.WIFSIGNALED(status):
                crashes += 1
                next_seed = counts[0] + 1
                files, options = draw(name, counts[0])
                kind = f"crash, {signal.Signals(os.WTERMSIG(status)).name}"
                keep(name, counts[0], files, Difference(kind, f"options {options}"))
        bar.update(len(seeds) - bar.n)
    _, accepted, refused, differences = counts
    print(
        f"{name}: {len(seeds):,} files, {accepted:,} accepted, {refused:,} refused, "
        f"{differences:,} differences, {crashes:,} crashes, {time.monotonic() - start:.0f} s",
        flush=True,
    )
    for kind, folders in kept(name).items():
        print(f"  {kind}: {', '.join(folders)}", flush=True)
    return differences == crashes == 0


def stress_memory() -> bool:
    """`stress.memory` in a process of one thread: libraries may crash where they can't start another one."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "stress.memory"], env=one_thread).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "formats", nargs="*", default=[*FORMATS, "memory"], metavar="format",
        help=", ".join(FORMATS) + ", memory: operations that are short of it",
    )  # fmt: skip
    parser.add_argument("--files", type=int, default=20_000, help="files of each format")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first file; the next one's is 1 more"
    )
    args = parser.parse_args()
    sizes = {name: min(args.files, FORMATS[name].most) for name in args.formats if name != "memory"}
    good = [stress(name, range(args.seed, args.seed + count)) for name, count in sizes.items()]
    if "memory" in args.formats:
        good.append(stress_memory())
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

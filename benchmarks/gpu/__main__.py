"""The program behind gpu.sh: runs the stages that were asked for and keeps what each left."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from gpu import machine, reports
from gpu.machine import PYTHON, ROOT, Unfit
from gpu.running import CUT, run_steps, shorten
from gpu.stages import SECONDS, STAGES, Run, limit

NOTHING = "no test ran"


class Summary:
    """summary.json: the runs into a folder, their stages, ceilings and rows. Written anew at every change."""

    def __init__(self, out: Path) -> None:
        self.file = out / "summary.json"
        self.data: dict[str, Any] = {"runs": [], "stages": {}, "ceilings": {}, "rows": []}
        with contextlib.suppress(OSError, ValueError):
            former = json.loads(self.file.read_text(encoding="utf-8"))
            self.data |= {name: value for name, value in former.items() if name in self.data}

    def write(self) -> None:
        part = self.file.with_name(".summary.json")
        part.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.file)

    def keep_benchmarks(self, run: Run, card: str) -> None:
        """The rows that are there so far, in place of former ones of the same card and test."""
        new = [{"card": card} | row for row in reports.rows(run.work / "cuda.csv")]
        again = {(row["card"], row["test"]) for row in new}
        old = [row for row in self.data["rows"] if (row["card"], row["test"]) not in again]
        self.data["rows"] = old + new
        if rates := reports.ceilings(run.work / "cuda_ceilings.csv"):
            self.data["ceilings"][card] = rates


def give_up(summary: Summary, why: str) -> NoReturn:
    """The last line of stderr and summary.json say why nothing was run."""
    summary.data["error"] = why
    summary.write()
    raise SystemExit(f"gpu.sh: {why}")


def prepare(out: Path, work: Path, summary: Summary) -> tuple[Run, str]:
    """What the stages have to know, and the card. Ends the program where nothing can be run."""
    wheels = machine.install_wheels(Path(os.environ.get("MACH_WHEELS", ROOT / "wheels")), work / "site")
    if (work / "site").exists():
        paths = (os.environ.get("PYTHONPATH", str(ROOT)), str(work / "site"))
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        if names := machine.missing():
            raise Unfit(f"missing: {', '.join(names)}")
        nvcc = machine.find_nvcc()
        gpu = machine.probe()
    except Unfit as error:
        give_up(summary, str(error))
    tools = {name: machine.find_tool(name, nvcc) for name in ("ncu", "compute-sanitizer")}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    described = {"date": now, **gpu, **machine.describe(nvcc)}
    if wheels:
        described["wheels"] = wheels
    summary.data["runs"].append(described)
    summary.write()
    shown = ("device", "driver", "torch", "python", "nvcc", "cores")
    print("; ".join(f"{name} {described[name]}" for name in shown), flush=True)
    return Run(out, work, nvcc, gpu["capability"], tools, os.cpu_count() or 1), gpu["card"]


def choose(asked: list[str]) -> list[str]:
    """The stages in their order. Without operators that were built before, the build comes first."""
    chosen = [name for name in STAGES if name in asked or not asked]
    if not (ROOT / "mach_ext" / "_cuda.so").exists() and "build" not in chosen:
        chosen.insert(0, "build")
    return chosen


def run_stage(name: str, run: Run, card: str, summary: Summary, seconds: float) -> dict[str, Any]:
    """Runs a stage, and keeps what it leaves while it runs."""
    stage, began = STAGES[name], time.monotonic()
    log = run.out / stage.log
    offset = log.stat().st_size if log.exists() else 0
    about = {"run": len(summary.data["runs"]) - 1, "card": card, "limit": round(seconds)}

    def keep(code: int | None) -> dict[str, Any]:
        text = log.read_bytes()[offset:].decode(errors="replace")
        entry = {"exit": code, "seconds": round(time.monotonic() - began), **about, **stage.read(run, text)}
        if code == 0 and entry.get("passed") == 0:
            entry.setdefault("note", NOTHING)
        summary.data["stages"][name] = entry
        summary.keep_benchmarks(run, card)
        summary.write()
        return entry

    with open(log, "ab") as file:
        file.write(f"=== {name}\n".encode())
    code = CUT
    try:
        keep(None)
        code = run_steps(stage.steps(run), log, seconds, lambda: keep(None))
    finally:
        entry = keep(code)
        shorten(log)
    return entry


def leave_out(name: str, why: str, summary: Summary) -> None:
    summary.data["stages"][name] = {"exit": None, "run": len(summary.data["runs"]) - 1, "note": why}
    summary.write()
    print(f"=== {name}: not run, {why}", flush=True)


def tell(name: str, entry: dict[str, Any], log: Path) -> None:
    """The exit line of a stage, its failures, and for a failure without names the end of its log."""
    counts = [f"{entry[key]} {key}" for key in ("passed", "failed", "skipped", "errors") if key in entry]
    if "collected" in entry:
        counts.append(f"of {entry['collected']} tests")
    said = [entry["note"]] if "note" in entry else []
    cut = " (cut)" if entry["exit"] == CUT else ""
    ended = f"exit {entry['exit']}{cut}, {entry['seconds']} s of {entry['limit']}"
    print(f"=== {name}: {'; '.join([ended, *([', '.join(counts)] if counts else []), *said])}", flush=True)
    failures = entry.get("failures", [])
    for failure in failures[:20]:
        print(f"    {failure['test']}: {failure['line']}", flush=True)
    if entry["exit"] and not failures:
        text = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        print("\n".join(f"    {line}" for line in text), flush=True)


def run_all(chosen: list[str], run: Run, card: str, summary: Summary, total: float, began: float) -> bool:
    """Whether every stage that could run ended well."""
    for log in {STAGES[name].log for name in chosen}:
        (run.out / log).unlink(missing_ok=True)
    good = True
    for name in chosen:
        stage = STAGES[name]
        seconds = limit(name, chosen, total - (time.monotonic() - began), total)
        if stage.tool is not None and run.tools[stage.tool] is None:
            leave_out(name, f"{stage.tool} is not installed", summary)
        elif name != "build" and summary.data["stages"].get("build", {}).get("exit") and "build" in chosen:
            leave_out(name, "the build failed", summary)
        elif seconds < 1:
            leave_out(name, "no time is left", summary)
            good = False
        else:
            entry = run_stage(name, run, card, summary, seconds)
            tell(name, entry, run.out / stage.log)
            good = good and entry["exit"] == 0 and entry.get("note") != NOTHING
    return good


def write_tables(out: Path) -> None:
    """cuda.md, where pandas is."""
    command = [PYTHON, str(ROOT / "benchmarks" / "table.py"), "--cuda", str(out / "summary.json")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return
    if done.returncode:
        print(f"no tables: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return
    (out / "cuda.md").write_text(done.stdout, encoding="utf-8")
    print(done.stdout)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does: the stage is ended, and what is there is kept."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    yield


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    stages = f"{', '.join(STAGES)} [default: all]"  # Without a default, argparse calls them required.
    parser.add_argument("stages", nargs="*", default=[], metavar="STAGE", help=stages)
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for all stages [default: %(default)s]"
    )
    args = parser.parse_intermixed_args()
    if unknown := [name for name in args.stages if name not in STAGES]:
        parser.error(f"no stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    summary = Summary(out)
    with stopped_by_signals(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        run, card = prepare(out, Path(work), summary)
        good = run_all(choose(args.stages), run, card, summary, args.seconds, began)
    write_tables(out)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
